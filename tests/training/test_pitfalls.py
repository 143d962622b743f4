"""The pitfall table (FINETUNING.md 4.5): each row is a test, here or where `ELSEWHERE` says.

Where a pitfall can be shown, the test shows it first without the remedy: a test of the remedy alone could not fail.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModel, TrainerCallback

from attnlens.checkpoints.load import quiet
from attnlens.core.errors import CheckpointError
from attnlens.text.corpus import Corpus
from attnlens.training.alf import LayerController, Plan
from attnlens.training.importance import SCORES
from attnlens.training.job import Job, prepare
from attnlens.training.loop import Outcome, train_model
from attnlens.training.methods import METHODS
from attnlens.training.options import TrainOptions
from attnlens.training.output import seeded
from attnlens.training.split import split
from attnlens.training.switching import LayerSwitching
from attnlens.training.train import finetune

ELSEWHERE = {
    "frozen parameters move by a gradient of zeros": "test_alf: test_gradients_of_zeros_do_not_move_what_is_frozen",
    "frozen parameters, in the Trainer": "test_switching: test_only_chosen_blocks_and_the_head_differ_from_the_base",
    "an optimizer without some blocks": "test_alf: test_wrong_plans_and_parameters_are_refused",
    "state of unequal age": "test_alf: test_blocks_are_compared_at_equal_state_age",
    "a random head decides early": "test_alf: test_weight_change_leaves_the_first_steps_out_and_divides_by_the_rates",
    "checkpointing with frozen embeddings": "test_alf: test_gradient_checkpointing_changes_nothing",
    "a checkpoint within a probe; early stopping": "test_switching: test_nothing_is_judged_or_saved_within_a_probe",
    "shared weights": "test_switching: test_layers_that_share_their_weights_cannot_be_chosen",
    "shared with embeddings": "test_switching: test_a_block_that_shares_a_parameter_with_the_rest_is_refused",
    "tied head": "test_language: test_a_head_tied_to_the_embeddings_is_not_trained_alone",
    "quantised blocks": "test_alf: test_wrong_plans_and_parameters_are_refused",
    "state of the callback after a kill": "test_resume: test_a_resumed_run_ends_as_an_undisturbed_one",
}
SHORT = Plan(k=1, warmup=6, probe=6, run=30, skip=0, hysteresis=0.0, smoothing=0.0)


def test_every_row_has_its_test():
    for place in ELSEWHERE.values():
        file, name = place.split(": ")
        assert re.search(rf"^def {name}\(", (Path(__file__).parent / f"{file}.py").read_text(), flags=re.M), place


# In the Trainer -------------------------------------------------------------------------------------------------------


class Spy(TrainerCallback):
    """What the optimizer holds when switching begins, and the norm of all gradients before each step."""

    def __init__(self, job: Job):
        self.model, self.norms = job.base.model, list[float]()

    def on_train_begin(self, args, state, control, *, optimizer, **kwargs: Any):
        self.optimizer = optimizer
        self.held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any):
        gradients = [p.grad for p in self.model.parameters() if p.requires_grad and p.grad is not None]
        assert all(p.grad is None for p in self.model.parameters() if not p.requires_grad)
        self.norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))


def trained(tiny: Any, corpus: Corpus, folder: Path, **options: Any) -> tuple[Spy, LayerSwitching, Outcome]:
    fixed = {"max_steps": 50, "batch_size": 6, "learning_rate": 1e-2, "max_length": 16, "patience": 100}
    chosen = TrainOptions(**fixed, device="cpu", **options)
    with quiet(), seeded(0):
        job = prepare(tiny("bert"), split(corpus, None, 0), METHODS["alf"], chosen, 0)
        assert job.selection.plan is not None
        switching, spy = LayerSwitching(job.selection.plan, job.base.model), Spy(job)
        return spy, switching, train_model(job, folder, [switching, spy])


def test_the_optimizer_holds_every_block_and_a_late_choice_moves(tiny: Any, corpus: Corpus, tmp_path: Path):
    """The Trainer's optimizer takes only what requires a gradient: blocks frozen before it was built never move."""
    spy, switching, _ = trained(tiny, corpus, tmp_path, score="random", budget=0.25, denominator="blocks")
    controller = switching.controller
    assert {id(parameter) for block in controller.blocks for parameter in block} <= spy.held
    first, late = controller.choices[0].active, controller.choices[-1].active
    (number,) = set(late) - set(first)
    ages = {float(spy.optimizer.state[parameter]["step"]) for parameter in controller.blocks[number]}
    assert len(ages) == 1 and min(ages) > 5


def test_clipping_sees_fewer_gradients_when_few_blocks_train(tiny: Any, corpus: Corpus, tmp_path: Path):
    """max_grad_norm bounds the norm of all that trains: in a run of one block of four it is smaller than in a probe."""
    spy, switching, outcome = trained(tiny, corpus, tmp_path, budget=0.25, denominator="blocks")
    logged = [entry["grad_norm"] for entry in outcome.logs if "grad_norm" in entry]
    clipped = outcome.settings["max_grad_norm"]
    assert spy.norms == pytest.approx([min(norm, clipped) for norm in logged], rel=1e-3)
    first = switching.controller.phases[1].first - 1
    assert np.mean(logged[first : first + 5]) < np.mean(logged[first - 5 : first])


def test_dropout_of_frozen_blocks_stays_in_training_mode(tiny: Any, corpus: Corpus, tmp_path: Path):
    modes = list[bool]()

    class Mode(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs: Any):
            modes.append(all(module.training for module in model.modules()))

    with quiet(), seeded(0):
        options = TrainOptions(max_steps=3, max_length=16, device="cpu")
        job = prepare(tiny("bert"), split(corpus, None, 0), METHODS["last_k"], options, 0)
        train_model(job, tmp_path, [Mode()])
    assert modes == [True] * 3


# In a plain loop ------------------------------------------------------------------------------------------------------


def noisy(plan: Plan, steps: int, seed: int = 0) -> LayerController:
    """Two equal blocks of 400 weights under the same random gradients: whatever tells them apart is an artefact."""
    start = torch.randn(400, generator=torch.Generator().manual_seed(seed))
    blocks = [nn.Parameter(start.clone()) for _ in range(2)]
    head = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([*blocks, head], lr=1e-3, weight_decay=0.0)
    controller = LayerController([[block] for block in blocks], [head], optimizer, plan)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pull = torch.randn(400, generator=generator)
        (sum((block * pull).sum() for block in blocks) + head.sum()).backward()
        optimizer.step()
        controller.step()
        optimizer.zero_grad()
    return controller


def test_a_block_just_activated_moves_more_than_one_long_in_training():
    """Without a remedy: Adam's first steps have length η each, later ones shrink as gradients cancel."""
    old, fresh = (nn.Parameter(torch.ones(400)) for _ in range(2))
    optimizer, generator = torch.optim.AdamW([old, fresh], lr=1e-3, weight_decay=0.0), torch.Generator().manual_seed(0)
    for step in range(36):
        if step == 30:
            optimizer.state.pop(fresh)
            before = [old.detach().clone(), fresh.detach().clone()]
        pull = torch.randn(400, generator=generator)
        old.grad, fresh.grad = pull.clone(), pull.clone()
        optimizer.step()
    moved = [(now.detach() - then).norm().item() for now, then in zip((old, fresh), before, strict=True)]
    assert moved[1] > 1.8 * moved[0]


def test_a_block_just_activated_has_no_advantage_in_a_probe():
    """One of two equal blocks trained for 30 steps, the other was frozen: both score the same in the next probe."""
    controller = noisy(SHORT, 42)
    first, second = controller.choices
    assert len(first.active) == 1 and second.scores[0] == pytest.approx(second.scores[1], rel=0.05)


def test_a_frozen_block_is_never_scored_by_the_steps_in_which_it_could_not_move():
    """Frozen for 30 of 36 steps, measured in 6: its rate is not the 0 (or a sixth) that its movement says."""
    for choice in noisy(SHORT, 42).choices:
        assert min(choice.scores) > 0.5 * max(choice.scores) > 0


@pytest.mark.parametrize("left", ["zeros", "stale"])
def test_a_gradient_left_behind_moves_a_frozen_parameter_and_the_controller_leaves_none(left: str):
    block, other, head = (nn.Parameter(torch.ones(50)) for _ in range(3))
    optimizer = torch.optim.AdamW([block, other, head], lr=1e-3, weight_decay=0.1)
    for parameter in (block, other, head):
        parameter.grad = torch.ones(50)
    optimizer.step()

    def step_with_leftover() -> float:
        before = block.detach().clone()
        for _ in range(5):
            optimizer.step()
        return float((block.detach() - before).norm())

    block.requires_grad = False
    block.grad = torch.zeros(50) if left == "zeros" else torch.ones(50)
    assert step_with_leftover() > 1e-3
    controller = LayerController([[block], [other]], [head], optimizer, Plan("last_k", k=1))
    assert controller.active == (1,) and block.grad is None and block not in optimizer.state
    assert step_with_leftover() == 0


def test_state_dropped_on_freezing_survives_saving_and_starts_anew():
    """The optimizer's state_dict may lack entries; what is activated later starts at step 1."""
    controller = noisy(SHORT, 20)
    optimizer = controller._optimizer
    (active,), frozen = controller.active, 1 - controller.active[0]
    assert optimizer.state[controller.blocks[active][0]]["step"] == 20
    assert controller.blocks[frozen][0] not in optimizer.state
    optimizer.load_state_dict(optimizer.state_dict())
    assert controller.blocks[frozen][0] not in optimizer.state
    controller.blocks[frozen][0].requires_grad = True
    controller.blocks[frozen][0].grad = torch.ones(400)
    optimizer.step()
    assert optimizer.state[controller.blocks[frozen][0]]["step"] == 1


@pytest.mark.parametrize("score", ["weight_change", "grad_ratio"])
def test_tensors_that_start_at_zero_do_not_decide(score: str):
    """A bias of 0 that moves to 1 has an infinite rate of its own; of its block, with weights (3, 4), it is 1/5.

    By the gradient, √(0 + 1) / 5 as well: one norm a block, never one a tensor.
    """
    meter = SCORES[score].meter
    assert meter is not None
    weight, bias = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.zeros(1))
    taken = meter([[weight, bias]], 0, False)
    (weight.sum() * 0 + bias.sum()).backward()
    with torch.no_grad():
        bias += 1
    taken.step([1.0])
    # The gradient's ratio is to the weights at the end, (3, 4, 1).
    assert taken.scores() == pytest.approx([1 / 5 if score == "weight_change" else 1 / 26**0.5])
    taken.close()
    nothing = [nn.Parameter(torch.zeros(2))]
    assert np.isfinite(meter([nothing], 0, False).scores() if score == "weight_change" else [0.0]).all()


def test_rates_at_different_learning_rates_are_comparable():
    """The same constant gradient in a probe at a tenth of the rate: SGD moves a tenth as far, the score is the same."""
    found = []
    for rate in (1e-3, 1e-4):
        block, head = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([block, head], lr=rate)
        controller = LayerController([[block]], [head], optimizer, Plan(k=1, warmup=4, probe=4, skip=0))
        for _ in range(4):
            (block[1] * 10 + head.sum()).backward()
            optimizer.step()
            controller.step()
            optimizer.zero_grad()
        found.append(controller.choices[0].scores[0])
    assert found[0] == pytest.approx(2.0, rel=1e-3) and found[1] == pytest.approx(found[0], rel=1e-3)


# Compiled blocks ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, rows: Tensor) -> Tensor:
        return rows + torch.tanh(self.inner(rows))


class Stack(nn.Module):
    """Four blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(6, 1)

    def forward(self, rows: Tensor) -> Tensor:
        for block in self.blocks:
            rows = block(rows)
        return self.head(rows)


def switched(model: Stack, choices: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Gradients of all parameters under one choice after another, zeros where there are none."""
    found = []
    for active in choices:
        for number, block in enumerate(model.blocks):
            for parameter in block.parameters():
                parameter.requires_grad, parameter.grad = number in active, None
        model.zero_grad()
        model(torch.linspace(-1, 1, 30).view(5, 6)).square().sum().backward()
        found += [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch 2.13: Dynamo's own look
def test_compiled_blocks_give_the_right_gradients_after_every_switch():
    """One graph for each of four cases: input and weights with or without a gradient, whatever is chosen."""
    choices = [(0, 1, 2, 3), (3,), (0,), (1, 2), (0, 3), (2,), (0, 1, 2, 3), (1,), (1, 3), ()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack()
    plain = switched(model, choices)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(backend=counter)
    compiled = switched(model, choices)
    assert counter.frame_count >= 2  # it was compiled, and again after a switch
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    for active, start in zip(choices, range(0, len(plain), 10), strict=True):
        nonzero = {place // 2 for place in range(8) if compiled[start + place].any()}
        assert nonzero == set(active)
    torch._dynamo.reset()


# Bases that are no plain model ----------------------------------------------------------------------------------------


def test_an_adapter_is_no_base_to_choose_blocks_of(tiny: Any, corpus: Corpus, tmp_path: Path):
    """PEFT's folder holds an adapter and no model: its frozen weights would be trained, and saved nowhere."""
    with quiet():
        model: Any = AutoModel.from_pretrained(tiny("bert"))
        get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(CheckpointError, match=r"adapter holds no config\.json"):
        finetune(tmp_path / "adapter", corpus, method="alf", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
