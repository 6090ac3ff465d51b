"""Small means to write an SVG drawing by hand: escaped elements, scales, round ticks, names that do not overlap.

Colours and fonts are the page's, by class. This file does not know what is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup, escape

_LETTER = 6.3  # mean width of a letter at the page's 11 pixels
_LINE = 13.0  # height of a line of text


@dataclass(frozen=True)
class Scale:
    """A linear map of ``first..last`` to pixels ``start..end``; ``start`` may be the larger."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``."""
        return self.start + (value - self.first) / (self.last - self.first) * (self.end - self.start)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether the two share any area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass
class Layout:
    """Boxes taken so far within ``area``, so that names find free places."""

    area: Box
    taken: list[Box] = field(default_factory=list)

    def place(self, text: str, x: float, y: float, distance: float) -> tuple[float, float, str]:
        """Return (x, y of the baseline, anchor) of a free place beside the point, as near to it as there is one.

        Right of the point comes first, then left, then further up and down; with no place left, right of the point.
        """
        width = len(text) * _LETTER
        for shift in (0, *(sign * step * 4 for step in range(1, 25) for sign in (-1, 1))):
            for anchor, left in (("start", x + distance), ("end", x - distance - width)):
                top = y + shift - _LINE / 2
                box = Box(left, top, left + width, top + _LINE)
                inside = self.area.left <= left and box.right <= self.area.right
                inside = inside and self.area.top <= top and box.bottom <= self.area.bottom
                if inside and not any(box.overlaps(other) for other in self.taken):
                    self.taken.append(box)
                    return (left if anchor == "start" else box.right, y + shift + 4, anchor)
        return (x + distance, y + 4, "start")


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return one element; attributes that are None are left out, and ``class_`` is ``class``."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def drawing(
    name: str, width: float, height: float, title: str, description: str, /, *children: str, **place: str | float
) -> Markup:
    """Return a whole drawing that scales to its place and tells its content to those who do not see it."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {pixel(width)} {pixel(height)}",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
        **place,
    )


def standalone_style() -> str:
    """Return the style of a drawing outside the page: the page's colours, as dark as the reader's system."""
    colours = re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", read_template("colours.css"))
    light, dark = ("".join(f" --{name}: {pair[theme]};" for name, *pair in colours) for theme in (0, 1))
    media = f":root {{{light} }}\n@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}\n"
    return f"{media}{read_template('drawings.css')}"


def short(text: str, letters: int) -> str:
    """Return a text of at most so many letters."""
    return text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def read_template(name: str) -> str:
    """Return one of the files that page and drawings are made with."""
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8")


def label(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Markup:
    """Return a line of text at its baseline; ``anchor`` is start, middle or end."""
    return element("text", text, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]]) -> str:
    """Return the path data through the points, with a gap where one is not finite."""
    parts, pen = [], "M"
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{pen}{pixel(x)} {pixel(y)}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def ticks(first: float, last: float, about: int) -> list[float]:
    """Return round numbers within ``first..last``, 1, 2 or 5 times a power of ten apart, about as many as asked."""
    step = _round_up((last - first) / max(about, 1))
    return [
        round(index * step, 12) for index in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1)
    ]


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """Return the smallest and largest finite value, each moved out by a share of their distance."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def pixel(value: float) -> str:
    """Return a coordinate with one decimal at most."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _attribute(value: str | float | None) -> str:
    return pixel(value) if isinstance(value, int | float) else str(value)


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
