"""The evaluate command: a stored set scored on labelled rows."""

from __future__ import annotations

from typing import Any

import click

from registry.cli.data import DATA_OPTIONS, load_for_set
from registry.cli.options import (
    Settings,
    backbone_option,
    json_option,
    note,
    print_json,
    scores_text,
    with_options,
)
from registry.schema import Reference


@click.command()
@click.argument("reference", metavar="REF")
@with_options(DATA_OPTIONS)
@backbone_option
@json_option
@click.pass_obj
def evaluate(settings: Settings, /, reference: str, as_json: bool, **options: Any) -> None:
    """Score a stored set on the reported split of its task."""
    from registry.tasks.metrics import score
    from registry.training.evaluate import answer_task

    Reference.parse(reference)
    registry = settings.open_registry(options["backbone"])
    manifest = registry.manifest(reference)
    adapter_set = registry.load(reference)
    data = load_for_set(settings, reference, manifest, options)
    answered = answer_task(registry.backbone, reference, manifest, adapter_set, data)
    scores = score(data.spec.problem_type, data.reported.labels, answered.probabilities, data.spec.metrics)
    if data.sample:
        note("scores from the bundled sample: for trying the program out, not evidence")
    if as_json:
        print_json(
            {
                "adapter": str(reference),
                "task": data.spec.name,
                "split": data.spec.reported_split,
                "rows": len(data.reported),
                "truncated": answered.truncated,
                "sample": data.sample,
                "left_out": data.left_out,
                "positive_label": data.spec.positive_label,
                "scores": scores,
            }
        )
        return
    told = scores_text(scores, data.spec.positive_label, 4)
    click.echo(f"{reference} on {len(data.reported):,} rows of {data.spec.name} {data.spec.reported_split}: {told}")
