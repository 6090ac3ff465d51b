"""Our folders in ``adapters`` and ``peft`` themselves, and theirs here; start it with ``scripts/interop``.

Out: sets of every method, placement and switch are exported, loaded by the real library with no missing and no
unexpected key and bit-equal tensors, answer within 1e-5, and come back bit-equal after it saved them again. In: folders
that the real libraries save, one for each value of each switch, give their logits within 1e-5 or are refused by name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from report import render_report

from registry.config import (
    AdapterConfig,
    BitFitConfig,
    HeadConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
)
from registry.errors import ConfigError, RegistryError
from registry.model.backbone import Backbone
from registry.model.batching import Batch, TokenRows
from registry.model.inference import logits_of
from registry.provenance import code_version, library_versions
from registry.schema import SetInfo
from registry.store.errors import UnheldError
from registry.store.registry import Registry
from tests.support.tiny_backbone import save_tiny_checkpoint
from tests.support.toy_task import randomise

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "mpnet", "deberta-v2", "albert")
ROWS = [[5, 40, 11, 23, 99, 6], [5, 77, 8, 6], [5, 9, 8, 7, 12, 13, 14, 15, 101, 55, 6], [5, 6]]  # none is padding
LABELS = ("no", "yes", "perhaps")
BOTTLENECKS: list[dict[str, Any]] = [
    *({"placement": each} for each in ("after_layer", "houlsby", "pfeiffer", "parallel")),
    *({"placement": each, "places": ("attention",)} for each in ("after_layer", "houlsby", "pfeiffer", "parallel")),
    *({"placement": each, "places": ("attention", "ffn")} for each in ("after_layer", "pfeiffer", "parallel")),
    *({"activation": each} for each in (
        "relu", "gelu", "silu", "tanh", "gelu_new", "quick_gelu", "leaky_relu", "relu6", "relu2", "mish", "identity")),
    *({"placement": each, "scale": 0.5} for each in ("after_layer", "houlsby", "pfeiffer", "parallel")),
    *({"placement": "parallel", "learned_scale": each} for each in ("one", "channel")),
    *({"placement": "pfeiffer", "learned_scale": each} for each in ("one", "channel")),
    {"layers": (1,)}, {"widths": {"0": 5, "1": 3}}, {"widths": {"1": 31}}, {"reduction_factor": 1}, {"dropout": 0.3},
    {"layer_norms": True},
]  # fmt: skip
LORAS: list[dict[str, Any]] = [
    {}, {"targets": ("query", "key", "value", "ffn_in", "ffn_out")}, {"targets": ("ffn_out",)},
    {"targets": ("query", "attention_dense")}, {"targets": ("attention_dense", "ffn_out")},
    {"rank": 3, "alpha": 5.5}, {"rslora": True}, {"layers": (1,)}, {"dropout": 0.1},
    {"ranks": {"0_query": 2}, "alphas": {"1_value": 3.0}}, {"bias": "all"}, {"bias": "lora_only"},
]  # fmt: skip
OTHERS: list[MethodConfig] = [
    Ia3Config(), Ia3Config(targets=("key", "value", "ffn_in"), inputs=()), Ia3Config(layers=(0,)),
    Ia3Config(targets=("attention_dense", "ffn_out"), inputs=("attention_dense",)), BitFitConfig(),
    PrefixConfig(length=3), PrefixConfig(length=4, layers=(1,)),
]  # fmt: skip
HEADS: list[dict[str, Any]] = [
    {"pooling": "cls"}, {"pooling": "pooler"}, {"pooling": "mean"}, {"pooling": "cls", "bias": False},
    *({"form": each, "pooling": "cls"} for each in ("dense_tanh", "dense_gelu", "dense_relu")),
    {"form": "dense_tanh", "pooling": "pooler"}, {"pooling": "cls", "problem_type": "multi_label"},
    {"pooling": "cls", "problem_type": "regression", "label_names": ("value",)}, {"pooling": "cls", "temperature": 2.0},
    {"form": "dense_tanh", "pooling": "cls", "dropout": 0.2},
]  # fmt: skip


def our_sets() -> Iterator[tuple[str, str, MethodConfig, HeadConfig]]:
    """Yield a title, a family, a method and a head for every set that is exported."""
    plain = HeadConfig(label_names=LABELS, pooling="cls", form="dense_tanh")
    configs: list[MethodConfig] = [AdapterConfig(**{"reduction_factor": 4, **each}) for each in BOTTLENECKS]
    configs += [LoraConfig(**each) for each in LORAS] + OTHERS
    for config in configs:
        yield f"{config}", "bert", config, plain
    for each in HEADS:
        head = HeadConfig(**{"label_names": LABELS, **each})
        for config in (AdapterConfig(reduction_factor=4), LoraConfig(rank=2)):
            yield f"{config.name} with {each}", "bert", config, head
    for family in FAMILIES[1:]:
        forms = {"electra": "dense_gelu", "distilbert": "dense_relu", "deberta-v2": "dense_gelu"}
        head = HeadConfig(label_names=LABELS, pooling="cls", form=forms.get(family, "dense_tanh"))  # type: ignore[arg-type]
        for config in (AdapterConfig(placement="houlsby", reduction_factor=4), LoraConfig(rank=2), Ia3Config(),
                       PrefixConfig(length=3)):  # fmt: skip
            yield f"{config.name} on {family}", family, config, head


def answers(registry: Registry, reference: Any) -> torch.Tensor:
    """Return the logits of the rows."""
    adapter_set, encoder = registry.load(reference), registry.backbone.encoder
    batch = Batch.pack(TokenRows(ROWS, [[0] * len(row) for row in ROWS]))
    with torch.no_grad():
        return batch.restore(logits_of(encoder, adapter_set, batch))


def run_peers(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the libraries answer to a job."""
    (folder / "job.json").write_text(json.dumps(job))
    python, script = ROOT / ".venv-peers" / "bin" / "python", Path(__file__).with_name("peers.py")
    subprocess.run([python, script, folder / "job.json", folder / "answer.json"], check=True, cwd=folder)
    return dict(json.loads((folder / "answer.json").read_text()))


def prove_exports(stores: dict[str, Registry], folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return an entry for each set and format: what the library made of it, or why it was refused."""
    entries, cases = [], []
    for number, (title, family, config, head) in enumerate(our_sets()):
        registry = stores[family]
        try:
            made = randomise(registry.backbone.new_adapter_set(config, head, seed=number))
        except ConfigError:
            continue  # a method that this family does not have
        registry.save(f"set-{number}", made, SetInfo(max_length=32))
        for kind in ("adapterhub", "peft"):
            path = folder / f"{kind}-{number}"
            entry: dict[str, Any] = {"case": f"{number} {kind}", "title": title, "format": kind, "family": family}
            entries.append(entry)
            try:
                registry.export_to(f"set-{number}", path, kind)
            except UnheldError as err:
                entry["refused"] = err.obstacle
                continue
            entry |= {"folder": str(path), "backbone": registry.backbone.info.source, "back": f"{path}-back"}
            cases.append(entry)
    found = run_peers({"do": "load", "cases": cases, "rows": ROWS}, folder)
    told = {each["case"]: each for each in found["answers"]}
    for entry in cases:
        entry |= told[entry["case"]]
        if "error" not in entry:
            _judge_export(stores[entry["family"]], entry)
    keys = ("title", "format", "family", "refused", "error", "missing", "unexpected", "bit_equal", "difference", "back")
    return [{key: entry[key] for key in keys if key in entry} for entry in entries], found["versions"]


def _judge_export(registry: Registry, entry: dict[str, Any]) -> None:
    """Compare logits, and what comes back: the folder itself, and the one that the library saved again."""
    name = f"set-{entry['case'].split()[0]}"
    entry["difference"] = float((answers(registry, name) - torch.tensor(entry["logits"])).abs().max())
    own = registry.load(name).state_dict()
    entry["back"] = {}
    for way, path in (("the folder", entry["folder"]), ("saved by the library", f"{entry['folder']}-back")):
        labels = registry.manifest(name).head.label_names if entry["format"] == "peft" else ()
        again = registry.import_from(path, name=f"{name}-back", labels=labels, allow_pickle=True)
        state = registry.load(again).state_dict()
        equal = own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)
        entry["back"][way] = equal


def prove_imports(stores: dict[str, Registry], folder: Path) -> list[dict[str, Any]]:
    """Return an entry for each folder of theirs: how far the logits are apart, or why it was refused."""
    sources = {family: registry.backbone.info.source for family, registry in stores.items()}
    found = run_peers({"do": "save", "folder": str(folder), "backbones": sources, "rows": ROWS}, folder)
    entries = []
    for number, case in enumerate(found["answers"]):
        entry = {key: case[key] for key in ("case", "format", "family")}
        entries.append(entry)
        if "error" in case:
            entry["unsaved"] = case["error"]
            continue
        registry = stores[case["family"]]
        try:
            reference = registry.import_from(case["folder"], name=f"theirs-{number}", allow_pickle=True)
        except RegistryError as err:
            entry["refused"] = str(err).partition(": ")[2].partition("; nothing was")[0]
            continue
        entry["headless"] = case["logits"] is None
        if case["logits"] is not None:
            entry["difference"] = float((answers(registry, reference) - torch.tensor(case["logits"])).abs().max())
    return entries


def find_broken(report: dict[str, Any]) -> list[str]:
    """Return a line for each promise that does not hold."""
    lines = []
    for each in report["exports"]:
        if "refused" in each:
            continue
        good = "error" not in each and not each["missing"] and not each["unexpected"] and each["bit_equal"]
        if not (good and each["difference"] <= TOLERANCE and all(each["back"].values())):
            lines.append(f"export {each['format']} {each['title']} on {each['family']}: {each}")
    for each in report["imports"]:
        if each.get("difference", 0.0) > TOLERANCE:
            lines.append(f"import {each['format']} {each['case']} on {each['family']}: {each}")
    return lines


def main() -> None:
    """Prove both ways and write the report; exit with 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="interop-") as name:
        folder = Path(name)
        stores = {}
        for family in FAMILIES:
            save_tiny_checkpoint(folder / family, family)
            backbone = Backbone.load(str(folder / family), device="cpu", offline=True)
            stores[family] = Registry.create(folder / f"store-{family}", backbone)
        exports, versions = prove_exports(stores, folder)
        imports = prove_imports(stores, folder)
    report = {
        "code": code_version(), "versions": {"ours": library_versions(), "peers": versions},
        "tolerance": TOLERANCE, "exports": exports, "imports": imports,
    }  # fmt: skip
    report["broken"] = find_broken(report)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "interop.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "interop.md").write_text(render_report(report))
    for line in report["broken"]:
        print(line[:400])
    raise SystemExit(1 if report["broken"] else 0)


if __name__ == "__main__":
    main()
