"""A model of the peers as ONNX Runtime answers with it: exported once, in float32 or with int8 weights.

Runs in the peers' own virtual environment. int8 is ONNX Runtime's dynamic quantisation of all products.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxModel:
    """The logits of a classifier, on one thread of a CPU.

    Args:
        model: takes ``INPUTS`` and gives logits.
        int8: quantise its weights.
    """

    def __init__(self, model: nn.Module, int8: bool) -> None:
        logging.getLogger().setLevel(logging.ERROR)
        sample = torch.ones(2, 8, dtype=torch.long)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "model.onnx"
            torch.onnx.export(
                model.eval(), (sample, sample, torch.zeros_like(sample)), str(path), dynamo=False, opset_version=17,
                input_names=list(INPUTS), output_names=["logits"],
                dynamic_axes={each: {0: "rows", 1: "tokens"} for each in INPUTS},
            )  # fmt: skip
            if int8:
                quantize_dynamic(str(path), str(path), weight_type=QuantType.QInt8)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])

    def logits(self, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Return the (B, C) logits of padded batches."""
        feeds = ({name: batch[name].numpy() for name in INPUTS} for batch in batches)
        return [torch.from_numpy(self._session.run(["logits"], feed)[0]) for feed in feeds]
