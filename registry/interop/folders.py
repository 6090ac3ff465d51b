"""Looking at a folder that another library saved: whose it is, its configuration, its tensors.

Everything in it is material to judge: sizes, counts and names within the store's limits, finite values, no links, no
code. What its configuration may say is in switches.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save as format_tensors
from torch import Tensor

from registry.adapters.adapter_set import AdapterSet
from registry.config import HeadConfig, MethodConfig
from registry.errors import ConfigError, shorten
from registry.interop.pickled import CONVERSION, NO_TENSORS, PICKLE_BYTES, PICKLE_SECONDS, PICKLE_TENSORS, TOO_MUCH
from registry.model.backbone import Backbone
from registry.schema import BackboneInfo, Manifest
from registry.store import files
from registry.store.archive import archive_errors
from registry.store.errors import ArchiveError, ArchiveNotFoundError, ForeignSwitchError
from registry.store.manifest import FILE_LIMIT
from registry.store.reader import MANIFEST_FILE
from registry.store.tensors import read_tensors
from registry.validation import from_json

CONFIG_FILE = "adapter_config.json"
CONFIG_LIMIT = 2**20  # bytes
FOLDER_LIMIT = 10_000  # folders in one that is imported as a whole

_READER = Path(__file__).with_name("pickled.py")  # a program of its own

EMBEDDED_NAME = "sentence-transformers/all-MiniLM-L6-v2"  # on the Hub

FoundFormat = Literal["archive", "adapterhub", "peft", "folders"]


class StoredSet(NamedTuple):
    """A version of a store as a format sees it: what is known of it, its tensors, and the backbone it is for."""

    manifest: Manifest
    adapter_set: AdapterSet
    backbone: Backbone

    @property
    def has_head(self) -> bool:
        """Return whether its head was trained; one that was imported without a head has none yet."""
        return self.manifest.imported is None or self.manifest.imported.head


class ForeignSet(NamedTuple):
    """A set as a folder describes it, before it meets a backbone.

    Attributes:
        name: its own, None where the format has none.
        library: version of the library that saved it.
        backbone: the name of its backbone.
        adapter: the method's shape.
        state: tensors by the names that ``AdapterSet.adapter`` has for them.
        head: None where there is none.
        head_state: tensors by the names of ``AdapterSet.head``.
        not_kept: settings of training alone that no set here has.
    """

    name: str | None
    library: str
    backbone: str
    adapter: MethodConfig
    state: Mapping[str, Tensor]
    head: HeadConfig | None
    head_state: Mapping[str, Tensor]
    not_kept: tuple[str, ...] = ()


def find_format(path: Path) -> FoundFormat:
    """Return whose file or folder this is, by looking at it.

    Raises:
        ArchiveNotFoundError: there is nothing.
        ArchiveError: a folder of nothing that can be imported.
    """
    place = resolved(path)
    if files.kind(place) == "file":
        return "archive"
    there = files.entries(place, "file")
    if MANIFEST_FILE in there:
        return "archive"
    if CONFIG_FILE in there or CONFIG_FILE in files.entries(place):
        config = read_foreign_config(path, CONFIG_FILE)
        if "peft_type" in config:
            return "peft"
        if "config" in config or "type" in config:
            return "adapterhub"
        expected = "'peft_type' as PEFT writes it, or 'config' as AdapterHub does"
        raise ArchiveError(path / CONFIG_FILE, "keys", expected, _told(config))
    for name in ("adapter_fusion_config.json", "adapter_setup.json", "head_config.json"):
        if name in there:
            raise ForeignSwitchError(path, name, f"a single adapter with its {CONFIG_FILE}", f"a folder of {name}")
    if next(sub_folders(path), None) is not None:
        return "folders"
    expected = f"an archive, or a folder with {CONFIG_FILE} or {MANIFEST_FILE} or of such folders"
    raise ArchiveError(path, "content", expected, _told(there) if there else "nothing of these")


def sub_folders(path: Path) -> Iterator[Path]:
    """Yield the folders in a folder that look like saved sets, and its archives, sorted.

    Raises:
        ArchiveError: more than anybody means.
    """
    place = resolved(path)
    names = files.entries(place)
    if len(names) > FOLDER_LIMIT:
        raise ArchiveError(path, "content", f"at most {FOLDER_LIMIT:,} entries", f"{len(names):,}")
    for name in names:
        kind = files.kind(place / name)
        inside = files.entries(place / name) if kind == "folder" else []
        if {CONFIG_FILE, MANIFEST_FILE} & set(inside) or (kind == "file" and name.endswith(".adapter")):
            yield path / name


def resolved(path: Path) -> Path:
    """Return where the user's own path leads; what is in a folder may be no link.

    Raises:
        ArchiveNotFoundError: there is nothing.
        StoreReadError: the system does not let us look.
    """
    with files.reading(path):
        place = Path(os.path.realpath(path))
        if files.kind(place) is None:
            raise ArchiveNotFoundError(path)
    return place


def read_foreign_config(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of a folder.

    Raises:
        ArchiveError: a link, too large, not strict JSON, or no object.
    """
    data = _read(path, name, CONFIG_LIMIT)
    if data is None:
        raise ArchiveError(path, "content", name, "none")
    try:
        found: dict[str, Any] = from_json(dict, data)
    except ConfigError as err:
        raise ArchiveError(path / name, err.field, err.expected, repr(err.found)[:200]) from err
    return found


def has_file(path: Path, name: str) -> bool:
    """Return whether a folder has an entry of this name, whatever it is."""
    return files.kind(resolved(path) / name) is not None


def read_weights(path: Path, name: str, pickle: str, *, pickles: bool) -> dict[str, Tensor] | None:
    """Return the float32 tensors of a folder's weight file, None where there is none.

    Args:
        path: the folder.
        name: of the safetensors file.
        pickle: of the file that is read where the other is not there, and only if asked for.
        pickles: whether it is.

    Raises:
        ArchiveError: a link, too large, damaged, other types than floats of 16 and 32 bits, or values not finite.
        ForeignSwitchError: there is only a pickle, which was not asked for.
    """
    data, told = _read(path, name, FILE_LIMIT), path / name
    if data is None:
        data, told = _read(path, pickle, FILE_LIMIT), path / pickle
        if data is None:
            return None
        if not pickles:
            convert = CONVERSION.format(pickled=pickle, name=name)
            expected = f"{name}, which this makes: {convert}; or --allow-pickle, in a process of its own with limits"
            raise ForeignSwitchError(path, pickle, expected, "a pickle alone")
        data = _unpickled(told, data)
    with archive_errors():
        tensors = read_tensors(told, data, with_metadata=True)
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ArchiveError(told, f"values of {ascii(key)[:120]}", "finite numbers", "NaN or infinity")
    return {key: tensor.float() for key, tensor in tensors.items()}


def _unpickled(path: Path, data: bytes) -> bytes:
    """Return the tensors of a pickled state dictionary as bytes of safetensors."""
    # -I: neither the folder it is started in nor the environment can put a module in the way.
    command = [sys.executable, "-I", str(_READER)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=PICKLE_SECONDS, check=False, cwd="/")
    except subprocess.TimeoutExpired as err:
        raise ArchiveError(path, "content", f"tensors within {PICKLE_SECONDS} seconds", "none") from err
    if done.returncode != 0:
        expected = {
            NO_TENSORS: "a dictionary of dense tensors of 16 or 32 bits",
            TOO_MUCH: f"at most {PICKLE_TENSORS:,} tensors and {PICKLE_BYTES:,} bytes",
        }.get(done.returncode, "a pickle of tensors alone, as torch.save writes it")
        raise ArchiveError(path, "content", expected, f"something else (status {done.returncode})")
    return done.stdout


def _read(path: Path, name: str, limit: int) -> bytes | None:
    """Return the bytes of one file of a folder, None where there is no such file."""
    place = resolved(path) / name
    with archive_errors():
        try:
            with files.reading(path / name):
                return files.read(place, limit)
        except FileNotFoundError:
            return None


def take_tensors(
    path: Path, found: Mapping[str, Tensor], expected: Mapping[str, str], switch: str = ""
) -> dict[str, Tensor]:
    """Return tensors under our names, where theirs are exactly those that a configuration means.

    Args:
        path: of the file they are from.
        found: by their names.
        expected: our name of each of theirs.
        switch: of the configuration, which makes tensors that no set here has.

    Raises:
        ForeignSwitchError: unexpected names, where a switch makes them.
        ArchiveError: a missing or unexpected name.
    """
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if unexpected and switch and not missing:
        told = shorten((ascii(key)[1:-1][:160] for key in unexpected), 3)
        raise ForeignSwitchError(path, switch, f"nothing but the {len(expected)} tensors that a set here has", told)
    if missing or unexpected:
        told = f"missing {shorten(missing, 3)}; unexpected {shorten((ascii(key)[1:-1][:160] for key in unexpected), 3)}"
        raise ArchiveError(path, "tensor names", f"the {len(expected)} of its configuration", told)
    return {ours: found[theirs] for theirs, ours in expected.items()}


def chosen_of(config: MethodConfig, stored: StoredSet) -> tuple[int, ...]:
    """Return the layers that a stored set changes."""
    return tuple(range(stored.manifest.backbone.layers)) if config.layers is None else config.layers


def public_name(backbone: BackboneInfo) -> str:
    """Return the name of a backbone that means something elsewhere: a Hub id, or the name of a folder."""
    if backbone.source == "embedded":
        return EMBEDDED_NAME
    return Path(backbone.source).name if Path(backbone.source).is_absolute() else backbone.source


def to_bytes(config: Mapping[str, Any]) -> bytes:
    """Return a configuration as the libraries write it: indented JSON with sorted keys."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as safetensors, with the note that transformers and PEFT ask for."""
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in sorted(tensors.items())}
    return format_tensors(plain, {"format": "pt"})


def _told(names: Iterable[str] | Sequence[str]) -> str:
    return shorten(ascii(name)[1:-1][:60] for name in names)
