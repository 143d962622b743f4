"""What `record` hands back: statistics by name, stacked over attention sites, call by call."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.core.errors import AttnlensError, EmptyTape, UnknownName
from attnlens.core.pairs import Logits


class Site(NamedTuple):
    """One attention of the model. stack: "encoder" or "decoder"; kind: "self" or "cross"; number: order within both."""

    name: str
    stack: str
    kind: str
    number: int


@dataclass
class Call:
    """One forward pass: its sites in order, and for each statistic one tensor a site, without the layer axis.

    logits: queries and keys of each site, where `record` was asked to keep them. reasons: why a statistic is NaN
    in some sites, where the model is why.
    """

    sites: list[Site] = field(default_factory=list)
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    counts: dict[str, list[Tensor]] = field(default_factory=dict)
    logits: list[Logits] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    seen: int = 0

    def __getitem__(self, name: str) -> Tensor:
        """The statistic, (B, L, H, …)."""
        return self._stacked(self.values, name)

    def count(self, name: str) -> Tensor:
        """How many rows each mean stands on, (B, L, H[, G]); only where `rows` were given."""
        return self._stacked(self.counts, name)

    def _stacked(self, table: dict[str, list[Tensor]], name: str) -> Tensor:
        """Sites along axis 1; a site with fewer heads is NaN (0 for counts) up to the most heads."""
        if name not in table:
            raise UnknownName.among("recorded statistic", name, table)
        kinds = {(site.stack, site.kind) for site in self.sites}
        if len(kinds) > 1:
            raise AttnlensError(
                f"this model has several kinds of attention, {sorted(kinds)}: "
                'choose one with tape.select(stack="decoder", kind="cross")'
            )
        most = max(tensor.shape[1] for tensor in table[name])
        fill = torch.nan if table[name][0].is_floating_point() else 0
        padded = []
        for tensor in table[name]:
            missing = tensor.new_full((tensor.shape[0], most - tensor.shape[1], *tensor.shape[2:]), fill)
            padded.append(torch.cat([tensor, missing], 1) if missing.shape[1] else tensor)
        return torch.stack(padded, 1)


class Tape:
    """Statistics of the forward passes made under `record`.

    tape["entropy"] is (B, L, H, Q), tape["mass"] (B, L, H, Q, G), tape["received"] (B, L, H, K); with `rows` the row
    axis is averaged away. Rows without data are NaN. After several forwards use tape.calls[i][name].
    """

    def __init__(self, calls: list[Call] | None = None):
        self.calls = [] if calls is None else calls

    def __getitem__(self, name: str) -> Tensor:
        """The statistic of the only call."""
        return self.only()[name]

    def only(self) -> Call:
        """The one recorded call, or an error that says how many there were."""
        if not self.calls:
            raise EmptyTape("nothing was recorded: run the model inside `with record(model) as tape:`")
        if len(self.calls) > 1:
            raise AttnlensError(f"{len(self.calls)} forward passes were recorded: read tape.calls[i][name]")
        return self.calls[0]

    def count(self, name: str) -> Tensor:
        """How many rows each mean of the only call stands on."""
        return self.only().count(name)

    @property
    def sites(self) -> list[Site]:
        """The attention sites along axis L."""
        return self.only().sites

    def select(self, *, stack: str | None = None, kind: str | None = None) -> "Tape":
        """The same tape with the sites of one stack and one kind of attention only."""
        calls = []
        for call in self.calls:
            keep = [i for i, site in enumerate(call.sites) if stack in (None, site.stack) and kind in (None, site.kind)]
            if not keep:
                raise AttnlensError(f"no attention with stack={stack!r} and kind={kind!r}; there are {set(call.sites)}")
            values, counts = (
                {name: [parts[i] for i in keep] for name, parts in table.items()}
                for table in (call.values, call.counts)
            )
            logits = [call.logits[i] for i in keep] if call.logits else []
            calls.append(Call([call.sites[i] for i in keep], values, counts, logits, call.reasons, call.seen))
        return Tape(calls)
