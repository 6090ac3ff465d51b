"""What may share a table and a mean: one program, one set of rows, one backbone; and who is warned of what."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from registry.comparable import averaged_runs, is_dirty, not_above_majority, why_not_averaged
from registry.errors import RunError
from registry.frames import runs_table, summary_table, total_table
from registry.remarks import missing_and_failed, notes
from registry.schema import RunRecord
from tests.runs import fail, make_record

ONE, OTHER = "0123456789ab", "ba9876543210"


def made_by(*codes: str, method: str = "pfeiffer") -> list[RunRecord]:
    """Return a finished seed for each version of the code, beside the majority class."""
    runs = [make_record("mrpc", method, seed, code=code) for seed, code in enumerate(codes)]
    return [make_record("mrpc", "majority", code=ONE), *runs]


def row_of(records: list[RunRecord], method: str = "pfeiffer") -> dict:
    frame = summary_table(records)
    return frame[frame["method"] == method].to_dict("records")[0]


def test_runs_of_one_commit_are_averaged() -> None:
    """Seeds of one committed version have a mean, and nothing is said against it."""
    records = made_by(ONE, ONE)
    assert "" == why_not_averaged(records[1:])
    assert records[1:] == averaged_runs(records[1:])
    assert (2, 0, "", 0.8203125) == tuple(
        row_of(records)[name] for name in ("seeds", "not_averaged", "notes", "f1_binary_mean")
    )


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        ((ONE, OTHER), f"runs of different code ({ONE}, {OTHER})"),
        ((ONE, f"{ONE}-dirty"), f"runs of different code ({ONE}, {ONE}-dirty)"),
        (("release 0.1.0", "release 0.2.0"), "runs of different code (release 0.1.0, release 0.2.0)"),
        ((f"{ONE}-dirty", f"{ONE}-dirty"), f"runs of uncommitted code ({ONE}-dirty)"),
    ],
)
def test_other_or_uncommitted_code_is_never_averaged(codes: tuple[str, ...], why: str) -> None:
    """Such runs keep their lines among the runs; their row has no number that mixes them, and says why."""
    records = made_by(*codes)
    assert why == why_not_averaged(records[1:])
    assert [] == averaged_runs(records[1:])
    row = row_of(records)
    assert (0, 2, 0, f"Not averaged: {why}.") == tuple(
        row[name] for name in ("seeds", "not_averaged", "failed", "notes")
    )
    for name in ("accuracy_mean", "f1_binary_mean", "f1_binary_std", "train_seconds", "rows_per_second"):
        assert np.isnan(row[name]), name
    assert 2 == len(runs_table(records).query("method == 'pfeiffer'"))
    told = f"Not averaged: pfeiffer on mrpc: {why}; run them again with one commit."
    assert told in missing_and_failed(records)
    assert told in notes(records)
    totals = total_table(records).set_index("method").to_dict("index")
    assert 0 == totals["pfeiffer"]["tasks"]
    assert np.isnan(totals["pfeiffer"]["main_metrics_mean"])


def test_failed_run_of_other_code_stands_in_no_means_way() -> None:
    """What has no score is in no mean, so its code does not matter."""
    records = [*made_by(ONE, ONE), fail(make_record("mrpc", "pfeiffer", 2, code=OTHER))]
    assert (2, 0, 1) == tuple(row_of(records)[name] for name in ("seeds", "not_averaged", "failed"))


def test_one_uncommitted_run_is_shown_with_a_note() -> None:
    """A single run is no average: its scores are there; its row, its line and the notes say it cannot be repeated."""
    records = made_by(f"{ONE}-dirty")
    assert [False, True] == [is_dirty(record) for record in records]
    row = row_of(records)
    assert (1, 0.8125, "Uncommitted code: cannot be repeated.") == (row["seeds"], row["f1_binary_mean"], row["notes"])
    assert ["", "Uncommitted code: cannot be repeated."] == list(runs_table(records)["notes"])
    expected = f"1 of 2 runs were made by uncommitted code ({ONE}-dirty): nobody can repeat them, "
    assert [expected + "and none is averaged with another."] == [
        note for note in notes(records) if "uncommitted" in note
    ]


def test_methods_of_different_code_share_a_table() -> None:
    """Code decides what is averaged; that methods were run by different code is told among the notes."""
    records = [*made_by(ONE), make_record("mrpc", "houlsby", code=OTHER)]
    assert [0.5, 0.875, 0.8125] == list(summary_table(records)["f1_binary_mean"].dropna())
    assert f"Code: {ONE}, {OTHER}." in notes(records)


def test_other_tokenizer_is_refused() -> None:
    """A task's rows turned into other tokens are other data."""
    base = make_record("mrpc", "pfeiffer")
    backbone = msgspec.structs.replace(base.backbone, tokenizer_digest="u" * 64)
    with pytest.raises(RunError, match="expected the same tokenizer, found uuuuuuuuuuuu and tttttttttttt"):
        summary_table([base, make_record("mrpc", "houlsby", backbone=backbone)])


def test_runs_at_majority_level_are_listed_and_counted() -> None:
    """A finished run no better than the majority class is no failure: it counts, and is named with both numbers."""
    low = make_record("mrpc", "pfeiffer", 1, scores={"accuracy": 0.9, "f1_binary": 0.5})
    records = [
        *made_by(ONE),
        msgspec.structs.replace(low, code=ONE),
        fail(make_record("mrpc", "pfeiffer", 2, code=ONE)),
    ]
    assert [("pfeiffer", 1)] == [(record.method, record.seed) for record in not_above_majority(records)]
    assert (2, 1, (0.8125 + 0.5) / 2) == tuple(row_of(records)[name] for name in ("seeds", "failed", "f1_binary_mean"))
    assert "1 of 3 runs no better than the majority class." == row_of(records)["notes"]
    assert ["", "", "No better than the majority class.", ""] == list(runs_table(records)["notes"])
    told = "No better than the majority class: pfeiffer on mrpc, seed 1: f1_binary 0.500, majority 0.500."
    assert told in notes(records)


def test_majority_level_of_an_error_is_above() -> None:
    """Where less is better, a run with no smaller error than the mean value has learned nothing."""
    own = {"main_metric": "mse", "code": ONE}
    values = {"majority": 2.0, "houlsby": 1.0, "pfeiffer": 3.0}
    records = [make_record("stars", method, scores={"mse": value}, **own) for method, value in values.items()]
    assert ["pfeiffer"] == [record.method for record in not_above_majority(records)]
    assert [] == not_above_majority(records[1:])


def test_notes_tell_overlap_and_truncation() -> None:
    """Rows that stand in both splits and rows that were cut are told once a task, by runs that read the texts."""
    base = make_record("mrpc", "pfeiffer")
    data = msgspec.structs.replace(base.data, overlap_reported=12, overlap_train=14, truncated_reported=102)
    majority = msgspec.structs.replace(data, truncated_train=0, truncated_reported=0)
    records = [
        make_record("mrpc", "pfeiffer", data=data),
        make_record("mrpc", "majority", data=majority),
        fail(make_record("mrpc", "houlsby", data=majority)),
    ]
    assert [
        "mrpc, from hub: trained on 3,668 of 3,668 rows (12 truncated, 0.33 %), reported on 408 of 408 rows of "
        "validation (102 truncated, 25.00 %); 12 of 408 reported rows also stand in the training rows, but for case, "
        "spacing and punctuation."
    ] == [note for note in notes(records) if note.startswith("mrpc, from")]
    unchecked = [note for note in notes([base]) if "was not checked" in note]
    assert 1 == len(unchecked)
    assert "(none truncated); whether reported rows also stand in the training rows was not checked." in unchecked[0]
