"""What is promised of a page from run records: it says what the runs say, leaves nothing out, and stays small."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from registry.bench.records import RunRecord, read_predictions, read_records, write_record
from registry.bench.results import read_answers
from registry.config import HeadConfig
from registry.errors import DataError, UnknownTaskError
from registry.reports.content import (
    ReportContent,
    TableStatistics,
    amount_curves,
    bottleneck_curves,
    gather_evidence,
    read_evidence,
    task_rows,
)
from registry.reports.frames import summary_table, total_table
from registry.reports.mistakes import MOST_ROWS, read_texts
from registry.reports.numbers import p_value
from registry.reports.page import page_content, render_report_page
from registry.reports.page_tables import PageCell, PageTable
from registry.reports.report import write_report
from registry.stats.predictions import Predictions
from registry.tasks.loading import load_task
from registry.tasks.metrics import score
from registry.tasks.spec import find_task
from tests.support.benchmark_records import SKILLS, SWEEPS, write_own_run, write_run
from tests.support.run_records import from_sample, make_record

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture(scope="module")
def content(evidence: ReportContent) -> dict[str, Any]:
    return page_content(evidence)


def row_of(table: PageTable, group: str, name: str) -> dict[str, PageCell]:
    """Return the cells of a row by the titles of their columns."""
    (found,) = [row for heading, rows in table.groups if heading == group for row in rows if row[0].text == name]
    return dict(zip(table.titles, found, strict=True))


def cells_of(table: PageTable) -> dict[str, dict[str, PageCell]]:
    """Return the rows of a table with one group by the text of their first cell."""
    ((_, rows),) = table.groups
    return {row[0].text: dict(zip(table.titles, row, strict=True)) for row in rows}


def test_equal_records_give_equal_bytes(evidence: ReportContent) -> None:
    """The order in which records are read changes nothing, and nothing of the moment is in the page."""
    turned = gather_evidence(evidence.records[::-1], dict(reversed(evidence.answers.items())))
    assert render_report_page(evidence) == render_report_page(turned)


def test_table_has_every_method_of_every_task(content: dict[str, Any], evidence: ReportContent) -> None:
    """Each task has its methods, and below them those with swept settings; numbers sort by their values."""
    table = content["scores"]
    headings = [
        f"{title}{end}"
        for title in ("mrpc (validation), by f1_binary", "sst2 (validation), by accuracy")
        for end in ("", ": swept settings")
    ]
    assert headings == [heading for heading, _ in table.groups]
    assert [len(SKILLS), len(SWEEPS)] * 2 == [len(rows) for _, rows in table.groups]
    metrics = ["accuracy", "f1_binary", "f1_weighted", "matthews"]
    costs = ["training", "rows/s", "peak memory"]
    assert ["method", "trainable", "stored", *metrics, "vs full", "verdict", *costs] == list(table.titles)
    row = row_of(table, headings[0], "pfeiffer")
    interval = evidence.measured.intervals["mrpc", "pfeiffer"]["f1_binary"]
    found = evidence.measured.comparisons["mrpc", "pfeiffer"]
    assert (f"{interval.mean:.3f}", f"{interval.low:.3f}–{interval.high:.3f}") == (
        row["f1_binary"].text,
        row["f1_binary"].detail,
    )
    assert pytest.approx(interval.mean) == row["f1_binary"].value
    assert ("strong", "") == (row["f1_binary"].tone, row["accuracy"].tone)
    assert pytest.approx(100 * found.difference.mean) == row["vs full"].value
    assert (found.verdict, found.verdict) == (row["verdict"].text, row["verdict"].value)
    assert ("113,810", 113_810, "0.50 %") == (row["trainable"].text, row["trainable"].value, row["trainable"].detail)
    assert "reference" == row_of(table, headings[0], "full_fine_tuning")["verdict"].text


def test_totals_set_one_backbone_and_sets_against_full_models(content: dict[str, Any]) -> None:
    """Bytes and seconds stand beside those of as many full models, and as shares of them."""
    row = row_of(content["totals"], "", "pfeiffer")
    assert ("2 of 2", "91.8 MB", "51 % of full", "182 MB") == (
        row["tasks"].text,
        row["one backbone + sets"].text,
        row["one backbone + sets"].detail,
        row["full models"].text,
    )
    assert ("22.0 s", "100 % of full") == (row["training"].text, row["training"].detail)
    assert [""] == [heading for heading, _ in content["totals"].groups]


def test_totals_over_other_tasks_do_not_compare(tmp_path: Path) -> None:
    """A method has no share of full fine-tuning's time on other tasks, and is not worse on none where none compared."""
    for task, method in (
        ("mrpc", "full_fine_tuning"),
        ("mrpc", "pfeiffer"),
        ("sst2", "pfeiffer"),
        ("sst2", "head_only"),
    ):
        write_run(tmp_path, task, method, 0)
    totals = page_content(read_evidence(tmp_path))["totals"]
    head, pfeiffer = row_of(totals, "", "head_only"), row_of(totals, "", "pfeiffer")
    assert ("1 of 2", "", "–") == (head["tasks"].text, head["training"].detail, head["worse on"].text)
    assert ("2 of 2", "", "0 of 1") == (pfeiffer["tasks"].text, pfeiffer["training"].detail, pfeiffer["worse on"].text)


def test_totals_have_the_swept_settings_that_ran_on_all_tasks(tmp_path: Path) -> None:
    """On the page and in Markdown alike; one of a single task, or of fewer training rows, is no row there."""
    for task in ("mrpc", "sst2"):
        for method in ("full_fine_tuning", "pfeiffer", "pfeiffer-rf16", "pfeiffer-n100"):
            write_run(tmp_path, task, method, 0)
    write_run(tmp_path, "sst2", "pfeiffer-rf2", 0)
    evidence = read_evidence(tmp_path)
    (_, rows), *_ = page_content(evidence)["totals"].groups
    assert {"full_fine_tuning", "pfeiffer", "pfeiffer-rf16"} == {row[0].text for row in rows if row[1].text == "2 of 2"}
    write_report(tmp_path, evidence, ["markdown"])
    told = (tmp_path / "report.md").read_text(encoding="utf-8").split("## All tasks together")[1].split("\n## ")[0]
    assert (True, False, False) == tuple(f"| pfeiffer-{end} " in told for end in ("rf16", "rf2", "n100"))
    drawn = {row["method"] for task in task_rows(evidence.summary, beside=True) for row in task.rows if row["seeds"]}
    assert {"full_fine_tuning", "pfeiffer", "pfeiffer-rf16"} == drawn


def test_failed_and_missing_runs_are_told_beside_the_scores(content: dict[str, Any]) -> None:
    """What is not in a mean is told once, right below the table, and counted in its row."""
    told = "Failed: after_layer on mrpc, seed 3: training stopped at step 3: found nan"
    assert [told] == content["caveats"]
    assert told not in content["notes"]
    assert (
        "3 seeds, 1 failed" == row_of(content["scores"], content["scores"].groups[0][0], "after_layer")["method"].detail
    )


def test_runs_that_cannot_be_averaged_are_told_and_not_drawn(tmp_path: Path) -> None:
    """Seeds of different code have no score on the page, only a line that says why."""
    for seed, code in ((0, "0123456789ab"), (1, "ba9876543210")):
        write_run(tmp_path, "sst2", "pfeiffer", seed, code=code)
        write_run(tmp_path, "sst2", "full_fine_tuning", seed)
    content = page_content(read_evidence(tmp_path))
    row = row_of(content["scores"], "sst2 (validation), by accuracy", "pfeiffer")
    assert ("2 not averaged", "–", "–") == (row["method"].detail, row["accuracy"].text, row["verdict"].text)
    assert ["full_fine_tuning"] == list(cells_of(content["parameters"][0]["table"]))
    assert ["full_fine_tuning"] == [matrix["method"] for matrix in content["confusions"][0]["matrices"]]
    assert [] == content["differences"]
    assert any(line.startswith("Not averaged: pfeiffer on sst2: runs of different code") for line in content["caveats"])
    assert "not run" == row_of(content["scores"], "sst2 (validation), by accuracy", "majority")["method"].detail


def test_differences_are_those_that_were_measured(content: dict[str, Any], evidence: ReportContent) -> None:
    """The forest has points, interval, adjusted p, verdict, the tests of each seed, and what so few rows can show."""
    mrpc, sst2 = content["differences"]
    rows = cells_of(sst2["table"])
    assert ["majority", "head_only", "after_layer", "pfeiffer"] == list(rows)
    found, row = evidence.measured.comparisons["sst2", "head_only"], rows["head_only"]
    assert (100 * found.difference.mean, found.adjusted_p) == (row["points"].value, row["adjusted p"].value)
    assert found.verdict == row["verdict"].text
    tests = ", ".join(f"{seed}: {p_value(p)}" for seed, p in sorted(found.seed_tests.items()))
    assert tests == row["McNemar p by seed"].text
    least = evidence.measured.detectable["sst2"]
    assert f"{100 * least.difference:.1f} points of accuracy (the shaded band)" in sst2["power"]
    assert 'class="band"' in sst2["drawing"]
    assert 'class="band"' not in mrpc["drawing"]  # its main metric is F1, and what can be computed is of accuracy
    assert "points of accuracy, and hardly" in mrpc["power"]


def test_curves_over_sizes_hold_what_differs_in_nothing_else(evidence: ReportContent) -> None:
    """Bottlenecks and training rows have a line for each swept method, which its own settings are a point of."""
    bottlenecks = bottleneck_curves(evidence.records, evidence.measured)[1]
    amounts = amount_curves(evidence.records, evidence.measured)[1]
    assert ("sst2 (validation)", "accuracy", "bottleneck size M") == (
        bottlenecks.title,
        bottlenecks.metric,
        bottlenecks.axis,
    )
    assert ["after_layer", "pfeiffer"] == [method for method, _ in bottlenecks.lines]
    assert [2, 8, 24, 48, 192] == list(bottlenecks.lines[0][1])
    assert ["pfeiffer", "full_fine_tuning"] == [method for method, _ in amounts.lines]
    assert [100, 300, 1000, 3668] == list(amounts.lines[0][1])
    assert evidence.measured.intervals["sst2", "pfeiffer"]["accuracy"] == amounts.lines[0][1][3668]
    full = evidence.measured.intervals["sst2", "full_fine_tuning"]["accuracy"].mean
    assert (full, full) == (bottlenecks.reference, amounts.reference)


def test_other_sweeps_are_on_no_curve(tmp_path: Path) -> None:
    """A variant of two settings is no point of one; a method of other settings is not the end of a line."""
    for method in ("pfeiffer-rf2-n300", "pfeiffer-rf2", "pfeiffer-rf8", "full_fine_tuning-n100"):
        write_run(tmp_path, "sst2", method, 0)
    write_run(
        tmp_path,
        "sst2",
        "pfeiffer",
        0,
        training=msgspec.structs.replace(make_record("sst2", "pfeiffer").training, epochs=9),
    )
    evidence = read_evidence(tmp_path)
    (curve,) = bottleneck_curves(evidence.records, evidence.measured)
    assert [[48, 192]] == [list(line) for _, line in curve.lines]
    assert curve.reference is None
    assert [] == amount_curves(evidence.records, evidence.measured)


def test_learning_curves_show_every_run(content: dict[str, Any]) -> None:
    """Every seed has its losses and held-out scores, a diverged one too, which is marked."""
    mrpc = content["curves"][0]
    methods = ["head_only", "after_layer", "pfeiffer", "full_fine_tuning"]
    seeds = {"after_layer": (0, 1, 2, 3)}
    expected = [f"{method}, seed {seed}" for method in methods for seed in seeds.get(method, (0, 1, 2))]
    assert expected == list(cells_of(mrpc["table"]))
    (_, losses), (_, scores) = mrpc["panels"]
    assert [3, 4, 3, 3] == [panel.count('class="seed') for panel in losses]
    assert [0, 1, 0, 0] == [panel.count('class="seed failed"') for panel in losses]
    assert [3, 4, 3, 3] == [panel.count('class="seed') for panel in scores]


def test_reliability_is_that_of_the_answers(content: dict[str, Any], evidence: ReportContent) -> None:
    """Each method has a figure, and in the table the mean probability said and the share that is right."""
    mrpc = content["reliability"][0]
    shown = cells_of(mrpc["table"])
    assert len(shown) == len(mrpc["panels"])
    for method, row in shown.items():
        answers = evidence.answers["mrpc", method]
        assert f"{answers.probabilities.max(axis=2).mean():.3f}" == row["mean probability"].text
        assert f"{answers.correct().mean():.3f}" == row["share right"].text


def test_confusions_count_every_answer(content: dict[str, Any], evidence: ReportContent) -> None:
    """Counts are those of the answers, under the names that the heads have."""
    confusions = content["confusions"][1]
    assert ("negative", "positive") == confusions["label_names"]
    assert list(SKILLS) == [matrix["method"] for matrix in confusions["matrices"]]
    answers = evidence.answers["sst2", "pfeiffer"]
    expected = np.zeros((2, 2), dtype=int)
    for one in answers.probabilities:
        for label, answer in zip(answers.labels, one.argmax(axis=1), strict=True):
            expected[label, answer] += 1
    (found,) = [matrix for matrix in confusions["matrices"] if matrix["method"] == "pfeiffer"]
    counts = [[int(cell["count"].replace(",", "")) for cell in cells] for _, cells in found["lines"]]
    assert expected.tolist() == counts
    assert f"{expected.trace() / expected.sum():.1%} right, 3 seeds" == found["right"]


def test_every_row_that_was_answered_wrong_is_listed(content: dict[str, Any], evidence: ReportContent) -> None:
    """Rows have their number, the mean probability of the truth, and the number of seeds that were wrong."""
    errors = json.loads(content["error_data"])[1]
    methods = ["head_only", "after_layer", "pfeiffer", "full_fine_tuning"]
    assert (methods, [3, 3, 3, 3]) == (errors["methods"], errors["seeds"])
    answers = {method: evidence.answers["sst2", method] for method in methods}
    expected = {}
    for index, number in enumerate(answers["pfeiffer"].row_numbers.tolist()):
        label = int(answers["pfeiffer"].labels[index])
        given = [one.probabilities[:, index, label] for one in answers.values()]
        wrong = [int((one.probabilities[:, index].argmax(axis=1) != label).sum()) for one in answers.values()]
        if any(wrong):
            expected[number] = (label, wrong, [pytest.approx(1000 * share.mean(), abs=0.51) for share in given])
    listed = zip(errors["n"], errors["t"], batched(errors["w"], 4), batched(errors["p"], 4), strict=True)
    assert expected == {number: (label, wrong, shares) for number, label, wrong, shares in listed}
    assert not content["holds_texts"]


def batched(values: list[int], size: int) -> list[list[int]]:
    """Return the values in lists of a size."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def test_tasks_of_several_labels_and_of_numbers_have_pages_too(tmp_path: Path) -> None:
    """Several labels have wrong rows and no matrix; numbers have neither, and all have scores and differences."""
    for method in ("majority", "pfeiffer", "full_fine_tuning"):
        for seed in (0, 1):
            write_own_run(tmp_path, "multi_label", method, seed)
            write_own_run(tmp_path, "regression", method, seed)
    evidence = read_evidence(tmp_path)
    content = page_content(evidence)
    assert [] == content["confusions"]
    (errors,) = json.loads(content["error_data"])
    answers = evidence.answers["multi-label", "pfeiffer"]
    called = {number: errors["labels"][label] for number, label in zip(errors["n"], errors["t"], strict=True)}
    for number, name in called.items():
        held = [label for label, there in zip(("news", "sport", "law"), answers.labels[number], strict=True) if there]
        assert (", ".join(held) or "none") == name
    wrong = (~answers.correct()).sum(axis=0)
    by_pfeiffer = dict(zip(errors["n"], zip(errors["w"][::2], errors["p"][::2], strict=True), strict=True))
    assert {int(n) for n in np.flatnonzero(wrong)} == {number for number, (seeds, _) in by_pfeiffer.items() if seeds}
    assert all(share <= 500 for seeds, share in by_pfeiffer.values() if seeds == 2)
    assert any("A row of this task has several labels" in note for note in content["error_notes"])
    assert ["multi-label (validation)", "regression (validation)"] == [each["task"] for each in content["differences"]]
    assert {"pearson", "f1_micro"} <= set(content["scores"].titles)
    assert "several labels" in render_report_page(evidence)


def test_provenance_has_every_version_digest_and_command(content: dict[str, Any], evidence: ReportContent) -> None:
    """Versions, machine, code, fingerprints and digests stand there, times first to last, every command once."""
    told = dict(content["provenance"])
    record = evidence.records[0]
    assert f"{len(evidence.records)}, started 2026-01-01T00:00:00Z to 2026-01-04T00:00:00Z" == told["runs"]
    for name, value in {
        "torch": "2.13.0",
        "code": "0.1.0",
        "processor": "a cpu",
        "device, dtype": "cpu, float32",
        "backbone fingerprint": record.backbone.fingerprint,
        "tokenizer digest": record.backbone.tokenizer_digest,
        "seeds": "0, 1, 2, 3",
    }.items():
        assert value == told[name]
    assert (
        "hub: fingerprint sst2 120 3668; hub, 1,000 training rows: fingerprint sst2 120 1000"
        in told["sst2 (validation) data"]
    )
    assert re.search(r"SHA-256 over their sorted digests [0-9a-f]{64}$", told["predictions"])
    commands = [f"adapter-registry bench {task} --seeds {seed}" for seed in (0, 1, 2) for task in ("mrpc", "sst2")]
    assert [*commands, "adapter-registry bench mrpc --seeds 3"] == content["commands"]


def test_a_changed_answer_changes_the_digest_of_predictions(
    evidence: ReportContent, benchmark_folder: Path, tmp_path: Path
) -> None:
    """The digest of all predictions is another one as soon as one of them is."""
    records = [record for record in evidence.records if record.task == "sst2" and record.method in SKILLS]
    found = []
    for folder, turn in ((tmp_path / "same", False), (tmp_path / "other", True)):
        for record in records:
            predictions = read_predictions(benchmark_folder, record)
            shares = (
                predictions.probabilities[:, ::-1].copy()
                if turn and record is records[0]
                else predictions.probabilities
            )
            write_record(folder, record, Predictions(predictions.row_numbers, predictions.labels, shares))
        found.append(dict(page_content(read_evidence(folder))["provenance"])["predictions"])
    assert found[0] != found[1]


def test_sample_runs_are_marked(tmp_path: Path) -> None:
    """A page of the bundled sample says so before anything else."""
    record = write_run(tmp_path, "sst2", "pfeiffer", 0)
    predictions = read_predictions(tmp_path, read_evidence(tmp_path).records[0])
    write_record(tmp_path, from_sample(record), predictions)
    content = page_content(read_evidence(tmp_path))
    assert content["notice"].startswith("Scores from the bundled sample")
    assert any("the bundled sample: fingerprint" in value for _, value in content["provenance"])


def test_a_large_page_stays_under_two_megabytes(tmp_path: Path) -> None:
    """Three tasks, nine methods, five seeds, 4,000 reported rows of the largest: the page is far below 2 MB."""
    methods = ("majority", "head_only", *(f"pfeiffer-lr{place}" for place in range(1, 7)), "full_fine_tuning")
    for task, rows in (("mrpc", 408), ("sst2", 872), ("imdb", 4000)):
        for method in methods:
            for seed in range(5):
                write_run(tmp_path, task, method, seed, rows=rows, started="2026-01-01T00:00:00Z")
    records = read_records(tmp_path)
    summary = summary_table(records, TableStatistics())  # intervals take seconds, and their room is the same everywhere
    totals = total_table(records, summary)
    page = render_report_page(
        ReportContent(tuple(records), read_answers(tmp_path, records), TableStatistics(), summary, totals)
    )
    assert len(page.encode()) < 1_000_000
    (data,) = re.findall(r'id="error-data">(.*?)</script>', page)
    assert [8, 8, 8] == [len(task["methods"]) for task in json.loads(data)]
    assert f"imdb (validation): the {MOST_ROWS:,} most confident mistakes of " in page


def write_sample_runs(out: Path, task: str, limit: int | None = None) -> RunRecord:
    """Write two runs that answered rows of the bundled sample."""
    data = load_task(find_task(task), "sample", limit=limit)
    for method in ("pfeiffer", "full_fine_tuning"):
        labels = np.asarray(data.reported.labels)
        shares = np.tile(np.array([[0.4, 0.6]], dtype=np.float32), (len(labels), 1))
        record = make_record(task, method)
        metrics = data.spec.metrics
        record = msgspec.structs.replace(
            record,
            split=data.spec.reported_split,
            main_metric=metrics[0],
            scores=score("classification", labels.tolist(), shares, metrics),
            head=HeadConfig(label_names=data.spec.label_names or ()),
            data=msgspec.structs.replace(
                record.data,
                source="sample",
                sample=True,
                train_rows=len(data.train),
                train_available=data.train_available,
                reported_rows=len(labels),
                reported_available=data.reported_available,
                fingerprint=data.fingerprint(),
            ),
        )
        write_record(out, record, Predictions(np.asarray(data.reported.row_numbers), labels, shares))
    return record


def test_texts_are_those_of_the_rows(tmp_path: Path) -> None:
    """With texts, each wrong row has its own text or pair; the page says that it is for its reader's machine."""
    write_sample_runs(tmp_path, "sst2", limit=10)
    write_sample_runs(tmp_path, "mrpc")
    evidence = read_evidence(tmp_path)
    content = page_content(evidence, read_texts(evidence))
    rows = {task: load_task(find_task(task), "sample").reported for task in ("mrpc", "sst2")}
    for errors, task in zip(json.loads(content["error_data"]), ("mrpc", "sst2"), strict=True):
        assert errors["n"]
        for number, texts in zip(errors["n"], errors["x"], strict=True):
            place = rows[task].row_numbers.index(number)
            pairs = rows[task].pairs
            assert [rows[task].texts[place], *([pairs[place]] if pairs else [])] == texts
    assert content["holds_texts"]
    page = render_report_page(evidence, read_texts(evidence))
    assert page.index("This page holds texts of the data: keep it on your machine.") < page.index("Scores</h2>")
    assert "keep it on your machine" not in render_report_page(evidence)


def test_texts_of_other_rows_are_refused(tmp_path: Path) -> None:
    """A source whose rows are not those of the records gives no texts, and the message says what to do."""
    record = write_sample_runs(tmp_path / "one", "sst2")
    changed = msgspec.structs.replace(record, data=msgspec.structs.replace(record.data, fingerprint="f" * 64))
    write_record(tmp_path / "two", changed, read_predictions(tmp_path / "one", stored(tmp_path / "one", changed)))
    with pytest.raises(DataError, match="rows with fingerprint ffffffffffff, as the runs had, found .*; give --data"):
        read_texts(read_evidence(tmp_path / "two"))
    answers = read_predictions(tmp_path / "one", stored(tmp_path / "one", record))
    turned = Predictions(answers.row_numbers + 1, answers.labels, answers.probabilities)
    write_record(tmp_path / "three", record, turned)
    with pytest.raises(DataError, match="the rows and labels that the runs answered, found others"):
        read_texts(read_evidence(tmp_path / "three"))
    with pytest.raises(DataError, match="expected a folder of data"):
        read_texts(read_evidence(tmp_path / "one"), str(tmp_path / "nowhere"))


def test_texts_of_own_tasks_need_their_description(tmp_path: Path) -> None:
    """Records do not say which columns an own task has, so its texts can be read only with the task given."""
    write_own_run(tmp_path, "multi_label", "pfeiffer", 0)
    with pytest.raises(UnknownTaskError, match="multi-label"):
        read_texts(read_evidence(tmp_path))


def stored(out: Path, record: RunRecord) -> RunRecord:
    """Return the record as it was written, with the digest of its predictions."""
    found: Sequence[RunRecord] = read_evidence(out).records
    return next(one for one in found if one.method == record.method)
