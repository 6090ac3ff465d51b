"""Score against the size of what was swept, bottlenecks or training rows, as SVG: a line for each method.

Names stand at the ends of their lines, so there is no legend to look things up in. Colours are classes of page.css.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from registry.reports.numbers import compact
from registry.reports.page_content import SizeCurve, SizeLine, SizePoint
from registry.reports.svg import Scale, drawing, element, label, line, padded, path, ticks

COLOURS = 6  # that page.css has for lines

_WIDTH, _HEIGHT = 380.0, 300.0
_LEFT, _TOP, _BOTTOM = 40.0, 12.0, 256.0
_LETTER, _MOST_LETTERS = 6.1, 17
_ASIDE, _WIDEST = 4.0, 12.0  # between the intervals of two methods at one size, and of all of them
_APART = 14.0  # between two names
_MARK_APART = 7.0  # between two numbers of the axis


def size_chart(curve: SizeCurve, name: str, styles: Mapping[str, int]) -> Markup:
    """Return the scores of one task over sizes on a logarithmic axis, with the reference as a dashed line.

    Args:
        curve: at least one line.
        name: of the drawing, for its ids.
        styles: a number for each method's colour and mark, the same in all drawings of a page.
    """
    points = [point for each in curve.lines for point in each.points]
    ends = [end for point in points for end in (point.low, point.mean, point.high) if end is not None]
    up = Scale(*padded([*ends, *([] if curve.reference is None else [curve.reference])], 0.06), _BOTTOM, _TOP)
    names = [each.method for each in curve.lines]
    longest = max(len(_short(text)) for text in [*names, *([curve.reference_name] * (curve.reference is not None))])
    right = _WIDTH - longest * _LETTER - 14
    across = Scale(*padded([math.log10(point.size) for point in points], 0.05), _LEFT + 4, right)
    parts = _axes(curve, across, up, right)
    ends_of_lines = []
    if curve.reference is not None:
        y = up(curve.reference)
        parts.append(line(_LEFT, y, right, y, "reference"))
        if curve.reference_name not in names:  # else the end of its own line has the name
            ends_of_lines.append((right, y, curve.reference_name, "soft"))
    for index, each in enumerate(curve.lines):
        aside = (index - (len(names) - 1) / 2) * min(_ASIDE, _WIDEST / max(len(names) - 1, 1))
        places = [(across(math.log10(point.size)) + aside, up(point.mean), point) for point in each.points]
        parts.append(_line(each, places, up, styles[each.method]))
        ends_of_lines.append((*places[-1][:2], each.method, _class(each, styles[each.method])))
    parts += _names(ends_of_lines, right)
    told = "; ".join(
        f"{each.method}: " + ", ".join(f"{p.mean:.3f} at {p.size:,}" for p in each.points) for each in curve.lines
    )
    return drawing(name, _WIDTH, _HEIGHT, f"{curve.task}: {curve.metric} over {curve.axis}", told, *parts)


def _axes(curve: SizeCurve, across: Scale, up: Scale, right: float) -> list[Markup]:
    parts = []
    for y in ticks(up.first, up.last, 7):
        parts += [line(_LEFT, up(y), right, up(y), "grid"), label(_LEFT - 7, up(y) + 4, f"{y:g}", "end", "soft")]
    sizes = sorted({point.size for each in curve.lines for point in each.points})
    for x, text in _marks(sizes, across):
        parts.append(label(x, _BOTTOM + 18, text, "middle", "soft"))
    parts.append(label((_LEFT + right) / 2, _BOTTOM + 37, curve.axis, "middle", "soft"))
    return parts


def _marks(sizes: Sequence[int], across: Scale) -> list[tuple[float, str]]:
    """Return place and text of the sizes that have room on the axis, the largest always among them."""
    marks: list[tuple[float, str]] = []
    free = math.inf
    for size in reversed(sizes):
        x, text = across(math.log10(size)), f"{size:,}" if size < 10_000 and size % 1000 else compact(size)
        half = len(text) * _LETTER / 2
        if x + half + _MARK_APART <= free:
            marks.append((x, text))
            free = x - half
    return marks[::-1]


def _line(each: SizeLine, places: Sequence[tuple[float, float, SizePoint]], up: Scale, style: int) -> Markup:
    parts = [element("path", d=path((x, y) for x, y, _ in places), class_="run")]
    for x, y, point in places:
        told = element("title", f"{each.method}: {point.mean:.3f} at {point.size:,}")
        parts.append(element("g", told, *_interval(x, point, up), _mark(x, y, each, style)))
    return element("g", *parts, class_=f"size {_class(each, style)}")


def _interval(x: float, point: SizePoint, up: Scale) -> list[Markup]:
    if point.low is None or point.high is None:
        return []
    return [line(x, up(point.low), x, up(point.high), "interval")]


def _class(each: SizeLine, style: int) -> str:
    return f"line-{style % COLOURS}" if each.group == "adapter" else each.group


def _mark(x: float, y: float, each: SizeLine, style: int) -> Markup:
    if each.group == "full":
        return element("rect", x=x - 3.5, y=y - 3.5, width=7, height=7)
    if each.group == "baseline":
        return element("path", d=path([(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)]) + "Z")
    if style % 3 == 0:
        return element("circle", cx=x, cy=y, r=4)
    up = 1 if style % 3 == 1 else -1
    return element("path", d=path([(x, y - 5 * up), (x + 4.8, y + 3.8 * up), (x - 4.8, y + 3.8 * up)]) + "Z")


def _names(ends: Sequence[tuple[float, float, str, str]], right: float) -> list[Markup]:
    """Return each name at the right, as near to the end of its line as the other names let it."""
    ordered = sorted(ends, key=lambda each: (each[1], each[2]))
    heights: list[float] = []
    for _, y, _, _ in ordered:
        heights.append(max(y, heights[-1] + _APART) if heights else y)
    lowest = _BOTTOM
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], lowest)
        lowest = heights[index] - _APART
    parts = []
    for (x, y, text, class_), height in zip(ordered, heights, strict=True):
        if abs(height - y) > 4 or right - x > 12:
            parts.append(line(x, y, right + 8, height, "lead"))
        parts.append(label(right + 10, height + 4, _short(text), class_=f"name {class_}"))
    return parts


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
