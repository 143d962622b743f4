"""Change of a matrix: hand numbers, a slow reference in Python numbers, laws, and the rounding floors."""

import math

import pytest
import torch

from attnlens.core import weights
from attnlens.core.errors import ShapeError
from attnlens.core.weights import WeightChange, coarser, pool, precision_floor, weight_change

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def slow_change(base: torch.Tensor, tuned: torch.Tensor) -> tuple[float, float, int]:
    """Both norms and the number of equal entries, one Python number at a time."""
    old, new = base.flatten().tolist(), tuned.flatten().tolist()
    delta = math.sqrt(math.fsum((b - a) ** 2 for a, b in zip(old, new, strict=True)))
    same = sum(a == b and math.copysign(1, a) == math.copysign(1, b) for a, b in zip(old, new, strict=True))
    return delta, math.sqrt(math.fsum(a**2 for a in old)), same


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    tuned = base.clone()
    tuned[2:5] += 0.01 * torch.randn(3, 11, generator=generator, dtype=torch.float64)
    return base, tuned


def test_hand_number():
    change = weight_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]))
    assert change == WeightChange(delta_norm=1.0, base_norm=5.0, entries=2, identical=1, along=4.0)
    assert change.relative == 0.2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 10, 2**20])
def test_equals_the_slow_reference(pair, dtype, device, chunk, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", chunk)
    base, tuned = (tensor.to(device, dtype) for tensor in pair)
    change = weight_change(base, tuned)
    delta, norm, same = slow_change(base, tuned)
    assert change.delta_norm == pytest.approx(delta, rel=1e-14)
    assert change.base_norm == pytest.approx(norm, rel=1e-14)
    assert (change.entries, change.identical) == (77, same)
    assert change.relative == pytest.approx(delta / norm, rel=1e-14)


def test_float64_even_where_the_dtype_would_overflow_or_round():
    large = torch.full((4, 4), 6e4, dtype=torch.float16)  # the square overflows float16
    assert weight_change(large, torch.zeros_like(large)).base_norm == 4 * float(large[0, 0])
    many = torch.full((300, 300), 1e-3, dtype=torch.bfloat16)  # a bfloat16 sum would stop growing
    assert weight_change(many, many).base_norm == pytest.approx(300 * float(many[0, 0]), rel=1e-12)


def test_a_matrix_against_itself_is_exactly_unchanged(pair):
    change = weight_change(pair[0], pair[0].clone())
    assert (change.delta_norm, change.relative) == (0.0, 0.0)
    assert change.identical == change.entries == 77


def test_swapped_arguments_keep_the_change_and_exchange_the_base(pair):
    base, tuned = pair
    there, back = weight_change(base, tuned), weight_change(tuned, base)
    assert there.delta_norm == back.delta_norm and there.identical == back.identical
    assert back.base_norm == weight_change(tuned, tuned).base_norm


def test_layout_and_gradient_do_not_matter(pair):
    base, tuned = pair
    expected = weight_change(base, tuned)
    turned = weight_change(base.T.contiguous().T, torch.nn.Parameter(tuned))
    assert turned == expected
    assert weight_change(base[None].expand(2, 7, 11), tuned[None].expand(2, 7, 11)).entries == 154


def test_identical_means_bit_for_bit_across_dtypes():
    base = torch.tensor([1.0, 0.0, 1 / 3, 2.0])
    assert weight_change(base, torch.tensor([1.0, -0.0, 1 / 3, 2.5])).identical == 2
    assert weight_change(base, base.bfloat16()).identical == 3, "1/3 is not a bfloat16"
    assert weight_change(base[2:3], base[2:3].double()).identical == 1


def test_nan_means_no_relative_change_exists():
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert math.isnan(weight_change(zeros, ones).relative)
    assert weight_change(zeros, zeros).relative == 0.0
    assert weight_change(ones, zeros).relative == 1.0
    assert math.isnan(weight_change(zeros[:0], zeros[:0]).relative)
    assert math.isnan(weight_change(ones, ones * math.nan).relative)


def test_pooling_is_not_a_mean_of_ratios():
    pooled = pool([WeightChange(3.0, 6.0, 10, 1), WeightChange(4.0, 8.0, 20, 2)])
    assert pooled == WeightChange(5.0, 10.0, 30, 3) and pooled.relative == 0.5
    # A tiny matrix that doubled hardly counts beside a large one that stayed: the mean of ratios would say .5.
    assert pool([WeightChange(1.0, 1.0, 1, 0), WeightChange(0.0, 100.0, 9, 9)]).relative == pytest.approx(
        0.01, abs=1e-6
    )
    assert math.isnan(pool([]).relative)


def test_pooling_the_rows_gives_the_matrix_in_any_order(pair):
    base, tuned = pair
    rows = [weight_change(a, b) for a, b in zip(base, tuned, strict=True)]
    whole, pooled = weight_change(base, tuned), pool(rows)
    assert pooled.delta_norm == pytest.approx(whole.delta_norm, rel=1e-14)
    assert pooled.base_norm == pytest.approx(whole.base_norm, rel=1e-14)
    assert (pooled.entries, pooled.identical) == (whole.entries, whole.identical)
    assert pool(reversed(rows)) == pooled
    assert pool(change for change in rows) == pooled


def rounded(base: torch.Tensor, dtype: torch.dtype) -> float:
    """The change that storing `base` as `dtype` makes, by the definition."""
    return weight_change(base, base.to(dtype)).relative


@pytest.mark.parametrize(("dtype", "floor"), [(torch.bfloat16, 1.66e-3), (torch.float16, 2.07e-4)])
def test_rounding_floor_of_a_gaussian_matrix(dtype, floor):
    base = 0.04 * torch.randn(384, 384, generator=torch.Generator().manual_seed(0))
    assert precision_floor(base, base.to(dtype)) == rounded(base, dtype) == pytest.approx(floor, rel=0.02)


def test_rounding_floor_by_hand_and_where_nothing_is_lost():
    # Between 1 and 2 bfloat16 steps by 2^-7: 1 + 2^-9 falls to 1.
    base, ones = torch.tensor([1 + 2**-9]), torch.ones(5)
    assert precision_floor(base, base.bfloat16()) == pytest.approx(2**-9 / (1 + 2**-9), rel=1e-12)
    assert precision_floor(ones, ones.bfloat16()) == 0.0
    assert precision_floor(ones.bfloat16(), ones.bfloat16()) == 0.0


def test_different_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"one shape; got \(2, 3\) and \(3, 2\)"):
        weight_change(torch.ones(2, 3), torch.ones(3, 2))


def test_the_floor_is_that_of_the_narrower_dtype_on_either_side():
    wide = 0.04 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    narrow = wide.bfloat16()
    assert precision_floor(wide, narrow) == weight_change(wide, narrow).relative == rounded(wide, torch.bfloat16)
    assert precision_floor(narrow, wide) == weight_change(narrow, wide).relative, "relative to the base's norm"
    assert precision_floor(narrow, wide) != precision_floor(wide, narrow)
    assert precision_floor(wide, wide + 1) == precision_floor(narrow, narrow + 1) == 0.0
    half = wide.half()
    assert precision_floor(half, narrow) == rounded(half, torch.bfloat16), "bfloat16 has fewer digits"
    assert precision_floor(10 * narrow, half) == pytest.approx(rounded(half, torch.bfloat16) / 10, rel=1e-2)


def test_the_floor_goes_by_what_is_stored_and_not_by_what_it_was_computed_in():
    """A matrix that an adapter makes of a narrow base is in float64 and was never rounded."""
    narrow = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    adapted = narrow.double() * 1.001
    half, full = torch.bfloat16, torch.float32
    assert precision_floor(narrow, adapted) > 0 == precision_floor(narrow, adapted, (half, half))
    assert precision_floor(adapted, narrow, (half, half)) == 0
    wide = narrow.float() * 1.001
    assert precision_floor(wide, narrow.double(), (full, half)) == rounded(wide, half)
    assert precision_floor(narrow.double(), wide, (half, full)) == pytest.approx(rounded(wide, half), rel=2e-3)
    assert [coarser(*both) for both in ((half, full), (full, half), (torch.float16, half))] == [half] * 3


def cosine(base: torch.Tensor, tuned: torch.Tensor) -> float:
    return weight_change(base, tuned).cosine


def test_cosine_by_hand_and_in_chunks(pair, monkeypatch):
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx(24 / 25, rel=1e-15)
    base, tuned = pair
    dots = math.fsum(a * b for a, b in zip(base.flatten().tolist(), tuned.flatten().tolist(), strict=True))
    lengths = slow_change(base, base)[1] * slow_change(tuned, tuned)[1]
    for chunk in (1, 10, 2**20):
        monkeypatch.setattr(weights, "CHUNK", chunk)
        assert cosine(base, tuned) == pytest.approx(dots / lengths, rel=1e-14)
    assert cosine(base, base.clone()) == 1.0 and cosine(base, -base) == -1.0
    assert cosine(base, 3 * base) == pytest.approx(1, rel=1e-15)
    assert cosine(base, tuned) == pytest.approx(cosine(tuned, base), rel=1e-15)
    assert math.isnan(cosine(base, torch.zeros_like(base)))
