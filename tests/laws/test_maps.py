"""Laws of METRICS 7.3 on single maps that tests/core does not hold; the table of all laws: tests/laws/__init__.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from attnlens.core.agreement import agreement
from attnlens.core.pairs import PAIRS, Logits, pair_statistics
from attnlens.core.rows import STATISTICS, Groups, dense_map
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted, attend
from tests.core.problems import ALL, CASES, B, H, K, Q, problem

GROUPS = torch.tensor([[2, 0, 1, 0, 0, 1, 1, 0, 0, 2]])


def of_logits(logits: Tensor, names: tuple[str, ...], groups: Tensor | None = None, *, causal: bool = False):
    """Statistics of maps with these logits (B, H, Q, K): a bias on queries and keys of zeros."""
    texts, heads, queries, keys = logits.shape
    zeros = torch.zeros(texts, heads, max(queries, keys), 1, dtype=logits.dtype)
    wanted = Wanted(names, None if groups is None else Groups.of(groups.expand(texts, -1)))
    return attend(zeros[:, :, :queries], zeros[:, :, :keys], None, Scores(1.0, bias=logits, causal=causal), wanted)[1]


def drawn(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_raw_received_attention_of_a_uniform_causal_head_is_position():
    """I-3: R_j = (H_T − H_j)/(T − j) with harmonic numbers, which is why received attention is held against uniform."""
    length = 40
    got = of_logits(torch.zeros(1, 1, length, length, dtype=torch.float64), ("received_mean",), causal=True)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, length + 1))])
    j = np.arange(length)
    np.testing.assert_allclose(
        got["received_mean"][0, 0], (harmonic[-1] - harmonic[j]) / (length - j), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("case", [name for name, options in CASES.items() if not options.get("sinks")])
@pytest.mark.parametrize("shift", [-3.0, 250.0])
def test_a_constant_on_the_logits_of_a_row_changes_its_lse_alone(case: str, shift: float):
    """I-6; before a softcap it would be another map, so it is added behind it."""
    _, (q, k, v), scores, wanted = problem(CASES[case])
    rows = shift * drawn(B, H, Q, 1, seed=3)
    moved = replace(scores, bias=rows if scores.bias is None else scores.bias + rows)
    plain, other = (attend(q, k, v, each, wanted) for each in (scores, moved))
    torch.testing.assert_close(other[0], plain[0], atol=1e-10, rtol=0)
    for name in ALL:
        if name == "lse":
            expected = plain[1][name] + rows[..., 0]
            torch.testing.assert_close(other[1][name], expected, atol=1e-10, rtol=1e-12, equal_nan=True)
        else:
            torch.testing.assert_close(other[1][name], plain[1][name], atol=1e-10, rtol=1e-10, equal_nan=True, msg=name)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-15), (torch.float32, 5e-7), (torch.bfloat16, 5e-7)], ids=str
)
def test_rows_sum_to_one(dtype: torch.dtype, error: float):
    """I-10. Half precision is computed in float32: its rows miss 1 by float32's rounding, not by bfloat16's 2.6e-3."""
    q, k = drawn(2, 3, 300, 16, spread=2.0), drawn(2, 3, 300, 16, seed=1)
    weights = dense_map(q.to(dtype), k.to(dtype), Scores(0.25, causal=True)).weights
    assert (weights.double().sum(-1) - 1).abs().max() < error
    groups = torch.zeros(2, 300, dtype=torch.long)
    mass = attend(q.to(dtype), k.to(dtype), None, Scores(0.25, causal=True), Wanted(("mass",), Groups.of(groups)))[1][
        "mass"
    ][..., 0]
    assert (mass.double() - 1).abs().max() < 4 * error


def test_received_attention_adds_up_to_the_rows():
    """I-11: Σ_j R_j · (rows that see j) = the number of rows, for the raw mean and for that over uniform."""
    _, (q, k, _), scores, wanted = problem(CASES["causal"], queries=11)
    got = attend(q, k, None, scores, wanted)[1]
    assert wanted.queries is not None
    valid = wanted.queries.double()
    seen = torch.ones(Q, K, dtype=torch.float64).tril()
    counts = valid @ seen  # (B, K) rows with data that see each key
    uniform = valid @ (seen / seen.sum(1, keepdim=True))
    for name, weights in (("received_mean", counts), ("received", uniform)):
        total = (got[name].nan_to_num() * weights[:, None]).sum(-1)
        torch.testing.assert_close(total, valid.sum(1)[:, None].expand(-1, H), atol=1e-11, rtol=0)


def test_refocusing_and_sink_release_sum_to_the_change_of_mass_in_every_row():
    """I-13: Δm_S = (1 − m̄_K)·ΔG − Ḡ·Δm_K (METRICS 3.2), and m_K + m_S + m_O = 1."""
    base, tuned = (of_logits(drawn(1, 4, 10, 10, seed=s, spread=2.0), ("mass", "share"), GROUPS) for s in (1, 2))
    for each in (base, tuned):
        assert (each["mass"].sum(-1) - 1).abs().max() < 1e-14
    sink, salient, share = (
        torch.stack([base[name][..., column], tuned[name][..., column]])
        for name, column in (("mass", 2), ("mass", 1), ("share", 1))
    )
    refocus = (1 - sink.mean(0)) * (share[1] - share[0])
    release = -share.mean(0) * (sink[1] - sink[0])
    assert (salient[1] - salient[0] - refocus - release).abs().max() < 1e-14
    assert refocus.abs().max() > 0.1 and release.abs().max() > 0.01


def test_a_bonus_that_grows_moves_everything_one_way():
    """I-15: more bonus on salient logits, more of their mass, share and log-odds, in every row."""
    logits, salient = drawn(1, 4, 10, 10, spread=2.0), (GROUPS == 1).double()[:, None, None]
    steps = [of_logits(logits + b * salient, ("mass", "share", "log_odds"), GROUPS) for b in (-4, -0.5, 0, 0.1, 3)]
    for name in ("mass", "share", "log_odds"):
        values = torch.stack([step[name][..., 1] for step in steps])
        assert (values.diff(dim=0) > 0).all(), name


def test_sharper_logits_have_less_entropy():
    """I-15: H falls as τ grows in softmax(τ s), because dH/dτ = −τ·Var_p(s)."""
    logits = drawn(2, 4, 10, 10)
    ladder = [of_logits(t * logits, ("entropy", "effective_keys", "renyi2")) for t in (0.0, 0.1, 0.5, 1.0, 2.0, 8.0)]
    for name in ("entropy", "effective_keys", "renyi2"):
        values = torch.stack([step[name] for step in ladder])
        assert (values.diff(dim=0) < 0).all(), name
    step, middle = 1e-4, 1.3
    high, low = (of_logits((middle + sign * step) * logits, ("entropy",))["entropy"] for sign in (1, -1))
    p = (middle * logits).softmax(-1)
    variance = (p * logits**2).sum(-1) - (p * logits).sum(-1) ** 2
    torch.testing.assert_close((high - low) / (2 * step), -middle * variance, atol=1e-7, rtol=1e-6)


def certificate(logits: Tensor) -> Tensor:
    """Least entropy of a row of n logits with ‖s − s̄‖ = σ (METRICS 4; Zhai et al. 2023, by row)."""
    n = logits.shape[-1]
    sigma = (logits - logits.mean(-1, keepdim=True)).norm(dim=-1)
    beta = (-sigma * math.sqrt(n / (n - 1))).exp()
    return ((n - 1) * beta).log1p() + sigma * math.sqrt(n * (n - 1)) * beta / (1 + (n - 1) * beta)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [2, 9, 60])
def test_no_row_has_less_entropy_than_the_size_of_its_logits_allows(n: int, spread: float):
    """I-16; equality where one logit stands out from equal ones."""
    logits = drawn(1, 8, 500, n, spread=spread)
    slack = of_logits(logits, ("entropy",))["entropy"] - certificate(logits)
    assert slack.min() > -1e-13
    one = torch.zeros_like(logits)
    one[..., n // 2] = logits[..., 0].abs()
    assert (of_logits(one, ("entropy",))["entropy"] - certificate(one)).abs().max() < 1e-12


@pytest.mark.parametrize("window", [K, K + 5])
def test_a_window_as_long_as_the_text_is_none(window: int):
    """I-19, exactly; a shorter one leaves row i with min(i + 1, w) keys."""
    _, (q, k, v), scores, wanted = problem(CASES["causal"])
    whole, windowed = (attend(q, k, v, each, wanted) for each in (scores, replace(scores, window=window)))
    assert torch.equal(whole[0], windowed[0])  # pyright: ignore[reportArgumentType]
    for name in ALL:
        torch.testing.assert_close(windowed[1][name], whole[1][name], atol=0, rtol=0, equal_nan=True, msg=name)
    visible = dense_map(q, k, replace(scores, window=4)).visible
    assert (visible.sum(-1) == torch.minimum(torch.arange(Q) + 1, torch.tensor(4))).all()


def test_relabelled_tokens_of_a_uniform_head_change_no_score():
    """I-24: which of the tokens are salient makes no difference where all are treated alike."""
    logits = torch.zeros(1, 2, 10, 10, dtype=torch.float64)
    names = tuple(name for name in STATISTICS if name not in ("share_value", "distance", "lse"))
    plain = of_logits(logits, names, GROUPS)
    for seed in range(5):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        other = of_logits(logits, names, GROUPS[:, order])
        for name in names:
            torch.testing.assert_close(other[name], plain[name], atol=1e-14, rtol=0, equal_nan=True, msg=name)
        marked = (GROUPS[0, order] == 1).numpy().astype(float)
        for score in agreement(other["received"][0, 0].numpy(), marked, np.ones(10, dtype=bool), tie=1e-9)[:1]:
            assert score == 0.5


def test_divergences_bound_each_other_and_the_entropies():
    """I-16: TV²/2 ≤ JSD ≤ min(TV, 1)·log 2, |ΔH| ≤ TV·log(n − 1) + h(TV), over 4,000 rows of all sizes."""
    n = 12
    zeros = torch.zeros(1, 1, 4000, 1, dtype=torch.float64)
    sizes = torch.linspace(0.01, 12, 4000, dtype=torch.float64)[:, None]
    base, tuned = (sizes * drawn(1, 1, 4000, n, seed=s) for s in (4, 5))
    ends = [Logits(zeros, zeros[:, :, :n], Scores(1.0, bias=logits)) for logits in (base, tuned)]
    got = pair_statistics(*ends, tuple(PAIRS))
    gap = (of_logits(tuned, ("entropy",))["entropy"] - of_logits(base, ("entropy",))["entropy"]).abs()
    jsd, tv = got["jsd"], got["tv"]
    assert (jsd - tv**2 / 2).min() > -1e-12 and (tv * math.log(2) - jsd).min() > -1e-12
    assert (tv * math.log(n - 1) + torch.special.entr(tv) + torch.special.entr(1 - tv) - gap).min() > -1e-12
