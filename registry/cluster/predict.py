"""The parts of a data set as tasks of Ray: each is made whole by a worker, which puts it where it belongs.

Store, rows and the folder of the answers are where every machine sees them: on a shared disk or in object storage. A
part is made by the function that makes it here, so the answers are equal where thread counts are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from registry.bulk.data_set import TOGETHER_ROWS, AnswerManifest, DataSetRun, Receipt
from registry.bulk.parts import Part
from registry.cluster.connection import ClusterError, check_worker
from registry.cluster.grid import RETRIES, Terms
from registry.errors import RegistryError
from registry.serving.predictor import Predictor


def answer_on_cluster(
    predictor: Predictor,
    run: DataSetRun,
    observe: Callable[[int, int], None] = lambda rows, parts: None,
    rows: int = TOGETHER_ROWS,
) -> AnswerManifest:
    """Make all parts that are missing on the machines of a cluster, and return the manifest.

    Args:
        predictor: opened again by every worker, with as many threads as it has here.
        run: begun now or before.
        observe: called with the rows answered so far and the parts that are there, at the start and after each part.
        rows: of a chunk.

    Raises:
        ClusterError: a worker with other libraries or code, or one that was lost again and again.
        RegistryError: see ``DataSetRun.answer``; parts that other workers were at are lost, those that are there stay.
    """
    left, receipts = run.left()
    terms = Terms.like(predictor.backbone)
    answered, parts = sum(each.rows for each in receipts), len(receipts)
    observe(answered, parts)
    own = {"num_cpus": terms.threads, "num_gpus": terms.gpus, "max_retries": RETRIES, "max_calls": 0}
    task = ray.remote(**own)(_answer)
    shared = [ray.put(predictor)]  # in a list, so that a worker opens it once and not for every part
    run_stored, terms_stored = ray.put(run), ray.put(terms)
    pending = {task.remote(terms_stored, shared, run_stored, part, rows): part for part in left}
    try:
        while pending:
            (reference, *_), _ = ray.wait(list(pending))
            receipt = _receipt(reference, pending[reference])
            del pending[reference]
            answered, parts = answered + receipt.rows, parts + 1
            observe(answered, parts)
    finally:
        with suppress(RayError):
            for reference in pending:
                ray.cancel(reference, force=True)
    return run.finish()


def _answer(terms: Terms, shared: list[Any], run: DataSetRun, part: Part, rows: int) -> Receipt:
    """Make one part, on a worker."""
    check_worker(terms.versions)
    torch.set_num_threads(terms.threads)
    return run.answer(_open(shared[0]), part, alone=False, rows=rows)


@functools.lru_cache(maxsize=1)
def _open(reference: Any) -> Predictor:
    """Return the predictor, opened once a process."""
    predictor: Predictor = ray.get(reference)
    return predictor


def _receipt(reference: Any, part: Part) -> Receipt:
    """Return the receipt of a part.

    Raises:
        ClusterError: its worker was lost.
        RegistryError: what the worker has raised.
    """
    try:
        receipt: Receipt = ray.get(reference)
    except RayError as err:
        if isinstance(err, RayTaskError) and isinstance(err.cause, RegistryError):
            raise err.cause from err
        told = (str(err).strip().splitlines() or [type(err).__name__])[0 if not isinstance(err, RayTaskError) else -1]
        hint = "the parts that are there stay; the same command goes on"
        raise ClusterError(f"answer {part.name}", "a worker that ends its work", told[:200], hint) from err
    return receipt
