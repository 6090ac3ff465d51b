"""Fused sets on disk: they name their members by version and digest, and are nothing without the very same ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.fusion import FusionAdapter
from registry.config import AdapterConfig, FusionConfig, LoraConfig
from registry.errors import ConfigError
from registry.schema import MANIFEST_FORMAT
from registry.store.archive import export_version
from registry.store.errors import AdapterNotFoundError, IntegrityError, ManifestError, MemberError, MemberInUseError
from registry.store.members import choose_members
from registry.store.reader import MANIFEST_FILE
from registry.store.store import Store
from registry.store.tensors import import_set, load_set, save_set
from tests.support.stored_sets import ADAPTER, HEAD, INFO, new_manifest, reseal, tree
from tests.support.toy_task import METHODS, randomise, store_members


def save(store: Store, one: AdapterSet, name: str) -> int:
    """Save a set under a name."""
    described = {"adapter": one.adapter_config, "parameters": one.stored_count}
    return save_set(store, one, new_manifest(name, **described))


@pytest.fixture
def fused() -> AdapterSet:
    """A fused set of random numbers, of random members a and b."""
    return randomise(AdapterSet(32, 2, METHODS["fusion"], HEAD)).eval()


@pytest.fixture
def store(tmp_path: Path, fused: AdapterSet) -> Store:
    """A store with the fused set ``both`` and its members."""
    made = Store.create(tmp_path / "store", INFO)
    store_members(made, fused)
    save(made, fused, "both")
    return made


def test_a_stored_fused_set_has_the_members_it_was_saved_with(store: Store, fused: AdapterSet) -> None:
    """What comes back is the fusion and its members, bit for bit; its own files hold the fusion alone."""
    manifest, loaded = load_set(store, "both", 1, INFO)
    for one, other in ((fused.state_dict(), loaded.state_dict()), members_of(fused, loaded)):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert isinstance(manifest.adapter, FusionConfig)
    assert ["a:1", "b:1"] == [member.reference for member in manifest.adapter.members]
    digests = [store.manifest(name, 1).files[0].sha256 for name in "ab"]
    assert digests == [member.digest for member in manifest.adapter.members]
    own = load_file(store.folder("both", 1) / "adapter.safetensors")
    assert all(name.startswith("fusions.") for name in own)
    assert manifest.parameters == fused.trainable_count


def members_of(*sets: AdapterSet) -> list[dict[str, torch.Tensor]]:
    """Return the members' tensors of each set."""
    return [dict(one.adapter.members.named_buffers()) for one in sets]


def again(store: Store) -> None:
    """Put another set in the place of member a."""
    shutil.rmtree(store.root / "a")
    save(store, AdapterSet(32, 2, fusion_shape(store), HEAD, seed=9), "a")


def fusion_shape(store: Store) -> AdapterConfig:
    """Return the shape of member a."""
    config = store.manifest("both", 1).adapter
    assert isinstance(config, FusionConfig)
    return config.members[0].adapter


def reshape(store: Store) -> None:
    """Let the manifest of member a tell another activation, for the same tensors."""
    reseal(store.folder("a", 1) / MANIFEST_FILE, lambda plain: plain["adapter"].update(activation="relu"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda store: shutil.rmtree(store.root / "a"), "none"),
        (lambda store: shutil.rmtree(store.folder("a", 1)), "none"),
        (again, "[0-9a-f]{64}"),
        (reshape, "AdapterConfig.*relu.*"),
    ],
)
def test_another_member_or_none_is_refused(store: Store, change: Callable[[Store], None], found: str) -> None:
    """One line tells which set, which member, what was expected and found, and what to do; verify tells it too."""
    change(store)
    expected = f"cannot use 'both:1' of .*: member 'a:1': expected the set with SHA-256 .*, found {found}; import that"
    with pytest.raises(MemberError, match=expected) as caught:
        load_set(store, "both", 1, INFO)
    assert 4 == caught.value.exit_code
    assert "\n" not in str(caught.value)


def test_a_damaged_member_is_named(store: Store) -> None:
    """A flipped bit in a member keeps the fused set from answering, and the member's file is named."""
    path = store.folder("b", 1) / "adapter.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(IntegrityError, match=r"b/versions/000001/adapter.safetensors: SHA-256"):
        load_set(store, "both", 1, INFO)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda plain: plain["adapter"].update(members=plain["adapter"]["members"][:1]), "2 to 64 stored sets"),
        (lambda plain: plain["adapter"]["members"].reverse(), None),
        (lambda plain: plain["adapter"]["members"][0].update(reference="../a:1"), "found none"),
        (lambda plain: plain["adapter"]["members"][0].update(reference="both:1"), "SHA-256"),
        (lambda plain: plain["adapter"]["members"][0]["adapter"].update(placement="pfeiffer"), "placement pfeiffer"),
        (lambda plain: plain["adapter"].update(members=plain["adapter"]["members"] * 40), "2 to 64 stored sets"),
    ],
)
def test_edited_members_are_refused(store: Store, edit: Callable[[dict], None], told: str | None) -> None:
    """A manifest edited by who knows the format: too few or many members, a set of itself, names that lead out."""
    reseal(store.folder("both", 1) / MANIFEST_FILE, edit)
    if told is None:  # the order of members is of no account to what is fused
        assert isinstance(load_set(store, "both", 1, INFO)[1].adapter, FusionAdapter)
        return
    with pytest.raises((MemberError, ManifestError), match=told):
        load_set(store, "both", 1, INFO)


def test_other_members_are_not_saved(store: Store, fused: AdapterSet) -> None:
    """A fused set whose members are not those of the store, by number or at all, is not stored."""
    before = tree(store.root)
    other = AdapterSet(32, 2, fused.adapter_config, HEAD, seed=7)
    with pytest.raises(ConfigError, match="'third': expected the tensors of its members in the store, found 'others'"):
        save(store, other, "third")
    elsewhere = AdapterSet(32, 2, METHODS["fusion"], HEAD)
    with pytest.raises(MemberError, match="what is to be saved as 'third': member 'a:1': expected the set with SHA-2"):
        save(store, elsewhere, "third")
    assert before == tree(store.root)


@pytest.mark.parametrize("reference", ["a", "a:1", "b:1"])
def test_a_needed_member_is_not_removed(store: Store, reference: str) -> None:
    """Whatever a fused set needs stays, the fused sets are named, and once they are gone it may go."""
    before = tree(store.root)
    with pytest.raises(MemberInUseError, match=f"cannot remove '{reference}' from .*: .*, found both:1; remove that"):
        store.remove(reference)
    assert before == tree(store.root)
    store.remove("both:1")
    store.remove(reference)
    assert reference[0] not in store.names()


def test_what_no_fused_set_needs_is_removed(store: Store) -> None:
    """Other versions and aliases go, and a damaged fused set, which answers nothing, keeps nothing."""
    member = load_set(store, "a", 1, INFO)[1]
    assert 2 == save(store, member, "a")
    store.set_alias("a", "best", 1)
    store.remove("a:2")
    store.remove("a@best")
    path = store.folder("both", 1) / MANIFEST_FILE
    reseal(path, lambda plain: plain["adapter"]["members"][1].update(reference="../b"))
    store.remove("b")
    path.write_bytes(b"{}")
    store.remove("a")
    assert ["both"] == store.names()


def test_a_name_goes_with_the_fused_set_in_it(store: Store, fused: AdapterSet) -> None:
    """A fused set saved as the next version of its member's name is removed with it."""
    store.remove("both")
    assert 2 == save(store, fused, "a")
    with pytest.raises(MemberInUseError, match="found a:2"):
        store.remove("a:1")
    store.remove("a")
    assert ["b"] == store.names()


def test_an_exported_fused_set_needs_its_members_there(store: Store, tmp_path: Path) -> None:
    """Another store takes it in once its members are there, under whatever version number, and it answers the same."""
    files = {name: export_version(store, name, tmp_path / f"{name}.adapter") for name in ("a", "b", "both")}
    other = Store.create(tmp_path / "other", INFO)
    save(other, AdapterSet(32, 2, ADAPTER, HEAD), "a")
    before = tree(other.root)
    expected = r"member 'a': expected the set with SHA-256 [0-9a-f]{64}, found none of its 1 versions; import that set"
    with pytest.raises(MemberError, match=expected):
        import_set(other, files["both"])
    assert before == tree(other.root)
    assert ["a:2", "b:1", "joined:1"] == [
        str(import_set(other, files[name], as_name)) for name, as_name in (("a", None), ("b", None), ("both", "joined"))
    ]
    manifest, loaded = load_set(other, "joined", 1, INFO)
    assert isinstance(manifest.adapter, FusionConfig)
    assert ["a:2", "b:1"] == [member.reference for member in manifest.adapter.members]
    original = load_set(store, "both", 1, INFO)[1]
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in original.state_dict().items())
    own, theirs = members_of(original, loaded)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


def test_members_are_chosen_by_exact_version(store: Store) -> None:
    """Names and aliases become the versions that they mean now; what is no set of bottlenecks is refused by name."""
    store.set_alias("b", "best", 1)
    config = choose_members(store, ["a", "b@best"])
    assert ["a:1", "b:1"] == [member.reference for member in config.members]
    save(store, AdapterSet(32, 2, LoraConfig(), HEAD), "low")
    save(store, AdapterSet(32, 2, None, HEAD), "none")
    for reference, found in (("both", "fusion"), ("low", "lora"), ("none", "a head alone")):
        with pytest.raises(ConfigError, match=f"member '{reference}': expected a set of bottlenecks, found '{found}'"):
            choose_members(store, ["a", reference])
    with pytest.raises(AdapterNotFoundError, match="'nobody'"):
        choose_members(store, ["a", "nobody"])
    with pytest.raises(ConfigError, match="members: expected each set once, found 'a:1, a:1'"):
        choose_members(store, ["a", "a:1"])


def test_manifests_of_older_formats_are_read(tmp_path: Path) -> None:
    """Sets written before fused ones, and before other methods than bottlenecks, load as they are."""
    store = Store.create(tmp_path / "store", INFO)
    one = AdapterSet(32, 2, ADAPTER, HEAD, seed=1)
    assert 1 == save(store, one, "old")
    path = store.folder("old", 1) / MANIFEST_FILE
    for number in (3, 2, 1):
        reseal(path, lambda plain, number=number: plain.update(format=number))
        if number == 1:
            reseal(path, lambda plain: plain["adapter"].pop("method"))
        manifest, loaded = load_set(store, "old", 1, INFO)
        assert (number, ADAPTER) == (manifest.format, manifest.adapter)
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert 3 == MANIFEST_FORMAT
