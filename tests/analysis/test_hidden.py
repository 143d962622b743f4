"""Hidden states of base and tuned against plain transformers in float64, text by text and without padding."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf

from attnlens.analysis.hidden import HiddenPair, counted, hidden_change, states
from attnlens.analysis.prepare import Prepared, Reading, assemble, plan, prepare
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CheckpointError, CorpusError, ShapeError
from attnlens.text.corpus import Corpus

KINDS = ("bert", "llama")


@pytest.fixture(scope="module")
def llama(base: Checkpoint) -> Checkpoint:
    config = tf.LlamaConfig(
        vocab_size=len(base.tokenizer),
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Checkpoint(tf.LlamaForCausalLM(config).eval(), base.tokenizer, "llama", {})


@pytest.fixture(scope="module")
def pairs(base: Checkpoint, tuned: Checkpoint, llama: Checkpoint) -> dict[str, list[Checkpoint]]:
    """Base and a copy whose second layer is changed, of an encoder and of a decoder."""
    model = copy.deepcopy(llama.model)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return {"bert": [base, tuned], "llama": [llama, replace(llama, model=model, name="moved")]}


@pytest.fixture(scope="module")
def prepared(base: Checkpoint, corpus: Corpus) -> Prepared:
    return prepare(corpus.select(range(10)), [base], Reading("content", max_length=40))


def slow(models: list[Checkpoint], prepared: Prepared, index: int) -> list[list[np.ndarray]]:
    """States (n, D) of one text's counted tokens, for each model and layer, alone and in float64."""
    encoded, found = prepared.encodings[index], []
    keep = ~encoded.special
    for checkpoint in models:
        model = copy.deepcopy(checkpoint.model).double()
        with torch.no_grad():
            output = model.base_model(torch.from_numpy(encoded.ids)[None], output_hidden_states=True)
        found.append([state[0].numpy()[keep] for state in output.hidden_states])
    return found


def slow_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, with the kernels written out."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_transformers(kind: str, pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    models = pairs[kind]
    got = hidden_change(models, prepared, batch_size=4)
    one_by_one = [slow(models, prepared, index) for index in range(len(prepared.examples))]
    for index, (old, new) in enumerate(one_by_one):
        for layer, (h, moved) in enumerate(zip(old, new, strict=True)):
            expected = np.mean(np.linalg.norm(moved - h, axis=1) / np.linalg.norm(h, axis=1))
            assert got.relative[0, index, layer] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert got.relative.shape == (1, 10, 3)
    for layer in range(3):
        sums = np.zeros(3)
        for indices in plan(prepared, 4):
            x, y = (np.concatenate([one_by_one[i][side][layer] for i in indices]) for side in (0, 1))
            sums += len(x) * np.array([slow_hsic(x, y), slow_hsic(x, x), slow_hsic(y, y)])
        expected = sums[0] / math.sqrt(sums[1] * sums[2])
        assert got.table["cka"][layer] == pytest.approx(expected, abs=1e-5)
    tokens = sum(int((~encoded.special).sum()) for encoded in prepared.encodings)
    assert (got.table["tokens"] == tokens).all() and (got.table["skipped"] == 0).all()
    assert (got.table["cka"][:2] == 1).all() and got.table["cka"][2] < 1, "only the second block was changed"
    assert (got.relative[:, :, :2] == 0).all() and (got.relative[:, :, 2] > 0).all()


def test_the_table_counts_documents_once(pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    got = hidden_change(pairs["bert"], prepared, batch_size=4)
    names = np.array([example.document for example in prepared.examples])
    means = [got.relative[0, names == name, 2].mean() for name in np.unique(names)]
    assert got.table["relative"][2] == pytest.approx(np.mean(means), rel=1e-12)
    assert (got.table["n"] == len(means)).all() and got.table["model"].unique().tolist() == ["tuned"]


@pytest.mark.parametrize("kind", KINDS)
def test_base_against_itself_is_exactly_nothing(kind: str, pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    base = pairs[kind][0]
    got = hidden_change([base, base, pairs[kind][1]], prepared, batch_size=3)
    assert (got.relative[0] == 0).all() and got.relative[1, :, 2].min() > 0
    itself = got.table[: got.relative.shape[2]]
    assert (itself["cka"] == 1).all() and (itself["relative"] == 0).all()


def test_swapped_models_have_the_same_cka(pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    there, back = (hidden_change(models, prepared).table for models in (pairs["bert"], pairs["bert"][::-1]))
    np.testing.assert_allclose(there["cka"], back["cka"], rtol=1e-12)


def test_texts_do_not_depend_on_their_batch(pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    one, many = (hidden_change(pairs["llama"], prepared, batch_size=size) for size in (1, 10))
    np.testing.assert_allclose(one.relative, many.relative, rtol=1e-4, atol=1e-7)
    assert (one.table["tokens"] == many.table["tokens"]).all()


def test_special_tokens_padding_and_the_decoders_first_token_do_not_count(prepared: Prepared, base: Checkpoint):
    bare = replace(prepared, encodings=tuple(replace(e, special=np.zeros_like(e.special)) for e in prepared.encodings))
    batch = assemble(bare, np.arange(4), base)
    encoder, decoder = (counted(bare, batch, decoder=decoder) for decoder in (False, True))
    assert (encoder == batch.mask.bool()).all()
    assert not decoder[:, 0].any() and (decoder[:, 1:] == encoder[:, 1:]).all()
    assert (counted(prepared, batch, decoder=False).sum(1) == batch.mask.sum(1) - 2).all()


def test_a_text_without_tokens_is_no_data_and_counted():
    valid = torch.tensor([[True] * 5, [False] * 5])
    base, tuned = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    pair = HiddenPair()
    pair.update([base], [tuned], valid)
    assert np.isnan(pair.relative[1, 0]) and pair.relative[0, 0] > 0
    row = pair.frame().iloc[0]
    assert (row["n"], row["tokens"]) == (1, 5) and row["relative"] == pair.relative[0, 0]
    few = HiddenPair()
    few.update([base], [tuned], torch.arange(10).reshape(2, 5) < 3)
    assert few.frame()["skipped"][0] == 3 and math.isnan(few.frame()["cka"][0])
    assert HiddenPair().frame().empty


def test_what_does_not_fit_is_refused(base: Checkpoint, prepared: Prepared):
    with pytest.raises(CorpusError, match="at least one tuned model"):
        hidden_change([base], prepared)
    state, valid = torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    for layers in ([state], [state, state[:1]]):
        with pytest.raises(ShapeError, match="same layers and tokens of both models"):
            HiddenPair().update([state, state], layers, valid)
    pair = HiddenPair()
    pair.update([state], [state], valid)
    with pytest.raises(ShapeError, match="1 states came before; got 2"):
        pair.update([state, state], [state, state], valid)
    broken = replace(base, model=copy.deepcopy(base.model), name="broken")
    with torch.no_grad():
        broken.model.encoder.layer[1].output.dense.bias.fill_(math.nan)
    with pytest.raises(CheckpointError, match="broken gives hidden states that are no numbers"):
        hidden_change([base, broken], prepared)


def test_states_leave_the_model_as_it_was(base: Checkpoint, prepared: Prepared):
    batch = assemble(prepared, np.arange(3), base)
    before = base.backbone(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    found = states(base, batch, batch.mask.bool())
    after = base.backbone(input_ids=batch.ids, attention_mask=batch.mask)
    assert len(found) == 3 and found[0].shape == (*batch.ids.shape, 32)
    assert torch.equal(before, after.last_hidden_state) and after.hidden_states is None
    assert torch.equal(found[-1][batch.mask.bool()], before[batch.mask.bool()])
