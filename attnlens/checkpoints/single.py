"""A single file of weights, under the names its model calls them: what wrappers put in front comes off."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.source import Source
from attnlens.core.errors import CheckpointError

# torch.compile, FSDP and activation checkpointing put these anywhere in a name.
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def read_single(source: Source, architecture: Any, config: Any) -> dict[str, Tensor]:
    """The tensors of a file that belong to a model of `architecture`; optimizer states, metrics and the like do not.

    One prefix (`model.`, `module.`, `base_model.model.`, whatever a Lightning module calls its model) comes off; a
    file with two models of this kind is an error, and so is one without any.
    """
    with Shelf(source.files) as shelf:
        names = wanted_names(shelf.names, *_expected(architecture, config), home_free(source.files[0]))
        return {wanted: shelf.read(name) for name, wanted in names.items()}


def stored_dtype(state: dict[str, Tensor]) -> torch.dtype:
    """The dtype that most of the numbers have."""
    sizes = Counter[torch.dtype]()
    for tensor in state.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.get_default_dtype())


def wanted_names(names: tuple[str, ...], expected: frozenset[str], prefix: str, where: str) -> dict[str, str]:
    """What the model calls each of the stored `names` that it knows.

    expected: the model's own names; a backbone may be stored without the model's `prefix` and the reverse.
    """
    known = expected | {name.removeprefix(prefix) for name in expected} | {prefix + name for name in expected}
    bare = {name: _unwrapped(name) for name in names}
    wrappers = Counter(wrapper for name in bare.values() if (wrapper := _wrapper(name, known)) is not None)
    if not wrappers:
        raise CheckpointError(
            f"{where} holds no weight that its config describes, the first is {names[0]}: needed the config.json of "
            "this very model (--config ID|DIR)"
        )
    (chosen, most), *others = wrappers.most_common()
    rivals = [wrapper for wrapper, count in others if 2 * count > most]
    if rivals:
        raise CheckpointError(
            f"{where} holds several models, under {chosen or 'no name'} and {rivals[0] or 'no name'}: save the one you "
            "mean in a file of its own"
        )
    return {
        name: wanted
        for name, whole in bare.items()
        if whole.startswith(chosen) and (wanted := whole.removeprefix(chosen)) in known
    }


def _expected(architecture: Any, config: Any) -> tuple[frozenset[str], str]:
    """Names of the weights of a model that is never filled, and the prefix of its backbone, with the dot."""
    with torch.device("meta"):
        model = architecture._from_config(config)
    return frozenset(model.state_dict()), f"{model.base_model_prefix}."


def _unwrapped(name: str) -> str:
    for part in INSIDE:
        name = name.replace(part, "")
    return name


def _wrapper(name: str, known: frozenset[str] | set[str]) -> str | None:
    """What stands before the part of a name that the model knows; None where it knows no part."""
    parts = name.split(".")
    for start in range(len(parts) - 1):
        if ".".join(parts[start:]) in known:
            return "".join(f"{part}." for part in parts[:start])
    return None
