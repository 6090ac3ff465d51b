"""The rows of the benchmark that need a CUDA device: how near to its own matrix products bert-base comes.

The backbone has bert-base's shape and random weights, made from its configuration on the spot; nothing is downloaded.
Seconds are wall time after a synchronize.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ours import ADAPTER, HEAD, ask_bare, ask_mixed, ask_one, fill_pool
from profiling import forward_flops, matmul_rate, training_flops
from rounds import now
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from registry.config import TrainingConfig
from registry.model.backbone import Backbone
from registry.model.batching import TokenRows
from registry.model.inference import LabelledRows
from registry.training.loop import train, train_together
from registry.training.state import TrainingJob

ROWS, LENGTH = 128, 128  # 16,384 tokens in one batch
MIXED_SETS, JOINT_SETS = 64, 8
SQUARE = 8_192


def measure_gpu(folder: Path, rounds: int, device: str = "cuda") -> dict[str, Any]:
    """Return the device's figures, by name; ``joint_training`` is among them only where the package can do it.

    Args:
        folder: for the random checkpoint.
        rounds: of which the median counts.
        device: a CUDA one, but for trying this out.
    """
    backbone = Backbone.load(str(random_checkpoint(folder)), device=device, dtype="bfloat16")
    rows = random_rows(backbone, ROWS)
    rate = square_rate(backbone.device, SQUARE)
    forward, one_set, mixed = forward_rates(backbone, rows, rounds)
    training = training_seconds(backbone, rows, rounds)
    lengths = [LENGTH] * ROWS
    figures = {
        "device": torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else "cpu",
        "matmul_rate": rate,
        "layer_matmul_rate": matmul_rate(backbone, ROWS * LENGTH),
        "forward_share": forward_flops(backbone, lengths, with_adapter=False) * forward / ROWS / rate,
        "one_set_share_of_bare": one_set / forward,
        "mixed_share_of_bare": mixed / forward,
        "training_share": training_flops(backbone, lengths) / training / rate,
        "forward_rows_per_second": forward,
        "training_rows_per_second": ROWS / training,
    }
    return figures | joint_training(backbone, rows, rounds)


def random_checkpoint(folder: Path, **sizes: Any) -> Path:
    """Save a random model of bert-base's shape, its tokenizer knowing no word, and return its folder."""
    place = folder / "bert-base-random"
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=30_522, **sizes)).save_pretrained(place)
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {name: index for index, name in enumerate(marks.values())}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(place)
    return place


def random_rows(backbone: Backbone, count: int, length: int = LENGTH) -> TokenRows:
    """Return rows of random words, all of one length."""
    words = backbone.encoder.embeddings.word.num_embeddings
    ids = torch.randint(1_000, words, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    return TokenRows(ids, [[0] * length for _ in ids])


def square_rate(device: torch.device, size: int) -> float:
    """Return the machine's own bfloat16 matrix-product rate, in operations per second: large squares, the median."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / statistics.median(seconds_of(lambda: left @ right, device, rounds=20, repeats=5))


def forward_rates(backbone: Backbone, rows: TokenRows, rounds: int) -> tuple[float, float, float]:
    """Return rows per second of the bare backbone, of one set, and of 64 sets in one batch; they take turns."""
    pool, one = fill_pool(backbone, MIXED_SETS), backbone.new_adapter_set(ADAPTER, HEAD).eval()
    count = len(rows)
    batches = [list(range(count))]
    owners = [torch.randperm(count, generator=torch.Generator().manual_seed(0)).remainder(MIXED_SETS).tolist()]
    works: tuple[Callable[[], object], ...] = (
        lambda: ask_bare(backbone, rows, batches),
        lambda: ask_one(backbone, one, rows, batches),
        lambda: ask_mixed(backbone, pool, rows, batches, owners),
    )
    turns = zip(*(seconds_of(work, backbone.device, rounds) for work in works), strict=True)
    columns = zip(*turns, strict=True)
    bare, one_set, mixed = (count / statistics.median(column) for column in columns)
    return bare, one_set, mixed


def training_seconds(backbone: Backbone, rows: TokenRows, rounds: int, steps: int = 8) -> float:
    """Return the seconds of one training step over all rows, the median of epochs of several steps."""
    copies = TokenRows(list(rows.input_ids) * steps, list(rows.type_ids) * steps)
    labelled = LabelledRows(copies, tuple(row % 2 for row in range(len(copies))))
    config = TrainingConfig(epochs=1, batch_size=len(rows), learning_rate=1e-3)
    adapter_set = backbone.new_adapter_set(ADAPTER, HEAD)
    epochs = seconds_of(lambda: train(backbone.encoder, adapter_set, labelled, config), backbone.device, rounds)
    return statistics.median(epochs) / steps


def joint_training(backbone: Backbone, rows: TokenRows, rounds: int) -> dict[str, float]:
    """Return how many times faster 8 sets train together than one after another, batches of 16 rows each."""
    learned = LabelledRows(rows, tuple(row % 2 for row in range(len(rows))))
    config = TrainingConfig(epochs=1, batch_size=16, learning_rate=1e-3)
    sets = [backbone.new_adapter_set(ADAPTER, HEAD, seed=seed) for seed in range(JOINT_SETS)]
    jobs = [TrainingJob(one, learned, config) for one in sets]
    works: tuple[Callable[[], object], ...] = (
        lambda: [train_together(backbone.encoder, [job]) for job in jobs],
        lambda: train_together(backbone.encoder, jobs),
    )
    turns = zip(*(seconds_of(work, backbone.device, rounds) for work in works), strict=True)
    return {"joint_training": statistics.median(apart / together for apart, together in turns)}


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int, repeats: int = 1) -> Iterator[float]:
    """Yield the seconds of ``work`` in each round, after one that warms up."""
    for turn in range(rounds + 1):
        started = now(device)
        for _ in range(repeats):
            work()
        seconds = (now(device) - started) / repeats
        if turn > 0:
            yield seconds
