"""AdapterFusion: at each seam of its members, attention over what their frozen bottlenecks would add.

Of AdapterHub's choices for it these are taken: query, key and value, the query being the states that the members see
(there ``query_before_ln`` False), members' outputs without their residual (``residual_before`` False), no temperature,
and V started at the identity and pulled back to it, here exactly and by AdamW's decay of ``V - I``. Not taken are the
key's bias, which a softmax does not see, and dropout of scores. V is applied to the sum, which is the same as to each
part of it. With ``parallel`` members the residual is added once, where AdapterHub adds it twice.

Source: Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from registry.adapters.bottleneck import BottleneckAdapter
from registry.adapters.interface import PLAIN, Fusion, Kind, Place, Seam
from registry.adapters.method import MethodAdapter, Sizes
from registry.config import FusionConfig
from registry.errors import ConfigError
from registry.validation import require

_DEVIATION = 0.02  # of fresh queries and keys, as BERT's own weights have


class FusionWeights(nn.Module):
    """Query, key and value of one seam, in float32; the value is kept as what it has beyond the identity."""

    def __init__(self, hidden_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.query_bias = nn.Parameter(torch.zeros(hidden_size))
        self.key = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.value = nn.Parameter(torch.zeros(hidden_size, hidden_size))
        if not self.query.is_meta:
            for each in (self.query, self.key):
                nn.init.normal_(each, std=_DEVIATION, generator=generator)


class FusionAdapter(MethodAdapter):
    """The fusion weights of one set, which train and are saved, and its members, which do not and are not.

    A fresh one has fresh members; ``take_members`` gives it those that its configuration names.
    """

    config: FusionConfig

    def __init__(self, sizes: Sizes, layers: int, config: FusionConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        made = [BottleneckAdapter(sizes, layers, member.adapter, generator) for member in config.members]
        self.members = nn.ModuleList(map(_frozen, made))
        self.fusions = nn.ModuleDict({key: FusionWeights(sizes.hidden, generator) for key in made[0].bottlenecks})

    def take_members(self, adapters: Sequence[MethodAdapter]) -> None:
        """Copy the adapters of the sets that the configuration names, in its order.

        Raises:
            ConfigError: not as many, or one of another configuration.
        """
        wanted = self.config.members
        require(len(adapters) == len(wanted), "members", f"the {len(wanted)} of the fused set", len(adapters))
        for member, given in zip(wanted, adapters, strict=True):
            if given.config != member.adapter:
                raise ConfigError(f"member '{member.reference}'", str(member.adapter), str(given.config))
        self.members = nn.ModuleList(_frozen(copy.deepcopy(given)) for given in adapters)

    def has_members(self, adapters: Sequence[MethodAdapter]) -> bool:
        """Return whether its members have the numbers of these adapters, to its own precision."""
        for own, given in zip(self.members, adapters, strict=True):
            numbers = dict(given.named_parameters())
            if not all(torch.equal(one.cpu(), numbers[name].cpu().to(one.dtype)) for name, one in own.named_buffers()):
                return False
        return True

    def seam(self, layer: int, place: Place) -> Seam:
        """Return the fusion in the place of a bottleneck, with each member's own scale inside it."""
        key = f"{layer}_{place}"
        if key not in self.fusions:
            return PLAIN
        own = cast(FusionWeights, self.fusions[key])
        seams = [cast(BottleneckAdapter, member).seam(layer, place) for member in self.members]
        squeezes = [seam.squeeze._replace(dropout=None) for seam in seams if seam.squeeze is not None]
        scales = [seam.kind.scale for seam in seams]
        fusion = Fusion(own.query, own.query_bias, own.key, own.value, tuple(squeezes), tuple(scales))
        return Seam(Kind(seams[0].kind.placement, "identity", 1.0, False, is_fused=True), fusion=fusion)


def _frozen(adapter: nn.Module) -> nn.Module:
    """Return the adapter with its tensors neither trained nor saved, but moved with what holds it."""
    for module in adapter.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return adapter
