"""The scikit-learn door: search, cross-validation and pipelines work, and share one encoder."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import (
    check_do_not_raise_errors_in_init_or_set_params,
    check_estimator,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)

from registry import AdapterClassifier, Backbone, Predictor, Registry
from registry.errors import ConfigError, DataError, RequestError

COUNT = 200
TEXTS = [f"the film was {('bad', 'good')[n % 2]} and {n % 7}" for n in range(COUNT)]
CLASSES = np.array(["neg", "pos"])[np.arange(COUNT) % 2]
# Those that scikit-learn skips with the others, though they need no numbers; the rest feed arrays of floats.
WITHOUT_ROWS = (
    check_do_not_raise_errors_in_init_or_set_params,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)


@pytest.fixture
def quick(tiny_folder: Path) -> AdapterClassifier:
    """A classifier on the tiny backbone that learns in a moment."""
    return AdapterClassifier(str(tiny_folder), epochs=3, max_length=16, learning_rate=1e-2, reduction_factor=4)


def test_check_estimator_has_nothing_to_say_of_texts(quick: AdapterClassifier) -> None:
    """Its checks are of numbers: what it checks of a text estimator passes, and it says that it skips the rest."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        results = check_estimator(quick, on_fail=None)
    assert [("check_estimator_cloneable", "passed")] == [(each["check_name"], each["status"]) for each in results]
    assert any("requires input" in str(each.message) for each in told if isinstance(each.message, SkipTestWarning))
    for check in WITHOUT_ROWS:
        check("AdapterClassifier", quick)


def test_cross_validation_and_grid_search_run(quick: AdapterClassifier) -> None:
    """On 200 rows, with one frozen encoder for all fits."""
    scores = cross_val_score(quick, TEXTS, CLASSES, cv=3)
    assert (3,) == scores.shape
    assert scores.mean() > 0.9
    search = GridSearchCV(quick, {"placement": ["pfeiffer", "parallel"], "epochs": [1, 8]}, cv=2).fit(TEXTS, CLASSES)
    assert (8, True) == (search.best_params_["epochs"], search.best_score_ > 0.9)
    assert {"neg", "pos"} == set(search.predict(["the film was good"] * 2 + ["the film was bad"]))


def test_any_form_of_texts_and_classes_is_taken(quick: AdapterClassifier) -> None:
    """Arrays, series and pipelines; probabilities add up and follow ``classes_``."""
    fitted = quick.fit(pd.Series(TEXTS), CLASSES == "pos")
    assert [False, True] == fitted.classes_.tolist()
    shares = fitted.predict_proba(np.array(TEXTS[:9]))
    assert np.allclose(1, shares.sum(axis=1))
    assert (fitted.classes_[shares.argmax(axis=1)] == fitted.predict(TEXTS[:9])).all()
    piped = make_pipeline(FunctionTransformer(lambda texts: [text.upper() for text in texts]), clone(quick))
    assert piped.fit(TEXTS, CLASSES).score(TEXTS, CLASSES) > 0.9


def test_a_copy_answers_alike_and_a_registry_stores_it(
    quick: AdapterClassifier, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    """Pickled it answers the same; saved, the registry's predictor gives its probabilities."""
    fitted = quick.fit(TEXTS, CLASSES)
    shares = fitted.predict_proba(TEXTS[:5])
    assert np.array_equal(shares, pickle.loads(pickle.dumps(fitted)).predict_proba(TEXTS[:5]))
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    registry.save("mood", fitted.adapter_set_)
    answers = Predictor(tiny_backbone, registry)("mood", TEXTS[:5])
    assert np.allclose(shares[:, 1], [answer.probabilities["pos"] for answer in answers], atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "classes", "error", "message"),
    [
        ("abc", ["a", "b", "c"], RequestError, r"a list of texts, \[text\] for one"),
        (["a", None], ["x", "y"], DataError, "X: row 1: expected a text, found null"),
        (["a", "b"], ["x"], DataError, "y: length: expected 2, a class for each text, found 1"),
        (["a", "b"], ["x", "x"], DataError, "classes: expected at least 2 different ones, found x"),
    ],
)
def test_what_cannot_be_learned_is_told(
    quick: AdapterClassifier, texts: Any, classes: Any, error: type[Exception], message: str
) -> None:
    """In our one line; an unfitted classifier says so as scikit-learn's do, a wrong choice as ours do."""
    with pytest.raises(error, match=message):
        quick.fit(texts, classes)
    with pytest.raises(NotFittedError):
        clone(quick).predict(["a"])
    with pytest.raises(ConfigError, match="reduction_factor"):
        clone(quick).set_params(reduction_factor=5).fit(["a", "b"], ["x", "y"])
