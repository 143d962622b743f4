"""Statistics of a map: numbers worked by hand, the door, the registry's laws."""

import math

import pytest
import torch

from attnlens.core.errors import NotAttentionError, ShapeError, UnknownName
from attnlens.core.rows import STATISTICS, AttentionMap, Groups, row_statistics

# Row [1/2, 1/4, 1/4] over three keys, seen by the query at the last position.
HAND = {
    "entropy": 1.5 * math.log(2),
    "entropy_normalized": 1.5 * math.log(2) / math.log(3),
    "effective_keys": 2**1.5,
    "max_weight": 0.5,
    "renyi2": math.log(8 / 3),
    "distance": 0.5 * 2 + 0.25 * 1,
    "mass": [0.5, 0.5, 0.0],
    "share": [0.5, 0.5, math.nan],
    "log_odds": [math.log(0.5) - math.log(0.25), math.log(0.25) - math.log(0.5), math.nan],
    "entropy_content": 1.5 * math.log(2) / math.log(3),
    "received": [1.5, 0.75, 0.75],
    "received_mean": [0.5, 0.25, 0.25],
    "lift": [1.5, 0.75, math.nan],
    "entropy_between": [math.log(2), math.log(2), math.nan],
    "share_value": [1 / 4, 3 / 4, math.nan],
}


def row_map(weights, groups=None, lse=None, queries=None, norms=None) -> AttentionMap:
    weights = torch.tensor(weights, dtype=torch.float64)[None, None, None]
    valid = torch.ones(1, 1, dtype=torch.bool) if queries is None else queries
    groups = None if groups is None else Groups.of(groups)
    lengths = None if norms is None else torch.tensor(norms, dtype=torch.float64)[None, None]
    return AttentionMap(weights, weights >= 0, valid, lse, groups, norms=lengths)


@pytest.mark.parametrize("name", sorted(HAND))
def test_hand_number(name: str):
    attention = row_map([0.5, 0.25, 0.25], torch.tensor([[0, 1, 1]]), norms=[1.0, 2.0, 4.0])
    value = row_statistics(attention, (name,))[name].squeeze()
    torch.testing.assert_close(value, torch.tensor(HAND[name], dtype=torch.float64).squeeze(), equal_nan=True)


def test_every_statistic_has_a_hand_number():
    assert set(HAND) | {"lse"} == set(STATISTICS)


def test_lse_hand_number():
    attention = row_map([0.5, 0.5], lse=torch.tensor([[[math.log(2)]]], dtype=torch.float64))
    assert row_statistics(attention, ("lse",))["lse"].item() == math.log(2)


@pytest.mark.parametrize("n", [2, 3, 17])
def test_uniform_row(n: int):
    """I-1: H = log n, Ĥ = 1, n effective keys, λ = 0, R̃ = 1."""
    attention = row_map([1 / n] * n, torch.tensor([[1] + [0] * (n - 1)]), norms=[2.0] * n)
    got = row_statistics(attention, tuple(set(STATISTICS) - {"lse"}))
    for name, value in {
        "entropy": math.log(n),
        "entropy_normalized": 1,
        "effective_keys": n,
        "renyi2": math.log(n),
    }.items():
        assert got[name].item() == pytest.approx(value, abs=1e-12)
    assert got["log_odds"][..., :2].abs().max() < 1e-12
    assert (got["received"] - 1).abs().max() < 1e-12
    assert (got["lift"][..., :2] - 1).abs().max() < 1e-12
    assert (got["received_mean"] - 1 / n).abs().max() < 1e-12
    torch.testing.assert_close(got["share_value"], got["share"], atol=1e-12, rtol=0, equal_nan=True)


def test_one_hot_row_is_exact():
    """I-2: H = 0 and one effective key, without NaN."""
    got = row_statistics(row_map([0.0, 1.0, 0.0]), ("entropy", "renyi2", "max_weight", "entropy_normalized"))
    assert [got[name].item() for name in got] == [0.0, 0.0, 1.0, 0.0]


def test_single_key_has_no_normalised_entropy():
    assert row_statistics(row_map([1.0]), ("entropy_normalized",))["entropy_normalized"].isnan().all()


def test_entropy_grouping_identity():
    """H = H(m) + Σ m_g H_g (METRICS 4), exactly."""
    weights = torch.rand(1, 2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights /= weights.sum(-1, keepdim=True)
    groups = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 0, 1]])
    attention = AttentionMap(
        weights, torch.ones_like(weights, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool), None, Groups.of(groups)
    )
    got = row_statistics(attention, ("entropy", "mass", "entropy_between"))
    masses = got["mass"]
    assert (masses.sum(-1) - 1).abs().max() < 1e-12  # I-13
    within = sum(
        masses[..., g] * torch.special.entr(weights[..., groups[0] == g] / masses[..., g : g + 1]).sum(-1)
        for g in range(3)
    )
    torch.testing.assert_close(got["entropy"], torch.special.entr(masses).sum(-1) + within, atol=1e-12, rtol=0)
    # With two kinds of content and one of sinks, `entropy_between` of either is that of the three masses.
    for g in (0, 1):
        torch.testing.assert_close(got["entropy_between"][..., g] + within, got["entropy"], atol=1e-12, rtol=0)


def test_lifts_average_to_one():
    """I-13: Σ_g (n_g/n_i)·lift_g = 1 over a partition."""
    weights = torch.rand(1, 1, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights /= weights.sum(-1, keepdim=True)
    groups = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 0, 1]])
    everything = torch.ones_like(weights, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    lifts = row_statistics(AttentionMap(weights, *everything, None, Groups.of(groups)), ("lift",))["lift"]
    shares = torch.bincount(groups[0]).double() / 9
    assert ((lifts * shares).sum(-1) - 1).abs().max() < 1e-12


def test_padding_rows_are_nan_and_give_nothing():
    queries = torch.tensor([[False]])
    got = row_statistics(row_map([0.5, 0.5], queries=queries), ("entropy", "received"))
    assert got["entropy"].isnan().all()
    assert got["received"].isnan().all()


def test_soft_columns_and_columns_beyond_the_content_have_no_log_odds():
    columns = torch.tensor([[[1.0, 1.0, 0.5, 1.0], [1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    names = ("log_odds", "share", "entropy_between", "lift", "share_value")
    got = row_statistics(row_map([0.5, 0.25, 0.25], columns, norms=[2.0, 4.0, 9.0]), names)
    torch.testing.assert_close(got["share"].squeeze(), torch.tensor([1.0, 2 / 3, 0.5, 2 / 3], dtype=torch.float64))
    odds = got["log_odds"].squeeze()
    assert odds[[0, 2, 3]].isnan().all()
    assert odds[1].item() == pytest.approx(math.log(2))
    between = got["entropy_between"].squeeze()
    assert between[[2, 3]].isnan().all()
    # Sinks 1/4, of the content 3/4 all in column 0; 1/2 and 1/4 with column 1.
    assert between[:2].tolist() == pytest.approx([0.5623351446, 1.5 * math.log(2)])
    torch.testing.assert_close(got["lift"].squeeze(), torch.tensor([1.125, 1.5, 1.125, 1.125]).double())
    torch.testing.assert_close(got["share_value"].squeeze(), torch.tensor([1.0, 0.5, 0.5, 0.5]).double())


def test_values_of_no_length_have_no_share():
    got = row_statistics(row_map([0.5, 0.25, 0.25], torch.tensor([[0, 1, 2]]), norms=[0.0, 0.0, 9.0]), ("share_value",))
    assert got["share_value"].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_door_accepts_rounded_softmax(dtype: torch.dtype):
    weights = torch.randn(1, 1, 64, 512, generator=torch.Generator().manual_seed(0)).softmax(-1).to(dtype)
    valid = torch.ones(1, 64, dtype=torch.bool)
    row_statistics(AttentionMap(weights, torch.ones_like(weights, dtype=torch.bool), valid), ("max_weight",))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: row_statistics(row_map([2.0, 1.0]), ("entropy",)), NotAttentionError, "1 of 1 do not. Pass softmax"),
        (lambda: row_statistics(row_map([1.5, -0.5]), ("entropy",)), NotAttentionError, "non-negative"),
        (lambda: row_statistics(row_map([1.0]), ("entropie",)), UnknownName, "did you mean 'entropy'"),
        (lambda: row_statistics(row_map([1.0]), ("mass",)), ShapeError, "need groups"),
        (lambda: row_statistics(row_map([1.0]), ("lse",)), ShapeError, "needs the logits"),
        (
            lambda: row_statistics(row_map([1.0], torch.tensor([[0]])), ("share_value",)),
            ShapeError,
            "needs norms of the transformed values",
        ),
        (lambda: Groups.of(torch.zeros(2, 3)), ShapeError, "groups must be integers"),
        (lambda: Groups.of(torch.full((1, 2, 1), 0.5)), ShapeError, "column 0"),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()
