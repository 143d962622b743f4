"""Two maps: numbers by hand, the exact reference, the laws, and digits where floats usually lose them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from attnlens.core.errors import ShapeError, UnknownName
from attnlens.core.pairs import PAIRS, Logits, pair_statistics
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted, attend
from tests.core.problems import CASES, problem, small_tiles
from tests.reference import Problem, divergences

ALL = tuple(PAIRS)
LOG2 = math.log(2)
EPS = torch.finfo(torch.float32).eps

# base, tuned: jsd, KL(base‖tuned), KL(tuned‖base), tv.
HAND = [
    (
        [1 / 2, 1 / 2],
        [1 / 4, 3 / 4],
        (2 * math.log(16 / 15) + math.log(2 / 3) + 3 * math.log(6 / 5)) / 8,
        math.log(4 / 3) / 2,
        3 / 4 * math.log(3) - LOG2,
        1 / 4,
    ),
    ([1 / 2, 1 / 2], [1, 0], 3 / 4 * math.log(4 / 3), math.inf, LOG2, 1 / 2),
    ([1, 0], [1 / 2, 1 / 2], 3 / 4 * math.log(4 / 3), LOG2, math.inf, 1 / 2),
    ([1, 0], [0, 1], LOG2, math.inf, math.inf, 1.0),
    ([1 / 3, 2 / 3], [1 / 3, 2 / 3], 0.0, 0.0, 0.0, 0.0),
]


def logits_of(logits, dtype=torch.float64) -> Logits:
    """A map of one row with these logits, exactly; −inf hides the key."""
    values = torch.tensor(logits, dtype=torch.float64)
    seen = values > -math.inf
    key = values.masked_fill(~seen, 0.0).to(dtype).view(1, 1, -1, 1)
    return Logits(torch.ones(1, 1, 1, 1, dtype=dtype), key, Scores(1.0, mask=seen.view(1, 1, 1, -1)))


def pair(options: dict, **changes):
    """Base and tuned of one shape and mask, with other q and k: (two Problems, two Logits, rows with data)."""
    slow, (q, k, _), scores, wanted = problem(options, **changes)
    other = problem(options, **changes | {"seed": 7})
    q2, k2 = other[1][:2]
    return (
        (slow, replace(slow, q=q2.numpy(), k=k2.numpy())),
        (Logits(q, k, scores), Logits(q2, k2, scores)),
        wanted.queries,
    )


@pytest.mark.parametrize("case", HAND, ids=lambda case: f"{case[0]} {case[1]}")
def test_hand_number(case):
    base, tuned, *expected = case
    logs = [[math.log(weight) if weight else -math.inf for weight in side] for side in (base, tuned)]
    got = pair_statistics(*(logits_of(side) for side in logs), ALL)
    for name, value in zip(("jsd", "kl_forward", "kl_backward", "tv"), expected, strict=True):
        assert got[name].item() == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize("size", [1 << 19, 150], ids=["one tile", "many tiles"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: str, size: int, monkeypatch: pytest.MonkeyPatch):
    small_tiles(monkeypatch, size)
    slow, (base, tuned), queries = pair(CASES[case])
    expected, got = divergences(*slow), pair_statistics(base, tuned, ALL, queries=queries)
    for name in ALL:
        np.testing.assert_allclose(got[name].numpy(), expected[name], atol=1e-11, rtol=1e-11, err_msg=name)


@pytest.mark.parametrize(("one", "other"), [("causal", "causal"), ("plain", "causal"), ("causal", "plain")])
def test_one_pass_serves_the_statistics_of_one_map_and_of_two(one: str, other: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever else of the tile is read or overwritten."""
    small_tiles(monkeypatch, 150)
    _, (base, _), queries = pair(CASES[one])
    _, (_, tuned), _ = pair(CASES[other])
    singles = Wanted(("entropy", "max_weight"), queries=queries)
    both = attend(*tuned[:2], None, tuned.scores, replace(singles, pairs=ALL, against=base))[1]
    alone = attend(*tuned[:2], None, tuned.scores, singles)[1]
    expected = alone | pair_statistics(base, tuned, ALL, queries=queries)
    for name, values in expected.items():
        torch.testing.assert_close(both[name], values, atol=1e-14, rtol=1e-14, equal_nan=True, msg=name)


@pytest.mark.parametrize(("one", "other"), [("causal", "plain"), ("window", "causal"), ("mask", "plain")])
def test_maps_that_see_different_keys(one: str, other: str, monkeypatch: pytest.MonkeyPatch):
    """What one map hides and the other sees has an infinite KL one way, and a finite JSD."""
    small_tiles(monkeypatch, 150)
    slow, (narrow, wide), _ = pair(CASES[one])
    wide = wide._replace(scores=problem(CASES[other])[2])
    open_slow = replace(slow[1], causal=wide.scores.causal, window=wide.scores.window, mask=None)
    narrow_slow = replace(slow[0], queries=None)
    for maps, problems in (((narrow, wide), (narrow_slow, open_slow)), ((wide, narrow), (open_slow, narrow_slow))):
        got, expected = pair_statistics(*maps, ALL), divergences(*(replace(side, queries=None) for side in problems))
        for name in ALL:
            np.testing.assert_allclose(got[name].numpy(), expected[name], atol=1e-11, rtol=1e-11, err_msg=name)
        assert np.isinf(expected["kl_forward"]).any() != np.isinf(expected["kl_backward"]).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_equal_maps_give_exactly_zero(case: str, dtype: torch.dtype):
    _, ((q, k, scores), _), _ = pair(CASES[case])
    one = Logits(q.to(dtype), k.to(dtype), scores)
    other = Logits(q.to(dtype).transpose(1, 2).contiguous().transpose(1, 2), k.to(dtype), scores)
    for name, values in pair_statistics(one, other, ALL).items():
        assert (values[~values.isnan()] == 0).all(), name
        assert not values.isnan().all()


@pytest.mark.parametrize("spread", [0.01, 1.0, 16.0])
def test_laws(spread: float):
    """Bounds, symmetry of JSD and TV, KLs swap, and |ΔH| ≤ TV log(n−1) + h(TV) (METRICS 4, I-5, I-16)."""
    _, (base, tuned), _ = pair({}, spread=spread)
    got, turned = pair_statistics(base, tuned, ALL), pair_statistics(tuned, base, ALL)
    for name, record in PAIRS.items():
        assert (got[name] >= record.low).all() and (got[name] <= record.high + 1e-15).all(), name
    for name, twin in {"jsd": "jsd", "tv": "tv", "kl_forward": "kl_backward", "kl_backward": "kl_forward"}.items():
        torch.testing.assert_close(got[name], turned[twin], atol=1e-15, rtol=1e-12)
    moved, divergence = got["tv"], got["jsd"]
    assert (moved.square() / 2 <= divergence + 1e-15).all()
    assert (divergence <= moved * LOG2 + 1e-15).all()
    assert (divergence <= (got["kl_forward"] + got["kl_backward"]) / 4 + 1e-15).all()
    assert (2 * moved.square() <= got["kl_forward"] + 1e-15).all()  # Pinsker
    entropies = [attend(*side[:2], None, side.scores, Wanted(("entropy",)))[1]["entropy"] for side in (base, tuned)]
    change = (entropies[0] - entropies[1]).abs()
    binary = torch.special.entr(moved) + torch.special.entr(1 - moved)
    assert (change <= moved * math.log(base.key.shape[2] - 1) + binary + 1e-12).all()


def test_padding_and_company_change_nothing():
    """I-9: the same rows beside other texts, with padding on either side."""
    _, (base, tuned), _ = pair({})
    alone = pair_statistics(*(Logits(side.query[:1], side.key[:1], side.scores) for side in (base, tuned)), ALL)
    for left in (0, 3):
        seen = torch.zeros(2, 1, 1, 14, dtype=torch.bool)
        seen[:, ..., left : left + 11] = True
        padded = [
            Logits(
                *(torch.nn.functional.pad(part, (0, 0, left, 3 - left), value=9.0) for part in side[:2]),
                Scores(side.scores.scale, mask=seen),
            )
            for side in (base, tuned)
        ]
        got = pair_statistics(*padded, ALL, queries=seen[:, 0, 0])
        for name in ALL:
            inside = got[name][:1, :, left : left + 11]
            torch.testing.assert_close(inside, alone[name], atol=1e-13, rtol=1e-11)
            assert got[name].isnan().sum() == 2 * 4 * 3


def test_grouped_keys_equal_repeated_keys():
    """I-19."""
    _, (base, tuned), _ = pair({"causal": True})
    repeated = [side._replace(key=side.key.repeat_interleave(2, 1)) for side in (base, tuned)]
    got, expected = pair_statistics(base, tuned, ALL), pair_statistics(*repeated, ALL)
    for name in ALL:
        torch.testing.assert_close(got[name], expected[name], atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nearly_equal_maps_keep_their_digits(gap: float, dtype: torch.dtype):
    """KL is quadratic in the gap: at 1e-5 it is 1e-10, far below the rounding of Σ p log(p/q) in float32."""
    rng = np.random.default_rng(5)
    one = torch.tensor(rng.normal(size=40)).to(dtype)
    two = one + torch.tensor(rng.normal(size=40) * gap).to(dtype)
    maps = [
        Problem(np.ones((1, 1, 1, 1)), s.double().numpy().reshape(1, 1, -1, 1), np.ones((1, 1, 40, 1)))
        for s in (one, two)
    ]
    expected = divergences(*maps)
    got = pair_statistics(*(logits_of(side.tolist(), dtype) for side in (one, two)), ALL)
    error = 8 * torch.finfo(dtype).eps * 3 / gap  # rounding of logits of size 3, against a difference of `gap`
    for name in ALL:
        assert got[name].item() == pytest.approx(expected[name].item(), rel=error), name


def test_weights_below_the_smallest_float_count_by_their_logits():
    """q = e^−400 is 0 in float32; KL(p‖q) is 200 nats, not ∞ and not what an eps would make of it."""
    got = pair_statistics(logits_of([0.0, 0.0], torch.float32), logits_of([0.0, -400.0], torch.float32), ALL)
    assert got["kl_forward"].item() == pytest.approx(200 - LOG2, rel=4 * EPS)
    assert got["kl_backward"].item() == pytest.approx(LOG2, rel=4 * EPS)
    hidden = pair_statistics(logits_of([0.0, -400.0], torch.float32), logits_of([0.0, -math.inf], torch.float32), ALL)
    assert hidden["kl_forward"].item() == math.inf  # e^−400 of the attention lies where q has none
    assert hidden["kl_backward"].item() == hidden["tv"].item() == hidden["jsd"].item() == 0


@pytest.mark.parametrize("spread", [1, 16, 256])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_float32_error_is_bounded_by_the_spread_of_the_row(spread: float, offset: float):
    """Logits off by e shift KL by at most e (2 KL + 3.5): 8·eps·max|s − s̄|, times KL where KL is above 1."""
    rng = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        q, k = rng.normal(size=(1, 2, 32, 16)), rng.normal(size=(1, 2, 64, 16)) * spread / 4
        q[..., 0], k[..., 0] = 1.0, offset
        sides.append((torch.tensor(q).float(), torch.tensor(k).float()))
    got = pair_statistics(*(Logits(q, k, Scores(1.0)) for q, k in sides), ALL)
    exact = pair_statistics(*(Logits(q.double(), k.double(), Scores(1.0)) for q, k in sides), ALL)
    logits = torch.stack([q.double() @ k.double().transpose(2, 3) for q, k in sides])
    row = (logits - logits.mean(-1, keepdim=True)).abs().amax().item()
    for name in ALL:
        error = (got[name].double() - exact[name]).abs() / exact[name].clamp(min=1)
        assert error.max().item() <= 8 * EPS * max(row, 1.0), name


@pytest.mark.parametrize(("spread", "gap"), [(1.0, 1e-7), (1.0, 3e-8), (8.0, None), (30.0, None)])
def test_rounding_never_leaves_the_bounds(spread: float, gap: float | None):
    """Maps that all but agree, and maps that share no key: in float32 the sums come within roundings of 0 and log 2."""
    rng = torch.Generator().manual_seed(0)
    query, key, other = (torch.randn(1, 2, rows, 16, generator=rng) for rows in (64, 128, 128))
    sides = [Logits(spread * query, each, Scores(1.0)) for each in (key, other if gap is None else key + gap * other)]
    for name, values in pair_statistics(*sides, ALL).items():
        assert (values >= PAIRS[name].low).all(), name
        assert (values <= torch.tensor(PAIRS[name].high)).all(), name


def test_a_bias_of_minus_infinity_on_a_hidden_key_changes_nothing():
    """ALiBi tables and additive masks may hold −∞ where a mask hides as well; −∞ less −∞ would be no number."""
    _, (base, tuned), _ = pair(CASES["mask"])
    bias = torch.zeros(base.scores.mask.shape, dtype=base.query.dtype)
    bias[~base.scores.mask] = -torch.inf
    biased = [side._replace(scores=replace(side.scores, bias=bias)) for side in (base, tuned)]
    got, expected = pair_statistics(*biased, ALL), pair_statistics(base, tuned, ALL)
    for name in ALL:
        torch.testing.assert_close(got[name], expected[name], atol=1e-14, rtol=1e-12, equal_nan=True)


def test_rows_without_data_are_nan_and_input_is_untouched():
    _, (base, tuned), queries = pair(CASES["everything"])
    before = [part.clone() for side in (base, tuned) for part in side[:2]]
    got = pair_statistics(base, tuned, ("tv",), queries=queries)["tv"]
    assert torch.equal(got.isnan(), ~queries[:, None].expand_as(got))  # sinks: every other row sees something
    assert all(torch.equal(a, b) for a, b in zip(before, [*base[:2], *tuned[:2]], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda side: side._replace(key=side.key[:, :, :5]), r"one shape .* got \(2, 4, 11, 11\) and \(2, 4, 11, 5\)"),
        (lambda side: side._replace(query=side.query[:, :, :5]), "one shape"),
        (lambda side: side._replace(key=side.key.repeat_interleave(2, 1)), "share their key heads; got 2 and 4"),
        (lambda side: side._replace(scores=replace(side.scores, sinks=torch.zeros(4))), "learned null key"),
        (lambda side: side._replace(query=side.query[..., :3]), "must share B and D"),
    ],
)
def test_maps_that_do_not_fit(change, message: str):
    _, (base, tuned), _ = pair({})
    with pytest.raises(ShapeError, match=message):
        pair_statistics(base, change(tuned), ALL)


@pytest.mark.parametrize("case", ["plain", "causal"])
def test_asked_alone_each_is_what_it_is_among_all(case: str):
    _, (base, tuned), _ = pair(CASES[case])
    together = pair_statistics(base, tuned, ALL)
    for name in ALL:
        assert torch.equal(pair_statistics(base, tuned, (name,))[name], together[name])


def test_unknown_name():
    _, (base, tuned), _ = pair({})
    with pytest.raises(UnknownName, match="did you mean 'kl_forward'"):
        pair_statistics(base, tuned, ("kl_forwards",))
