"""Ray, found, told what is wanted of it, and left again.

The first that a program hears of Ray, and the only place that starts or ends it. No folder is uploaded: a worker
imports the package that is installed on its own machine, which ``check_worker`` compares with the driver's.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from registry.errors import ConfigError, RegistryError
from registry.provenance import code_version, library_versions

LOCAL = "ray"
_CLIENT = "ray://"
_REACH_SECONDS = 5.0
_LOG = "ADAPTER_REGISTRY_RAY_LOG"  # 1: what Ray and its workers say is shown
_INSTALL = "pip install 'adapter-registry[ray]'"


class ClusterError(RegistryError):
    """Machines that cannot be reached, or that cannot do what they are asked."""

    exit_code = 6

    def __init__(self, attempted: str, expected: str, found: str, hint: str) -> None:
        self.attempted, self.expected, self.found = attempted, expected, found
        super().__init__(f"cannot {attempted}: expected {expected}, found {found}; {hint}")


def check_address(on: str) -> None:
    """Refuse an address that is none, before anything is loaded, and tell how Ray is installed where it is not.

    Raises:
        ConfigError: another word than ``ray``, no host and port, or no Ray.
    """
    parts = urlsplit(on)
    try:
        is_whole = on == LOCAL or (on.startswith(_CLIENT) and bool(parts.hostname) and parts.port is not None)
    except ValueError:  # a port that is none
        is_whole = False
    if not is_whole:
        raise ConfigError("--on", "ray, or ray://HOST:PORT", on)
    if find_spec("ray") is None:
        raise ConfigError(f"--on {on}", "ray to be installed", "no ray", _INSTALL)


@contextmanager
def connect(on: str) -> Iterator[None]:
    """Be connected to Ray inside the ``with`` block; what was started for it has ended afterwards.

    A connection that the program has already is used, and left as it is.

    Args:
        on: ``ray`` for nodes of this machine, or the cluster that RAY_ADDRESS names; else ``ray://HOST:PORT``.

    Raises:
        ConfigError: no such address, or Ray is not installed.
        ClusterError: nobody answers there, or with another version of Ray or Python.
    """
    check_address(on)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = on if on != LOCAL else os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _reach(on, address)
    if ray.is_initialized():
        yield
        return
    talks = os.environ.get(_LOG) == "1"
    level = logging.INFO if talks else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=talks, logging_level=level, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as err:
        told = (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
        hint = f"the same versions of Python and Ray have to be there; {_LOG}=1 shows what Ray says"
        raise ClusterError(f"work on {address}", "a Ray that takes this program", told, hint) from err
    try:
        yield
    finally:
        ray.shutdown()


def _reach(on: str, address: str) -> None:
    """Raise ClusterError where nobody listens, which Ray itself would look for much longer."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        return  # such as 'auto', which Ray explains
    try:
        socket.create_connection((parts.hostname, parts.port), _REACH_SECONDS).close()
    except OSError as err:
        hint = "'ray start --head' starts one, whose client port is 10001; --on ray needs none"
        told = err.strerror or str(err) or type(err).__name__
        raise ClusterError(f"work on {on}", f"a Ray that listens on {address}", told, hint) from err


def what_decides() -> dict[str, str]:
    """Return the versions that decide what comes out: the libraries', and that of the code."""
    return {**library_versions(), "code": code_version()}


def check_worker(expected: dict[str, str]) -> None:
    """Raise ClusterError, on a worker, where it would not compute what the driver would."""
    found = what_decides()
    for name in expected.keys() | found.keys():
        if found.get(name) != expected.get(name):
            where = f"work on {socket.gethostname()}"
            hint = "install there what is installed here, or restart its Ray"
            raise ClusterError(
                where, f"{name} {expected.get(name, 'not installed')}", found.get(name, "none of it"), hint
            )
