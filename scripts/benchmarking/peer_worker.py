"""The peers' side of the benchmark: a worker that runs in the peers' own virtual environment and knows nothing of ours.

It speaks JSON lines on stdin and stdout. ``{"run": "train-mrpc/adapters"}`` does that contender's rows once and is
answered ``{"seconds": s}``; ``{"score": {...}}`` trains and is answered with predictions; ``{"forget": true}`` frees
the models. Building a model is not timed; padding a batch is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import adapters
import peft
import torch
from adapters.composition import BatchSplit
from peer_onnx import OnnxModel
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel

BATCH, NOTEBOOK_BATCH, NOTEBOOK_LENGTH = 16, 8, 512
MIXED_SETS = 16
LEARNING_RATES = {"adapters": 1e-3, "adapters_lora": 1e-3, "peft": 1e-3, "full": 1e-4, "notebook": 1e-3}

Rows = dict[str, list[Any]]
Inputs = dict[str, Tensor]


class NotebookAdapter(nn.Module):
    """The lab notebook's layer: a transformer layer, then down, relu, up and a residual."""

    def __init__(self, layer: nn.Module, hidden_size: int, reduction_factor: int = 16) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(hidden_size, hidden_size // reduction_factor)
        self.up = nn.Linear(hidden_size // reduction_factor, hidden_size)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the layer's outputs, the adapter added to its states."""
        states, *rest = self.layer(*inputs, **named)
        return (states + self.up(torch.relu(self.down(states))), *rest)


class Peers:
    """Every contender of the peers, built when it is first asked for.

    Args:
        job: checkpoint folder, device, token rows of each task, and the mixed batches.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.device = torch.device(job["device"])
        self.built: dict[str, Callable[[], None]] = {}

    def seconds(self, name: str) -> float:
        """Return how long one go of a contender took, or one switch of a switching one."""
        if name not in self.built:
            self.built[name] = self.build(name)
        started = self.now()
        self.built[name]()
        return self.now() - started

    def now(self) -> float:
        """Return seconds of this process's CPU time, or of wall time once a GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def build(self, name: str) -> Callable[[], None]:
        """Return one go of the contender ``group/key``."""
        group, key = name.split("/")
        kind, _, task = group.partition("-")
        if kind == "train":
            return self.training(key, self.job["rows"][task])
        if kind == "infer":
            return self.inference(key, self.job["rows"][task])
        if kind == "mixed":
            return self.mixed(key, self.job["rows"][task])
        return self.switching(key)

    def training(self, key: str, rows: Rows) -> Callable[[], None]:
        """Return one epoch of training."""
        model = self.model(key)
        length = None
        size = BATCH
        if key == "notebook":
            rows = {field: values[: self.job["notebook_rows"]] for field, values in rows.items()}
            length, size = NOTEBOOK_LENGTH, NOTEBOOK_BATCH
        return lambda: train(model, rows, epochs=1, rate=LEARNING_RATES[key], batch_size=size, length=length)

    def inference(self, key: str, rows: Rows) -> Callable[[], None]:
        """Return answering all rows, in random order or (``_sorted``, ONNX Runtime) in order of length."""
        if key.startswith("onnx"):
            exported = OnnxModel(self.plain("full").cpu(), int8=key == "onnx_int8")  # as with a LoRA merged into it
            order = sorted(range(len(rows["labels"])), key=lambda row: len(rows["input_ids"][row]))
            cpu = torch.device("cpu")
            return lambda: exported.logits([pad(rows, batch, cpu) for batch in cut(order, BATCH)])
        model = self.model(key.removesuffix("_sorted")).eval()
        order = shuffled(len(rows["labels"]), seed=0)
        if key.endswith("_sorted"):
            order.sort(key=lambda row: len(rows["input_ids"][row]))
        return lambda: answer(model, rows, list(cut(order, BATCH)))

    def mixed(self, key: str, rows: Rows) -> Callable[[], None]:
        """Return answering the mixed batches, or the same batches by the library's bare model."""
        batches: list[list[int]] = self.job["mixed"]["batches"]
        owners: list[list[int]] = self.job["mixed"]["sets"]
        names = [f"set{number}" for number in range(MIXED_SETS)]
        if key.endswith("_bare"):
            bare = self.plain("adapters" if key == "adapters_bare" else "full").eval()
            return lambda: answer(bare, rows, batches)
        if key == "peft":
            model = self.with_lora(names).eval()
            chosen = [{"adapter_names": [names[owner] for owner in each]} for each in owners]
            return lambda: answer(model, rows, batches, chosen)
        sizes = [sum(owner == number for owner in owners[0]) for number in range(MIXED_SETS)]
        lora = key == "adapters_lora"
        model = self.with_bottlenecks(names, lora).eval()  # the blocks are set once, which is as kind as can be
        model.set_active_adapters(BatchSplit(*names, batch_sizes=sizes))
        model.active_head = BatchSplit(*names, batch_sizes=sizes)
        blocks = [
            [row for _, row in sorted(zip(owner, batch, strict=True))]
            for owner, batch in zip(owners, batches, strict=True)
        ]
        return lambda: answer(model, rows, blocks)

    def switching(self, key: str) -> Callable[[], None]:
        """Return going through the loaded sets of ``library-N``, ``job['switches']`` switches in all."""
        library, count = key.split("-")
        names = [f"set{number}" for number in range(int(count))]
        sequence = [names[place % len(names)] for place in range(1, self.job["switches"] + 1)]
        model = self.with_lora(names) if library == "peft" else self.with_bottlenecks(names)
        switch = model.set_adapter if library == "peft" else model.set_active_adapters

        def switch_all() -> None:
            for name in sequence:
                switch(name)

        return switch_all

    def model(self, key: str) -> nn.Module:
        """Return a fresh model of one contender with one set, what trains chosen as its users do."""
        torch.manual_seed(self.job["seed"])
        if key in ("adapters", "adapters_lora"):
            return self.with_bottlenecks(["set0"], lora=key == "adapters_lora")
        if key == "peft":
            return self.with_lora(["set0"])
        if key == "bare":
            return BertModel.from_pretrained(self.job["checkpoint"]).to(self.device)
        if key not in ("full", "notebook"):
            raise ValueError(f"no contender is called {key}")
        model = self.plain("full")
        if key == "notebook":
            model.bert.requires_grad_(False)
            layers = model.bert.encoder.layer
            for index, layer in enumerate(layers):
                layers[index] = NotebookAdapter(layer, model.config.hidden_size).to(self.device)
        return model

    def plain(self, library: str) -> nn.Module:
        """Return the model that the library starts from."""
        if library == "adapters":
            return adapters.BertAdapterModel.from_pretrained(self.job["checkpoint"]).to(self.device)
        return BertForSequenceClassification.from_pretrained(self.job["checkpoint"], num_labels=2).to(self.device)

    def with_bottlenecks(self, names: Sequence[str], lora: bool = False) -> nn.Module:
        """Return the ``adapters`` model with one seq_bn adapter, or LoRA, and one linear head for each name."""
        model = self.plain("adapters")
        config = adapters.LoRAConfig(r=8, alpha=16) if lora else adapters.SeqBnConfig(reduction_factor=16)
        for name in names:
            model.add_adapter(name, config=config)
            model.add_classification_head(name, num_labels=2, layers=1)
        model.train_adapter(names[0])
        model.active_head = names[0]
        return model.to(self.device)

    def with_lora(self, names: Sequence[str]) -> nn.Module:
        """Return the ``peft`` model with one LoRA of rank 8 on queries and values, and a classifier, for each name."""
        config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        model = peft.get_peft_model(self.plain("full"), config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
        model.set_adapter(names[0])
        return model.to(self.device)

    def score(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train a fresh model on a file of rows and return its predictions for that file's other rows."""
        splits = json.loads(Path(request["rows"]).read_text())
        key, started = request["contender"], self.now()
        model = self.model(key)
        train(model, splits["train"], epochs=request["epochs"], rate=LEARNING_RATES[key], batch_size=BATCH)
        seconds = self.now() - started
        held = splits["reported"]
        order = sorted(range(len(held["labels"])), key=lambda row: len(held["input_ids"][row]))
        batches = list(cut(order, BATCH))
        found = {"predictions": in_order(order, answer(model.eval(), held, batches))}
        if request.get("onnx"):
            merged, padded = model.merge_and_unload().cpu(), [pad(held, each, torch.device("cpu")) for each in batches]
            for name in ("onnx", "onnx_int8"):
                found[name] = in_order(order, OnnxModel(merged, int8=name == "onnx_int8").logits(padded))
        return {**found, "seconds": seconds, "learning_rate": LEARNING_RATES[key]}


def in_order(order: Sequence[int], logits: Sequence[Tensor]) -> list[int]:
    """Return the most probable class of each row, rows back in the order in which they stand."""
    predictions = [0] * len(order)
    for row, label in zip(order, torch.cat(list(logits)).argmax(-1).tolist(), strict=True):
        predictions[row] = label
    return predictions


def train(
    model: nn.Module, rows: Rows, *, epochs: int, rate: float, batch_size: int, length: int | None = None
) -> None:
    """Train with what transformers' Trainer does: fused AdamW, clipping, warm-up, linear decay, random order."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    count = len(rows["labels"])
    batches = [batch for epoch in range(epochs) for batch in cut(shuffled(count, epoch), batch_size)]
    warmup = max(1, round(0.06 * len(batches)))
    for step, batch in enumerate(batches):
        inputs = pad(rows, batch, next(model.parameters()).device, length)
        labels = torch.tensor([rows["labels"][row] for row in batch], device=inputs["input_ids"].device)
        loss = nn.functional.cross_entropy(model(**inputs).logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warmup, (len(batches) - step) / max(1, len(batches) - warmup))
        optimizer.step()
        optimizer.zero_grad()
        loss.item()


@torch.inference_mode()
def answer(
    model: nn.Module, rows: Rows, batches: Sequence[Sequence[int]], named: Iterable[dict[str, Any]] | None = None
) -> list[Tensor]:
    """Return the logits of each batch; nothing for a model without a head or with many."""
    device = next(model.parameters()).device
    extra = named if named is not None else [{}] * len(batches)
    outputs = [model(**pad(rows, batch, device), **more) for batch, more in zip(batches, extra, strict=True)]
    return [output.logits for output in outputs if isinstance(getattr(output, "logits", None), Tensor)]


def pad(rows: Rows, batch: Sequence[int], device: torch.device, length: int | None = None) -> Inputs:
    """Return the batch padded to its longest row, or to ``length``."""
    width = length or max(len(rows["input_ids"][row]) for row in batch)
    ids, types, mask = [], [], []
    for row in batch:
        spare = [0] * (width - len(rows["input_ids"][row]))
        ids.append(rows["input_ids"][row] + spare)
        types.append(rows["type_ids"][row] + spare)
        mask.append([1] * (width - len(spare)) + spare)
    named = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: torch.tensor(values, device=device) for name, values in named.items()}


def shuffled(count: int, seed: int) -> list[int]:
    """Return 0 to ``count`` - 1 in an order that the seed decides."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def cut(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield ``order`` in pieces of ``size``."""
    for first in range(0, len(order), size):
        yield list(order[first : first + size])


def reply(peers: Peers, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one line; what goes wrong is an answer too, so that the other contenders go on."""
    try:
        if "run" in request:
            return {"seconds": peers.seconds(request["run"])}
        if "score" in request:
            return peers.score(request["score"])
        peers.built.clear()
        return {}
    except Exception as err:
        return {"failed": f"{type(err).__name__}: {' '.join(str(err).split())[:160]}"}


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like an answer
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    peers = Peers(json.loads(Path(sys.argv[1]).read_text()))
    versions = {name: metadata.version(name) for name in ("adapters", "peft", "transformers", "torch", "onnxruntime")}
    answers.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(reply(peers, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
