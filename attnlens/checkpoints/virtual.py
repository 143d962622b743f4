"""Prompt and prefix tuning put virtual tokens before a text: as keys, and with a prompt as queries too."""

from typing import Any

import torch
from torch import Tensor, nn

from attnlens.core.errors import UnsupportedModel

GROUP = 3


def prepended(model: nn.Module, groups: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Groups and rows of the text with those of the model's virtual tokens in front; as they came where it has none.

    As integers virtual tokens are group 3, of float groups they are in none; as rows they have no weight.
    """
    settings: Any = getattr(model, "active_peft_config", None)
    if settings is None or not settings.is_prompt_learning or model._adapters_disabled:
        return groups, rows
    if (groups is not None or rows is not None) and model.get_base_model().config.is_encoder_decoder:  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        raise UnsupportedModel("groups and rows cannot be given for the virtual tokens of an encoder–decoder yet")
    count = settings.num_virtual_tokens
    if groups is not None:
        groups = _grown(groups, count, 0 if groups.is_floating_point() else GROUP)
    if rows is not None and settings.peft_type != "PREFIX_TUNING":  # a prefix is read and reads nothing
        rows = _grown(rows, count, 0)
    return groups, rows


def _grown(tensor: Tensor, count: int, value: int) -> Tensor:
    """(B, T, …) with `count` more entries before the first."""
    return torch.cat([tensor.new_full((tensor.shape[0], count, *tensor.shape[2:]), value), tensor], 1)
