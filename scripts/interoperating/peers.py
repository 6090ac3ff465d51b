"""``adapters`` and ``peft`` themselves, in their own environment: load folders of ours, and save folders of theirs.

Started by main.py with a job and a place for the answer, both JSON. Nothing of our package is imported here.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import adapters
import peft
import torch
import transformers
from safetensors.torch import load_file
from theirs import ADAPTERHUB, PEFT, make_adapterhub, make_peft
from torch import Tensor

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()


def logits_of(model: Any, rows: list[list[int]]) -> list[list[float]]:
    """Return the logits of rows of token ids, one after another, without padding."""
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].tolist() for row in rows]


def files_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in the safetensors files of a folder."""
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}


def compare(found: dict[str, Tensor], files: dict[str, Tensor]) -> dict[str, Any]:
    """Return which names differ between a library's own state and the files, and whether all tensors are bit-equal."""
    same = found.keys() & files.keys()
    return {
        "missing": sorted(found.keys() - files.keys()),
        "unexpected": sorted(files.keys() - found.keys()),
        "bit_equal": all(torch.equal(found[key], files[key]) for key in same),
    }


def load_adapterhub(folder: Path, backbone: str, back: Path) -> dict[str, Any]:
    """Load a folder as ``adapters`` does, answer with it, and save it again."""
    config = json.loads((folder / "adapter_config.json").read_text())
    model = getattr(adapters, config["model_class"]).from_pretrained(backbone)
    info: dict[str, Any] = {}
    name = model.load_adapter(str(folder), use_safetensors=True, set_active=True, loading_info=info)
    parts = [f".{kind}.{name}." for kind in ("adapters", "loras", "prefix_tunings")]
    own = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if any(part in key for part in parts) or key.startswith(f"heads.{name}.")
    }
    told = compare(own, files_of(folder))
    told["missing"] += info.get("missing_keys", [])
    told["unexpected"] += info.get("unexpected_keys", [])
    is_prefix = config["config"].get("architecture") == "prefix_tuning"
    model.save_adapter(str(back), name, use_safetensors=not is_prefix)
    return {**told, "model": model}


def load_peft(folder: Path, backbone: str, back: Path) -> dict[str, Any]:
    """Load a folder as ``peft`` does, answer with it, and save it again."""
    files = files_of(folder)
    out = next(tensor for key, tensor in files.items() if key.endswith(("classifier.weight", "out_proj.weight")))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(out))
    model = peft.PeftModel.from_pretrained(base, str(folder))
    own = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    told = compare({key: tensor.contiguous() for key, tensor in own.items()}, files)
    again = model.load_adapter(str(folder), adapter_name="again")
    told["missing"] += [key for key in again.missing_keys if ".again" in key]
    told["unexpected"] += list(again.unexpected_keys)
    model.save_pretrained(str(back), selected_adapters=["default"])
    return {**told, "model": model}


def load(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Load every folder of ours."""
    loaders = {"adapterhub": load_adapterhub, "peft": load_peft}
    answers = []
    for case in job["cases"]:
        try:
            told = loaders[case["format"]](Path(case["folder"]), case["backbone"], Path(case["back"]))
            answers.append({**told, "logits": logits_of(told.pop("model"), job["rows"]), "case": case["case"]})
            del answers[-1]["model"]
        except Exception as err:
            answers.append({"case": case["case"], "error": f"{type(err).__name__}: {err}"[:300]})
    return answers


def save(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Save a folder for every case of theirs, with the logits that its library gives when it loads it again."""
    answers = []
    for kind, cases, make in (("adapterhub", ADAPTERHUB, make_adapterhub), ("peft", PEFT, make_peft)):
        for number, case in enumerate(cases):
            folder = Path(job["folder"]) / f"{kind}-{number:03d}"
            told = {"case": case.title, "format": kind, "family": case.family, "folder": str(folder)}
            try:
                model, pooled = make(case, job["backbones"][case.family], folder)
                logits = None if model is None else logits_of(model, job["rows"])
                answers.append({**told, "logits": logits, "pooled": pooled})
            except Exception as err:  # a combination that the library itself cannot make or load
                answers.append({**told, "error": f"{type(err).__name__}: {err}"[:300]})
    return answers


def main() -> None:
    """Do the job that the command line names, and write the answers where it says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    answers = {"load": load, "save": save}[job["do"]](job)
    versions = {each.__name__: each.__version__ for each in (adapters, peft, transformers, torch)}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "answers": answers}))


if __name__ == "__main__":
    main()
