"""Where a backbone comes from: the embedded package, a folder or the Hub; and what is refused on the way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

import registry.model.pretrained
from registry.errors import (
    BackboneError,
    BackboneNotFoundError,
    BackboneUnavailableError,
    DamagedBackboneError,
    UnsupportedBackboneError,
)
from registry.model.backbone import Backbone
from registry.model.pretrained import EMBEDDED_SHA256, locate
from tests.support.stock_models import difference, our_states, random_rows, stock_states
from tests.support.tiny_backbone import save_tiny_checkpoint, tiny_model, tiny_tokenizer

UNKNOWN = "adapter-registry-tests/no-such-model"


class PretendHub:
    """A Hub with one model, that can be away, with or without a cached copy; it notes what was asked."""

    def __init__(self, folder: Path, away: str = "", cached: bool = True) -> None:
        self.path, self.away, self.cached = folder, away, cached
        self.asked: list[tuple[str, str | None, bool]] = []

    def obstacle(self, repository: str, revision: str | None) -> str:
        """Return why the Hub is away."""
        return self.away

    def folder(self, repository: str, revision: str | None, *, cached_only: bool) -> Path:
        """Return the folder, unless it would have to come over the network."""
        self.asked.append((repository, revision, cached_only))
        if cached_only and not self.cached:
            raise LocalEntryNotFoundError("not in the cache")
        return self.path


@pytest.fixture
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of somebody who did not ask for offline."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.slow
def test_embedded_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded encoder is found without a network, and only the published bytes are taken."""
    assert (locate("embedded") / "model.safetensors").is_file()
    monkeypatch.setattr(registry.model.pretrained, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(DamagedBackboneError, match=f"SHA-256: expected {'0' * 64}, found {EMBEDDED_SHA256}"):
        locate("embedded")


def test_embedded_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message says how to install it."""
    monkeypatch.setattr(registry.model.pretrained, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(BackboneNotFoundError, match=r"not installed; install it with: pip install 'adapter-registry\["):
        locate("embedded")


@pytest.mark.usefixtures("_online")
def test_hub_that_answers_gives_its_files(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    """A Hub id loads what the Hub has, at the revision asked for."""
    hub = PretendHub(tiny_folder)
    info = Backbone.load("somebody/tiny", device="cpu", revision="v1", hub=hub).info
    assert ("somebody/tiny", "v1") == (info.source, info.revision)
    assert tiny_backbone.info.fingerprint == info.fingerprint
    assert [("somebody/tiny", "v1", False)] == hub.asked


@pytest.mark.usefixtures("_online")
@pytest.mark.parametrize("offline", [False, True])
def test_cached_model_loads_while_the_hub_is_away(tiny_folder: Path, offline: bool) -> None:
    """Without the Hub, or without wanting it, the cache is enough and nothing else is asked."""
    hub = PretendHub(tiny_folder, away="" if offline else "the line is dead")
    assert tiny_folder == locate("somebody/tiny", offline=offline, hub=hub)
    assert [("somebody/tiny", None, True)] == hub.asked


@pytest.mark.usefixtures("_online")
def test_model_that_is_nowhere_is_told_with_the_two_ways_on(tiny_folder: Path) -> None:
    """Neither reached nor cached: one line with the id, the reason and what to do."""
    hub = PretendHub(tiny_folder, away="the line is dead", cached=False)
    message = (
        "cannot load backbone 'somebody/tiny': the line is dead, and it is not cached; use --backbone embedded or a l"
    )
    with pytest.raises(BackboneUnavailableError, match=message) as caught:
        Backbone.load("somebody/tiny", device="cpu", hub=hub)
    assert 6 == caught.value.exit_code
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_online")
def test_misspelt_model_gets_a_suggestion(tiny_folder: Path) -> None:
    """A name near a well-known one is likely that one."""
    hub = PretendHub(tiny_folder, away="the line is dead", cached=False)
    with pytest.raises(BackboneUnavailableError, match="local folder; did you mean 'bert-base-uncased'"):
        locate("bert-base-uncase", hub=hub)


def test_real_hub_offline_fails_at_once() -> None:
    """As these tests run offline, a model that is not cached fails in no time, with its exit code."""
    start = time.monotonic()
    with pytest.raises(BackboneUnavailableError, match=f"'{UNKNOWN}': offline was asked for, and it is not") as caught:
        Backbone.load(UNKNOWN, device="cpu")
    assert time.monotonic() - start < 10
    assert 6 == caught.value.exit_code


@pytest.mark.usefixtures("_online")
def test_real_hub_that_cannot_be_reached_fails_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead endpoint is told in one line before anybody loses patience."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(BackboneUnavailableError, match=f"'{UNKNOWN}': http://127.0.0.1:9 does not answer, and it is"):
        Backbone.load(UNKNOWN, device="cpu")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("source", ["./no/such/folder", "/no/such/folder", "a b"])
def test_folder_that_is_missing_is_told(source: str) -> None:
    """What can only be a folder is not asked of the Hub."""
    with pytest.raises(BackboneNotFoundError, match="expected a folder, found none") as caught:
        Backbone.load(source, device="cpu")
    assert 3 == caught.value.exit_code


def test_sharded_checkpoint_is_the_same_backbone(tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    """However the tensors are spread over files, identity and answers are the same."""
    model = save_tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    loaded = Backbone.load(str(tmp_path), device="cpu")
    assert tiny_backbone.info.fingerprint == loaded.info.fingerprint
    assert tiny_backbone.memory_digest() == loaded.memory_digest()


@pytest.mark.parametrize(
    ("family", "kind", "pooler"),
    [
        ("bert", AutoModelForMaskedLM, False),
        ("bert", AutoModelForSequenceClassification, True),
        ("roberta", AutoModelForMaskedLM, False),
        ("distilbert", AutoModelForMaskedLM, False),
        ("electra", AutoModelForSequenceClassification, False),
    ],
)
def test_encoder_inside_a_task_model_is_found(
    tmp_path: Path, family: str, kind: type[PreTrainedModel], pooler: bool
) -> None:
    """Published checkpoints are task models; their encoder is taken, their heads are left, a pooler only if stored."""
    model = kind.from_config(tiny_model(family).config).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer(model.config.pad_token_id).save_pretrained(tmp_path)
    backbone, rows = Backbone.load(str(tmp_path), device="cpu"), random_rows(words=90)
    assert difference(stock_states(model.base_model, rows), our_states(backbone.encoder, rows)) <= 1e-5
    assert pooler == (backbone.encoder.pooler is not None)


def test_norms_under_their_old_names_are_read(tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    """The first BERT checkpoints call weight and bias of a norm gamma and beta; they give the same states."""
    folder = copy(tiny_folder, tmp_path)
    edit_tensors(folder, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"))
    edit_tensors(folder, lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta"))
    rows = random_rows(words=90)
    old = Backbone.load(str(folder), device="cpu")
    assert 0.0 == difference(our_states(tiny_backbone.encoder, rows), our_states(old.encoder, rows))


def copy(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a checkpoint folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    """Write the weight file anew with other names; an empty name leaves the tensor out."""
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors.pop("", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    """Write the configuration anew with other fields."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def keep_pickle_only(folder: Path) -> None:
    """Leave the weights as a pickle, as old checkpoints have them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    """Cut the last bytes off the weight file."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def drop_weight(folder: Path) -> None:
    """Leave one tensor out."""
    edit_tensors(folder, lambda name: "" if name == "encoder.layer.1.output.dense.bias" else name)


def add_weight(folder: Path) -> None:
    """Add a tensor that no module of the family has."""
    tensors = {**load_file(folder / "model.safetensors"), "encoder.layer.0.extra.weight": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tokenizer(folder: Path) -> None:
    """Remove all that says how words become tokens."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (keep_pickle_only, BackboneNotFoundError, "expected model.safetensors, found pickled weights only"),
        (lambda folder: (folder / "model.safetensors").unlink(), BackboneNotFoundError, "safetensors, found none"),
        (cut_weights, DamagedBackboneError, "model.safetensors: content: expected valid safetensors, found "),
        (drop_weight, DamagedBackboneError, "one named encoder.layer.1.output.dense.bias, found none"),
        (add_weight, DamagedBackboneError, "those of its family, found also encoder.layer.0.extra.weight"),
        (
            lambda folder: edit_config(folder, num_hidden_layers=3),
            DamagedBackboneError,
            r"named encoder.layer.2\.\S+, found",
        ),
        (lambda folder: edit_config(folder, num_hidden_layers=1), DamagedBackboneError, "found also encoder.layer.1"),
        (
            lambda folder: edit_config(folder, intermediate_size=65),
            DamagedBackboneError,
            r"expected \(65, 32\), found \(64, 32",
        ),
        (
            lambda folder: edit_config(folder, num_attention_heads=5),
            DamagedBackboneError,
            "a divisor of the hidden size 32, ",
        ),
        (
            lambda folder: edit_config(folder, hidden_size="32"),
            DamagedBackboneError,
            "config.json: content: expected a valid",
        ),
        (lambda folder: edit_config(folder, model_type="gpt2"), UnsupportedBackboneError, "distilbert.*, found 'gpt2'"),
        (lambda folder: edit_config(folder, is_decoder=True), UnsupportedBackboneError, "found 'bert with a decoder'"),
        (lambda folder: edit_config(folder, hidden_act="odd"), UnsupportedBackboneError, "with an unknown activation'"),
        (
            lambda folder: edit_config(folder, position_embedding_type="relative_key"),
            UnsupportedBackboneError,
            "found 'bert with relative positions'",
        ),
        (lambda folder: (folder / "config.json").unlink(), BackboneNotFoundError, "expected a readable config.json"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            BackboneNotFoundError,
            "readable config.json, found J",
        ),
        (lambda folder: (folder / "config.json").write_text("[" * 99999), BackboneNotFoundError, "a readable config"),
        (lambda folder: (folder / "config.json").write_text("[]"), BackboneNotFoundError, "an object in config.json"),
        (drop_tokenizer, BackboneNotFoundError, "expected tokenizer files, found none"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("?"),
            BackboneNotFoundError,
            "tokenizer files, found none",
        ),
    ],
)
def test_unfit_folder_is_refused(
    tiny_folder: Path, tmp_path: Path, damage: Callable[[Path], object], error: type[BackboneError], message: str
) -> None:
    """Whatever is missing, damaged or not ours to read, the answer is one line that says what and where."""
    folder = copy(tiny_folder, tmp_path)
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        Backbone.load(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_never_run(tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    """A checkpoint that brings its own modules is read as the family it names, and they stay unread."""
    folder, witness = copy(tiny_folder, tmp_path), tmp_path / "witness"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(witness)!r}, 'w').write('run')\n")
    edit_config(folder, auto_map={"AutoConfig": "configuration_evil.C", "AutoModel": "modeling_evil.M"})
    path = folder / "tokenizer_config.json"
    plain = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}}
    path.write_text(json.dumps(plain))
    assert tiny_backbone.info.fingerprint == Backbone.load(str(folder), device="cpu").info.fingerprint
    assert not witness.exists()


@pytest.mark.usefixtures("_online")
def test_revision_that_the_hub_lacks_is_told(tiny_folder: Path) -> None:
    """A branch, tag or commit that is not there is a mistake of the caller, not of the network."""

    class NoRevision(PretendHub):
        def folder(self, repository: str, revision: str | None, *, cached_only: bool) -> Path:
            raise RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    with pytest.raises(BackboneNotFoundError, match="a public model on the Hub, found no revision 'v9'") as caught:
        locate("somebody/tiny", "v9", hub=NoRevision(tiny_folder))
    assert 3 == caught.value.exit_code
