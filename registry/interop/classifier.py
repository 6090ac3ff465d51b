"""An adapter set as a scikit-learn classifier of texts, for grid search, cross-validation and pipelines."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from registry.errors import DataError, RequestError
from registry.model.backbone import Backbone
from registry.model.inference import LabelledRows, predict_probabilities
from registry.schema import SetInfo
from registry.tasks.labels import BadCellError
from registry.tasks.rows import check_text
from registry.training.loop import train
from registry.training.recipes import for_backbone, read_recipe


@functools.lru_cache(maxsize=2)
def _backbone(source: str, device: str) -> Backbone:
    """Return a frozen encoder, the same one for all fits of a search."""
    return Backbone.load(source, device=device)


class AdapterClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Trains an adapter set on texts and their classes, and answers with it.

    Texts are a list, array or series of str; their classes anything that scikit-learn takes for classes. All copies
    that a search makes share one frozen encoder. Nothing is held out: leave that to the search.

    Args:
        backbone: ``embedded``, a Hub id or a folder.
        recipe: a shipped recipe or the path of a TOML file.
        placement, reduction_factor: of the bottlenecks; the recipe's when None.
        epochs, learning_rate, batch_size, max_length, class_weights: the recipe's when None.
        seed: decides initial weights, row order and dropout.
        device: ``auto``, ``cpu``, ``cuda`` and so on.

    Attributes:
        classes_: in the order of the probabilities.
        adapter_set_: the trained set; ``Registry.save`` stores it.
        loss_: mean loss of the last epoch.
    """

    def __init__(
        self,
        backbone: str = "embedded",
        *,
        recipe: str = "default",
        placement: str | None = None,
        reduction_factor: int | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        class_weights: str | Sequence[float] | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.recipe = recipe
        self.placement = placement
        self.reduction_factor = reduction_factor
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_length = max_length
        self.class_weights = class_weights
        self.seed = seed
        self.device = device

    def fit(self, X: Iterable[str], y: Iterable[Any]) -> AdapterClassifier:  # noqa: N803, as scikit-learn has it
        """Train on texts and their classes, and return itself.

        Raises:
            DataError: a text that is none, one class alone, or not as many classes as texts.
            ConfigError, UnknownRecipeError: a choice that does not fit.
        """
        texts, found = _texts(X), numpy.asarray(list(y))
        if len(texts) != len(found) or not texts:
            raise DataError("y", "length", f"{len(texts)}, a class for each text", len(found))
        check_classification_targets(found)
        self.classes_, labels = numpy.unique(found, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError("y", "classes", "at least 2 different ones", ", ".join(map(str, self.classes_)))
        backbone = _backbone(self.backbone, self.device)
        adapter = {"placement": self.placement, "reduction_factor": self.reduction_factor}
        recipe = read_recipe(self.recipe).with_choices(adapter, {})
        names = ("epochs", "learning_rate", "batch_size", "max_length")
        weights = self.class_weights if self.class_weights in (None, "balanced") else tuple(self.class_weights or ())
        chosen = {**{name: getattr(self, name) for name in names}, "class_weights": weights, "seed": self.seed}
        config = recipe.training_for("", **chosen)
        head = recipe.head.for_task(tuple(map(str, self.classes_)), "classification")
        made = for_backbone(recipe.adapter, backbone)
        self.adapter_set_ = backbone.new_adapter_set(made, head, seed=self.seed)
        rows = LabelledRows(backbone.tokenize(texts, None, config.max_length), tuple(labels.tolist()))
        self.loss_ = train(backbone.encoder, self.adapter_set_, rows, config).final_loss
        self.adapter_set_.info = SetInfo(pair=False, max_length=config.max_length, training=config)
        self.adapter_set_.eval()
        return self

    def predict_proba(self, X: Iterable[str]) -> numpy.ndarray:  # noqa: N803
        """Return the (R, C) probabilities of texts, columns as in ``classes_``."""
        check_is_fitted(self)
        backbone, info = _backbone(self.backbone, self.device), self.adapter_set_.info
        rows = backbone.tokenize(_texts(X), None, info.max_length if info is not None else 128)
        return predict_probabilities(backbone.encoder, self.adapter_set_, rows)

    def predict(self, X: Iterable[str]) -> numpy.ndarray:  # noqa: N803
        """Return the likeliest class of each text."""
        shares = self.predict_proba(X)
        found: numpy.ndarray = self.classes_[shares.argmax(axis=1)]
        return found

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that rows are texts and no numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False, True
        return tags


def _texts(rows: Iterable[str]) -> list[str]:
    """Return texts as a list.

    Raises:
        RequestError: one text in the place of a list.
        DataError: a row that is no text.
    """
    if isinstance(rows, str):
        raise RequestError("classify", "a list of texts, [text] for one", "a text")
    texts = [str(text) if isinstance(text, numpy.str_) else text for text in rows]
    for row, text in enumerate(texts):
        try:
            check_text(text)
        except BadCellError as err:
            raise DataError("X", f"row {row}", err.expected, err.found) from err
    return texts
