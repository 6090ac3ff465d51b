"""``peft``, ``adapters`` and our own store, each by what its users call to save and to load an adapter.

Every one has an old and a new adapter of the same shapes with other weights and another configuration, and the same
tiny random backbones. Each class imports its library itself, as no environment has them all.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.support.tiny_backbone import save_tiny_checkpoint, tiny_tokenizer

NAME = "mrpc"
LAYERS = 3
BACKBONES: dict[str, dict[str, Any]] = {
    "right": {},
    "other weights": {"seed": 1},
    "other activation": {"hidden_act": "relu"},
    "one layer fewer": {"num_hidden_layers": LAYERS - 1},
    "one layer more": {"num_hidden_layers": LAYERS + 1},
    "other vocabulary": {"vocab_size": 200},
    "other tokenizer": {},
    "other hidden size": {"hidden_size": 64},  # a control: nobody can load this
}

Content = tuple[dict[str, torch.Tensor], object]


class Peer(Protocol):
    """A library's own way to save and load; ``load`` may only do what its users do."""

    packages: tuple[str, ...]

    def save(self, which: str, folder: Path) -> None:
        """Save the ``old`` or the ``new`` adapter: same shapes, other weights and other configuration."""

    def load(self, folder: Path, backbone: str) -> Any:
        """Return what the library loads from ``folder`` onto a fresh backbone."""

    def content(self, loaded: Any) -> Content:
        """Return all tensors, and the configuration that came from the files."""

    def logits(self, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        """Return the answers to some rows."""


class Peft:
    """LoRA and a classifier by ``peft``: one weight file and one configuration."""

    packages = ("peft", "transformers", "safetensors", "torch")

    def __init__(self, checkpoints: dict[str, Path]) -> None:
        import peft
        from transformers import BertForSequenceClassification

        self.library = peft
        self.backbones = {}
        for kind, folder in checkpoints.items():
            torch.manual_seed(0)
            self.backbones[kind] = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
        changes = {"old": {"lora_alpha": 16}, "new": {"lora_alpha": 64, "use_rslora": True, "lora_dropout": 0.25}}
        self.saved = {}
        for seed, (which, changed) in enumerate(changes.items()):
            config = peft.LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"], **changed)
            self.saved[which] = peft.get_peft_model(copy.deepcopy(self.backbones["right"]), config)
            fill(self.saved[which], seed, "lora_", "modules_to_save")

    def save(self, which: str, folder: Path) -> None:
        """Save as ``save_pretrained`` does, over what is there."""
        self.saved[which].save_pretrained(folder)

    def load(self, folder: Path, backbone: str) -> Any:
        """Return the backbone with the adapter joined to it."""
        return self.library.PeftModel.from_pretrained(self.backbones[backbone], folder)

    def content(self, loaded: Any) -> Content:
        """Return the tensors of the joined model and the adapter's configuration."""
        return loaded.state_dict(), loaded.peft_config["default"].to_dict()

    def logits(self, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        """Return the classifier's answers."""
        return loaded.eval()(input_ids=ids).logits


class Adapters:
    """A ``seq_bn`` adapter with its head by ``adapters``: a weight file and a configuration of each."""

    packages = ("adapters", "transformers", "safetensors", "torch")

    def __init__(self, checkpoints: dict[str, Path], *, use_safetensors: bool = False) -> None:
        import adapters

        self.form = {"use_safetensors": use_safetensors}
        self.backbones = {
            kind: adapters.BertAdapterModel.from_pretrained(folder) for kind, folder in checkpoints.items()
        }
        changes = {
            "old": ({"non_linearity": "relu", "scaling": 1.0}, {"activation_function": "tanh"}, ("no", "yes")),
            "new": ({"non_linearity": "gelu", "scaling": 4.0}, {"activation_function": "relu"}, ("same", "other")),
        }
        self.saved = {}
        for seed, (which, (changed, head, labels)) in enumerate(changes.items()):
            model = copy.deepcopy(self.backbones["right"])
            model.add_adapter(NAME, config=adapters.SeqBnConfig(reduction_factor=4, **changed))
            model.add_classification_head(NAME, num_labels=2, layers=2, id2label=dict(enumerate(labels)), **head)
            fill(model, seed, "adapters.", "heads.")
            self.saved[which] = model

    def save(self, which: str, folder: Path) -> None:
        """Save adapter and head as ``save_adapter`` does, over what is there."""
        self.saved[which].save_adapter(str(folder), NAME, **self.form)

    def load(self, folder: Path, backbone: str) -> Any:
        """Return the model and the name that its new adapter got."""
        model = self.backbones[backbone]
        return model, model.load_adapter(str(folder), set_active=True, **self.form)

    def content(self, loaded: Any) -> Content:
        """Return the tensors of the model, and name, configurations and what is active."""
        model, name = loaded
        heads = {head: module.config for head, module in model.heads.items()}
        active = str(model.active_adapters), str(model.active_head)
        return model.state_dict(), [name, dict(model.adapters_config.get(name).items()), heads, active]

    def logits(self, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        """Return the answers of the head that the load made active."""
        return loaded[0].eval()(input_ids=ids).logits


class Ours:
    """A version of our store; saving over an adapter set is saving its next version."""

    packages = ("transformers", "safetensors", "torch")

    def __init__(self, checkpoints: dict[str, Path]) -> None:
        from registry.adapters.adapter_set import AdapterSet
        from registry.config import AdapterConfig, HeadConfig
        from registry.model.backbone import Backbone
        from registry.store.registry import Registry

        self.registry = Registry
        self.backbones = {
            kind: Backbone.load(str(folder), device="cpu", offline=True) for kind, folder in checkpoints.items()
        }
        changes = {
            "old": (AdapterConfig(reduction_factor=4, activation="relu", init="normal"), ("no", "yes")),
            "new": (AdapterConfig(reduction_factor=4, init="normal"), ("same", "other")),
        }
        self.saved = {}
        for seed, (which, (config, labels)) in enumerate(changes.items()):
            self.saved[which] = AdapterSet(32, LAYERS, config, HeadConfig(label_names=labels))
            fill(self.saved[which], seed, "")

    def save(self, which: str, folder: Path) -> None:
        """Save the next version in a store that is made where there is none."""
        enter = self.registry if (folder / "store.json").exists() else self.registry.create
        enter(folder, self.backbones["right"]).save(NAME, self.saved[which])

    def load(self, folder: Path, backbone: str) -> Any:
        """Return the newest version, after every visible one loaded; the first may not be gone."""
        from registry.store.store import Store
        from registry.store.tensors import load_set

        store = Store.open(folder)  # not by a Registry, which would refuse a wrong backbone for the whole store
        versions = store.versions(NAME)
        if versions[0] != 1:
            raise LookupError(f"cannot find the first version: found {versions}")
        info = self.backbones[backbone].info
        return self.backbones[backbone], [load_set(store, NAME, version, info)[1] for version in versions][-1]

    def content(self, loaded: Any) -> Content:
        """Return the tensors and the two configurations of the set."""
        return loaded[1].state_dict(), repr((loaded[1].adapter_config, loaded[1].head_config))

    def logits(self, loaded: Any, ids: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of the set on its backbone."""
        from registry.model.batching import TokenRows
        from registry.model.inference import predict_probabilities

        rows = TokenRows(input_ids=ids.tolist(), type_ids=torch.zeros_like(ids).tolist())
        return torch.from_numpy(predict_probabilities(loaded[0].encoder, loaded[1], rows))


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int, *parts: str) -> None:
    """Give the parameters whose name has one of ``parts`` values that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if any(part in name for part in parts):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def make_checkpoints(root: Path) -> dict[str, Path]:
    """Return a folder with a tiny checkpoint for each kind of backbone."""
    folders = {kind: root / kind.replace(" ", "-") for kind in BACKBONES}
    for kind, folder in folders.items():
        save_tiny_checkpoint(folder, "bert", **{"num_hidden_layers": LAYERS, **BACKBONES[kind]})
    tiny_tokenizer(pad_id=1).save_pretrained(folders["other tokenizer"])  # the weights are the right ones
    return folders


PEERS: dict[str, Callable[[dict[str, Path]], Peer]] = {
    "peft": Peft,
    "adapters": Adapters,
    "adapters-safetensors": lambda checkpoints: Adapters(checkpoints, use_safetensors=True),
    "ours": Ours,
}
