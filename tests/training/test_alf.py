"""The layer controller in a plain loop: hand numbers, planted cases, and what must not move."""

import doctest
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForSequenceClassification, BertConfig, BertForSequenceClassification

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.core.errors import Diverged, TrainingError, UnknownName, UnsupportedModel
from attnlens.training import alf
from attnlens.training.alf import LayerController, Plan, capacity
from attnlens.training.importance import SCORES

QUICK = Plan(k=2, warmup=4, probe=4, run=3, skip=1)
SHAPE: dict[str, Any] = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 30,
    "num_labels": 3,
}
PROBED = ("weight_change", "grad_ratio", "inverse")


def bert(seed: int = 0, blocks: int = 4) -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            **SHAPE,
            num_hidden_layers=blocks,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=16,
        )
        return BertForSequenceClassification(config).train()


def bart() -> BartForSequenceClassification:
    """Two stacks: blocks 0 and 1 encode, 2 and 3 decode and are larger."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BartConfig(
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 8),  # pyright: ignore
            **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),  # pyright: ignore
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),  # pyright: ignore
            vocab_size=30,
            max_position_embeddings=16,
            num_labels=3,
        )
        return BartForSequenceClassification(config).train()


class Loop:
    """A plain training loop over batches of 24 rows; the optimizer holds the embeddings too."""

    def __init__(self, model, plan: Plan, *, decay: float = 0.0, rate: float = 1e-2):
        self.model = model
        names = head_parameters(model)
        self.head = [parameter for name, parameter in model.named_parameters() if name in names]
        self.blocks = [list(block.parameters()) for block in transformer_blocks(model)]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        self.controller = LayerController(self.blocks, self.head, self.optimizer, plan)
        self.random = torch.Generator().manual_seed(0)
        self.rows = torch.randint(3, 30, (24, 7), generator=self.random)
        self.rows[:, -1] = 2

    def backward(self) -> float:
        ids = self.rows[torch.randint(24, (6,), generator=self.random)]
        loss = self.model(input_ids=ids, labels=ids[:, 0] % 3).loss
        loss.backward()
        return loss.item()

    def run(self, steps: int, watch: Callable[[], None] = lambda: None) -> list[float]:
        losses = []
        for _ in range(steps):
            losses.append(self.backward())
            self.optimizer.step()
            watch()
            self.controller.step()
            self.optimizer.zero_grad()
        return losses


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def ages(loop: Loop) -> list[set[float]]:
    """Steps in the optimizer state of each block's parameters, 0 where there is none."""
    state = loop.optimizer.state
    return [{float(state[p]["step"]) if state.get(p) else 0.0 for p in block} for block in loop.blocks]


# Hand numbers ---------------------------------------------------------------------------------------------------------


def pulled(
    weights: Sequence[Sequence[float]],
    gradients: Sequence[Sequence[Sequence[float]]],
    plan: Plan,
    rates: Sequence[float],
) -> tuple[LayerController, list[nn.Parameter]]:
    """SGD on one parameter a block with given gradients, of each step for each block, at given learning rates."""
    blocks = [nn.Parameter(torch.tensor(values)) for values in weights]
    head = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([*blocks, head], lr=1.0)
    controller = LayerController([[block] for block in blocks], [head], optimizer, plan)
    for step, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        loss = sum((block * torch.tensor(pull)).sum() for block, pull in zip(blocks, step, strict=True))
        (loss + head.sum()).backward()
        optimizer.step()
        controller.step()
        optimizer.zero_grad()
    return controller, blocks


def test_weight_change_by_hand():
    """(3, 4) becomes (3, 4.5) at a summed rate of 0.02 → 0.5 / 5 / 0.02 = 5; a block without gradient scores 0."""
    plan = Plan(k=1, warmup=2, probe=2, skip=0)
    step = [[0.0, -25.0], [0.0, 0.0]]
    controller, _ = pulled([[3.0, 4.0], [1.0, 1.0]], [step] * 2, plan, [0.01, 0.01])
    assert controller.choices[0].scores == pytest.approx((5.0, 0.0), rel=1e-5)
    assert controller.active == (0,) and controller.choices[0].step == 2


def test_weight_change_leaves_the_first_steps_out_and_divides_by_the_rates():
    """The window starts at (3, 4.25): the rate 1.0 of the skipped step is not in it, 0.01 and 0.03 are."""
    plan = Plan(k=1, warmup=3, probe=2, skip=1)
    steps = [[[0.0, -0.25]], [[0.0, -25.0]], [[0.0, -25.0]]]
    controller, _ = pulled([[3.0, 4.0]], steps, plan, [1.0, 0.01, 0.03])
    assert controller.choices[0].scores[0] == pytest.approx(1.0 / math.hypot(3, 4.25) / 0.04, rel=1e-5)


def test_one_norm_for_a_block():
    """A bias of zeros has no norm to divide by: the block's parameters are one vector."""
    weight, bias, head = (nn.Parameter(torch.tensor(start)) for start in ([3.0, 4.0], [0.0], [0.0]))
    optimizer = torch.optim.SGD([weight, bias, head], lr=0.1)
    controller = LayerController([[weight, bias]], [head], optimizer, Plan(k=1, warmup=1, probe=1, skip=0))
    (weight[0] * 3 + bias[0] * 4 + head.sum()).backward()
    optimizer.step()
    controller.step()
    assert controller.choices[0].scores[0] == pytest.approx(0.5 / 5 / 0.1, rel=1e-5)


def test_grad_ratio_by_hand_and_nothing_moves():
    """(3, 4) with gradients of length 1 and 7 → √((1 + 49) / 2) / 5 = 1."""
    plan = Plan("grad_ratio", k=1, warmup=2, probe=2, skip=0)
    steps = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 7.0], [0.0, 0.0]]]
    controller, blocks = pulled([[3.0, 4.0], [1.0, 1.0]], steps, plan, [0.1, 0.1])
    assert controller.choices[0].scores == pytest.approx((1.0, 0.0), rel=1e-5)
    assert blocks[0].tolist() == [3.0, 4.0] and blocks[1].tolist() == [1.0, 1.0]


def test_controls_by_hand():
    """RMS of (3, 4) is 5 / √2; `inverse` measures the rate and takes the lowest; `last_k` goes by depth."""
    weights, step = [[3.0, 4.0], [1.0, 1.0]], [[0.0, -25.0], [0.0, -1.0]]
    controller, _ = pulled(weights, [], Plan("rms", k=1), [])
    assert controller.choices[0].scores == pytest.approx((math.sqrt(2) / 5, 1.0)) and controller.active == (1,)
    controller, _ = pulled(weights, [], Plan("last_k", k=1), [])
    assert controller.active == (1,) and not controller.probing
    found = {}
    for score in ("weight_change", "inverse"):
        controller, _ = pulled(weights, [step] * 2, Plan(score, k=1, warmup=2, probe=2, skip=0), [0.01] * 2)
        found[score] = controller.choices[0].scores, controller.active
    assert found["weight_change"][0] == found["inverse"][0]
    assert found["weight_change"][1] == (0,) and found["inverse"][1] == (1,)


@pytest.mark.parametrize(("hysteresis", "active"), [(0.1, (0,)), (0.0, (1,))])
def test_a_block_in_training_is_left_for_a_clearly_better_one_only(hysteresis: float, active: tuple[int, ...]):
    """Rates 2 and 1, then 1 and 1.05: 5 % more is less than the 10 % of the hysteresis."""
    plan = Plan(k=1, warmup=1, probe=1, run=1, skip=0, smoothing=0.0, hysteresis=hysteresis)
    steps = [[[2.0], [1.0]], [[0.0], [0.0]], [[1.0], [1.05]]]
    controller, _ = pulled([[1.0], [1.0]], steps, plan, [1e-4] * 3)
    assert [choice.active for choice in controller.choices] == [(0,), active]


def test_scores_are_smoothed_over_probes():
    plan = Plan(k=1, warmup=1, probe=1, run=1, skip=0, smoothing=0.75, hysteresis=0.0)
    steps = [[[2.0], [1.0]], [[0.0], [0.0]], [[1.0], [4.0]]]
    controller, _ = pulled([[1.0], [1.0]], steps, plan, [1e-6] * 3)
    assert controller.choices[1].smoothed == pytest.approx((1.75, 1.75), rel=0.1)
    assert controller.choices[1].scores == pytest.approx((1.0, 4.0), rel=0.1)


# Budget ---------------------------------------------------------------------------------------------------------------


def test_budget_of_either_denominator():
    """Ten blocks of 100, a head of 50, 2,000 in all: the head counts in the total, never among blocks."""
    sizes = [100] * 10
    assert capacity(0.25, "total", sizes, 50, 2000) == 450
    assert capacity(0.25, "blocks", sizes, 50, 2000) == 250
    assert capacity(0.29, "blocks", [1] * 100, 50, 2000) == 29  # 0.29 · 100 in floats is 28.999…
    assert capacity(1.0, "blocks", sizes, 50, 2000) == 1000


def test_a_budget_that_admits_no_block():
    message = r"budget=0\.05 of total parameters \(2,000\) leaves 50 for blocks, .* at least 0\.0750"
    with pytest.raises(TrainingError, match=message):
        capacity(0.05, "total", [100] * 10, 50, 2000)
    with pytest.raises(TrainingError, match=r"leaves 0 for blocks"):
        capacity(0.01, "total", [100] * 10, 50, 2000)
    with pytest.raises(TrainingError, match=r"of blocks parameters \(1,000\) leaves 90 .* at least 0\.1000"):
        capacity(0.09, "blocks", [100] * 10, 50, 2000)
    assert capacity(0.075, "total", [100] * 10, 50, 2000) == 100
    with pytest.raises(UnknownName, match="unknown denominator 'block': did you mean 'blocks'"):
        capacity(0.5, "block", [100], 0, 100)
    with pytest.raises(TrainingError, match="a capacity of 1 parameters admits no block"):
        Loop(bert(), replace(QUICK, capacity=1))


def test_a_smaller_block_may_fit_where_a_better_one_does_not():
    """Depth order of 2, 1 and 3 weights under a capacity of 5 takes 3, then 1, never 2 beside them."""
    weights = [[1.0, 1.0], [1.0], [1.0, 1.0, 1.0]]
    for room, active in {6: (0, 1, 2), 5: (1, 2), 4: (1, 2), 3: (2,), 2: (1,), 1: (1,)}.items():
        controller, _ = pulled(weights, [], Plan("last_k", capacity=room), [])
        assert controller.active == active, room


def test_blocks_of_different_size_stay_within_the_budget():
    model = bart()
    sizes = [sum(p.numel() for p in block.parameters()) for block in transformer_blocks(model)]
    assert sizes[0] < sizes[2]
    for share in (0.25, 0.5, 0.75):
        room = capacity(share, "blocks", sizes, 0, 0)
        loop = Loop(model, replace(QUICK, k=None, capacity=room))
        loop.run(4)
        assert loop.controller.active and sum(sizes[number] for number in loop.controller.active) <= room


# What must not move ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("build", [bert, bart])
def test_frozen_parameters_do_not_move_by_one_bit(score: str, build: Callable[[], nn.Module]):
    """Large steps of AdamW with decay, through probes and switches: a step moves what is active, and nothing else."""
    loop = Loop(build(), replace(QUICK, score=score), decay=0.1)
    before = values(loop.model)
    moved_blocks = set[tuple[int, ...]]()
    names = {id(parameter): name for name, parameter in loop.model.named_parameters()}

    def check():
        now = values(loop.model)
        active = loop.controller.phases[-1].active
        moving = {names[id(p)] for number in active for p in loop.blocks[number]} | {names[id(p)] for p in loop.head}
        moved = {name for name in now if not torch.equal(now[name], before[name])}
        assert moved <= moving and len(moved) >= 0.7 * len(moving)
        moved_blocks.add(active)

    for _ in range(24):
        loop.run(1, check)
        before = values(loop.model)  # after the rollback, which moves blocks as well
        for number, block in enumerate(loop.blocks):
            for parameter in block:
                if number not in loop.controller.active and not loop.controller.probing:
                    assert parameter.grad is None and not parameter.requires_grad
                    assert parameter not in loop.optimizer.state
    assert len(moved_blocks) >= (1 if score in {"rms", "last_k"} else 2)


@pytest.mark.parametrize("score", PROBED)
def test_gradients_of_zeros_do_not_move_what_is_frozen(score: str):
    """A loop that fills gradients with zeros: AdamW would move a frozen parameter that kept one, by decay."""
    loop, before = Loop(bert(), replace(QUICK, score=score), decay=0.1), dict[str, torch.Tensor]()
    names = {id(p): name for name, p in loop.model.named_parameters()}
    for _ in range(20):
        loop.backward()
        loop.optimizer.step()
        frozen = {names[id(p)] for n, block in enumerate(loop.blocks) for p in block if n not in loop.controller.active}
        if not loop.controller.probing:
            now = values(loop.model)
            assert all(torch.equal(now[name], before[name]) for name in frozen)
        loop.controller.step()
        before = values(loop.model)
        loop.optimizer.zero_grad(set_to_none=False)


def test_embeddings_are_frozen_though_the_optimizer_holds_them():
    loop = Loop(bert(), QUICK, decay=0.1)
    start = values(loop.model)
    loop.run(12)
    now = values(loop.model)
    assert all(torch.equal(now[name], start[name]) for name in now if "embeddings" in name)
    assert not any(torch.equal(now[name], start[name]) for name in now if "classifier" in name)


def test_blocks_are_compared_at_equal_state_age():
    """In a probe every block's state is as old as the probe; afterwards only what trains has any."""
    loop, seen = Loop(bert(), QUICK), []
    for _ in range(30):
        loop.backward()
        loop.optimizer.step()
        phase = loop.controller.phases[-1]
        if phase.kind == "probe":
            assert ages(loop) == [{float(len(seen) + 2 - phase.first)}] * 4
        else:
            assert all((age == {0.0}) == (n not in phase.active) for n, age in enumerate(ages(loop)))
        seen.append(phase.kind)
        loop.controller.step()
        loop.optimizer.zero_grad()
    assert seen.count("probe") > 8 and "".join(kind[0] for kind in seen[:15]) == "pppprrrpppprrrp"


def test_blocks_never_chosen_end_as_they_began():
    for rollback in (True, False):
        loop = Loop(bert(blocks=6), replace(QUICK, rollback=rollback, k=1), decay=0.1)
        start = [[p.detach().clone() for p in block] for block in loop.blocks]
        loop.run(25)
        chosen = {number for choice in loop.controller.choices for number in choice.active}
        assert 0 < len(chosen) < 6
        same = {
            number
            for number, block in enumerate(loop.blocks)
            if all(torch.equal(p, value) for p, value in zip(block, start[number], strict=True))
        }
        assert same == (set(range(6)) - chosen if rollback else set())


def test_rollback_by_hand():
    """SGD at 0.1. Block 1 loses its first probe, is frozen in the run, and wins the second; block 0 keeps its change.

    A block that was ever chosen is no longer the base's, so that there is nothing to restore.
    """
    plan = Plan(k=1, warmup=1, probe=1, run=1, skip=0, smoothing=0.0)
    steps = [[[2.0], [1.0]], [[1.0], [1.0]], [[1.0], [4.0]]]
    chosen = {1: ((0.8, 1.0), (0,)), 2: ((0.7, 1.0), (0,)), 3: ((0.6, 0.6), (1,))}
    for count, (expected, active) in chosen.items():
        controller, blocks = pulled([[1.0], [1.0]], steps[:count], plan, [0.1] * count)
        assert [block.item() for block in blocks] == pytest.approx(expected)
        assert controller.active == active


def test_commit_chooses_once():
    loop = Loop(bert(), replace(QUICK, commit=True))
    loop.run(30)
    assert [phase.kind for phase in loop.controller.phases] == ["probe", "run"] and len(loop.controller.choices) == 1


def test_a_run_that_ends_in_a_probe_is_left_clean():
    for score in ("weight_change", "grad_ratio"):
        loop = Loop(bert(), replace(QUICK, score=score))
        start = values(loop.model)
        loop.run(2)
        assert loop.controller.probing
        loop.controller.finish()
        now = values(loop.model)
        assert loop.controller.active == () and not loop.controller.probing
        assert {name for name in now if not torch.equal(now[name], start[name])} <= head_parameters(loop.model)
        loop.backward()  # no hook takes the gradients of the head, and blocks have none
        assert all(p.grad is None for block in loop.blocks for p in block) and loop.head[0].grad is not None


def test_grad_ratio_never_holds_two_gradients_of_blocks():
    """The probe's peak: one tensor, where full fine-tuning holds the gradients of all blocks."""
    loop = Loop(bert(), replace(QUICK, score="grad_ratio"))
    own = [p for block in loop.blocks for p in block]
    peak = list[int]()

    def alive(_: torch.Tensor):
        peak.append(sum(p.grad.numel() for p in own if p.grad is not None))

    hooks = [p.register_hook(alive) for p in own]
    loop.run(4)
    assert len(peak) == 4 * len(own) and max(peak) <= max(p.numel() for p in own)
    assert not any(p in loop.optimizer.state for p in own)
    for hook in hooks:
        hook.remove()
    assert not loop.controller.probing
    loop.backward()
    trained = {id(p) for number in loop.controller.active for p in loop.blocks[number]}
    assert all((p.grad is not None) == (id(p) in trained) for p in own)  # the probe's hooks are gone


def test_gradient_checkpointing_changes_nothing():
    ends = []
    for checkpointing in (False, True):
        model = bert()
        if checkpointing:
            model.activation_checkpointing_enable()
        loop = Loop(model, QUICK)
        loop.run(12)
        ends.append(values(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("score", "hits"), [("weight_change", 10), ("grad_ratio", 10), ("random", None)])
def test_planted_blocks_are_found(score: str, hits: int | None, decay: float):
    """Six blocks, of which only two get a gradient: adaptive scores find them for ten of ten seeds, chance does not."""
    found = 0
    for seed in range(10):
        model = bert(seed, blocks=6)
        planted = tuple(sorted(torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:2].tolist()))
        for number, block in enumerate(transformer_blocks(model)):
            for parameter in block.parameters() if number not in planted else ():
                parameter.register_hook(torch.zeros_like)
        loop = Loop(model, Plan(score, k=2, seed=seed), decay=decay, rate=1e-3)
        loop.run(10)
        found += loop.controller.active == planted
    assert found == hits if hits is not None else found < 5


def test_the_loss_falls():
    losses = Loop(bert(), replace(QUICK, run=20)).run(150)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_the_seed_decides_what_is_drawn():
    def drawn(seed: int) -> list[tuple[int, ...]]:
        loop = Loop(bert(), replace(QUICK, score="random", seed=seed))
        loop.run(20)
        return [choice.active for choice in loop.controller.choices]

    torch.manual_seed(1)
    first = drawn(0)
    torch.manual_seed(2)
    assert drawn(0) == first != drawn(1)
    assert len(set(first)) > 1 and all(len(active) == 2 for active in first)


def test_the_docstring_example_runs():
    assert doctest.testmod(alf).attempted > 5 and doctest.testmod(alf).failed == 0


# Schedule and errors --------------------------------------------------------------------------------------------------


def test_schedule_of_a_run():
    plan = Plan().over(1000)
    assert (plan.warmup, plan.probe, plan.run, plan.until, plan.skip) == (50, 15, 200, 785, 2)
    assert replace(plan, score="grad_ratio").over(1000).probe == 4
    for score in SCORES:
        for steps in (*range(6, 80), 150, 400, 1000):
            plan = Plan(score, k=1).over(steps)
            loop = [nn.Parameter(torch.ones(1)) for _ in range(3)]
            controller = LayerController([[loop[0]], [loop[1]]], [loop[2]], torch.optim.SGD(loop, lr=0.1), plan)
            for _ in range(steps):
                controller.step()
            late = max(choice.step for choice in controller.choices)
            assert not controller.probing and controller.active and late <= max(0.8 * steps, plan.warmup)
            probed = sum(phase.kind == "probe" for phase in controller.phases[2:]) * plan.probe
            assert probed <= 0.2 * steps
    with pytest.raises(TrainingError, match="score 'weight_change' needs a run of at least 6 steps, got 5"):
        Plan().over(5)


def test_wrong_plans_and_parameters_are_refused():
    with pytest.raises(UnknownName, match="unknown score 'weightchange': did you mean 'weight_change'"):
        Plan("weightchange")
    with pytest.raises(TrainingError, match="skip=8 leaves no step of a probe of 8 steps"):
        Plan(skip=8)
    with pytest.raises(TrainingError, match="run must be at least 1; got 0"):
        Plan(run=0)
    with pytest.raises(TrainingError, match="k must be at least 1; got 0"):
        Plan(k=0)
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([one, two])
    with pytest.raises(UnsupportedModel, match="a parameter belongs to two blocks"):
        LayerController([[one], [one]], [two], optimizer, QUICK)
    with pytest.raises(UnsupportedModel, match="or to a block and the head"):
        LayerController([[one]], [one], optimizer, QUICK)
    with pytest.raises(TrainingError, match="the optimizer lacks parameters of blocks or head"):
        LayerController([[one], [nn.Parameter(torch.ones(1))]], [two], optimizer, QUICK)
    with pytest.raises(TrainingError, match="needed blocks to choose from"):
        LayerController([[one], []], [two], optimizer, QUICK)
    whole = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match="quantised"):
        LayerController([[whole]], [two], optimizer, QUICK)


def test_a_score_that_is_no_number_stops_the_run():
    with pytest.raises(Diverged, match="a block's score is not a number at step 2"):
        pulled([[1.0], [1.0]], [[[math.inf], [1.0]]] * 2, Plan(k=1, warmup=2, probe=2, skip=0), [0.1] * 2)
