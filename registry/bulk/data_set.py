"""The answers to all rows of a folder: parts out for files in, each made once, then a manifest of all.

A run begins with a plan in the folder of the answers: which files there are and which rows are a part. A part appears
whole, after its receipt; a run that was killed makes those that are missing, and the one it was at goes on where its
journal stands. So the answers are those of an undisturbed run, to the byte, and memory is that of a chunk.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from registry.bulk.answer_file import FileQuestion, Journal, write_answers
from registry.bulk.folders import Folder
from registry.bulk.parts import PART_ROWS, Part, PartPlan, Source, copy_part, difference, plan_parts
from registry.errors import ConfigError, DataError, OutputError, shorten
from registry.serving.predictor import Predictor
from registry.store import files
from registry.validation import Record, from_json, to_json

TOGETHER_ROWS = 4_096  # the more, the fuller are batches of one length
PLAN, MANIFEST, RECEIPTS, WORK = (
    "_plan.json",
    "_manifest.json",
    "_receipts",
    "_work",
)  # readers of folders pass over "_"


class Receipt(Record, frozen=True, kw_only=True):
    """What a part holds."""

    name: str
    rows: int
    errors: int
    sha256: str


class AnswerManifest(Record, frozen=True, kw_only=True):
    """All parts of a run that is done."""

    plan: PartPlan
    parts: tuple[Receipt, ...]
    rows: int
    errors: int


@dataclass(frozen=True)
class DataSetRun:
    """A run over a folder: what is asked, of what, where the answers go. It travels to other processes.

    Attributes:
        question: about each file; its path is set for each.
        folder: of the rows.
        out: of the answers.
        plan: which parts there are.
    """

    question: FileQuestion
    folder: Folder
    out: Folder
    plan: PartPlan

    @classmethod
    def begin(
        cls,
        question: FileQuestion,
        folder: Folder,
        out: Folder,
        *,
        restart: bool = False,
        part_rows: int = PART_ROWS,
    ) -> DataSetRun:
        """Return a run that is new, or one that was begun before; ``restart`` forgets one of another question.

        Raises:
            DataError: see ``plan_parts``.
            ConfigError: ``out`` is or holds the folder of the rows, is inside of it, or has other files.
            OutputError: ``out`` cannot be written.
        """
        if folder.holds(out) or out.holds(folder):
            raise ConfigError(f"--out {out}", "a folder apart from that of --data", str(folder), "name another")
        plan = plan_parts(question, folder, part_rows)
        out.make()
        run, there = cls(question, folder, out, plan), out.files()
        begun = run._begun(there)
        if restart and MANIFEST not in there and begun is not None and begun != plan:
            own = {part.name for part in begun.parts}
            out.remove([name for name in there if name in own or name.split("/")[0] in (RECEIPTS, WORK)])
            begun = None
        if begun is None:
            out.write(PLAN, to_json(plan))
        elif begun != plan:
            raise ConfigError(f"--out {out}", *difference(begun, plan, MANIFEST in there))
        return run

    def _begun(self, there: dict[str, tuple[int, str]]) -> PartPlan | None:
        """Return the plan of an earlier run, None where there is none and the folder is free for one."""
        if MANIFEST in there:
            return from_json(AnswerManifest, self.out.read(MANIFEST) or b"").plan
        if PLAN in there:
            return from_json(PartPlan, self.out.read(PLAN) or b"")
        others = [name for name in there if name.split("/")[0] not in (RECEIPTS, WORK) and not name.endswith(".tmp")]
        if others:
            expected = "a folder that is empty, or that this command has begun"
            raise ConfigError(f"--out {self.out}", expected, shorten(others), "name another")
        return None

    def left(self) -> tuple[list[Part], list[Receipt]]:
        """Return the parts that are to be made, in their order, and the receipts of those that are there."""
        there = self.out.files()
        if MANIFEST in there:
            return [], list(from_json(AnswerManifest, self.out.read(MANIFEST) or b"").parts)
        done = {
            part.name: receipt
            for part in self.plan.parts
            if part.name in there and (receipt := self._receipt(part, there)) is not None
        }
        return [part for part in self.plan.parts if part.name not in done], list(done.values())

    def _receipt(self, part: Part, there: dict[str, tuple[int, str]]) -> Receipt | None:
        name = f"{RECEIPTS}/{part.name}.json"
        content = self.out.read(name) if name in there else None
        return None if content is None else from_json(Receipt, content)

    def answer(
        self,
        predictor: Predictor,
        part: Part,
        *,
        alone: bool = True,
        observe: Callable[[Journal], None] | None = None,
        rows: int = TOGETHER_ROWS,
    ) -> Receipt:
        """Make a part, and return what it holds.

        Args:
            predictor: answers.
            part: of the plan.
            alone: no other process makes parts of this run, so that one begun before is gone on with.
            observe: called at its start and after each chunk.
            rows: of a chunk.

        Raises:
            DataError: its source is damaged, or is not what it was when the run was begun.
            OutputError: it cannot be written; what was written of it is kept.
        """
        source = next(each for each in self.plan.sources if each.name == part.source)
        self._check_unchanged(source)
        with self._work_folder(alone) as work:
            made = work / part.name
            made.parent.mkdir(parents=True, exist_ok=True)
            made.unlink(missing_ok=True)  # whole, but killed before it was moved
            mark = f"{self.plan.settings} {part.name} {source.bytes} {source.stamp}"
            asked = replace(self.question, path=self._rows_of(part, work), first_row=part.first, mark=mark)
            journal = write_answers(predictor, asked, made, observe=observe, rows=rows)
            self._check_unchanged(source)
            digest = _sha256(made)
            receipt = Receipt(name=part.name, rows=journal.rows, errors=journal.errors, sha256=digest)
            self.out.write(f"{RECEIPTS}/{part.name}.json", to_json(receipt))
            self.out.move_in(made, part.name)
        return receipt

    def finish(self) -> AnswerManifest:
        """Write the manifest of all parts, remove what was of use on the way, and return it.

        Raises:
            OutputError: a part is missing, or the manifest cannot be written.
        """
        left, receipts = self.left()
        if left:
            raise OutputError(f"{self.out}/{MANIFEST}", f"{len(left)} parts that are not there, such as {left[0].name}")
        rows, errors = sum(each.rows for each in receipts), sum(each.errors for each in receipts)
        manifest = AnswerManifest(plan=self.plan, parts=tuple(receipts), rows=rows, errors=errors)
        there = self.out.files()
        if MANIFEST not in there:
            self.out.write(MANIFEST, to_json(manifest))
        self.out.remove([name for name in there if name == PLAN or name.split("/")[0] in (RECEIPTS, WORK)])
        if self.out.local is not None:
            files.discard(self.out.local / RECEIPTS)
            files.discard(self.out.local / WORK)
        return manifest

    def _check_unchanged(self, source: Source) -> None:
        if self.folder.stamp(source.name) != (source.bytes, source.stamp):
            expected, hint = "the file that it was when the run was begun", "--restart begins again"
            raise DataError(f"{self.folder}/{source.name}", "file", expected, "one written to since, or none", hint)

    @contextmanager
    def _work_folder(self, alone: bool) -> Iterator[Path]:
        """Give a folder of this machine for a part that is being made; one that outlives a killed run where it can."""
        if alone and self.out.local is not None:
            yield self.out.local / WORK
        else:
            with tempfile.TemporaryDirectory(prefix="adapter-registry-") as name:
                yield Path(name)

    def _rows_of(self, part: Part, work: Path) -> Path:
        """Return a file of this machine that has the rows of a part and no others."""
        if self.folder.local is not None and part.rows is None:
            return self.folder.local / part.source
        path = work / "_rows" / PurePosixPath(part.source).name
        path.parent.mkdir(parents=True, exist_ok=True)
        copy_part(self.folder, part, path)
        return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def answer_data_set(
    predictor: Predictor, run: DataSetRun, observe: Callable[[int, int], None] | None = None, rows: int = TOGETHER_ROWS
) -> AnswerManifest:
    """Make all parts that are missing, one after another, and return the manifest.

    Args:
        predictor: answers.
        run: begun now or before.
        observe: called with the rows answered so far and the parts that are there, at the start and after each chunk.
        rows: of a chunk.

    Raises:
        DataError, OutputError: see ``DataSetRun.answer``.
    """
    left, receipts = run.left()
    before, parts = sum(each.rows for each in receipts), len(receipts)

    def tell(journal: Journal) -> None:
        if observe is not None:
            observe(before + journal.rows, parts)

    tell(Journal(settings=""))
    for part in left:
        before, parts = before + run.answer(predictor, part, observe=tell, rows=rows).rows, parts + 1
    return run.finish()
