"""The settings that were tried for the default recipe, each on the same rows held out of a training set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy
import torch

from registry.config import (
    AdapterConfig,
    BitFitConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
    TrainingConfig,
)
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows, predict_probabilities
from registry.tasks.loading import load_task
from registry.tasks.metrics import score
from registry.tasks.rows import Rows
from registry.tasks.spec import find_task
from registry.training.loop import train
from registry.validation import from_plain

RESULTS = Path("reports/tuning.jsonl")
SIZES = {
    "mrpc": (2600, 1000, 128),
    "sst2": (4000, 2000, 64),
    "imdb": (3000, 1000, 64),
}  # rows to train on, rows held out, longest length


def adapters(placement: str, learning_rate: float, epochs: int = 4, **choices: Any) -> dict[str, Any]:
    """Return a setting with bottlenecks."""
    return {"method": placement, "learning_rate": learning_rate, "epochs": epochs, **choices}


def baseline(method: str, learning_rate: float, epochs: int, **choices: Any) -> dict[str, Any]:
    """Return a setting without bottlenecks."""
    return {"method": method, "learning_rate": learning_rate, "epochs": epochs, **choices}


def method(name: str, learning_rate: float, epochs: int = 3, **choices: Any) -> dict[str, Any]:
    """Return a setting of another method, with the default recipe's head."""
    return {"method": name, "learning_rate": learning_rate, "epochs": epochs, "head_dropout": 0.1, **choices}


ATTENTION, PRODUCTS = ["query", "value"], ["query", "key", "value", "attention_dense", "ffn_in", "ffn_out"]
OTHERS: dict[str, type[LoraConfig | Ia3Config | BitFitConfig | PrefixConfig]] = {
    "lora": LoraConfig,
    "ia3": Ia3Config,
    "bitfit": BitFitConfig,
    "prefix": PrefixConfig,
}
WIDE = {"reduction_factor": 8, "dropout": 0.1, "head_dropout": 0.1}
GRID: dict[str, list[dict[str, Any]]] = {
    "mrpc": [
        *(method("lora", rate, rank=8, targets=some) for rate in (1e-3, 3e-3) for some in (ATTENTION, PRODUCTS)),
        method("lora", 1e-3, rank=16, targets=PRODUCTS),
        *(method("ia3", rate) for rate in (5e-3, 2e-2)),
        *(method("bitfit", rate) for rate in (2e-3, 5e-3)),
        *(method("prefix", rate, length=30) for rate in (5e-3, 2e-2)),
        adapters("after_layer", 4e-3),
        adapters("after_layer", 2e-3),
        adapters("houlsby", 2e-3),
        adapters("pfeiffer", 2e-3),
        adapters("houlsby", 1e-3, **WIDE),
        adapters("houlsby", 1.5e-3, epochs=3, **WIDE),
        baseline("full_fine_tuning", 1e-4, epochs=3),
        baseline("full_fine_tuning", 1e-4, epochs=2, head_dropout=0.1),
    ],
    "sst2": [
        *(method("lora", rate, rank=8, targets=some) for rate in (1e-3, 3e-3) for some in (ATTENTION, PRODUCTS)),
        *(method("ia3", rate) for rate in (5e-3, 2e-2)),
        *(method("bitfit", rate) for rate in (2e-3, 5e-3)),
        *(method("prefix", rate, length=30) for rate in (5e-3, 2e-2)),
        adapters("after_layer", 2e-3, epochs=2),
        adapters("houlsby", 2e-3, epochs=3),
        adapters("houlsby", 1e-3, epochs=3, **WIDE),
        adapters("houlsby", 1e-3, epochs=3, layer_norms=True),
        adapters("pfeiffer", 1e-3, epochs=3, **WIDE),
        adapters("pfeiffer", 2e-3, epochs=3, **WIDE),
        adapters("pfeiffer", 1e-3, epochs=2, **WIDE),
        adapters("after_layer", 2e-3, epochs=3, **WIDE),
        baseline("full_fine_tuning", 1e-4, epochs=2),
        baseline("full_fine_tuning", 1e-4, epochs=3, head_dropout=0.1),
        baseline("head_only", 1e-2, epochs=2),
        baseline("head_only", 3e-3, epochs=2),
    ],
    "imdb": [
        adapters("pfeiffer", 2e-3, epochs=1, batch_size=8, **WIDE),
        adapters("pfeiffer", 1e-3, epochs=1, batch_size=8, **WIDE),
        adapters("pfeiffer", 4e-3, epochs=1, batch_size=8, **WIDE),
        adapters("pfeiffer", 2e-3, epochs=2, batch_size=8, **WIDE),
        adapters("pfeiffer", 1e-3, epochs=2, batch_size=8, **WIDE),
        adapters("houlsby", 2e-3, epochs=1, batch_size=8, **WIDE),
        baseline("full_fine_tuning", 1e-4, epochs=1, batch_size=8, head_dropout=0.1),
        baseline("full_fine_tuning", 1e-4, epochs=2, batch_size=8, head_dropout=0.1),
    ],
}


def main() -> None:
    """Run every setting that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="hub", help="hub or a folder of parquet files")
    parser.add_argument("--dtype", default="bfloat16", help="of the backbone; float32 where bfloat16 is no faster")
    parser.add_argument("--only", default="", help="only settings whose JSON holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    tried = [{"task": each["task"], **each["setting"]} for each in done]
    backbone = Backbone.load("embedded", device="cpu", dtype=options.dtype)
    for task, settings in GRID.items():
        for setting in settings:
            if {"task": task, **setting} in tried or options.only not in json.dumps({"task": task, **setting}):
                continue
            dtype = {} if options.dtype == "bfloat16" else {"dtype": options.dtype}
            result = {"task": task, "setting": setting, **run(backbone, task, setting, options.data), **dtype}
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def run(backbone: Backbone, task: str, setting: dict[str, Any], source: str) -> dict[str, float]:
    """Return the scores of one setting on the held-out rows."""
    rows_to_train, rows_held, max_length = SIZES[task]
    data = load_task(find_task(task), source)
    order = numpy.random.default_rng(0).permutation(len(data.train)).tolist()
    held, learned = order[:rows_held], order[rows_held : rows_held + rows_to_train]

    def tokenize(rows: Rows) -> LabelledRows:
        return LabelledRows(backbone.tokenize(rows.texts, rows.pairs, max_length), rows.labels)

    head = HeadConfig(label_names=data.spec.label_names, dropout=setting.get("head_dropout", 0.0))
    unfreezes = setting["method"] == "full_fine_tuning"
    adapter: MethodConfig | None = None
    if setting["method"] in OTHERS:
        choices = {name: setting[name] for name in ("rank", "targets", "length") if name in setting}
        adapter = from_plain(OTHERS[setting["method"]], {"method": setting["method"], **choices})
    elif setting["method"] not in ("full_fine_tuning", "head_only"):
        names = ("reduction_factor", "dropout", "layer_norms")
        adapter = AdapterConfig(placement=setting["method"], **{n: setting[n] for n in names if n in setting})
    adapter_set = backbone.new_adapter_set(adapter, head)
    encoder = backbone.unfrozen_copy() if unfreezes else backbone.encoder
    training = TrainingConfig(
        epochs=setting["epochs"],
        learning_rate=setting["learning_rate"],
        batch_size=setting.get("batch_size", 16),
        max_length=max_length,
    )
    autocast = backbone.dtype if unfreezes and backbone.dtype != torch.float32 else None
    result = train(encoder, adapter_set, tokenize(data.train.take(learned)), training, autocast_dtype=autocast)
    tested = tokenize(data.train.take(held))
    answers = predict_probabilities(encoder, adapter_set, tested.tokens, autocast)
    scores = score("classification", tested.labels, answers, ("accuracy", "f1_binary"))
    return {**{name: round(value, 4) for name, value in scores.items()}, "final_loss": round(result.final_loss, 4)}


if __name__ == "__main__":
    main()
