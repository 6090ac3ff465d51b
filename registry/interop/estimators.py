"""A set as other libraries train it: an estimator of scikit-learn, and a module for transformers' own ``Trainer``.

The estimator takes texts and their classes, for grid search, cross-validation and pipelines. The module takes padded
tensors and answers with a ``SequenceClassifierOutput`` of loss and logits, as models of transformers do; the rows are
packed before the encoder sees them, so padding costs nothing, wherever it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.head import label_tensor, loss_of, probabilities_of
from registry.config import HeadConfig
from registry.errors import ConfigError, DataError, RequestError
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import LabelledRows, logits_of, predict_probabilities
from registry.schema import SetInfo
from registry.store.archive import write_folder
from registry.store.tensors import make_manifest, tensor_files
from registry.tasks.labels import BadCellError
from registry.tasks.rows import check_text
from registry.training.loop import train
from registry.training.recipes import for_backbone, read_recipe

_PROBLEM_TYPES: dict[str, Any] = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def label_settings(head: HeadConfig) -> dict[str, Any]:
    """Return what a configuration of transformers says of a head's labels and problem type."""
    return {
        "id2label": dict(enumerate(head.label_names)),
        "label2id": {name: index for index, name in enumerate(head.label_names)},
        "problem_type": _PROBLEM_TYPES[head.problem_type],
    }


class TrainerModel(nn.Module):
    """An adapter set on a frozen backbone, in the form that ``transformers.Trainer`` expects.

    Only the set is a sub-module: what the Trainer optimises, moves, counts and saves is the set alone.

    Args:
        backbone: frozen; it stays where it is, so train on its device.
        adapter_set: made by ``backbone.new_adapter_set``; trained in place.
    """

    def __init__(self, backbone: Backbone, adapter_set: AdapterSet) -> None:
        super().__init__()
        adapter_set.check_fits(backbone.info.hidden_size, backbone.info.layers)
        backbone.check_pooling(adapter_set.head_config)
        self._backbone = (backbone,)  # in a tuple, so that it is no sub-module
        self.adapter_set = adapter_set
        self.config = PretrainedConfig(**label_settings(adapter_set.head_config))

    @property
    def num_labels(self) -> int:
        """Return how many labels the head has."""
        return len(self.adapter_set.head_config.label_names)

    def save_pretrained(self, folder: str | Path, info: SetInfo | None = None, *, name: str = "trained") -> None:
        """Write the set into a new folder, from which ``adapter-registry import FOLDER`` takes it into a store.

        Args:
            folder: as ``PreTrainedModel.save_pretrained`` has it; one that is new or empty.
            info: what is known of it: ``SetInfo(max_length=…, pair=…)``; what its training knows when None.
            name: of the set in a store.

        Raises:
            ConfigError: nothing is known of it, or a tensor is not finite.
            StoreWriteError: the folder has such a file already, or cannot be written.
        """
        manifest = make_manifest(name, self.adapter_set, self._backbone[0], info)
        write_folder(Path(folder), manifest, tensor_files(self.adapter_set))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return the logits, and the loss where there are labels.

        Args:
            input_ids: (B, T) token ids, padded on either side.
            attention_mask: (B, T), 1 for tokens and 0 for padding; None means no padding.
            token_type_ids: (B, T), 1 in the second text of a pair; None means single texts.
            labels: (B,) classes, (B, C) zeros and ones, or (B,) numbers, by problem type.

        Returns:
            ``logits`` (B, C) float32 in the order of the rows, for regression in the unit of the labels; and ``loss``,
            a scalar.

        Raises:
            ConfigError: padding between the tokens of a row, no tokens at all, or labels that are none of the head's.
        """
        backbone = self._backbone[0]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        spans = [_span(row, kept) for row, kept in enumerate(mask.tolist())]
        rows = TokenRows(
            [row[first:last] for row, (first, last) in zip(input_ids.tolist(), spans, strict=True)],
            [row[first:last] for row, (first, last) in zip(types.tolist(), spans, strict=True)],
        )
        batch = Batch.pack(rows, device=backbone.device)
        logits = batch.restore(logits_of(backbone.encoder, self.adapter_set, batch))
        head = self.adapter_set.head_config
        answers = probabilities_of(head, logits) if head.problem_type == "regression" else logits
        if labels is None:
            return SequenceClassifierOutput(logits=answers)
        wanted = label_tensor(head, _checked(head, labels), logits.device)
        return SequenceClassifierOutput(loss=loss_of(head.problem_type, logits, wanted), logits=answers)


def _span(row: int, mask: Sequence[int]) -> tuple[int, int]:
    """Return where the tokens of a row begin and end.

    Raises:
        ConfigError: there are none, or padding stands between them.
    """
    count = sum(map(bool, mask))
    first = next((place for place, kept in enumerate(mask) if kept), 0)
    if not count or not all(mask[first : first + count]):
        found = "none" if not count else f"padding between the tokens of row {row}"
        raise ConfigError("attention_mask", "tokens side by side, padding before or after them", found)
    return first, first + count


def _checked(head: HeadConfig, labels: Tensor) -> list[Any]:
    """Return labels as plain numbers.

    Raises:
        ConfigError: a class that the head does not have, or not a number for each label of each row.
    """
    classes = len(head.label_names)
    if head.problem_type == "multi_label":
        if labels.ndim != 2 or labels.shape[1] != classes or not bool(((labels == 0) | (labels == 1)).all()):
            raise ConfigError("labels", f"zeros and ones of shape (rows, {classes})", list(labels.shape))
        return list(labels.tolist())
    values = labels.reshape(-1).tolist()
    if head.problem_type == "classification":
        for row, value in enumerate(values):
            if value != int(value) or not 0 <= value < classes:
                expected = f"a class from 0 to {classes - 1} ({', '.join(head.label_names[:5])})"
                raise ConfigError(f"the label of row {row}", expected, value)
        return [int(value) for value in values]
    return values


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
