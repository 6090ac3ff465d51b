"""The registry: a store together with the one backbone its sets fit."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from registry.adapters.adapter_set import AdapterSet
from registry.config import TrainingConfig
from registry.errors import BackboneMismatchError, ConfigError, InvalidNameError, ShapeMismatchError
from registry.model.backbone import Backbone
from registry.provenance import library_versions
from registry.schema import Reference, SetInfo
from registry.store.audit import Problem
from registry.store.errors import AdapterNotFoundError, IntegrityError, ManifestError, NotAStoreError
from registry.store.registry import Registry
from tests.support.stored_sets import ADAPTER, HEAD
from tests.support.tiny_backbone import save_tiny_checkpoint


@pytest.fixture(scope="module")
def other_backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A backbone of the same shapes with other weights."""
    folder = tmp_path_factory.mktemp("checkpoints") / "other"
    save_tiny_checkpoint(folder, seed=1)
    return Backbone.load(str(folder), device="cpu")


@pytest.fixture
def registry(tmp_path: Path, tiny_backbone: Backbone) -> Registry:
    """A registry of an empty store."""
    return Registry.create(tmp_path / "store", tiny_backbone)


def new_set(seed: int = 0) -> AdapterSet:
    """Return a set that fits the tiny backbone, and is known to have been trained at 16 tokens."""
    fresh = AdapterSet(32, 2, ADAPTER, HEAD, seed=seed)
    fresh.info = SetInfo(max_length=16)
    return fresh


def test_saved_set_is_loaded(registry: Registry) -> None:
    """Saving gives a reference with a version, and loading it gives bit-equal tensors ready to answer."""
    saved = new_set(seed=5)
    reference = registry.save("mrpc", saved)
    assert Reference(name="mrpc", version=1) == reference
    loaded = registry.load(reference)
    assert not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in saved.state_dict().items())
    assert {registry.backbone.device} == {tensor.device for tensor in loaded.state_dict().values()}


def test_manifest_tells_what_was_given(registry: Registry) -> None:
    """All that a caller knows of a set is kept with it, and who wrote it as well."""
    training = TrainingConfig(epochs=2, seed=7)
    info = SetInfo(
        task="mrpc", pair=True, max_length=64, scores={"accuracy": 0.5}, main_metric="accuracy",
        recipe="fast", training=training, split="validation",
    )  # fmt: skip
    registry.save("mrpc", new_set(), info)
    manifest = registry.manifest("mrpc")
    assert ("mrpc", True, 64, {"accuracy": 0.5}) == (
        manifest.task, manifest.pair, manifest.max_length, manifest.scores
    )  # fmt: skip
    assert ("accuracy", "fast", training, "validation") == (
        manifest.main_metric, manifest.recipe, manifest.training, manifest.split
    )  # fmt: skip
    assert registry.backbone.info == manifest.backbone
    assert new_set().stored_count == manifest.parameters
    assert {"adapter-registry", "safetensors", "torch", "transformers"} <= set(manifest.library_versions)
    assert library_versions() == manifest.library_versions
    assert manifest.created.endswith("+00:00")


def test_names_versions_and_aliases(registry: Registry) -> None:
    """A registry is a collection of names, each with versions and aliases."""
    for name in ("mrpc", "imdb", "mrpc"):
        registry.save(name, new_set())
    registry.alias("mrpc", "best", 1)
    assert (["imdb", "mrpc"], 2) == (list(registry), len(registry))
    assert ([1, 2], {"best": 1}) == (registry.versions("mrpc"), registry.aliases("mrpc"))
    present = ["mrpc", "mrpc:2", "mrpc@best", Reference(name="imdb", version=1)]
    absent = ["sst2", "mrpc:3", "mrpc@worst", "imdb@best", "../mrpc", "mrpc:x", "", 3, None]
    assert present == [reference for reference in [*present, *absent] if reference in registry]
    assert repr(registry).endswith(": 2 names)")
    registry.remove("imdb")
    assert ["mrpc"] == list(registry)


def test_references_load_their_version(registry: Registry) -> None:
    """A bare name loads the newest version, a number and an alias the one they say."""
    for seed in (1, 2, 3):
        registry.save("mrpc", new_set(seed))
    registry.alias("mrpc", "best", 2)
    for reference, seed in (("mrpc", 3), ("mrpc:1", 1), ("mrpc@best", 2)):
        assert torch.equal(new_set(seed).head.out.weight, registry.load(reference).head.out.weight)


def test_registry_needs_a_store(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Opening makes nothing: a missing store is an error that says how to make one."""
    with pytest.raises(NotAStoreError, match="adapter-registry init"):
        Registry(tmp_path / "none", tiny_backbone)
    assert [] == list(tmp_path.iterdir())


def test_registry_of_another_backbone_is_refused(
    registry: Registry, other_backbone: Backbone, tiny_backbone: Backbone
) -> None:
    """A store opens only for the backbone it was made for, and says which one that is."""
    told = f"it belongs to '{tiny_backbone.info.source}', and '{other_backbone.info.source}' needs a store of its own"
    for door in (Registry, Registry.create):
        with pytest.raises(BackboneMismatchError, match=told):
            door(registry.store.root, other_backbone)


def test_version_of_another_backbone_is_refused(registry: Registry, other_backbone: Backbone, tmp_path: Path) -> None:
    """A version copied in from the store of another backbone of equal shapes does not load."""
    other = Registry.create(tmp_path / "other", other_backbone)
    other.save("mrpc", new_set())
    (other.store.root / "mrpc").rename(registry.store.root / "mrpc")
    with pytest.raises(BackboneMismatchError, match=r"cannot use 'mrpc:1' of .*: it was made for backbone"):
        registry.load("mrpc")
    assert [("mrpc:1", BackboneMismatchError)] == [(name, type(err)) for name, err in registry.verify()]


def test_refused_saves_leave_nothing(registry: Registry) -> None:
    """A set that cannot be stored changes nothing."""
    broken = new_set()
    with torch.no_grad():
        broken.head.out.bias[0] = float("nan")
    with pytest.raises(ConfigError, match="expected finite values"):
        registry.save("mrpc", broken)
    with pytest.raises(InvalidNameError, match=r"cannot use name '../mrpc'"):
        registry.save("../mrpc", new_set())
    with pytest.raises(ShapeMismatchError, match="hidden states"):
        registry.save("mrpc", AdapterSet(64, 2, ADAPTER, HEAD), SetInfo())
    with pytest.raises(ConfigError, match=r"expected SetInfo\(max_length=…, pair=…\), as this set was not"):
        registry.save("mrpc", AdapterSet(32, 2, ADAPTER, HEAD))
    with pytest.raises(ConfigError, match="`float`, got `null`"):
        registry.save("mrpc", new_set(), SetInfo(scores={"f1": float("inf")}))
    assert 0 == len(registry)


def test_unknown_name_suggests_the_nearest(registry: Registry) -> None:
    """A mistyped name is answered with the nearest one."""
    registry.save("mrpc", new_set())
    with pytest.raises(AdapterNotFoundError, match="did you mean 'mrpc'"):
        registry.load("mprc")


def test_verify_tells_everything_that_is_wrong(registry: Registry) -> None:
    """Verifying goes on after the first problem and names each with the error that using it would raise."""
    for _ in range(4):
        registry.save("mrpc", new_set())
    registry.save("imdb", new_set())
    registry.alias("mrpc", "best", 1)
    registry.alias("mrpc", "last", 4)
    assert [] == registry.verify()
    store = registry.store
    (store.folder("mrpc", 1) / "head.safetensors").write_bytes(b"")
    (store.folder("mrpc", 3) / "manifest.json").write_text(json.dumps({}))
    (store.root / "mrpc" / "aliases" / "last").write_bytes(b"9\n")
    expected = [("mrpc:1", IntegrityError), ("mrpc:3", ManifestError), ("mrpc@last", AdapterNotFoundError)]
    assert expected == [(problem.reference, type(problem.error)) for problem in registry.verify()]
    assert expected == [(problem.reference, type(problem.error)) for problem in registry.verify(["mrpc", "imdb"])]


def test_verify_of_single_references(registry: Registry) -> None:
    """Only what is asked for is verified, and what is not there is a problem as well."""
    registry.save("mrpc", new_set())
    registry.save("mrpc", new_set())
    registry.alias("mrpc", "best", 1)
    (registry.store.folder("mrpc", 1) / "head.safetensors").unlink()
    assert [] == registry.verify(["mrpc:2"])
    asked = ["mrpc@best", Reference(name="mrpc", version=1), "mrpc:7", "sst2", "../x"]
    problems = registry.verify(asked)
    assert all(isinstance(problem, Problem) for problem in problems)
    assert [str(reference) for reference in asked] == [problem.reference for problem in problems]


def test_threads_read_one_registry(registry: Registry) -> None:
    """Threads that load different versions at once, while new ones are saved, each get theirs."""
    for seed in range(3):
        registry.save("mrpc", new_set(seed))

    def read(seed: int) -> bool:
        expected = new_set(seed).head.out.weight
        return all(torch.equal(expected, registry.load(f"mrpc:{seed + 1}").head.out.weight) for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, number % 3) for number in range(6)]
        for _ in range(5):
            registry.save("mrpc", new_set(9))
    assert [True] * 6 == [reader.result() for reader in readers]
