"""Write the tables of docs/interop.md, made of the code's own: what every switch of other libraries means here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from registry.interop.heads import STATIC_HEADS
from registry.interop.methods import RULES
from registry.interop.switches import ACTIVATION_NAMES, ADAPTERHUB, PEFT, PRESETS, Switch

MARKER = "<!-- Below: made of the code's own tables by scripts/docs. -->\n"
_TITLES = {
    "adapter_config.json": "AdapterHub: `adapter_config.json`",
    "head_config.json": "AdapterHub: `head_config.json`",
    "bottleneck": "AdapterHub: `config` of a bottleneck",
    "lora": "AdapterHub: `config` of LoRA and (IA)3",
    "prefix_tuning": "AdapterHub: `config` of a prefix",
    "head": "AdapterHub: `config` of a flexible head",
    "LORA": "PEFT: `adapter_config.json` of LoRA",
    "IA3": "PEFT: `adapter_config.json` of (IA)3",
}


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ("---",) * len(titles), *rows)]


def _code(value: object) -> str:
    return f"`{json.dumps(value)}`"


def _switch_rows(switches: Mapping[str, Switch]) -> list[tuple[str, ...]]:
    return [
        (
            f"`{key}`",
            _code(each.default),
            "any" if each.only is None else ", ".join(map(_code, each.only)),
            each.meaning,
        )
        for key, each in switches.items()
    ]


def _tables() -> Iterator[str]:
    yield "## Placements of bottlenecks\n"
    rows = [
        (f"`{placement}`", *(_code(value) for value in (rule.before, rule.after, rule.residual, rule.parallel)))
        for placement, rule in RULES.items()
    ]
    keys = ("original_ln_before", "original_ln_after", "residual_before_ln", "is_parallel")
    yield from _table(("placement", *(f"`{key}`" for key in keys)), rows)
    yield "\nWhere `original_ln_before` is false, `residual_before_ln` is not looked at;"
    yield "of a parallel one only `original_ln_after` is.\n"
    yield "## Activations\n"
    own: dict[str, list[str]] = {}
    for theirs, ours in ACTIVATION_NAMES.items():
        own.setdefault(ours, []).append(f"`{theirs}`")
    yield from _table(
        ("ours", "AdapterHub's; the first is what is written"), [(k, ", ".join(v)) for k, v in own.items()]
    )
    yield "\n## Configurations that a file may name\n"
    yield ", ".join(f"`{name}`" for name in PRESETS) + ".\n"
    yield "## Static heads\n"
    heads = [
        (family, each.form, each.pooling, ", ".join(f"`{part}`" for part in (each.dense, each.out) if part))
        for family, each in STATIC_HEADS.items()
    ]
    yield from _table(("family", "form", "pooling", "modules"), heads)
    for tables in (ADAPTERHUB, PEFT):
        for name, switches in tables.items():
            yield f"\n## {_TITLES[name]}\n"
            yield from _table(("key", "where absent", "read", "here"), _switch_rows(switches))


def with_tables(text: str) -> str:
    """Return a page with the tables below its marker, in place of what stood there.

    Raises:
        ValueError: the page has no marker.
    """
    above, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError(f"write the tables of formats: expected the line {MARKER.strip()}, found none")
    return f"{above}{marker}\n" + "\n".join(_tables()) + "\n"


def main() -> None:
    """Write the page that the command line names."""
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
