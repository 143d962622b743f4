"""How much is trained, counted by hand for methods that add parameters, and what adapters do to the weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification

from attnlens.checkpoints.blocks import transformer_blocks
from attnlens.checkpoints.load import quiet
from attnlens.text.corpus import Corpus
from attnlens.training.accounting import trained_parameters
from attnlens.training.movement import Movement
from attnlens.training.options import TrainOptions
from tests.training.test_observers import ANY, FEW, job

Tiny = Callable[[str], Path]
D, LAYERS, LABELS = 16, 4, 3  # of the tiny models


def counted(base: Path, corpus: Corpus, method: str, options: TrainOptions) -> tuple[dict[str, int], dict[str, Any]]:
    """Parameters of the base with its head and of its blocks, and the accounting."""
    task = job(base, corpus, method, options)
    with quiet(), torch.random.fork_rng():
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS)
    sizes = {
        "base": sum(parameter.numel() for parameter in plain.parameters()),
        "blocks": sum(parameter.numel() for block in transformer_blocks(plain) for parameter in block.parameters()),
    }
    return sizes, trained_parameters(task.base.model, None, 10, task.model)


HEAD = D * D + D + LABELS * D + LABELS  # of BERT: the pooler, which is part of it, and the classifier


@pytest.mark.parametrize(
    ("method", "options", "outside", "inside"),
    [
        ("lora", replace(FEW, rank=2), HEAD, LAYERS * 2 * (2 * D + 2 * D)),  # queries and values
        ("prompt", replace(FEW, virtual_tokens=5), 5 * D + HEAD, 0),
        ("adapter", replace(FEW, bottleneck=4), HEAD, LAYERS * (4 * D + 4 + 4 * D + D)),
        ("last_k", replace(FEW, k=1), HEAD, None),
    ],
)
def test_parameters_by_hand(
    method: str, options: TrainOptions, outside: int, inside: int | None, tiny: Tiny, corpus: Corpus
):
    """Of base and added ones together; what lies in a block counts among the blocks'."""
    sizes, found = counted(tiny("bert"), corpus, method, options)
    added = inside if inside is not None else 0
    inside = inside if inside is not None else sizes["blocks"] // LAYERS
    total = sizes["base"] + added + (5 * D if method == "prompt" else 0)
    assert found["total"] == total and found["blocks"] == sizes["blocks"] + added
    for part in ("instantaneous", "mean", "peak", "cumulative"):
        assert found[part] == {
            "parameters": outside + inside,
            "of_total": (outside + inside) / total,
            "of_blocks": inside / (sizes["blocks"] + added),
        }


def test_tied_weights_count_once(tiny_lm: Tiny, corpus: Corpus):
    """GPT-2's head is its table of embeddings."""
    rows = replace(corpus, examples=tuple(replace(row, label=None) for row in corpus))
    task = job(tiny_lm("gpt2"), rows)
    found = trained_parameters(task.base.model, None, 1, task.model)
    vocabulary = len(task.base.tokenizer)
    block = 2 * 2 * D + (3 * D * D + 3 * D) + (D * D + D) + (4 * D * D + 4 * D) + (4 * D * D + D)
    assert found["total"] == vocabulary * D + 40 * D + LAYERS * block + 2 * D
    assert found["peak"] == {"parameters": found["total"], "of_total": 1.0, "of_blocks": 1.0}


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_movement_of_an_adapter_is_that_of_the_merged_weights(
    method: str, architecture: str, tiny: Tiny, corpus: Corpus
):
    """The factors against the matrices that PEFT merges (new biases are 0); before any step nothing has moved."""
    task = job(tiny(architecture), corpus, method)
    watch = Movement(task)
    state: Any = SimpleNamespace(global_step=1, max_steps=2)
    before: list[Any] = [part for block in transformer_blocks(task.base.model) for part in block.modules()]
    base = {
        id(part): part.get_base_layer().weight.detach().double() for part in before if hasattr(part, "get_base_layer")
    }
    base = {number: weight.clone() for number, weight in base.items()}
    watch.on_train_begin(ANY, state, ANY)
    watch.on_step_end(ANY, state, ANY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    watch.on_step_end(ANY, state, ANY)
    start, found = watch.facts()["change"]
    assert all(change == pytest.approx(0, abs=1e-7) for block in start for change in block)
    adapted = [part for part in before if id(part) in base]
    squares = []
    for layer in adapted:
        layer.merge()
        squares.append((layer.get_base_layer().weight.detach().double() - base[id(layer)]).square().sum().item())
    together = [
        math.sqrt(sum((change * length) ** 2 for change, length in zip(block, lengths, strict=True)))
        for block, lengths in zip(found, watch._lengths, strict=True)
    ]
    assert sum(length**2 for length in together) == pytest.approx(sum(squares), rel=1e-4)
    assert isinstance(adapted[0], LoraLayer) == (method == "lora") and min(together) > 0
