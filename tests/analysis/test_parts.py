"""Part files and what a forward pass depends on besides the weights: hooks of the user's."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CheckpointError
from attnlens.text.corpus import Corpus


def halved(module, args, output):
    return (output[0] / 2, *output[1:])


class Watcher:
    def __call__(self, module, args):
        return None


def hooked(checkpoint: Checkpoint, *, before=None, after=None) -> Checkpoint:
    model = copy.deepcopy(checkpoint.model)
    attention = model.encoder.layer[0].attention.self
    if before is not None:
        attention.register_forward_pre_hook(before)
    if after is not None:
        attention.register_forward_hook(after)
    return Checkpoint(model, checkpoint.tokenizer, "hooked", {})


@pytest.mark.parametrize(
    ("hooks", "named"),
    [
        ({"after": halved}, "test_parts.halved"),
        ({"after": partial(halved)}, "test_parts.halved"),
        ({"before": Watcher()}, "test_parts.Watcher"),
    ],
)
def test_part_files_are_refused_where_a_hook_may_change_the_numbers(
    base: Checkpoint, corpus: Corpus, tmp_path: Path, hooks: dict, named: str
):
    """With the same weights, parts of the model without the hook would have been taken for its own."""
    few = corpus.select([0, 1, 2, 3])
    kept = CompareOptions(passages=0, parts=tmp_path)
    compare(base, Checkpoint(base.model, base.tokenizer, "hooked", {}), corpus=few, salience=(), options=kept)
    before = sorted(path.name for path in tmp_path.iterdir())
    model = hooked(base, **hooks)
    with pytest.raises(CheckpointError, match=rf"hooked has forward hooks \(.*{named}\), and part files cannot tell"):
        compare(base, model, corpus=few, salience=(), options=kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    got = compare(base, model, corpus=few, salience=(), options=CompareOptions(passages=0))
    moved = np.abs(got.data["entropy"].isel(model=1) - got.data["entropy"].isel(model=0)).max()
    assert (float(moved) > 1e-3) == ("after" in hooks)


def test_hooks_of_the_libraries_are_known_by_weights_and_configuration(
    base: Checkpoint, corpus: Corpus, tmp_path: Path
):
    """transformers leaves hooks on a model that was once asked for its hidden states."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in model.modules())
    other = Checkpoint(model, base.tokenizer, "asked", {})
    options = CompareOptions(passages=0, parts=tmp_path)
    assert compare(base, other, corpus=corpus.select([0, 1]), salience=(), options=options).answer.verdict
