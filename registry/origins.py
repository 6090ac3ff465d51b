"""What a training depended on that its rows, settings and weights do not show, so that it can be repeated.

Plain data in a manifest; how it is used again is repeating.py's to know.
"""

from __future__ import annotations

from registry.validation import Record


class Origin(Record, frozen=True, kw_only=True):
    """Where the rows of a training stand, and what it ran on.

    Attributes:
        text_columns, label_column, train_split, folder, file, held_out: as in ``TaskSpec``.
        hub, hub_config, hub_revision: the data set on the Hub, where the task has one.
        together: how many sets were trained in the same pass of the backbone, this one among them.
        device: of the training.
        threads: that torch computed with; another number may round differently.
        processor: its name.
        code: commit or release of this package.
    """

    text_columns: tuple[str, ...]
    label_column: str
    train_split: str
    hub: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    folder: str | None = None
    file: str | None = None
    held_out: float
    together: int
    device: str
    threads: int
    processor: str
    code: str
