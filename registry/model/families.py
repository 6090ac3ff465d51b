"""Where each encoder family of transformers keeps its parts; the only place that knows their names.

A family of post-norm kin is data: dotted paths from the base model or from one of its layers; ModernBERT's forward
differs, and is in modernbert.py, as does DeBERTa's attention, in relative_positions.py. Sources: the modeling files of
transformers 5 for bert, roberta, xlm_roberta, camembert, electra, distilbert, mpnet, albert, modernbert and deberta_v2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """Names of one family's modules, dotted, and configuration fields; None where it has no such part.

    Attributes:
        prefix: what a task model's checkpoint puts before the names of the base model.
        layers: the list of layers, from the base model.
        word, position, token_type, embedding_norm: the embeddings, from the base model.
        projection: embedding size to H, where they differ.
        query, key, value, attention_dense, attention_norm: from a layer.
        ffn_in, ffn_out, ffn_norm: from a layer.
        pooler: the dense layer of the pooler, from the base model.
        relative: a table of biases of attention scores by distance, from the base model.
        groups: the list of groups of layers, from the base model, where several layers share the weights of one.
        disentangled: whether attention is DeBERTa's.
        pre_norm: whether norms stand before the sub-layers, with rotary positions and windows, as in ModernBERT.
        positions_after_padding: positions count from padding id + 1 instead of 0.
        last_norm: after the last layer, from the base model.
        head_dense, head_out: of its model for classification, a dense layer over the first token's state and the one
            that gives the logits; None where that model's head is of another form.
        head_activation: between the two.
        activation, state_dropout, attention_dropout: names of fields of the configuration.
    """

    prefix: str = "bert"
    layers: str = "encoder.layer"
    word: str = "embeddings.word_embeddings"
    position: str = "embeddings.position_embeddings"
    token_type: str | None = "embeddings.token_type_embeddings"
    embedding_norm: str = "embeddings.LayerNorm"
    projection: str | None = None
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_dense: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    ffn_in: str = "intermediate.dense"
    ffn_out: str = "output.dense"
    ffn_norm: str = "output.LayerNorm"
    pooler: str | None = "pooler.dense"
    relative: str | None = None
    groups: str | None = None
    disentangled: bool = False
    pre_norm: bool = False
    positions_after_padding: bool = False
    activation: str = "hidden_act"
    last_norm: str | None = None
    head_dense: str | None = "bert.pooler.dense"
    head_out: str = "classifier"
    head_activation: str = "tanh"
    state_dropout: str = "hidden_dropout_prob"
    attention_dropout: str = "attention_probs_dropout_prob"

    @property
    def parts(self) -> frozenset[str]:
        """Return the top-level modules of the encoder; other tensors (language-model heads) are none of ours."""
        names = (self.word, self.layers, self.projection, self.pooler, self.embedding_norm, self.last_norm)
        return frozenset(name.split(".")[0] for name in names if name is not None)


BERT = Family()
ROBERTA = replace(
    BERT,
    prefix="roberta",
    positions_after_padding=True,
    head_dense="classifier.dense",
    head_out="classifier.out_proj",
)
ELECTRA = replace(
    BERT,
    prefix="electra",
    projection="embeddings_project",
    pooler=None,
    head_dense="classifier.dense",
    head_out="classifier.out_proj",
    head_activation="gelu",
)
DISTILBERT = Family(
    prefix="distilbert",
    layers="transformer.layer",
    token_type=None,
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_dense="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
    pooler=None,
    head_dense="pre_classifier",
    head_activation="relu",
    activation="activation",
    state_dropout="dropout",
    attention_dropout="attention_dropout",
)

MPNET = Family(
    prefix="mpnet",
    token_type=None,
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attention_dense="attention.attn.o",
    attention_norm="attention.LayerNorm",
    relative="encoder.relative_attention_bias",
    positions_after_padding=True,
    head_dense="classifier.dense",
    head_out="classifier.out_proj",
)
ALBERT = Family(
    prefix="albert",
    groups="encoder.albert_layer_groups",
    projection="encoder.embedding_hidden_mapping_in",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_dense="attention.dense",
    attention_norm="attention.LayerNorm",
    ffn_in="ffn",
    ffn_out="ffn_output",
    ffn_norm="full_layer_layer_norm",
    pooler="pooler",
    head_dense="albert.pooler",
)
MODERNBERT = Family(
    prefix="model",
    layers="layers",
    word="embeddings.tok_embeddings",
    token_type=None,
    embedding_norm="embeddings.norm",
    attention_dense="attn.Wo",
    attention_norm="attn_norm",
    ffn_in="mlp.Wi",
    ffn_out="mlp.Wo",
    ffn_norm="mlp_norm",
    last_norm="final_norm",
    pooler=None,
    head_dense=None,
    pre_norm=True,
    activation="hidden_activation",
)

DEBERTA = Family(
    prefix="deberta",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    pooler=None,
    disentangled=True,
    head_dense="pooler.dense",
    head_activation="gelu",
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bert": BERT,
        "roberta": ROBERTA,
        "xlm-roberta": ROBERTA,
        "camembert": ROBERTA,
        "electra": ELECTRA,
        "distilbert": DISTILBERT,
        "mpnet": MPNET,
        "albert": ALBERT,
        "modernbert": MODERNBERT,
        "deberta-v2": DEBERTA,
    }
)

# By the names of transformers' configurations; the same functions as its own.
ENCODER_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
)


def find_unsupported(config: PretrainedConfig) -> str:
    """Return what a configuration of a known family has that no forward here knows, or an empty string."""
    family = FAMILIES[config.model_type]
    rotary = getattr(config, "rope_parameters", None) or {}
    unusual = {
        "relative positions": getattr(config, "position_embedding_type", "absolute") != "absolute",
        "a decoder": getattr(config, "is_decoder", False),
        "an unknown activation": getattr(config, family.activation) not in ENCODER_ACTIVATIONS,
        "a table of other than 32 distances": getattr(config, "relative_attention_num_buckets", 32) != 32,
        "several layers in a group": getattr(config, "inner_group_num", 1) != 1,
        "scaled rotary positions": any(
            each.get("rope_type", "default") != "default" for each in rotary.values() if isinstance(each, dict)
        ),
    }
    if family.disentangled:
        unusual |= {
            "a convolution": int(getattr(config, "conv_kernel_size", 0) or 0) > 0,
            "no relative attention": not config.relative_attention,
            "a projection of its embeddings": getattr(config, "embedding_size", config.hidden_size)
            != config.hidden_size,
        }
    return next((feature for feature, found in unusual.items() if found), "")
