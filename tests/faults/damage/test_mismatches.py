"""Sets are refused wherever they do not belong, and links and special files in a store are never followed."""

from __future__ import annotations

from pathlib import Path

from tests.faults.damage.mismatches import try_mismatches
from tests.faults.damage.planted import try_planted


def test_sets_are_refused_where_they_do_not_belong(tmp_path: Path) -> None:
    """Wrong backbones, tokenizers, shapes, labels and formats are refused by an error that names what differs."""
    verdict = try_mismatches(tmp_path)
    assert [] == verdict.bad
    assert verdict.tried >= 200
    assert int(verdict.details["named cases"]) >= 20


def test_links_and_special_files_are_not_followed(tmp_path: Path) -> None:
    """A link, a pipe, a wrong kind or an endless file at any place of a store is refused or passed over at once."""
    verdict = try_planted(tmp_path)
    assert [] == verdict.bad
    assert verdict.tried >= 1000
