"""What the peers do with the same rows: peft's LoRA, and transformers with the same bottleneck added by hooks.

Both in bfloat16 throughout (their fastest), padded to the longest row of a batch, AdamW fused, no progress and no
logging: a bare loop, not their trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ours
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from registry.model.batching import TokenRows
from registry.model.inference import LabelledRows

ANSWER_ROWS = 64
REDUCTION = 16


class Bottleneck(nn.Module):
    """Down, relu, up, added to what it was given."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, hidden_size // REDUCTION)
        self.up = nn.Linear(hidden_size // REDUCTION, hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Return the states and what the bottleneck adds."""
        added: Tensor = states + self.up(F.relu(self.down(states)))
        return added


class Peer:
    """A stock classifier with LoRA on queries and values by peft, or a bottleneck after each layer by hooks."""

    def __init__(self, checkpoint: Path, method: str, device: str) -> None:
        model: Any = BertForSequenceClassification.from_pretrained(checkpoint, num_labels=2, dtype=torch.bfloat16)
        model.requires_grad_(False)
        if method == "lora":
            import peft

            config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
            model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        else:
            model.classifier.requires_grad_(True)
            model.bottlenecks = nn.ModuleList(Bottleneck(model.config.hidden_size) for _ in model.bert.encoder.layer)
            for layer, bottleneck in zip(model.bert.encoder.layer, model.bottlenecks, strict=True):
                layer.output.register_forward_hook(_add(bottleneck))
        self.device = torch.device(device)
        self.model = model.to(self.device, torch.bfloat16)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def train(self, rows: LabelledRows) -> None:
        """Train one epoch in batches of 16 rows in random order."""
        self.model.train()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        for chosen in _batches(order, ours.BATCH):
            inputs = padded(rows.tokens.take(chosen), self.device)
            labels = torch.tensor([rows.labels[i] for i in chosen], device=self.device)
            loss = self.model(**inputs, labels=labels).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def answer(self, rows: TokenRows) -> list[list[float]]:
        """Return the logits of all rows, in batches of 64 in order of length."""
        self.model.eval()
        order = sorted(range(len(rows)), key=lambda i: len(rows.input_ids[i]))
        parts = [self.model(**padded(rows.take(chosen), self.device)).logits for chosen in _batches(order, ANSWER_ROWS)]
        return torch.cat(parts).tolist()  # type: ignore[no-any-return]


def stock_latency(checkpoint: Path, row: TokenRows, device: str) -> Callable[[], list[list[float]]]:
    """Return the answer of a stock model with no adapter for one row."""
    model = BertForSequenceClassification.from_pretrained(checkpoint, num_labels=2, dtype=torch.bfloat16)
    model = model.to(device).eval()  # type: ignore[arg-type]

    @torch.inference_mode()
    def answer() -> list[list[float]]:
        return model(**padded(row, torch.device(device))).logits.tolist()  # type: ignore[no-any-return]

    return answer


def padded(rows: TokenRows, device: torch.device) -> dict[str, Tensor]:
    """Return what the stock model is given."""
    longest = max(len(ids) for ids in rows.input_ids)
    ids = torch.tensor([[*own, *[0] * (longest - len(own))] for own in rows.input_ids])
    mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in rows.input_ids])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _add(bottleneck: Bottleneck) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return bottleneck(output)  # type: ignore[no-any-return]

    return hook
