"""What is promised of the report's page: one quiet file that says the same everywhere, and that no text can break."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import msgspec
import numpy as np
import pytest

from registry.bench.curves import LearningCurve
from registry.bench.records import RunRecord
from registry.reports.content import ReportContent, SizeCurve, amount_curves, bottleneck_curves
from registry.reports.figures import curve_panels, forest_chart, scatter_chart, size_chart
from registry.reports.mistakes import MOST_ROWS, confusions_of, wrong_rows
from registry.reports.numbers import compact, signed
from registry.reports.page import render_report_page
from registry.reports.svg import Box, Layout, padded, path, pixel, read_template, ticks
from registry.stats.intervals import Interval
from registry.stats.predictions import CellPredictions
from tests.support.page_contents import HOSTILE, PageReader, make_comparison, make_hostile, make_task
from tests.support.run_records import evidence_of, make_record

pytestmark = pytest.mark.xdist_group("page")  # the evidence of a benchmark is gathered once


@pytest.fixture(scope="module")
def page(evidence: ReportContent) -> str:
    """The page of the benchmark."""
    return render_report_page(evidence)


def make_sizes(lines: dict[str, dict[int, float]], reference: float | None = None) -> SizeCurve:
    """Return a curve over bottleneck sizes with an interval four hundredths wide at each."""
    told = [
        (
            method,
            {
                size: Interval(mean=mean, low=mean - 0.02, high=mean + 0.02, seeds=3, rows=400)
                for size, mean in line.items()
            },
        )
        for method, line in lines.items()
    ]
    return SizeCurve("mrpc (validation)", "accuracy", "bottleneck size M", told, reference)


def make_run(seed: int, losses: tuple[float, ...], status: str = "finished") -> RunRecord:
    """Return a run with a loss at each of the first steps."""
    curve = LearningCurve(steps=tuple(range(1, len(losses) + 1)), losses=losses)
    return make_record("mrpc", "houlsby", seed, curve=curve, status=status)


def test_page_names_no_other_file(page: str) -> None:
    """No address, no import, no source: whatever the page needs is in it."""
    for text in ("http:", "https:", "url(", "@import", " src=", "<link", "<iframe", "<object"):
        assert text not in page
    assert {"#"} == {str(each["href"])[0] for each in PageReader(page).all("a") + PageReader(page).all("use")}


def test_policy_allows_the_one_style_and_the_one_script(page: str) -> None:
    """The page's policy forbids everything but the bytes of its own style and script."""
    policy = next(
        each["content"] for each in PageReader(page).all("meta") if "content" in each and "http-equiv" in each
    )
    digests = []
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests.append(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
    expected = f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'"
    assert f"{expected}; base-uri 'none'; form-action 'none'" == policy
    assert "unsafe" not in page
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


def test_hostile_texts_add_no_element() -> None:
    """Names and texts that look like html are told as they are, and change nothing of the page's build."""
    page = render_report_page(*make_hostile())
    reader = PageReader(page)
    assert not {"img", "iframe", "object"} & {tag for tag, _ in reader.elements}
    assert ["application/json", None] == [each.get("type") for each in reader.all("script")]
    assert not [attributes for _, attributes in reader.elements if any(key.startswith("on") for key in attributes)]
    told = "".join(reader.texts)
    for text in HOSTILE:
        assert text in told
    (data,) = re.findall(r'id="error-data">(.*?)</script>', page)
    assert list(HOSTILE) == json.loads(data)[0]["x"][0]
    assert not set("<>&\u2028\u2029") & set(data)
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


def test_every_section_is_in_the_contents_and_none_is_empty(page: str) -> None:
    """The contents lead to each section that is there; sections without content are left out."""
    reader = PageReader(page)
    links = [str(each["href"])[1:] for each in reader.all("a") if each.get("class") != "skip"]
    assert [each["id"] for each in reader.all("section")] == links
    assert 12 == len(links)
    few = PageReader(render_report_page(evidence_of([make_record("mrpc", "majority")])))
    expected = ["scores", "totals", "parameters", "provenance", "notes"]
    assert expected == [each["id"] for each in few.all("section")]


def test_structure_is_told_to_those_who_do_not_see_it(page: str) -> None:
    """Head cells have a scope, tables a caption, drawings title and description, and no id stands twice."""
    reader = PageReader(page)
    assert {"col", "row", "rowgroup"} == {each.get("scope") for each in reader.all("th")}
    assert len(reader.all("table")) == len(reader.all("caption"))
    ids = [str(attributes["id"]) for _, attributes in reader.elements if "id" in attributes]
    assert sorted(set(ids)) == sorted(ids)
    drawings = reader.all("svg")
    # Scores, two sweeps, differences, reliability of each method, curves of losses and of scores.
    assert 2 + 2 + 2 + 2 + 2 * 5 + 2 * 4 * 2 == len(drawings)
    for each in drawings:
        assert each["role"] == "img"
        assert {each["aria-labelledby"], each["aria-describedby"]} <= set(ids)
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


def test_most_confident_mistakes_are_kept_of_all_of_imdb() -> None:
    """Of 25,000 wrong rows of eight methods those with the least share for the truth are kept, in under 200 kB."""
    shares = np.random.default_rng(0).uniform(0.01, 0.49, (8, 25_000)).astype(np.float32)
    labels, rows = np.zeros(25_000, dtype=np.int64), np.arange(25_000)
    methods = {
        f"method-{index}": CellPredictions(
            "classification", (0,), rows, labels, np.stack([one, 1 - one], axis=1)[np.newaxis]
        )
        for index, one in enumerate(shares)
    }
    found = wrong_rows(("neg", "pos"), methods)
    assert found is not None
    assert (25_000, MOST_ROWS) == (found.total, len(found.columns["n"]))
    least = shares.min(axis=0)
    assert set(np.argsort(least, kind="stable")[:MOST_ROWS].tolist()) == set(found.columns["n"])
    assert sorted(found.columns["n"], key=lambda row: (least[row], row)) == found.columns["n"]
    assert len(msgspec.json.encode(found.columns)) < 200_000


def test_numbers_of_every_drawing_stand_in_a_table(page: str, evidence: ReportContent) -> None:
    """Who cannot read a drawing finds its numbers in cells."""
    texts = set(PageReader(page).texts)
    for one in evidence.measured.comparisons.values():
        if one.reference == "full_fine_tuning":
            ends = [signed(100 * end) for end in (one.difference.mean, one.difference.low, one.difference.high)]
            assert {ends[0], f"{ends[1]} to {ends[2]}", one.verdict} <= texts
    for curve in (
        *bottleneck_curves(evidence.records, evidence.measured),
        *amount_curves(evidence.records, evidence.measured),
    ):
        for size, found in (pair for _, line in curve.lines for pair in line.items()):
            assert {f"{size:,}", f"{found.mean:.3f}", f"{found.low:.3f} to {found.high:.3f}"} <= texts
    assert {"pfeiffer, seed 2", "after_layer, seed 3"} <= texts
    assert any(re.fullmatch(r"\d+\.\d% right, 3 seeds", text) for text in texts)


def test_far_baselines_do_not_squeeze_the_forest() -> None:
    """A baseline far away is an arrow with its number at the end of an axis made for the adapter sets."""
    differences = {
        "majority": make_comparison(-0.3, -0.33, -0.27, 0.0),
        "houlsby": make_comparison(-0.004, -0.015, 0.007, 0.6),
        "pfeiffer": make_comparison(0.025, 0.01, 0.04, 0.004),
    }
    task = make_task(dict.fromkeys(differences, (9, 0.5)))
    drawing = str(forest_chart(task, differences, 3.2, "f"))
    assert ">−30.0</text>" in drawing
    assert ">+4</text>" in drawing
    assert ">−20</text>" not in drawing
    assert ["worse", "undecided", "better"] == re.findall(r'class="difference (\w+)"', drawing)


def test_sizes_stand_on_a_logarithmic_axis_with_the_reference() -> None:
    """Equal ratios are equal distances, every line ends in its name, and the reference is named once."""
    line = {2: 0.70, 24: 0.72, 192: 0.74}
    both = {"houlsby": line, "full_fine_tuning": line}
    drawing = str(size_chart(make_sizes(both, 0.79), "s", {"houlsby": 0, "full_fine_tuning": 1}))
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawing)]
    assert (math.log(12) / math.log(8)) == pytest.approx((xs[1] - xs[0]) / (xs[2] - xs[1]), abs=0.01)
    assert 1 == drawing.count(">full_fine_tuning</text>")
    assert ["2", "24", "192"] == re.findall(r'text-anchor="middle" class="soft">(\d+)<', drawing)
    assert 1 == drawing.count('class="reference"')
    assert ">full_fine_tuning</text>" in str(size_chart(make_sizes({"houlsby": line}, 0.79), "s", {"houlsby": 0}))
    assert 'class="reference"' not in str(size_chart(make_sizes({"houlsby": line}), "s", {"houlsby": 0}))


def test_many_lines_that_end_alike_have_names_apart() -> None:
    """Nine methods with one score each have a name in a place of its own, within the drawing."""
    curve = make_sizes({f"method-{index}": {2: 0.5, 192: 0.75} for index in range(9)})
    drawing = str(size_chart(curve, "s", {method: index for index, (method, _) in enumerate(curve.lines)}))
    heights = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.-]+)" class="name', drawing))
    assert 9 == len(heights)
    assert all(second - first >= 13 for first, second in itertools.pairwise(heights))
    assert 0 < heights[0] < heights[-1] < 265


def test_a_diverged_run_is_drawn_and_counts_in_no_mean() -> None:
    """Its line is broken and leaves the axis at the top; the mean is that of the others."""
    good, bad = make_run(0, (0.5, 0.25, 0.125)), make_run(1, (0.5, 1e9), "failed")
    (panel,) = curve_panels(make_task({}), {"houlsby": [good, bad]}, "c")
    assert 1 == str(panel).count('class="seed failed"')
    mean, drawn = (re.findall(rf'<path d="([^"]*)" {end}', str(panel)) for end in ('id="c-line-0"', 'class="seed"'))
    assert mean == drawn
    assert ">1</text>" in str(panel)
    assert 1 == len(curve_panels(make_task({}), {"houlsby": [bad]}, "c"))


def test_names_of_a_crowd_of_points_do_not_overlap() -> None:
    """Eight methods with one size and nearly one score each have a name of their own place."""
    crowd = {f"method-number-{i}": (224_546, 0.8 + i / 500) for i in range(8)}
    far = {f"far-{mean}": (9, mean) for mean in (0.1, 0.9)}
    drawing = str(scatter_chart(make_task(crowd | far), "s"))
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"(?: text-anchor="(\w+)")?>method-number', drawing)
    boxes = []
    for x, y, anchor in places:
        left = float(x) - (15 * 5.9 if anchor == "end" else 0)
        boxes.append(Box(left, float(y) - 10, left + 15 * 5.9, float(y) + 2))
    assert 8 == len(boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_curves_stop_where_a_run_diverged() -> None:
    """A loss that is no number leaves a gap, and a method without losses has no panel."""
    runs = {"houlsby": [make_run(0, (0.5, float("nan"), 0.25, 0.125))], "majority": [make_record("mrpc", "majority")]}
    (panel,) = curve_panels(make_task({}), runs, "c")
    assert 2 == re.findall(r'<path d="([^"]*)" class="seed">', str(panel))[0].count("M")
    assert "nan" not in re.sub(r"<desc.*?</desc>", "", str(panel))
    assert [] == curve_panels(make_task({}), runs, "c", scores=True)


def test_many_labels_become_a_list() -> None:
    """Seventy labels are no matrix to look at: the most frequent confusions are listed instead."""
    labels = np.repeat(np.arange(70), 70)
    answers = np.where(np.arange(len(labels)) % 70 < labels, 5, labels)  # the larger the label the oftener it is 5
    one = CellPredictions(
        "classification", (0,), np.arange(len(labels)), labels, np.eye(70, dtype=np.float32)[answers][np.newaxis]
    )
    found = confusions_of(tuple(f"label-{index}" for index in range(70)), {"houlsby": one})
    assert [] == found["matrices"]
    assert ("houlsby", "label-69", "label-5", 69) == tuple(found["frequent"][0])
    assert 30 == len(found["frequent"])


def test_ticks_are_round_and_inside() -> None:
    """Marks of an axis are round numbers within it."""
    assert [0.5, 0.6, 0.7, 0.8] == ticks(0.45, 0.83, 4)
    assert [-2, 0, 2] == ticks(-3.9, 3.9, 4)
    for low, high in ((0, 1e-9), (-1e6, 1e7), (0.123, 0.1231)):
        assert all(low - 1e-12 <= mark <= high + 1e-12 for mark in ticks(low, high, 5))


def test_numbers_of_drawings_are_short() -> None:
    """Coordinates have one decimal at most, counts three digits, points a sign."""
    assert ["1", "0.5", "0", "-3.1"] == [pixel(value) for value in (1.0, 0.54, -0.04, -3.14)]
    assert ["0", "770", "225k", "22.7M", "1.5G"] == [compact(value) for value in (0, 770, 224_546, 22_713_986, 1.5e9)]
    assert ["+1.2", "−0.3", "0.0", "0.0"] == [signed(value) for value in (1.24, -0.3, 0.0, -0.01)]
    assert "M0 1L2 3M4 5" == path([(0, 1), (2, 3), (3, float("nan")), (4, 5)])
    assert (-1.0, 1.0) == padded([0.0], 0.1)
    assert (0.0, 0.0) != padded([float("nan")], 0.1)


def test_a_full_drawing_still_names_its_points() -> None:
    """Where no place is free a name stands beside its point all the same."""
    layout = Layout(Box(0, 0, 10, 10))
    assert (14, 9, "start") == layout.place("houlsby", 5, 5, 9)


def test_colours_are_told_apart_in_light_and_dark() -> None:
    """Text has a contrast of 4.5 at least to its background, marks of 3 (WCAG 2.2, AA)."""
    style = read_template("colours.css")
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", style))
    colours = {name: pair.split(", ") for name, pair in pairs.items()}
    for theme in (0, 1):
        page = colours["page"][theme]
        for name in ("text", "soft", "accent", "warn", "better", "worse"):
            assert contrast(colours[name][theme], page) >= 4.5, (name, theme)
        for name in ("vermilion", "green", "pink", "ochre", "violet"):  # of names at lines
            assert contrast(colours[name][theme], page) >= 4.5, (name, theme)
        for name in ("adapter", "baseline"):
            assert contrast(colours[name][theme], page) >= 3, (name, theme)
        assert contrast(colours["soft"][theme], colours["quiet"][theme]) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two colours in hexadecimal."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
