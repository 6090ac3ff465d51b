"""The few calls of the Python door: rows from memory, one call to train, frames answered, copies in other processes."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from registry import Backbone, Predictor, Reading, Registry, SetInfo, TaskData
from registry.config import AdapterConfig, HeadConfig
from registry.errors import BackboneMismatchError, ConfigError, DataError, DivergedError, RequestError
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import randomise

COUNT = 40
TEXTS = [f"the film was {('bad', 'good')[n % 2]} {n}" for n in range(COUNT)]
LABELS = [("neg", "pos")[n % 2] for n in range(COUNT)]
FRAME = pd.DataFrame({"body": TEXTS, "mood": LABELS})
QUICK: dict[str, Any] = {"epochs": 1, "max_length": 16, "batch_size": 8}


@pytest.fixture
def registry(tmp_path: Path, tiny_backbone: Backbone) -> Registry:
    """A registry of an empty store."""
    return Registry.create(tmp_path / "store", tiny_backbone)


@pytest.fixture
def predictor(registry: Registry) -> Predictor:
    """A predictor with one set of two classes."""
    fresh = registry.backbone.new_adapter_set(AdapterConfig(reduction_factor=4), HeadConfig(label_names=("neg", "pos")))
    registry.save("mood", randomise(fresh, seed=3), SetInfo(pair=False, max_length=16))
    return Predictor(registry.backbone, registry)


def rows_of(data: TaskData) -> set[tuple[str, str]]:
    """Return text and label of every row of both sides."""
    names = data.spec.label_names or ()
    sides = (data.train, data.reported)
    return {(t, names[y]) for rows in sides for t, y in zip(rows.texts, rows.labels, strict=True)}


def test_rows_come_from_frames_lists_and_data_sets_alike() -> None:
    """The same rows, split the same way, whatever holds them."""
    dataset = datasets.Dataset.from_pandas(FRAME)
    made = [
        TaskData.from_pandas(FRAME, text="body", label="mood"),
        TaskData.from_lists(iter(TEXTS), iter(LABELS)),
        TaskData.from_dataset(dataset, text="body", label="mood"),
    ]
    assert {frozenset(zip(TEXTS, LABELS, strict=True))} == {frozenset(rows_of(data)) for data in made}
    assert 1 == len({data.fingerprint() for data in made})
    both = TaskData.from_pandas(FRAME, text="body", label="mood", validation=FRAME[:6])
    splits = TaskData.from_dataset(datasets.DatasetDict(train=dataset, test=dataset), text="body", label="mood")
    assert ((COUNT, 6), (COUNT, COUNT)) == tuple((len(each.train), len(each.reported)) for each in (both, splits))


def test_class_names_of_a_data_set_are_its_labels() -> None:
    """Class numbers with names keep these."""
    features = datasets.Features({"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["ham", "spam"])})
    rows = {"text": TEXTS, "y": [n % 2 for n in range(COUNT)]}
    data = TaskData.from_dataset(datasets.Dataset.from_dict(rows, features=features), text="text", label="y")
    assert ("ham", "spam") == data.spec.label_names


def test_gaps_of_a_frame_are_told_or_left_out() -> None:
    """NaN and None are no text and no label, with the row's number."""
    frame = FRAME.copy()
    frame.loc[3, "body"], frame.loc[5, "mood"] = None, np.nan
    with pytest.raises(DataError, match="the frame: row 3, column 'body': expected a text, found null, and 1 more row"):
        TaskData.from_pandas(frame, text="body", label="mood")
    data = TaskData.from_pandas(frame, text="body", label="mood", reading=Reading(skip_bad_rows=True))
    assert (2, COUNT - 2) == (data.left_out, len(rows_of(data)))
    with pytest.raises(DataError, match="a column 'bdy', found body, mood; did you mean 'body'"):
        TaskData.from_pandas(frame, text="bdy", label="mood")
    with pytest.raises(ConfigError, match="expected as many labels as texts, found '2 texts, 1 labels'"):
        TaskData.from_lists(["a", "b"], ["c"])


def test_one_call_trains_scores_and_stores(registry: Registry) -> None:
    """The set answers as it was scored, at the length it was trained at, and its manifest knows task and labels."""
    data = TaskData.from_pandas(FRAME, text="body", label="mood", name="moods")
    trained = registry.train("mails", data, **QUICK, evaluate_every=2, adapter={"reduction_factor": 8})
    manifest = registry.manifest(trained.reference)
    assert ("mails:1", "moods", 16, False) == (
        str(trained.reference), manifest.task, manifest.max_length, manifest.pair,
    )  # fmt: skip
    assert ("pos", trained.scores) == (manifest.positive_label, manifest.scores)
    assert [2, 4] == [step for step, _ in trained.history]
    answers = Predictor(registry.backbone, registry)("mails", data.reported.texts)
    right = [LABELS[TEXTS.index(text)] for text in data.reported.texts]
    accuracy = sum(answer.label == label for answer, label in zip(answers, right, strict=True)) / len(right)
    assert accuracy == pytest.approx(trained.scores["accuracy"])
    assert "mails:1" in repr(trained)


def test_what_cannot_be_trained_is_told(registry: Registry) -> None:
    """A frame in the place of rows, an unknown choice and a training that diverges store nothing."""
    data = TaskData.from_lists(TEXTS, LABELS)
    with pytest.raises(ConfigError, match="expected TaskData, as TaskData.from_pandas"):
        registry.train("mails", FRAME)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        registry.train("mails", data, epoch=3)
    with pytest.raises(DivergedError, match=r"cannot save 'mails': expected a loss that falls, found one that rose"):
        registry.train("mails", data, **{**QUICK, "epochs": 12, "learning_rate": 9.0})
    assert 0 == len(registry)


def test_a_trained_set_takes_its_length_along(registry: Registry, tmp_path: Path) -> None:
    """Whether what fit returned, its set, or a set loaded from a store is saved, the length of the training is kept."""
    from registry import fit, make_plan

    data = TaskData.from_lists(TEXTS, LABELS)
    fitted = fit(make_plan("pfeiffer", data, registry.backbone, 0, **QUICK), data, registry.backbone)
    assert fitted.adapter_set is not None
    saved = [registry.save("a", fitted), registry.save("b", fitted.adapter_set)]
    other = Registry.create(tmp_path / "other", registry.backbone)
    manifests = [registry.manifest(each) for each in saved]
    manifests.append(other.manifest(other.save("c", registry.load("a"))))
    assert {(16, False, "task")} == {(each.max_length, each.pair, each.task) for each in manifests}


def test_a_frame_is_answered_into_a_frame(predictor: Predictor) -> None:
    """Labels and probabilities stand beside the frame's own columns, its index kept, itself unchanged."""
    frame = FRAME.set_index(pd.Index(range(100, 100 + COUNT)))
    found = predictor.predict_frame("mood", frame, text="body")
    answers = predictor("mood", TEXTS)
    assert [answer.label for answer in answers] == found["label"].tolist()
    assert [answer.probabilities["pos"] for answer in answers] == found["probability.pos"].tolist()
    assert (["body", "mood"], frame.index.tolist()) == (list(frame.columns), found.index.tolist())
    with pytest.raises(RequestError, match="no column called like an added one, found label"):
        predictor.predict_frame("mood", found, text="body")


def test_logits_and_states_are_those_behind_the_answers(predictor: Predictor) -> None:
    """The softmax of the logits is what a call answers; states without adapters are the same for every set."""
    logits = predictor.logits("mood", TEXTS)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = raised / raised.sum(axis=1, keepdims=True)
    assert np.allclose(shares[:, 1], [answer.probabilities["pos"] for answer in predictor("mood", TEXTS)], atol=1e-6)
    states = predictor.backbone.embed(TEXTS, max_length=16)
    assert ((COUNT, 32), np.float32) == (states.shape, states.dtype)
    assert np.allclose(states[3], predictor.backbone.embed([TEXTS[3]], max_length=16)[0], atol=1e-5)
    assert (0, 32) == predictor.backbone.embed([]).shape


@pytest.mark.parametrize("texts", ["abc", [None], ["a", float("nan")], ["a", 3], ["a", ""]])
def test_what_is_no_list_of_texts_is_refused(predictor: Predictor, texts: Any) -> None:
    """One text is not a list of letters, and a gap is told with its row."""
    with pytest.raises(RequestError, match=r"expected a list of texts, \[text\] for one|answer row [01] with"):
        predictor("mood", texts)


def test_generators_and_event_loops_are_answered(predictor: Predictor) -> None:
    """Any iterable is taken, and an answer can be awaited."""
    expected = predictor("mood", TEXTS)
    assert expected == predictor("mood", (text for text in TEXTS))
    assert expected == asyncio.run(predictor.answer("mood", iter(TEXTS)))


def test_a_copy_opens_store_and_backbone_again(predictor: Predictor, tmp_path: Path) -> None:
    """Pickled or deep-copied objects answer alike; a checkpoint that is another one by now is refused."""
    expected = predictor("mood", TEXTS[:3])
    for copied in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert expected == copied("mood", TEXTS[:3])
    save_tiny_checkpoint(tmp_path / "bert")
    pickled = pickle.dumps(Backbone.load(str(tmp_path / "bert"), device="cpu"))
    save_tiny_checkpoint(tmp_path / "bert", seed=1)
    with pytest.raises(BackboneMismatchError):
        pickle.loads(pickled)


FORKED = """
import multiprocessing, sys
from registry import Backbone, Predictor, Registry
backbone = Backbone.load(sys.argv[1], device="cpu")
predictor = Predictor(backbone, Registry(sys.argv[2], backbone))
predictor("mood", ["good"] * 64)
context = multiprocessing.get_context("fork")
queue = context.Queue()
worker = context.Process(target=lambda: queue.put(predictor("mood", ["good"] * 64)[0].label), daemon=True)
worker.start()
print(queue.get(timeout=60))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_worker_answers(predictor: Predictor, tiny_folder: Path) -> None:
    """A process that was forked after its parent computed with several threads does not wait for them."""
    label = predictor("mood", ["good"])[0].label
    command = [sys.executable, "-c", FORKED, str(tiny_folder), str(predictor.registry.store.root)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "2", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (0, label) == (done.returncode, done.stdout.strip()), done.stderr
