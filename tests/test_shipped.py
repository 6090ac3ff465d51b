"""What the repository ships: trained sets that load and answer well, and reports that hold no text of a data set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from registry.bench.records import read_predictions, read_records
from registry.model.backbone import Backbone
from registry.model.inference import predict_probabilities
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.tasks.loading import load_task
from registry.tasks.metrics import score
from registry.tasks.spec import BUILT_IN, find_task
from tests.support.command_line import call, succeed

HERE = Path(__file__).parents[1]
STORE = HERE / "adapters_store"
REPORTS = HERE / "reports"


@pytest.fixture(scope="module")
def shipped(embedded_backbone: Backbone) -> Registry:
    """The store of the repository, on the backbone it belongs to."""
    return Registry(STORE, embedded_backbone)


def test_a_store_of_the_shipped_sets_is_made_anywhere(tmp_path: Path) -> None:
    """Once or twice: every set is there once, with the tensors of the package."""
    store = ("--store", tmp_path / "store")
    for _ in range(2):
        assert "has imdb:1, mrpc:1, sst2:1" in succeed(*store, "init", "--shipped").out
    assert "positive 0.9" in succeed(*store, "predict", "sst2", "a gripping, beautifully acted film").out
    told = call(*store, "init", "--shipped", "--backbone", "elsewhere")
    assert (2, True) == (told.code, "--backbone: expected none beside --shipped" in told.message)


def test_a_wheel_brings_the_shipped_sets(tmp_path: Path) -> None:
    """Installed somewhere else, without the checkout, the package makes a store of them, and has its page whole."""
    tree = tmp_path / "tree"
    names = ("registry", "adapters_store", "pyproject.toml", "README.md", "LICENSE")
    tree.mkdir()
    for name in names:
        copy = shutil.copytree if (HERE / name).is_dir() else shutil.copy
        copy(HERE / name, tree / name)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    subprocess.run([*pip, "--target", tmp_path / "site", tree], check=True, capture_output=True)
    shutil.rmtree(tree)
    lines = (
        "from pathlib import Path",
        "from registry.store.shipped import copy_shipped, open_shipped",
        "from registry.web.page import PlaygroundPage",
        "PlaygroundPage()",
        "print(*copy_shipped(Path('store')), open_shipped().root)",
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    python = (sys.executable, "-c", "\n".join(lines))
    run = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    expected = tmp_path / "site" / "registry" / "store" / "shipped"
    assert f"imdb:1 mrpc:1 sst2:1 {expected}" == run.stdout.strip()


def test_shipped_sets_are_whole(shipped: Registry) -> None:
    """Every set in adapters_store passes all checks, and none was trained on the sample."""
    assert sorted(BUILT_IN) == sorted(shipped)
    assert [] == shipped.verify()
    for name in shipped:
        manifest = shipped.manifest(name)
        assert manifest.data is not None
        assert not manifest.data.sample
        assert manifest.main_metric in manifest.scores


def test_shipped_sets_answer_the_obvious(shipped: Registry) -> None:
    """Clear texts get the right label, in one mixed batch."""
    predictor = Predictor(shipped.backbone, shipped)
    rows = [
        ("sst2", "a gripping, beautifully acted film"),
        ("sst2", "a dull, lifeless mess"),
        ("mrpc", "The bank cut its rates on Friday.", "On Friday, the bank cut its rates."),
        ("mrpc", "The bank cut its rates on Friday.", "The team won the final in extra time."),
        ("imdb", "One of the best films I have ever seen, wonderful from start to finish."),
        ("imdb", "Terrible. The worst film I have seen in years, a complete waste of time."),
    ]
    expected = ["positive", "negative", "equivalent", "not_equivalent", "pos", "neg"]
    assert expected == [answer.label for answer in predictor.mixed(rows)]


@pytest.mark.slow
def test_shipped_set_scores_as_its_manifest_says(shipped: Registry, shared_data: Path) -> None:
    """The MRPC set scores on real rows what its manifest claims; it was measured in bfloat16, so nearly."""
    data = load_task(find_task("mrpc"), str(shared_data))
    manifest = shipped.manifest("mrpc")
    tokens = shipped.backbone.tokenize(data.reported.texts, data.reported.pairs, manifest.max_length)
    answers = predict_probabilities(shipped.backbone.encoder, shipped.load("mrpc"), tokens)
    found = score("classification", data.reported.labels, answers, ("f1_binary",))["f1_binary"]
    assert pytest.approx(manifest.scores["f1_binary"], abs=0.01) == found


def test_committed_scores_follow_from_committed_predictions() -> None:
    """Every score in reports/ is that of the answers beside it."""
    for record in read_records(REPORTS):
        predictions = read_predictions(REPORTS, record)
        metrics = tuple(record.scores)
        found = score("classification", predictions.labels.tolist(), predictions.probabilities, metrics)
        assert pytest.approx(record.scores, abs=1e-9) == found, f"{record.task} {record.method} {record.seed}"


def test_committed_predictions_hold_no_text() -> None:
    """What is committed of a data set is row numbers, labels and probabilities."""
    paths = sorted(REPORTS.glob("runs/*/*/*.parquet"))
    assert paths
    for path in paths:
        assert ["row", "label", "probabilities"] == pyarrow.parquet.read_schema(path).names
