"""Variants: what a sweep spells, how what comes of it is called, and where it stands in a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.documents import sentences
from registry.errors import ConfigError, InvalidNameError
from registry.frames import method_order, summary_table, total_table
from registry.references import check_name
from registry.remarks import notes
from registry.reports import write_report
from registry.variants import Variant, make_variants, parse_sweeps, split_name
from tests.runs import BACKBONE, make_record

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
        (["seed=1,2"], "--sweep: expected one of the fields learning_rate, reduction_factor, epochs, batch_size, "),
        (["epochs=1", "epochs=2"], "--sweep: expected every field once, found 'epochs'"),
        (["epochs=1,2.5"], "--sweep epochs: expected whole numbers with commas, found '2.5'"),
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


@pytest.mark.parametrize(
    ("method", "sweep", "message"),
    [
        ("majority", "epochs=1,2", "--sweep: expected methods that train .*, found 'majority'"),
        (
            "head_only",
            "reduction_factor=8",
            "--sweep reduction_factor: expected methods with bottlenecks .*'head",
        ),
        ("full_fine_tuning", "adapter_dropout=0", "--sweep adapter_dropout: expected methods with bottlenecks"),
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
        *("houlsby-lr0.0005-rf16", "houlsby-lr0.002", "pfeiffer", "houlsby-2019", "houlsby-2019-ep9"),
        *("full_fine_tuning", "full_fine_tuning-lr1e-05"),
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
    summary = summary_table(records)
    methods = ["majority", "head_only", "houlsby-lr0.001", "houlsby-lr0.002", "full_fine_tuning"]
    assert [*methods, "full_fine_tuning-lr1e-05"] == list(summary["method"])
    assert sentences(summary)[0].startswith("mrpc (validation): of the adapter methods, houlsby-lr0.001 has the best")
    remarks = notes(records)
    assert 1 == sum(line.startswith(JOINED) for line in remarks)
    assert 1 == sum("the best of them is chosen there, so its score flatters it" in line for line in remarks)
    totals = total_table(records).set_index("method").to_dict("index")
    assert 4 * 113_810 == totals["full_fine_tuning-lr1e-05"]["bytes"]
    assert 4 * (BACKBONE + 113_810) == totals["houlsby-lr0.001"]["bytes"]
    write_report(tmp_path, records)
    assert "together" in (tmp_path / "runs.csv").read_text().splitlines()[0].split(",")


def test_report_of_runs_alone_does_not_speak_of_passes() -> None:
    """Neither note stands where nothing was trained together or swept."""
    told = " ".join(notes([make_record("mrpc", "houlsby"), make_record("mrpc", "pfeiffer")]))
    assert "passes" not in told
    assert "swept" not in told
