"""Salience by attribution: the words that a classifier's logit for the text's own label rests on."""

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import InputXGradient, LayerIntegratedGradients
from torch import Tensor

from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import AttnlensError, CorpusError, UnsupportedModel
from attnlens.salience.aids import Aids, Marked
from attnlens.salience.encoder import is_tested, read
from attnlens.salience.ranking import mark_top
from attnlens.text.align import Encoded
from attnlens.text.corpus import Corpus
from attnlens.text.lexis import content_flags

STEPS = 50  # of the path from baseline to text
AT_ONCE = 10  # of these in one pass: each is a text of its own
# Attributions of T tokens, and of integrated gradients how far their sum misses f(x) − f(x′), as a share of that.
Attribute = Callable[[Checkpoint, Encoded, int], tuple[np.ndarray, float]]


def integrated_gradients(classifier: Checkpoint, encoded: Encoded, label: int) -> tuple[np.ndarray, float]:
    """Integrated gradients of one logit with respect to the token embeddings: (T,) float64, and the relative delta.

    IG_j = Σ_d (x − x′)_jd ∫ ∂f/∂x_jd along the straight path, a signed sum over the width, so that Σ_j IG_j =
    f(x) − f(x′) (Sundararajan, Taly & Yan 2017). The baseline x′ has the padding token in place of every token that
    is not special. Gauss–Legendre, 50 steps. The delta is |Σ IG − (f(x) − f(x′))| / |f(x) − f(x′)|, NaN where the
    baseline gives the same logit. Of a linear f the attribution is exact: f = Σ x with x′ = 0 gives x.
    """
    ids = torch.from_numpy(encoded.ids)[None].to(classifier.model.device)
    baseline = ids.masked_fill(torch.from_numpy(~encoded.special)[None].to(ids.device), _empty(classifier))
    logits = _logits(classifier)
    method = LayerIntegratedGradients(
        lambda given: logits(input_ids=given),
        classifier.model.get_input_embeddings(),  # pyright: ignore[reportArgumentType]
    )
    with classifier.active():
        found, delta = method.attribute(
            ids,
            baselines=baseline,
            target=label,
            n_steps=STEPS,
            internal_batch_size=AT_ONCE,
            return_convergence_delta=True,
        )
        with torch.no_grad():
            difference = (logits(input_ids=ids) - logits(input_ids=baseline))[0, label].item()
    assert isinstance(found, Tensor) and isinstance(delta, Tensor)
    missed = abs(delta.item() / difference) if difference else float("nan")
    return _summed(found), missed


def input_x_gradient(classifier: Checkpoint, encoded: Encoded, label: int) -> tuple[np.ndarray, float]:
    """x_j · ∂f/∂x_j of one logit, a signed sum over the width of the token embeddings: (T,) float64, and no delta."""
    ids = torch.from_numpy(encoded.ids)[None].to(classifier.model.device)
    logits = _logits(classifier)
    with classifier.active():
        embedded = classifier.model.get_input_embeddings()(ids).detach().requires_grad_()
        found = InputXGradient(lambda given: logits(inputs_embeds=given)).attribute(embedded, target=label)
    return _summed(found), float("nan")


def find_integrated(corpus: Corpus, aids: Aids) -> Marked:
    """Top 15 % of each text's content words by integrated gradients; facts: the largest relative convergence delta."""
    return _find("attribution", integrated_gradients, corpus, aids)


def find_input_x_gradient(corpus: Corpus, aids: Aids) -> Marked:
    """Top 15 % of each text's content words by input × gradient."""
    return _find("input_x_gradient", input_x_gradient, corpus, aids)


def _find(name: str, attribute: Attribute, corpus: Corpus, aids: Aids) -> Marked:
    """A word's score is the sum over its pieces; only words that speak for the label count.

    Examples without a label, or with one the classifier does not know, have no salient word.
    """
    classifier = aids.encoder
    assert classifier is not None
    columns = _columns(name, classifier, corpus)
    marks, deltas, beyond = [], [], 0
    for example, (encoded, pool) in zip(corpus, read(corpus, classifier), strict=True):
        scores = np.full(len(pool), np.nan)
        if example.label in columns and pool.any():
            beyond += int((content_flags(example.text) & ~pool).sum())
            of_tokens, delta = attribute(classifier, encoded, columns[example.label])
            deltas.append(delta)
            inside = encoded.word_of >= 0
            of_words = np.bincount(encoded.word_of[inside], of_tokens[inside], minlength=len(pool))
            scores = np.where(pool, of_words, np.nan)
        marks.append(mark_top(scores))
    known = [delta for delta in deltas if not np.isnan(delta)]
    facts = {"circular": is_tested(aids), "words_beyond_encoder": beyond}
    return Marked(marks, facts | ({"convergence_delta": max(known)} if known else {}))


def _columns(name: str, classifier: Checkpoint, corpus: Corpus) -> dict[str | None, int]:
    """The logit of each label of the corpus that the classifier knows."""
    kind = type(classifier.model).__name__
    if not corpus.labels:
        raise CorpusError(
            f"salience {name!r} needs a label field; {corpus.name} has none. Add labels, or choose textrank."
        )
    if classifier.model.config.is_encoder_decoder:
        raise UnsupportedModel(f"salience {name!r} needs an encoder or a decoder; {classifier.name} is a {kind}.")
    if "ForSequenceClassification" not in kind:
        raise AttnlensError(
            f"salience {name!r} needs a classifier of the same labels; {classifier.name} is a {kind}. Give one with "
            "--encoder DIR, or choose leave_one_out."
        )
    known = classifier.model.config.label2id or {}
    columns: dict[str | None, int] = {label: int(known[label]) for label in corpus.labels if label in known}
    if not columns:
        raise CorpusError(
            f"salience {name!r} needs labels that {classifier.name} knows ({', '.join(known)}); {corpus.name} has "
            f"{', '.join(corpus.labels)}. Use one set of names."
        )
    return columns


def _logits(classifier: Checkpoint) -> Callable[..., Tensor]:
    """The classifier on texts without padding, however many stand in one batch: (B, C)."""

    def forward(**given: Tensor) -> Tensor:
        (tokens,) = given.values()
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        return classifier.model(**given, attention_mask=mask).logits

    return forward


def _empty(classifier: Checkpoint) -> int:
    """The token that says nothing: padding, where a tokenizer has one."""
    tokenizer = classifier.tokenizer
    found = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    return next((token for token in found if isinstance(token, int)), 0)


def _summed(found: Tensor) -> np.ndarray:
    return found.detach()[0].double().sum(-1).cpu().numpy()
