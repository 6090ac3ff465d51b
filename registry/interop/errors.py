"""What can go wrong at the doors to other libraries; each leaf takes fields and builds its own sentence.

    CompatibilityError
    └── FormatError                            5  a set that a format of others cannot hold
"""

from __future__ import annotations

from registry.errors import CompatibilityError


class FormatError(CompatibilityError):
    """A set that another library's format or model cannot hold."""

    def __init__(self, what: str, expected: str, found: str, way_on: str) -> None:
        self.what, self.expected, self.found = what, expected, found
        super().__init__(f"cannot put {what}: expected {expected}, found {found}; {way_on}")
