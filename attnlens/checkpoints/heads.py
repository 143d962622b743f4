"""Where the query, key, value and output weights of each head lie in a checkpoint, whatever its architecture."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from attnlens.checkpoints.tensors import Pair, Tensors, layer_of, module_of
from attnlens.core.circuits import Factors, output_value, query_key

ROLES = ("query", "key", "value", "output", "query+key+value")
# BERT keeps queries under `attention.self`, ViT under `attention.attention`, both the output under `attention.output`.
# DeBERTa keeps biases of queries and values apart from its fused matrix, as q_bias and v_bias.
SITE = re.compile(r"^(.*?)(?:(?<=attention\.)(?:self|attention|output)\.)?(?:[^.]+\.|[qv]_)(weight|bias)$")
# Types of models that fuse queries, keys and values into one matrix, by the order of its rows: all queries, all keys,
# all values; or query, key and value of one head after the other. The last do the first where heads share one key,
# else the second. Any other order stays unknown: CodeGen deals its heads out to four groups, MiniMax bends its rows.
BLOCKS = ("gpt2", "openai-gpt", "phi3", "modernbert", "mpt", "dbrx")
BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "deberta", "persimmon")
EITHER = ("gpt_bigcode", "falcon")


class Geometry(NamedTuple):
    """How many query heads, and how many key and value heads they share, in models of this type."""

    heads: int
    key_heads: int
    model_type: str


def sites(pairs: Iterable[Pair]) -> dict[str, dict[str, Pair]]:
    """Attention modules by name, each with its weights and biases: "query.weight" → its pair, and so on."""
    found: dict[str, dict[str, Pair]] = {}
    for matched in pairs:
        place = SITE.match(matched.matrix)
        if matched.module in ROLES and matched.layer >= 0 and place:
            found.setdefault(site_of(matched.matrix), {})[f"{matched.module}.{place[2]}"] = matched
    return found


def site_of(name: str) -> str:
    """The attention module to which a weight or bias of this name belongs; "" if it is none of an attention."""
    place = SITE.match(name)
    return place[1].rstrip(".") if place else ""


def is_output(name: str) -> bool:
    """Whether a weight of this name is the output projection of an attention in a block."""
    return module_of(name) == "output" and layer_of(name) >= 0


def circuits(
    tensors: Tensors, names: Mapping[str, str], geometry: Geometry, rounded: Mapping[str, torch.dtype] | None = None
) -> dict[str, Factors]:
    """The factors of "QK" and "OV" of one attention module, as far as its layout is known.

    names: stored names of "query.weight", "query+key+value.bias", … rounded: dtypes to which some of them are rounded
    first.
    """
    read: dict[str, Tensor] = {}
    for role, name in names.items():
        if tensors.dtype(name).is_floating_point:
            tensor = tensors.read(name)
            read[role] = tensor.to((rounded or {}).get(role, tensor.dtype)).double()
    fused = "query+key+value.weight"
    turned = fused in read and read[fused].shape[1] == 3 * read[fused].shape[0]  # GPT-2 stores (in, out)
    if fused in read and "output.weight" in read:
        width = read["output.weight"].shape[0 if turned else 1]
        for part in ("weight", "bias"):
            if (whole := read.pop(f"query+key+value.{part}", None)) is not None:
                split = _unfused(whole.T if turned and part == "weight" else whole, width, geometry)
                read |= {f"{role}.{part}": rows for role, rows in split.items()}
    weights = [read.get(f"{role}.weight") for role in ("query", "key", "value", "output")]
    query, key, value, output = (None if weight is None or weight.ndim != 2 else weight for weight in weights)
    found = {}
    heads, key_heads, _ = geometry
    if query is not None and key is not None and _fits(query, key, geometry):
        found["QK"] = query_key(query, read.get("query.bias"), key, heads, key_heads)
    if value is not None and output is not None:
        output = output.T if turned else output
        if _fits(output.T, value, geometry):
            found["OV"] = output_value(output, value, read.get("value.bias"), heads, key_heads)
    return found


def _unfused(whole: Tensor, width: int, geometry: Geometry) -> dict[str, Tensor]:
    """Rows of queries, keys and values of a fused weight or bias; nothing where the layout is unknown.

    width: rows of the queries, which is what the output takes in.
    """
    heads, key_heads, model_type = geometry
    roles = ("query", "key", "value")
    shares = key_heads < heads
    if model_type in BLOCKS or (model_type in EITHER and shares):
        shared = width // heads * key_heads
        sizes = [width, shared, shared]
        return dict(zip(roles, whole.split(sizes), strict=True)) if whole.shape[0] == sum(sizes) else {}
    if (model_type in BY_HEAD or model_type in EITHER) and not shares and whole.shape[0] == 3 * width:
        parts = whole.reshape(heads, 3, -1, *whole.shape[1:]).unbind(1)
        return {role: part.flatten(0, 1) for role, part in zip(roles, parts, strict=True)}
    return {}


def _fits(query: Tensor, key: Tensor, geometry: Geometry) -> bool:
    """Whether both split into heads of one width."""
    heads, key_heads, _ = geometry
    return query.shape[0] * key_heads == key.shape[0] * heads and key.shape[0] % key_heads == 0
