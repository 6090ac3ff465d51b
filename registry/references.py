"""Names of adapter sets, and references to their versions: ``mrpc``, ``mrpc:3``, ``mrpc@best``.

One rule for names, whatever door they come through: Python, command line, manifests, files.
"""

from __future__ import annotations

import re

from registry.errors import InvalidNameError
from registry.validation import Record, require

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
_RESERVED = _WINDOWS_DEVICES | {"tmp", "store.json"}  # the two entries a store keeps beside its names


class Reference(Record, frozen=True, kw_only=True):
    """A name with at most one of a version and an alias: ``mrpc``, ``mrpc:3``, ``mrpc@best``."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that ``text`` spells.

        Raises:
            InvalidNameError: the name or alias breaks the name rule.
            ConfigError: the version is not a whole number from 1.
        """
        if "@" in text:
            name, alias = text.split("@", 1)
            return cls(name=check_name(name), alias=check_name(alias, "alias"))
        name, colon, version = text.partition(":")
        if not colon:
            return cls(name=check_name(name))
        good = version.isascii() and version.isdigit() and len(version) <= 6 and int(version) >= 1
        require(good, f"reference '{text[:80]}'", "a version from 1 to 999999 after the colon", version[:80])
        return cls(name=check_name(name), version=int(version))

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        return self.name if self.version is None else f"{self.name}:{self.version}"


def check_name(name: str, kind: str = "name") -> str:
    """Return ``name`` if every door of the store may let it in.

    Raises:
        InvalidNameError: it breaks the rule of DESIGN.md, on this or any other operating system.
    """
    if not _NAME.fullmatch(name) or ".." in name or name in _RESERVED or name.split(".")[0] in _WINDOWS_DEVICES:
        raise InvalidNameError(name, kind)
    return name
