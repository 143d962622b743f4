"""The estimated spectrum against the whole decomposition: within its stated errors, also where it is hard."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attnlens.core import lanczos
from attnlens.core.errors import ShapeError
from attnlens.core.lanczos import Estimate, estimated_spectrum
from attnlens.core.spectra import Spectrum


def rotation(side: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(side, side, generator=torch.Generator().manual_seed(seed)))[0]


def with_values(values: Tensor, rows: int) -> Tensor:
    """A matrix (rows, N) with these singular values."""
    return rotation(rows, 1)[:, : len(values)] * values @ rotation(len(values), 2).T


SIDE = 320
MATRICES = {
    "random": lambda: torch.randn(900, SIDE, generator=torch.Generator().manual_seed(3)),
    "square": lambda: torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(4)),
    "wide": lambda: 1e-6 * torch.randn(SIDE, 700, generator=torch.Generator().manual_seed(5)),
    "power law": lambda: with_values(torch.arange(1, SIDE + 1).float() ** -1.0, 400),
    "two sizes": lambda: with_values(torch.cat([torch.full((10,), 50.0), torch.ones(SIDE - 10)]), 400),
    "one direction": lambda: with_values(torch.cat([torch.ones(1), torch.zeros(SIDE - 1)]), 400),
    "low rank and noise": lambda: (
        with_values(torch.cat([torch.arange(8, 0, -1).float(), torch.zeros(SIDE - 8)]), 400)
        + 0.01 * torch.randn(400, SIDE, generator=torch.Generator().manual_seed(6))
    ),
}


def decomposed(matrix: Tensor) -> Spectrum:
    return Spectrum(torch.linalg.svdvals(matrix.double()))


def within(found: Estimate, true: Spectrum, slack: float = 1e-6) -> None:
    """Every number lies within its error of the true one."""
    for name in ("nuclear_norm", "effective_rank"):
        got, want, error = (getattr(found, name), getattr(true, name), getattr(found, f"{name}_error"))
        assert abs(want / got - 1) <= error + slack, f"{name} {got} ± {error:.1%}, not {want}"
    assert found.spectral_norm * (1 - slack) <= true.spectral_norm * (1 + slack)
    assert true.spectral_norm <= found.spectral_norm * (1 + found.spectral_norm_error + slack)
    error, rounding = found.stable_rank_error, 2 * slack  # a square
    assert found.stable_rank * (1 - error - rounding) <= true.stable_rank <= found.stable_rank * (1 + rounding)
    assert found.norm == pytest.approx(true.norm, rel=1e-6)


@pytest.mark.parametrize("name", MATRICES)
def test_within_its_errors(name: str):
    matrix = MATRICES[name]()
    within(estimated_spectrum(matrix), decomposed(matrix))


def test_errors_are_small_where_they_can_be():
    """Of a change like that of a tuned weight matrix: the sums to a hundredth, the largest value to two."""
    found = estimated_spectrum(MATRICES["random"]())
    assert found.nuclear_norm_error < 0.01 and found.effective_rank_error < 0.01 and found.spectral_norm_error < 0.02


def test_equal_values_by_hand():
    found = estimated_spectrum(3 * rotation(SIDE, 7))
    assert found.spectral_norm == pytest.approx(3, rel=1e-5) and found.nuclear_norm == pytest.approx(3 * SIDE, rel=1e-5)
    assert found.effective_rank == pytest.approx(SIDE, rel=1e-4) and found.effective_rank_error < 1e-5
    assert found.stable_rank == pytest.approx(SIDE, rel=1e-4)


def test_as_many_steps_as_directions_leave_only_the_probes_error():
    """The quadrature of a whole Krylov space is exact, and finds the largest value."""
    matrix = torch.randn(40, 12, generator=torch.Generator().manual_seed(8))
    found, true = estimated_spectrum(matrix), decomposed(matrix)
    assert found.spectral_norm == pytest.approx(true.spectral_norm, rel=1e-5) and found.spectral_norm_error == 0
    within(found, true)


def test_the_size_does_not_matter_nor_the_side():
    matrix = MATRICES["random"]()
    found, scaled, turned = (estimated_spectrum(each) for each in (matrix, 1e-8 * matrix, matrix.T))
    assert scaled.nuclear_norm == pytest.approx(1e-8 * found.nuclear_norm, rel=1e-4)
    assert scaled.effective_rank == pytest.approx(found.effective_rank, rel=1e-4)
    assert turned.spectral_norm == pytest.approx(found.spectral_norm, rel=1e-5)


def test_the_intervals_hold_as_often_as_they_say():
    """95 % intervals of the nuclear norm, over matrices: of 60 at least 52 hold (binomial, a chance of 1e-3)."""
    held = 0
    for seed in range(60):
        matrix = torch.randn(150, 100, generator=torch.Generator().manual_seed(seed + 100))
        found, true = estimated_spectrum(matrix), decomposed(matrix)
        held += abs(true.nuclear_norm / found.nuclear_norm - 1) <= found.nuclear_norm_error
    assert held >= 52


def test_products_in_bfloat16_are_within_their_errors(monkeypatch: pytest.MonkeyPatch):
    for name in ("random", "square", "low rank and noise"):
        matrix = MATRICES[name]().bfloat16()
        for quick in (True, False):
            monkeypatch.setattr(lanczos, "_multiplies_bfloat16", lambda device, quick=quick: quick)
            within(estimated_spectrum(matrix), decomposed(matrix), slack=1e-3)


def test_few_directions_are_not_drowned_in_rounding(monkeypatch: pytest.MonkeyPatch):
    """A matrix of whole numbers and rank 2, which bfloat16 holds exactly, where products in bfloat16 would not."""
    monkeypatch.setattr(lanczos, "_multiplies_bfloat16", lambda device: True)
    rng = np.random.default_rng(0)
    factors = [torch.tensor(rng.integers(-3, 4, size)).float() for size in ((400, 2), (2, SIDE))]
    matrix = factors[0] @ factors[1]
    assert torch.equal(matrix.bfloat16().float(), matrix)
    within(estimated_spectrum(matrix.bfloat16()), decomposed(matrix))


def test_no_change_is_exactly_zero_and_what_is_no_number_stays_so():
    none = estimated_spectrum(torch.zeros(30, 20))
    assert none.norm == none.spectral_norm == none.nuclear_norm == 0 and math.isnan(none.effective_rank)
    assert math.isnan(none.stable_rank)
    assert math.isnan(estimated_spectrum(torch.full((30, 20), torch.nan)).norm)
    with pytest.raises(ShapeError, match="needed a matrix"):
        estimated_spectrum(torch.ones(3))


def test_the_bound_by_hand():
    """N = 2,048, 16 steps, 16 probes: √ε = (ln(1.648 · 45.25) + 20.72 / 16) / 31 = .1808, 1/√(1 − ε) − 1 = 1.68 %."""
    assert lanczos._bound(2048, 16) == pytest.approx(0.0168, abs=1e-4)
    assert lanczos._bound(16, 16) == 0 and lanczos._bound(2048, 1) == math.inf
