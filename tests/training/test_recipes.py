"""Recipes: each names every choice, options win over them, and the shipped ones say what their sources say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.config import PLACEMENTS, AdapterConfig, HeadConfig, TrainingConfig
from registry.errors import ConfigError, UnknownRecipeError
from registry.training.recipes import SHIPPED, AdapterChoices, HeadChoices, read_recipe, recipe_names, replace_fields

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# An optional choice that a recipe does not make has no value that TOML could spell.
UNSPELLED = {"class_weights", "evaluate_every", "select_best", "patience", "loss"}


def spelled(name: str) -> dict[str, Any]:
    """Return the TOML of a shipped recipe as it was written."""
    return tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))


def own_recipe(folder: Path, change: tuple[str, str] = ("", "")) -> Path:
    """Write the default recipe with one change as a file of one's own."""
    path = folder / "mine.toml"
    path.write_text((SHIPPED / "default.toml").read_text(encoding="utf-8").replace(*change))
    return path


def test_shipped_recipes() -> None:
    """These recipes ship, the default among them."""
    others = ("bitfit", "fusion", "houlsby-2019", "ia3", "lab-notebook", "lora", "prefix", "roberta-patch")
    assert ("default", *others) == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_spells_every_choice(name: str) -> None:
    """Nothing in a shipped recipe is left to a default that a later release could change."""
    recipe, plain = read_recipe(name), spelled(name)
    assert name == recipe.name
    sizes = {"reduction_factor", "bottleneck_size"}
    unspelled = {*sizes, "layers", "places", "widths", "ranks", "alphas", "method"}
    assert set(recipe.adapter.__struct_fields__) - unspelled == set(plain["adapter"]) - unspelled
    assert isinstance(recipe.adapter, AdapterChoices) == len(sizes & set(plain["adapter"]))
    assert set(HeadChoices.__struct_fields__) == set(plain["head"])
    assert set(TrainingConfig.__struct_fields__) == set(plain["training"]) | (UNSPELLED - set(plain["training"]))
    assert recipe.description
    assert "\n" not in recipe.description


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_spelled_is_what_is_read(name: str) -> None:
    """Every field of the TOML is the field of the recipe."""
    recipe, plain = read_recipe(name), spelled(name)
    for part in ("adapter", "head", "training"):
        found = json.loads(msgspec.json.encode(getattr(recipe, part)))
        assert plain[part] == {key: found[key] for key in plain[part]}
    assert (plain["backbone"], plain["description"]) == (recipe.backbone, recipe.description)


def test_choices_of_a_recipe_are_those_of_the_configurations() -> None:
    """A new field of a configuration cannot be forgotten in recipes."""
    assert {*AdapterConfig.__struct_fields__, "bottleneck_size"} == set(AdapterChoices.__struct_fields__)
    of_the_task = {"label_names", "problem_type", "target_mean", "target_deviation", "temperature", "thresholds"}
    assert set(HeadConfig.__struct_fields__) == {*HeadChoices.__struct_fields__, *of_the_task}


def test_default_is_for_the_embedded_backbone() -> None:
    """The default recipe is made for the backbone that needs no network, and trains its head."""
    recipe = read_recipe("default")
    assert "embedded" == recipe.backbone
    assert recipe.head.trained
    assert recipe.training.select_best is None
    assert 384 % (recipe.adapter.reduction_factor or 0) == 0


def test_lab_notebook() -> None:
    """An adapter after every layer (ReLU, H/16, near-zero normal start), a frozen classifier, one epoch of AdamW."""
    recipe = read_recipe("lab-notebook")
    assert "bert-base-uncased" == recipe.backbone
    assert AdapterConfig(
        placement="after_layer", reduction_factor=16, activation="relu", init="normal"
    ) == recipe.adapter.for_hidden_size(768)
    assert not recipe.head.trained
    assert ("linear", "pooler") == (recipe.head.form, recipe.head.pooling)
    training = recipe.training_for("mrpc")
    assert (1, 8, 1e-3, 0.01, "adamw") == (
        training.epochs,
        training.batch_size,
        training.learning_rate,
        training.weight_decay,
        training.optimizer,
    )
    assert (50, "f1_weighted") == (training.evaluate_every, training.select_best)


def test_roberta_patch() -> None:
    """Two Xavier bottlenecks of 64 per layer, RoBERTa's own head left frozen, plain Adam for two epochs."""
    recipe = read_recipe("roberta-patch")
    assert "roberta-base" == recipe.backbone
    adapter = recipe.adapter.for_hidden_size(768)
    assert ("houlsby", 64, "gelu", "xavier") == (
        adapter.placement,
        768 // adapter.reduction_factor,
        adapter.activation,
        adapter.init,
    )
    assert HeadChoices(form="dense_tanh", pooling="cls", dropout=0.1, trained=False) == recipe.head
    training = recipe.training_for("imdb")
    assert (2, 5, 512, 1e-5) == (training.epochs, training.batch_size, training.max_length, training.learning_rate)
    assert ("adam", "constant", 0.0, 0.0) == (
        training.optimizer,
        training.schedule,
        training.weight_decay,
        training.clip_norm,
    )


def test_houlsby_2019() -> None:
    """Bottlenecks of 64 in both places, with the layer norms and the head trained beside them."""
    recipe = read_recipe("houlsby-2019")
    assert ("houlsby", 64, True, True) == (
        recipe.adapter.placement,
        recipe.adapter.bottleneck_size,
        recipe.adapter.layer_norms,
        recipe.head.trained,
    )


@pytest.mark.parametrize(("hidden_size", "factor"), [(768, 12), (1024, 16), (64, 1)])
def test_bottleneck_size_becomes_a_factor(hidden_size: int, factor: int) -> None:
    """A recipe that names M works on a backbone of any H that M divides."""
    assert factor == AdapterChoices(bottleneck_size=64).for_hidden_size(hidden_size).reduction_factor


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (AdapterChoices(bottleneck_size=64), "bottleneck_size: expected a divisor of the hidden size 32, found 64"),
        (AdapterChoices(bottleneck_size=0), "bottleneck_size: expected a divisor of the hidden size 32, found 0"),
        (AdapterChoices(reduction_factor=5), "reduction_factor: expected a divisor of the hidden size 32, found 5"),
        (AdapterChoices(reduction_factor=-1), "reduction_factor: expected a divisor of the hidden size 32, found -1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(choices: AdapterChoices, message: str) -> None:
    """No size is rounded."""
    with pytest.raises(ConfigError, match=message):
        choices.for_hidden_size(32)


@pytest.mark.parametrize("sizes", [{}, {"reduction_factor": 16, "bottleneck_size": 64}])
def test_one_size_is_given(sizes: dict[str, int]) -> None:
    """A factor or M: not both, not neither."""
    with pytest.raises(ConfigError, match="expected one of reduction_factor and bottleneck_size"):
        AdapterChoices(**sizes)


def test_options_win_over_the_recipe() -> None:
    """A choice that is given replaces the recipe's, one that is None does not, and a factor replaces M."""
    recipe = read_recipe("roberta-patch")
    changed = recipe.with_choices(
        {"placement": "pfeiffer", "reduction_factor": 8, "activation": None, "layers": (3, 4)},
        {"trained": True, "pooling": None},
    )
    assert ("pfeiffer", 8, None, "gelu", (3, 4)) == (
        changed.adapter.placement,
        changed.adapter.reduction_factor,
        changed.adapter.bottleneck_size,
        changed.adapter.activation,
        changed.adapter.layers,
    )
    assert (True, "cls") == (changed.head.trained, changed.head.pooling)
    assert recipe == read_recipe("roberta-patch")
    assert recipe == recipe.with_choices(dict.fromkeys(("placement", "layers")), {"trained": None})
    training = recipe.training_for("imdb", epochs=7, batch_size=None)
    assert (7, 5) == (training.epochs, training.batch_size)


def test_tables_by_task_and_method(tmp_path: Path) -> None:
    """A method's table wins over the task's, the task's over [training], and an option over all of them."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "mine"\n[adapter]\nreduction_factor = 4\n[head]\n[training]\nepochs = 1\nbatch_size = 1\n'
        "learning_rate = 0.1\nseed = 1\n[task.mrpc]\nbatch_size = 2\nlearning_rate = 0.2\nseed = 2\n"
        "[method.head_only]\nlearning_rate = 0.3\nseed = 3\n[method.head_only.task.imdb]\nlearning_rate = 0.4\n"
    )
    recipe = read_recipe(str(path))
    assert "mine" == recipe.name
    training = recipe.training_for("mrpc", "head_only", seed=4)
    assert (1, 2, 0.3, 4) == (training.epochs, training.batch_size, training.learning_rate, training.seed)
    assert 0.4 == recipe.training_for("imdb", "head_only").learning_rate
    other = recipe.training_for("sst2")
    assert (1, 1, 0.1, 1) == (other.epochs, other.batch_size, other.learning_rate, other.seed)


def test_placements_as_options() -> None:
    """Every placement can be asked for by option, an unknown one cannot."""
    recipe = read_recipe("default")
    for placement in PLACEMENTS:
        assert placement == recipe.with_choices({"placement": placement}, {}).adapter.placement
    with pytest.raises(ConfigError, match="placement"):
        recipe.with_choices({"placement": "between"}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs", "epoch"), "epoch"),
        (("[head]", "[haed]"), "haed"),
        (('form = "linear"', 'form = "quadratic"'), "Invalid enum value 'quadratic' - at `$.head.form`"),
        (('optimizer = "adamw"', 'optimizer = "sgd"'), "sgd"),
        (("seed = 0", "seed = 0\n[task.other]\nepochz = 2"), "found 'epochz'; did you mean 'epochs'?"),
        (("seed = 0", "seed = 0\n[task.other]\nepochs = 0"), "cannot use epochs: expected an integer >= 1"),
        (("seed = 0", "seed = 0\n[method.headonly]\nepochs = 1"), "did you mean 'head_only'?"),
        (("seed = 0", "seed = 0\n[method.parallel.task.mrpc]\nepochz = 2"), "did you mean 'epochs'?"),
        (("seed = 0", "seed = 0\nseed = 1"), "cannot use recipe mine.toml: expected TOML text in UTF-8"),
    ],
)
def test_wrong_recipes_of_ones_own(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """An unknown or impossible field is refused when the recipe is read, in one line that names it."""
    with pytest.raises(ConfigError) as refused:
        read_recipe(str(own_recipe(tmp_path, change)))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_form_of_the_head_is_checked_when_the_recipe_is_read(tmp_path: Path) -> None:
    """A head of unknown form never gets as far as a training."""
    recipe = read_recipe(str(own_recipe(tmp_path)))
    assert HeadConfig(
        label_names=("no", "yes"), form="linear", pooling=recipe.head.pooling, dropout=recipe.head.dropout
    ) == recipe.head.for_task(("no", "yes"), "classification")


@pytest.mark.parametrize("name", ["defualt", "../recipes/default", "none.toml", "", "DEFAULT"])
def test_unknown_recipes(name: str) -> None:
    """A name is one of the shipped ones or the path of a TOML file."""
    with pytest.raises(UnknownRecipeError, match="cannot use recipe: expected one of bitfit, default"):
        read_recipe(name)


def test_replace_fields_refuses_unknown_names() -> None:
    """A typing error in a field's name is told with the closest field."""
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        replace_fields(TrainingConfig(), {"epoch": 3})
