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
import pytest

from registry.errors import ConfigError
from registry.reports.figures import curve_panels, forest_chart, scatter_chart
from registry.reports.mistakes import ErrorRow, MethodConfusion, TaskConfusions, TaskErrors
from registry.reports.numbers import compact, signed
from registry.reports.page import MOST_ERRORS, render_page
from registry.reports.page_content import (
    Cell,
    Column,
    ForestRow,
    MethodCurves,
    PageContent,
    PageTable,
    RowGroup,
    Scatter,
    ScatterPoint,
    SeedCurve,
    SizeCurve,
    SizeLine,
    SizePoint,
    TaskCurves,
)
from registry.reports.size_chart import size_chart
from registry.reports.svg import Box, Layout, padded, path, pixel, read_template, ticks
from tests.support.page_contents import HOSTILE, PageReader, make_content, make_errors, make_hostile


def test_equal_content_gives_equal_bytes() -> None:
    """Nothing of the moment is in the page."""
    assert render_page(make_content()) == render_page(make_content())


def test_page_names_no_other_file() -> None:
    """No address, no import, no source: whatever the page needs is in it."""
    page = render_page(make_content())
    for text in ("http:", "https:", "url(", "@import", " src=", "<link", "<iframe", "<object"):
        assert text not in page
    assert {"#"} == {str(each["href"])[0] for each in PageReader(page).all("a") + PageReader(page).all("use")}


def test_policy_allows_the_one_style_and_the_one_script() -> None:
    """The page's policy forbids everything but the bytes of its own style and script."""
    page = render_page(make_content())
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
    page = render_page(make_hostile())
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


def test_every_section_is_in_the_contents_and_none_is_empty() -> None:
    """The contents lead to each section that is there; sections without content are left out."""
    reader = PageReader(render_page(make_content()))
    links = [str(each["href"])[1:] for each in reader.all("a") if each.get("class") != "skip"]
    assert [each["id"] for each in reader.all("section")] == links
    assert 11 == len(links)
    few = PageContent(title="t", table=make_content().table)
    assert ["scores"] == [each["id"] for each in PageReader(render_page(few)).all("section")]


def test_structure_is_told_to_those_who_do_not_see_it() -> None:
    """Head cells have a scope, tables a caption, drawings title and description, and no id stands twice."""
    page = render_page(make_content())
    reader = PageReader(page)
    assert {"col", "row", "rowgroup"} == {each.get("scope") for each in reader.all("th")}
    assert len(reader.all("table")) == len(reader.all("caption"))
    ids = [str(attributes["id"]) for _, attributes in reader.elements if "id" in attributes]
    assert sorted(set(ids)) == sorted(ids)
    drawings = reader.all("svg")
    assert 2 + 3 + 2 + 2 * 3 * 2 == len(drawings)
    for each in drawings:
        assert each["role"] == "img"
        assert {each["aria-labelledby"], each["aria-describedby"]} <= set(ids)
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


def test_page_stays_small_with_all_of_imdb() -> None:
    """With 25,000 wrong rows of eight methods on three tasks the page is under 2 MB, and says what it left out."""
    methods = tuple(f"method-{index}" for index in range(8))
    rows = tuple(
        ErrorRow(
            row=row, label=0, probabilities=tuple((row * 7 + i + 500) % 999 / 2000 for i in range(8)), wrong=(3,) * 8
        )
        for row in range(25_000)
    )
    errors = TaskErrors(task="imdb", label_names=("neg", "pos"), methods=methods, seeds=(3,) * 8, rows=rows)
    page = render_page(make_content(errors=(errors,) * 3))
    assert len(page.encode()) < 2_000_000
    assert f"imdb: the {MOST_ERRORS:,} most confident mistakes of 25,000 rows that a method got wrong." in page
    (data,) = re.findall(r'id="error-data">(.*?)</script>', page)
    assert MOST_ERRORS == len(json.loads(data)[0]["n"])
    kept = json.loads(data)[0]["p"]
    assert 45 >= max(min(kept[start : start + 8]) for start in range(0, len(kept), 8))


def test_only_a_page_with_texts_warns_of_them() -> None:
    """Texts come with a warning above all else, and without them there is neither."""
    assert "keep it on your machine" not in render_page(make_content())
    page = render_page(make_content(errors=(make_errors("mrpc", 3, ("a text of the data",)),)))
    assert page.index("This page holds texts of the data: keep it on your machine.") < page.index("Scores</h2>")
    assert "a text of the data" in page


def test_content_that_does_not_fit_is_refused() -> None:
    """Rows of the wrong length, counts that are not square and numbers that are none are told with their place."""
    column = Column(key="method", title="method")
    with pytest.raises(ConfigError, match="rows: expected 1 cells each, found 2"):
        PageTable(columns=(column,), groups=(RowGroup(rows=((Cell(text="a"), Cell(text="b")),)),))
    with pytest.raises(ConfigError, match="counts: expected 2 x 2 counts"):
        TaskConfusions(
            task="t", label_names=("a", "b"), methods=(MethodConfusion(method="m", seeds=1, counts=((1, 2),)),)
        )
    with pytest.raises(ConfigError, match="losses: expected 2 numbers, found 1"):
        SeedCurve(seed=0, steps=(1, 2), losses=(0.5,))
    row = ErrorRow(row=4, label=2, probabilities=(0.5,), wrong=(1,))
    with pytest.raises(ConfigError, match="row 4: expected an index of a label, found 2"):
        TaskErrors(task="t", label_names=("a", "b"), methods=("m",), seeds=(1,), rows=(row,))
    with pytest.raises(ConfigError, match="houlsby: expected finite numbers"):
        ForestRow(method="houlsby", difference=float("nan"), low=0, high=1)


def test_numbers_of_every_drawing_stand_in_a_table() -> None:
    """Who cannot read a drawing finds its numbers in cells."""
    texts = set(PageReader(render_page(make_content())).texts)
    told = (
        "0.680 to 0.720",
        "−30.0",
        "−33.0 to −27.0",
        "0.004",
        "better",
        "houlsby, seed 2",
        "90",
        "85.0% right, 3 seeds",
        "67,349",
        "0.750 to 0.790",
        "0: 0.040, 1: <0.001",
        "Smallest: 3.2.",
    )
    assert set(told) <= texts


def test_far_baselines_do_not_squeeze_the_forest() -> None:
    """A baseline far away is an arrow with its number at the end of an axis made for the adapter sets."""
    (forest, _) = make_content().forests
    drawing = str(forest_chart(forest, "f"))
    assert ">−30.0</text>" in drawing
    assert ">+4</text>" in drawing
    assert ">−20</text>" not in drawing


def test_sizes_stand_on_a_logarithmic_axis_with_the_reference() -> None:
    """Equal ratios are equal distances, every line ends in its name, and the reference is named once."""
    curve = make_content().bottlenecks[0]
    drawing = str(size_chart(curve, "s", {"houlsby": 0, "full_fine_tuning": 1}))
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawing)]
    assert (math.log(12) / math.log(8)) == pytest.approx((xs[1] - xs[0]) / (xs[2] - xs[1]), abs=0.01)
    assert 1 == drawing.count(">full_fine_tuning</text>")
    assert ["2", "24", "192"] == re.findall(r'text-anchor="middle" class="soft">(\d+)<', drawing)
    assert 1 == drawing.count('class="reference"')
    alone = msgspec.structs.replace(curve, lines=curve.lines[:1])
    assert ">full_fine_tuning</text>" in str(size_chart(alone, "s", {"houlsby": 0}))
    without = msgspec.structs.replace(alone, reference=None)
    assert 'class="reference"' not in str(size_chart(without, "s", {"houlsby": 0}))


def test_many_lines_that_end_alike_have_names_apart() -> None:
    """Nine methods with one score each have a name in a place of its own, within the drawing."""
    points = (SizePoint(size=2, mean=0.5), SizePoint(size=192, mean=0.75))
    lines = tuple(SizeLine(method=f"method-{index}", points=points) for index in range(9))
    curve = SizeCurve(task="t", metric="accuracy", axis="bottleneck size M", lines=lines)
    drawing = str(size_chart(curve, "s", {line.method: index for index, line in enumerate(lines)}))
    heights = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.-]+)" class="name', drawing))
    assert 9 == len(heights)
    assert all(second - first >= 13 for first, second in itertools.pairwise(heights))
    assert 0 < heights[0] < heights[-1] < 265


def test_sizes_that_fit_no_logarithm_are_refused() -> None:
    """There is no place for nothing on a logarithmic axis."""
    with pytest.raises(ConfigError, match="size: expected a number above 0"):
        SizePoint(size=0, mean=0.5)


def test_a_diverged_run_is_drawn_and_counts_in_no_mean() -> None:
    """Its line is broken and leaves the axis at the top; the mean is that of the others."""
    good = SeedCurve(seed=0, steps=(1, 2, 3), losses=(0.5, 0.25, 0.125))
    bad = SeedCurve(seed=1, steps=(1, 2), losses=(0.5, 1e9), failed=True)
    (panel,) = curve_panels(TaskCurves(task="t", methods=(MethodCurves(method="houlsby", seeds=(good, bad)),)), "c")
    assert 1 == str(panel).count('class="seed failed"')
    mean, drawn = (re.findall(rf'<path d="([^"]*)" {end}', str(panel)) for end in ('id="c-line-0"', 'class="seed"'))
    assert mean == drawn
    assert ">1</text>" in str(panel)
    alone = TaskCurves(task="t", methods=(MethodCurves(method="houlsby", seeds=(bad,)),))
    assert 1 == len(curve_panels(alone, "c"))


def test_names_of_a_crowd_of_points_do_not_overlap() -> None:
    """Eight methods with one size and nearly one score each have a name of their own place."""
    crowd = [ScatterPoint(method=f"method-number-{i}", parameters=224_546, mean=0.8 + i / 500) for i in range(8)]
    far = [ScatterPoint(method=f"far-{mean}", parameters=9, mean=mean) for mean in (0.1, 0.9)]
    drawing = str(scatter_chart(Scatter(task="t", metric="accuracy", points=(*crowd, *far)), "s"))
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"(?: text-anchor="(\w+)")?>method-number', drawing)
    boxes = []
    for x, y, anchor in places:
        left = float(x) - (15 * 5.9 if anchor == "end" else 0)
        boxes.append(Box(left, float(y) - 10, left + 15 * 5.9, float(y) + 2))
    assert 8 == len(boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_curves_stop_where_a_run_diverged() -> None:
    """A loss that is no number leaves a gap, and a method without losses has no panel."""
    seeds = (SeedCurve(seed=0, steps=(1, 2, 3, 4), losses=(0.5, float("nan"), 0.25, 0.125)),)
    methods = (MethodCurves(method="houlsby", seeds=seeds), MethodCurves(method="majority", seeds=()))
    (panel,) = curve_panels(TaskCurves(task="t", methods=methods), "c")
    assert 2 == re.findall(r'<path d="([^"]*)" class="seed">', str(panel))[0].count("M")
    assert "nan" not in re.sub(r"<desc.*?</desc>", "", str(panel))
    assert [] == curve_panels(TaskCurves(task="t", methods=methods), "c", scores=True)


def test_many_labels_become_a_list() -> None:
    """Seventy labels are no matrix to look at: the most frequent confusions are listed instead."""
    names = tuple(f"label-{index}" for index in range(70))
    counts = tuple(tuple(50 + i if i == j else 1 if j != 5 else i for j in range(70)) for i in range(70))
    confusions = TaskConfusions(
        task="banking", label_names=names, methods=(MethodConfusion(method="houlsby", seeds=1, counts=counts),)
    )
    page = render_page(make_content(confusions=(confusions,)))
    assert 'class="matrix"' not in page
    assert 1 == page.count(">label-69</td>")


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
