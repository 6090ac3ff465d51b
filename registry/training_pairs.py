"""Two methods training by training: who is right on how many rows, and which rows they answer differently.

Trainings with the same seed are a pair, or all in their order where no seed is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registry.answers import Answers
from registry.metrics import answers as answers_in
from registry.statistics import mcnemar_exact


@dataclass(frozen=True)
class TrainingPair:
    """One training of the first and one of the second, row by row.

    Attributes:
        seeds: of the two.
        both, only_first, only_second, neither: rows by who is right; multi-label answers are right as a whole.
        p: exact McNemar, two-sided.
    """

    seeds: tuple[int, int]
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float

    @property
    def discordance(self) -> float:
        """Share of rows that exactly one of the two has right."""
        discordant = self.only_first + self.only_second
        return discordant / (discordant + self.both + self.neither)


def training_pairs(first: Answers, second: Answers) -> tuple[TrainingPair, ...]:
    """Return who is right on how many rows, for every pair of trainings; none for regression, where nothing is."""
    if first.problem_type == "regression":
        return ()
    ours, theirs = first.correct(), second.correct()
    pairs = []
    for one, other in _paired_places(first, second):
        mine, yours = ours[one], theirs[other]
        pair = TrainingPair(
            seeds=(first.seeds[one], second.seeds[other]),
            both=int((mine & yours).sum()),
            only_first=int((mine & ~yours).sum()),
            only_second=int((~mine & yours).sum()),
            neither=int((~mine & ~yours).sum()),
            p=mcnemar_exact(mine, yours),
        )
        pairs.append(pair)
    return tuple(pairs)


def changed_rows(first: Answers, second: Answers) -> NDArray[np.bool_]:
    """Return (R,) whether the two trainings of any pair, by ``training_pairs``, answered a row differently."""
    differ = np.zeros(len(first.row_numbers), dtype=bool)
    for one, other in _paired_places(first, second):
        ours, theirs = first.probabilities[one], second.probabilities[other]
        unlike = answers_in(first.problem_type, ours) != answers_in(first.problem_type, theirs)
        differ |= unlike.reshape(len(differ), -1).any(axis=1)
    return differ


def _paired_places(first: Answers, second: Answers) -> list[tuple[int, int]]:
    """Return the places of trainings with the same seed, or of all in their order where no seed is shared."""
    shared = [(first.seeds.index(seed), second.seeds.index(seed)) for seed in first.seeds if seed in second.seeds]
    return shared or [(place, place) for place in range(min(len(first.seeds), len(second.seeds)))]
