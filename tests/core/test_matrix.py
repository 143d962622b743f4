"""Dense and tiled statistics over the full matrix of what attention can be, against the reference and in low precision.

What is visible × mask × shared key heads × what shapes the logits × how large they are × precision of the input.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from attnlens.core.lean import LEAN
from attnlens.core.rows import dense_map, row_statistics
from attnlens.core.tiled import attend
from tests.core.problems import ALL, SCALE, Case, problem, small_tiles
from tests.reference import statistics

T = 7
VISIBLE = {"all": {}, "causal": {"causal": True}, "window": {"causal": True, "window": 3}, "two-sided": {"window": 3}}
MASKS = ("none", "bool", "float", "left", "right")
HEADS = {"MHA": 4, "GQA": 2}
SHAPING = {
    "nothing": {},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "bias": {"bias": True},
    "all three": {"softcap": 30.0, "sinks": True, "bias": True},
}
SIZES = {
    "sd 1": (1.0, {}),
    "sd 16": (16.0, {}),
    "sd 256": (256.0, {}),
    "rising": (16.0, {"rising": True}),
    "offset": (1.0, {"offset": 1e4}),
    "rising from an offset": (256.0, {"rising": True, "offset": 1e4}),
}
MATRIX = list(itertools.product(VISIBLE, MASKS, HEADS, SHAPING))
# Their values grow with the number of keys or the logits, so their errors do: held in units of the value.
GROWING = {"effective_keys", "distance", "received", "lse", "lift"}


def cases(visible: str, mask: str, heads: str, shaping: str):
    """One problem of each size of the logits."""
    options = VISIBLE[visible] | SHAPING[shaping] | ({} if mask == "none" else {"mask": mask})
    for name, (spread, numbers) in SIZES.items():
        yield name, problem(options | numbers, heads_kv=HEADS[heads], spread=spread, queries=T, keys=T)


def both_ways(case: Case, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """The tiled, the lean and the dense statistics of the case, its q, k and v given in dtype."""
    q, k, v = (tensor.to(dtype) for tensor in case.tensors)
    wanted, found = case.wanted, {}
    for way, names in (("tiled", ALL), ("lean", tuple(sorted(LEAN)))):
        output, got = attend(q, k, v, case.scores, replace(wanted, statistics=names))
        assert output is not None and output.dtype == dtype
        found[way] = got | {"output": output}
    dense = dense_map(q, k, case.scores, groups=wanted.groups, queries=wanted.queries, norms=wanted.norms)
    return found | {"dense": row_statistics(dense, ALL)}


@pytest.mark.parametrize(("visible", "mask", "heads", "shaping"), MATRIX)
def test_float64_equals_the_reference(
    visible: str, mask: str, heads: str, shaping: str, monkeypatch: pytest.MonkeyPatch
):
    small_tiles(monkeypatch, 30 * (2 if heads == "GQA" else 1))  # 4 rows of one key head: 7 is no multiple
    for size, case in cases(visible, mask, heads, shaping):
        expected = statistics(case.slow)
        for way, got in both_ways(case, torch.float64).items():
            for name, values in got.items():
                where = f"{way} {name}, {size}"
                np.testing.assert_allclose(values, expected[name], atol=1e-11, rtol=1e-11, err_msg=where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
@pytest.mark.parametrize(("visible", "mask", "heads", "shaping"), MATRIX)
def test_low_precision_is_as_close_as_its_logits_allow(
    visible: str, mask: str, heads: str, shaping: str, dtype: torch.dtype
):
    """Within 8·eps·max|s − s̄| of the float64 statistics of the same rounded input (METRICS 7.3)."""
    for size, case in cases(visible, mask, heads, shaping):
        case = case._replace(tensors=[tensor.to(dtype).double() for tensor in case.tensors])
        bound = 8 * torch.finfo(torch.float32).eps * max(1.0, spread_of_logits(case))
        exact = both_ways(case, torch.float64)
        for way, got in both_ways(case, dtype).items():
            for name in set(ALL).intersection(got):
                values, truth = got[name], exact[way][name]
                assert values.dtype == torch.float32
                assert torch.equal(values.isnan(), truth.isnan()), f"{way} {name}, {size}"
                unit = truth.abs().clamp(min=1) if name in GROWING else 1.0
                error = ((values - truth) / unit).abs().nan_to_num().max().item()
                assert error <= bound, f"{way} {name}, {size}: {error:.1e} > {bound:.1e}"


def spread_of_logits(case: Case) -> float:
    """max|s − s̄| over the rows, before the softcap, with the bias and the null key.

    At least the softcap c, whose result is rounded to eps·c wherever the mean lies.
    """
    (q, k, _), scores = case.tensors, case.scores
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * SCALE
    if scores.bias is not None:
        logits = logits + scores.bias
    if scores.sinks is not None:
        logits = torch.cat([logits, scores.sinks[None, :, None, None].expand(*logits.shape[:3], 1)], -1)
    return max(scores.softcap or 0.0, (logits - logits.mean(-1, keepdim=True)).abs().max().item())
