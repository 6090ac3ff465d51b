"""Live progress of trainings on stderr: bars with loss, rows per second and time left; lines where no terminal is.

Ctrl-C that waits for a good moment: the first asks to stop between two steps, the second stops at once.
"""

from __future__ import annotations

import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
    """

    def __init__(self, *titles: str) -> None:
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
        self.observers = [_Bar(self._bars, title).observe for title in titles]

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

    def __init__(self, bars: Progress, title: str) -> None:
        self._bars, self._title = bars, title
        self._task = bars.add_task(title, total=None, loss=0.0, rate=0.0)
        self._losses: deque[float] = deque(maxlen=_RECENT_STEPS)

    def observe(self, report: StepReport) -> None:
        """Show one step."""
        self._losses.append(report.loss)
        loss = sum(self._losses) / len(self._losses)
        rate = 0.0 if math.isnan(report.rows_per_second) else report.rows_per_second
        self._bars.update(self._task, total=report.steps, completed=report.step, loss=loss, rate=rate)
        due = max(1, report.steps // _LINES)
        if self._bars.disable and (report.step % due == 0 or report.step == report.steps):
            line = f"{self._title}: step {report.step}/{report.steps}  loss {loss:.3f}  {rate:.0f} rows/s"
            self._bars.console.print(line, highlight=False, soft_wrap=True)
        for metric, value in report.held_out_scores.items():
            if not self._bars.disable:
                self._bars.console.print(f"{self._title}: step {report.step} held-out {metric} {value:.3f}")
