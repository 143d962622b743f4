"""Overlap of selections: hand numbers, chance by enumeration, and what a run's record says."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from attnlens.checkpoints.identity import read_record
from attnlens.text.corpus import Corpus
from attnlens.training.alf import Choice, Plan
from attnlens.training.overlap import expected_jaccard, inverse_rms, jaccard, selection_overlap
from attnlens.training.train import TrainOptions, finetune


def controller(blocks: int, *chosen: tuple[int, ...]) -> Any:
    choices = [Choice(step, (), (), active) for step, active in enumerate(chosen)]
    return SimpleNamespace(blocks=[()] * blocks, choices=choices, plan=Plan("grad_ratio"))


def test_jaccard_by_hand():
    assert jaccard({0, 1}, {1, 2}) == pytest.approx(1 / 3)
    assert jaccard((3,), (3,)) == 1 and jaccard((3,), (2,)) == 0
    assert jaccard((), ()) == 1 and jaccard((), (1,)) == 0


def test_chance_by_hand():
    assert expected_jaccard(3, 2, 2) == pytest.approx(5 / 9)
    assert expected_jaccard(4, 1, 1) == pytest.approx(1 / 4)
    assert expected_jaccard(6, 6, 6) == 1 and expected_jaccard(6, 0, 0) == 1 and expected_jaccard(6, 0, 2) == 0


@pytest.mark.parametrize("blocks", range(1, 8))
def test_chance_is_the_mean_over_all_sets(blocks: int):
    for drawn in range(blocks + 1):
        for fixed in range(blocks + 1):
            every = [jaccard(one, range(fixed)) for one in combinations(range(blocks), drawn)]
            assert expected_jaccard(blocks, drawn, fixed) == pytest.approx(np.mean(every)), (drawn, fixed)


def test_overlap_with_each_control_by_hand():
    """Six blocks, {3, 5} at last: last two {4, 5}, first two {0, 1}, smallest weights {5, 3}."""
    found = selection_overlap(controller(6, (0, 1), (1, 3), (3, 5)), (1.0, 2.0, 1.5, 7.0, 2.5, 9.0), 100, real=(3, 4))
    assert found is not None and found["active"] == [3, 5]
    assert found["jaccard"] == pytest.approx({"last_k": 1 / 3, "first_k": 0.0, "rms": 1.0})
    assert found["chance"] == pytest.approx((1 + 8 / 3) / 15)  # of 15 pairs one is the same, eight share a block
    assert found["stability"] == pytest.approx(1 / 3) and found["stability_chance"] == pytest.approx(found["chance"])
    assert found["real"] == pytest.approx(1 / 3)


def test_overlap_of_few_choices():
    assert selection_overlap(controller(4), (1.0,) * 4, 100) is None
    once = selection_overlap(controller(4, (0, 1, 2, 3)), (1.0,) * 4, 100)
    assert once is not None and once["stability"] is None and once["stability_chance"] is None
    assert set(once["jaccard"].values()) == {1.0} and once["chance"] == 1 and "real" not in once


def test_choices_after_the_kept_step_have_no_part_in_it():
    """Choices at steps 0, 1 and 2; a probe that trains leaves its steps in what it chose."""
    run = controller(4, (0,), (1,), (2,))
    assert [(selection_overlap(run, (1.0,) * 4, kept) or {}).get("active") for kept in range(4)] == [
        None,
        [0],
        [1],
        [2],
    ]
    run.plan = Plan("weight_change")
    assert [(selection_overlap(run, (1.0,) * 4, kept) or {}).get("active") for kept in range(4)] == [[0], [1], [2], [2]]


def test_inverse_rms_by_hand():
    """A block of weights ±2 has RMS 2, so 1/2; where all are ten times as large, 1/20."""
    shape = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4, "vocab_size": 9}
    with torch.random.fork_rng():
        model = BertForSequenceClassification(BertConfig(**shape, num_hidden_layers=2))  # pyright: ignore
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(-20.0 if "layer.1." in name else 2.0)
    assert inverse_rms(model) == pytest.approx((0.5, 0.05))


def test_the_record_of_a_run_and_of_its_twin(tiny: Any, corpus: Corpus, tmp_path: Path):
    """`last_k` as a score chooses the last block every time, and so does its twin."""
    options = TrainOptions(max_steps=20, batch_size=4, learning_rate=1e-2, max_length=16, device="cpu", null_twin=True)
    chosen = replace(options, score="last_k", budget=0.25, denominator="blocks")
    finetune(tiny("bert"), corpus, method="alf", output=tmp_path / "out", options=chosen)
    real, twin = (read_record(tmp_path / name) for name in ("out", "out.null"))
    assert real is not None and twin is not None
    assert real["selection_overlap"]["active"] == [3] and real["selection_overlap"]["jaccard"]["last_k"] == 1
    assert real["selection_overlap"]["chance"] == 0.25 and real["selection_overlap"]["stability"] in {1, None}
    assert twin["selection_overlap"] == {**real["selection_overlap"], "real": 1.0}


def test_a_run_that_chooses_no_blocks_has_no_overlap(tiny: Any, corpus: Corpus, tmp_path: Path):
    options = TrainOptions(max_steps=2, batch_size=4, max_length=16, device="cpu")
    assert finetune(tiny("bert"), corpus, output=tmp_path / "out", options=options).record["selection_overlap"] is None
