"""Make the folder that scripts/gpu needs on a machine without a network: the embedded encoder, and tokenised rows.

Weights travel as float16 with high and low bytes apart, as they pack better so: an encoder there is the embedded one up
to that rounding. Rows travel as token ids without their text. All is 58 MB, of which IMDB's rows are 13.
Usage: .venv/bin/python scripts/on_gpu/carry.py DATA FOLDER, DATA being a folder as scripts/benchmark wants it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy
import pandas
import torch
from safetensors.torch import load_file, save_file

from registry.model.backbone import Backbone
from registry.model.batching import TokenRows
from registry.model.pretrained import locate

LENGTHS = {"mrpc": 128, "sst2": 128, "imdb": 256}
TEXTS = {"mrpc": ("sentence1", "sentence2"), "sst2": ("sentence",), "imdb": ("text",)}
SPLITS = {"mrpc": ("train", "test"), "sst2": ("train", "validation"), "imdb": ("train", "test")}
FOLDERS = {"mrpc": "glue/mrpc", "sst2": "glue/sst2", "imdb": "imdb"}


def main(data: Path, folder: Path) -> None:
    """Write the folder."""
    carry_encoder(folder / "embedded")
    backbone = Backbone.load("embedded", device="cpu")
    for task, columns in TEXTS.items():
        for split in SPLITS[task]:
            frames = [pandas.read_parquet(path) for path in sorted((data / FOLDERS[task]).glob(f"{split}*.parquet"))]
            frame = pandas.concat(frames)
            texts = [frame[column].tolist() for column in columns]
            rows = backbone.tokenize(*texts, max_length=LENGTHS[task])
            numpy.savez_compressed(folder / f"{task}-{split}.npz", **packed(rows), labels=frame["label"].to_numpy())
            print(f"{task} {split}: {len(rows):,} rows of at most {LENGTHS[task]} tokens", flush=True)


def carry_encoder(folder: Path) -> None:
    """Pack the embedded encoder, its weights as float16."""
    source = locate("embedded")
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder / path.name)
    weights = load_file(source / "model.safetensors")
    halves = {name: tensor.half() for name, tensor in weights.items() if tensor.dtype == torch.float32}
    planes = {
        name: numpy.frombuffer(tensor.numpy().tobytes(), numpy.uint8).reshape(-1, 2).T
        for name, tensor in halves.items()
    }
    shapes = {f"{name} shape": numpy.asarray(tensor.shape) for name, tensor in halves.items()}
    numpy.savez_compressed(folder / "weights.npz", **planes, **shapes)


def unpacked_encoder(packed: Path, folder: Path) -> Path:
    """Return ``folder`` with a checkpoint of what ``carry_encoder`` packed."""
    shutil.copytree(packed, folder, ignore=shutil.ignore_patterns("weights.npz"))
    with numpy.load(packed / "weights.npz") as file:
        names = [name for name in file.files if not name.endswith(" shape")]
        halves = {name: numpy.ascontiguousarray(file[name].T).view(numpy.float16) for name in names}
        tensors = {name: torch.from_numpy(halves[name].reshape(file[f"{name} shape"])).float() for name in names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def packed(rows: TokenRows) -> dict[str, numpy.ndarray]:
    """Return all token ids in one array, where each row begins, and where its second text does."""
    return {
        "ids": numpy.concatenate([numpy.asarray(ids, dtype=numpy.uint16) for ids in rows.input_ids]),
        "lengths": numpy.asarray([len(ids) for ids in rows.input_ids], dtype=numpy.uint16),
        "firsts": numpy.asarray([types.count(0) for types in rows.type_ids], dtype=numpy.uint16),
    }


def unpacked(path: Path) -> tuple[TokenRows, tuple[int, ...]]:
    """Return the rows of one file and their labels."""
    with numpy.load(path) as file:
        lengths, firsts = file["lengths"].tolist(), file["firsts"].tolist()
        ids = numpy.split(file["ids"].astype(numpy.int64), numpy.cumsum(file["lengths"].astype(numpy.int64))[:-1])
        labels = tuple(int(label) for label in file["labels"])
    types = [[0] * first + [1] * (length - first) for first, length in zip(firsts, lengths, strict=True)]
    return TokenRows([row.tolist() for row in ids], types), labels


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
