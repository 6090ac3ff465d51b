"""Every error this package raises on purpose; each leaf takes fields and builds its own sentence.

    RegistryError                              exit code
    ├── ConfigError            (ValueError)    2  a setting is unknown, missing or out of range
    │   ├── InvalidNameError                   2  a name that no adapter set or alias may have
    │   └── UnknownRecipeError (LookupError)   3
    ├── TaskError
    │   ├── UnknownTaskError   (LookupError)   3
    │   ├── DataError          (ValueError)    1  a data file or row that cannot be used
    │   └── DataUnavailableError               6  the Hub cannot be reached and nothing is cached
    ├── BackboneError
    │   ├── BackboneNotFoundError              3  no such folder, or a folder without a checkpoint
    │   ├── BackboneUnavailableError           6  the Hub cannot be reached and nothing is cached
    │   ├── UnsupportedBackboneError           5  a model family we have no map of
    │   ├── DamagedBackboneError               4  a checkpoint whose files are not what they should be
    │   └── DeviceError                        1  a device that this machine does not have
    ├── StoreError                             1  see store_errors.py
    ├── CompatibilityError
    │   ├── BackboneMismatchError              5
    │   └── ShapeMismatchError                 5
    ├── TrainingError                          1
    │   ├── NonFiniteLossError                 1
    │   ├── DivergedError                      1
    │   ├── CheckpointError                    1
    │   ├── TrackerError                       1  a live log that cannot be written; it never ends a training
    │   └── TrainingInterrupted              130  Ctrl-C, after the checkpoint was written
    ├── RunError                               1  run records that cannot be made or read
    │   └── ReportMismatchError                4  a report that does not follow from its predictions
    ├── OutputError                            1  a file of answers that cannot be written
    ├── UnansweredError                        1  some rows of many that have an error instead of an answer
    ├── RequestError           (ValueError)    2  a question that a predictor cannot answer
    ├── ServerError                            1  a request that a server does not answer
    ├── ClusterError                           6  machines that do not work; see cluster/connection.py
    └── RemoteError                            1  what a server has told, or that it cannot be reached

Messages say what was attempted, on what; what was expected and found; and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def closest(name: str, available: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the nearest available name, or an empty string."""
    matches = difflib.get_close_matches(name, list(available), n=1, cutoff=0.5)
    return f"did you mean '{matches[0]}'?" if matches else ""


def shorten(names: Iterable[str], most: int = 5) -> str:
    """Return the sorted names as a sentence part, cut after ``most``."""
    ordered = sorted(names)
    if not ordered:
        return "none"
    rest = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + rest


def _digits(mark: str) -> str:
    """Return the first 12 digits of a SHA-256, and anything else as it is."""
    return mark[:12] if len(mark) == 64 else mark


def _and(hint: str) -> str:
    """Return a hint as the end of a sentence."""
    return f"; {hint}" if hint else ""


class RegistryError(Exception):
    """Anything this package refuses or fails to do, told in one line."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Come to another process as it is: a leaf's fields cannot be found again in its sentence."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class ConfigError(RegistryError, ValueError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2

    def __init__(self, field: str, expected: str, found: object, hint: str = "") -> None:
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"cannot use {field}: expected {expected}, found {found!r}{_and(hint)}")


class InvalidNameError(ConfigError):
    """A name that no adapter set, alias or reference may have."""

    def __init__(self, name: str, kind: str = "name") -> None:
        rule = "1 to 64 of a-z 0-9 . _ -, starting and ending with a letter or digit, not a reserved word"
        super().__init__(f"{kind} {name[:80]!r}", rule, name[:80])


class UnknownRecipeError(ConfigError, LookupError):
    """No shipped recipe or file has this name."""

    exit_code = 3

    def __init__(self, name: str, available: Iterable[str]) -> None:
        names = list(available)
        hint = closest(name, names) or "give one of these or the path of a .toml file"
        super().__init__("recipe", f"one of {shorten(names, 10)}", name, hint)


class TaskError(RegistryError):
    """Something about a task or its data."""


class UnknownTaskError(TaskError, LookupError):
    """No task has this name."""

    exit_code = 3

    def __init__(self, name: str, available: Iterable[str]) -> None:
        self.name, self.available = name, sorted(available)
        hint = closest(name, self.available) or "own tasks need --task-file or --data FILE"
        super().__init__(f"unknown task '{name}': expected one of {shorten(self.available)}; {hint}")


class DataError(TaskError, ValueError):
    """A data file, column or row that cannot be used."""

    def __init__(self, path: object, field: str, expected: str, found: object, hint: str = "") -> None:
        self.path, self.field, self.expected, self.found = str(path), field, expected, found
        super().__init__(f"cannot read {path}: {field}: expected {expected}, found {found}{_and(hint)}")


class DataUnavailableError(TaskError):
    """A Hub data set that can be neither reached nor found in the cache."""

    exit_code = 6

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        super().__init__(
            f"cannot load data set '{source}': {reason}, and it is not cached; "
            "use --data sample or --data FOLDER of parquet files"
        )


class BackboneError(RegistryError):
    """Something about the frozen encoder."""


class BackboneNotFoundError(BackboneError, LookupError):
    """A local folder that is missing or holds no checkpoint."""

    exit_code = 3

    def __init__(self, source: str, expected: str, found: str, hint: str = "") -> None:
        self.source = source
        hint = hint or "use --backbone embedded, a Hub id or a folder saved by transformers"
        super().__init__(f"cannot load backbone '{source}': expected {expected}, found {found}; {hint}")


class BackboneUnavailableError(BackboneError):
    """A Hub checkpoint that can be neither reached nor found in the cache."""

    exit_code = 6

    def __init__(self, source: str, reason: str, hint: str = "") -> None:
        self.source = source
        way_on = f"use --backbone embedded or a local folder{_and(hint)}"
        super().__init__(f"cannot load backbone '{source}': {reason}, and it is not cached; {way_on}")


class UnsupportedBackboneError(BackboneError):
    """A model family that families.py has no map of."""

    exit_code = 5

    def __init__(self, source: str, family: str, available: Iterable[str]) -> None:
        self.source, self.family = source, family
        super().__init__(
            f"cannot load backbone '{source}': expected a model of family {shorten(available, 9)}, found '{family}'"
        )


class DamagedBackboneError(BackboneError):
    """A checkpoint whose files are not what they should be."""

    exit_code = 4

    def __init__(self, path: object, what: str, expected: object, found: object) -> None:
        self.path, self.what, self.expected, self.found = str(path), what, expected, found
        super().__init__(
            f"cannot load {path}: {what}: expected {expected}, found {found}; download or install the checkpoint again"
        )


class DeviceError(BackboneError):
    """A device that this machine does not have."""

    def __init__(self, device: str, reason: str) -> None:
        self.device = device
        super().__init__(f"cannot use device '{device}': {reason}; use --device cpu or --device auto")


class CompatibilityError(RegistryError):
    """An adapter set that does not belong where it was asked for."""

    exit_code = 5


class BackboneMismatchError(CompatibilityError):
    """An adapter set or store made for another backbone or tokenizer."""

    def __init__(self, what: str, part: str, expected: str, found: str, hint: str = "") -> None:
        self.what, self.part, self.expected, self.found = what, part, expected, found
        hint = hint or "use the store of that backbone, or train the set again on this one"
        super().__init__(
            f"cannot use {what}: it was made for {part} {_digits(expected)}, this one is {_digits(found)}; {hint}"
        )


class ShapeMismatchError(CompatibilityError):
    """A tensor whose shape does not fit."""

    def __init__(self, tensor: str, expected: object, found: object) -> None:
        self.tensor, self.expected, self.found = tensor, expected, found
        super().__init__(f"cannot use tensor '{tensor}': expected shape {expected}, found {found}")


class TrainingError(RegistryError):
    """A training run that cannot start or go on."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient became NaN or infinite; the weights are those of the step before."""

    def __init__(self, step: int, value: float, learning_rate: float, what: str = "loss") -> None:
        self.step, self.value, self.learning_rate = step, value, learning_rate
        super().__init__(
            f"training stopped at step {step}: expected a finite {what}, found {value} at learning rate "
            f"{learning_rate:.2e}; the weights before this step are kept, try a lower --learning-rate"
        )


class DivergedError(TrainingError):
    """A training after which the set is worse than an untrained one."""

    def __init__(self, name: str, first: float, last: float) -> None:
        self.name, self.first, self.last = name, first, last
        super().__init__(
            f"cannot save '{name}': expected a loss that falls, found one that rose from {first:.3g} to {last:.3g}; "
            "try a lower --learning-rate, or give --keep-diverged"
        )


class CheckpointError(TrainingError):
    """A checkpoint that is damaged, made by other settings, or cannot be written."""

    def __init__(self, path: object, expected: str, found: str, attempted: str = "resume from") -> None:
        self.path = str(path)
        hints = {
            "resume from": "train without --resume to start anew",
            "write": "free some space, or use another --store",
            "start anew over": "go on with --resume, or give --restart to lose it",
        }
        super().__init__(f"cannot {attempted} {path}: expected {expected}, found {found}; {hints[attempted]}")


class TrackerError(TrainingError):
    """A tool's live log of a training that cannot be written."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        lines = reason.strip().splitlines() or ["no reason given"]
        super().__init__(f"cannot log to {kind}: {lines[0]}")


class TrainingInterrupted(TrainingError):
    """Training was asked to stop and did so between two steps."""

    exit_code = 130

    def __init__(self, step: int, steps: int, checkpoint: object) -> None:
        self.step, self.steps = step, steps
        kept = f"a checkpoint is kept in {checkpoint}" if checkpoint else "no checkpoint folder was given"
        super().__init__(f"training interrupted after step {step} of {steps}: {kept}; go on with --resume")


class RunError(RegistryError):
    """Run records that cannot be made, read or put in one table."""

    def __init__(self, path: object, expected: str, found: str, hint: str) -> None:
        self.path, self.expected, self.found = str(path), expected, found
        super().__init__(f"cannot use run records in {path}: expected {expected}, found {found}; {hint}")


class ReportMismatchError(RunError):
    """A report that is not what follows from its stored predictions."""

    exit_code = 4


class RequestError(RegistryError, ValueError):
    """A question that a predictor cannot answer."""

    exit_code = 2

    def __init__(self, attempted: str, expected: str, found: str) -> None:
        self.attempted, self.expected, self.found = attempted, expected, found
        super().__init__(f"cannot {attempted}: expected {expected}, found {found}")


class OutputError(RegistryError):
    """A file of answers that cannot be written; what was confirmed of it is kept."""

    def __init__(self, path: object, found: str) -> None:
        self.path = str(path)
        super().__init__(
            f"cannot write {path}: expected a place that can be written, found {found}; what was written is kept, "
            "the same command goes on after it"
        )


class UnansweredError(RegistryError):
    """Rows that have an error in the place of an answer; all others are answered."""

    def __init__(self, what: str, errors: int, rows: int) -> None:
        self.errors, self.rows = errors, rows
        super().__init__(f"{errors:,} of {rows:,} {what} have no answer; each says why in its place")


class ServerError(RegistryError):
    """A request that a server does not answer though its rows may be good; ``status`` is the one of HTTP."""

    def __init__(
        self, status: int, attempted: str, expected: str, found: str, retry_after: float | None = None
    ) -> None:
        self.status, self.attempted, self.expected, self.found = status, attempted, expected, found
        self.retry_after = retry_after
        hint = "" if retry_after is None else f"try again in {max(1, round(retry_after)):,} s"
        super().__init__(f"cannot {attempted}: expected {expected}, found {found}{_and(hint)}")


class RemoteError(RegistryError):
    """An error that a server has told in the place of an answer; ``status`` is 0 where none could be reached."""

    def __init__(self, status: int, kind: str, message: str, hint: str = "") -> None:
        self.status, self.kind = status, kind
        super().__init__(f"{message}{_and(hint)}")
