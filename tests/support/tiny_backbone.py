"""Tiny random checkpoints of every family, saved the way transformers saves them; real in all but size."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

WORDS = ("good bad film great dull the a an is was not very he she left went yes no one two red blue big small "
         "cat dog sun rain city road price rose fell court said news").split()  # fmt: skip
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
OWN_SIZES = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66},
    "electra": {**SIZES, "embedding_size": 16},
    "albert": {**SIZES, "embedding_size": 16, "num_hidden_groups": 2},
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": -1,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": {
        **SIZES,
        "local_attention": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        **{f"{name}_token_id": number for number, name in enumerate(("bos", "cls", "eos", "sep"), start=1)},
    },
}


def tiny_tokenizer(pad_id: int = 0) -> PreTrainedTokenizerFast:
    """Return a lower-casing WordPiece tokenizer of about 100 words and letters."""
    special = ["[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    letters = list(string.ascii_lowercase) + ["##" + letter for letter in string.ascii_lowercase] + [".", ",", "!"]
    names = special + WORDS + [letter for letter in letters if letter not in WORDS]
    names.insert(pad_id, "[PAD]")
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_model(family: str = "bert", seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Return a seeded random model of ``family`` in evaluation mode, its norms away from one and zero."""
    pad_id = 1 if family in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    sizes = OWN_SIZES.get(family, SIZES)
    config = AutoConfig.for_model(family, **{"vocab_size": 160, "pad_token_id": pad_id, **sizes, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def save_tiny_checkpoint(folder: Path, family: str = "bert", seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Save a tiny model and tokenizer in ``folder`` as transformers would, and return the model."""
    model = tiny_model(family, seed, **overrides)
    model.save_pretrained(folder)
    tiny_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    return model
