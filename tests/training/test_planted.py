"""The softer planted case: what attenuated gradients let each score see. Hit rates are reported by the bench."""

import pytest

from tests.bench.bench_planted import BLOCKS, chosen, hit_rate


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("score", ["weight_change", "grad_ratio"])
def test_blocks_that_alone_can_change_are_found(score: str, optimizer: str):
    assert hit_rate(score, 0.0, optimizer, seeds=3) == 1


def test_gradient_norms_see_what_is_attenuated_and_rates_under_adam_do_not():
    """Adam divides a constant factor out: at a tenth of the gradient the rate is the same, under SGD a tenth."""
    for optimizer, expected in (("adamw", 1.0), ("sgd", 0.1)):
        planted, faint = chosen("weight_change", 0.1, optimizer, 0)
        _, whole = chosen("weight_change", 1.0, optimizer, 0)
        for number in range(BLOCKS):
            ratio = faint.scores[number] / whole.scores[number]
            assert ratio == pytest.approx(1.0 if number in planted else expected, rel=0.15), (optimizer, number)
    assert hit_rate("grad_ratio", 0.01, "adamw", seeds=3) == 1
    assert hit_rate("weight_change", 0.01, "sgd", seeds=3) == 1
