"""The nouns: small frozen records, validated when they are made; the page to read first.

Everything here is plain data; this file knows nothing of torch, files or the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from registry.config import HeadConfig, MethodConfig, TrainingConfig
from registry.validation import Record, check_name, is_encoding, require

ExportFormat = Literal["archive", "adapterhub", "peft", "transformers"]
ImportFormat = Literal["auto", "archive", "adapterhub", "peft"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
IMPORT_FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)
REPORT_FORMATS = ("csv", "json", "parquet", "markdown", "latex", "html")


class Reference(Record, frozen=True, kw_only=True):
    """A name with at most one of a version and an alias: ``mrpc``, ``mrpc:3``, ``mrpc@best``."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that ``text`` spells.

        Raises:
            InvalidNameError: the name or alias breaks the name rule.
            ConfigError: the version is not a whole number from 1.
        """
        if "@" in text:
            name, alias = text.split("@", 1)
            return cls(name=check_name(name), alias=check_name(alias, "alias"))
        name, colon, version = text.partition(":")
        if not colon:
            return cls(name=check_name(name))
        good = version.isascii() and version.isdigit() and len(version) <= 6 and int(version) >= 1
        require(good, f"reference '{text[:80]}'", "a version from 1 to 999999 after the colon", version[:80])
        return cls(name=check_name(name), version=int(version))

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        return self.name if self.version is None else f"{self.name}:{self.version}"


def members_of(reference: str) -> tuple[str, ...]:
    """Return the references that ``a+b`` joins, of sets that answer as one; a reference alone is its own."""
    return tuple(reference.split("+"))


def join_members(references: Iterable[str]) -> str:
    """Return the reference that joins several."""
    return "+".join(references)


class Reading(Record, frozen=True, kw_only=True):
    """How a file becomes rows; what is None is found by looking at the file.

    Attributes:
        sep, label_sep: what stands between the cells of a line, and between the labels of a cell.
        quoting: ``minimal`` takes quotation marks around a cell as no part of it, ``none`` as letters.
        encoding: of a text file; None is UTF-8, or what a byte order mark says.
        header: whether the first line names the columns; they are called 0, 1, 2 and so on where not.
        ignore_labels: rows with one of these are left out and counted.
        skip_bad_rows: leave out and count rows without a text or label, which are refused else.
    """

    sep: str | None = None
    quoting: Literal["minimal", "none"] | None = None
    encoding: str | None = None
    header: bool = True
    label_sep: str | None = None
    ignore_labels: tuple[str, ...] = ()
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        require(self.sep is None or len(self.sep) == 1, "sep", "one character, such as ';'", self.sep)
        require(self.label_sep != "", "label_sep", "a character, such as ';'", self.label_sep)
        require(is_encoding(self.encoding), "encoding", "one that Python knows, such as latin-1", self.encoding)


class Origin(Record, frozen=True, kw_only=True):
    """Where the rows of a training stand, and what it ran on.

    Attributes:
        text_columns to held_out_by: as in ``TaskSpec``.
        hub, hub_config, hub_revision: the data set on the Hub, where the task has one.
        together: how many sets were trained in the same pass of the backbone, this one among them.
        device, processor: of the training.
        threads: that torch computed with; another number may round differently.
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
    reported_file: str | None = None
    split_column: str | None = None
    label_columns: tuple[str, ...] = ()
    reading: Reading | None = None
    held_out: float
    held_out_by: Literal["text", "row"] = "row"
    together: int
    device: str
    threads: int
    processor: str
    code: str


STORE_FORMAT = 1
MANIFEST_FORMAT = 3


def name_method(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a record's fields with the method of its adapter named, which older ones leave out: bottlenecks."""
    adapter = plain.get("adapter")
    if plain.get("format") != 1 or not isinstance(adapter, dict):
        return plain
    return {**plain, "adapter": {"method": "bottleneck", **adapter}}


class BackboneInfo(Record, frozen=True, kw_only=True):
    """What identifies a backbone.

    Attributes:
        source, revision: ``embedded``, a Hub id or a folder, as given; the Hub revision asked for, or None.
        family: the transformers model type.
        hidden_size, layers: H and L.
        inner_sizes: elements that leave the feed-forward part's first product and enter its second; None in stores made
            before they were kept.
        parameters: elements of the encoder, its pooler included where it has one.
        fingerprint, tokenizer_digest: SHA-256 of config and weights as stored; of what decides the token ids.
    """

    source: str
    revision: str | None = None
    family: str
    hidden_size: int
    layers: int
    inner_sizes: tuple[int, int] | None = None
    parameters: int
    fingerprint: str
    tokenizer_digest: str


class FileEntry(Record, frozen=True, kw_only=True):
    """One file: its name beside the record, its size in bytes and its SHA-256."""

    path: str
    bytes: int
    sha256: str


class Merging(Record, frozen=True, kw_only=True):
    """How several sets are made into one.

    Attributes:
        how: the weighted mean, the weighted sum (task arithmetic), TIES, or the sum after DARE has dropped elements.
        density: share of the elements that ``ties`` and ``dare`` keep.
        seed: decides what ``dare`` drops.
    """

    how: Literal["average", "sum", "ties", "dare"] = "average"
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.density <= 1, "density", "a share above 0, at most 1", self.density)


class MergedSet(Record, frozen=True, kw_only=True):
    """One of the sets that a merged one is made of: its version, the digest of its manifest, and its weight."""

    reference: str
    digest: str
    weight: float


class Imported(Record, frozen=True, kw_only=True):
    """Which folder of another library a set was, and what of it is claimed and not proved.

    Attributes:
        format: whose.
        library: version of the library that saved it, as its files say.
        backbone: name of the backbone in its files; they hold nothing that proves it.
        fit: ``named`` where that is the name of the store's backbone, ``claimed`` where whoever imported it said so.
        head: whether a trained head came along; without one the head here is at its random start.
        not_kept: settings of training alone that no set here has.
    """

    format: Literal["adapterhub", "peft"]
    library: str
    backbone: str
    fit: Literal["named", "claimed"]
    head: bool = True
    not_kept: tuple[str, ...] = ()


class SetInfo(Record, frozen=True, kw_only=True):
    """What is known of a set besides its tensors and backbone.

    Attributes:
        task, pair: its name, whether a row has two texts; None when not known.
        max_length: tokens a row is cut to.
        main_metric: of ``scores``, the one that stands for the task.
        positive_label: the class that ``f1_binary`` is of, where a task has two.
        scores: metric names and values on ``split`` of ``data``.
        recipe, training, data, split, origin: where the weights come from, None where not known.
        merged_from, merging: the sets it was made of, and how; empty and None for one that was trained.
        merging_loss: share of the changes that the rank of LoRA could not hold.
        imported: for a set that another library saved.
        started_from: the stored set from whose adapter its training went on, None for a start of its own.
    """

    task: str | None = None
    pair: bool | None = None
    max_length: int = 128
    main_metric: str | None = None
    positive_label: str | None = None
    scores: dict[str, float] = {}
    recipe: str | None = None
    training: TrainingConfig | None = None
    data: DataInfo | None = None
    split: str | None = None
    origin: Origin | None = None
    merged_from: tuple[MergedSet, ...] = ()
    merging: Merging | None = None
    merging_loss: float | None = None
    imported: Imported | None = None
    started_from: str | None = None


class Manifest(SetInfo, frozen=True, kw_only=True):
    """All there is to know of one stored version without reading its tensors.

    Attributes:
        name, created: of the set; UTC time, ISO 8601.
        format: 1 had bottlenecks alone, and no ``method`` in ``adapter``; up to 2 there were no fused sets, and only
            ``parallel`` ones had a scale.
        adapter: the method's shape; None is a head alone.
        parameters: elements in both files.
        dtype: of the backbone in training and scoring; the set itself is float32.
        library_versions: of the program that wrote it.
        files: ``adapter.safetensors`` and ``head.safetensors``.
        digest: SHA-256 of the manifest's own bytes with 64 zeros in this place; empty until stored.
    """

    format: int = MANIFEST_FORMAT
    name: str
    created: str
    adapter: MethodConfig | None
    head: HeadConfig
    parameters: int
    dtype: str | None = None
    backbone: BackboneInfo
    library_versions: dict[str, str] = {}
    files: tuple[FileEntry, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        known = f"a format from 1 to {MANIFEST_FORMAT} (a newer program?)"
        require(1 <= self.format <= MANIFEST_FORMAT, "format", known, self.format)

    @classmethod
    def upgrade(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return what a manifest of format 1 or 2 says, as this one says it."""
        named = name_method(plain)
        adapter = named.get("adapter")
        if plain.get("format") not in (1, 2) or not isinstance(adapter, dict) or "scale" not in adapter:
            return named
        scale = adapter["scale"] if adapter.get("placement") == "parallel" else 1.0
        return {**named, "adapter": {**adapter, "scale": scale}}


class DataInfo(Record, frozen=True, kw_only=True):
    """Which rows a run saw.

    Attributes:
        source: ``hub``, ``sample`` or the folder or file as given.
        sample: True for the bundled sample, which is for trying the program out.
        train_rows, reported_rows, train_available, reported_available: how many rows were used, and there were.
        truncated_train, truncated_reported: rows cut to max_length.
        overlap_train, overlap_reported: rows whose texts stand in the other split too; None where not checked.
        left_out, repeated: rows that were not usable or to be ignored; rows with the text of an earlier one.
        fingerprint: SHA-256 over the rows used, in order.
    """

    source: str
    sample: bool
    train_rows: int
    reported_rows: int
    train_available: int
    reported_available: int
    truncated_train: int = 0
    truncated_reported: int = 0
    overlap_train: int | None = None
    overlap_reported: int | None = None
    left_out: int = 0
    repeated: int = 0
    fingerprint: str
