"""Maps from word to word: folded from the dense maps, kept at four bits with a bound, saved and opened again."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.analysis import passages
from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.prepare import Reading, prepare
from attnlens.analysis.results import Comparison, open_comparison
from attnlens.analysis.word_maps import BETWEEN, ONE, STEPS, quantised
from attnlens.checkpoints.load import Checkpoint
from attnlens.checkpoints.maps import attention_maps
from attnlens.text.align import encode, words
from attnlens.text.corpus import Corpus, Example

TEXT = "The licensor's sub-licence, if any, terminates (see Schedule)."


@pytest.fixture(scope="module")
def comparison(base: Checkpoint, tuned: Checkpoint, corpus: Corpus) -> Comparison:
    return compare(base, tuned, corpus=corpus, salience=("spans",), options=CompareOptions(passages=3, limit=12))


def folded(checkpoint: Checkpoint, text: str) -> tuple[np.ndarray, list[str]]:
    """(L, H, U, U): mean over the pieces that look, sum over those looked at, by loops over the dense maps."""
    encoded = encode(checkpoint.tokenizer, text, 512)
    tokens = torch.from_numpy(encoded.ids)[None]
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with checkpoint.active():
        dense = attention_maps(checkpoint.backbone, batch)[0].double().numpy()
    members = [np.flatnonzero(encoded.word_of == word) for word in range(len(words(text)))]
    names = [text[start:stop] for start, stop in words(text)]
    special = np.flatnonzero(encoded.special)
    members += [np.array([position]) for position in special]
    names += checkpoint.tokenizer.convert_ids_to_tokens(encoded.ids[special].tolist())
    rest = np.flatnonzero(~encoded.special & (encoded.word_of < 0))
    if len(rest):
        members, names = [*members, rest], [*names, BETWEEN]
    found = np.full((*dense.shape[:2], len(members), len(members)), np.nan)
    for row, looking in enumerate(members):
        for column, seen in enumerate(members):
            if len(looking):
                found[..., row, column] = dense[:, :, looking][..., seen].sum(-1).mean(-1)
    return found, names


def bound(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return scale * (np.sqrt(values / scale) / STEPS + 1 / 900)


def one_text(checkpoint: Checkpoint, text: str, monkeypatch: pytest.MonkeyPatch):
    """A text's passage with one model, and its maps before they are quantised."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(passages, "quantised", lambda maps, outside: seen.append(maps) or quantised(maps, outside))
    corpus = Corpus((Example(id="a", text=text, document="a"),), "one", "", True)
    prepared = prepare(corpus, [checkpoint], Reading("content"))
    monkeypatch.setattr(passages, "_heads", lambda received, *_: [(layer, -1) for layer in range(len(received))])
    return passages._passage([checkpoint], prepared, None, 0), seen[0][0]  # pyright: ignore[reportArgumentType]


def test_a_map_is_folded_from_pieces_to_words(base: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    dense, names = folded(base, TEXT)
    passage, maps = one_text(base, TEXT, monkeypatch)
    assert passage.maps is not None
    shown = [word for word, flag in zip(passage.words, passage.is_word, strict=True) if flag]
    assert [*shown, *passage.maps.outside] == names and passage.maps.outside == ("[CLS]", "[SEP]", BETWEEN)
    np.testing.assert_allclose(maps, dense.mean(1), atol=1e-6)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-6)


def test_a_decoder_looks_back_and_its_first_token_is_a_word(base: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    config = tf.GPT2Config(vocab_size=len(base.tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.GPT2LMHeadModel(config).eval()
    decoder = Checkpoint(model, base.tokenizer, "gpt2", {})
    dense, _ = folded(decoder, TEXT)
    passage, maps = one_text(decoder, TEXT, monkeypatch)
    np.testing.assert_allclose(maps, dense.mean(1), atol=1e-6)
    assert passage.maps is not None and (np.triu(maps[:, : passage.maps.words, : passage.maps.words], 1) == 0).all()


def test_a_word_without_a_token_looks_at_nothing(base: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    passage, maps = one_text(base, "A [SEP] within the text", monkeypatch)  # a special token, spelled out
    assert passage.maps is not None and passage.maps.silent == (1,) and passage.words[2] == "SEP"
    assert np.isnan(maps[:, 1]).all() and (maps[:, 0, 1] == 0).all()
    assert np.isnan(passage.maps.values[:, :, 1]).all() and not np.isnan(passage.maps.values[:, :, 0]).any()


def test_four_bits_by_hand():
    """Words on .36, rounded up by a hair: .09 = (7.5/15)²·.36 → 7, .01 = (2.5/15)²·.36 → 2; the rest on its own .25."""
    maps = np.array([[[[0.36, 0.09, 0.0625], [0.01, 0.0, 0.25], [np.nan] * 3]]])
    got = quantised(maps, ("[CLS]",))
    assert got.scales.tolist() == [[np.ceil(0.36 * ONE), np.ceil(0.25 * ONE)]] and got.silent == (2,)
    np.testing.assert_array_equal(got.levels[0, 0], [[15, 7, 7], [2, 0, 15], [0, 0, 0]])
    expected = np.array([[15, 7, 7], [2, 0, 15], [np.nan] * 3]) ** 2 / 225 * [0.36, 0.36, 0.25]
    np.testing.assert_allclose(got.values[0, 0], expected, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), sharpness=st.floats(0.01, 12.0))
def test_no_number_is_further_off_than_the_bound(seed: int, sharpness: float):
    logits = sharpness * np.random.default_rng(seed).normal(size=(2, 3, 7, 7))
    maps = np.exp(logits - logits.max(-1, keepdims=True))
    maps /= maps.sum(-1, keepdims=True)
    got = quantised(maps, ("[CLS]",))
    scale = np.repeat(got.scales / ONE, (6, 1), -1)[:, None]
    assert (np.abs(got.values - maps) <= bound(maps, scale) + 1e-12).all()
    assert (np.abs(got.values - maps) < scale / 14).all()
    assert (np.abs(scale[:, 0, :6] - maps[..., :6].max((0, 2, 3))[:, None]) < 1 / ONE).all()


def test_short_texts_keep_every_head_and_long_ones_those_that_changed(
    comparison: Comparison, base: Checkpoint, tuned: Checkpoint, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
):
    every = {(layer, head) for layer in range(2) for head in range(-1, 4)}
    for passage in comparison.passages:
        assert passage.maps is not None
        assert set(passage.heads) == every and passage.heads[:2] == ((0, -1), (1, -1))
        assert passage.maps.levels.shape[:2] == passage.received.shape[:2] == (2, 10)
        assert sum(passage.is_word) == passage.maps.words
    options = CompareOptions(passages=2, limit=12)
    monkeypatch.setattr(passages, "SHORT", 4)
    monkeypatch.setattr(passages, "TOP_HEADS", 3)
    for long in compare(base, tuned, corpus=corpus, salience=("spans",), options=options).passages:
        assert len(long.heads) == 5 and all(layer == 1 for layer, head in long.heads if head >= 0)
    monkeypatch.setattr(passages, "LONG", 4)
    longest = compare(base, tuned, corpus=corpus, salience=("spans",), options=options).passages
    assert all(passage.maps is None and passage.received.sum() > 0 for passage in longest)


def test_what_tuning_left_alone_is_equal(comparison: Comparison):
    """Noise on the last layer's queries: the first layer's maps are the same, the second's are not."""
    for passage in comparison.passages:
        assert passage.maps is not None
        first = [place for place, (layer, _) in enumerate(passage.heads) if layer == 0]
        np.testing.assert_array_equal(passage.maps.levels[0, first], passage.maps.levels[1, first])
        assert (passage.maps.levels[0] != passage.maps.levels[1]).any()


def test_saved_and_opened_the_maps_are_the_same(comparison: Comparison, tmp_path: Path):
    for one, other in zip(open_comparison(comparison.save(tmp_path)).passages, comparison.passages, strict=True):
        assert one.maps is not None and other.maps is not None
        np.testing.assert_array_equal(one.maps.values, other.maps.values)
        np.testing.assert_array_equal(one.received, other.received)
        assert (one.maps.outside, one.maps.silent) == (other.maps.outside, other.maps.silent)


def test_a_comparison_stored_without_maps_opens(comparison: Comparison, tmp_path: Path):
    comparison.save(tmp_path)
    for name in ("passages.npz", "SHA256SUMS"):
        (tmp_path / name).unlink()
    record = json.loads((tmp_path / "comparison.json").read_text())
    for stored, passage in zip(record["passages"], comparison.passages, strict=True):
        del stored["units"]
        stored["received"] = passage.received.tolist()
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    for one, other in zip(open_comparison(tmp_path).passages, comparison.passages, strict=True):
        assert one.maps is None and one.words == other.words
        np.testing.assert_array_equal(one.received, other.received)


def test_layers_with_fewer_heads_count_their_own():
    maps = torch.ones(2, 3, 4)
    maps[1, 2] = torch.nan
    maps[1, 1] = 3.0
    assert passages._chosen(maps, [(0, -1), (1, -1), (1, 1)]).tolist() == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    assert (1, 2) not in passages._heads(maps, None, 4)  # pyright: ignore[reportArgumentType]


def test_the_maps_change_nothing_in_what_is_received(base: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """One pass for both, bit for bit that of received attention alone; the model stays as it was."""
    before = copy.deepcopy(base.model.state_dict())
    passes = []
    hook = base.model.register_forward_pre_hook(lambda *_: passes.append(1))
    prepared = prepare(Corpus((Example(TEXT, "a", "a"),), "one", "", True), [base], Reading("content"))
    received, maps = passages._looked(base, prepared, 0)
    monkeypatch.setattr(passages, "LONG", 4)
    alone, none = passages._looked(base, prepared, 0)
    hook.remove()
    assert torch.equal(received, alone) and maps is not None and none is None and len(passes) == 2
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
