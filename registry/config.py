"""What one chooses for a set: the shape of its adapter, its head, and how it is trained.

Frozen records of plain data, validated when they are made; nothing here knows of torch, files or the network.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from registry.validation import Record, require

Placement = Literal["after_layer", "houlsby", "pfeiffer", "parallel"]
Activation = Literal[
    "relu", "gelu", "silu", "tanh", "gelu_new", "quick_gelu", "leaky_relu", "relu6", "relu2", "mish", "identity"
]
SubLayer = Literal["attention", "ffn"]
LearnedScale = Literal["none", "one", "channel"]
Initialisation = Literal["zero", "normal", "xavier"]
Pooling = Literal["cls", "mean", "pooler"]
ProblemType = Literal["classification", "multi_label", "regression"]
Target = Literal["query", "key", "value", "attention_dense", "ffn_in", "ffn_out"]
HeadForm = Literal["linear", "dense_tanh", "dense_gelu", "dense_relu"]
Baseline = Literal["majority", "head_only", "full_fine_tuning"]

PLACEMENTS: tuple[str, ...] = get_args(Placement)
BASELINES: tuple[str, ...] = get_args(Baseline)
TARGETS: tuple[Target, ...] = get_args(Target)


def _check_layers(layers: tuple[int, ...] | None) -> None:
    if layers is not None:
        ordered = tuple(sorted(set(layers)))
        require(bool(ordered) and ordered == layers, "layers", "distinct rising layer indices", layers)
        require(layers[0] >= 0, "layers", "indices >= 0", layers)


def _check_targets(targets: tuple[Target, ...]) -> None:
    good = bool(targets) and len(set(targets)) == len(targets)
    require(good, "targets", f"some of {', '.join(TARGETS)}, each once", targets)


class AdapterConfig(Record, frozen=True, kw_only=True, tag_field="method", tag="bottleneck"):
    """The shape of one set's bottlenecks.

    Attributes:
        placement: where a bottleneck joins the layer (formulas: adapters/formulas.py).
        reduction_factor: H / M, must divide H.
        activation: the bottleneck's non-linearity.
        init: up-projection at zero, or all weights normal (std 1e-3), or Xavier uniform.
        dropout: share of bottleneck activations dropped in training, 0 to 1.
        layer_norms: whether the set carries its own copies of the layer norms it passes through.
        layers: indices of the layers that get bottlenecks; None is all of them.
        places: the sub-layers that get them; None is those of the placement.
        widths: M of single layers, by index, in the place of H / reduction_factor.
        scale: factor on what a bottleneck adds; where one is learned, its start.
        learned_scale: whether that factor trains, as ``one`` number a bottleneck or one for each ``channel``.
    """

    placement: Placement = "after_layer"
    reduction_factor: int = 16
    activation: Activation = "gelu"
    init: Initialisation = "zero"
    dropout: float = 0.0
    layer_norms: bool = False
    layers: tuple[int, ...] | None = None
    places: tuple[SubLayer, ...] | None = None
    widths: dict[str, int] = {}
    scale: float = 1.0
    learned_scale: LearnedScale = "none"

    def __post_init__(self) -> None:
        require(self.reduction_factor >= 1, "reduction_factor", "an integer >= 1", self.reduction_factor)
        require(0 <= self.dropout < 1, "dropout", "a fraction from 0 to below 1", self.dropout)
        _check_layers(self.layers)
        known = (None, ("attention",), ("ffn",), ("attention", "ffn"))
        require(self.places in known, "places", "attention, ffn or both in this order", self.places)
        for layer, width in self.widths.items():
            require(layer.isdecimal() and 1 <= width <= 65_536, "widths", "numbers from 1 by layer index", self.widths)
        require(abs(self.scale) < 1e6, "scale", "a number", self.scale)

    @property
    def name(self) -> str:
        """What tables and methods call it."""
        return self.placement


class _Method(Record, frozen=True, kw_only=True):
    """A configuration that is named by its tag."""

    @property
    def name(self) -> str:
        """What tables and methods call it."""
        return str(self.__struct_config__.tag)


class LoraConfig(_Method, frozen=True, kw_only=True, tag_field="method", tag="lora"):
    """Low-rank changes of frozen products (Hu et al. 2021): ``W x + scale * B(A x)``.

    Attributes:
        rank, alpha: r, and the scale times r, or times its root with ``rslora`` (Kalajdzievski 2023).
        ranks, alphas: other ones of single products, by ``LAYER_TARGET``: ``3_query`` say.
        targets: which products.
        bias: ``lora_only`` trains a bias of those products too, ``all`` every bias of the layers.
        dropout: share of what enters A that is dropped in training, 0 to 1.
        layers: indices of the layers that are changed; None is all of them.
    """

    rank: int = 8
    alpha: float = 16.0
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    rslora: bool = False
    targets: tuple[Target, ...] = ("query", "value")
    bias: Literal["none", "all", "lora_only"] = "none"
    dropout: float = 0.0
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.ranks.values()):
            require(rank >= 1, "rank", "an integer >= 1", rank)
        for alpha in (self.alpha, *self.alphas.values()):
            require(0 < alpha < 1e6, "alpha", "a number above 0", alpha)
        for field, places in (("ranks", self.ranks), ("alphas", self.alphas)):
            for place in places:
                layer, _, target = place.partition("_")
                good = layer.isdecimal() and target in self.targets
                require(good, field, "a layer and one of the targets, such as 3_query", place)
        require(0 <= self.dropout < 1, "dropout", "a fraction from 0 to below 1", self.dropout)
        _check_targets(self.targets)
        _check_layers(self.layers)

    def rank_at(self, layer: int, target: Target) -> int:
        """Return r of one product."""
        return self.ranks.get(f"{layer}_{target}", self.rank)

    def scale_at(self, layer: int, target: Target) -> float:
        """Return what ``B(A x)`` of one product is multiplied by."""
        rank = self.rank_at(layer, target)
        alpha = self.alphas.get(f"{layer}_{target}", self.alpha)
        return alpha / (rank**0.5 if self.rslora else rank)


class Ia3Config(_Method, frozen=True, kw_only=True, tag_field="method", tag="ia3"):
    """Learned scales (Liu et al. 2022), one for each element; they start at one.

    Attributes:
        targets: which products.
        inputs: those of them of which what goes in is scaled, not what comes out; not for query, key and value, whose
            states are the same.
        layers: indices of the layers that are changed; None is all of them.
    """

    targets: tuple[Target, ...] = ("key", "value", "ffn_out")
    inputs: tuple[Target, ...] = ("ffn_out",)
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        fit = set(self.inputs) <= set(self.targets) - {"query", "key", "value"}
        require(fit, "inputs", "some of the targets attention_dense, ffn_in and ffn_out", self.inputs)
        _check_layers(self.layers)


class BitFitConfig(_Method, frozen=True, kw_only=True, tag_field="method", tag="bitfit"):
    """A change of every bias of the layers (Ben Zaken et al. 2022), of products and norms; they start at zero.

    Attributes:
        layers: indices of the layers that are changed; None is all of them.
    """

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_layers(self.layers)


class PrefixConfig(_Method, frozen=True, kw_only=True, tag_field="method", tag="prefix"):
    """Learned keys and values in front of every row (Li and Liang 2021, in its flat form), without a position.

    Attributes:
        length: P, how many a layer.
        layers: indices of the layers that have them; None is all of them.
    """

    length: int = 30
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require(1 <= self.length <= 4096, "length", "1 to 4,096 keys and values a layer", self.length)
        _check_layers(self.layers)


class FusedMember(Record, frozen=True, kw_only=True):
    """One of the stored sets that a fused one needs: its version, the SHA-256 of its adapter's file, and its shape."""

    reference: str
    digest: str
    adapter: AdapterConfig


class FusionConfig(_Method, frozen=True, kw_only=True, tag_field="method", tag="fusion"):
    """Attention over what the bottlenecks of stored sets would add (Pfeiffer et al. 2021).

    Attributes:
        members: 2 to 64 sets of one placement, any of the four, in the same layers, without own layer norms.
    """

    members: tuple[FusedMember, ...]

    def __post_init__(self) -> None:
        names = [member.reference for member in self.members]
        require(2 <= len(names) <= 64, "members", "2 to 64 stored sets, such as --members a,b:2", ", ".join(names))
        require(len(set(names)) == len(names), "members", "each set once", ", ".join(names))
        first = self.members[0]
        for member in self.members:
            what, own = f"member '{member.reference}'", member.adapter
            require(not own.layer_norms, what, "bottlenecks without layer norms of their own", "layer_norms")
            for field in ("placement", "layers", "places"):
                wanted, found = getattr(first.adapter, field), getattr(own, field)
                require(wanted == found, what, f"{field} {wanted} as '{first.reference}' has", found)

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The layers in which the members are."""
        return self.members[0].adapter.layers


MethodConfig: TypeAlias = AdapterConfig | LoraConfig | Ia3Config | BitFitConfig | PrefixConfig | FusionConfig
METHODS: tuple[str, ...] = ("bottleneck", "lora", "ia3", "bitfit", "prefix", "fusion")


class HeadConfig(Record, frozen=True, kw_only=True):
    """Pooling and classifier of one task.

    Attributes:
        form: a linear layer alone, or a dense one with an activation before it.
        pooling: over the first token, the mean, or the checkpoint's frozen pooler.
        bias: whether the last layer has one.
        problem_type: decides the loss and how logits become answers.
        label_names: the classes in the order of the logits; for regression the one name of the value.
        dropout: share of pooled values dropped in training, 0 to 1.
        trained: False keeps the classifier frozen at its random start.
        target_mean, target_deviation: of the numbers to predict, which are learned as standard scores.
        temperature: what logits are divided by before they become probabilities, fitted to held-out rows.
        thresholds: for multi-label the probability from which on each label is said; one half where empty.
    """

    label_names: tuple[str, ...]
    form: HeadForm = "linear"
    bias: bool = True
    pooling: Pooling = "mean"
    problem_type: ProblemType = "classification"
    dropout: float = 0.0
    trained: bool = True
    target_mean: float = 0.0
    target_deviation: float = 1.0
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        least = 2 if self.problem_type == "classification" else 1
        require(len(self.label_names) >= least, "label_names", f"at least {least} names", self.label_names)
        require(len(set(self.label_names)) == len(self.label_names), "label_names", "distinct names", self.label_names)
        require(0 <= self.dropout < 1, "dropout", "a fraction from 0 to below 1", self.dropout)
        if self.problem_type == "regression":
            require(len(self.label_names) == 1, "label_names", "one name for regression", self.label_names)
        for field in ("target_deviation", "temperature"):
            require(getattr(self, field) > 0, field, "a number above 0", getattr(self, field))
        if self.thresholds:
            fit = self.problem_type == "multi_label" and len(self.thresholds) == len(self.label_names)
            require(fit, "thresholds", "one for each label of a multi-label task, or none", self.thresholds)
            require(all(0 < each < 1 for each in self.thresholds), "thresholds", "shares", self.thresholds)


class TrainingConfig(Record, frozen=True, kw_only=True):
    """How one set is trained on one task.

    Attributes:
        epochs, batch_size: passes over the training rows, rows of one pass of the encoder.
        gradient_accumulation_steps: passes whose gradients make one step, as in transformers.
        learning_rate: the highest one, reached after the share ``warmup`` of all steps.
        max_length: tokens a row is cut to, special tokens included.
        optimizer: AdamW (decoupled ``weight_decay``) or plain Adam.
        schedule: linear decay to zero after warm-up, or constant.
        clip_norm: the largest norm of the gradient; 0 does not clip.
        evaluate_every: steps between scores on held-out training rows; None never.
        select_best: metric by which the best of those states is kept; None keeps the last.
        held_out: share of the training rows set aside for ``select_best`` and ``patience``.
        patience: evaluations without a better score after which training stops; None never.
        class_weights: of each label in the loss, ``balanced`` by their rows, or None for the same.
        label_smoothing: share of a row's target that goes to all labels alike, 0 to 1.
        loss: name of an own loss function, which Python gives as ``loss=``; None is the problem type's.
        calibrate: fit the head's temperature to held-out rows after the training.
        tune_thresholds: choose there the thresholds of a multi-label head, each for the best F1 of its label.
        seed: decides initial weights, row order and dropout.
    """

    epochs: int = 4
    learning_rate: float = 1e-3
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_length: int = 128
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.06
    schedule: Literal["linear", "constant"] = "linear"
    clip_norm: float = 1.0
    evaluate_every: int | None = None
    select_best: str | None = None
    held_out: float = 0.1
    patience: int | None = None
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    label_smoothing: float = 0.0
    loss: str | None = None
    calibrate: bool = False
    tune_thresholds: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "gradient_accumulation_steps"):
            require(getattr(self, field) >= 1, field, "an integer >= 1", getattr(self, field))
        require(self.max_length >= 3, "max_length", "at least 3 tokens", self.max_length)
        require(0 < self.learning_rate < 10, "learning_rate", "a number above 0", self.learning_rate)
        for field in ("weight_decay", "clip_norm"):
            require(getattr(self, field) >= 0, field, "a number >= 0", getattr(self, field))
        for field in ("warmup", "label_smoothing"):
            require(0 <= getattr(self, field) < 1, field, "a fraction from 0 to below 1", getattr(self, field))
        require(0 < self.held_out < 1, "held_out", "a fraction between 0 and 1", self.held_out)
        weights = () if self.class_weights in (None, "balanced") else self.class_weights or ()
        require(all(0 < float(each) < 1e6 for each in weights), "class_weights", "numbers above 0", weights)
        require(0 <= self.seed < 2**63, "seed", "an integer from 0 to 2**63 - 1", self.seed)
        for field in ("evaluate_every", "patience"):
            value = getattr(self, field)
            require(value is None or value >= 1, field, "an integer >= 1", value)
        if self.select_best or self.patience:
            require(self.evaluate_every is not None, "evaluate_every", "steps, as select_best or patience is set", None)
        usual = self.class_weights is None and not self.label_smoothing
        require(self.loss is None or usual, "loss", "no class_weights or label_smoothing beside one's own", self.loss)

    @property
    def holds_out(self) -> bool:
        """Whether part of the training rows is set aside."""
        return self.evaluate_every is not None or self.calibrate or self.tune_thresholds

    @property
    def step_rows(self) -> int:
        """Rows of one step."""
        return self.batch_size * self.gradient_accumulation_steps
