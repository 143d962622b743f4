"""CKA and relative change: hand numbers, the definition over sets of four, laws (I-22), streaming."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attnlens.core.errors import ShapeError
from attnlens.core.similarity import Similarity, cka, hsic, relative_change


def states(tokens: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((tokens, width)))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def slow_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The U-statistic itself: the mean over all ordered sets of four different tokens."""
    n = len(x)
    left, right = x @ x.T, y @ y.T
    terms = [
        left[i, j] * (right[i, j] + right[q, r] - 2 * right[i, q]) for i, j, q, r in itertools.permutations(range(n), 4)
    ]
    return math.fsum(terms) / len(terms)


def biased(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_by_hand():
    x, y = column(1, 1, 0, 0), column(1, 0, 1, 0)
    assert hsic(x, y) == pytest.approx(-1 / 12, rel=1e-12)
    assert hsic(x, x) == pytest.approx(1 / 6, rel=1e-12)
    assert cka(x, y) == pytest.approx(-1 / 2, rel=1e-12)
    assert relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])).item() == pytest.approx(0.2)


@pytest.mark.parametrize(("tokens", "widths"), [(4, (2, 3)), (7, (3, 3)), (7, (20, 30)), (8, (2, 20))])
def test_hsic_is_the_mean_over_sets_of_four(tokens: int, widths: tuple[int, int]):
    x, y = states(tokens, widths[0]) + 1, states(tokens, widths[1], 1)
    y[:, :2] += x[:, :2]
    assert hsic(x, y) == pytest.approx(slow_hsic(x.numpy(), y.numpy()), rel=1e-9)
    assert cka(x, y) == pytest.approx(hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y)), rel=1e-12)


@pytest.mark.parametrize("width", [5, 60])
def test_laws_of_invariance(width: int):
    x = states(40, width)
    y = x + 0.5 * states(40, width, 1)
    rotation = torch.linalg.qr(states(width, width, 2))[0]
    expected = cka(x, y)
    assert 0.5 < expected < 1
    for changed in (x @ rotation, x * -7.0, x + 100 * states(1, width, 3), torch.hstack([x, x])):
        assert cka(changed, y) == pytest.approx(expected, rel=1e-9)
        assert cka(y, changed) == pytest.approx(expected, rel=1e-9)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert cka(x[order], y[order]) == pytest.approx(expected, rel=1e-9)
    assert cka(x[order], y) < 0.5, "which token is which matters"


def test_a_model_with_itself_is_exactly_one():
    for tokens, width in ((5, 30), (100, 10)):
        x = states(tokens, width)
        assert cka(x, x) == 1.0 and cka(x.half(), x.half()) == 1.0
        assert cka(x, x @ torch.linalg.qr(states(width, width, 1))[0]) == pytest.approx(1, abs=1e-12)


def test_independent_noise_is_near_zero_where_the_biased_form_is_not():
    values = [(cka(x, y), biased(x, y)) for x, y in ((states(50, 384, s), states(50, 384, s + 50)) for s in range(20))]
    debiased, plain = np.mean(values, 0)
    assert abs(debiased) < 0.01  # standard error .003
    assert plain == pytest.approx(0.884, abs=0.01)
    assert min(values)[0] < 0, "about 0, not above 0"


def test_batches_average_before_the_ratio():
    x = states(90, 12)
    y = x + states(90, 12, 1)
    cuts = [slice(0, 30), slice(30, 60), slice(60, 90)]
    total = Similarity()
    for cut in cuts:
        total = total.merge(Similarity.of(x[cut], y[cut]))
    mean = [np.mean([hsic(a[cut], b[cut]) for cut in cuts]) for a, b in ((x, y), (x, x), (y, y))]
    assert total.cka == pytest.approx(mean[0] / math.sqrt(mean[1] * mean[2]), rel=1e-12)
    assert total.cka == pytest.approx(cka(x, y), abs=0.05)
    assert (total.tokens, total.skipped) == (90, 0)
    uneven = Similarity.of(x[:80], y[:80]).merge(Similarity.of(x[80:], y[80:]))
    assert uneven.cross == pytest.approx(80 * hsic(x[:80], y[:80]) + 10 * hsic(x[80:], y[80:]), rel=1e-12)


@pytest.mark.parametrize("cut", [0, 4, 20, 36, 40])
def test_merge_is_associative_and_empty_parts_are_nothing(cut: int):
    x, y = states(40, 6), states(40, 6, 1)
    parts = Similarity.of(x[:cut], y[:cut]), Similarity.of(x[cut:], y[cut:])
    assert parts[0].merge(parts[1]) == parts[1].merge(parts[0])
    assert Similarity().merge(parts[0]) == parts[0]
    assert parts[0].merge(parts[1]).tokens == 40


def test_batches_of_three_are_counted_as_skipped():
    part = Similarity.of(states(3, 5), states(3, 5, 1))
    assert (part.tokens, part.skipped) == (0, 3) and math.isnan(part.cka)
    assert math.isnan(hsic(states(3, 5), states(3, 5)))


def test_no_geometry_gives_no_number():
    x = states(10, 5)
    assert math.isnan(cka(x, torch.full((10, 5), 0.1)))
    assert math.isnan(Similarity(1.0, -1e-9, 1.0, 10).cka) and math.isnan(Similarity(1.0, 1.0, 0.0, 10).cka)
    assert math.isnan(cka(torch.full((10, 5), math.nan), x))


def test_low_precision_and_large_offsets_stay_close():
    x = states(60, 20).float()
    y = x + 0.3 * states(60, 20, 1).float()
    expected = cka(x.double(), y.double())
    assert cka(x.bfloat16(), y.bfloat16()) == pytest.approx(expected, abs=2e-3)
    assert cka(x.double() + 1e6, y) == pytest.approx(expected, rel=1e-6)


def test_relative_change_laws():
    base, tuned = states(6, 8).reshape(2, 3, 8), states(6, 8, 1).reshape(2, 3, 8)
    got = relative_change(base, tuned)
    expected = np.linalg.norm(tuned - base, axis=-1) / np.linalg.norm(base, axis=-1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    assert (relative_change(base, base) == 0).all()
    assert relative_change(base, 3 * base).numpy() == pytest.approx(2.0)
    np.testing.assert_allclose(relative_change(-5 * base, -5 * tuned).numpy(), expected, rtol=1e-12)
    zeros = torch.zeros(2, 4)
    assert (relative_change(zeros, zeros) == 0).all() and relative_change(zeros, zeros + 1).isnan().all()


def test_messages():
    with pytest.raises(ShapeError, match=r"states \(N, P\) and \(N, Q\).*got \(5, 3\) and \(6, 3\)"):
        cka(states(5, 3), states(6, 3))
    with pytest.raises(ShapeError, match=r"must have one shape; got \(5, 3\) and \(5, 4\)"):
        relative_change(states(5, 3), states(5, 4))
