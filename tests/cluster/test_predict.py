"""A folder answered by workers of Ray: what one process would write."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.bulk.answer_file import FileQuestion
from registry.bulk.data_set import DataSetRun, answer_data_set
from registry.bulk.folders import Folder
from registry.model.backbone import Backbone
from registry.schema import Reading
from registry.serving.predictor import Predictor
from tests.support.served_sets import TEXTS, save_kinds

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one Ray at a time


def test_workers_make_the_parts_that_one_process_makes(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """Parts that are there stay, workers make the others, and all files are equal to the byte."""
    from registry.cluster.connection import connect
    from registry.cluster.predict import answer_on_cluster

    predictor = Predictor(tiny_backbone, save_kinds(tmp_path / "store", tiny_backbone))
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"body": [f"{TEXTS[n % 5]} {n}" for n in range(40)]}), tmp_path / "rows" / "a.parquet")
    question = FileQuestion(Path("."), ("task0:1",), ("body",), Reading())
    places = [Folder(str(tmp_path / name)) for name in ("rows", "here", "there")]
    here, there = (DataSetRun.begin(question, places[0], out, part_rows=9) for out in places[1:])
    alone = answer_data_set(predictor, here, rows=4)
    there.answer(predictor, there.plan.parts[1], rows=4)
    seen: list[tuple[int, int]] = []
    with connect("ray"):
        together = answer_on_cluster(predictor, there, lambda rows, parts: seen.append((rows, parts)), rows=4)
    assert alone == together
    assert (9, 1) == seen[0]
    assert (40, 5) == seen[-1]
    files = [path.name for path in sorted((tmp_path / "here").iterdir())]
    assert files == [path.name for path in sorted((tmp_path / "there").iterdir())]
    for name in files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
