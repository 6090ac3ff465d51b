"""The model card of a set, and how both are pushed.

A card is what the manifest says, as the Hub's metadata and as a page to read. The metadata are ``huggingface_hub``'s
own ``ModelCardData`` and ``EvalResult``, which check themselves; the page says how the set is loaded, what it scores on
which rows, how much of it is trained, and how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from registry.config import FusionConfig, ProblemType
from registry.errors import ConfigError
from registry.interop.folders import public_name
from registry.interop.formats import folder_files, write_files
from registry.interop.hub import README, HubClient, HubReference, check_uploadable, upload
from registry.model.pretrained import EMBEDDED
from registry.schema import ExportFormat, Manifest, Reference
from registry.stats.intervals import Interval, wilson_interval
from registry.store.registry import Registry
from registry.store.store import Store
from registry.tasks.spec import BUILT_IN, HubSource
from registry.validation import printable, require
from registry.version import __version__

_TASK = "text-classification"
_LIBRARIES: Mapping[ExportFormat, str] = MappingProxyType(
    {
        "archive": "adapter-registry",
        "adapterhub": "adapter-transformers",
        "peft": "peft",
        "transformers": "transformers",
    }
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
# The Hub's names of metrics, where they are other ones than ours.
_METRICS = MappingProxyType(
    {
        **dict.fromkeys(("f1_binary", "f1_weighted", "f1_macro", "f1_micro"), "f1"),
        **dict.fromkeys(("precision_macro", "precision_micro"), "precision"),
        **dict.fromkeys(("recall_macro", "recall_micro"), "recall"),
        "matthews": "matthews_correlation",
        "pearson": "pearsonr",
        "spearman": "spearmanr",
    }
)
_PROBLEMS: Mapping[ProblemType, str] = MappingProxyType(
    {"classification": "one label of", "multi_label": "any of the labels", "regression": "a number,"}
)
_OURS = """```console
$ adapter-registry init --backbone {source}
$ adapter-registry pull hub:{repository}
$ adapter-registry predict {name} {texts}
```"""
_THEIRS: Mapping[ExportFormat, str] = MappingProxyType(
    {
        "adapterhub": """```python
from adapters import AutoAdapterModel
model = AutoAdapterModel.from_pretrained("{base}")
model.set_active_adapters(model.load_adapter("{repository}", use_safetensors=True))
```""",
        "peft": """```python
from peft import AutoPeftModelForSequenceClassification
model = AutoPeftModelForSequenceClassification.from_pretrained("{repository}", num_labels={labels})
model.eval()
```""",
        "transformers": """```python
from transformers import pipeline
classify = pipeline("text-classification", model="{repository}")
classify({inputs}, truncation=True)
```""",
    }
)


def model_card(manifest: Manifest, repository: str, license: str, format: ExportFormat) -> str:
    """Return the ``README.md`` of a set in a repository of the Hub.

    Args:
        manifest: of the set.
        repository: ``ORG/NAME``.
        license: the Hub's short name of one, ``apache-2.0`` say.
        format: that the set is pushed in.

    Raises:
        ConfigError: no such name of a license, or metadata that ``huggingface_hub`` itself refuses.
    """
    fits = _LICENSE.fullmatch(license) is not None
    require(fits, "license", "the Hub's short name of one, such as apache-2.0, mit or cc-by-4.0", license)
    try:
        data = _metadata(manifest, license, format)
        text = f"---\n{data.to_yaml()}\n---\n\n{_page(manifest, repository, format)}"
        ModelCard(text)  # reads it as the Hub does
    except ValueError as err:
        raise ConfigError("model card", "metadata that huggingface_hub accepts", " ".join(str(err).split())) from err
    return text


def base_model(manifest: Manifest) -> str | None:
    """Return the Hub's id of the backbone, None where it came from a folder, which proves none."""
    source = manifest.backbone.source
    published = source == EMBEDDED or (_HUB_ID.fullmatch(source) is not None and not Path(source).exists())
    return public_name(manifest.backbone) if published else None


def data_set(manifest: Manifest) -> HubSource | None:
    """Return the data set of the Hub that a set was trained and scored on, None for the sample and for own rows."""
    origin, data = manifest.origin, manifest.data
    if data is None or data.sample:
        return None
    if origin is not None:
        named = origin.hub
        return None if named is None else HubSource(path=named, config=origin.hub_config, revision=origin.hub_revision)
    built_in = BUILT_IN.get(manifest.task or "")
    return None if built_in is None else built_in.hub


def score_interval_of(manifest: Manifest, metric: str) -> Interval | None:
    """Return Wilson's interval of an accuracy over the reported rows; of other metrics the rows alone would tell it."""
    rows = 0 if manifest.data is None else manifest.data.reported_rows
    if metric not in ("accuracy", "exact_match") or not rows:
        return None
    right = manifest.scores[metric] * rows
    return wilson_interval(round(right), rows) if abs(right - round(right)) < 1e-3 else None


def _metadata(manifest: Manifest, license: str, format: ExportFormat) -> ModelCardData:
    base, source = base_model(manifest), data_set(manifest)
    method = "head" if manifest.adapter is None else manifest.adapter.name
    scores = list(_results(manifest)) or None
    relation = "finetune" if format == "transformers" else "adapter"
    return ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else relation,
        library_name=_LIBRARIES[format],
        license=license,
        tags=["adapter-registry", method, *([] if format == "archive" else [format])],
        pipeline_tag=_TASK,
        datasets=None if source is None else [source.path],
        metrics=list(dict.fromkeys(_METRICS.get(metric, metric) for metric in manifest.scores)) or None,
        model_name=manifest.name,
        eval_results=scores,
    )


def _results(manifest: Manifest) -> Iterator[EvalResult]:
    """Yield the scores on a data set that others can look up, the main one first; the sample's are no evidence."""
    source, data = data_set(manifest), manifest.data
    if data is None or data.sample:
        return
    task = manifest.task or manifest.name
    for metric in sorted(manifest.scores, key=lambda metric: metric != manifest.main_metric):
        interval = score_interval_of(manifest, metric)
        told = "" if interval is None else f" (95 % interval {interval.low:.4f} to {interval.high:.4f})"
        arguments: dict[str, Any] = {"rows": data.reported_rows}
        if interval is not None:
            arguments |= {"interval": [round(interval.low, 6), round(interval.high, 6)], "level": 0.95}
        yield EvalResult(
            task_type=_TASK,
            dataset_type=task if source is None else source.path,
            dataset_name=task,
            dataset_config=None if source is None else source.config,
            dataset_split=manifest.split,
            dataset_revision=None if source is None else source.revision,
            metric_type=_METRICS.get(metric, metric),
            metric_value=round(manifest.scores[metric], 6),
            metric_name=f"{metric}{told}",
            metric_args=arguments,
        )


def _page(manifest: Manifest, repository: str, format: ExportFormat) -> str:
    parts = [_opening(manifest, format), *_members(manifest), "## Load it", *_ways(manifest, repository, format)]
    parts += ["## Scores", _scores(manifest), "## Parameters", _parameters(manifest), "## Recipe", _recipe(manifest)]
    return "\n\n".join(parts) + "\n"


def _opening(manifest: Manifest, format: ExportFormat) -> str:
    head, base = manifest.head, base_model(manifest)
    method = "A classifier" if manifest.adapter is None else f"A set of the method `{manifest.adapter.name}`"
    base_text = f"`{base}`" if base else f"a {manifest.backbone.family} encoder"
    rows = {True: "pairs of texts", False: "texts", None: "texts or pairs"}[manifest.pair]
    labels = ", ".join(f"`{_plain(name)}`" for name in head.label_names)
    fit = f"It is of use on the encoder of the fingerprint `{manifest.backbone.fingerprint}` alone."
    if format == "transformers":
        fit = "Here it is merged into the weights of the encoder."
    return (
        f"# {manifest.name}\n\n{method} for the frozen encoder {base_text}, stored by adapter-registry. It answers "
        f"{rows} of at most {manifest.max_length} tokens with {_PROBLEMS[head.problem_type]} {labels}. {fit}"
    )


def _members(manifest: Manifest) -> Iterator[str]:
    """Yield what a store has to have before it takes a fused set in."""
    if isinstance(manifest.adapter, FusionConfig):
        names = [f"`{member.reference.partition(':')[0]}`" for member in manifest.adapter.members]
        told = ", ".join(names)
        yield f"It joins the sets {told} and does not hold them: a store needs them under these names first."


def _ways(manifest: Manifest, repository: str, format: ExportFormat) -> Iterator[str]:
    """Yield three lines that load the set here, where that reads the format, and three of the format's library."""
    base, first, second = base_model(manifest), "a text", "a second text"
    words = {
        "base": base or "the encoder's folder",
        "source": manifest.backbone.source if base else "FOLDER",
        "repository": repository,
        "name": manifest.name,
        "labels": len(manifest.head.label_names),
        "texts": f'"{first}" "{second}"' if manifest.pair else f'"{first}"',
        "inputs": json.dumps({"text": first, "text_pair": second} if manifest.pair else first),
    }
    if format != "transformers":
        yield _OURS.format(**words)
    if format in _THEIRS:
        yield _THEIRS[format].format(**words)


def _scores(manifest: Manifest) -> str:
    data, split = manifest.data, manifest.split or "rows"
    if data is None or not manifest.scores:
        return "None is known."
    source = data_set(manifest)
    of = f"`{source}`" if source else "the task's own rows"
    lines = [f"On {data.reported_rows:,} rows of the split `{_plain(split)}` of {of}:", ""]
    if data.sample:
        lines[0] = "On the small sample that comes with adapter-registry, which is no evidence of anything:"
    lines += ["| metric | score | 95 % interval over rows |", "|---|---:|---|"]
    for metric in sorted(manifest.scores, key=lambda metric: metric != manifest.main_metric):
        interval = score_interval_of(manifest, metric)
        told = "–" if interval is None else f"{interval.low:.4f} to {interval.high:.4f} (Wilson)"
        lines.append(f"| {_plain(metric)} | {manifest.scores[metric]:.4f} | {told} |")
    return "\n".join(lines)


def _parameters(manifest: Manifest) -> str:
    own, frozen = manifest.parameters, manifest.backbone.parameters
    return (
        "| part | parameters |\n|---|---:|\n"
        f"| this set, its head among them | {own:,} |\n| the frozen encoder | {frozen:,} |\n\n"
        f"The set is {own / (own + frozen):.2%} of both."
    )


def _recipe(manifest: Manifest) -> str:
    """Return all that was chosen for the set, as JSON, in which nothing can end the block."""
    chosen = {
        "recipe": manifest.recipe,
        "adapter": msgspec.to_builtins(manifest.adapter),
        "head": msgspec.to_builtins(manifest.head),
        "training": msgspec.to_builtins(manifest.training),
        "train_rows": None if manifest.data is None else manifest.data.train_rows,
        "merged_from": [each.reference for each in manifest.merged_from] or None,
        "dtype": manifest.dtype,
        "created": manifest.created,
        "library_versions": manifest.library_versions,
    }
    known = {name: value for name, value in chosen.items() if value is not None}
    return f"```json\n{json.dumps(known, indent=2)}\n```"


def _plain(text: str) -> str:
    """Return a text of a manifest as a part of a Markdown sentence or cell that it cannot leave."""
    return re.sub(r"[`|<>\[\]\\]", "?", printable(text))[:80]


def push_set(
    source: Registry | Store,
    reference: str | Reference,
    repository: str,
    *,
    license: str,
    format: ExportFormat = "archive",
    private: bool = False,
    force: bool = False,
    dry_run: Path | None = None,
    offline: bool = False,
    client: HubClient | None = None,
) -> str:
    """Put a stored set and its model card into a repository of the Hub, in one commit, and return its address.

    Args:
        source: a registry; for the format ``archive`` its store is enough.
        reference: of the set.
        repository: ``hub:ORG/NAME``.
        license: the Hub's short name of one, ``apache-2.0`` say.
        format: the three files of an archive, or what another library reads.
        private: whether only its owners see it.
        force: take a repository that is there already; its files of the kinds that are uploaded become these.
        dry_run: a folder for the files in the place of the Hub, which is not asked then; its path is returned.
        offline: never ask the network; ``HF_HUB_OFFLINE`` means the same.
        client: another Hub than the real one.

    Raises:
        ConfigError: a repository or a license that is none.
        UnheldError: the format cannot hold the set.
        HubError: no token, no right to write there, or the name is taken.
        HubUnavailableError: the Hub cannot be reached.
        StoreWriteError: the folder of a dry run has files already, or cannot be written.
        AdapterNotFoundError, IntegrityError: and whatever reading the set raises.
    """
    target = HubReference.parse(repository)
    exact, manifest, contents = folder_files(source, reference, format)
    contents = {README: model_card(manifest, target.repository, license, format).encode(), **contents}
    check_uploadable(contents)
    if dry_run is not None:
        write_files(dry_run, contents, f"write what '{exact}' would push", overwrite=force)
        return str(dry_run)
    message = f"{exact} as {format}, by adapter-registry {__version__}"
    return upload(repository, contents, message, private=private, force=force, offline=offline, client=client)
