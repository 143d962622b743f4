"""Moments: a hand number, a slow reference with exact fractions, and merging at every cut."""

from fractions import Fraction

import numpy as np
import pytest

from attnlens.core.errors import ShapeError
from attnlens.core.moments import Moments


def slow_moments(column: list[float]) -> tuple[int, float, float]:
    """n, mean and Σ (x − mean)² in exact fractions."""
    known = [Fraction(value) for value in column if value == value]
    if not known:
        return 0, float("nan"), 0.0
    mean = sum(known, Fraction(0)) / len(known)
    return len(known), float(mean), float(sum(((value - mean) ** 2 for value in known), Fraction(0)))


def assert_same(left: Moments, right: Moments) -> None:
    np.testing.assert_array_equal(left.n, right.n)
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-13)
    # A mean of 1e6 has an error of 1e6 eps, and so have deviations of size 1; Σx² − n mean² would lose 1e12 eps.
    np.testing.assert_allclose(left.m2, right.m2, rtol=8e6 * np.finfo(np.float64).eps)


@pytest.fixture
def data() -> np.ndarray:
    x = np.random.default_rng(0).lognormal(size=(9, 2, 3)) + 1e6
    x[3, 0, 0] = x[:4, 1, 1] = x[:, 0, 2] = np.nan
    return x


def test_hand_number():
    moments = Moments.of([1, 2, np.nan, 6])
    assert (moments.n, moments.mean, moments.m2) == (3, 3.0, 14.0)
    assert moments.variance == 7.0
    assert moments.standard_deviation == np.sqrt(7)


def test_equals_exact_fractions(data: np.ndarray):
    moments = Moments.of(data)
    for i, j in np.ndindex(2, 3):
        n, mean, m2 = slow_moments(data[:, i, j].tolist())
        assert moments.n[i, j] == n
        np.testing.assert_allclose(moments.mean[i, j], mean, rtol=1e-15)
        np.testing.assert_allclose(moments.m2[i, j], m2, rtol=8e6 * np.finfo(np.float64).eps)


def test_merging_at_every_cut_equals_the_whole(data: np.ndarray):
    for cut in range(len(data) + 1):
        assert_same(Moments.of(data[:cut]).merge(Moments.of(data[cut:])), Moments.of(data))


def test_merging_one_by_one_equals_the_whole(data: np.ndarray):
    total = Moments.of(data[:0])
    for row in data:
        total = total.merge(Moments.of(row[None]))
    assert_same(total, Moments.of(data))


def test_merging_with_nothing_changes_no_bit(data: np.ndarray):
    moments, empty = Moments.of(data), Moments.of(data[:0])
    for merged in (moments.merge(empty), empty.merge(moments)):
        for field in ("n", "mean", "m2"):
            np.testing.assert_array_equal(getattr(merged, field), getattr(moments, field))


def test_merging_leaves_its_inputs_alone(data: np.ndarray):
    first, second = Moments.of(data[:4]), Moments.of(data[4:])
    before = first.n.copy(), first.mean.copy(), first.m2.copy()
    first.merge(second)
    for field, value in zip(("n", "mean", "m2"), before, strict=True):
        np.testing.assert_array_equal(getattr(first, field), value)


def test_no_data_is_nan_and_one_value_has_no_variance():
    empty = Moments.of(np.empty((0, 2)))
    assert empty.n.tolist() == [0, 0] and np.isnan(empty.mean).all() and np.isnan(empty.variance).all()
    single = Moments.of([[5.0, np.nan]])
    assert single.mean[0] == 5.0 and np.isnan(single.mean[1]) and np.isnan(single.variance).all()


def test_a_constant_is_its_mean_without_spread():
    moments = Moments.of(np.full(7, 0.1))  # the sum of seven .1 over seven is not .1 in floating point
    assert moments.mean == 0.1 and moments.m2 == 0.0


def test_negated_data_are_the_mirror_image_bit_for_bit(data: np.ndarray):
    moments, mirrored = Moments.of(data), Moments.of(-data)
    np.testing.assert_array_equal(mirrored.mean, -moments.mean)
    np.testing.assert_array_equal(mirrored.m2, moments.m2)


def test_wrong_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"equal shapes; got \(2,\) and \(3,\)"):
        Moments.of(np.ones((4, 2))).merge(Moments.of(np.ones((4, 3))))
    with pytest.raises(ShapeError, match="leading axis"):
        Moments.of(3.0)
