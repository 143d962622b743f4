"""What each key would write into the residual stream: values behind the output projection of the running model.

The projection is the module that heads.py would call by that role. Names prove nothing, so the pass itself does: what
enters the module must be what the attention gave. Where a gate, a norm or a dropout stands between, or the projection
is not found, the lengths are not known, and statistics of them are NaN with the reason.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attnlens.checkpoints.heads import is_output, site_of
from attnlens.checkpoints.tape import Call
from attnlens.core.flow import value_norms

NAME = "share_value"


class Values:
    """The output projections of one model under one session, which closes it.

    statistic: the one that reads them, NaN where one is not known.
    """

    def __init__(self, modules: Mapping[str, nn.Module], statistic: str):
        self.statistic = statistic
        self.projections: dict[str, list[nn.Module]] = {}
        for name, module in modules.items():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and is_output(f"{name}.weight"):
                self.projections.setdefault(site_of(f"{name}.weight"), []).append(module)
        self._site: tuple[int, list[nn.Module]] | None = None
        # What attention gave last and which site of the call that was, by the projection that is to take it.
        self._given: dict[int, tuple[int, Tensor]] = {}
        self._unproven: dict[int, str] = {}
        unique = {id(module): module for found in self.projections.values() for module in found}
        self._hooks = [module.register_forward_pre_hook(self._enter) for module in unique.values()]

    def output(self, attention: str, number: int, value: Tensor, heads: int) -> Tensor | None:
        """What site `number` of the call, so named, makes of its values (B, H_kv, K, D_v): a slice a head, (H, D_v, M).

        None where the projection is not known.
        """
        found = self.projections.get(site_of(f"{attention}.value.weight"), [])
        output, reason = None, f"the output projection of {attention} is not known"
        if len(found) == 1:
            output, reason = _slices(found[0], heads, value.detach())
        self._unproven[number], self._site = reason, (number, found)
        return output

    def gave(self, output: Tensor) -> None:
        """Note what the attention that was measured last gave back, (B, Q, H, D_v)."""
        if self._site is not None:
            number, found = self._site
            self._given |= {id(module): (number, output) for module in found}
            self._site = None

    def settle(self, call: Call) -> None:
        """At the end of a call: statistics of sites whose projection did not prove itself become NaN."""
        for number, reason in self._unproven.items():
            if number < len(call.values.get(self.statistic, [])):
                call.values[self.statistic][number].fill_(torch.nan)
                for count in call.counts.get(self.statistic, [])[number : number + 1]:
                    count.zero_()
                call.reasons.setdefault(self.statistic, reason)
        self._given, self._unproven = {}, {}

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of a projection: proven where its input is what the attention gave."""
        number, output = self._given.pop(id(module), (-1, None))
        if output is None or not args or not isinstance(args[0], Tensor):
            return
        entered = args[0]
        same = entered.numel() == output.numel() and (
            entered.data_ptr() == output.data_ptr() or torch.equal(entered.reshape(-1), output.reshape(-1))
        )
        if same and self._unproven.get(number, "").startswith(PROVABLE):
            del self._unproven[number]


def lengths(value: Tensor, output: Tensor | None, heads: int) -> Tensor:
    """‖f(x_j)‖ (B, H, K) of values (B, H_kv, K, D_v) under `Values.output`; NaN where that is not known."""
    if output is None:
        return value.new_full((value.shape[0], heads, value.shape[2]), torch.nan)
    return value_norms(value, output)


PROVABLE = "what enters the output projection"


def _slices(module: nn.Module, heads: int, value: Tensor) -> tuple[Tensor | None, str]:
    """Each head's slice (H, D_v, M) of a projection, and what is wrong with it, if it is.

    A plain weight is read; any other module that holds one (an adapter's, a quantised one) is asked what it makes of
    unit vectors, past its hooks.
    """
    width = heads * value.shape[-1]
    weight: Any = module.weight
    with torch.no_grad(), torch.autocast(value.device.type, enabled=False):
        if type(module) is nn.Linear and weight.device == value.device:
            rows = weight.T
        elif type(module) is Conv1D and weight.device == value.device:
            rows = weight
        elif module.training:
            return None, f"an output projection of type {type(module).__name__} cannot be read in training mode"
        else:
            units = torch.eye(width, dtype=value.dtype, device=value.device)
            rows = module.forward(units) - module.forward(torch.zeros_like(units[:1]))
    if rows.shape[0] != width:
        return None, f"an output projection of {rows.shape[0]} inputs does not fit {heads} heads of {value.shape[-1]}"
    return rows.detach().unflatten(0, (heads, -1)), f"{PROVABLE} is not what the attention gave"
