"""Methods that choose blocks, end to end: what moves, what is in the checkpoint, and what the record says of it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AlbertConfig, AlbertForSequenceClassification
from typer.testing import CliRunner

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.load import quiet
from attnlens.cli import app
from attnlens.core.errors import TrainingError, UnknownName, UnsupportedModel
from attnlens.text.corpus import Corpus
from attnlens.training.alf import LayerController
from attnlens.training.base import load_classifier, load_language_model
from attnlens.training.importance import SCORES
from attnlens.training.methods import METHODS
from attnlens.training.train import TrainingResult, TrainOptions, finetune

Tiny = Callable[[str], Path]
SHORT = TrainOptions(max_steps=72, batch_size=8, learning_rate=1e-2, patience=20, max_length=16, device="cpu")
DYNAMIC = {
    "weight_change": ("alf", {"budget": 0.5, "denominator": "blocks"}),
    "grad_ratio": ("alf", {"budget": 0.5, "score": "grad_ratio", "denominator": "blocks"}),
    "commit": ("alf", {"budget": 0.25, "denominator": "blocks", "commit": True}),
    "lisa": ("lisa", {"k": 1}),
}


@pytest.fixture
def texts(corpus: Corpus) -> Corpus:
    return replace(corpus, name="texts.jsonl", examples=tuple(replace(example, label=None) for example in corpus))


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Blocks that each optimizer step moved; fails the test if a step moved a block that is not in its phase."""
    seen, step = list[tuple[int, ...]](), LayerController.step
    last: dict[int, list[torch.Tensor]] = {}

    def snapshot(controller: LayerController):
        return {n: [p.detach().clone() for p in block] for n, block in enumerate(controller.blocks)}

    def watched(controller: LayerController):
        now = snapshot(controller)
        if last:
            moved = {n for n in now if not all(map(torch.equal, now[n], last[n]))}
            assert moved <= set(controller.phases[-1].active)
            seen.append(tuple(sorted(moved)))
        step(controller)
        last.update(snapshot(controller))

    monkeypatch.setattr(LayerController, "step", watched)
    return seen


def chosen_until(record: dict[str, Any], step: float) -> set[int]:
    """Blocks that any selection before `step` put into training."""
    return {n for choice in record["switching"]["choices"] if choice["step"] < step for n in choice["active"]}


@pytest.mark.parametrize("kind", DYNAMIC)
@pytest.mark.parametrize(("task", "architecture"), [("labels", "bert"), ("text", "gpt2"), ("text", "llama")])
def test_only_chosen_blocks_and_the_head_differ_from_the_base(
    kind: str, task: str, architecture: str, tiny: Tiny, tiny_lm: Tiny, request: pytest.FixtureRequest, tmp_path: Path
):
    """Every step, by one bit, and in the checkpoint: GPT-2's head is its embeddings (frozen), Llama's is its own."""
    moves = request.getfixturevalue("moves")
    corpus = request.getfixturevalue("corpus" if task == "labels" else "texts")
    method, settings = DYNAMIC[kind]
    base = (tiny if task == "labels" else tiny_lm)(architecture)
    result = finetune(base, corpus, method=method, output=tmp_path / "out", options=replace(SHORT, **settings))
    record = result.record
    assert len(moves) == 71 and len({move for move in moves if move}) > (1 if kind in {"lisa", "weight_change"} else 0)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = load_classifier(base, corpus.labels) if task == "labels" else load_language_model(base, "")
    before, after = loaded.model.state_dict(), load_file(tmp_path / "out" / "model.safetensors")
    allowed = chosen_until(record, result.metrics["best_step"])
    assert allowed or result.metrics["best_step"] == 0
    prefixes = tuple(f"{record['switching']['blocks'][number]}." for number in allowed)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    head = head_parameters(loaded.model)
    assert moved <= {name for name in before if name.startswith(prefixes)} | head
    assert head == ({"lm_head.weight"} if architecture == "llama" else head) and (head <= moved)
    assert any(name.startswith(prefixes) for name in moved)
    if architecture == "gpt2":
        assert not head


def test_nothing_is_judged_or_saved_within_a_probe(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Due every nine steps: those of 9 and 45 fall into probes (1 to 10, 43 to 50) and wait for their last step."""
    options = replace(SHORT, max_steps=90, budget=0.5)
    result = finetune(tiny("bert"), corpus, method="alf", output=tmp_path / "out", options=options)
    phases = result.record["switching"]["phases"]
    assert [(phase["first"], phase["kind"]) for phase in phases] == [
        (1, "probe"),
        (11, "run"),
        (43, "probe"),
        (51, "run"),
    ]
    evaluated = [row["step"] for row in result.record["history"] if "macro_f1" in row]
    assert evaluated == [10, 18, 27, 36, 50, 54, 63, 72, 81, 90]
    assert result.metrics["best_step"] in evaluated


def slow_accounting(record: dict[str, Any], sizes: list[int], always: int, total: int) -> dict[str, float]:
    """Parameters in training, step by step, from the phases of the record."""
    phases, steps = record["switching"]["phases"], int(record["metrics"]["steps"])
    counts = []
    for step in range(1, steps + 1):
        (*_, phase) = (phase for phase in phases if phase["first"] <= step)
        counts.append(always + sum(sizes[number] for number in phase["active"]))
    # Until the step that was kept; a probe that trains leaves its steps in what is chosen at its end.
    until = int(record["metrics"]["best_step"]) + (record["switching"]["plan"]["score"] in ("weight_change", "inverse"))
    ever = {n for phase in phases if phase["kind"] == "run" and phase["first"] <= until for n in phase["active"]}
    cumulative = always + sum(sizes[number] for number in ever)
    return {
        "instantaneous": counts[-1] / total,
        "mean": float(np.mean(counts)) / total,
        "peak": max(counts) / total,
        "cumulative": cumulative / total,
    }


@pytest.mark.parametrize("kind", DYNAMIC)
def test_accounting_agrees_with_a_count_of_every_step(kind: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    method, settings = DYNAMIC[kind]
    output = tmp_path / "out"
    result = finetune(tiny("bert"), corpus, method=method, output=output, options=replace(SHORT, **settings))
    record = result.record
    assert read_record(output) == record
    with quiet():
        model = load_classifier(tiny("bert"), corpus.labels).model
    sizes = [sum(p.numel() for p in block.parameters()) for block in transformer_blocks(model)]
    names, total = head_parameters(model), sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for name, p in model.named_parameters() if name in names)
    accounting = record["accounting"]
    assert (accounting["total"], accounting["blocks"]) == (total, sum(sizes))
    for name, share in slow_accounting(record, sizes, head, total).items():
        assert accounting[name]["of_total"] == pytest.approx(share), name
        assert accounting[name]["parameters"] == round(share * total)
        assert accounting[name]["of_blocks"] == pytest.approx((share * total - head) / sum(sizes))
    budget = settings.get("budget", 0.25)
    assert accounting["instantaneous"]["of_blocks"] == budget == len(record["switching"]["choices"][0]["active"]) / 4
    assert accounting["peak"]["of_blocks"] == (1.0 if kind in {"weight_change", "commit"} else budget)
    assert record["parameters"]["trainable"] == accounting["instantaneous"]["parameters"]
    assert "; blocks chosen: " in str(result)
    assert "at a time; mean" in str(result) and f"peak {100 * accounting['peak']['of_total']:.1f} %" in str(result)
    assert record["switching"]["blocks"] == [f"bert.encoder.layer.{number}" for number in range(4)]


def test_accounting_of_methods_that_do_not_choose(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """What trains is constant, so that all four numbers are one; `full` trains embeddings beside all blocks."""
    for method, blocks in {"full": 1.0, "head": 0.0, "last_k": 0.25, "first_k": 0.25, "random_k": 0.25}.items():
        options = replace(SHORT, max_steps=2)
        record = finetune(tiny("bert"), corpus, method=method, output=tmp_path / method, options=options).record
        assert record["switching"] is None
        shares = [record["accounting"][name] for name in ("instantaneous", "mean", "peak", "cumulative")]
        assert all(share == shares[0] for share in shares)
        trainable, total = record["parameters"]["trainable"], record["parameters"]["total"]
        assert shares[0] == {"parameters": trainable, "of_total": trainable / total, "of_blocks": blocks}


def test_the_budget_holds_in_every_run_phase(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    options = replace(SHORT, budget=0.4)
    record = finetune(tiny("bert"), corpus, method="alf", output=tmp_path / "out", options=options).record
    assert record["selection"] == {"budget": 0.4, "denominator": "total", "score": "weight_change", "commit": False}
    instantaneous = record["accounting"]["instantaneous"]
    size = record["accounting"]["blocks"] / 4
    assert instantaneous["of_total"] <= 0.4 < instantaneous["of_total"] + size / record["accounting"]["total"]


def run(tiny: Tiny, corpus: Corpus, output: Path, seed: int, **settings: Any) -> TrainingResult:
    method = settings.pop("method", "alf")
    return finetune(tiny("bert"), corpus, method=method, output=output, seed=seed, options=replace(SHORT, **settings))


@pytest.mark.parametrize("kind", ["weight_change", "lisa"])
def test_the_same_command_gives_the_same_choices_and_weights(kind: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    method, settings = DYNAMIC[kind]
    first = run(tiny, corpus, tmp_path / "a", 3, method=method, **settings)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 the Trainer draws from this one
    second = run(tiny, corpus, tmp_path / "b", 3, method=method, **settings)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert first.record["switching"] == second.record["switching"]
    third = run(tiny, corpus, tmp_path / "c", 4, method=method, **settings)
    assert first.record["switching"]["choices"] != third.record["switching"]["choices"]


@pytest.mark.parametrize("score", SCORES)
def test_every_score_runs_and_is_recorded(score: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    result = run(tiny, corpus, tmp_path / "out", 0, budget=0.5, denominator="blocks", score=score)
    choices = result.record["switching"]["choices"]
    assert result.record["switching"]["plan"]["score"] == score and len(choices) > 1
    assert all(len(choice["scores"]) == 4 and len(choice["active"]) == 2 for choice in choices)
    assert all(math.isfinite(value) for choice in choices for value in choice["scores"])
    if score == "last_k":
        assert all(choice["active"] == [2, 3] for choice in choices)


@pytest.mark.parametrize("method", ["alf", "lisa", "first_k", "random_k"])
def test_the_loss_falls(method: str, tiny: Tiny, corpus: Corpus, tmp_path: Path):
    settings = {"budget": 0.5} if method == "alf" else {"k": 2}
    options = replace(SHORT, max_steps=150, validation=corpus, max_length=None, **settings)
    result = finetune(tiny("bert"), corpus, method=method, output=tmp_path / "out", options=options)
    losses = [row["loss"] for row in result.record["history"] if "loss" in row]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_lisa_draws_every_twenty_steps_and_not_after_the_last(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    record = run(tiny, corpus, tmp_path / "out", 0, method="lisa", k=2, max_steps=60).record
    assert [choice["step"] for choice in record["switching"]["choices"]] == [0, 20, 40]
    assert all(len(choice["active"]) == 2 for choice in record["switching"]["choices"])


def test_faults_are_named_in_one_line_and_nothing_is_written(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    cases = [
        ("alf", {"k": 2}, TrainingError, "k=2 means nothing to 'alf': it belongs to last_k, first_k, random_k, lisa"),
        ("lisa", {"budget": 0.3}, TrainingError, r"budget=0\.3 means nothing to 'lisa': it belongs to alf"),
        ("full", {"score": "rms"}, TrainingError, "score=rms means nothing to 'full': it belongs to alf"),
        ("last_k", {"commit": True}, TrainingError, "commit means nothing to 'last_k'"),
        ("alff", {}, UnknownName, "unknown fine-tuning method 'alff': did you mean 'alf'"),
        ("alf", {"score": "weight_chnge"}, UnknownName, "unknown score 'weight_chnge': did you mean 'weight_change'"),
        ("alf", {"denominator": "all"}, UnknownName, "unknown denominator 'all': known: blocks, total"),
        ("alf", {"budget": 0.01}, TrainingError, r"budget=0\.01 of total parameters .* needed a budget of at least"),
        ("alf", {"budget": 0.2, "denominator": "blocks"}, TrainingError, r"at least 0\.2500"),
        ("alf", {"max_steps": 5, "budget": 0.5}, TrainingError, "needs a run of at least 6 steps, got 5"),
        ("lisa", {"k": 5}, TrainingError, "k=5 asks for more blocks than BertForSequenceClassification has: at most 4"),
    ]
    for method, settings, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            finetune(tiny("bert"), corpus, method=method, output=tmp_path / "out", options=replace(SHORT, **settings))
        assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget", [0, -0.1, 1.1, float("nan"), "0.3"])
def test_a_budget_is_a_share(budget: Any):
    with pytest.raises(TrainingError, match="budget must be a share above 0 and at most 1"):
        TrainOptions(budget=budget)


@pytest.mark.parametrize("method", ["alf", "lisa", "first_k", "random_k"])
def test_layers_that_share_their_weights_cannot_be_chosen(method: str):
    shape: dict[str, Any] = {"embedding_size": 4, "hidden_size": 4, "num_hidden_layers": 3, "num_attention_heads": 1}
    model = AlbertForSequenceClassification(AlbertConfig(**shape, vocab_size=9, intermediate_size=4))
    with pytest.raises(UnsupportedModel, match="shares blocks between layers"):
        METHODS[method].select(model, TrainOptions())


def test_a_block_that_shares_a_parameter_with_the_rest_is_refused(tiny: Tiny):
    with quiet():
        model = load_classifier(tiny("bert"), ("a", "b")).model
    norm = model.get_submodule("bert.embeddings.LayerNorm")
    model.get_submodule("bert.encoder.layer.1.output.LayerNorm").weight = norm.weight  # pyright: ignore
    with pytest.raises(UnsupportedModel, match="a block shares a parameter with what lies outside the blocks"):
        METHODS["alf"].select(model, TrainOptions(budget=0.5))


def test_static_methods_take_the_blocks_they_name(tiny: Tiny):
    with quiet():
        model = load_classifier(tiny("bert"), ("a", "b")).model

    def blocks(method: str, seed: int = 0, **settings: Any) -> set[str]:
        parameters = METHODS[method].select(model, TrainOptions(**settings), seed).parameters
        assert head_parameters(model) <= parameters
        return {name.split(".")[3] for name in parameters if ".layer." in name}

    assert blocks("first_k") == {"0"} and blocks("first_k", k=3) == {"0", "1", "2"}
    assert blocks("random_k", 5, k=2) == blocks("random_k", 5, k=2)
    assert len({frozenset(blocks("random_k", seed, k=2)) for seed in range(20)}) > 3
    assert blocks("alf", budget=0.5) == blocks("lisa") == {"0", "1", "2", "3"}  # for the optimizer to hold


def test_head_and_embeddings_count_in_the_total(tiny: Tiny):
    """The pooler has 16 · 16 + 16 parameters and the classifier 16 · 2 + 2; blocks get what they leave."""
    with quiet():
        model = load_classifier(tiny("bert"), ("a", "b")).model
    room = {}
    for denominator in ("total", "blocks"):
        plan = METHODS["alf"].select(model, TrainOptions(budget=0.5, denominator=denominator)).plan
        assert plan is not None
        room[denominator] = plan(100).capacity
    total = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for block in transformer_blocks(model) for p in block.parameters())
    assert room == {"total": total // 2 - 306, "blocks": blocks // 2}


def test_the_command_line(tiny: Tiny, data_file: Path, tmp_path: Path):
    words = ["finetune", str(tiny("bert")), "--data", str(data_file), "--max-steps", "20", "--batch-size", "8"]
    alf = ["--method", "alf", "--budget", "0.5", "--denominator", "blocks", "--score", "grad_ratio", "--commit"]
    done = CliRunner().invoke(app, [*words, *alf, "--device", "cpu", "-o", str(tmp_path / "alf"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"] == "alf"
    record = read_record(tmp_path / "alf")
    assert record is not None and record["method"] == "alf" and record["options"]["budget"] == 0.5
    assert record["selection"] == {"budget": 0.5, "denominator": "blocks", "score": "grad_ratio", "commit": True}
    assert len(record["switching"]["choices"]) == 1
    for method in ("lisa", "first_k", "random_k"):
        output = str(tmp_path / method)
        done = CliRunner().invoke(app, [*words, "--method", method, "--k", "2", "--device", "cpu", "-o", output])
        assert done.exit_code == 0 and f"fine-tuned by '{method}'" in done.stdout
        record = read_record(tmp_path / method)
        assert record is not None and record["k"] == 2


def test_minilm_under_both_denominators(minilm: Path, corpus: Corpus, tmp_path: Path):
    """A quarter of 22.7 million parameters is three of six blocks less the head, or one of six among blocks."""
    options = TrainOptions(max_steps=12, batch_size=8, learning_rate=4e-4, device="cpu", commit=True)
    active = {}
    for denominator in ("total", "blocks"):
        where = tmp_path / denominator
        chosen = replace(options, denominator=denominator)
        result = finetune(minilm, corpus, method="alf", output=where, options=chosen)
        active[denominator] = len(result.record["switching"]["choices"][0]["active"])
        losses = [row["loss"] for row in result.record["history"] if "loss" in row]
        assert losses[-1] < losses[0]
    assert active == {"total": 3, "blocks": 1}
