"""What is promised of report files: the same bytes every time, honest labels, nothing a name could break."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import msgspec
import pandas as pd
import pytest
from rich.console import Console

from registry.bench.records import RunRecord, read_records, write_record
from registry.errors import ConfigError, RunError
from registry.reports.content import read_evidence, task_rows
from registry.reports.figures import score_picture
from registry.reports.frames import SAMPLE_NOTICE
from registry.reports.report import write_report
from registry.schema import REPORT_FORMATS
from tests.support.run_records import (
    evidence_of,
    fail,
    from_sample,
    make_record,
    make_records,
    report_of,
    summary_of,
    terminal_of,
    write_answered,
)

TABLES = {f"{name}.{form}" for name in ("table", "runs", "comparisons") for form in ("csv", "parquet")}
TEXTS = {"table.json", "report.md", "table.tex", "report.html"}
FILES = TABLES | TEXTS | {"score_vs_parameters.svg"}


@pytest.fixture
def records() -> list[RunRecord]:
    return make_records()


def test_failed_runs_are_told_with_their_error(records: list[RunRecord], tmp_path: Path) -> None:
    """A diverged run shows in its row and, with its error, in the notes."""
    report_of(tmp_path, [*records, fail(make_record("mrpc", "houlsby", seed=7))], ["markdown"])
    report = (tmp_path / "report.md").read_text()
    assert "3 (1 failed)" in report
    assert "- Failed: houlsby on mrpc, seed 7: training stopped at step 3: found nan" in report


def test_missing_baselines_are_told(tmp_path: Path) -> None:
    """A report without a baseline says so in its sentence and notes, and its CSV keeps whole numbers whole."""
    report_of(tmp_path, [make_record("mrpc", "pfeiffer"), make_record("mrpc", "head_only")])
    report = (tmp_path / "report.md").read_text()
    assert "- Baselines not run: majority on mrpc, full_fine_tuning on mrpc." in report
    assert "there is no mean of full fine-tuning to compare with." in report
    table = {row["method"]: row for row in csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))}
    assert ("", "113810") == (table["majority"]["trainable"], table["pfeiffer"]["trainable"])


def test_report_writes_all_files(records: list[RunRecord], tmp_path: Path) -> None:
    """Every file that is returned exists, nothing else was written, and the numbers are in human form."""
    paths = report_of(tmp_path, records)
    assert FILES == {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    report = (tmp_path / "report.md").read_text()
    for part in (" 0.891 |", "226,850 (1.00 %)", "907 kB", "![Score against", "Main metric: mrpc f1_binary"):
        assert part in report
    assert "houlsby has the best mean f1_binary, 0.891, training 1.00 % of" in report
    assert "that is 6.2 points below full fine-tuning (0.953)." in report
    assert "- No intervals and no tests: there are no predictions to make them from." in report
    assert "(12 truncated, 0.33 %), reported on 408 of 408 rows of validation" in report
    assert (tmp_path / "score_vs_parameters.svg").read_text().startswith("<svg")
    assert r"\toprule" in (tmp_path / "table.tex").read_text()


def test_report_of_one_format_writes_only_that(records: list[RunRecord], tmp_path: Path) -> None:
    """A format that was not asked for is not written; the picture always is."""
    report_of(tmp_path, records, ["json"])
    assert {"table.json", "score_vs_parameters.svg"} == {path.name for path in tmp_path.iterdir()}


def test_parquet_is_written_when_it_is_asked_for(records: list[RunRecord], tmp_path: Path) -> None:
    """Without a choice every format but parquet is written; with one, its three tables are there."""
    paths = write_report(tmp_path, evidence_of(records))
    assert FILES - {path for path in FILES if path.endswith(".parquet")} == {path.name for path in paths}
    names = {"table.parquet", "runs.parquet", "comparisons.parquet", "score_vs_parameters.svg"}
    assert names == {path.name for path in report_of(tmp_path / "asked", records, ["parquet"])}


def test_unknown_format_is_refused_with_the_nearest(records: list[RunRecord], tmp_path: Path) -> None:
    """A misspelt format is told before anything is written."""
    with pytest.raises(ConfigError, match=r"report format: .* found 'markdwon'; did you mean 'markdown'\?"):
        report_of(tmp_path, records, ["csv", "markdwon"])
    assert [] == list(tmp_path.iterdir())


def test_equal_records_give_equal_bytes(records: list[RunRecord], tmp_path: Path) -> None:
    """A report says nothing of the moment or place it was written, nor of the order its records came in."""
    records = records[:15]
    for record in records:
        write_record(tmp_path, record, None)
    first = {path.name: path.read_bytes() for path in report_of(tmp_path / "a", records)}
    second = {path.name: path.read_bytes() for path in report_of(tmp_path / "b", read_records(tmp_path)[::-1])}
    assert FILES == set(first)
    for name in FILES:
        assert first[name] == second[name], name


def test_report_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    """A data folder or local backbone given by its whole path, or one outside, is named by its last part."""
    base = make_record("mrpc", "pfeiffer")
    data = msgspec.structs.replace(base.data, source="/home/someone/rows")
    backbone = msgspec.structs.replace(base.backbone, source="../someone/model")
    command = "adapter-registry --store=/home/someone/store bench mrpc --data ~/someone/rows"
    report_of(tmp_path, [msgspec.structs.replace(base, data=data, backbone=backbone, command=command)])
    page = (tmp_path / "report.html").read_text()
    assert "adapter-registry --store=store bench mrpc --data rows" in re.sub("</?span>", "", page)
    report_of(tmp_path, [msgspec.structs.replace(base, data=data, backbone=backbone, command="no shell's")])
    assert "shell&#39;s" in (tmp_path / "report.html").read_text()
    for name in FILES:
        assert b"someone" not in (tmp_path / name).read_bytes()
    assert "- mrpc, from rows: " in (tmp_path / "report.md").read_text()


def test_sample_scores_are_labelled_in_every_output(records: list[RunRecord], tmp_path: Path) -> None:
    """Whoever meets a table from the bundled sample is told, in whatever form; others carry no such line."""
    write_answered(tmp_path / "hub", "mrpc", {"pfeiffer": 0.8, "full_fine_tuning": 0.9})
    evidence = read_evidence(tmp_path / "hub")
    sample = [from_sample(record) for record in evidence.records]
    write_report(tmp_path / "hub", evidence, REPORT_FORMATS)
    write_report(tmp_path / "sample", evidence_of(sample, evidence.answers), REPORT_FORMATS)
    for name in TABLES:
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        assert read(tmp_path / "sample" / name)["notes"].str.contains(SAMPLE_NOTICE).all()
        assert not read(tmp_path / "hub" / name)["notes"].astype(str).str.contains("sample").any()
    for name in TEXTS:
        assert SAMPLE_NOTICE in (tmp_path / "sample" / name).read_text()
        assert SAMPLE_NOTICE not in (tmp_path / "hub" / name).read_text()
    assert f"**{SAMPLE_NOTICE}**" == (tmp_path / "sample" / "report.md").read_text().splitlines()[0]
    assert SAMPLE_NOTICE == json.loads((tmp_path / "sample" / "table.json").read_text())["notice"]
    pictures = [(tmp_path / name / "score_vs_parameters.svg").read_bytes() for name in ("sample", "hub")]
    assert pictures[0] != pictures[1]
    assert SAMPLE_NOTICE in terminal(sample)


def test_names_are_escaped_in_every_form(tmp_path: Path) -> None:
    """A hostile task name is text everywhere: no formula, no tag, no macro, no extra column."""
    name = "=cmd|<script>alert(1)</script>&50%_$x$"
    report_of(tmp_path, [make_record(name, "pfeiffer"), make_record("@home", "pfeiffer")])
    for table in ("table.csv", "runs.csv"):
        rows = csv.DictReader(io.StringIO((tmp_path / table).read_text()))
        assert {f"'{name}", "'@home"} == {row["task"] for row in rows}
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "=cmd|&lt;script&gt;alert(1)&lt;/script&gt;&amp;50%_$x$ (validation)" in page
    latex = (tmp_path / "table.tex").read_text().split(r"\midrule")[1]
    assert r"=cmd|<script>alert(1)</script>\&50\%\_\$x\$ (validation) &" in latex
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if "=cmd" in line and "| pfe" in line)
    assert r"=cmd\|&lt;script>alert(1)&lt;/script>&50%_$x$ (validation)" in row
    assert name == json.loads((tmp_path / "table.json").read_text())["table"][0]["task"]


def test_json_has_numbers_and_nulls(records: list[RunRecord], tmp_path: Path) -> None:
    """The JSON table keeps full precision and spells what is missing as null, never NaN."""
    report_of(tmp_path, [*records, make_record("imdb", "pfeiffer")], ["json"])
    report = json.loads((tmp_path / "table.json").read_text(), parse_constant=pytest.fail)
    rows = {(row["task"], row["method"]): row for row in report["table"]}
    assert 226_850 == rows["mrpc", "houlsby"]["trainable"]
    assert None is rows["imdb", "majority"]["trainable"]
    assert None is rows["imdb", "pfeiffer"]["accuracy_std"]
    assert {"notice", "notes", "summary", "table", "comparisons", "totals"} == set(report)


def terminal(records: list[RunRecord]) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(terminal_of(records))
    return console.file.getvalue()


def test_terminal_table_fits_100_columns(records: list[RunRecord]) -> None:
    """The short form keeps its scores whole in 100 columns and names failed runs below."""
    text = terminal([*records, fail(make_record("mrpc", "parallel"))])
    assert max(len(line) for line in text.splitlines()) <= 100
    assert " 0.891 " in text
    assert "Failed: parallel on mrpc, seed 0" in text


@pytest.mark.parametrize("tasks", [1, 4])
def test_picture_draws_any_number_of_tasks(tasks: int) -> None:
    """One task or more than a line of them, own recipes and methods that did not finish all make a picture."""
    methods: list[Callable[[str], RunRecord]] = [
        lambda task: make_record(task, "majority"),
        lambda task: make_record(task, "own-recipe"),
        lambda task: fail(make_record(task, "houlsby")),
    ]
    summary = summary_of([make(f"task-{n}") for n in range(tasks) for make in methods])
    picture = ElementTree.fromstring(score_picture(task_rows(summary), SAMPLE_NOTICE))
    panels = picture.findall("{http://www.w3.org/2000/svg}svg")
    assert [f"task-{n} (validation)" for n in range(tasks)] == [panel[0].text.split(":")[0] for panel in panels]
    assert SAMPLE_NOTICE in [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_report_of_failed_runs_only_is_still_written(tmp_path: Path) -> None:
    """When nothing finished there is a report that says so, not a traceback."""
    report_of(tmp_path, [fail(make_record("mrpc", "pfeiffer"))])
    assert "no adapter method has a mean score." in (tmp_path / "report.md").read_text()
    assert "0 (1 failed)" in (tmp_path / "report.md").read_text()
    assert "Failed: pfeiffer" in terminal([fail(make_record("mrpc", "pfeiffer", main_metric="pearson"))])


def test_no_records_is_one_of_our_errors(tmp_path: Path) -> None:
    """A table of nothing names the command that makes records."""
    with pytest.raises(RunError, match="expected at least one run record, found none; make some with"):
        report_of(tmp_path, [])


def test_reports_need_no_torch() -> None:
    """Tables are made from records anywhere: importing reports loads neither torch nor transformers."""
    code = "import sys, registry.reports.report; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
