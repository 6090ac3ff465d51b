"""The frozen encoder: load it, identify it, ask it.

A ``Backbone`` never changes: no parameter requires a gradient, ``train()`` keeps ``eval()``, adapters are an
argument of the forward. It knows nothing of tasks, stores or training.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.interface import Adapters
from registry.config import HeadConfig, MethodConfig, Pooling
from registry.errors import BackboneMismatchError, ConfigError
from registry.model.batching import Batch, TokenRows, TokensOnDemand
from registry.model.encoder import Encoder, inner_sizes
from registry.model.families import FAMILIES
from registry.model.inference import pool_rows
from registry.model.machine import choose_device, choose_dtype, keep_freed_memory
from registry.model.pretrained import (
    Hub,
    Weights,
    fingerprint,
    load_tokenizer,
    locate,
    read_encoder_tensors,
    read_supported_config,
    tokenizer_digest,
)
from registry.schema import BackboneInfo
from registry.validation import choose, require


class Backbone(nn.Module):
    """One frozen encoder with its tokenizer, on one device, in one dtype.

    Args:
        encoder: frozen here, for good.
        tokenizer: the checkpoint's own.
        info: what identifies the two.
    """

    def __init__(self, encoder: Encoder, tokenizer: PreTrainedTokenizerFast, info: BackboneInfo) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.info = info
        self._cutting: dict[int, Tokenizer] = {}
        self._cutting_lock = threading.Lock()
        super().train(False)

    @classmethod
    def load(
        cls,
        source: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        offline: bool = False,
        hub: Hub | None = None,
    ) -> Backbone:
        """Return the frozen encoder of ``source``: ``embedded``, a Hub id or a local folder.

        Args:
            source: what to load; weights come from safetensors only and no remote code is run.
            device: ``auto`` is CUDA, else Apple MPS, else CPU.
            dtype: ``auto`` is bfloat16 on CUDA and float32 elsewhere.
            revision: branch, tag or commit of a Hub id.
            offline: never ask the network.
            hub: another Hub than the real one.

        Raises:
            BackboneNotFoundError, BackboneUnavailableError: nothing to load from.
            UnsupportedBackboneError: a family that ``families.py`` has no map of.
            DamagedBackboneError: damaged or incomplete weights.
            DeviceError: a device this machine lacks.
        """
        place = choose_device(device)
        if place.type == "cpu":
            keep_freed_memory()
        precision = choose_dtype(dtype, place)
        folder = locate(source, revision, offline=offline, hub=hub)
        config = read_supported_config(folder, source)
        family = FAMILIES[config.model_type]
        tensors = read_encoder_tensors(folder, source, family.prefix, family.parts)
        tokenizer = load_tokenizer(folder, source)
        encoder = Encoder(Weights(tensors, folder), config)
        info = BackboneInfo(
            source=source,
            revision=revision,
            family=config.model_type,
            hidden_size=encoder.hidden_size,
            layers=len(encoder.layers),
            inner_sizes=inner_sizes(config),
            parameters=encoder.parameter_count,
            fingerprint=fingerprint(config, tensors),
            tokenizer_digest=tokenizer_digest(tokenizer),
        )
        return cls(encoder.to(place, precision), tokenizer, info)

    def __reduce__(self) -> tuple[Any, ...]:
        """Load the checkpoint again in another process, or for a copy, in the same precision and on the same device."""
        return _load_again, (self.info, str(self.device), str(self.dtype).removeprefix("torch."))

    def __repr__(self) -> str:
        info, precision = self.info, str(self.dtype).removeprefix("torch.")
        shape = f"{info.family}, {info.layers} layers, H {info.hidden_size}, {info.parameters:,} parameters"
        return f"Backbone({info.source!r}: {shape}, {precision} on {self.device})"

    @property
    def device(self) -> torch.device:
        """Return where the encoder is."""
        return self.encoder.embeddings.word.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the encoder's floating dtype; adapters and heads are float32 whatever it is."""
        return self.encoder.embeddings.word.weight.dtype

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever is asked: a frozen encoder has no dropout."""
        return self

    def forward(self, batch: Batch, adapters: Adapters | None = None) -> Tensor:
        """Return the (N, H) states of all tokens of ``batch`` after the last layer.

        Args:
            batch: packed rows on this backbone's device.
            adapters: what joins the layers; None is the plain backbone.
        """
        hidden: Tensor = self.encoder(batch, adapters)
        return hidden

    def embed(self, texts: Sequence[str], pooling: str = "mean", max_length: int | None = None) -> numpy.ndarray:
        """Return the (R, H) float32 states of texts in their order, without any adapter.

        Args:
            texts: a list, an empty one gives (0, H).
            pooling: ``mean`` of the tokens, ``cls`` for the first, or the checkpoint's own ``pooler``.
            max_length: tokens a text is cut to; as many as the checkpoint takes when None.

        Raises:
            ConfigError: texts that are none, or a pooling that this checkpoint does not have.
        """
        head = HeadConfig(label_names=("a", "b"), pooling=cast(Pooling, choose(pooling, get_args(Pooling), "pooling")))
        self.check_pooling(head)
        rows = self.tokenize(texts, None, max_length or self.encoder.max_length)
        return pool_rows(self.encoder, self.new_adapter_set(None, head), rows).cpu().numpy()

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 128) -> TokenRows:
        """Return the token rows of ``texts``, each with its pair where there is one, cut to ``max_length``.

        Safe to call from many threads at once.

        Raises:
            ConfigError: ``max_length`` is more than the position embeddings allow, or less than the special tokens.
        """
        self.check_max_length(max_length)
        marks = self.tokenizer.backend_tokenizer.num_special_tokens_to_add(pairs is not None)
        require(max_length >= marks, "max_length", f"at least the {marks} special tokens of a row", max_length)
        require(not isinstance(texts, str), "texts", "a list of texts, [text] for one", "one text")
        for row, text in enumerate(texts):
            require(isinstance(text, str), f"text {row}", "a text", text)
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self._cutting_tokenizer(max_length).encode_batch(inputs)
        typed = self.encoder.token_types > 1 and "token_type_ids" in self.tokenizer.model_input_names
        return TokenRows(
            [encoding.ids for encoding in encodings],
            [encoding.type_ids if typed else [0] * len(encoding.ids) for encoding in encodings],
            truncated_rows=frozenset(row for row, encoding in enumerate(encodings) if encoding.overflowing),
        )

    def tokenize_on_demand(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 128
    ) -> TokensOnDemand:
        """Return the token rows of texts too many to be held in memory; see ``tokenize``.

        Args:
            texts, pairs: read again whenever rows are taken.
            max_length: tokens.
        """

        def take(indices: Sequence[int]) -> TokenRows:
            seconds = None if pairs is None else [pairs[i] for i in indices]
            return self.tokenize([texts[i] for i in indices], seconds, max_length)

        return TokensOnDemand(len(texts), take)

    def _cutting_tokenizer(self, max_length: int) -> Tokenizer:
        """Return a private tokenizer for one length; the shared one's settings are not safe across threads."""
        with self._cutting_lock:
            if max_length not in self._cutting:
                cutting = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
                cutting.no_padding()
                cutting.enable_truncation(max_length, direction=self.tokenizer.truncation_side)
                self._cutting[max_length] = cutting
            return self._cutting[max_length]

    def new_adapter_set(self, adapter: MethodConfig | None, head: HeadConfig, *, seed: int = 0) -> AdapterSet:
        """Return a fresh set that fits this backbone, on its device.

        Raises:
            ConfigError: the configuration does not fit H, L or the checkpoint (no pooler).
        """
        self.check_pooling(head)
        info = self.info
        self.encoder.check_method(adapter)
        fresh = AdapterSet(info.hidden_size, info.layers, adapter, head, seed=seed, inner_sizes=info.inner_sizes)
        self.encoder.start_layer_norms(fresh)
        return fresh.to(self.device)

    def check_pooling(self, head: HeadConfig) -> None:
        """Raise ConfigError if the head asks for a pooler that the checkpoint does not have."""
        if head.pooling == "pooler" and self.encoder.pooler is None:
            hint = f"the checkpoint of {self.info.source} has no pooler"
            raise ConfigError("pooling", "cls or mean", "pooler", hint)

    def check_max_length(self, max_length: int) -> None:
        """Raise ConfigError if rows of ``max_length`` tokens are longer than the position embeddings allow."""
        longest = self.encoder.max_length
        require(max_length <= longest, "max_length", f"at most {longest} tokens for this backbone", max_length)

    def unfrozen_copy(self) -> Encoder:
        """Return a separate float32 copy of the encoder whose every weight trains (for full fine-tuning)."""
        return copy.deepcopy(self.encoder).float().requires_grad_(True).train()

    def memory_digest(self) -> str:
        """Return the SHA-256 of the weights as they are in memory now; it never changes."""
        return fingerprint(self.encoder.config, dict(self.encoder.state_dict()))


def _load_again(info: BackboneInfo, device: str, dtype: str) -> Backbone:
    """Return a backbone that was pickled or copied, from where its checkpoint stands.

    Raises:
        BackboneMismatchError: another checkpoint stands there now.
    """
    backbone = Backbone.load(info.source, device=device, dtype=dtype, revision=info.revision)
    if backbone.info.fingerprint != info.fingerprint:
        raise BackboneMismatchError("a copied backbone", "backbone", info.fingerprint, backbone.info.fingerprint)
    return backbone
