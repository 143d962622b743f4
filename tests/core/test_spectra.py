"""Singular values, ranks and turns of a change: hand numbers, slow references, and laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnlens.core import spectra
from attnlens.core.errors import ShapeError
from attnlens.core.spectra import LowRank, Spectrum, change_spectrum, subspace_turn

SHAPES = [(5, 5), (9, 4), (4, 9), (1, 6), (6, 1), (70, 3), (3, 70)]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def power_iteration(matrix: np.ndarray) -> float:
    """The largest singular value, by repeated multiplication alone."""
    vector = np.ones(matrix.shape[1])
    for _ in range(20_000):
        vector = matrix.T @ (matrix @ vector)
        vector /= math.sqrt(math.fsum(vector**2))
    return math.sqrt(math.fsum((matrix @ vector) ** 2))


def slow_ranks(values: list[float]) -> tuple[float, float]:
    """Stable and effective rank, one Python number at a time."""
    shares = [value / math.fsum(values) for value in values]
    entropy = -math.fsum(share * math.log(share) for share in shares if share > 0)
    return math.fsum(value**2 for value in values) / max(values) ** 2, math.exp(entropy)


def test_hand_numbers():
    spectrum = change_spectrum(torch.eye(2), torch.diag(torch.tensor([4.0, 5.0])))
    assert spectrum.values.tolist() == pytest.approx([4, 3], rel=1e-15)
    assert spectrum.norm == pytest.approx(5, rel=1e-15)
    assert (spectrum.spectral_norm, spectrum.nuclear_norm) == pytest.approx((4, 7), rel=1e-15)
    assert spectrum.stable_rank == pytest.approx(25 / 16, rel=1e-15)
    assert spectrum.effective_rank == pytest.approx(math.exp(-(4 / 7 * math.log(4 / 7) + 3 / 7 * math.log(3 / 7))))
    equal = Spectrum(torch.full((6,), 2.0, dtype=torch.float64))
    assert (equal.stable_rank, equal.effective_rank) == pytest.approx((6, 6), rel=1e-14)


@pytest.mark.parametrize("chunk", [1, 40, 2**20])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_slow_reference(shape: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spectra, "CHUNK", chunk)
    base, tuned = drawn(*shape), drawn(*shape, seed=1)
    spectrum = change_spectrum(base, tuned)
    delta = tuned.numpy() - base.numpy()
    assert len(spectrum.values) == min(shape)
    assert spectrum.spectral_norm == pytest.approx(power_iteration(delta), rel=1e-9)
    assert spectrum.values.numpy() == pytest.approx(np.linalg.svd(delta, compute_uv=False), rel=1e-11)
    assert spectrum.norm == pytest.approx(math.sqrt(math.fsum(delta.ravel() ** 2)), rel=1e-13)
    assert spectrum.nuclear_norm == pytest.approx(math.fsum(np.linalg.svd(delta, compute_uv=False)), rel=1e-12)
    ranks = slow_ranks(spectrum.values.tolist())
    assert (spectrum.stable_rank, spectrum.effective_rank) == pytest.approx(ranks, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_laws_of_a_spectrum(shape: tuple[int, int]):
    base, tuned = drawn(*shape), drawn(*shape, seed=1)
    there, back = change_spectrum(base, tuned), change_spectrum(tuned, base)
    assert torch.equal(there.values, back.values), "swapping the models leaves the size of a change"
    assert change_spectrum(base.T, tuned.T).values.numpy() == pytest.approx(there.values.numpy(), rel=1e-12)
    rank = min(shape)
    assert 1 <= there.stable_rank <= rank * (1 + 1e-12) and 1 <= there.effective_rank <= rank * (1 + 1e-12)
    assert there.spectral_norm <= there.norm * (1 + 1e-12) <= there.nuclear_norm * (1 + 1e-12)
    old, new = (torch.linalg.svdvals(matrix) for matrix in (base, tuned))
    assert (new - old).abs().max() <= there.spectral_norm * (1 + 1e-12), "Weyl's bound"


def test_no_change_is_exactly_zero():
    zero = change_spectrum(drawn(70, 3), drawn(70, 3))
    assert zero.values.tolist() == [0, 0, 0]
    assert (zero.norm, zero.spectral_norm, zero.nuclear_norm) == (0, 0, 0)
    assert math.isnan(zero.stable_rank) and math.isnan(zero.effective_rank)
    empty = change_spectrum(torch.ones(0, 3), torch.ones(0, 3))
    assert (len(empty.values), empty.spectral_norm) == (0, 0.0)


def test_low_precision_is_widened():
    base, tuned = drawn(9, 4, dtype=torch.bfloat16), drawn(9, 4, seed=1)
    assert torch.equal(change_spectrum(base, tuned).values, change_spectrum(base.double(), tuned).values)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.floats(-3, 3), st.integers(0, 99))
def test_factors_give_the_spectrum_of_their_product(rows: int, columns: int, rank: int, scale: float, seed: int):
    change = LowRank(drawn(rows, rank, seed=seed), drawn(rank, columns, seed=seed + 1), scale)
    base = torch.zeros(rows, columns, dtype=torch.float64)
    merged, factored = change_spectrum(base, change.dense()), change.spectrum()
    count = len(factored.values)
    top = max(merged.spectral_norm, 1e-300)
    assert count == min(rank, rows, columns)
    assert factored.values.numpy() / top == pytest.approx(merged.values[:count].numpy() / top, abs=1e-13)
    assert (merged.values[count:] <= 1e-13 * top).all(), "the rank is at most r"
    assert factored.norm == pytest.approx(merged.norm, rel=1e-12)
    if scale and factored.norm:
        assert factored.stable_rank <= count * (1 + 1e-12)


def test_factors_by_hand():
    change = LowRank(torch.tensor([[3.0], [0.0], [4.0]]), torch.tensor([[0.0, 2.0]]), 0.5)
    assert change.dense().tolist() == [[0, 3], [0, 0], [0, 4]]
    assert change.spectrum().values.tolist() == pytest.approx([5], rel=1e-15)
    assert change.unchanged() == 4 and change.shape == (3, 2)
    assert LowRank(change.left, change.right, -0.5).spectrum().values.tolist() == pytest.approx([5], rel=1e-15)


def test_factors_of_zeros_are_exactly_no_change():
    for left, right, scale in (
        (torch.zeros(8, 2), drawn(2, 6), 2.0),
        (drawn(8, 2), torch.zeros(2, 6), 2.0),
        (drawn(8, 2), drawn(2, 6), 0.0),
    ):
        change = LowRank(left.double(), right.double(), scale)
        assert change.spectrum().values.tolist() == [0, 0] and change.unchanged() == 48
        assert not change.dense().any()


def test_a_turn_by_hand():
    turn = subspace_turn(torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 2.0])))
    assert (turn.k, turn.gap, turn.spectral_norm) == (1, 2, 2)
    assert turn.angle == pytest.approx(math.pi / 2) and turn.overlap == pytest.approx(-1)
    angle = 1e-3
    basis = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    base = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    turned = subspace_turn(base, basis @ base @ basis.T)
    assert turned.angle == pytest.approx(angle, rel=1e-9)
    assert turned.overlap == pytest.approx(2 * math.cos(angle) ** 2 - 1, rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 40), (90, 40), (40, 90)])
def test_turns_equal_the_slow_reference(shape: tuple[int, int]):
    base, tuned = drawn(*shape), drawn(*shape) + 0.05 * drawn(*shape, seed=1)
    turn = subspace_turn(base, tuned, k=5)
    sides = [np.linalg.svd(m.numpy() if shape[0] <= shape[1] else m.numpy().T) for m in (base, tuned)]
    cosines = np.linalg.svd(sides[0][0][:, :5].T @ sides[1][0][:, :5], compute_uv=False)
    assert turn.angle == pytest.approx(math.acos(cosines.min()), rel=1e-6)
    assert turn.overlap == pytest.approx((float((cosines**2).mean()) - 5 / 40) / (1 - 5 / 40), rel=1e-9)
    assert turn.gap == pytest.approx(sides[0][1][4] / sides[0][1][5], rel=1e-10)
    assert turn.spectral_norm == pytest.approx(sides[0][1][0], rel=1e-12)


def test_laws_of_a_turn():
    base, tuned = drawn(60, 40), drawn(60, 40) + 0.05 * drawn(60, 40, seed=1)
    same = subspace_turn(base, base.clone())
    assert same.angle < 1e-14 * 40 and same.overlap == pytest.approx(1, abs=1e-14)
    there, back = subspace_turn(base, tuned), subspace_turn(tuned, base)
    assert (there.angle, there.overlap) == pytest.approx((back.angle, back.overlap), rel=1e-9)
    assert subspace_turn(3 * base, tuned).angle == pytest.approx(there.angle, rel=1e-9)
    strangers = [subspace_turn(drawn(60, 40, seed=i), drawn(60, 40, seed=i + 50)).overlap for i in range(30)]
    assert abs(np.mean(strangers)) < 0.03, "0 is what random subspaces have"
    assert there.k == 16 and subspace_turn(drawn(6, 9), drawn(6, 9, seed=1)).k == 3


def test_where_no_subspace_can_turn():
    flat = subspace_turn(torch.full((1, 4), 2.0), torch.ones(1, 4))
    assert flat.k == 0 and flat.spectral_norm == pytest.approx(4)
    assert all(math.isnan(value) for value in (flat.angle, flat.overlap, flat.gap))
    assert subspace_turn(torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2)).gap == math.inf


def test_other_shapes_are_refused():
    for function in (change_spectrum, subspace_turn):
        with pytest.raises(ShapeError, match=r"two matrices of one shape; got \(2, 3\) and \(3, 2\)"):
            function(torch.ones(2, 3), torch.ones(3, 2))
        with pytest.raises(ShapeError, match="two matrices"):
            function(torch.ones(2), torch.ones(2))
    with pytest.raises(ShapeError, match=r"needed factors \(M, r\) and \(r, N\); got \(2, 3\) and \(2, 3\)"):
        LowRank(torch.ones(2, 3), torch.ones(2, 3), 1.0)
