"""What is watched while a model trains: right numbers, and not one bit of the training changed by looking."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from attnlens.checkpoints.blocks import transformer_blocks
from attnlens.text.corpus import Corpus
from attnlens.training.cost import KERNELS, Cost, batch_loss, bytes_in, training_flops
from attnlens.training.job import Job, prepare
from attnlens.training.memory import PeakMemory, model_bytes
from attnlens.training.methods import METHODS
from attnlens.training.movement import PARTS, Movement
from attnlens.training.observers import observers
from attnlens.training.split import split
from attnlens.training.train import TrainOptions, finetune

Tiny = Callable[[str], Path]
ANY: Any = None  # what an observer does not read
FEW = TrainOptions(max_steps=4, batch_size=8, learning_rate=1e-2, device="cpu")


def job(base: Path, corpus: Corpus, method: str = "full", options: TrainOptions = FEW) -> Job:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepare(base, split(corpus, None, 0), METHODS[method], options, 0)


@pytest.mark.parametrize("method", ["full", "alf"])
def test_looking_changes_no_bit(
    method: str, tiny: Tiny, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Weights, metrics and loss curve with all observers and with none."""
    options = replace(FEW, max_steps=14, watch_attention=True)
    watched = finetune(tiny("bert"), corpus, method=method, output=tmp_path / "a", options=options)
    with monkeypatch.context() as patched:
        patched.setattr("attnlens.training.train.observers", lambda job, switching: [Cost(job, switching)])
        alone = finetune(tiny("bert"), corpus, method=method, output=tmp_path / "b", options=options)
    seen, unseen = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert seen.keys() == unseen.keys() and all(torch.equal(seen[name], unseen[name]) for name in seen)
    assert watched.metrics == alone.metrics and watched.record["history"] == alone.record["history"]
    assert {observer.key for observer in observers(job(tiny("bert"), corpus, options=options))} <= set(watched.record)
    json.dumps(watched.record, allow_nan=False)


def bare(model: torch.nn.Module) -> Any:
    """A model whose rows need no padding, with the loss that it has of itself."""

    def stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    return SimpleNamespace(model=model, work=SimpleNamespace(loss=None, collate=stacked))


@pytest.mark.parametrize("active", [(3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 3, 5), ()])
def test_operations_follow_the_formula_of_depth(active: tuple[int, ...]):
    """(1 + (L − ℓ_min)/L + |A|/L)/3 of full (FINETUNING.md 3.7), which leaves out attention's products and the head."""
    shape: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
    }
    model = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=32, **shape))
    task, row = bare(model), {"input_ids": torch.arange(8), "labels": torch.tensor(1)}
    model.bert.embeddings.requires_grad_(False)
    full = training_flops(task, row)
    for number, block in enumerate(model.bert.encoder.layer):
        block.requires_grad_(number in active)
    part = training_flops(task, row)
    assert all(parameter.grad is None for parameter in model.parameters())
    ratio = (part.matrices + part.attention) / (full.matrices + full.attention)
    layers = 6
    lowest = min(active, default=layers)
    assert ratio == pytest.approx((1 + (layers - lowest) / layers + len(active) / layers) / 3, rel=0.02)


def test_operations_of_a_layer_by_hand():
    """One BERT layer of width 8, T = 4 tokens, one head, no gradient below: every product counted on paper."""
    shape: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
    }
    model = BertForSequenceClassification(BertConfig(vocab_size=9, max_position_embeddings=8, **shape))
    task, row = bare(model), {"input_ids": torch.arange(4), "labels": torch.tensor(1)}
    model.bert.embeddings.requires_grad_(False)
    flops = training_flops(task, row)
    first, later = 3 * 2 * 4 * 8 * 8, 2 * 4 * 8 * 8 + 2 * 2 * 4 * 8 * 16  # query, key, value; output and feed-forward
    # The first three pass no gradient down; pooler and head see one token, and both do.
    head = 3 * 2 * (8 * 8 + 8 * 2)
    assert flops.matrices == 2 * first + 3 * later + head
    # Dropout keeps attention out of the fused kernel: two products forward, four backward.
    assert flops.attention == 6 * (2 * 4 * 4 * 8)
    assert flops.over(8, 32) == 2 * (flops.matrices + flops.attention)  # two rows as long
    assert flops.over(8, 64) == 2 * flops.matrices + 4 * flops.attention  # one row of twice the length


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_extrapolated_operations_are_those_of_the_steps(architecture: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Against torch's counter over every batch that was read, lengths varying."""
    task = job(tiny(architecture), corpus)
    watch = Cost(task)
    batches, counted = [task.work.collate(task.work.train[start : start + 8]) for start in range(0, 24, 8)], 0
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    watch._sets.append((1, "1" * len(list(task.model.parameters()))))
    hook = task.model.register_forward_pre_hook(watch._noted, with_kwargs=True)
    task.model.train()
    for batch in batches:
        with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
            batch_loss(task, batch).backward()
        counted += counter.get_total_flops()
    hook.remove()
    (read,) = watch._read.values()
    typical = sorted(task.work.train, key=lambda row: len(row["input_ids"]))[len(task.work.train) // 2]
    assert training_flops(task, typical).over(*read) == pytest.approx(counted, rel=0.02)


def test_cost_of_a_run(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Phases apart, each set of blocks at its own price; all of it in the record, the bytes those of the files."""
    options = replace(FEW, max_steps=14, patience=20)
    cost = finetune(tiny("bert"), corpus, method="alf", output=tmp_path / "out", options=options).record["cost"]
    record = json.loads((tmp_path / "out" / "attnlens.json").read_text())
    assert record["cost"] == cost
    phases = record["switching"]["phases"]
    steps = dict.fromkeys(("probe", "run"), 0)
    for phase, end in zip(phases, [*(phase["first"] for phase in phases[1:]), 15], strict=True):
        steps[phase["kind"]] += max(end - phase["first"], 0)
    assert {kind: facts["steps"] for kind, facts in cost["phases"].items()} == steps
    assert steps["probe"] and steps["run"]
    price = {row["first"]: row["flops"] for row in cost["flops_a_step"]}
    probe, *runs = [price[phase["first"]] for phase in phases if phase["first"] in price][:2]
    assert runs and runs[0] < probe
    ends = [*sorted(price)[1:], 15]
    total = sum((end - first) * price[first] for first, end in zip(sorted(price), ends, strict=True))
    assert total == pytest.approx(cost["flops"], rel=1e-6)
    assert 0 < cost["step_seconds"] < cost["seconds"]
    assert cost["checkpoint_bytes"] == sum(
        (tmp_path / "out" / name).stat().st_size for name in ("model.safetensors", "config.json")
    )


def test_bytes_in_a_folder(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "two").write_bytes(b"123")
    assert bytes_in(tmp_path) == 8


def test_peak_memory_of_the_process():
    """A peak is seen after it is over, is forgotten at the next look, and what was there before does not count."""
    model = torch.nn.Linear(1000, 1000)
    assert model_bytes(model) == 4 * 1_001_000
    before = torch.ones(10_000_000)
    memory = PeakMemory(model, torch.device("cpu"))
    if memory.kind is None:  # only Linux lets a process forget its peak
        pytest.skip("not on this machine: a peak of memory that can be reset")
    torch.ones(25_000_000)  # 100 MB, freed at once
    peak, later = memory.look(), memory.look()
    assert peak == pytest.approx(100e6 + model_bytes(model), rel=0.15)
    assert later == pytest.approx(model_bytes(model), abs=15e6)
    assert before.numel() == 10_000_000


def test_movement_is_the_distance_from_the_start(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Against the saved weights, in float64; the last step is the one kept. Parts by hand for BERT's names."""
    options = replace(FEW, max_steps=3, validation=corpus)
    start = job(tiny("bert"), corpus, options=options).model.state_dict()
    start = {name: value.double() for name, value in start.items()}
    result = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options)
    moved = result.record["movement"]
    assert moved["steps"] == [1, 2, 3] and moved["parts"] == list(PARTS) == ["attention", "mlp", "norms"]
    assert moved["blocks"] == [f"bert.encoder.layer.{number}" for number in range(4)]
    end = load_file(tmp_path / "out" / "model.safetensors")
    kept = moved["steps"].index(result.metrics["best_step"])
    for block, found in zip(moved["blocks"], moved["change"][kept], strict=True):
        squares = dict.fromkeys(PARTS, (0.0, 0.0))
        for name, before in start.items():
            if name.startswith(f"{block}."):
                part = "norms" if "LayerNorm" in name else "attention" if ".attention." in name else "mlp"
                change, length = squares[part]
                difference = (end[name].double() - before).square().sum().item()
                squares[part] = change + difference, length + before.square().sum().item()
        assert found == pytest.approx([math.sqrt(change / length) for change, length in squares.values()], rel=1e-4)


def test_gradients_are_those_of_the_optimizer(tiny: Tiny, corpus: Corpus):
    """Blocks of last_k have one, after clipping: together never longer than the limit; the frozen ones have none."""
    task = job(tiny("bert"), corpus, "last_k", replace(FEW, k=2))
    watch = Movement(task)
    task.model.train()
    (1e4 * batch_loss(task, task.work.collate(task.work.train[:4]))).backward()
    torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
    state: Any = SimpleNamespace(global_step=0, max_steps=1)
    watch.on_train_begin(ANY, state, ANY)
    watch.on_pre_optimizer_step(ANY, state, ANY)
    state.global_step = 1
    watch.on_step_end(ANY, state, ANY)
    facts = watch.facts()
    (gradients,), (change,) = facts["gradient"], facts["change"]
    assert gradients[:2] == [None, None] and 0 < math.hypot(*gradients[2:]) <= 1.0
    assert change == [[0.0] * 3] * 4  # no step was taken
    flat = torch.cat(
        [p.grad.flatten() for p in transformer_blocks(task.base.model)[3].parameters() if p.grad is not None]
    )
    assert gradients[3] == pytest.approx(flat.norm().item(), rel=1e-5)


def test_movement_takes_fifty_points_at_most_and_goes_on(tiny: Tiny, corpus: Corpus):
    """Every n-th step of a long run; a second observer that restores the first's state ends as one that saw it all."""
    task = job(tiny("bert"), corpus, "last_k")
    state: Any = SimpleNamespace(global_step=0, max_steps=120)

    def seen(watch: Movement, steps: range) -> Movement:
        watch.on_train_begin(ANY, state, ANY)
        for state.global_step in steps:
            watch.on_step_end(ANY, state, ANY)
        return watch

    whole = seen(Movement(task), range(1, 121)).facts()
    assert len(whole["steps"]) <= 50 and whole["steps"][:2] == [3, 6] and whole["steps"][-1] == 120
    first = seen(Movement(task), range(1, 41))
    second = Movement(task)
    second.restore(json.loads(json.dumps(first.state())))
    assert seen(second, range(41, 121)).facts() == whole


def test_a_head_alone_moves_no_block(tiny: Tiny, corpus: Corpus):
    facts = Movement(job(tiny("bert"), corpus, "head")).facts()
    assert facts["change"] is None and facts["reason"] == "no weight of a block is trained"
