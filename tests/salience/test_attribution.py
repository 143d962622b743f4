"""Attribution: completeness, a linear model by hand, whose label counts, and what is circular."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import AttnlensError, CorpusError, UnsupportedModel
from attnlens.salience import Aids, find_words, mark_words
from attnlens.salience.attribution import input_x_gradient, integrated_gradients
from attnlens.salience.encoder import read, weights_of
from tests.models import SPECIAL
from tests.salience.build import corpus_of
from tests.salience.models import encoder

TEXT = "the licensor shall indemnify the distributor against infringement of patents"
LABELS = ("fee", "term", "audit")


@pytest.fixture(scope="module")
def judge(minilm: Path) -> Checkpoint:
    return encoder(minilm, labels=LABELS)


def logits(model: Checkpoint, embedded: torch.Tensor) -> torch.Tensor:
    return model.model(inputs_embeds=embedded).logits[0]


def embedded(model: Checkpoint, ids: np.ndarray) -> torch.Tensor:
    return model.model.get_input_embeddings()(torch.from_numpy(ids)[None]).detach()


@pytest.mark.parametrize("label", range(3))
def test_against_the_path_integral(judge: Checkpoint, label: int):
    """I-23: the sum is f(x) − f(x′) but for the delta; each token's value is a slow Riemann sum's."""
    [(encoded, _)] = read(corpus_of([TEXT]), judge)
    got, delta = integrated_gradients(judge, encoded, label)
    start = embedded(judge, np.where(encoded.special, encoded.ids, judge.tokenizer.pad_token_id))
    end = embedded(judge, encoded.ids)
    with torch.no_grad():
        difference = (logits(judge, end) - logits(judge, start))[label].item()
    assert delta == pytest.approx(abs(got.sum() - difference) / abs(difference), abs=1e-4) and delta < 0.05
    slow, steps = torch.zeros_like(end), 400
    for step in range(steps):
        point = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        slow += torch.autograd.grad(logits(judge, point)[label], point)[0] / steps
    expected = ((end - start) * slow)[0].sum(-1)
    np.testing.assert_allclose(got, expected, atol=0.02 * float(expected.abs().max()))
    assert (got[encoded.special] == 0).all(), "special tokens stay as they are"


def test_input_times_gradient_against_autograd(judge: Checkpoint):
    [(encoded, _)] = read(corpus_of([TEXT]), judge)
    got, delta = input_x_gradient(judge, encoded, 1)
    point = embedded(judge, encoded.ids).requires_grad_()
    gradient = torch.autograd.grad(logits(judge, point)[1], point)[0]
    np.testing.assert_allclose(got, (point * gradient)[0].sum(-1).detach(), rtol=1e-4, atol=1e-6)
    assert np.isnan(delta)


@pytest.mark.parametrize("name", ["attribution", "input_x_gradient"])
def test_the_words_that_speak_for_the_own_label(judge: Checkpoint, name: str):
    corpus = corpus_of([TEXT, TEXT, TEXT, TEXT], ["fee", "term", None, "unheard"])
    found = find_words(name, corpus, Aids(encoder=judge))
    attribute = integrated_gradients if name == "attribution" else input_x_gradient
    [(encoded, pool), *_] = read(corpus, judge)
    for label in range(2):
        scores, _ = attribute(judge, encoded, label)
        of_words = np.array([scores[encoded.word_of == word].sum() for word in range(len(pool))])
        best = np.where(pool, of_words, -np.inf)
        assert np.flatnonzero(found.words[label]).tolist() == ([int(best.argmax())] if best.max() > 0 else [])
    assert not found.words[2].any() and not found.words[3].any()
    assert found.facts["circular"] is False and found.facts["words_beyond_encoder"] == 0
    assert ("convergence_delta" in found.facts) == (name == "attribution")
    if name == "attribution":
        deltas = [integrated_gradients(judge, encoded, label)[1] for label in range(2)]
        assert found.facts["convergence_delta"] == pytest.approx(max(deltas))


def test_a_model_under_test_is_circular(judge: Checkpoint):
    corpus = corpus_of([TEXT], ["fee"])
    assert find_words("attribution", corpus, Aids(encoder=judge, tested=weights_of(judge))).facts["circular"] is True


def test_no_gradient_and_no_hook_is_left(judge: Checkpoint):
    [(encoded, _)] = read(corpus_of([TEXT]), judge)
    integrated_gradients(judge, encoded, 0)
    input_x_gradient(judge, encoded, 0)
    assert all(parameter.grad is None for parameter in judge.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in judge.model.modules())


def test_models_that_cannot_be_asked(judge: Checkpoint, minilm: Path):
    import transformers as tf

    labelled = corpus_of([TEXT], ["fee"])
    with pytest.raises(AttnlensError, match=r"'attribution' asks a third model\. Add --encoder DIR"):
        mark_words("attribution", labelled, Aids())
    with pytest.raises(AttnlensError, match=r"needs a classifier of the same labels; third is a BertModel\. Give one"):
        mark_words("attribution", labelled, Aids(encoder=encoder(minilm)))
    with pytest.raises(CorpusError, match=r"needs labels that third knows \(fee, term, audit\); made\.jsonl has x"):
        mark_words("attribution", corpus_of([TEXT], ["x"]), Aids(encoder=judge))
    with pytest.raises(CorpusError, match=r"needs a label field; made\.jsonl has none\. Add labels"):
        mark_words("attribution", corpus_of([TEXT]), Aids(encoder=judge))
    both = Checkpoint(tf.T5ForSequenceClassification(SPECIAL["t5"]()), judge.tokenizer, "t5", {})
    with pytest.raises(UnsupportedModel, match=r"needs an encoder or a decoder; t5 is a T5ForSequenceClassification"):
        mark_words("attribution", labelled, Aids(encoder=both))
