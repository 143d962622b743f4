"""Prompt and prefix tuning put virtual tokens before a text: as keys, and with a prompt as queries too."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnlens.core.errors import UnsupportedModel
from attnlens.core.scores import Scores

GROUP = 3
SLOT = "prompts"  # the name of the prompts inside the backbone


class Prompts(nn.ParameterDict):
    """Prompts (V, D) of several checkpoints on one backbone; `chosen` names the one that is on, None: none."""

    chosen: str | None = None


def prepend(model: PreTrainedModel, name: str, prompt: Tensor) -> None:
    """Put the embeddings of virtual tokens (V, D) before every text that model or backbone reads, as PEFT does.

    Whichever of the two is called with token ids is given embeddings instead, with longer masks.
    """
    backbone: Any = model.base_model
    if SLOT not in backbone._modules:
        backbone.add_module(SLOT, Prompts())
        for module in dict.fromkeys((model, backbone)):
            module.register_forward_pre_hook(_with_prompt, with_kwargs=True)
    prompts = backbone._modules[SLOT]
    prompts[name] = nn.Parameter(prompt.detach().clone(), requires_grad=False)
    prompts.chosen = name


def _with_prompt(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook; a function of the module, so that a copied model uses the copied prompts."""
    prompts = _prompts(module)
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    if prompts is None or prompts.chosen is None or given.get("input_ids") is None:
        return args, kwargs
    table = module.get_input_embeddings()
    text = table(given.pop("input_ids"))
    prompt = prompts[prompts.chosen]
    given["inputs_embeds"] = torch.cat([prompt.to(text).expand(len(text), -1, -1), text], 1)
    for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
        if given.get(name) is not None:
            given[name] = grown(given[name], len(prompt), value)
    given.pop("position_ids", None)  # those of the text alone
    return (), given


def _prompts(model: Any) -> Prompts | None:
    backbone = getattr(model, "base_model", model)
    found = getattr(backbone, "_modules", {}).get(SLOT)
    return found if isinstance(found, Prompts) else None


@contextmanager
def prompted(model: nn.Module, name: str | None) -> Iterator[None]:
    """The model reads with this checkpoint's virtual tokens, or none; afterwards as before."""
    prompts = _prompts(model)
    if prompts is None:
        yield
        return
    before = prompts.chosen
    try:
        prompts.chosen = name if name is not None and name in prompts else None
        yield
    finally:
        prompts.chosen = before


def prompt_count(model: nn.Module) -> int:
    """How many prompts the model holds, on or off."""
    return len(_prompts(model) or ())


def virtual_tokens(model: nn.Module) -> int:
    """How many virtual tokens stand before every text, as the model computes now."""
    settings: Any = getattr(model, "active_peft_config", None)
    if settings is not None and settings.is_prompt_learning and not model._adapters_disabled:
        return int(settings.num_virtual_tokens)
    prompts = _prompts(model)
    return 0 if prompts is None or prompts.chosen is None else len(prompts[prompts.chosen])


def prepended(model: nn.Module, groups: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Groups and rows of the text with those of the model's virtual tokens in front; as they came where it has none.

    As integers virtual tokens are group 3, of float groups they are in none; as rows they have no weight.
    """
    count = virtual_tokens(model)
    if not count:
        return groups, rows
    settings: Any = getattr(model, "active_peft_config", None)
    if (
        settings is not None
        and (groups is not None or rows is not None)
        and model.get_base_model().config.is_encoder_decoder  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    ):
        raise UnsupportedModel("groups and rows cannot be given for the virtual tokens of an encoder–decoder yet")
    if groups is not None:
        groups = grown(groups, count, 0 if groups.is_floating_point() else GROUP)
    if rows is not None and getattr(settings, "peft_type", None) != "PREFIX_TUNING":  # it is read and reads nothing
        rows = grown(rows, count, 0)
    return groups, rows


def of_text(query: Tensor, key: Tensor, scores: Scores, count: int) -> tuple[Tensor, Tensor, Scores]:
    """q, k and scores of the text's own tokens behind `count` virtual ones: what attention is left among them.

    A softmax over some of the logits is the softmax over all, without the others and scaled to 1.
    """
    text = key.shape[2] - count

    def cut(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor[..., -text if tensor.shape[-2] > 1 else 0 :, -text if tensor.shape[-1] > 1 else 0 :]

    left = replace(scores, mask=cut(scores.mask), bias=cut(scores.bias))
    return query[:, :, -text:], key[:, :, count:], left


def grown(tensor: Tensor, count: int, value: int) -> Tensor:
    """(B, T, …) with `count` more entries before the first."""
    return torch.cat([tensor.new_full((tensor.shape[0], count, *tensor.shape[2:]), value), tensor], 1)
