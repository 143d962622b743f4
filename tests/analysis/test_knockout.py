"""The causal companion of focus: what models lose without attention to the salient words."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf

from attnlens.analysis.knockout import KnockoutOptions, choose_outcome, knockout
from attnlens.analysis.prepare import Prepared, Reading, assemble, prepare
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CheckpointError, CorpusError, ShapeError
from attnlens.text.align import encode, token_weights
from attnlens.text.corpus import Corpus, Example, Span

OPTIONS = KnockoutOptions(draws=3, texts=12, batch_size=5)
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
ARRAYS = ("knockout_effect", "knockout_control", "causal_focus", "reliance")


def wide(model: tf.PreTrainedModel, seed: int) -> tf.PreTrainedModel:
    """Random weights drawn wide: attention far from uniform, outputs that differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def classifier(base: Checkpoint, seed: int, **config: object) -> Checkpoint:
    settings = tf.BertConfig(vocab_size=len(base.tokenizer), **SIZES, **config)
    return Checkpoint(wide(tf.BertForSequenceClassification(settings), seed), base.tokenizer, f"classifier {seed}", {})


def language_model(base: Checkpoint, seed: int) -> Checkpoint:
    settings = tf.LlamaConfig(vocab_size=len(base.tokenizer), num_key_value_heads=2, pad_token_id=0, **SIZES)
    return Checkpoint(wide(tf.LlamaForCausalLM(settings), seed), base.tokenizer, f"language model {seed}", {})


def labels_of(corpus: Corpus) -> dict[str, dict]:
    names = {label: number for number, label in enumerate(corpus.labels)}
    return {"label2id": names, "id2label": {number: label for label, number in names.items()}}


@pytest.fixture(scope="module")
def prepared(base: Checkpoint, corpus: Corpus) -> Prepared:
    return prepare(corpus, [base], Reading("content", ("spans",)))


def by_hand(checkpoint: Checkpoint, example: Example, words: list[np.ndarray], causal: bool, read) -> list[float]:
    """`read(output)` of an eager float64 copy for the whole text and for each set of words hidden by a 4-D mask."""
    model = copy.deepcopy(checkpoint.model).double()
    model.set_attn_implementation("eager")
    encoded = encode(checkpoint.tokenizer, example.text, 512)
    ids = torch.tensor(encoded.ids)[None]
    found = []
    for chosen in words:
        visible = torch.ones(len(encoded.ids), len(encoded.ids), dtype=torch.bool)
        visible = visible.tril() if causal else visible
        visible &= ~torch.from_numpy(token_weights(encoded, chosen) > 0)[None]
        visible |= torch.eye(len(encoded.ids), dtype=torch.bool) & ~visible.any(1, keepdim=True)
        mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -3e38)[None, None]
        with torch.no_grad():
            found.append(read(model(input_ids=ids, attention_mask=mask, output_hidden_states=True)))
    return found


def drawn(prepared: Prepared, data, number: int) -> list[np.ndarray]:
    """Nothing, the knocked-out words, and their controls, of one text, as `knockout` draws them."""
    from attnlens.salience.control_sets import control_sets
    from attnlens.text.align import pieces

    corpus = Corpus(prepared.examples, "", "", True)
    lengths = [pieces(e, len(m)) for e, m in zip(prepared.encodings, prepared.marks["spans"], strict=True)]
    found = control_sets(corpus, prepared.marks["spans"], lengths, OPTIONS.draws, OPTIONS.seed)[number]
    assert found.salient.sum() == data["knocked_out"].values[number]
    return [np.zeros_like(found.salient), found.salient, *found.controls]


def check(data, model: int, text: int, effects: list[float]) -> None:
    """Arrays of one text against effects of the words and of their controls."""
    np.testing.assert_allclose(data["knockout_effect"].values[model, text], effects[0], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(data["knockout_control"].values[model, text], np.mean(effects[1:]), rtol=2e-4, atol=1e-6)


def measured(data) -> list[int]:
    return np.flatnonzero(data["knocked_out"].values).tolist()


def test_hidden_states_equal_a_float64_model(base: Checkpoint, tuned: Checkpoint, prepared: Prepared):
    data = knockout([base, tuned], prepared, OPTIONS)
    assert (data.attrs["outcome"], data.attrs["unit"]) == ("hidden state", "relative change")
    assert "BertModel has no loss" in data.attrs["reason"]
    rows = prepared.rows
    for text in measured(data)[:3]:
        for number, model in enumerate((base, tuned)):
            states = by_hand(model, prepared.examples[text], drawn(prepared, data, text), False, lambda o: o[0][0])
            whole = states[0]
            effects = [float(((s - whole).norm(dim=1) / whole.norm(dim=1))[rows[text]].mean()) for s in states[1:]]
            check(data, number, text, effects)
    focus = data["causal_focus"]
    np.testing.assert_array_equal(focus, data["knockout_effect"] - data["knockout_control"])
    np.testing.assert_array_equal(data["reliance"], focus - focus[0])


def test_label_loss_equals_a_float64_model(base: Checkpoint, corpus: Corpus, prepared: Prepared):
    models = [classifier(base, seed, **labels_of(corpus)) for seed in (1, 2)]
    prepared = replace(prepared, rows=tuple(np.arange(len(row)) == 0 for row in prepared.rows))
    data = knockout(models, prepared, OPTIONS)
    assert (data.attrs["outcome"], data.attrs["unit"]) == ("label loss", "nats")
    for text in measured(data)[:3]:
        example = prepared.examples[text]
        truth = corpus.labels.index(str(example.label))

        def read(output, truth: int = truth) -> float:
            return -float(output.logits[0].log_softmax(0)[truth])

        for number, model in enumerate(models):
            losses = by_hand(model, example, drawn(prepared, data, text), False, read)
            check(data, number, text, [loss - losses[0] for loss in losses[1:]])


def test_token_loss_equals_a_float64_model(base: Checkpoint, corpus: Corpus):
    models = [language_model(base, seed) for seed in (1, 2)]
    prepared = prepare(corpus, models, Reading("content", ("spans",)))
    data = knockout(models, prepared, replace(OPTIONS, texts=3))
    assert (data.attrs["outcome"], data.attrs["unit"]) == ("token loss", "nats a token")
    for text in measured(data)[:1]:
        ids = torch.tensor(prepared.encodings[text].ids)
        targets = np.flatnonzero(prepared.rows[text])
        for number, model in enumerate(models):

            def read(output, ids=ids, targets=targets) -> float:
                logs = output.logits[0].log_softmax(1)
                return -float(np.mean([logs[t - 1, ids[t]] for t in targets if t]))

            losses = by_hand(model, prepared.examples[text], drawn(prepared, data, text), True, read)
            check(data, number, text, [loss - losses[0] for loss in losses[1:]])


def test_base_against_itself_and_batches(base: Checkpoint, prepared: Prepared):
    """The same model relies on nothing more than itself, exactly; batches and their padding change nothing."""
    same = knockout([base, base], prepared, OPTIONS)
    assert (same["reliance"].dropna("example") == 0).all() and same["reliance"].notnull().sum() == 2 * 12
    alone = knockout([base], prepared, replace(OPTIONS, batch_size=1))
    for name in ARRAYS:
        np.testing.assert_allclose(alone[name][0], same[name][0], atol=2e-6, err_msg=name)
    fewer = knockout([base], prepared, replace(OPTIONS, texts=5))
    here = fewer["knocked_out"].values > 0
    assert here.sum() == 5 and fewer.attrs["measured"] == 5 and fewer.attrs["left_out"] == same.attrs["left_out"] + 7
    assert (same["knocked_out"].values[here] > 0).all()
    np.testing.assert_allclose(fewer["causal_focus"].values[0, here], same["causal_focus"].values[0, here], atol=2e-6)


def test_layers_and_progress(base: Checkpoint, prepared: Prepared):
    """Hidden in the last layer alone, the words act less; both layers by number are all of them."""
    seen = []
    options = replace(OPTIONS, progress=lambda *step: seen.append(step))
    whole = knockout([base], prepared, replace(options, layers=(0, 1)))
    assert seen == [(0, 12), (5, 12), (10, 12), (12, 12)]
    np.testing.assert_array_equal(whole["knockout_effect"], knockout([base], prepared, OPTIONS)["knockout_effect"])
    last = knockout([base], prepared, replace(OPTIONS, layers=(1,)))
    assert float(last["knockout_effect"].mean()) < float(whole["knockout_effect"].mean())
    with pytest.raises(ShapeError, match="layers must lie in 0 … 1"):
        knockout([base], prepared, replace(OPTIONS, layers=(2,)))


def test_a_planted_reliance_is_found(base: Checkpoint, prepared: Prepared):
    """A copy whose every row, in its last layer, looks at the salient words alone: it relies on them, not on others."""
    planted = Checkpoint(copy.deepcopy(base.model), base.tokenizer, "planted", {})
    by_ids = {
        tuple(encoded.ids.tolist()): token_weights(encoded, mark) > 0
        for encoded, mark in zip(prepared.encodings, prepared.marks["spans"], strict=True)
    }
    bias = torch.zeros(())

    def note(_, args, kwargs):
        nonlocal bias
        bias = torch.zeros(kwargs["input_ids"].shape)
        for row, (ids, mask) in enumerate(zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)):
            salient = by_ids[tuple(ids[mask > 0].tolist())]
            bias[row, : len(salient)] = 200.0 * torch.from_numpy(salient)

    def plant(_, args, kwargs):
        mask = kwargs["attention_mask"]
        visible = torch.ones((), dtype=torch.bool) if mask is None else mask
        logits = bias[:, None, None].expand(-1, 1, bias.shape[1], -1)
        return args, kwargs | {"attention_mask": torch.where(visible, logits, torch.finfo(torch.float32).min)}

    planted.model.register_forward_pre_hook(note, with_kwargs=True)
    planted.model.encoder.layer[1].attention.self.register_forward_pre_hook(plant, with_kwargs=True)
    # In the last layer alone, where the controls get exactly nothing and so cannot be missed.
    data = knockout([base, planted], prepared, replace(OPTIONS, layers=(1,)))
    effect, control = (data[name].dropna("example") for name in ("knockout_effect", "knockout_control"))
    assert (control[1] == 0).all() and (control[0] > 0).all()
    assert (effect[1] > 0).all()
    assert (data["reliance"][1].dropna("example") > 0).all()
    assert float(data["causal_focus"][1].mean()) > 3 * abs(float(data["causal_focus"][0].mean()))


def test_texts_without_words_or_controls_are_nan_and_counted(base: Checkpoint):
    text = "Our tenant lends bricks while some farmer paints fences."
    long = "The licensee paints fences."
    span = Span(text.index("bricks"), text.index("bricks") + 6, "x")
    examples = (
        Example(text, "a", "a", "x", (span,)),
        Example(text, "b", "b", "x", ()),
        Example(long, "c", "c", "x", (Span(0, len(long), "x"),)),
    )
    prepared = prepare(Corpus(examples, "three", "", True), [base], Reading("content", ("spans",)))
    data = knockout([base, base], prepared, OPTIONS)
    for name in ARRAYS:
        assert data[name].isnull().values.tolist() == [[False, True, True]] * 2, name
    assert data["knocked_out"].values.tolist() == [1, 0, 0]
    facts = {name: data.attrs[name] for name in ("measured", "without_control", "left_out", "kept", "salience")}
    assert facts == {"measured": 1, "without_control": 2, "left_out": 0, "kept": 1.0, "salience": "spans"}
    none = prepare(Corpus((examples[1], examples[2]), "two", "", True), [base], Reading("content", ("spans",)))
    empty = knockout([base, base], none, OPTIONS)
    assert empty.attrs["measured"] == 0 and np.isnan(empty.attrs["kept"])
    assert all(empty[name].isnull().all() for name in ARRAYS)


def test_the_outcome_and_its_reason(base: Checkpoint, tuned: Checkpoint, corpus: Corpus):
    texts, names = corpus.examples, labels_of(corpus)
    one, two = (classifier(base, seed, **names) for seed in (1, 2))

    def chosen(models: list[Checkpoint], examples: tuple[Example, ...] = texts) -> tuple[str, str]:
        outcome = choose_outcome(models, examples)
        return outcome.name, outcome.reason

    assert chosen([one, two])[0] == "label loss"
    assert chosen([base, one]) == (
        "hidden state",
        "the models have different heads (BertForSequenceClassification, BertModel)",
    )
    unlabelled = (replace(texts[0], label=None), replace(texts[1], label="unheard of"), *texts[2:])
    assert chosen([one, two], unlabelled) == ("hidden state", "2 of 40 texts have no label that the models know")
    other = classifier(base, 3, num_labels=3)
    assert chosen([one, other]) == ("hidden state", "the models classify into different labels")
    several = classifier(base, 4, **names, problem_type="multi_label_classification")
    assert chosen([several, several])[0] == "hidden state"
    lists = tuple(replace(text, label=None, labels=(str(text.label),)) for text in texts)
    assert chosen([several, several], lists)[0] == "label loss"
    masked = Checkpoint(tf.BertForMaskedLM(base.model.config), base.tokenizer, "masked", {})
    assert chosen([masked, masked]) == ("hidden state", "a BertForMaskedLM has no loss on whole texts")


def test_several_labels_have_a_loss_of_their_own(base: Checkpoint, corpus: Corpus, prepared: Prepared):
    model = classifier(base, 5, **labels_of(corpus), problem_type="multi_label_classification")
    some = corpus.labels[:2]
    lists = tuple(replace(text, label=None, labels=some) for text in prepared.examples)
    prepared = replace(prepared, examples=lists)
    data = knockout([model], prepared, OPTIONS)
    text = measured(data)[0]
    truth = torch.tensor([float(label in some) for label in corpus.labels], dtype=torch.float64)

    def read(output) -> float:
        sign = 2 * truth - 1
        return -float(torch.nn.functional.logsigmoid(sign * output.logits[0]).mean())

    losses = by_hand(model, lists[text], drawn(prepared, data, text), False, read)
    check(data, 0, text, [loss - losses[0] for loss in losses[1:]])


def test_bad_input(base: Checkpoint, prepared: Prepared):
    with pytest.raises(CorpusError, match="words to knock out"):
        knockout([base], replace(prepared, marks={}), OPTIONS)
    with pytest.raises(CorpusError, match="at least one draw"):
        KnockoutOptions(draws=0)
    broken = Checkpoint(copy.deepcopy(base.model), base.tokenizer, "broken", {})
    with torch.no_grad():
        broken.model.encoder.layer[1].output.dense.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="broken gives NaN outputs"):
        knockout([base, broken], prepared, OPTIONS)


def test_a_batch_that_memory_does_not_hold_is_halved(
    base: Checkpoint, tuned: Checkpoint, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
):
    """The same effects, text by text."""
    whole = knockout([base, tuned], prepared, OPTIONS)

    def crowded(batch: Prepared, indices: np.ndarray, checkpoint: Checkpoint, real=assemble):
        if len(indices) > 2:
            raise MemoryError
        return real(batch, indices, checkpoint)

    monkeypatch.setattr("attnlens.analysis.knockout.assemble", crowded)
    halved = knockout([base, tuned], prepared, OPTIONS)
    for name in ARRAYS:
        np.testing.assert_allclose(halved[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)
