"""Backbones that a set was not made for: as near to the right one as can be, each in one respect another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_backbone import save_tiny_checkpoint

Maker = Callable[[Path, Path], None]  # makes a checkpoint like the first folder's in the second
WEIGHTS = "model.safetensors"
LAST_LAYER = "encoder.layer.1."


def _with_config(**changes: object) -> Maker:
    """Return a maker of the same weights under another configuration."""

    def make(like: Path, folder: Path) -> None:
        shutil.copytree(like, folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def _with_weights(change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Maker:
    """Return a maker of other weights under the same configuration, or one that fits them."""

    def make(like: Path, folder: Path) -> None:
        _with_config(**config)(like, folder)
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})

    return make


def _with_tokenizer(change: Callable[[dict[str, Any]], object]) -> Maker:
    """Return a maker of the same model with another tokenizer."""

    def make(like: Path, folder: Path) -> None:
        shutil.copytree(like, folder)
        path = folder / "tokenizer.json"
        plain = json.loads(path.read_text())
        change(plain)
        path.write_text(json.dumps(plain))

    return make


def _new(family: str = "bert", seed: int = 0, **sizes: object) -> Maker:
    """Return a maker of another random checkpoint."""

    def make(like: Path, folder: Path) -> None:
        save_tiny_checkpoint(folder, family, seed, **sizes)

    return make


def _nudge(tensors: dict[str, torch.Tensor]) -> None:
    """Move one weight of all to the next number that a float32 can be."""
    weight = tensors["encoder.layer.0.output.dense.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))


def _drop_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith(LAST_LAYER)]:
        del tensors[name]


def _repeat_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith(LAST_LAYER)]:
        tensors[name.replace(LAST_LAYER, "encoder.layer.2.")] = tensors[name].clone()


def _round(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = tensor.half()


def _swap_words(plain: dict[str, Any]) -> None:
    words = plain["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]


def _swap_marks(plain: dict[str, Any]) -> None:
    marks = plain["post_processor"]["special_tokens"]
    marks["[CLS]"]["ids"], marks["[SEP]"]["ids"] = marks["[SEP]"]["ids"], marks["[CLS]"]["ids"]


def _lengthen_words(tensors: dict[str, torch.Tensor]) -> None:
    name = "embeddings.word_embeddings.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][-1:]])


BACKBONES: tuple[tuple[str, str, Maker], ...] = (
    ("other weights of the same shapes", "backbone", _new(seed=1)),
    ("one weight one bit away", "backbone", _with_weights(_nudge)),
    ("weights rounded to half", "backbone", _with_weights(_round)),
    ("another activation", "backbone", _with_config(hidden_act="relu")),
    ("another epsilon", "backbone", _with_config(layer_norm_eps=1e-5)),
    ("other heads", "backbone", _with_config(num_attention_heads=2)),
    ("another family with the same weights", "backbone", _with_config(model_type="roberta")),
    ("another family", "backbone", _new("electra")),
    ("one layer fewer", "backbone", _with_weights(_drop_layer, num_hidden_layers=1)),
    ("one layer more", "backbone", _with_weights(_repeat_layer, num_hidden_layers=3)),
    ("another hidden size", "backbone", _new(hidden_size=64)),
    ("another feed-forward size", "backbone", _new(intermediate_size=128)),
    ("a larger vocabulary", "backbone", _with_weights(_lengthen_words, vocab_size=161)),
    ("a tokenizer that keeps capitals", "tokenizer",
     _with_tokenizer(lambda p: p["normalizer"].update(lowercase=False))),
    ("a tokenizer that keeps accents", "tokenizer",
     _with_tokenizer(lambda p: p["normalizer"].update(strip_accents=False))),
    ("a tokenizer with other special tokens", "tokenizer", _with_tokenizer(_swap_marks)),
    ("a tokenizer without special tokens", "tokenizer", _with_tokenizer(lambda p: p.update(post_processor=None))),
    ("a tokenizer with two words swapped", "tokenizer", _with_tokenizer(_swap_words)),
    ("a tokenizer with a word more", "tokenizer", _with_tokenizer(lambda p: p["model"]["vocab"].update(extra=150))),
    ("a tokenizer of longer unknown words", "tokenizer",
     _with_tokenizer(lambda p: p["model"].update(max_input_chars_per_word=20))),
)  # fmt: skip
