"""The predictor: mixed rows equal single answers, whatever the order, the thread, the kind of task or who leaves."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry.config import AdapterConfig, HeadConfig
from registry.errors import InvalidNameError, RequestError
from registry.model.backbone import Backbone
from registry.schema import SetInfo
from registry.serving.predictor import Prediction, Predictor, Request
from registry.store.errors import AdapterNotFoundError, IntegrityError
from registry.store.registry import Registry
from tests.support.served_sets import KINDS, TEXTS, assert_close, requests
from tests.support.toy_task import randomise


def test_mixed_rows_equal_single_answers(predictor: Predictor) -> None:
    """Rows of four kinds of sets in one call are answered as each would be alone, in the caller's order."""
    rows = requests()
    for row, answer in zip(rows, predictor.mixed(rows), strict=True):
        assert f"{row.reference}:1" == answer.reference
        pairs = None if row.pair is None else [row.pair]
        assert_close(predictor(row.reference, [row.text], pairs)[0], answer)


def test_order_of_rows_does_not_matter(predictor: Predictor) -> None:
    """Any order of the same rows gives each row the same answer."""
    rows = requests()[:4]
    alone = {row: predictor.mixed([row])[0] for row in rows}
    for order in itertools.permutations(rows):
        for row, answer in zip(order, predictor.mixed(order), strict=True):
            assert_close(alone[row], answer)


def test_more_rows_than_one_batch(predictor: Predictor) -> None:
    """Hundreds of rows are cut into batches, and every one is answered in its place."""
    rows = requests() * 10
    few = predictor.mixed(requests())
    for answer, expected in zip(predictor.mixed(rows), few * 10, strict=True):
        assert_close(expected, answer)


def test_labels_follow_from_the_problem_type(predictor: Predictor) -> None:
    """One class, the classes above one half, or the number itself."""
    one, pair, many, number = (
        predictor("task0", ["a good film"])[0],
        predictor("task1", ["he left"], ["she went"])[0],
        predictor("task2", ["a good film"])[0],
        predictor("task3", ["a good film"])[0],
    )
    for answer in (one, pair):
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert answer.label == max(answer.probabilities, key=lambda name: answer.probabilities[name])
    assert many.label == tuple(name for name, share in many.probabilities.items() if share >= 0.5)
    assert {"stars": number.label} == number.probabilities
    assert isinstance(number.label, float)


def test_tuples_are_requests(predictor: Predictor) -> None:
    """Rows may be plain tuples, with a second text or without; no rows have no answers."""
    answers = predictor.mixed([("task0", "good"), ("task1", "he left", "he went"), ("task3", "good", None)])
    assert ["task0:1", "task1:1", "task3:1"] == [answer.reference for answer in answers]
    assert [] == predictor.mixed([])
    assert [] == predictor("task0", [])


def test_references_to_one_set_share_it(registry: Registry, predictor: Predictor) -> None:
    """A name, its version and its alias are one set, and the answer says which version it was."""
    registry.alias("task0", "best", 1)
    answers = predictor.mixed([("task0", "good"), ("task0:1", "good"), ("task0@best", "good")])
    assert {"task0:1"} == {answer.reference for answer in answers}
    assert_close(answers[0], answers[1])
    assert_close(answers[0], answers[2])


def test_new_version_and_moved_alias_are_seen_at_once(
    registry: Registry, predictor: Predictor, tiny_backbone: Backbone
) -> None:
    """A bare name means the newest version at every call, and an alias whatever it points to then."""
    registry.alias("task0", "best", 1)
    before = predictor("task0", ["good"])[0]
    adapter, head, _ = KINDS[0]
    registry.save("task0", randomise(tiny_backbone.new_adapter_set(adapter, head), seed=9), SetInfo(max_length=16))
    assert "task0:2" == predictor("task0", ["good"])[0].reference
    assert_close(before, predictor("task0@best", ["good"])[0])
    registry.alias("task0", "best", 2)
    assert predictor("task0@best", ["good"])[0].probabilities != pytest.approx(before.probabilities, abs=1e-4)


def test_set_that_was_replaced_is_loaded_anew(
    registry: Registry, predictor: Predictor, tiny_backbone: Backbone
) -> None:
    """After a name was removed and saved again, version 1 is another set, and the next call knows."""
    before = predictor("task0", ["good"])[0]
    registry.remove("task0")
    with pytest.raises(AdapterNotFoundError, match="cannot find adapter set 'task0'"):
        predictor("task0", ["good"])
    head = HeadConfig(label_names=("no", "yes"))
    registry.save("task0", randomise(tiny_backbone.new_adapter_set(KINDS[0][0], head), seed=9), SetInfo(max_length=16))
    after = predictor("task0", ["good"])[0]
    assert (before.reference, ("no", "yes")) == (after.reference, tuple(after.probabilities))


def tight(predictor: Predictor, sets: int = 1) -> Predictor:
    """Return another predictor on the same store whose pool keeps hardly more than so many sets of the largest kind."""
    sizes = []
    for number in range(len(KINDS)):
        fresh = Predictor(predictor.backbone, predictor.registry)
        fresh.mixed([row for row in requests() if row.reference == f"task{number}"][:1])
        sizes.append(fresh.pool.bytes)
    return Predictor(predictor.backbone, predictor.registry, capacity=sets * max(sizes))


def test_threads_do_not_disturb_each_other(predictor: Predictor) -> None:
    """Sixteen threads get exactly one thread's answers, though their questions push each other's sets out of memory."""
    rows = requests()
    questions = [rows[first : first + count] for first in range(len(rows)) for count in (1, 3)]
    alone = [predictor.mixed(question) for question in questions]
    shared, together = tight(predictor), threading.Barrier(16)

    def ask(worker: int) -> list[tuple[int, list[Prediction]]]:
        together.wait(timeout=30)
        mine = [*range(worker % len(questions), len(questions), 5), *range(worker % 3, len(questions), 7)]
        return [(index, shared.mixed(questions[index])) for index in mine]

    with ThreadPoolExecutor(16) as pool:
        answered = [answer for answers in pool.map(ask, range(16)) for answer in answers]
    assert set(range(len(questions))) == {index for index, _ in answered}
    for index, answers in answered:
        assert alone[index] == answers
    assert shared.pool.bytes <= shared.pool.capacity


def test_set_that_left_memory_answers_the_same_again(predictor: Predictor) -> None:
    """What is pushed out is loaded when it is named, and nobody can tell from the answers."""
    small = tight(predictor)
    first = [small.mixed([row]) for row in requests()]
    assert len(small.pool) < len(KINDS)
    assert first == [small.mixed([row]) for row in requests()]
    assert first == [predictor.mixed([row]) for row in requests()]
    nothing = Predictor(predictor.backbone, predictor.registry, capacity=0)
    assert first == [nothing.mixed([row]) for row in requests()]
    assert (0, 0) == (len(nothing.pool), nothing.pool.bytes)


def test_set_in_memory_is_not_read_again(registry: Registry, predictor: Predictor) -> None:
    """While a set is resident its files are not opened: even damaged, they change no answer until it has left."""
    small = tight(predictor)
    before = small("task0", ["good"])
    for path in registry.store.folder("task0", 1).glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert before == small("task0", ["good"])
    small("task2", ["good"])
    with pytest.raises(IntegrityError, match="task0"):
        small("task0", ["good"])
    assert "task2:1" == small("task2", ["good"])[0].reference


@pytest.mark.parametrize("capacity", [0, 2**30])
def test_more_sets_than_are_held_at_once(
    registry: Registry, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    """A call that names more sets than are held together is answered in parts, each row in its place."""
    names = [f"more{number}" for number in range(8)]
    for number, name in enumerate(names):
        adapter = AdapterConfig(placement="houlsby", reduction_factor=2 ** (number % 3))
        fresh = tiny_backbone.new_adapter_set(adapter, KINDS[0][1])
        registry.save(name, randomise(fresh, seed=20 + number), SetInfo(pair=False, max_length=16))
    rows = [Request(name, text) for text in TEXTS for name in (*names, names[0])]
    expected = [Predictor(tiny_backbone, registry).mixed([row])[0] for row in rows[:9]]
    monkeypatch.setattr("registry.serving.predictor.SETS_AT_ONCE", 3)
    predictor = Predictor(tiny_backbone, registry, capacity=capacity)
    answers = predictor.mixed(rows)
    assert [f"{row.reference}:1" for row in rows] == [answer.reference for answer in answers]
    for one, answer in zip(expected, answers, strict=False):
        assert_close(one, answer)
    for row, answer in zip(rows[9:], answers[9:], strict=True):
        assert_close(predictor.mixed([row])[0], answer)
    assert (8 if capacity else 0) == len(predictor.pool)


def test_answers_leave_the_backbone_as_it_was(predictor: Predictor) -> None:
    """Serving changes no weight."""
    before = predictor.backbone.memory_digest()
    predictor.mixed(requests())
    assert before == predictor.backbone.memory_digest()


def test_cut_text_is_marked(predictor: Predictor) -> None:
    """A text longer than the set's maximum is cut, and only its answer says so."""
    answers = predictor("task0", ["good", "good " * 30])
    assert [False, True] == [answer.truncated for answer in answers]


def test_set_of_unknown_form_takes_one_text_or_two(predictor: Predictor) -> None:
    """A set that does not say whether its task is on pairs answers both."""
    one, two = predictor.mixed([("task3", "good"), ("task3", "good", "bad")])
    assert one.probabilities != two.probabilities


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("task0", "good", "bad"),
            "cannot answer row 1 with 'task0:1': expected one text, as its task",
        ),
        (
            ("task1", "good"),
            "cannot answer row 1 with 'task1:1': expected two texts, as its task",
        ),
        (("task0", " \n"), "cannot answer row 1 with 'task0:1': expected a text, found an empty one"),
        (("task1", "good", ""), "expected a text, found an empty one"),
        (("task0", "half \ud83d"), "expected a text, found half a character"),
    ],
)
def test_rows_that_cannot_be_answered(predictor: Predictor, row: tuple[str, ...], message: str) -> None:
    """A row that its set cannot answer is refused with the set's name, whatever stands beside it."""
    with pytest.raises(RequestError, match=message):
        predictor.mixed([("task2", "good"), row])  # type: ignore[list-item]


def test_lists_of_other_lengths_are_refused(predictor: Predictor) -> None:
    """As many second texts as texts, or none."""
    with pytest.raises(RequestError, match="cannot answer with 'task1': expected 2 second texts, found 1"):
        predictor("task1", ["a", "b"], ["c"])


def test_unknown_and_impossible_names(predictor: Predictor) -> None:
    """An unknown set is told with the closest one; an impossible name is no path."""
    with pytest.raises(AdapterNotFoundError, match="did you mean 'task0'"):
        predictor("tsk0", ["good"])
    with pytest.raises(InvalidNameError, match="cannot use name '../task0'"):
        predictor("../task0", ["good"])
