"""Hidden states of base and tuned against plain transformers in float64, text by text and without padding."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor

from attnlens.analysis import hidden
from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.hidden import counted, merged, moved
from attnlens.analysis.measure import MeasureOptions, measure
from attnlens.analysis.prepare import Prepared, Reading, assemble, plan, prepare
from attnlens.analysis.subjects import Subject
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CheckpointError, ShapeError
from attnlens.core.similarity import cka
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


def measured(models: list[Checkpoint], prepared: Prepared, batch_size: int = 4, **options):
    """hidden_change (M − 1, N, L + 1), cka (M − 1, L + 1) and the tokens it saw."""
    subjects = [Subject(model, number == 0) for number, model in enumerate(models)]
    arrays = measure(subjects, prepared, MeasureOptions(batch_size, **options)).arrays
    assert np.isnan(arrays["hidden_change"][0]).all() and np.isnan(arrays["cka"][0]).all(), "no model is its own null"
    assert np.isnan(arrays["cka_tokens"][0]).all() and len(np.unique(arrays["cka_tokens"][1:])) == 1
    return arrays["hidden_change"][1:], arrays["cka"][1:], arrays["cka_tokens"][1, 0]


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
    left, right = x @ x.T, y @ y.T
    np.fill_diagonal(left, 0)
    np.fill_diagonal(right, 0)
    one = np.ones(n)
    middle = (one @ left @ one) * (one @ right @ one) / ((n - 1) * (n - 2))
    return (np.trace(left @ right) + middle - 2 / (n - 2) * (one @ left @ right @ one)) / (n * (n - 3))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_transformers(kind: str, pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    models = pairs[kind]
    change, found, tokens = measured(models, prepared)
    one_by_one = [slow(models, prepared, index) for index in range(len(prepared.examples))]
    for index, (old, new) in enumerate(one_by_one):
        for depth, (h, later) in enumerate(zip(old, new, strict=True)):
            expected = np.mean(np.linalg.norm(later - h, axis=1) / np.linalg.norm(h, axis=1))
            assert change[0, index, depth] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert change.shape == (1, 10, 3) and found.shape == (1, 3)
    for depth in range(3):
        sums = np.zeros(3)
        for indices in plan(prepared, 4):
            x, y = (np.concatenate([one_by_one[i][side][depth] for i in indices]) for side in (0, 1))
            sums += len(x) * np.array([slow_hsic(x, y), slow_hsic(x, x), slow_hsic(y, y)])
        assert found[0, depth] == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), abs=1e-5)
    assert tokens == sum(int((~encoded.special).sum()) for encoded in prepared.encodings)
    assert (found[0, :2] == 1).all() and found[0, 2] < 1, "only the second block was changed"
    assert (change[:, :, :2] == 0).all() and (change[:, :, 2] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_base_against_itself_is_exactly_nothing(kind: str, pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    """I-4."""
    base = pairs[kind][0]
    change, found, _ = measured([base, base, pairs[kind][1]], prepared, 3)
    assert (change[0] == 0).all() and change[1, :, 2].min() > 0
    assert (found[0] == 1).all()


def test_swapped_models_have_the_same_cka(pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    there, back = (measured(models, prepared)[1] for models in (pairs["bert"], pairs["bert"][::-1]))
    np.testing.assert_allclose(there, back, rtol=1e-12)


def test_texts_do_not_depend_on_their_batch(pairs: dict[str, list[Checkpoint]], prepared: Prepared):
    one, many = (measured(pairs["llama"], prepared, size)[0] for size in (1, 10))
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-7)


def test_a_resumed_run_has_the_same_bits(pairs: dict[str, list[Checkpoint]], prepared: Prepared, tmp_path):
    whole = measured(pairs["bert"], prepared, 3)
    first = measured(pairs["bert"], prepared, 3, parts=tmp_path)
    parts = sorted(tmp_path.glob("*.npz"))
    assert len(parts) == 4
    parts[0].unlink(), parts[2].unlink()
    resumed = measured(pairs["bert"], prepared, 3, parts=tmp_path)
    for plain, stored, again in zip(whole, first, resumed, strict=True):
        np.testing.assert_array_equal(plain, stored)
        np.testing.assert_array_equal(plain, again)


def test_a_comparison_holds_it_with_its_documents(
    base: Checkpoint, tuned: Checkpoint, corpus: Corpus, prepared: Prepared
):
    texts = corpus.select(range(10))
    options = CompareOptions(batch_size=4, max_length=40, passages=0)
    comparison = compare(base, [tuned, tuned], corpus=texts, salience=(), options=options)
    change, found, tokens = measured([base, tuned], prepared)
    np.testing.assert_array_equal(comparison.data["hidden_change"].values[1], change[0])
    assert comparison.data["hidden_change"].dims == ("model", "example", "depth")
    states = comparison.states()
    assert states["model"].tolist() == [comparison.models[1]] * 3 + [comparison.models[2]] * 3
    assert states["depth"].tolist() == [0, 1, 2] * 2 and (states["tokens"] == tokens).all()
    np.testing.assert_array_equal(states["cka"], np.tile(found[0], 2))
    names = np.array([example.document for example in texts])
    means = [change[0, names == name].mean(0) for name in np.unique(names)]
    np.testing.assert_allclose(states["hidden_change"], np.tile(np.mean(means, 0), 2), rtol=1e-12)
    assert (states["n"] == len(means)).all()


def test_a_model_without_states_says_so(base: Checkpoint, corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hidden, "states_of", lambda output, tokens: None)
    options = CompareOptions(passages=0)
    found = compare(base, base, corpus=corpus.select(range(3)), salience=(), options=options)
    assert "hidden_change" not in found.data and found.states().empty
    assert any("hidden_change has no data in some layers of" in line for line in found.provenance["warnings"])


def test_special_tokens_padding_and_the_decoders_first_token_do_not_count(prepared: Prepared, base: Checkpoint):
    bare = replace(prepared, encodings=tuple(replace(e, special=np.zeros_like(e.special)) for e in prepared.encodings))
    batch = assemble(bare, np.arange(4), base)
    encoder, decoder = (counted(bare, batch, decoder=decoder) for decoder in (False, True))
    assert (encoder == batch.mask.bool()).all()
    assert not decoder[:, 0].any() and (decoder[:, 1:] == encoder[:, 1:]).all()
    assert (counted(prepared, batch, decoder=False).sum(1) == batch.mask.sum(1) - 2).all()


def random_states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_text_without_tokens_is_no_data_and_counted():
    valid = torch.tensor([[True] * 5, [False] * 5])
    base, tuned = random_states(2, 2, 5, 3).unbind(0)
    found = moved([base], [tuned], valid)
    assert np.isnan(found["hidden_change"][1, 0]) and found["hidden_change"][0, 0] > 0
    assert merged(found["similarity"][None])["cka_tokens"].item() == 5
    few = moved([base], [tuned], torch.arange(10).reshape(2, 5) < 3)["similarity"]
    assert few[0, 0, -1] == 3, "three tokens were skipped"
    assert all(np.isnan(array).all() for array in merged(few[None]).values())
    nothing = moved([base], [tuned], torch.zeros(2, 5, dtype=torch.bool))
    assert np.isnan(nothing["hidden_change"]).all() and not nothing["similarity"].any()


def test_cka_sees_some_tokens_of_a_large_batch_and_the_change_sees_all(monkeypatch: pytest.MonkeyPatch):
    """Every fifth of 100 tokens, the first and the last among them; the same for every layer and model."""
    monkeypatch.setattr(hidden, "MOST_TOKENS", 20)
    base, tuned = random_states(2, 4, 25, 6).unbind(0)
    tuned = base + tuned
    found = moved([base], [tuned], torch.ones(4, 25, dtype=torch.bool))
    chosen = np.linspace(0, 99, 20).round().astype(int)
    got = merged(found["similarity"][None])
    assert got["cka"].item() == cka(base.reshape(100, 6)[chosen], tuned.reshape(100, 6)[chosen])
    assert got["cka_tokens"].item() == 20
    expected = ((tuned - base).norm(dim=-1) / base.norm(dim=-1)).mean(1)
    np.testing.assert_allclose(found["hidden_change"][:, 0], expected, rtol=1e-12)


def test_what_does_not_fit_is_refused(base: Checkpoint, prepared: Prepared):
    state, valid = torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    for layers in ([state], [state, state[:1]]):
        with pytest.raises(ShapeError, match="same layers and tokens of both models"):
            moved([state, state], layers, valid)
    broken = replace(base, model=copy.deepcopy(base.model), name="broken")
    with torch.no_grad():
        broken.model.encoder.layer[1].output.dense.bias.fill_(math.nan)
    with pytest.raises(CheckpointError, match="broken gives hidden states that are no numbers"):
        measured([base, broken], prepared)


def test_states_leave_the_model_as_it_was(base: Checkpoint, prepared: Prepared):
    batch = assemble(prepared, np.arange(3), base)
    before = base.backbone(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    measured([base, base], prepared)
    after = base.backbone(input_ids=batch.ids, attention_mask=batch.mask)
    assert torch.equal(before, after.last_hidden_state) and after.hidden_states is None
