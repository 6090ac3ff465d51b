"""Live progress of trainings on stderr: bars with loss, rows per second and time left; lines where no terminal is.

What came of a training, saved and told. Ctrl-C that waits for a good moment: the first asks to stop between two steps,
the second stops at once. And the demo, which shows all of it: trains three sets on the sample, switches between them,
answers a mixed batch, writes a report.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from registry.bench.runner import Cell, run_cell
from registry.cli.options import Settings, make_console, note, print_json, scores_text
from registry.errors import ConfigError, RegistryError
from registry.reports.content import read_evidence
from registry.reports.report import render_terminal, write_report
from registry.schema import Manifest
from registry.serving.predictor import Predictor
from registry.store.registry import Registry
from registry.tasks.loading import load_task
from registry.tasks.spec import BUILT_IN
from registry.training.fit import FitJob, Fitted
from registry.training.origin import Repetition, find_differences, has_same_weights
from registry.training.state import StepReport


@contextmanager
def stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether SIGINT or SIGTERM came; the handlers are put back afterwards.

    Outside the main thread no handler can be set, and the answer is always no.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_RECENT_STEPS = 20
_LINES = 5


class TrainingProgress:
    """A display for one training, or for several that run together: a bar for each.

    Inside the ``with`` block, pass ``observe`` to ``fit``, or to several fits each its own of ``observers``.

    Args:
        titles: what is trained.
        shows_waiting: whether a bar is there before the first step, and after the last.
    """

    def __init__(self, *titles: str, shows_waiting: bool = True) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[rate]:.0f} rows/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self.observers = [_Bar(self._bars, title, shows_waiting).observe for title in titles]

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def observe(self, report: StepReport) -> None:
        """Show one step of the first training."""
        self.observers[0](report)


class _Bar:
    """The line of one training."""

    def __init__(self, bars: Progress, title: str, shows_waiting: bool) -> None:
        self._bars, self._title, self._shows_waiting = bars, title, shows_waiting
        self._task = bars.add_task(title, total=None, loss=0.0, rate=0.0, visible=shows_waiting)
        self._losses: deque[float] = deque(maxlen=_RECENT_STEPS)

    def observe(self, report: StepReport) -> None:
        """Show one step."""
        self._losses.append(report.loss)
        loss = sum(self._losses) / len(self._losses)
        rate = 0.0 if math.isnan(report.rows_per_second) else report.rows_per_second
        shown = self._shows_waiting or report.step < report.steps
        self._bars.update(self._task, total=report.steps, completed=report.step, loss=loss, rate=rate, visible=shown)
        due = max(1, report.steps // _LINES)
        if self._bars.disable and (report.step % due == 0 or report.step == report.steps):
            line = f"{self._title}: step {report.step}/{report.steps}  loss {loss:.3f}  {rate:.0f} rows/s"
            self._bars.console.print(line, highlight=False, soft_wrap=True)
        for metric, value in report.held_out_scores.items():
            if not self._bars.disable:
                self._bars.console.print(f"{self._title}: step {report.step} held-out {metric} {value:.3f}")


_NO_REASON = "nothing that is recorded differs"


def save_trained(
    registry: Registry, name: str, job: FitJob, fitted: Fitted, as_json: bool, repetition: Repetition | None
) -> None:
    """Save a trained set as the next version of its name, and tell how it did."""
    reference = registry.save(name, fitted)
    if job.checkpoint is not None:
        job.checkpoint.discard()
    if fitted.truncated_train or fitted.truncated_reported:
        note(f"{name}: {fitted.truncated_train:,} training and {fitted.truncated_reported:,} scored rows were cut")
    result, training = fitted.result, job.plan.training
    if result is not None and training is not None and training.holds_out:
        last = f"of {result.steps} taken" if training.patience else f"of {result.steps}"
        score = dict(result.history).get(result.best_step, {})
        told = "".join(f", held-out {metric} {value:.3f}" for metric, value in score.items())
        share = f"{training.held_out:.0%} of the training rows were set aside for it"
        note(f"{name}: the weights are those of step {result.best_step} {last}{told}; {share}")
    if job.data.sample:
        note(f"{name}: trained on the bundled sample, which is for trying the program out; its scores are no evidence")
    compared = _compare(repetition, registry.manifest(reference)) if repetition is not None else {}
    _print_result(str(reference), fitted, job.data.spec.positive_label, as_json, compared)
    if compared and not as_json:
        same = "same weights as" if compared["same_weights"] else "other weights than"
        why = "" if compared["same_weights"] else ": " + ("; ".join(compared["differences"]) or _NO_REASON)
        click.echo(f"{same} {compared['repeats']}{why}")


def _compare(repetition: Repetition, repeated: Manifest) -> dict[str, Any]:
    return {
        "repeats": str(repetition.reference),
        "same_weights": has_same_weights(repetition.manifest, repeated),
        "differences": find_differences(repetition.manifest, repeated),
    }


def _print_result(
    reference: str, fitted: Fitted, positive_label: str | None, as_json: bool, more: dict[str, Any]
) -> None:
    if as_json:
        print_json(
            {
                "adapter": reference,
                "scores": fitted.scores,
                "positive_label": positive_label,
                "trainable": fitted.parameters.trainable,
                "percent": round(fitted.parameters.percent, 4),
                "stored_bytes": fitted.stored_bytes,
                "train_seconds": round(fitted.train_seconds, 2),
                **more,
            }
        )
        return
    scores = scores_text(fitted.scores, positive_label, 3)
    click.echo(
        f"{reference}  {scores}  trained {fitted.parameters.trainable:,} parameters "
        f"({fitted.parameters.percent:.2f} %) in {fitted.train_seconds:.0f} s, {fitted.stored_bytes:,} bytes"
    )


METHODS = ("majority", "head_only", "after_layer")
# So few rows need more passes and smaller batches than a recipe for real data has.
EPOCHS = {"mrpc": 4, "sst2": 6, "imdb": 4}
MAX_LENGTH = 64
BATCH_SIZE = 8
QUESTIONS = (
    ("sst2", "a gripping , beautifully acted film"),
    ("mrpc", "The council approved the new bridge on Monday.", "On Monday the new bridge was approved by the council."),
    ("imdb", "I wanted to like it, but the plot made no sense and I nearly fell asleep before the end."),
    ("sst2", "a dull , lifeless mess"),
    ("mrpc", "Shares of the airline fell 4 percent.", "The airline ordered twelve new aircraft."),
)
MARK = ".adapter-registry-demo"


def run_demo(settings: Settings, folder: Path) -> None:
    """Carry out the demo in ``folder``.

    Raises:
        ConfigError: the folder is there and was not made by a demo.
    """
    started = time.perf_counter()
    _make_anew(folder)
    registry = Registry.create(folder / "adapters_store", settings.load_backbone("embedded"))
    mark = registry.backbone.memory_digest()
    note("sample data: written for this program to be tried out; its scores are no evidence of anything")
    for name, spec in BUILT_IN.items():
        data = load_task(spec, "sample")
        for method in METHODS:
            with TrainingProgress(f"{name} {method}") as progress:
                keep = registry if method == "after_layer" else None
                run_cell(
                    folder / "reports",
                    Cell(name, method, 0),
                    data,
                    registry.backbone,
                    overrides={"batch_size": BATCH_SIZE, "epochs": EPOCHS[name], "max_length": MAX_LENGTH},
                    observe=progress.observe,
                    keep_in=keep,
                )
    evidence = read_evidence(folder / "reports")
    paths = write_report(folder / "reports", evidence)
    make_console(100).print(render_terminal(evidence))
    _answer_mixed(settings, registry)
    unchanged = "unchanged" if registry.backbone.memory_digest() == mark else "CHANGED"
    click.echo(f"backbone after three trainings: {unchanged}")
    note(f"in {folder}: a store of {len(registry)} sets and a report ({paths[0].parent})")
    note("sample sets have seen 160 rows a task; the repository's own sets were trained on real data")
    note(f"the demo took {time.perf_counter() - started:.0f} s; next: adapter-registry --help")


def _answer_mixed(settings: Settings, registry: Registry) -> None:
    """Answer one batch of mixed tasks with the sets just trained, and with those of real data where they are."""
    columns = {"sample sets": registry}
    if settings.has_store():
        with suppress(RegistryError):
            columns["shipped sets"] = Registry(settings.store, registry.backbone)
    columns = {title: each for title, each in columns.items() if all(question[0] in each for question in QUESTIONS)}
    table = Table(title="one batch, three tasks, one pass of the backbone", title_justify="left", box=None)
    for title in ("task", *columns, "text"):
        table.add_column(title, no_wrap=title != "text")
    answers = [Predictor(registry.backbone, each).mixed(list(QUESTIONS)) for each in columns.values()]
    for question, *answered in zip(QUESTIONS, *answers, strict=True):
        told = [f"{answer.label} {answer.probabilities[str(answer.label)]:.2f}" for answer in answered]
        table.add_row(question[0], *told, " | ".join(question[1:]))
    make_console(120).print(table)


def _make_anew(folder: Path) -> None:
    if folder.exists():
        if not (folder / MARK).exists() and any(folder.iterdir()):
            raise ConfigError("--folder", "a new folder, or one made by an earlier demo", str(folder))
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
