"""Planted truth: edits of attention whose effect is known beforehand, through `compare`, on tiny and on real models.

A keyword-arguments pre-hook on one attention module adds a float bias for each head to its `attention_mask`; no weight
changes. The texts say nothing of worth: some nouns are salient, others as frequent and as long are not.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from scipy import stats
from torch import Tensor

from attnlens.analysis import prepare
from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.results import Comparison
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.core.multiplicity import benjamini_hochberg
from attnlens.show.head_figures import most_changed
from attnlens.show.page_tables import head_rows
from attnlens.show.tables import heads_table
from attnlens.text.corpus import Corpus, Example, Span

SALIENT = "tree girl bird box park stone boy house".split()
ORDINARY = "fish cake farm lake cup hill moon book boat rock fire road town duck goat horse milk coat egg bus".split()
MARKED = re.compile(rf"\b({'|'.join(SALIENT)})\b")
DOCUMENTS = 20
OPTIONS = CompareOptions(passages=0)
BETA = 1.5
FAR = 0.15  # nats a position: METRICS 2's head that sees nothing but how near a word stands


def corpus(*salient: int) -> Corpus:
    """20 texts, each a document; a sentence of four nouns for each number of salient ones among them.

    Two texts in a row have all nouns between them, or, where those are too few, each text has: so all are as frequent
    and may stand for each other.
    """
    rng = np.random.default_rng(0)
    counts = sum(salient), 4 * len(salient) - sum(salient)
    texts = 2 if 2 * counts[1] <= len(ORDINARY) else 1
    examples, left = [], [[], []]
    for number in range(DOCUMENTS):
        for side, nouns in enumerate((SALIENT, ORDINARY)):
            if not left[side]:
                left[side] = rng.permutation(nouns[: texts * counts[side]]).tolist()
        sentences = []
        for count in salient:
            nouns = [left[0].pop() for _ in range(count)] + [left[1].pop() for _ in range(4 - count)]
            sentences.append("The {} and the {} are with a {} near the {}.".format(*rng.permutation(nouns)))
        text = " ".join(sentences)
        spans = tuple(Span(*match.span()) for match in MARKED.finditer(text))
        examples.append(Example(text, str(number), str(number), None, spans))
    return Corpus(tuple(examples), "planted", "", True)


MIXED = corpus(2, 2)
EARLY, LATE = corpus(2, 0, 0), corpus(0, 0, 2)


@dataclass(frozen=True)
class Subject:
    """A model, where its attention modules stand, and how many layers and heads it has."""

    checkpoint: Checkpoint
    modules: str
    causal: bool

    @property
    def layers(self) -> int:
        return self.checkpoint.model.config.num_hidden_layers

    @property
    def heads(self) -> int:
        return self.checkpoint.model.config.num_attention_heads

    @property
    def middle(self) -> int:
        """A layer with others after it, and, where there are more than two, before it."""
        return self.layers // 2 - (self.layers == 2)


def salient_tokens(subject: Subject, texts: Corpus) -> dict[tuple[int, ...], Tensor]:
    """Of each text, by its token ids, (T,) 1 where a token lies in a marked word: by characters, not by `align`."""
    found = {}
    for example in texts:
        encoded = subject.checkpoint.tokenizer(example.text, return_offsets_mapping=True)
        marked = [
            float(any(start < span.end and end > span.start for span in example.spans or ()) and start < end)
            for start, end in encoded["offset_mapping"]
        ]
        found[tuple(encoded["input_ids"])] = torch.tensor(marked)
    return found


Bias = Callable[[Tensor, Tensor], Tensor]


def planted(subject: Subject, name: str, layer: int, bias: Bias, texts: Corpus = MIXED) -> Checkpoint:
    """A copy of the model whose layer adds bias(salient, sinks) (B, H|1, Q|1, K) to its logits.

    salient, sinks: (B, K) of 0 and 1; sinks are the special tokens of an encoder and position 0 of a decoder.
    """
    model = copy.deepcopy(subject.checkpoint.model)
    backbone = Checkpoint(model, subject.checkpoint.tokenizer, name, {}).backbone
    marked = salient_tokens(subject, texts)
    read: dict[str, Tensor] = {}

    def look(_, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"].bool()
        salient, sinks = torch.zeros(2, *ids.shape)
        for text, (row, real) in enumerate(zip(ids, mask, strict=True)):
            length = int(real.sum())
            salient[text, :length] = marked[tuple(row[:length].tolist())]
            sinks[text, 0] = 1
            sinks[text, length - 1] = float(not subject.causal)
        read.update(salient=salient, sinks=sinks)

    def add(_, args, kwargs):
        mask, length = kwargs["attention_mask"], read["salient"].shape[1]
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool)
            mask = mask.tril() if subject.causal else mask
        added = bias(read["salient"], read["sinks"]).expand(-1, subject.heads, length, length)
        return args, kwargs | {"attention_mask": torch.where(mask, added, torch.finfo(torch.float32).min)}

    backbone.register_forward_pre_hook(look, with_kwargs=True)
    backbone.get_submodule(subject.modules.format(layer)).register_forward_pre_hook(add, with_kwargs=True)
    return Checkpoint(model, subject.checkpoint.tokenizer, name, {})


def on_salient(beta: Tensor) -> Bias:
    """β of each head (H,) on every salient key."""
    return lambda salient, _: beta[None, :, None, None] * salient[:, None, None]


def on_sinks(beta: float) -> Bias:
    """β on every sink, in all heads."""
    return lambda _, sinks: beta * sinks[:, None, None]


def recency(salient: Tensor, _: Tensor) -> Tensor:
    """−0.15 for every position between query and key: nothing but position counts."""
    position = torch.arange(salient.shape[1])
    distance = (position[:, None] - position).abs()
    return (-FAR * distance).expand(len(salient), 1, -1, -1)


def noisy(subject: Subject) -> Checkpoint:
    """Gaussian noise of 0.1 % of its size on every matrix of the layers."""
    model = copy.deepcopy(subject.checkpoint.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and re.search(r"layers?\.\d", name):
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise * (1e-3 * weight.norm() / noise.norm()))
    return Checkpoint(model, subject.checkpoint.tokenizer, "noise", {})


def tiny(name: str, minilm: Path, sharp: float = 12.0) -> Checkpoint:
    """Three layers of four heads with random queries and keys, wide ones if sharp, and MiniLM's tokenizer."""
    tokenizer = tf.AutoTokenizer.from_pretrained(minilm)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 32}
    sizes: dict[str, Any] = shape | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = tf.BertConfig(**sizes) if name == "bert" else tf.LlamaConfig(**sizes, num_key_value_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModel.from_config(config).eval()
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if re.search(r"query|key|q_proj|k_proj", parameter):
                    weight.mul_(sharp)
    return Checkpoint(model, tokenizer, "base", {})


@pytest.fixture(scope="module", params=["bert", "llama", "minilm", "stories260K"])
def subject(minilm: Path, request: pytest.FixtureRequest) -> Subject:
    """A tiny or a real model."""
    name = request.param
    if name in ("bert", "llama"):
        checkpoint = tiny(name, minilm)
    else:
        folder = minilm if name == "minilm" else request.getfixturevalue("shared") / "models" / name
        checkpoint = replace(load(folder, dtype="float32"), name="base")
        if name == "minilm":  # half of its layers, for time
            checkpoint.model.encoder.layer = checkpoint.model.encoder.layer[:3]
            checkpoint.model.config.num_hidden_layers = 3
    return of_kind(checkpoint, causal=name in ("llama", "stories260K"))


def of_kind(checkpoint: Checkpoint, *, causal: bool) -> Subject:
    """A Llama or a BERT."""
    return Subject(checkpoint, "layers.{}.self_attn" if causal else "encoder.layer.{}.attention.self", causal)


@dataclass(frozen=True)
class Edited:
    """A base and its edits on the mixed texts. chosen: the two heads of the middle layer that got the bonus."""

    subject: Subject
    comparison: Comparison
    chosen: tuple[int, int]

    def shift(self, model: str, name: str) -> np.ndarray:
        """(N, L, H) tuned minus base of the texts that have data (focus needs a matched word)."""
        values = self.comparison.data[name]
        values = values.isel(salience=0) if "salience" in values.dims else values
        base = 0 if name == "jsd" else values.isel(model=0)
        shift = (values.sel(model=model) - base).values
        known = ~np.isnan(shift).all((1, 2))
        assert known.mean() > 0.5 and not np.isnan(shift[known]).any()
        return shift[known]


@pytest.fixture(scope="module")
def edited(subject: Subject) -> Edited:
    of = subject
    chosen = (1, of.heads - 1)
    two = torch.zeros(of.heads)
    two[list(chosen)] = BETA
    models = [
        planted(of, "two heads", of.middle, on_salient(two)),
        planted(of, "whole layer", of.middle, on_salient(torch.full((of.heads,), BETA))),
        planted(of, "sinks", of.layers - 1, on_sinks(3.0)),
        noisy(of),
    ]
    return Edited(of, compare(of.checkpoint, models, corpus=MIXED, salience=("spans",), options=OPTIONS), chosen)


def test_a_bonus_on_salient_keys_is_found_in_its_heads_and_nowhere_else(edited: Edited):
    """Δλ = β in every text, exactly 0 below and beside (METRICS 3.3, I-15)."""
    odds, layer, chosen = edited.shift("two heads", "log_odds"), edited.subject.middle, list(edited.chosen)
    assert len(odds) == len(MIXED)
    np.testing.assert_allclose(odds[:, layer, chosen], BETA, atol=1e-5)
    assert (odds[:, :layer] == 0).all()
    assert (np.delete(odds[:, layer], chosen, axis=1) == 0).all()
    for name in ("share", "focus", "mass", "entropy", "entropy_content", "jsd"):
        moved = edited.shift("two heads", name)
        assert (moved[:, :layer] == 0).all(), name
        assert (np.delete(moved[:, layer], chosen, axis=1) == 0).all(), name
        assert (moved[:, layer, chosen] != 0).all(), name


def test_the_edited_heads_are_listed_first(edited: Edited):
    table = heads_table(edited.comparison)
    first = most_changed(edited.comparison, table[table["measure"] == "focus"]).head(2)
    expected = {(edited.subject.middle + 1, head + 1) for head in edited.chosen}
    assert {(row.layer, row.head) for row in first.itertuples()} == expected
    assert (first["p_adjusted"] < 0.05).all() and (first["estimate"] > 0).all()
    page = head_rows(edited.comparison)
    names = [name if isinstance(name, str) else name[0] for name in page["columns"]]
    rows = [dict(zip(names, (cell[1] for cell in row), strict=True)) for row in page["rows"]]
    rows = [row for row in rows if row["model"] == "two heads"]
    assert {(row["layer"], row["head"]) for row in rows[:2]} == expected


def test_a_bonus_in_all_heads_is_a_yes_in_that_layer(edited: Edited):
    answer, layer = edited.comparison.answers["whole layer"]["spans"], edited.subject.middle
    assert (answer.verdict, answer.layers) == ("yes", (layer,))
    assert answer.sentence.startswith(f"Yes, on these texts, mainly in layer {layer + 1}.")
    assert [rung.status for rung in answer.rungs[:3]] == ["yes", "yes", "not applicable"]
    np.testing.assert_allclose(edited.shift("whole layer", "log_odds")[:, layer], BETA, atol=1e-5)


def test_an_edit_of_the_sinks_is_no_change_of_focus(edited: Edited):
    """Raw share alone would report a loss of focus (METRICS 3.3, I-14)."""
    mass = edited.shift("sinks", "mass")[:, -1]
    assert (mass < 0).all() and mass.mean() < -0.02
    for name in ("share", "log_odds", "focus"):
        np.testing.assert_allclose(edited.shift("sinks", name), 0, atol=1e-6, err_msg=name)
    assert edited.comparison.answers["sinks"]["spans"].verdict == "no"


def test_noise_in_the_weights_is_significant_and_too_small_to_matter(edited: Edited):
    """A t test of each head over texts finds what two checkpoints always have: a difference (METRICS 6.0)."""
    answer = edited.comparison.answers["noise"]["spans"]
    assert answer.verdict == "no" and answer.rungs[1].status == "no"
    share = edited.shift("noise", "share")
    t = share.mean(0) / (share.std(0, ddof=1) / np.sqrt(len(share)))
    found = benjamini_hochberg(2 * stats.t.sf(np.abs(t), len(share) - 1)) < 0.05
    assert 0 < np.abs(share.mean(0)).max() < 0.005
    if found.size > 12:  # of the twelve heads of a tiny random model a third is found
        assert found.mean() > 0.6


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_nearness_alone_is_no_focus(subject: Subject, late: bool):
    """All heads of a layer look near, salience stands early or late: C1 takes off what position feigns."""
    texts = LATE if late else EARLY
    near = planted(subject, "near", subject.layers - 1, recency, texts)
    got = compare(subject.checkpoint, near, corpus=texts, salience=("spans",), options=OPTIONS)
    assert got.answer.verdict not in ("yes", "away")
    share = got.data["share"].isel(layer=-1, salience=0)
    feigned = float((share.isel(model=1) - share.isel(model=0)).mean())
    if subject.causal and late:  # to a decoder what comes late is near
        assert feigned > 0.02


@pytest.mark.parametrize("control", ["matched", "regression"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(("name", "rows"), [("bert", "cls"), ("llama", "content"), ("llama", "last")])
def test_nearness_cancels_in_a_model_that_reads_no_content(
    name: str, rows: str, late: bool, control: str, minilm: Path, monkeypatch: pytest.MonkeyPatch
):
    """Near-uniform heads that come to look near move the share of the first or last words, not the net change."""
    # At the very edge a marked word has ordinary ones on one side only; a regression needs more words than that.
    layout = (3, 0, 0) if control == "matched" else (2, 2, 0, 0, 0, 0)
    texts = corpus(*(reversed(layout) if late else layout))
    of = of_kind(tiny(name, minilm, sharp=1.0), causal=name == "llama")
    near = planted(of, "near", of.layers - 1, recency, texts)
    if control == "regression":  # what a match rate below one half brings about
        monkeypatch.setattr(prepare, "LEAST_MATCHED", 2.0)
    got = compare(of.checkpoint, near, corpus=texts, salience=("spans",), options=replace(OPTIONS, rows=rows))
    assert got.provenance["salience"]["spans"]["control"] == control
    share = got.data["share"].isel(layer=-1, salience=0)
    assert abs(float((share.isel(model=1) - share.isel(model=0)).mean())) > 0.04
    net = got.tests.query("family == 'profile'")["estimate"].iloc[-1]
    assert abs(net) < 0.015 and got.answer.verdict in ("no", "unclear")
