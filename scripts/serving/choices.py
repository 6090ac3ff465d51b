"""What the engine's choices cost: where rows are tokenized, how many make a batch, how long it lingers.

Servers that differ in one choice are asked in turn, round after round, with so many requests of one row in flight; on a
shared machine only neighbours in time can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from main import OURS, ask, server
from scene import draw_rows, make_store, read_texts

from registry.model.backbone import Backbone
from registry.provenance import code_version, hardware

_LINGER = "import registry.serving.waiting as w; w.LINGER_SHARE = {}\n"
_BESIDE = "import registry.serving.engine as e; e.TOKENIZED_BESIDE = dict.fromkeys(e.TOKENIZED_BESIDE, {})\n"
_ROWS = "import registry.serving.engine as e; e.MAX_ROWS = {k: 2 * v for k, v in e.MAX_ROWS.items()}\n"
# What a server's process does before it starts.
CHOICES: dict[str, str] = {
    "as it is": "",
    "tokenized by the engine": _BESIDE.format(False),
    "tokenized beside": _BESIDE.format(True),
    "no linger": _LINGER.format(0.0),
    "linger 10 %": _LINGER.format(0.1),
    "linger 20 %": _LINGER.format(0.2),
    "twice the rows": _ROWS,
}
IN_FLIGHT = (1, 8, 32, 128)


def main() -> None:
    """Measure all choices and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("reports"))
    wanted = parser.parse_args()
    seconds, rounds = (1.0, 1) if wanted.quick else (8.0, 9)
    backbone = Backbone.load("embedded", dtype=wanted.dtype)
    rates: dict[str, dict[str, list[float]]] = {key: {str(n): [] for n in IN_FLIGHT} for key in CHOICES}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        store = Path(name) / "store"
        make_store(store, backbone, 64)
        rows = draw_rows(read_texts(None), 64, 0)
        servers = {
            key: stack.enter_context(server(OURS, store, wanted.dtype, before=before))
            for key, before in CHOICES.items()
        }
        for turn in range(rounds + 1):
            for in_flight in IN_FLIGHT:
                for key, one in servers.items() if turn % 2 else reversed(servers.items()):
                    outcome = asyncio.run(ask(one, rows, in_flight, seconds))
                    if turn:  # the first warms up
                        rates[key][str(in_flight)].append(outcome.rate)
    ratios = {
        key: {n: statistics.median(a / b for a, b in zip(own[n], rates["as it is"][n], strict=True)) for n in own}
        for key, own in rates.items()
    }
    machine = hardware(torch.get_num_threads(), None)
    told = {
        "processor": machine.processor,
        "threads": machine.threads,
        "code": code_version(),
        "quick": wanted.quick,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype),
        "ratios": ratios,
        "rates": rates,
    }
    wanted.out.mkdir(parents=True, exist_ok=True)
    path = wanted.out / f"serving-choices-{backbone.device.type}-{str(backbone.dtype).removeprefix('torch.')}.json"
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{'rows/s over those as it is':<28}", *(f"{n:>6}" for n in IN_FLIGHT))
    for key, own in ratios.items():
        print(f"{key:<28}", *(f"{own[str(n)]:>6.2f}" for n in IN_FLIGHT))


if __name__ == "__main__":
    main()
