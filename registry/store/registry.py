"""The names, versions and aliases of the adapter sets that fit one backbone.

Joins a store with the backbone in memory. Keeps no state of its own but the two, so threads may share one; what
is in a file is tensors.py's to know, and what is in a folder the store's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from registry.adapters.adapter_set import AdapterSet, Trained
from registry.adapters.merging import merge_sets
from registry.config import MethodConfig
from registry.errors import ConfigError, RegistryError
from registry.schema import ExportFormat, ImportFormat, Manifest, MergedSet, Merging, Reference, SetInfo
from registry.store.archive import export_version
from registry.store.audit import Problem, find_strangers
from registry.store.errors import AdapterNotFoundError
from registry.store.manifest import check_backbone
from registry.store.reader import StoredVersion
from registry.store.store import create_store, open_store
from registry.store.tensors import import_set, load_members, load_set, make_manifest, save_set
from registry.validation import require

if TYPE_CHECKING:
    from registry.model.backbone import Backbone
    from registry.tasks.task_data import TaskData
    from registry.training.recipes import Recipe
    from registry.training.train_set import StoredTraining


class Registry:
    """A store opened for the one backbone that its sets were trained on.

    Attributes:
        store: the store without its tensors.
        backbone: what ``load`` gives sets for.

    Raises:
        NotAStoreError: no store at ``root``; ``Registry.create`` makes one.
        BackboneMismatchError: the store belongs to another backbone or tokenizer.
    """

    def __init__(self, root: str | Path, backbone: Backbone) -> None:
        self.store = open_store(root)
        self.backbone = backbone
        check_backbone(f"store {root}", self.store.info.backbone, backbone.info)

    @classmethod
    def create(cls, root: str | Path, backbone: Backbone) -> Registry:
        """Open the store at ``root``, after making one where there is none.

        Raises:
            NotAStoreError, BackboneMismatchError: the path is taken by something else, or by another backbone's store.
            StoreWriteError: the folder cannot be written.
        """
        create_store(root, backbone.info)
        return cls(root, backbone)

    def save(self, name: str, trained: AdapterSet | Trained, info: SetInfo | None = None) -> Reference:
        """Store a set as the next version of ``name`` and return the reference to that version.

        Args:
            name: of the set.
            trained: a set, or what ``fit`` returned.
            info: what is known of it; what its training knows when None.

        Raises:
            InvalidNameError: no set may have this name.
            ConfigError: nothing is known of it, it is no set that can be stored, or a tensor or a score is not a
                finite number.
            ShapeMismatchError: the set is for a backbone of other H or L.
            StoreWriteError: nothing was changed.
            CommitUncertainError: the version is there, but the disk did not confirm it.
        """
        adapter_set = trained if isinstance(trained, AdapterSet) else trained.adapter_set
        if adapter_set is None or not (isinstance(trained, AdapterSet) or trained.storable):
            expected = "a trained adapter set, such as a placement leaves"
            raise ConfigError(f"what is to be saved as '{name}'", expected, "a method that leaves none")
        manifest = make_manifest(name, adapter_set, self.backbone, info)
        return Reference(name=name, version=save_set(self.store, adapter_set, manifest))

    def train(self, name: str, data: TaskData, recipe: str | Recipe = "default", **choices: Any) -> StoredTraining:
        """Train a set on a task's rows, score it, and store it as the next version of ``name``.

        Args:
            name: of the set.
            data: from ``TaskData.from_pandas``, ``from_dataset``, ``from_lists`` or ``load_task``.
            recipe: a shipped recipe, the path of a TOML file, or a ``Recipe``.
            choices: fields of ``TrainingConfig`` (epochs, learning_rate and so on); ``adapter`` and ``head`` with
                mappings of other choices than the recipe's; ``seed``, ``keep_diverged``; ``start_from``, a stored set
                whose adapter goes on; ``observe``, called with a ``StepReport`` after every step; ``loss``, one's own:
                of (B, C) logits and labels ((B,) classes, (B, C) 0 and 1, or (B, 1) standard scores) a scalar.

        Raises:
            ConfigError, UnknownRecipeError: choices that do not fit, and whatever ``save`` raises.
            NonFiniteLossError, DivergedError: nothing was stored.
        """
        trained: StoredTraining = _to_the_right("registry.training.train_set").train_set(
            self, name, data, recipe, **choices
        )
        return trained

    def merge(
        self,
        name: str,
        references: Sequence[str | Reference],
        weights: Sequence[float] | None = None,
        merging: Merging | None = None,
    ) -> Reference:
        """Store what several stored sets make together as the next version of ``name``.

        Args:
            name: of the merged set.
            references: of at least two sets of one configuration and labels.
            weights: one for each; all 1 when None.
            merging: how; the weighted mean when None.

        Raises:
            ConfigError: sets that cannot be merged; see ``merge_sets``.
            AdapterNotFoundError, IntegrityError: and whatever ``load`` and ``save`` raise.
        """
        found = [self.store.resolve(each) for each in references]
        loaded = [load_set(self.store, *each, self.backbone.info) for each in found]
        shares = list(weights) if weights is not None else [1.0] * len(loaded)
        chosen = merging or Merging()
        merged, lost = merge_sets([one for _, one in loaded], shares, chosen)
        manifests = [manifest for manifest, _ in loaded]
        first = manifests[0]
        pairs = {manifest.pair for manifest in manifests}
        require(len(pairs) == 1, "sets to merge", "all on single texts, or all on pairs", sorted(map(str, pairs)))
        members = tuple(
            MergedSet(reference=f"{own}:{version}", digest=manifest.digest, weight=share)
            for (own, version), manifest, share in zip(found, manifests, shares, strict=True)
        )
        info = SetInfo(
            task=first.task if len({manifest.task for manifest in manifests}) == 1 else None,
            pair=first.pair,
            max_length=max(manifest.max_length for manifest in manifests),
            main_metric=first.main_metric,
            positive_label=first.positive_label,
            origin=first.origin if len({manifest.task for manifest in manifests}) == 1 else None,
            split=first.split,
            merged_from=members,
            merging=chosen,
            merging_loss=lost if lost > 0 else None,
        )
        return self.save(name, merged, info)

    def load(self, reference: str | Reference) -> AdapterSet:
        """Return a stored set on the backbone's device, in evaluation mode.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            ManifestError, IntegrityError: a stored file is damaged.
            BackboneMismatchError: made for another backbone or tokenizer.
            MemberError: a set that a fused one needs is not there, or is another one.
        """
        name, version = self.store.resolve(reference)
        return load_set(self.store, name, version, self.backbone.info, self.backbone.device)[1]

    def load_members(self, adapter: MethodConfig | None) -> list[AdapterSet]:
        """Return the stored sets that a fused one needs, on the backbone's device; none for other methods.

        Raises:
            MemberError: one is not there, or is another set.
            ManifestError, IntegrityError: one is damaged.
        """
        return load_members(self.store, "what is to be fused", adapter, self.backbone.info, self.backbone.device)

    def identify(self, reference: str | Reference) -> StoredVersion:
        """Return which stored version a reference means now.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
        """
        return self.store.identify(reference)

    def manifest(self, reference: str | Reference) -> Manifest:
        """Return what is known of a stored set without reading its tensors.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            ManifestError: the manifest is damaged.
        """
        return self.store.manifest(*self.store.resolve(reference))

    def versions(self, name: str) -> list[int]:
        """Return the rising version numbers of ``name``; an unknown one raises AdapterNotFoundError."""
        return self.store.versions(name)

    def aliases(self, name: str) -> dict[str, int]:
        """Return the version that each alias of ``name`` points to."""
        return self.store.aliases(name)

    def alias(self, name: str, alias: str, version: int) -> None:
        """Point ``name@alias`` at a version, in one step, whether or not the alias is there already."""
        self.store.set_alias(name, alias, version)

    def remove(self, reference: str | Reference) -> None:
        """Remove one version, only the alias of ``name@alias``, or all of a bare name.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            VersionInUseError: an alias points to this version.
            MemberInUseError: a fused set needs it.
        """
        self.store.remove(reference)

    def export_set(self, reference: str | Reference, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a stored set into one file that another store can import, and return its path.

        The file of a fused set has its own tensors; a store takes it in once it has its members.

        Raises:
            AdapterNotFoundError: no such name, version or alias.
            ManifestError, IntegrityError: the stored version is damaged.
            StoreWriteError: the file is there already, or cannot be written; nothing was changed.
        """
        return export_version(self.store, reference, Path(path), overwrite=overwrite)

    def import_set(self, path: str | Path, name: str | None = None) -> Reference:
        """Store the set in an exported file under its own name, or ``name``, and return the reference to the version.

        Raises:
            ArchiveError, ArchiveNotFoundError, StoreWriteError and others: see ``tensors.import_set``.
        """
        return import_set(self.store, Path(path), name)

    def import_from(
        self,
        path: str | Path,
        format: ImportFormat = "auto",
        name: str | None = None,
        *,
        labels: Sequence[str] = (),
        allow_pickle: bool = False,
        backbone_unproven: bool = False,
    ) -> Reference:
        """Store the set in an archive or a folder that ``adapters`` or ``peft`` saved; return the reference.

        Args:
            path, format: the file or folder, and whose it is.
            name: of the set; its own, or the folder's, when None.
            labels: names of the classes where the files have none.
            allow_pickle: read weights from a pickle too, in a process of its own.
            backbone_unproven: take it though its files do not name this backbone.

        Raises:
            ForeignSwitchError: a setting that no set here has, or one of these choices is asked for.
            ArchiveError, ArchiveNotFoundError: damaged or missing; and whatever ``save`` raises.
        """
        choices = {"labels": labels, "allow_pickle": allow_pickle, "backbone_unproven": backbone_unproven}
        take = _to_the_right("registry.interop.formats").import_from
        return Reference.parse(str(take(self, Path(path), format, name, **choices)))

    def export_to(
        self, reference: str | Reference, path: str | Path, format: ExportFormat = "archive", *, overwrite: bool = False
    ) -> Path:
        """Write a stored set in a format that another library reads, or as ``export_set`` does; return its path.

        Raises:
            UnheldError: the format cannot hold the set; the message names those that can; else as ``export_set``.
        """
        export = _to_the_right("registry.interop.formats").export_to
        return Path(export(self, reference, Path(path), format, overwrite=overwrite))

    def collect_garbage(self, *, older_than: float = 3600.0, dry_run: bool = False) -> list[str]:
        """Remove what writers that died left in ``tmp/``; return the names of it, or of what would be removed."""
        return self.store.collect_garbage(older_than=older_than, dry_run=dry_run)

    def verify(self, references: Iterable[str | Reference] | None = None) -> list[Problem]:
        """Re-read, re-hash and load what is stored, and return everything that is wrong with it.

        Args:
            references: a bare name means all its versions and aliases; None is the whole store.
        """
        if references is not None:
            return [problem for reference in references for problem in self._problems(str(reference))]
        strangers = [Problem(where, error) for where, error in find_strangers(self.store)]
        return strangers + [problem for name in self.store.names() for problem in self._problems(name)]

    def __contains__(self, reference: object) -> bool:
        if not isinstance(reference, str | Reference):
            return False
        try:
            self.store.resolve(reference)
        except (AdapterNotFoundError, ConfigError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.names())

    def __len__(self) -> int:
        return len(self.store.names())

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the store again in another process, or for a copy."""
        return Registry, (self.store.address, self.backbone)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{self.versions(name)[-1]}</td></tr>" for name in self)
        return f"<table><caption>{self.store.root}</caption><tr><th>set</th><th>version</th></tr>{rows}</table>"

    def __repr__(self) -> str:
        return f"Registry({str(self.store.root)!r}, {self.backbone.info.source!r}: {len(self)} names)"

    def _problems(self, reference: str) -> Iterator[Problem]:
        try:
            parsed = Reference.parse(reference)
            if parsed.version is not None or parsed.alias is not None:
                targets = [parsed]
            else:
                targets = [Reference(name=parsed.name, version=each) for each in self.versions(parsed.name)]
                targets += [Reference(name=parsed.name, alias=each) for each in self.store.alias_names(parsed.name)]
        except RegistryError as err:
            yield Problem(reference, err)
            return
        for target in targets:
            try:
                name, version = self.store.resolve(target)
                if target.alias is None or target is parsed:  # the versions of a name are loaded once
                    load_set(self.store.uncached(), name, version, self.backbone.info)
            except RegistryError as err:
                yield Problem(str(target), err)


def _to_the_right(module: Literal["registry.training.train_set", "registry.interop.formats"]) -> ModuleType:
    """Return a module of a room to the right on the street, where people look for what it does on a registry."""
    return import_module(module)
