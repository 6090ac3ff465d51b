"""The report's page for tests: content with something in every section, and content that tries to break out."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import msgspec

from registry.reports.mistakes import ErrorRow, MethodConfusion, TaskConfusions, TaskErrors
from registry.reports.page_content import (
    Cell,
    Column,
    Forest,
    ForestRow,
    MethodCurves,
    MethodGroup,
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

METHODS = ("majority", "houlsby", "pfeiffer", "full_fine_tuning")
SIZES = dict(zip(METHODS, (0, 448_322, 224_546, 22_713_986), strict=True))
TASKS = ("mrpc (validation)", "sst2 (validation)")
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script>alert(2)</script>",
    "\"'`&amp;&lt;\\ {{ 7 * 7 }} {% raw %}",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd\u2028\u2029",
    "'\"><svg onload=alert(3)>",
)


def make_errors(task: str, rows: int, texts: tuple[str, ...] = ()) -> TaskErrors:
    """Rows of which every third is wrong in all seeds of houlsby, every fifth in one of pfeiffer, row 60 in all."""
    found = []
    for row in range(rows):
        wrong = (int(row == 60), 3 if row % 3 == 0 else 1 + row % 2, int(row % 5 == 0), int(row == 60))
        shares = (0.9, 0.4 - (row * 37 % 100) / 300, 0.45, 0.8)
        found.append(ErrorRow(row=1000 + row, label=row % 2, probabilities=shares, wrong=wrong, texts=texts))
    return TaskErrors(task=task, label_names=("no", "yes"), methods=METHODS, seeds=(1, 3, 3, 3), rows=tuple(found))


def make_table() -> PageTable:
    """Four methods on two tasks; texts of numbers sort otherwise than their values, and one has none."""
    columns = (
        Column(key="method", title="method", side="left"),
        Column(key="trainable", title="trainable"),
        Column(key="score", title="score"),
        Column(key="note", title="note", side="left", sortable=False),
    )
    rows = tuple(
        (
            Cell(text=method, value=method),
            Cell(text=f"{SIZES[method]:,}" if SIZES[method] else "–", value=SIZES[method] or None),
            Cell(text=f"{0.5 + index / 10:.3f}", value=0.5 + index / 10, detail="± 0.010", tone="strong"),
            Cell(text="as recorded"),
        )
        for index, method in enumerate(METHODS)
    )
    return PageTable(columns=columns, groups=tuple(RowGroup(name=task, rows=rows) for task in TASKS))


def make_scatter(task: str) -> Scatter:
    """A point for each method, a tenth apart."""
    groups: dict[str, MethodGroup] = {"majority": "baseline", "full_fine_tuning": "full"}
    means = [(method, 0.5 + index / 10, groups.get(method, "adapter")) for index, method in enumerate(METHODS)]
    points = [
        ScatterPoint(method=method, parameters=SIZES[method], mean=mean, low=mean - 0.02, high=mean + 0.02, group=group)
        for method, mean, group in means
    ]
    return Scatter(task=task, metric="f1_binary", points=tuple(points))


def make_sizes(task: str, axis: str, sizes: tuple[int, ...]) -> SizeCurve:
    """Two methods that rise by two hundredths from size to size, the second one full fine-tuning."""
    lines = []
    for index, (method, group) in enumerate((("houlsby", "adapter"), ("full_fine_tuning", "full"))):
        means = [0.7 + 0.03 * index + 0.02 * place for place in range(len(sizes))]
        points = tuple(
            SizePoint(size=size, mean=mean, low=mean - 0.02, high=mean + 0.02)
            for size, mean in zip(sizes, means, strict=True)
        )
        lines.append(SizeLine(method=method, points=points, group=group))
    return SizeCurve(
        task=task, metric="f1_binary", axis=axis, lines=tuple(lines), reference=0.79, reference_name="full_fine_tuning"
    )


def make_forest(task: str) -> Forest:
    """A baseline far away, a method that cannot be told apart, and a better one."""
    tests = ((0, 0.04), (1, 0.0004))
    rows = (
        ForestRow(method="majority", difference=-30, low=-33, high=-27, p=0.0, verdict="worse", group="baseline"),
        ForestRow(method="houlsby", difference=-0.4, low=-1.5, high=0.7, p=0.6, seed_tests=tests),
        ForestRow(method="pfeiffer", difference=2.5, low=1.0, high=4.0, p=0.004, verdict="better"),
    )
    return Forest(
        task=task, metric="f1_binary", reference="full_fine_tuning", rows=rows, detectable=3.2, power="Smallest: 3.2."
    )


def make_curves(task: str) -> TaskCurves:
    """Three seeds of each method that trains, with held-out scores."""
    steps, losses = (1, 50, 100), ((0.7, 0.5, 0.3), (0.7, 0.5, 0.4), (0.7, 0.5, 0.5))
    seeds = tuple(
        SeedCurve(seed=seed, steps=steps, losses=losses[seed], score_steps=(50, 100), scores=(0.7, 0.8))
        for seed in range(3)
    )
    return TaskCurves(
        task=task, metric="f1_binary", methods=tuple(MethodCurves(method=name, seeds=seeds) for name in METHODS[1:])
    )


def make_confusions(task: str) -> TaskConfusions:
    """A two by two matrix for each method, 85 % of it right."""
    methods = tuple(MethodConfusion(method=name, seeds=3, counts=((90, 10), (20, 80))) for name in METHODS)
    return TaskConfusions(task=task, label_names=("no", "yes"), methods=methods)


def make_content(**changes: Any) -> PageContent:
    """Two tasks, four methods, something in every section; ``changes`` replace its fields."""
    table = make_table()
    content = PageContent(
        title="Benchmark report",
        notice="Made from the sample.",
        summary=("mrpc: houlsby is not distinguishable from full fine-tuning.",),
        table=table,
        reading="Below each score stands its interval.",
        caveats=("Failed: houlsby on mrpc, seed 3.",),
        totals=PageTable(columns=table.columns, groups=(RowGroup(rows=table.groups[0].rows),)),
        scatters=tuple(map(make_scatter, TASKS)),
        bottlenecks=tuple(make_sizes(task, "bottleneck size M", (2, 24, 192)) for task in TASKS),
        amounts=(make_sizes(TASKS[0], "training rows", (100, 300, 67_349)),),
        forests=tuple(map(make_forest, TASKS)),
        curves=tuple(map(make_curves, TASKS)),
        confusions=tuple(map(make_confusions, TASKS)),
        errors=(make_errors(TASKS[0], 120), make_errors(TASKS[1], 7)),
        provenance=(("code", "365f649187f2"), ("torch", "2.13.0")),
        commands=("adapter-registry bench mrpc --data ../shared/data --seeds 0-2",),
        notes=("Seeds: 0, 1, 2; all of them count.",),
    )
    return msgspec.structs.replace(content, **changes)


def make_hostile() -> PageContent:
    """Hostile texts wherever a text can stand."""
    names, evil = HOSTILE[:4], HOSTILE[0]
    row = tuple(Cell(text=text, value=text, detail=evil) for text in names)
    columns = tuple(Column(key=text, title=text) for text in names)
    table = PageTable(columns=columns, groups=(RowGroup(name=evil, rows=(row, row)),))
    points = tuple(ScatterPoint(method=name, parameters=9, mean=0.5) for name in names)
    rows = tuple(ForestRow(method=name, difference=1, low=0, high=2) for name in names)
    places = (SizePoint(size=1, mean=0.5), SizePoint(size=9, mean=0.6))
    sizes = SizeCurve(
        task=evil,
        metric=HOSTILE[2],
        axis=HOSTILE[4],
        lines=tuple(SizeLine(method=name, points=places) for name in names),
        reference=0.55,
        reference_name=evil,
    )
    curve = SeedCurve(seed=0, steps=(1, 2), losses=(0.7, float("nan")))
    confusion = MethodConfusion(method=evil, seeds=1, counts=((1, 2), (3, 4)))
    wrong = ErrorRow(row=7, label=0, probabilities=(0.1, 0.2), wrong=(1, 1), texts=HOSTILE)
    return PageContent(
        title=evil,
        notice=HOSTILE[1],
        summary=HOSTILE,
        table=table,
        reading=HOSTILE[1],
        caveats=HOSTILE,
        totals=table,
        bottlenecks=(sizes,),
        amounts=(sizes,),
        scatters=(Scatter(task=evil, metric=HOSTILE[2], points=points),),
        forests=(Forest(task=HOSTILE[4], metric=evil, reference=HOSTILE[2], rows=rows, power=evil),),
        curves=(TaskCurves(task=evil, methods=tuple(MethodCurves(method=name, seeds=(curve,)) for name in names)),),
        confusions=(TaskConfusions(task=HOSTILE[4], label_names=names[:2], methods=(confusion,)),),
        errors=(TaskErrors(task=evil, label_names=names, methods=names[:2], seeds=(1, 1), rows=(wrong,), how=evil),),
        provenance=((evil, HOSTILE[1]),),
        commands=HOSTILE,
        notes=HOSTILE,
    )


class PageReader(HTMLParser):
    """What an html file is made of: its elements, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element with its attributes."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]
