"""Part files and what a forward pass depends on besides the weights: hooks of the user's."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.measure import _joined
from attnlens.analysis.parts import Parts, silent
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import AttnlensError, CheckpointError
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


def test_all_files_are_written_before_one_is_read(tmp_path: Path):
    """So that memory does not grow while models run; files of another run are written anew, and no progress of one."""

    def computed(number: int) -> dict[str, np.ndarray]:
        return {"example": np.array([number]), "values": np.full((1, 1), number)}

    list(Parts(lambda number: computed(number + 10), [2, 1, 4], tmp_path, "another run").collected(silent))
    told = []
    parts = Parts(computed, [2, 1, 4], tmp_path, "this run").collected(lambda *counts: told.append(counts))
    values = [next(parts)["values"].item()]
    assert told == [(0, 7), (2, 7), (3, 7), (7, 7)] and len(list(tmp_path.iterdir())) == 3
    assert values + [part["values"].item() for part in parts] == [0, 1, 2]


def part(places: list[int], name: str = "values") -> dict[str, np.ndarray]:
    values = np.array([[10.0 * place for place in places]])
    return {"example": np.array(places), "identity": np.array("it"), name: values, "similarity": values[..., None]}


def test_every_text_comes_to_its_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attnlens.analysis.hidden.merged", lambda sums: {"cka": sums[..., 0]})
    found = _joined(iter([part([3, 0]), part([2]), part([4, 1])]), 6)
    np.testing.assert_array_equal(found["values"], [[0.0, 10.0, 20.0, 30.0, 40.0, np.nan]])
    assert found["cka"].tolist() == [[30.0, 0.0, 20.0, 40.0, 10.0]] and set(found) == {"values", "cka"}
    with pytest.raises(CheckpointError, match=r"two versions of attnlens \(others, values\): remove the folder"):
        _joined(iter([part([0]), part([1], "others")]), 2)


class Crowded:
    """A device that holds so many texts at once."""

    def __init__(self, most: int, error: Exception):
        self.most, self.error = most, error

    def __call__(self, module, args):
        if len(args[0]) > self.most:
            raise self.error


FULL = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"
    ),
    "NumPy": MemoryError("Unable to allocate 2.00 GiB for an array"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=list(FULL))
def test_a_batch_that_memory_does_not_hold_is_halved(
    base: Checkpoint, corpus: Corpus, error: Exception, caplog: pytest.LogCaptureFixture
):
    """Until it does; it says so, and numbers of texts are those of the whole batch but for rounding."""
    few, options = corpus.select(range(7)), CompareOptions(batch_size=7, passages=0)
    whole = compare(base, hooked(base), corpus=few, salience=(), options=options)
    got = compare(base, hooked(base, before=Crowded(2, error)), corpus=few, salience=(), options=options)
    for name in ("entropy", "jsd", "hidden_change"):
        np.testing.assert_allclose(got.data[name], whole.data[name], atol=1e-5, err_msg=name)
    told = [record.getMessage() for record in caplog.records if record.name == "attnlens"]
    assert [line.rpartition(" ")[2] for line in told] == ["3", "1", "2"]  # 7 → 3 + 4, 3 → 1 + 2, 4 → 2 + 2
    assert all("texts of" in line and "tokens at once: going on with" in line for line in told)


def test_one_text_that_memory_does_not_hold_is_an_error_that_says_what_to_do(base: Checkpoint, corpus: Corpus):
    few = corpus.select(range(4))
    lengths = sorted(len(base.tokenizer(example.text)["input_ids"]) for example in few)

    for longest in (lengths[-1], lengths[0]):  # the last batch, and the look at the shortest text

        def short_alone(module, args, longest=longest):
            if args[0].shape[1] >= longest:
                raise FULL["GPU"]

        told = rf"memory does not hold one text of {longest} tokens: shorten texts with --max-length"
        with pytest.raises(AttnlensError, match=told):
            compare(base, hooked(base, before=short_alone), corpus=few, salience=(), options=CompareOptions(passages=0))


def test_other_faults_of_a_model_are_no_lack_of_memory(base: Checkpoint, corpus: Corpus):
    model = hooked(base, before=Crowded(1, RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        compare(base, model, corpus=corpus.select(range(4)), salience=(), options=CompareOptions(passages=0))
