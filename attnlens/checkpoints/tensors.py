"""Two checkpoints, tensor by tensor: which weight of the tuned model is which weight of the base; nothing is read."""

import re
from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attnlens.checkpoints.single import INSIDE
from attnlens.core.errors import IncompatibleCheckpoints

# Constants that older checkpoints stored beside their weights.
CONSTANTS = (".inv_freq", ".position_ids", ".masked_bias")
BLOCK = re.compile(r"(?:^|[._])(?:layers?|h|blocks?|attentions|ffns|layer_norm\d)\.(\d+)\.")
EMBEDDING = re.compile(r"(?i:embed)|(?:\.|^)(?:w[tp]e|shared)\.")
MODULES = (
    ("head", r"^(?:pooler|lm_head|classifier|score|cls|pre_classifier|qa_outputs|vocab_\w+|embed_out)\b"),
    ("query", r"(?:\.|^)(?:query|query_proj|q_proj|q_lin|q_head|q_bias|q)\b"),
    ("key", r"(?:\.|^)(?:key|key_proj|k_proj|k_lin|k_head|k)\b"),
    ("value", r"(?:\.|^)(?:value|value_proj|v_proj|v_lin|v_head|v_bias|v)\b"),
    ("query+key+value", r"(?:\.|^)(?:c_attn|qkv_proj|query_key_value|Wqkv|attention\.self\.in_proj)\."),
    ("norm", r"(?i:norm|(?:\.|^)ln_)"),
    ("output", r"(?:attn|attention)\.(?:c_proj|post_proj|dense|Wo|output)\b|(?:\.|^)(?:o_proj|out_lin|out_proj|o)\b"),
    ("feed-forward", r"(?:\.|^)(?:mlp|ffn\w*|intermediate|output|fc1|fc2|feed_forward|DenseReluDense)\."),
    ("embeddings", EMBEDDING.pattern),
)
PAIRED = 0.9


class Tensors(Protocol):
    """Tensors by name, read one at a time: a Shelf, or a base with an adapter on it."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        ...

    @property
    def tied(self) -> list[tuple[str, ...]]:
        """Groups of names whose numbers are stored once."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of one tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor."""
        ...


class Pair(NamedTuple):
    """One tensor in both models.

    matrix: its name inside the backbone. layer: its block, −1 outside the blocks; stack: "encoder" or "decoder" where
    a model has both. module: query, key, …, other. kind: backbone or head. base, tuned: its stored names.
    """

    matrix: str
    module: str
    layer: int
    stack: str
    kind: str
    base: str
    tuned: str


class Pairing(NamedTuple):
    """Paired tensors, the names that only one side has, and second names of tied tensors, which count once."""

    pairs: list[Pair]
    only_base: list[str]
    only_tuned: list[str]
    tied: list[str]


def pair(base: Tensors, tuned: Tensors) -> Pairing:
    """Pair two checkpoints by names and shapes, whatever prefix either has put before its backbone.

    Raises IncompatibleCheckpoints where shapes differ, or under 90 % of either backbone find a partner.
    """
    left, right = named(base), named(tuned)
    shared = [name for name in left.names if name in right.names]
    for name in shared:
        shapes = base.shape(left.names[name]), tuned.shape(right.names[name])
        if shapes[0] != shapes[1] and not is_head(name, left, right):
            raise IncompatibleCheckpoints(
                f"{name} is {shapes[0]} in base and {shapes[1]} in tuned: base and tuned must share the backbone"
            )
    # A head of another size is another head.
    shared = [name for name in shared if base.shape(left.names[name]) == tuned.shape(right.names[name])]
    for side, other in (("base", left), ("tuned", right)):
        backbone = [name for name in other.names if not is_head(name, left, right)]
        found = sum(name in shared for name in backbone)
        if found < PAIRED * len(backbone) or not backbone:
            raise IncompatibleCheckpoints(
                f"only {found} of {len(backbone)} {side} tensors have a partner: the two do not share a backbone"
            )
    stacks = any(name.startswith("encoder.") for name in shared) and any(n.startswith("decoder.") for n in shared)
    pairs = []
    for name in shared:
        head = is_head(name, left, right)
        stack = name.partition(".")[0] if stacks and name.startswith(("encoder.", "decoder.")) else ""
        module, layer, kind = ("head", -1, "head") if head else (module_of(name), layer_of(name), "backbone")
        pairs.append(Pair(name, module, layer, stack, kind, left.names[name], right.names[name]))
    paired = {matched.base for matched in pairs}, {matched.tuned for matched in pairs}
    only_base = [stored for stored in left.names.values() if stored not in paired[0]]
    only_tuned = [stored for stored in right.names.values() if stored not in paired[1]]
    return Pairing(pairs, only_base, only_tuned, sorted({*left.tied, *right.tied}))


class Named(NamedTuple):
    """Stored names by name inside the backbone; outside: names that lie beside the backbone; tied: left-out names."""

    names: dict[str, str]
    outside: frozenset[str]
    tied: list[str]


def named(tensors: Tensors) -> Named:
    """The floating-point tensors of one checkpoint under the names they have inside their backbone."""
    stored = [name for name in tensors.names if tensors.dtype(name).is_floating_point and not name.endswith(CONSTANTS)]
    root = root_of(stored)
    second = {name for group in tensors.tied for name in _second(group, root)}
    names: dict[str, str] = {}
    outside = set()
    for name in stored:
        bare, inside = _bare(name, root)
        if name not in second:
            if not inside:
                outside.add(bare)
            names.setdefault(bare, name) if not inside else names.update({bare: name})
    return Named(names, frozenset(outside), sorted(second))


def is_head(name: str, *sides: Named) -> bool:
    """Whether a tensor is no part of the backbone: it lies beside it in a model, or is a pooler."""
    return module_of(name) == "head" or any(name in side.outside for side in sides)


def root_of(names: Iterable[str]) -> str:
    """Where the backbone lies in a checkpoint ("", "bert", "model.bert"): what all blocks and embeddings share."""
    paths: list[list[str]] = []
    for name in names:
        plain = _plain(name)
        found = BLOCK.search(plain) or EMBEDDING.search(plain)
        if found:
            paths.append(plain[: found.start() + 1].split(".")[:-1])
    return ".".join(_shared(paths)) if paths else ""


def layer_of(name: str) -> int:
    """Number of the block a weight belongs to, −1 for embeddings, poolers and heads."""
    found = BLOCK.search(name)
    return int(found.group(1)) if found else -1


def module_of(name: str) -> str:
    """What the weight does: query, key, value, output, feed-forward, norm, embeddings, head or other."""
    return next((module for module, pattern in MODULES if re.search(pattern, name)), "other")


def _shared(paths: list[list[str]]) -> list[str]:
    """The segments with which all paths begin."""
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))]


def _plain(name: str) -> str:
    for wrapper in INSIDE:
        name = name.replace(wrapper, "")
    return name


def _bare(name: str, root: str) -> tuple[str, bool]:
    """The name inside the backbone and True, or the name of a head without what it shares with the root, and False."""
    name = _plain(name)
    if not root or name.startswith(f"{root}."):
        return name.removeprefix(f"{root}.") if root else name, True
    parts = name.split(".")
    return ".".join(parts[len(_shared([parts, root.split(".")])) :]), False


def _second(group: tuple[str, ...], root: str) -> list[str]:
    """All names of a tied tensor but the first inside the backbone: the embedding keeps its own, the head loses it."""
    inside = [name for name in group if _bare(name, root)[1] and module_of(_bare(name, root)[0]) != "head"]
    kept = (inside or group)[0]
    return [name for name in group if name != kept]
