"""Two checkpoints, tensor by tensor: which weight of the tuned model is which weight of the base."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from attnlens.core.errors import IncompatibleCheckpoints

# Wrappers put these in front of a name; the weight is the same.
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")
MODULES = (
    ("head", r"^(?:pooler|lm_head|classifier|score|cls|pre_classifier)\b"),
    ("query", r"(?:\.|^)(?:query|q_proj|q_lin|q)\."),
    ("key", r"(?:\.|^)(?:key|k_proj|k_lin|k)\."),
    ("value", r"(?:\.|^)(?:value|v_proj|v_lin|v)\."),
    ("query+key+value", r"(?:\.|^)(?:c_attn|qkv_proj|query_key_value|Wqkv)\."),
    ("norm", r"(?i:norm|(?:\.|^)ln_)"),
    ("output", r"attn\.c_proj|attention\.output|(?:\.|^)(?:o_proj|out_lin|out_proj)\."),
    ("feed-forward", r"(?:\.|^)(?:mlp|ffn|intermediate|output|fc1|fc2|feed_forward)\."),
    ("embeddings", r"(?i:embed|(?:\.|^)w[tp]e\.)"),
)


class Pair(NamedTuple):
    """One matrix in both models. layer: its block, −1 outside the blocks; module: query, key, …, other."""

    matrix: str
    module: str
    layer: int
    base: Tensor
    tuned: Tensor


class Pairing(NamedTuple):
    """Paired backbone tensors, and the names that only one side has (heads, poolers)."""

    pairs: list[Pair]
    only_base: list[str]
    only_tuned: list[str]


def pair(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> Pairing:
    """Pair two state dictionaries after stripping wrappers and `base_model_prefix` (`prefixes`, of either model).

    Raises IncompatibleCheckpoints where shapes differ, or under 90 % of the base's tensors find a partner.
    """
    left = {bare_name(name, prefixes): tensor for name, tensor in base.items() if tensor.is_floating_point()}
    right = {bare_name(name, prefixes): tensor for name, tensor in tuned.items() if tensor.is_floating_point()}
    shared = [name for name in left if name in right]
    for name in shared:
        if left[name].shape != right[name].shape:
            raise IncompatibleCheckpoints(
                f"{name} is {tuple(left[name].shape)} in base and {tuple(right[name].shape)} in tuned: "
                "base and tuned must share the backbone"
            )
    if len(shared) < 0.9 * min(len(left), len(right)):
        raise IncompatibleCheckpoints(
            f"only {len(shared)} of {len(left)} base tensors have a partner in tuned: the two do not share a backbone"
        )
    pairs = [Pair(name, module_of(name), layer_of(name), left[name], right[name]) for name in shared]
    return Pairing(pairs, [n for n in left if n not in right], [n for n in right if n not in left])


def bare_name(name: str, prefixes: tuple[str, ...]) -> str:
    """The name of a weight inside its backbone."""
    for prefix in (*WRAPPERS, *(f"{part}." for part in prefixes if part)):
        name = name.removeprefix(prefix)
    return name


def layer_of(name: str) -> int:
    """Number of the block a weight belongs to, −1 for embeddings, poolers and heads."""
    found = re.search(r"(?:layers?|h|blocks?)\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def module_of(name: str) -> str:
    """What the weight does: query, key, value, output, feed-forward, norm, embeddings, head or other."""
    return next((module for module, pattern in MODULES if re.search(pattern, name)), "other")
