"""The pipeline-like call: what transformers' own pipeline answers on the set's checkpoint, in the same shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from transformers import pipeline

from registry import Predictor, Registry, TextClassification
from registry.errors import ConfigError, RequestError
from registry.schema import SetInfo
from tests.interop.test_checkpoint import PAIRS, TEXTS, head_for, stored
from tests.support.toy_task import METHODS, randomise

ROWS: list[Any] = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, PAIRS, strict=True)]
HEADS: dict[str, dict[str, Any]] = {
    "classification": {"temperature": 1.5},
    "multi_label": {"problem_type": "multi_label", "thresholds": (0.2, 0.3, 0.4)},
    "regression": {
        "problem_type": "regression", "label_names": ("stars",), "target_mean": 3.0, "target_deviation": 2.0,
    },
}  # fmt: skip


def both(folder: Path, family: str = "bert", **changes: Any) -> tuple[Any, TextClassification]:
    """Return transformers' pipeline on a checkpoint of a set, and ours on the set itself."""
    registry = stored(folder, family, METHODS["lora-all"], head_for(family, **changes))
    registry.export_to("mood", folder / "out", "transformers")
    stock = pipeline("text-classification", model=str(folder / "out"), device="cpu")
    return stock, TextClassification(Predictor(registry.backbone, registry), "mood")


def same(expected: Any, found: Any) -> bool:
    """Return whether two answers have the same shape, keys, labels and order, and scores within 1e-5."""
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    if isinstance(expected, dict):
        return list(expected) == list(found) and all(same(expected[key], found[key]) for key in expected)
    if isinstance(expected, float):
        return isinstance(found, float) and numpy.isclose(expected, found, rtol=0, atol=1e-5)
    return bool(expected == found)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("problem", HEADS)
def test_answers_are_the_pipelines(tmp_path: Path, family: str, problem: str) -> None:
    """For texts and pairs, one and many, all options, and each problem type."""
    stock, ours = both(tmp_path, family, **HEADS[problem])
    calls: list[dict[str, Any]] = [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"batch_size": 3}]
    calls += [{"function_to_apply": name} for name in ("sigmoid", "softmax", "none")]
    calls += [{"function_to_apply": "sigmoid", "top_k": None, "truncation": True}]
    for options in calls:
        for inputs in (TEXTS[0], TEXTS, TEXTS[:1], ROWS[0], ROWS, [TEXTS[1], {"text": TEXTS[2]}]):
            assert same(stock(inputs, **options), ours(inputs, **options)), (inputs, options)


def test_options_may_be_chosen_at_first(tmp_path: Path) -> None:
    """What the pipeline is made with holds until a call says otherwise, with the pipeline's own shapes."""
    stock, ours = both(tmp_path)
    chosen: dict[str, Any] = {"top_k": 2, "function_to_apply": "none", "batch_size": 2}
    other = pipeline("text-classification", model=stock.model, tokenizer=stock.tokenizer, **chosen)
    own = TextClassification(ours.predictor, "mood", **chosen)
    for inputs in (TEXTS[0], TEXTS, ROWS[0], ROWS):
        assert same(other(inputs), own(inputs))
        assert same(other(inputs, top_k=None), own(inputs, top_k=None))


def test_an_iterable_is_answered_as_it_comes(tmp_path: Path) -> None:
    """A generator gives an iterator that reads no further than a batch."""
    stock, ours = both(tmp_path)
    read: list[str] = []

    def rows() -> Any:
        for text in TEXTS * 3:
            read.append(text)
            yield text

    answers = ours(rows(), batch_size=2)
    first = next(answers)
    assert 2 == len(read)
    assert same(list(stock(text for text in TEXTS * 3)), [first, *answers])


def test_long_texts_are_cut_or_refused(tmp_path: Path) -> None:
    """A text longer than the set's rows is cut as by ``truncation=True``; ``truncation=False`` refuses it."""
    stock, ours = both(tmp_path)
    long = " ".join(["the sun was red and a good dog went"] * 6)
    assert same(stock(long, truncation=True), ours(long))
    with pytest.raises(RequestError, match="at most 24 tokens, as truncation is off, found a longer one: 'the sun"):
        ours(["good", long], truncation=False)
    assert same(stock("good"), ours("good", truncation=False))


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "found"),
    [
        (["good", 3], {}, RequestError, "expected a text, or {'text'"),
        ([["a", "b"]], {}, RequestError, "expected a text"),
        ({"text": "a", "pair": "b"}, {}, RequestError, "expected a text"),
        ("good", {"function_to_apply": "relu"}, ConfigError, "function_to_apply"),
        ("good", {"top_k": 0}, ConfigError, "top_k"),
        ("good", {"padding": True}, TypeError, "expected the options top_k, function_to_apply"),
    ],
)
def test_what_is_no_question_is_told(tmp_path: Path, inputs: Any, options: Any, kind: Any, found: str) -> None:
    """In one line, with what was expected."""
    _, ours = both(tmp_path)
    with pytest.raises(kind, match=found):
        ours(inputs, **options)


def test_sets_on_pairs_want_pairs(tmp_path: Path) -> None:
    """The predictor's own checks hold; a name follows its newest version."""
    _, ours = both(tmp_path)
    registry: Registry = ours.predictor.registry
    before = ours("good")
    again = registry.backbone.new_adapter_set(METHODS["lora"], head_for("bert"))
    registry.save("mood", randomise(again, seed=8), SetInfo(max_length=24, pair=True))
    with pytest.raises(RequestError, match="expected two texts"):
        ours("good")
    assert before != [ours({"text": "good", "text_pair": "bad"})]
