"""Adapter set <-> version of a store: exact tensors or none.

Bytes that were hashed are the bytes that are parsed, and every name, shape, dtype and value is checked before a
module sees them. Knows the tensor files; folders, names and commits are the store's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor, nn

from registry.adapters.adapter_set import AdapterSet
from registry.adapters.fusion import FusionAdapter
from registry.config import FusionConfig, MethodConfig
from registry.errors import ConfigError, shorten
from registry.provenance import library_versions
from registry.schema import BackboneInfo, Manifest, Reference, SetInfo
from registry.store.archive import archive_errors, read_archive
from registry.store.errors import IntegrityError, ManifestError
from registry.store.manifest import ADAPTER_FILE, HEAD_FILE, check_backbone
from registry.store.members import check_member, find_member, relocate_members
from registry.store.store import Store
from registry.validation import NOT_JSON, check_name, require

if TYPE_CHECKING:
    from registry.model.backbone import Backbone

HEADER_LIMIT = 2**20  # bytes of a safetensors header
TENSOR_LIMIT = 4096  # tensors of one file

_LENGTH_BYTES = 8
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """What a safetensors header says of one tensor; metadata is not part of our format."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def make_manifest(name: str, adapter_set: AdapterSet, backbone: Backbone, info: SetInfo | None = None) -> Manifest:
    """Return what is known of a set, as it is stored; ``info`` is what its training knows when None.

    Raises:
        InvalidNameError: no set may have this name.
        ConfigError: nothing is known of it.
    """
    info = info or adapter_set.info
    if info is None:
        expected = "SetInfo(max_length=…, pair=…), as this set was not trained here"
        raise ConfigError(f"info of the set to be saved as '{name}'", expected, None)
    return Manifest(
        name=name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        adapter=adapter_set.adapter_config,
        head=adapter_set.head_config,
        parameters=adapter_set.stored_count,
        dtype=str(backbone.dtype).removeprefix("torch."),
        backbone=backbone.info,
        library_versions=library_versions(),
        **msgspec.structs.asdict(info),
    )


def save_set(store: Store, adapter_set: AdapterSet, manifest: Manifest) -> int:
    """Store an adapter set as the next version of ``manifest.name`` and return its number.

    Equal tensors give equal bytes, so a set that is saved twice has the same digests.

    Raises:
        ConfigError: the manifest tells of another set, or a tensor is no float of 16 or 32 bits, or not finite.
        BackboneMismatchError: the store belongs to another backbone.
        ShapeMismatchError: the set is not of that backbone's H and L.
        MemberError: a set that this one needs is not in the store.
        StoreWriteError, CommitUncertainError: as for ``Store.commit``.
    """
    check_backbone(f"store {store.root}", store.info.backbone, manifest.backbone)
    adapter_set.check_fits(manifest.backbone.hidden_size, manifest.backbone.layers)
    described = (manifest.adapter, manifest.head, manifest.parameters)
    found = (adapter_set.adapter_config, adapter_set.head_config, adapter_set.stored_count)
    require(described == found, "manifest", f"the configuration of the set it is for, {found}", described)
    members = load_members(store, f"what is to be saved as '{manifest.name}'", manifest.adapter, manifest.backbone)
    if isinstance(adapter_set.adapter, FusionAdapter):
        same = adapter_set.adapter.has_members([member.adapter for member in members])
        require(same, f"what is to be saved as '{manifest.name}'", "the tensors of its members in the store", "others")
    return store.commit(manifest, tensor_files(adapter_set))


def tensor_files(adapter_set: AdapterSet) -> dict[str, bytes]:
    """Return the two tensor files of a set, by name.

    Raises:
        ConfigError: a tensor is no float of 16 or 32 bits, or not finite.
    """
    return {ADAPTER_FILE: _to_bytes(adapter_set.adapter), HEAD_FILE: _to_bytes(adapter_set.head)}


def load_set(
    store: Store, name: str, version: int, backbone: BackboneInfo, device: str | torch.device = "cpu"
) -> tuple[Manifest, AdapterSet]:
    """Return one stored version, checked to the last bit, in evaluation mode and float32 on ``device``.

    Raises:
        AdapterNotFoundError: no such version.
        ManifestError: the manifest is damaged.
        BackboneMismatchError: made for another backbone or tokenizer, whatever the shapes.
        IntegrityError: a file's size, digest, tensor names, shapes, dtypes or values are wrong.
        MemberError: a set that a fused one needs is not there, or is another one.
    """
    manifest, contents = store.read_version(name, version)
    what = f"'{name}:{version}' of {store.root}"
    adapter_set = _build_set(what, store.folder(name, version), manifest, contents, backbone)
    members = load_members(store, what, manifest.adapter, backbone)
    adapter_set.adapter.take_members([member.adapter for member in members])
    return manifest, adapter_set.to(device).eval()


def load_members(
    store: Store,
    what: str,
    adapter: MethodConfig | None,
    backbone: BackboneInfo,
    device: str | torch.device = "cpu",
) -> list[AdapterSet]:
    """Return the sets that a fused one needs, in its order; none for other methods.

    Args:
        store: where they are.
        what: is to have them, for errors.
        adapter: its configuration.
        backbone: which they have to fit.
        device: where they go.

    Raises:
        MemberError: one is not there, or is another set.
        ManifestError, IntegrityError: one is damaged.
    """
    members = []
    for member in adapter.members if isinstance(adapter, FusionConfig) else ():
        name, version = find_member(store, what, member)
        manifest, found = load_set(store, name, version, backbone, device)
        check_member(what, member, manifest)  # it may have been made anew between the two looks
        members.append(found)
    return members


def import_set(store: Store, path: Path, name: str | None = None) -> Reference:
    """Store the set in an exported file, or a folder of its three files, as the next version of its name or ``name``.

    Raises:
        ArchiveNotFoundError: no such file.
        ArchiveError: the file is damaged, too large, or its tensors are not those of its configuration.
        BackboneMismatchError: made for another backbone or tokenizer than the store.
        InvalidNameError: no set may have this name.
        MemberError: a fused set whose members the store does not have.
        StoreWriteError, CommitUncertainError: as for ``Store.commit``.
    """
    if name is not None:
        check_name(name)
    manifest, contents = read_archive(path)
    backbone = store.info.backbone
    if backbone.inner_sizes is None:  # a store from before they were kept; they follow from the fingerprint
        backbone = msgspec.structs.replace(backbone, inner_sizes=manifest.backbone.inner_sizes)
    with archive_errors():
        _build_set(str(path), path, manifest, contents, backbone)
    manifest = relocate_members(store, str(path), manifest)
    load_members(store, str(path), manifest.adapter, backbone)
    renamed = msgspec.structs.replace(manifest, name=name or manifest.name)
    return Reference(name=renamed.name, version=store.commit(renamed, contents))


def stored_bytes(adapter_set: AdapterSet) -> int:
    """Return the bytes of the two tensor files that a set would be stored in."""
    return len(_to_bytes(adapter_set.adapter)) + len(_to_bytes(adapter_set.head))


def _build_set(
    what: str, folder: Path, manifest: Manifest, contents: Mapping[str, bytes], backbone: BackboneInfo
) -> AdapterSet:
    """Return the set that a manifest and its files describe, after every check there is."""
    check_backbone(what, manifest.backbone, backbone)
    adapter_set = _empty_set(manifest, backbone, folder)
    for file, part in ((ADAPTER_FILE, adapter_set.adapter), (HEAD_FILE, adapter_set.head)):
        path = folder / file
        tensors = read_tensors(path, contents[file])
        check_tensors(path, part.state_dict(), tensors)
        part.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
    adapter_set.info = SetInfo(**{field: getattr(manifest, field) for field in SetInfo.__struct_fields__})
    return adapter_set


def _empty_set(manifest: Manifest, backbone: BackboneInfo, folder: Path) -> AdapterSet:
    """Return the set that the manifest describes, as shapes without memory."""
    try:
        with torch.device("meta"):
            adapter_set = AdapterSet(
                backbone.hidden_size,
                backbone.layers,
                manifest.adapter,
                manifest.head,
                inner_sizes=backbone.inner_sizes,
            )
    except ConfigError as err:
        raise ManifestError(folder, err.field, err.expected, err.found) from err
    if adapter_set.stored_count != manifest.parameters:
        raise ManifestError(folder, "parameters", str(adapter_set.stored_count), manifest.parameters)
    return adapter_set


def _to_bytes(module: nn.Module) -> bytes:
    tensors: dict[str, Tensor] = {}
    for key, tensor in sorted(module.state_dict().items()):
        require(tensor.dtype in _DTYPES, f"tensor '{key}'", "float32, float16 or bfloat16 values", tensor.dtype)
        require(bool(torch.isfinite(tensor).all()), f"tensor '{key}'", "finite values", "NaN or infinity")
        tensors[key] = tensor.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
    require(len(tensors) <= TENSOR_LIMIT, "adapter set", f"at most {TENSOR_LIMIT} tensors", len(tensors))
    return format_tensors(tensors)


def read_tensors(path: Path, data: bytes, *, with_metadata: bool = False) -> dict[str, Tensor]:
    """Return the tensors that ``data`` spells, after a look at how much the header asks for.

    Args:
        path: what is told of where it fails.
        data: the bytes of a safetensors file.
        with_metadata: whether its header may have a note, as other libraries' files do; it is passed over.

    Raises:
        IntegrityError: too large a header, too many tensors, other types than floats of 16 and 32 bits, or damage.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > HEADER_LIMIT:
        raise IntegrityError(path, "header", f"at most {HEADER_LIMIT} bytes", f"{length} bytes")
    try:
        told = msgspec.json.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + length], type=dict[str, msgspec.Raw])
        if with_metadata and "__metadata__" in told:
            msgspec.json.decode(told.pop("__metadata__"), type=dict[str, str])
        header = {key: msgspec.json.decode(each, type=_Stored) for key, each in told.items()}
    except NOT_JSON as err:
        raise IntegrityError(path, "header", "a safetensors header", err) from err
    if len(header) > TENSOR_LIMIT:
        raise IntegrityError(path, "header", f"at most {TENSOR_LIMIT} tensors", f"{len(header)} tensors")
    dtypes = {stored.dtype for stored in header.values()}
    if not dtypes <= set(_DTYPES.values()):
        raise IntegrityError(path, "dtypes", "F32, F16 or BF16", shorten(ascii(dtype)[:80] for dtype in dtypes))
    try:
        return parse_tensors(data)
    except SafetensorError as err:
        raise IntegrityError(path, "content", "a safetensors file", err) from err


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise IntegrityError unless tensors have exactly the names and shapes of a set, and finite values."""
    if expected.keys() != found.keys():
        missing = shorten(expected.keys() - found.keys())
        unexpected = shorten(ascii(key)[:80] for key in found.keys() - expected.keys())
        told = f"missing {missing}; unexpected {unexpected}"
        raise IntegrityError(path, "tensor names", f"the {len(expected)} of its configuration", told)
    for key, tensor in found.items():
        shape = tuple(expected[key].shape)
        if tuple(tensor.shape) != shape:
            raise IntegrityError(path, f"shape of '{key}'", shape, tuple(tensor.shape))
        if not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(path, f"values of '{key}'", "finite numbers", "NaN or infinity")
