"""Damaged and hostile folders of other libraries: what is accepted is exactly what the damaged files say.

Foreign weights carry no checksum, so a changed value inside a tensor cannot be known. The promise is another one: a
folder is accepted only if its files parse strictly, every tensor is finite and has the name and shape of its
configuration, and then the set holds what the files hold now, value for value, under the placement that its switches
mean. So an accepted folder is read again here, by safetensors and by a formula of a few lines.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from registry.config import AdapterConfig, PrefixConfig
from registry.errors import RegistryError
from registry.model.backbone import Backbone
from registry.store.registry import Registry
from tests.faults.damage.damage import MUTATIONS, blame
from tests.faults.verdict import Verdict
from tests.support.made_folders import BOTTLENECK, LORA, PEFT_IA3, PEFT_LORA, PREFIX, write_adapterhub, write_peft
from tests.support.stored_sets import tree
from tests.support.tiny_backbone import save_tiny_checkpoint

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 1e300, 10**40, "", "none", "learned", "../../evil", "x" * 5000, [], [0], [1],
    [0, 1], ["q"], ["../.."], {}, {"0": 4}, {"a": {"b": []}}, "(a+)+$", "all-linear", "gelu", "relu", "all",
)  # fmt: skip
_PARTS = {
    "down.weight": "adapter_down.0.weight", "down.bias": "adapter_down.0.bias", "up.weight": "adapter_up.weight",
    "up.bias": "adapter_up.bias", "scale": "scaling",
}  # fmt: skip
_MODULES = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "attention_dense": "attention.output.dense", "ffn_in": "intermediate.dense", "ffn_out": "output.dense",
}  # fmt: skip
Damage = Callable[[random.Random, Path, list[Path]], None]


def try_foreign(folder: Path, *, cases: int, seed: int = 0) -> Verdict:
    """Damage folders of every kind ``cases`` times, import each, and look at what was accepted."""
    verdict = Verdict("a foreign folder is refused, or the set holds exactly what its files hold")
    rng = random.Random(seed)
    save_tiny_checkpoint(folder / "tiny")
    backbone = Backbone.load(str(folder / "tiny"), device="cpu", offline=True)
    whole = _make_folders(folder / "whole")
    damaged, outside = folder / "damaged", folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not to be touched")
    registry = Registry.create(folder / "store", backbone)
    while verdict.tried < cases:
        source, damage = rng.choice(whole), rng.choice(DAMAGES)
        shutil.copytree(source, damaged)
        damage(rng, damaged, whole)
        found = _fault(registry, damaged, verdict)
        if found is not None:
            blame(verdict, f"{source.name}, {damage.__name__.strip('_')}, case {verdict.tried} of seed {seed}: {found}")
        verdict.tried += 1
        verdict.count(damage.__name__.strip("_").replace("_", " "))
        shutil.rmtree(damaged)
    if tree(outside) != {"secret": b"not to be touched"} or set(os.listdir(folder)) - {
        *("tiny", "whole", "outside", "store"),
    }:
        blame(verdict, "expected nothing written outside the store")
    for source in whole:  # what was refused was refused for its damage
        registry.import_from(source, name="whole")
    return verdict


def _make_folders(root: Path) -> list[Path]:
    folders = [
        write_adapterhub(root / f"adapterhub-{number}", config, "tiny", seed=number)
        for number, config in enumerate((BOTTLENECK, {**BOTTLENECK, "mh_adapter": False, "scaling": 4.0}, LORA, PREFIX))
    ]
    return folders + [
        write_peft(root / f"peft-{number}", each, "tiny") for number, each in enumerate((PEFT_LORA, PEFT_IA3))
    ]


def _fault(registry: Registry, folder: Path, verdict: Verdict) -> str | None:
    """Return what is wrong with how a damaged folder was taken, None for nothing."""
    try:
        reference = registry.import_from(folder, name="taken")
    except RegistryError as err:
        return None if "\n" not in str(err) else f"expected one line, found {err}"
    except Exception as err:
        return f"expected an error of ours, found {type(err).__name__}: {err}"
    verdict.count("accepted")
    found = registry.load(reference)
    wrong = _difference(folder, found.adapter_config, found.state_dict())
    registry.remove(reference)
    return wrong


def _difference(folder: Path, config: Any, state: dict[str, torch.Tensor]) -> str | None:
    """Return how an accepted set differs from what the files hold now, None where it does not."""
    plain = json.loads((folder / "adapter_config.json").read_text())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        return "a value that is not finite"
    files = {
        key.removeprefix("base_model.model."): tensor.float()
        for path in folder.glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
    method = plain.get("config")
    copies = [tensor for key, tensor in files.items() if key.endswith("control_trans")]
    if not all(torch.equal(each, copies[0]) for each in copies):
        return "copies of a prefix that differ"
    if isinstance(config, AdapterConfig) and isinstance(method, dict):
        placing = [method.get(key, default) for key, default in _PLACING]
        if config.placement != _placement(placing):
            return f"placement {config.placement} of {placing}"
        if config.learned_scale == "none" and config.scale != method.get("scaling", 1.0):
            return f"scale {config.scale} of {method.get('scaling')}"
    for key, tensor in state.items():
        theirs = _theirs(key, plain, files, config)
        if theirs is None or not torch.equal(theirs.reshape(tensor.shape), tensor):
            return f"{key} is not what the files hold"
    return None


_PLACING = (
    ("original_ln_before", False), ("original_ln_after", True), ("residual_before_ln", True), ("is_parallel", False),
)  # fmt: skip


def _placement(placing: list[Any]) -> str | None:
    before, after, residual, parallel = placing
    if parallel:
        return "parallel" if after else None
    if not before:
        return "houlsby" if after else None
    return {(True, True): "pfeiffer", (False, False): "after_layer"}.get((after, residual))


def _theirs(key: str, plain: dict[str, Any], files: dict[str, torch.Tensor], config: Any) -> torch.Tensor | None:
    """Return the tensor of the files that one of ours has to be."""
    name = plain.get("name")
    part, _, rest = key.partition(".")
    if part == "head":
        module, kind = rest.split(".")
        place = 4 if module == "out" and f"heads.{name}.4.weight" in files else 1
        return files.get(f"heads.{name}.{place}.{kind}", files.get(f"classifier.{kind}"))
    kind, place, *more = rest.split(".")
    layer, _, target = place.partition("_")
    base = f"bert.encoder.layer.{layer}"
    if kind == "bottlenecks":
        seam = {"attention": "attention.output", "ffn": "output"}[target]
        return files.get(f"{base}.{seam}.adapters.{name}.{_PARTS['.'.join(more)]}")
    if kind in ("keys", "values") and isinstance(config, PrefixConfig):
        flat = files[f"bert.prefix_tuning.prefix_tunings.{name}.self_prefix.control_trans"]
        layers = list(config.layers) if config.layers is not None else [0, 1]
        both = flat.reshape(config.length, len(layers), 2, -1)
        return both[:, layers.index(int(layer)), 0 if kind == "keys" else 1]
    module = f"{base}.{_MODULES[target]}"
    if kind == "scales":
        return files.get(f"{module}.ia3_l", files.get(f"{module}.loras.{name}.lora_B"))
    letter = more[0][-1].upper()
    return files.get(f"{module}.lora_{letter}.weight", files.get(f"{module}.loras.{name}.lora_{letter}"))


def _file(rng: random.Random, folder: Path) -> Path:
    return rng.choice(sorted(folder.iterdir()))


def _flipped_bytes(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = _file(rng, folder)
    path.write_bytes(rng.choice(MUTATIONS)(rng, path.read_bytes()))


def _changed_value(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = rng.choice(sorted(folder.glob("*.json")))
    plain = json.loads(path.read_text())
    inner = plain["config"] if isinstance(plain.get("config"), dict) and rng.random() < 0.8 else plain
    inner[rng.choice([*inner, "novel"])] = rng.choice(VALUES)
    path.write_text(json.dumps(plain))


def _lost_key(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = rng.choice(sorted(folder.glob("*.json")))
    plain = json.loads(path.read_text())
    inner = plain["config"] if isinstance(plain.get("config"), dict) and rng.random() < 0.8 else plain
    del inner[rng.choice(list(inner))]
    path.write_text(json.dumps(plain))


def _odd_json(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = rng.choice(sorted(folder.glob("*.json")))
    text = path.read_text()
    odd = (
        "[" * 50_000,
        '{"config": NaN}',
        "null",
        "[]",
        text.replace("{", '{"config": {}, ', 1),
        text + text,
        "\ufeff" + text,
    )
    path.write_text(rng.choice(odd))


def _changed_tensors(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    one, other = rng.sample(sorted(tensors), 2)
    how = rng.randrange(7)
    if how == 0:
        tensors[one], tensors[other] = tensors[other], tensors[one]
    elif how == 1:
        tensors[rng.choice((one + "x", "../../evil", one.replace("task", "other"), "bert." + one))] = tensors.pop(one)
    elif how == 2:
        tensors[one] = tensors[one].reshape(-1)[:-1].clone()
    elif how == 3:
        tensors[one].view(-1)[0] = rng.choice((float("nan"), float("inf"), 1e38))
    elif how == 4:
        kind = rng.choice((torch.float64, torch.int32, torch.float16, torch.bfloat16))
        tensors[one] = tensors[one].to(kind)
    elif how == 5:
        tensors[one] = tensors[one].reshape(tuple(reversed(tensors[one].shape)))
    else:
        tensors[one + ".more"] = tensors[other].clone()
    save_file(tensors, path)


def _link(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = _file(rng, folder)
    path.unlink()
    path.symlink_to(rng.choice((Path("/etc/hostname"), folder.parent / "outside" / "secret", whole[0] / path.name)))


def _lost_file(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    _file(rng, folder).unlink()


def _file_of_another(rng: random.Random, folder: Path, whole: list[Path]) -> None:
    path = _file(rng, folder)
    path.write_bytes(_file(rng, rng.choice(whole)).read_bytes())


DAMAGES: tuple[Damage, ...] = (
    _flipped_bytes, _flipped_bytes, _changed_value, _changed_value, _lost_key, _odd_json, _changed_tensors,
    _changed_tensors, _link, _lost_file, _file_of_another,
)  # fmt: skip
