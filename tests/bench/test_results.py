"""What may share a table and a mean: one program, one set of rows, one backbone; and who is warned of what."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from registry.bench.records import RunRecord
from registry.bench.results import averaged_runs, check_comparable, is_dirty, not_above_majority, why_not_averaged
from registry.errors import RunError
from registry.reports.content import TableStatistics
from registry.reports.frames import runs_table
from registry.reports.sentences import missing_and_failed, notes
from tests.support.run_records import fail, make_record, summary_of, totals_of

ONE, OTHER = "0123456789ab", "ba9876543210"


def made_by(*codes: str, method: str = "pfeiffer") -> list[RunRecord]:
    """Return a finished seed for each version of the code, beside the majority class."""
    runs = [make_record("mrpc", method, seed, code=code) for seed, code in enumerate(codes)]
    return [make_record("mrpc", "majority", code=ONE), *runs]


def row_of(records: list[RunRecord], method: str = "pfeiffer") -> dict:
    frame = summary_of(records)
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
    assert told in notes(records, TableStatistics())
    totals = totals_of(records).set_index("method").to_dict("index")
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
        note for note in notes(records, TableStatistics()) if "uncommitted" in note
    ]


def test_methods_of_different_code_share_a_table() -> None:
    """Code decides what is averaged; that methods were run by different code is told among the notes."""
    records = [*made_by(ONE), make_record("mrpc", "houlsby", code=OTHER)]
    assert [0.5, 0.875, 0.8125] == list(summary_of(records)["f1_binary_mean"].dropna())
    assert f"Code: {ONE}, {OTHER}." in notes(records, TableStatistics())


def test_other_tokenizer_is_refused() -> None:
    """A task's rows turned into other tokens are other data."""
    base = make_record("mrpc", "pfeiffer")
    backbone = msgspec.structs.replace(base.backbone, tokenizer_digest="u" * 64)
    with pytest.raises(RunError, match="expected the same tokenizer, found uuuuuuuuuuuu and tttttttttttt"):
        summary_of([base, make_record("mrpc", "houlsby", backbone=backbone)])


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
    assert told in notes(records, TableStatistics())


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
    ] == [note for note in notes(records, TableStatistics()) if note.startswith("mrpc, from")]
    unchecked = [note for note in notes([base], TableStatistics()) if "was not checked" in note]
    assert 1 == len(unchecked)
    assert "(none truncated); whether reported rows also stand in the training rows was not checked." in unchecked[0]


def trained_on(rows: int, method: str, seed: int = 0, fingerprint: str = "", **changes: object) -> RunRecord:
    """Return a record of so many training rows, and its data's ``changes``."""
    base = make_record("mrpc", method, seed)
    own = {"train_rows": rows, "fingerprint": fingerprint or f"{rows} rows", **changes}
    return msgspec.structs.replace(base, data=msgspec.structs.replace(base.data, **own))


def test_swept_training_rows_share_a_table() -> None:
    """Methods whose names tell on how many rows they trained stand beside those on all; each has its own mean."""
    methods = ("pfeiffer-n100", "pfeiffer-n300", "full_fine_tuning-lr0.001-n300")
    swept = [trained_on(int(method.rpartition("n")[2]), method, seed) for method in methods for seed in (0, 1)]
    records = [*swept, make_record("mrpc", "pfeiffer"), make_record("mrpc", "majority")]
    check_comparable(records)
    assert [[100, 100], [300, 300], [300, 300]] == [
        [record.data.train_rows for record in averaged_runs([one for one in records if one.method == method])]
        for method in methods
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("pfeiffer-n100", 1, 100, "x"), "n100/seed-1.json: expected the same data fingerprint, found 100 rows and x"),
        (("houlsby-n100", 0, 100, "x"), "expected the same data fingerprint, found x and 100 rows"),
        (("houlsby", 0, 100, "x"), "expected the same data fingerprint, found x and mrpc data"),
        (("houlsby-lr0.1", 0, 100, ""), "expected the same data fingerprint, found 100 rows and mrpc data"),
        (
            ("pfeiffer-n300", 0, 100, ""),
            "-n300/seed-0.json: expected 300 training rows, as its method's name says, fou",
        ),
    ],
)
def test_other_training_rows_are_refused(other: tuple[str, int, int, str], message: str) -> None:
    """Other rows under one name, one number or none are refused, and so is a name that tells another number."""
    method, seed, rows, fingerprint = other
    base = [trained_on(100, "pfeiffer-n100"), make_record("mrpc", "pfeiffer")]
    with pytest.raises(RunError, match=message):
        check_comparable([*base, trained_on(rows, method, seed, fingerprint)])


def test_swept_training_rows_are_reported_on_the_same_number_of_rows() -> None:
    """Whatever runs of a task trained on, they were scored on as many rows of the same split, by one tokenizer."""
    short = trained_on(300, "pfeiffer-n300", reported_rows=400)
    with pytest.raises(RunError, match="expected the same number of reported rows, found 408 and 400"):
        check_comparable([make_record("mrpc", "pfeiffer"), short])
    other = msgspec.structs.replace(trained_on(300, "pfeiffer-n300"), split="test")
    with pytest.raises(RunError, match="expected the same split, found validation and test"):
        check_comparable([make_record("mrpc", "pfeiffer"), other])
