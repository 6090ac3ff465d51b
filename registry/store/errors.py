"""What can go wrong with a store of adapter sets; each leaf takes fields and builds its own sentence.

    StoreError                                exit code
    ├── NotAStoreError     (LookupError)       3
    ├── StoreWriteError                        1  read-only, full disk, any failed write
    ├── StoreReadError                         1  a file of the store that the system does not let us read
    ├── StoreAccessError                       6  a store on object storage that cannot be asked, or refuses
    ├── UnsettledError                         1  a change without an answer: done or not, nobody could say
    ├── StrangerError                          4  something in a store that no command has put there
    ├── CommitUncertainError                   1  done and visible, but perhaps not safe from a power loss
    ├── VersionInUseError                      1  a version that an alias points to
    ├── MemberInUseError                       1  a set that a fused one needs
    ├── AdapterNotFoundError (LookupError)     3
    ├── MemberError                            4  a fused set without the very sets that it was made of
    ├── ManifestError      (ValueError)        4
    ├── IntegrityError                         4  bytes, digest, tensor names or values are wrong
    ├── ArchiveNotFoundError (LookupError)     3
    ├── ArchiveError                           4  an exported set that is damaged, or another kind of file
    ├── ForeignSwitchError                     5  a folder of another library that says what no set here can be
    ├── UnimportedError                        1  some of many folders that were refused
    └── UnheldError                            5  a set that a format of another library cannot hold

Those with exit code 4 leave the file as it is: repairing is for whoever has a backup.
"""

from __future__ import annotations

from collections.abc import Iterable

from registry.errors import RegistryError, closest, shorten


class StoreError(RegistryError):
    """Something about a store of adapter sets."""


class NotAStoreError(StoreError, LookupError):
    """A path that holds no store."""

    exit_code = 3

    def __init__(self, path: object, found: str) -> None:
        self.path = str(path)
        super().__init__(
            f"cannot open store {path}: expected a folder with store.json, found {found}; "
            "make one with 'adapter-registry init --backbone embedded' or name another with --store"
        )


class StoreWriteError(StoreError):
    """A write that failed; what was there before is unchanged."""

    def __init__(self, path: object, attempted: str, reason: str) -> None:
        self.path = str(path)
        super().__init__(f"cannot {attempted} in {path}: {reason}; nothing was changed")


class StoreReadError(StoreError):
    """A file or folder of the store that the system does not let us read."""

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"cannot read {path}: {reason}; check its permissions and the disk")


class StoreAccessError(StoreError):
    """A store on object storage that cannot be asked, or refuses."""

    exit_code = 6

    def __init__(self, attempted: str, address: str, expected: str, found: str, hint: str = "") -> None:
        self.attempted, self.address, self.expected, self.found = attempted, address, expected, found
        way_on = f"; {hint}" if hint else ""
        super().__init__(f"cannot {attempted} store {address}: expected {expected}; found {found}{way_on}")


class UnsettledError(StoreError):
    """A change that may be done or not, as neither its answer nor one about it came."""

    def __init__(self, reference: str, where: object) -> None:
        self.reference = reference
        super().__init__(
            f"cannot tell whether the change of '{reference}' in {where} is done: expected an answer, found none; "
            "it is done whole or not at all: see 'adapter-registry list', then try again"
        )


class StrangerError(StoreError):
    """Something in a store that no command has put there."""

    exit_code = 4

    def __init__(self, path: object, expected: str, found: str) -> None:
        self.path, self.expected, self.found = str(path), expected, found
        super().__init__(
            f"cannot vouch for {path}: expected only {expected} there, found {found}; move it out of the store"
        )


class CommitUncertainError(StoreError):
    """A change that is done and visible, but that the disk did not confirm."""

    def __init__(self, reference: str, path: object, reason: str) -> None:
        self.reference, self.path = reference, str(path)
        super().__init__(
            f"the change of '{reference}' in {path} is done, but it may not outlive a power loss: {reason}; "
            "check the disk, then run 'adapter-registry verify'"
        )


class VersionInUseError(StoreError):
    """A version that cannot be removed, as an alias points to it."""

    def __init__(self, reference: str, aliases: Iterable[str], where: object) -> None:
        self.reference, self.aliases = reference, sorted(aliases)
        super().__init__(
            f"cannot remove '{reference}' from {where}: expected no alias on it, found {shorten(self.aliases)}; "
            "move or remove the alias first"
        )


class MemberInUseError(StoreError):
    """A set that cannot be removed, as fused sets cannot answer without it."""

    def __init__(self, reference: str, fused: Iterable[str], where: object) -> None:
        self.reference, self.fused = reference, sorted(fused)
        super().__init__(
            f"cannot remove '{reference}' from {where}: expected no fused set that needs it, found "
            f"{shorten(self.fused)}; remove that first"
        )


class MemberError(StoreError):
    """A fused set whose member is not there, or is another set by now."""

    exit_code = 4

    def __init__(self, what: str, member: str, expected: str, found: str) -> None:
        self.what, self.member, self.expected, self.found = what, member, expected, found
        super().__init__(
            f"cannot use {what}: member '{member}': expected the set with SHA-256 {expected}, found {found}; "
            "import that set under its own name, restore it from a backup, or train the fused set anew"
        )


class AdapterNotFoundError(StoreError, LookupError):
    """No adapter set, version or alias of this name."""

    exit_code = 3

    def __init__(self, reference: str, available: Iterable[str], where: object) -> None:
        self.reference, self.available = reference, sorted(available)
        hint = closest(reference, self.available)
        hint = f"; {hint}" if hint else ""
        super().__init__(f"cannot find adapter set '{reference}' in {where}: it has {shorten(self.available)}{hint}")


class ManifestError(StoreError, ValueError):
    """A manifest, store file or alias that does not follow the format."""

    exit_code = 4

    def __init__(self, path: object, field: str, expected: str, found: object, hint: str = "") -> None:
        self.path, self.field, self.expected, self.found = str(path), field, expected, found
        hint = hint or "restore the file from a backup or remove this version"
        super().__init__(f"cannot read {path}: {field}: expected {expected}, found {found}; {hint}")


class IntegrityError(StoreError):
    """A stored file whose bytes, tensors or values are not what the manifest says."""

    exit_code = 4

    def __init__(self, path: object, what: str, expected: object, found: object) -> None:
        self.path, self.what, self.expected, self.found = str(path), what, expected, found
        super().__init__(
            f"cannot load {path}: {what}: expected {expected}, found {found}; "
            "restore the file from a backup or remove this version"
        )


class ArchiveNotFoundError(StoreError, LookupError):
    """A file or folder to import that is not there."""

    exit_code = 3

    def __init__(self, path: object) -> None:
        self.path = str(path)
        super().__init__(f"cannot import {path}: expected an exported file or folder, found nothing there")


class ArchiveError(StoreError):
    """An exported adapter set that is damaged or too large, or another kind of file."""

    exit_code = 4

    def __init__(self, path: object, what: str, expected: object, found: object) -> None:
        self.path, self.what, self.expected, self.found = str(path), what, expected, found
        super().__init__(
            f"cannot import {path}: {what}: expected {expected}, found {found}; "
            "export the set again where it comes from; nothing was changed"
        )


class ForeignSwitchError(StoreError):
    """A folder of another library with a setting that no set here can have exactly."""

    exit_code = 5

    def __init__(self, path: object, switch: str, expected: str, found: object) -> None:
        self.path, self.switch, self.expected, self.found = str(path), switch, expected, found
        super().__init__(
            f"cannot import {path}: {switch}: expected {expected}, found {found}; nothing was stored, as its answers "
            "would not be the ones it was saved with"
        )


class UnheldError(StoreError):
    """A set that a format cannot hold exactly."""

    exit_code = 5

    def __init__(self, reference: str, format: str, obstacle: str, others: Iterable[str]) -> None:
        self.reference, self.format, self.obstacle, self.others = reference, format, obstacle, sorted(others)
        super().__init__(
            f"cannot export '{reference}' as {format}: {obstacle}; formats that can hold it: {shorten(self.others)}"
        )


class UnimportedError(StoreError):
    """Folders of many that were refused; all others are stored."""

    def __init__(self, path: object, refused: int, total: int) -> None:
        self.path, self.refused, self.total = str(path), refused, total
        super().__init__(f"{refused:,} of {total:,} sets in {path} were refused; each says why in its line")
