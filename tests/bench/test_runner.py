"""The runner: a record for every cell, diverged ones too, from which its scores can be computed again."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from registry.bench.records import RunRecord, read_predictions, read_record, record_path
from registry.bench.runner import Cell, CellJob, cells_of, make_job, plan_passes, run_cell, run_pass
from registry.bench.sweep import Variant
from registry.errors import ConfigError, RunError
from registry.model.backbone import Backbone
from registry.provenance import code_version, command_line, library_versions
from registry.store.registry import Registry
from registry.tasks.loading import load_task
from registry.tasks.metrics import score
from registry.tasks.spec import find_task, task_from_file
from registry.tasks.task_data import TaskData
from registry.training.fit import fit
from registry.training.plan import make_plan
from registry.validation import to_json
from tests.support.command_line import own_rows, write_csv, write_data_folder
from tests.support.stored_sets import tree

QUICK = {"epochs": 1, "max_length": 32, "batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    """The little mrpc: 20 of 24 rows to train on, 12 to score."""
    folder = write_data_folder(tmp_path_factory.mktemp("data"))
    return load_task(find_task("mrpc"), str(folder), limit=20)


def run(out: Path, data: TaskData, backbone: Backbone, method: str = "houlsby", **more: object) -> RunRecord:
    """Run one cell that was not run before."""
    overrides = {**QUICK, **more}
    record, is_new = run_cell(out, Cell("mrpc", method, 0), data, backbone, overrides=overrides)
    assert is_new
    return record


def jobs_of(data: TaskData, backbone: Backbone, *methods: str) -> list[CellJob]:
    """Return a job with seed 0 for each of the methods."""
    return [make_job(Cell("mrpc", method, 0), data, backbone, overrides=dict(QUICK)) for method in methods]


def test_cells_come_task_by_task() -> None:
    """The grid is run task by task, method by method, seed by seed, and a cell tells its place."""
    cells = cells_of(["mrpc", "sst2"], ["majority", "houlsby"], [0, 1])
    assert 8 == len(cells)
    assert [Cell("mrpc", "majority", 0), Cell("mrpc", "majority", 1), Cell("mrpc", "houlsby", 0)] == cells[:3]
    assert "sst2 houlsby seed 1" == str(cells[-1])


def test_record_has_all_there_is_to_ask(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Scores, counts, bytes, times, rates, memory, rows, choices, versions, machine, code and command are in it."""
    record = run(tmp_path, data, tiny_backbone)
    assert record == read_record(record_path(tmp_path, "mrpc", "houlsby", 0))
    assert ("finished", None, "mrpc", "houlsby", 0, "default") == (
        record.status,
        record.error,
        record.task,
        record.method,
        record.seed,
        record.recipe,
    )
    assert ("validation", "f1_binary") == (record.split, record.main_metric)
    assert ["accuracy", "f1_binary", "f1_weighted"] == sorted(record.scores)
    assert 3 == record.steps
    assert record.final_loss is not None
    for field in ("train_seconds", "evaluate_seconds", "peak_memory_bytes", "stored_bytes"):
        assert getattr(record, field) > 0, field
    assert 20 / record.train_seconds == pytest.approx(record.rows_per_second, rel=0.05)
    assert record.evaluate_rows_per_second > 0
    assert (20, 24, 12, 12, False) == (
        record.data.train_rows,
        record.data.train_available,
        record.data.reported_rows,
        record.data.reported_available,
        record.data.sample,
    )
    assert data.fingerprint() == record.data.fingerprint
    assert (len(data.overlap.train), len(data.overlap.reported)) == (
        record.data.overlap_train,
        record.data.overlap_reported,
    )
    assert tiny_backbone.info == record.backbone
    plan = make_plan("houlsby", data, tiny_backbone, 0, **QUICK)
    assert (plan.adapter, plan.head, plan.training) == (record.adapter, record.head, record.training)
    assert plan.digest(tiny_backbone, data) == record.settings
    assert ("cpu", "float32") == (record.device, record.dtype)
    assert (library_versions(), code_version(), command_line()) == (
        record.library_versions,
        record.code,
        record.command,
    )
    assert (1, None) == (record.hardware.threads, record.hardware.accelerator)
    assert record.started.endswith("+00:00")


def test_predictions_give_the_scores_again(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """The answers beside a record are numbers only, and the record's scores follow from them."""
    for method in ("majority", "houlsby"):
        record = run(tmp_path, data, tiny_backbone, method)
        found = read_predictions(tmp_path, record)
        assert list(data.reported.row_numbers) == found.row_numbers.tolist()
        assert list(data.reported.labels) == found.labels.tolist()
        again = score("classification", found.labels.tolist(), found.probabilities, data.spec.metrics)
        assert record.scores == pytest.approx(again, abs=1e-12)
    content = b"".join(tree(tmp_path).values())
    assert not any(text.encode() in content for text in (*data.reported.texts, *(data.reported.pairs or ())))


def test_record_holds_the_learning_curve(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """The mean loss of every step that the observer was told of is kept; a run that trains nothing has no curve."""
    seen: list[tuple[int, float]] = []
    cell = Cell("mrpc", "houlsby", 0)
    record, _ = run_cell(
        tmp_path,
        cell,
        data,
        tiny_backbone,
        overrides=dict(QUICK),
        observe=lambda report: seen.append((report.step, report.loss)),
    )
    assert record.curve is not None
    assert [step for step, _ in seen] == list(record.curve.steps)
    assert [loss for _, loss in seen] == pytest.approx(record.curve.losses, rel=1e-5)
    assert record.final_loss == pytest.approx(sum(record.curve.losses) / 3, rel=1e-5)
    assert () == record.curve.held_out
    assert run(tmp_path, data, tiny_backbone, "majority").curve is None


def test_curve_has_the_scores_on_held_out_rows(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Where a training is evaluated on its way, the record tells after which steps and how."""
    record = run(tmp_path, data, tiny_backbone, evaluate_every=2, held_out=0.2, epochs=2)
    assert record.curve is not None
    assert record == read_record(record_path(tmp_path, "mrpc", "houlsby", 0))
    assert [2, 4] == [point.step for point in record.curve.held_out]
    assert [["accuracy"]] * 2 == [list(point.scores) for point in record.curve.held_out]


def test_record_without_the_newer_fields_can_be_read(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Records made before there were curves and overlap read as records that do not know them."""
    record = run(tmp_path, data, tiny_backbone)
    plain = json.loads(to_json(record))
    del plain["curve"], plain["data"]["overlap_train"], plain["data"]["overlap_reported"]
    path = record_path(tmp_path, "mrpc", "houlsby", 0)
    path.write_text(json.dumps(plain))
    unknown = msgspec.structs.replace(record.data, overlap_train=None, overlap_reported=None)
    assert msgspec.structs.replace(record, curve=None, data=unknown) == read_record(path)


def test_finished_cell_is_not_run_again(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """The same cell a second time gives the record that is there and changes no byte."""
    record = run(tmp_path, data, tiny_backbone)
    before = tree(tmp_path)
    again, is_new = run_cell(tmp_path, Cell("mrpc", "houlsby", 0), data, tiny_backbone, overrides=dict(QUICK))
    assert (record, False) == (again, is_new)
    assert before == tree(tmp_path)


def test_running_a_cell_again_elsewhere_gives_the_same_scores(
    tmp_path: Path, data: TaskData, tiny_backbone: Backbone
) -> None:
    """Equal settings give equal scores and equal answers, bit for bit, on one machine."""
    first, second = (run(tmp_path / place, data, tiny_backbone) for place in ("one", "two"))
    assert (first.settings, first.scores, first.predictions) == (second.settings, second.scores, second.predictions)


def test_record_of_other_settings_is_in_the_way(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """A record made with other choices is neither returned nor overwritten."""
    run(tmp_path, data, tiny_backbone)
    before = tree(tmp_path)
    with pytest.raises(RunError, match="expected a record of the same settings and rows, found one of others"):
        run(tmp_path, data, tiny_backbone, epochs=2)
    assert before == tree(tmp_path)


def test_diverged_run_is_recorded_and_run_again(tmp_path: Path, tiny_backbone: Backbone) -> None:
    """A run whose loss is not finite is listed as failed, with its error and no scores, and is tried again."""
    rows = [{**row, "stars": n} for n, row in enumerate(own_rows())]
    path = write_csv(tmp_path / "rows.csv", rows)
    data = load_task(task_from_file(path, text_column="body", label_column="stars", problem_type="regression"))
    cell, out = Cell("rows", "pfeiffer", 0), tmp_path / "out"
    for _ in range(2):
        record, is_new = run_cell(out, cell, data, tiny_backbone, overrides={**QUICK, "weight_decay": 1e30})
        assert is_new
        assert ("failed", {}, None) == (record.status, record.scores, record.predictions)
        assert (record.error or "").startswith("training stopped at step ")
        assert record == read_record(record_path(out, "rows", "pfeiffer", 0))
    assert not list(out.rglob("*.parquet"))
    assert (0, tiny_backbone.info.parameters) == (record.parameters.trainable, record.parameters.backbone)


def test_kept_set_is_the_one_that_was_scored(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """A set that a run keeps has the record's scores, choices and rows in its manifest."""
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    cell = Cell("mrpc", "parallel", 0)
    record, _ = run_cell(tmp_path / "out", cell, data, tiny_backbone, overrides=dict(QUICK), keep_in=registry)
    manifest = registry.manifest("mrpc")
    assert (record.scores, record.adapter, record.head, record.training, record.data, record.split) == (
        manifest.scores,
        manifest.adapter,
        manifest.head,
        manifest.training,
        manifest.data,
        manifest.split,
    )
    assert record.stored_bytes == sum(entry.bytes for entry in manifest.files)
    assert ("mrpc", True, 32) == (manifest.task, manifest.pair, manifest.max_length)


def test_methods_without_a_set_keep_nothing(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Majority and full fine-tuning leave no adapter set, and saving one of theirs is refused."""
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    for method in ("majority", "full_fine_tuning"):
        plan = make_plan(method, data, tiny_backbone, 0, **QUICK)
        with pytest.raises(ConfigError, match="expected a trained adapter set, such as a placement leaves, found"):
            registry.save("mrpc", fit(plan, data, tiny_backbone))
    assert 0 == len(registry)


def test_observer_sees_every_step(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Progress is told step by step, with the number of steps to come known from the first on."""
    seen: list[tuple[int, int, int]] = []
    run_cell(
        tmp_path,
        Cell("mrpc", "head_only", 0),
        data,
        tiny_backbone,
        overrides=dict(QUICK),
        observe=lambda report: seen.append((report.step, report.steps, report.rows)),
    )
    assert [(1, 3, 8), (2, 3, 8), (3, 3, 4)] == seen


def test_backbone_is_unchanged_by_a_grid(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Whatever methods run one after another, the backbone's weights stay as they are, and order does not matter."""
    before = tiny_backbone.memory_digest()
    forward = {m: run(tmp_path / "a", data, tiny_backbone, m).scores for m in ("full_fine_tuning", "houlsby")}
    backward = {m: run(tmp_path / "b", data, tiny_backbone, m).scores for m in ("houlsby", "full_fine_tuning")}
    assert before == tiny_backbone.memory_digest()
    assert forward == backward


def test_unfinished_cells_that_train_sets_share_passes(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Baselines without a set and finished cells are alone, the others together, as many as may be in one pass."""
    methods = ("majority", "head_only", "after_layer", "houlsby", "full_fine_tuning", "pfeiffer", "parallel")
    jobs = jobs_of(data, tiny_backbone, *methods)
    run(tmp_path, data, tiny_backbone, "after_layer")
    passes = [[job.cell.method for job in sharing] for sharing in plan_passes(tmp_path, jobs, 3)]
    joint = ["head_only", "houlsby", "pfeiffer"]
    assert [["majority"], joint, ["after_layer"], ["full_fine_tuning"], ["parallel"]] == passes
    assert [[method] for method in methods] == [
        [job.cell.method for job in sharing] for sharing in plan_passes(tmp_path, jobs)
    ]


def test_cells_of_one_pass_are_what_they_are_alone(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """Records come in the order of the jobs, with the settings and, up to rounding, the answers of cells run alone."""
    methods = ("parallel", "head_only", "houlsby")
    together = run_pass(tmp_path / "joint", jobs_of(data, tiny_backbone, *methods), tiny_backbone)
    for method, (record, is_new) in zip(methods, together, strict=True):
        alone = run(tmp_path / "alone", data, tiny_backbone, method)
        assert (method, 3, 1, True) == (record.method, record.together, alone.together, is_new)
        for field in ("settings", "parameters", "steps", "data", "training", "scores"):
            assert getattr(alone, field) == getattr(record, field), field
        assert alone.final_loss == pytest.approx(record.final_loss, abs=1e-4)
        assert record.train_seconds > 0
        assert record.rows_per_second > 0
        found = read_predictions(tmp_path / "joint", record).probabilities
        assert read_predictions(tmp_path / "alone", alone).probabilities == pytest.approx(found, abs=1e-4)


def test_pass_runs_only_what_is_not_there(tmp_path: Path, data: TaskData, tiny_backbone: Backbone) -> None:
    """A finished cell in a pass is returned as it is, its observer never called, and does not count as trained."""
    done = run(tmp_path, data, tiny_backbone, "houlsby")
    steps: list[str] = []
    observers = [lambda _: steps.append("houlsby"), lambda _: steps.append("pfeiffer")]
    jobs = jobs_of(data, tiny_backbone, "houlsby", "pfeiffer")
    (first, first_is_new), (second, second_is_new) = run_pass(tmp_path, jobs, tiny_backbone, observers=observers)
    assert (done, False) == (first, first_is_new)
    assert ("finished", 1, True) == (second.status, second.together, second_is_new)
    assert ["pfeiffer"] * 3 == steps


def test_diverged_cell_leaves_the_others_of_its_pass_alone(
    tmp_path: Path, data: TaskData, tiny_backbone: Backbone
) -> None:
    """A variant that diverges is recorded as failed beside the finished ones, whose answers it does not change."""
    diverging = Variant(name="pfeiffer-wd1e30", method="pfeiffer", training={"weight_decay": 1e30})
    job = make_job(
        Cell("mrpc", diverging.name, 0), data, tiny_backbone, overrides=dict(QUICK), variant=diverging, keeps=True
    )
    registry = Registry.create(tmp_path / "store", tiny_backbone)
    outcomes = run_pass(tmp_path, [*jobs_of(data, tiny_backbone, "pfeiffer"), job], tiny_backbone, keep_in=registry)
    (finished, _), (failed, _) = outcomes
    assert ("finished", "failed", "pfeiffer-wd1e30") == (finished.status, failed.status, failed.method)
    assert (failed.error or "").startswith("training stopped at step ")
    assert run(tmp_path / "alone", data, tiny_backbone, "pfeiffer").scores == finished.scores
    assert 0 == len(registry)
    assert failed.curve is not None
    assert 1 <= failed.steps == failed.curve.steps[-1] < 3


def test_variant_replaces_settings_of_its_method(data: TaskData, tiny_backbone: Backbone) -> None:
    """Swept settings win over the recipe's and over the command's, and all others stay the method's."""
    variant = Variant(name="houlsby-rf4-ep3", method="houlsby", adapter={"reduction_factor": 4}, training={"epochs": 3})
    cell = Cell("mrpc", variant.name, 0)
    job = make_job(cell, data, tiny_backbone, overrides=dict(QUICK), variant=variant)
    plan = make_plan("houlsby", data, tiny_backbone, 0, **QUICK)
    assert job.plan.adapter is not None
    assert plan.adapter is not None
    assert ("houlsby", 4, plan.adapter.activation) == (
        job.plan.adapter.placement,
        job.plan.adapter.reduction_factor,
        job.plan.adapter.activation,
    )
    assert job.plan.training == msgspec.structs.replace(plan.training, epochs=3)
    with pytest.raises(ConfigError, match="cannot use choices: expected a method with an adapter, found 'head_only'"):
        make_plan("head_only", data, tiny_backbone, 0, choices={"reduction_factor": 4})
    with pytest.raises(ConfigError, match="reduction_factor: expected a divisor of the hidden size 32, found 5"):
        make_plan("houlsby", data, tiny_backbone, 0, choices={"reduction_factor": 5})
