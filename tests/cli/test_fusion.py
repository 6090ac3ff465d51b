"""``train --method fusion``: stored sets fused, by command and in Python, alone, together and again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest

from registry.config import FusionConfig
from registry.model.backbone import Backbone
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.store.store import Store
from registry.tasks.task_data import TaskData
from registry.training.recipes import read_recipe
from tests.support.command_line import QUICK, call, set_digest, succeed, write_data_folder
from tests.support.stored_sets import tree

SHAPES = {
    "a": ("sst2", "--placement", "pfeiffer"),
    "b": ("imdb", "--placement", "pfeiffer", "--activation", "relu"),
    "other": ("sst2", "--placement", "houlsby"),
    "upper": ("sst2", "--placement", "pfeiffer", "--layers", "1"),
    "norms": ("sst2", "--placement", "pfeiffer", "--layer-norms"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three built-in tasks in little."""
    return write_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, folder: Path) -> Path:
    """A store with sets of several shapes, and ``both``, which is fused of a and b; not to be changed."""
    store = tmp_path_factory.mktemp("stores") / "store"
    places = ("--data", folder, "--backbone", tiny_folder, *QUICK)
    for name, (task, *shape) in SHAPES.items():
        succeed("--store", store, "train", task, "--name", name, *places, "--reduction-factor", "4", *shape)
    succeed("--store", store, "train", "sst2", "--name", "low", *places, "--method", "lora")
    succeed("--store", store, "alias", "b", "best", "1")
    succeed("--store", store, *fuse(folder, "a,b@best"), "--name", "both")
    return store


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained store, to be changed at will."""
    return Path(shutil.copytree(trained, tmp_path / "store"))


def fuse(folder: Path, members: str | None, task: str = "mrpc") -> tuple[object, ...]:
    """Return the arguments of a short training of a fused set."""
    given = () if members is None else ("--members", members)
    return ("train", task, "--data", folder, *QUICK, "--method", "fusion", *given)


def test_a_fused_set_names_its_members(trained: Path) -> None:
    """References become exact versions with digests in the manifest, which show tells; list and verify know the set."""
    manifest = Store.open(trained).manifest("both", 1)
    assert isinstance(manifest.adapter, FusionConfig)
    told = [(member.reference, member.digest) for member in manifest.adapter.members]
    assert [("a:1", set_digest(trained, "a")), ("b:1", set_digest(trained, "b"))] == told
    assert "fusion" == manifest.recipe
    line = next(line for line in succeed("--store", trained, "show", "both").out.splitlines() if "members" in line)
    assert "a:1 " + set_digest(trained, "a") + ", b:1 " in line
    shown = json.loads(succeed("--store", trained, "show", "both", "--json").out)
    assert ["a:1", "b:1"] == [member["reference"] for member in shown["adapter"]["members"]]
    listed = {row["name"]: row for row in succeed("--store", trained, "list", "--json").rows}
    assert "fusion" == listed["both"]["placement"]
    assert "7 of 7 names are whole" in succeed("--store", trained, "verify").out


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (None, "members: expected 2 to 64 stored sets, such as --members a,b:2, found ''"),
        ("a", "members: expected 2 to 64 stored sets, such as --members a,b:2, found 'a:1'"),
        ("a,a:1", "members: expected each set once, found 'a:1, a:1'"),
        ("a,nobody", "cannot find adapter set 'nobody'"),
        ("a,b:7", "cannot find adapter set 'b:7'"),
        ("a,other", "member 'other:1': expected placement pfeiffer as 'a:1' has, found 'houlsby'"),
        ("a,upper", "member 'upper:1': expected layers None as 'a:1' has, found (1,)"),
        ("norms,a", "member 'norms:1': expected bottlenecks without layer norms of their own, found 'layer_norms'"),
        ("a,low", "member 'low': expected a set of bottlenecks, found 'lora'"),
        ("a,both", "member 'both': expected a set of bottlenecks, found 'fusion'"),
        ("a,", "name ''"),
    ],
)
def test_members_that_do_not_go_together(trained: Path, folder: Path, members: str | None, message: str) -> None:
    """Each mistake is one line, and nothing is stored."""
    before = tree(trained)
    outcome = call("--store", trained, *fuse(folder, members))
    assert outcome.code in (2, 3)
    assert message in outcome.message
    assert before == tree(trained)


def test_fusion_needs_a_store(tmp_path: Path, tiny_folder: Path, folder: Path) -> None:
    """Where there is no store there are no members, and no store is made; a benchmark has none to take them from."""
    outcome = call("--store", tmp_path / "none", *fuse(folder, "a,b"), "--backbone", tiny_folder)
    assert "cannot use method fusion: expected train or Registry.train, which look its members up" in outcome.message
    assert not (tmp_path / "none").exists()
    places = ("--data", folder, "--backbone", tiny_folder, "--out", tmp_path / "out", *QUICK)
    outcome = call("--store", tmp_path / "none", "bench", "mrpc", "--method", "fusion", *places)
    assert (2, True) == (outcome.code, "cannot use method fusion: " in outcome.message)
    outcome = call("--store", tmp_path / "none", *fuse(folder, "a,b")[:-4], "--members", "a,b")
    assert "adapter: expected one of placement, " in outcome.message


def test_a_fusion_is_trained_again(store: Path) -> None:
    """``--from`` takes the very same members and comes to the same weights; without them it says which is missing."""
    assert "same weights as both:1" in succeed("--store", store, "train", "--from", "both").out
    shutil.rmtree(store / "a")
    outcome = call("--store", store, "train", "--from", "both")
    assert 4 == outcome.code
    assert "cannot use what is to be fused: member 'a:1': expected the set with SHA-256 " in outcome.message


def test_fused_sets_are_trained_together(store: Path, folder: Path) -> None:
    """Two tasks fused in one pass learn what each learns alone."""
    succeed("--store", store, "train", "imdb", *fuse(folder, "a,b", "sst2")[1:], "--together")
    for task in ("sst2", "imdb"):
        succeed("--store", store, *fuse(folder, "a,b", task), "--name", f"{task}-alone")
    registry = Registry(store, Backbone.load(Store.open(store).info.backbone.source, device="cpu"))
    predictor = Predictor(registry.backbone, registry)
    for task in ("sst2", "imdb"):
        both = [predictor.logits(name, ["a good film", "dull"]) for name in (task, f"{task}-alone")]
        numpy.testing.assert_allclose(*both, atol=1e-5)


def test_python_does_the_same(store: Path, tmp_path: Path, folder: Path) -> None:
    """``Registry.train`` takes members as the command does, and what it stores answers beside its members."""
    registry = Registry(store, Backbone.load(Store.open(store).info.backbone.source, device="cpu"))
    texts = ["a good film", "a bad film", "the good city", "bad rain"] * 4
    data = TaskData.from_lists(texts, ["good", "bad"] * 8)
    choices = {"epochs": 1, "max_length": 32, "batch_size": 8}
    stored = registry.train("mood", data, "fusion", adapter={"members": ["a", "b"]}, **choices)
    manifest = registry.manifest(stored.reference)
    assert isinstance(manifest.adapter, FusionConfig)
    assert ["a:1", "b:1"] == [member.reference for member in manifest.adapter.members]
    predictor = Predictor(registry.backbone, registry)
    rows = [
        ("mood", "a good film"),
        ("a", "a good film"),
        ("both", "he left", "she went"),
        ("mood", "bad"),
        ("low", "x"),
    ]
    mixed = predictor.mixed(rows)
    for row, answer in zip(rows, mixed, strict=True):
        (alone,) = predictor.mixed([row])
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
    with pytest.raises(ValueError, match="members: expected 2 to 64 stored sets"):
        registry.train("mood", data, "fusion", **choices)


def test_members_stay_and_fused_sets_do_not_merge(store: Path, tmp_path: Path) -> None:
    """A needed member is not removed, and names what needs it; fused sets are refused by merge, by name."""
    outcome = call("--store", store, "remove", "a", "--yes")
    assert (1, True) == (outcome.code, "expected no fused set that needs it, found both:1; remove" in outcome.message)
    outcome = call("--store", store, "merge", "both", "both:1", "--name", "m")
    assert (2, True) == (outcome.code, "sets that answer without others" in outcome.message)
    assert "removed 0 leftovers" in succeed("--store", store, "gc", "--older-than", "0").out
    succeed("--store", store, "remove", "both", "--yes")
    succeed("--store", store, "remove", "a", "--yes")


def test_a_fused_set_goes_to_another_store_after_its_members(store: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """Its file is taken in where its members are, and refused with one line where they are not."""
    told = succeed("--store", store, "export", "both", tmp_path / "both.adapter")
    assert "a store takes it in once it has its members under their names: send a:1, b:1 too" in told.err
    other = tmp_path / "other"
    succeed("--store", other, "init", "--backbone", tiny_folder)
    outcome = call("--store", other, "import", tmp_path / "both.adapter")
    assert 4 == outcome.code
    assert "member 'a': expected the set with SHA-256 " in outcome.message
    assert "found none of its 0 versions; import that set under its own name" in outcome.message
    for name in ("a", "b"):
        succeed("--store", store, "export", name, tmp_path / f"{name}.adapter")
        succeed("--store", other, "import", tmp_path / f"{name}.adapter")
    succeed("--store", other, "import", tmp_path / "both.adapter")
    question = ("predict", "both", "a good film", "a bad film", "--json")
    assert succeed("--store", store, *question).rows == succeed("--store", other, *question).rows


def test_the_recipe_tells_that_it_is_not_tuned() -> None:
    """Nobody takes the shipped settings of fusion for tuned ones."""
    assert "not tuned" in read_recipe("fusion").description
