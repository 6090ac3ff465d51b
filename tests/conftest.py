"""Fixtures shared by all tests: real objects, only small."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, which chooses then

from registry.model.backbone import Backbone
from tests.support.tiny_backbone import save_tiny_checkpoint

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT checkpoint: H 32, 2 layers, about 100 words."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-bert"
    save_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder: Path) -> Backbone:
    """The frozen tiny BERT on the CPU in float32."""
    return Backbone.load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session")
def embedded_backbone() -> Backbone:
    """The real embedded encoder on the CPU in float32."""
    return Backbone.load("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, where this checkout has one."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder shared/data with the real data sets is not here")
    return SHARED_DATA
