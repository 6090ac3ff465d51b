"""LitServe with our predictor, which ours is measured beside. LitServe is found on PYTHONPATH.

Usage: python scripts/serving/litserve_server.py STORE PORT DTYPE ROWS SECONDS; a batch has so many rows, or those that
come within so many seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
import torch

from registry.model.backbone import Backbone
from registry.serving.predictor import Prediction, Predictor, Request
from registry.store.registry import Registry


class Answers(litserve.LitAPI):
    """One batch of any sets is one call of the predictor."""

    def __init__(self, store: Path, dtype: str, rows: int, seconds: float) -> None:
        super().__init__(max_batch_size=rows, batch_timeout=seconds)
        self.store, self.dtype = store, dtype

    def setup(self, device: str) -> None:
        """Load what answers."""
        torch.set_num_threads(1)
        backbone = Backbone.load("embedded", device=device, dtype=self.dtype)
        self.predictor = Predictor(backbone, Registry(self.store, backbone))

    def decode_request(self, request: dict[str, str]) -> Request:
        """Return the row of a request."""
        return Request(request["adapter"], request["text"])

    def batch(self, inputs: list[Request]) -> list[Request]:
        """Return rows as they are."""
        return inputs

    def predict(self, batch: list[Request]) -> list[Prediction]:
        """Return the answers."""
        return self.predictor.mixed(batch)

    def unbatch(self, output: list[Prediction]) -> list[Prediction]:
        """Return answers as they are."""
        return output

    def encode_response(self, output: Prediction) -> dict[str, Any]:
        """Return what is sent."""
        return {"reference": output.reference, "label": output.label, "probabilities": output.probabilities}


if __name__ == "__main__":
    store, port, dtype, rows, seconds = sys.argv[1:]
    api = Answers(Path(store), dtype, int(rows), float(seconds))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(port), log_level="warning", generate_client_file=False)
