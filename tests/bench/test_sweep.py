"""Variants: what a sweep spells, how what comes of it is called, and where it stands in a table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from registry.bench.records import RunRecord
from registry.bench.sweep import Variant, make_variants, parse_sweeps, split_name, swept_settings, swept_train_rows
from registry.errors import ConfigError, InvalidNameError
from registry.reports.content import TableStatistics
from registry.reports.frames import method_order
from registry.reports.sentences import notes, sentences
from registry.validation import check_name
from tests.support.run_records import BACKBONE, make_record, report_of, summary_of, totals_of

JOINED = "Of 3 runs, 2 were trained in passes of up to 5 sets: their training seconds are shares of a joint pass"


def test_sweeps_are_numbers_by_field() -> None:
    """Whole numbers stay whole, others are floats, and fields keep their values in the order given."""
    texts = ["reduction_factor=16,8", "learning_rate=5e-4, 1e-3", "weight_decay=-0"]
    sweeps = parse_sweeps(texts)
    assert {"reduction_factor": (16, 8), "learning_rate": (0.0005, 0.001), "weight_decay": (0.0,)} == sweeps
    assert [int, float] == [type(sweeps[field][0]) for field in ("reduction_factor", "learning_rate")]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["learning_rate"], "--sweep: expected FIELD=VALUE,VALUE such as learning_rate=5e-4,1e-3, found 'learning_"),
        (["learning-rate=1"], "found 'learning-rate'; did you mean 'learning_rate'?"),
        (["seed=1,2"], "--sweep: expected one of the fields learning_rate, reduction_factor, rank, alpha, length, "),
        (["epochs=1", "epochs=2"], "--sweep: expected every field once, found 'epochs'"),
        (["epochs=1,2.5"], "--sweep epochs: expected whole numbers with commas, found '2.5'"),
        (["train_rows=100,1e3"], "--sweep train_rows: expected whole numbers with commas, found '1e3'"),
        (["learning_rate=1e-3,"], "--sweep learning_rate: expected numbers with commas, found ''"),
        (["learning_rate=nan"], "--sweep learning_rate: expected finite numbers, found 'nan'"),
        (["learning_rate=0.001,1e-3"], "--sweep learning_rate: expected values that differ in six digits, found '0.0"),
    ],
)
def test_bad_sweeps(texts: list[str], message: str) -> None:
    """What cannot be read, swept or told apart is refused with the field's name."""
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_sweeps(texts)


def test_every_combination_is_a_variant_of_its_own() -> None:
    """Each method gets every combination, and a name that does not depend on the order of the sweeps."""
    sweeps = parse_sweeps(["reduction_factor=8,16", "adapter_dropout=0.1", "learning_rate=5e-4,1e-5"])
    variants = make_variants(["houlsby", "lab-notebook"], sweeps)
    houlsby = ["houlsby-lr0.0005-rf8-do0.1", "houlsby-lr0.0005-rf16-do0.1"]
    houlsby += ["houlsby-lr1e-05-rf8-do0.1", "houlsby-lr1e-05-rf16-do0.1"]
    notebook = [name.replace("houlsby", "lab-notebook") for name in houlsby]
    assert [*houlsby, *notebook] == [check_name(variant.name) for variant in variants]
    assert variants[0] == Variant(
        name=houlsby[0],
        method="houlsby",
        adapter={"reduction_factor": 8, "dropout": 0.1},
        training={"learning_rate": 0.0005},
    )
    assert [Variant(name="majority", method="majority")] == make_variants(["majority"], {})


def test_numbers_of_training_rows_are_variants_of_all_that_trains() -> None:
    """They stand last in a name whatever else is swept, and are no setting of the method."""
    variants = make_variants(["head_only", "full_fine_tuning"], parse_sweeps(["train_rows=1000,300", "epochs=2"]))
    assert ["head_only-ep2-n1000", "head_only-ep2-n300", "full_fine_tuning-ep2-n1000", "full_fine_tuning-ep2-n300"] == [
        variant.name for variant in variants
    ]
    assert Variant(name="head_only-ep2-n300", method="head_only", training={"epochs": 2}, train_rows=300) == variants[1]
    names = ("pfeiffer", "pfeiffer-n300", "pfeiffer-ep2", "pfeiffer-ep2-n300", "houlsby-2019")
    assert [None, 300, None, 300, None] == [swept_train_rows(name) for name in names]
    choices = [set(swept_settings(name)) - {"train_rows"} for name in names]
    assert [set(), set(), {"epochs"}, {"epochs"}, set()] == choices


@pytest.mark.parametrize(
    ("method", "sweep", "message"),
    [
        ("majority", "train_rows=8", "--sweep: expected methods that train .*, found 'majority'"),
        ("pfeiffer", "train_rows=0", "--sweep train_rows: expected at least 1 row, found 0"),
        ("majority", "epochs=1,2", "--sweep: expected methods that train .*, found 'majority'"),
        (
            "head_only",
            "reduction_factor=8",
            "--sweep reduction_factor: expected methods with an adapter .*'head",
        ),
        ("full_fine_tuning", "adapter_dropout=0", "--sweep adapter_dropout: expected methods with an adapter"),
        ("houlsby", "learning_rate=0", "learning_rate: expected a number above 0, found 0.0"),
        ("houlsby", "reduction_factor=0", "reduction_factor: expected an integer >= 1, found 0"),
        ("houlsby", "adapter_dropout=1", "dropout: expected a fraction from 0 to below 1, found 1.0"),
    ],
)
def test_bad_combinations(method: str, sweep: str, message: str) -> None:
    """A setting that a method does not have, or a value out of range, is refused before anything is read."""
    with pytest.raises(ConfigError, match=message):
        make_variants([method], parse_sweeps([sweep]))


def test_names_have_a_longest_length() -> None:
    """A name that no folder may have is refused like any other."""
    with pytest.raises(InvalidNameError, match="cannot use method 'houlsby-ep1000000000"):
        make_variants(["houlsby"], parse_sweeps([f"epochs={10**60}"]))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("houlsby-lr0.001-rf16", ("houlsby", (("lr", 0.001), ("rf", 16.0)))),
        ("houlsby-2019-lr1e-05", ("houlsby-2019", (("lr", 1e-5),))),
        ("pfeiffer-wd1e30-do0", ("pfeiffer", (("wd", 1e30), ("do", 0.0)))),
        ("full_fine_tuning-n300", ("full_fine_tuning", (("n", 300.0),))),
        ("houlsby-2019-lr0.001-n1000", ("houlsby-2019", (("lr", 0.001), ("n", 1000.0)))),
        ("houlsby-2019", ("houlsby-2019", ())),
        ("my-lr-recipe", ("my-lr-recipe", ())),
        ("majority", ("majority", ())),
    ],
)
def test_names_are_taken_apart(name: str, parts: tuple[str, tuple[tuple[str, float], ...]]) -> None:
    """A name gives the method and the numbers again; names of recipes are methods."""
    assert parts == split_name(name)


def test_variants_stand_beside_their_method() -> None:
    """A table has a method, then its variants by value, before the next method; full fine-tuning's come last."""
    ordered = [
        *("head_only", "head_only-lr0.01", "houlsby", "houlsby-lr1e-05", "houlsby-lr0.0005-rf8"),
        *("houlsby-lr0.0005-rf16", "houlsby-lr0.002", "houlsby-lr0.002-n100", "houlsby-n30", "houlsby-n100"),
        *("pfeiffer", "pfeiffer-n1000", "houlsby-2019", "houlsby-2019-ep9"),
        *("full_fine_tuning", "full_fine_tuning-lr1e-05", "full_fine_tuning-n300"),
    ]
    shuffled = ordered[::-1]
    assert ordered == sorted(shuffled, key=method_order)


def test_report_of_variants(tmp_path: Path) -> None:
    """Variants get rows, only adapter methods are called so, and both shares of passes and choices are told."""
    records = [
        make_record("mrpc", "houlsby-lr0.001", together=5),
        make_record("mrpc", "houlsby-lr0.002", together=5, scores={"f1_binary": 0.75}),
        make_record("mrpc", "full_fine_tuning-lr1e-05", scores={"f1_binary": 0.875}),
    ]
    summary = summary_of(records)
    methods = ["majority", "head_only", "houlsby-lr0.001", "houlsby-lr0.002", "full_fine_tuning"]
    assert [*methods, "full_fine_tuning-lr1e-05"] == list(summary["method"])
    first = sentences(summary, totals_of(records))[0]
    assert first.startswith("mrpc (validation): of the adapter methods, houlsby-lr0.001 has the best")
    remarks = notes(records, TableStatistics())
    assert 1 == sum(line.startswith(JOINED) for line in remarks)
    assert 1 == sum("the best of them is chosen there, so its score flatters it" in line for line in remarks)
    totals = totals_of(records).set_index("method").to_dict("index")
    assert 4 * 113_810 == totals["full_fine_tuning-lr1e-05"]["bytes"]
    assert 4 * (BACKBONE + 113_810) == totals["houlsby-lr0.001"]["bytes"]
    report_of(tmp_path, records)
    assert "together" in (tmp_path / "runs.csv").read_text().splitlines()[0].split(",")


def test_report_of_runs_alone_does_not_speak_of_passes() -> None:
    """Neither note stands where nothing was trained together or swept."""
    told = " ".join(notes([make_record("mrpc", "houlsby"), make_record("mrpc", "pfeiffer")], TableStatistics()))
    assert "passes" not in told
    assert "swept" not in told


def with_rows(record: RunRecord, rows: int, fingerprint: str = "") -> RunRecord:
    """Return the record as it would be of so many training rows."""
    data = msgspec.structs.replace(record.data, train_rows=rows, fingerprint=fingerprint or f"{rows} rows")
    return msgspec.structs.replace(record, data=data)


def test_notes_tell_swept_training_rows_in_one_line() -> None:
    """The task's line is of runs on all its rows; numbers of rows have one short line and are called no choice."""
    swept = [with_rows(make_record("mrpc", f"{m}-n{n}"), n) for m in ("pfeiffer", "houlsby") for n in (1000, 100, 300)]
    whole = [make_record("mrpc", "majority"), make_record("mrpc", "pfeiffer"), make_record("sst2", "houlsby")]
    remarks = notes([*swept, *whole], TableStatistics())
    assert ["mrpc, from hub: trained on 3,668 of 3,668 rows", "sst2, from hub: trained on 3,668 of 3,668 rows"] == [
        line.split(" (")[0] for line in remarks if ", from hub" in line
    ]
    assert ["mrpc, fewer training rows: 100, 300, 1,000 (drawn once, the same for all methods and seeds)."] == [
        line for line in remarks if "fewer training rows" in line
    ]
    assert "swept" not in " ".join(remarks)


def test_notes_of_swept_training_rows_alone_tell_the_most() -> None:
    """Where no run read the texts of all training rows, the largest number's runs tell; the full number is no fewer."""
    swept = [with_rows(make_record("mrpc", f"pfeiffer-n{n}"), n) for n in (100, 1000)]
    records = [*swept, make_record("mrpc", "majority")]
    told = [line for line in notes(records, TableStatistics()) if line.startswith("mrpc, ")]
    assert 2 == len(told)
    assert told[0].startswith("mrpc, from hub: trained on 1,000 of 3,668 rows (12 truncated")
    assert told[1].startswith("mrpc, fewer training rows: 100, 1,000 (")
    whole = [with_rows(make_record("mrpc", "pfeiffer-n3668"), 3668)]
    assert not any("fewer" in line for line in notes(whole, TableStatistics()))
