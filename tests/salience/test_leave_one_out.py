"""Leave-one-word-out: against texts written without the word, and a model under test is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

from attnlens.checkpoints.load import Checkpoint, load
from attnlens.core.errors import AttnlensError
from attnlens.salience import Aids, find_words, mark_words
from attnlens.salience.encoder import is_tested, read, weights_of
from attnlens.salience.leave_one_out import centrality
from attnlens.text.lexis import is_content
from tests.salience.build import corpus_of
from tests.salience.models import encoder

TEXT = "the licensor shall indemnify the distributor against infringement of patents"


@pytest.fixture(scope="module")
def third(minilm: Path) -> Checkpoint:
    return encoder(minilm)


def embedding(model: Checkpoint, text: str) -> np.ndarray:
    """Mean of the last hidden states, special tokens included, one text at a time."""
    with torch.no_grad():
        states = model.model(**model.tokenizer(text, return_tensors="pt")).last_hidden_state
    return states[0].double().mean(0).numpy()


def test_against_texts_without_the_word(third: Checkpoint):
    words = TEXT.split()
    [(encoded, pool)] = read(corpus_of([TEXT]), third)
    scores = centrality(third, encoded, pool)
    assert pool.tolist() == [is_content(word) for word in words]
    assert (np.isnan(scores) == ~pool).all()
    whole = embedding(third, TEXT)
    for place in np.flatnonzero(pool):
        without = embedding(third, " ".join(words[:place] + words[place + 1 :]))
        cosine = whole @ without / np.linalg.norm(whole) / np.linalg.norm(without)
        assert scores[place] == pytest.approx(1 - cosine, abs=1e-6)


def test_the_words_that_move_most_are_marked(third: Checkpoint):
    corpus = corpus_of([TEXT, "the of", "licensor"])
    [(encoded, pool), *_] = read(corpus, third)
    scores = centrality(third, encoded, pool)
    found = find_words("leave_one_out", corpus, Aids(encoder=third))
    assert np.flatnonzero(found.words[0]).tolist() == [int(np.nanargmax(scores))]  # 15 % of 5 content words
    assert not found.words[1].any()
    assert not found.words[2].any(), "a text of one word has no embedding without it"
    assert found.facts == {"words_beyond_encoder": 0}


def test_words_beyond_the_encoder_are_counted(minilm: Path):
    short = encoder(minilm)
    short.tokenizer.model_max_length = 8
    found = find_words("leave_one_out", corpus_of([TEXT]), Aids(encoder=short))
    [(encoded, pool)] = read(corpus_of([TEXT]), short)
    assert len(encoded.ids) == 8 and found.facts["words_beyond_encoder"] == 5 - pool.sum() > 0
    assert not (found.words[0] & ~pool).any()


def test_without_an_encoder():
    with pytest.raises(
        AttnlensError, match=r"'leave_one_out' asks a third model\. Add --encoder DIR, neither base nor"
    ):
        mark_words("leave_one_out", corpus_of([TEXT]), Aids())


def test_a_model_under_test_is_refused(minilm: Path, tmp_path: Path):
    """It is known again with a head, in another class, and by its file; another model is not it."""
    judge = encoder(minilm, labels=("a", "b"))
    bare = Checkpoint(judge.model.base_model, judge.tokenizer, "bare", {})
    for tested in (judge, bare):
        aids = Aids(encoder=judge, tested=weights_of(tested))
        assert is_tested(aids)
        with pytest.raises(AttnlensError, match=r"asks a third model; third is one of those under test\. Give another"):
            mark_words("leave_one_out", corpus_of([TEXT]), aids)
    assert not is_tested(Aids(encoder=judge, tested=weights_of(encoder(minilm, seed=1))))
    assert not is_tested(Aids(encoder=judge)) and not is_tested(Aids(tested=weights_of(judge)))
    folder = tmp_path / "it"
    tf.BertModel(judge.model.config).save_pretrained(folder)
    judge.tokenizer.save_pretrained(folder)
    first, second = load(folder), load(folder)
    with torch.no_grad():
        second.model.embeddings.word_embeddings.weight.add_(1.0)  # the file is still the same
    assert is_tested(Aids(encoder=second, tested=weights_of(first)))
