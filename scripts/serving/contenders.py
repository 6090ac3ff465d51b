"""Servers that ours is measured beside, each a process: one request one forward, and peft behind FastAPI.

Usage: python scripts/serving/contenders.py KIND STORE PORT DTYPE. peft is found on PYTHONPATH.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from scene import HEAD, LENGTH

from registry.model.backbone import Backbone
from registry.model.pretrained import locate
from registry.serving.predictor import Predictor
from registry.store.registry import Registry


def make_predictor(store: Path, dtype: str) -> Predictor:
    """Return what answers."""
    backbone = Backbone.load("embedded", device="auto", dtype=dtype)
    return Predictor(backbone, Registry(store, backbone))


def one_forward(store: Path, port: int, dtype: str) -> None:
    """Serve each request by a forward of its own, from FastAPI's threads, one at a time."""
    predictor, app, lock = make_predictor(store, dtype), FastAPI(), threading.Lock()

    @app.post("/predict")
    def predict(row: dict[str, str]) -> Any:
        with lock:
            (answer,) = predictor(row["adapter"], [row["text"]])
        return {"reference": answer.reference, "label": answer.label, "probabilities": answer.probabilities}

    uvicorn.run(app, port=port, log_level="warning")


def peft_behind_fastapi(store: Path, port: int, dtype: str) -> None:
    """Serve LoRA sets by peft's ``adapter_names``, each request by a forward of its own."""
    import peft
    from transformers import AutoTokenizer, BertForSequenceClassification

    checkpoint = locate("embedded")
    names = sorted(path.name for path in store.iterdir() if (path / "versions").is_dir())
    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    plain = BertForSequenceClassification.from_pretrained(str(checkpoint), num_labels=len(HEAD.label_names))
    model = peft.get_peft_model(plain, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model = model.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).eval()
    tokenizer, app, lock = AutoTokenizer.from_pretrained(str(checkpoint)), FastAPI(), threading.Lock()

    @app.post("/predict")
    def predict(row: dict[str, str]) -> Any:
        with lock, torch.inference_mode():
            inputs = tokenizer([row["text"]], truncation=True, max_length=LENGTH, return_tensors="pt")
            shares = model(**inputs, adapter_names=[row["adapter"]]).logits.float().softmax(-1)[0].tolist()
        label = HEAD.label_names[shares.index(max(shares))]
        named = dict(zip(HEAD.label_names, shares, strict=True))
        return {"reference": row["adapter"], "label": label, "probabilities": named}

    uvicorn.run(app, port=port, log_level="warning")


KINDS = {"one_forward": one_forward, "peft": peft_behind_fastapi}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
