"""Bad input as one table, through whole comparisons: case → a clear error, or an answer that says what is missing."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.results import Comparison
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError, IncompatibleCheckpoints
from attnlens.show.report import report
from attnlens.text.corpus import Corpus, Example

RARE = "alpha bravo delta gamma kilo lima oscar tango victor whiskey".split()
COMMON = "fee term notice party year contract service payment product company agreement".split()
QUERY, LAST = "encoder.layer.0.attention.self.query.weight", "encoder.layer.1.output.dense.bias"


def texts(documents: int, count: int = 12) -> Corpus:
    """Texts of the same words in their own orders, spread over so many documents."""
    rng = np.random.default_rng(0)
    made = [" ".join(rng.permutation(RARE + 2 * COMMON)) for _ in range(count)]
    return Corpus(
        tuple(Example(text, str(i), str(i % documents), "x") for i, text in enumerate(made)), "made", "", True
    )


def asked(base: Checkpoint, tuned: Any, corpus: Corpus | None = None, **options: Any) -> Comparison:
    """The focus question on words of a lexicon."""
    chosen = CompareOptions(passages=1, **{"lexicon": ("fee", "term")} | options)
    return compare(base, tuned, corpus=corpus or texts(12), salience=("lexicon",), options=chosen)


def other_tokens(checkpoint: Checkpoint) -> Checkpoint:
    tokenizer = copy.deepcopy(checkpoint.tokenizer)
    tokenizer.add_tokens(["contrac", "servic"])
    return replace(checkpoint, tokenizer=tokenizer, name="retokenised")


def broken(checkpoint: Checkpoint, name: str) -> Checkpoint:
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] = torch.nan
    return replace(checkpoint, model=model, name="broken")


def trained(checkpoint: Checkpoint, name: str, seed: int, method: str) -> Checkpoint:
    """With a training record; another seed has moved the weights elsewhere."""
    model = copy.deepcopy(checkpoint.model)
    weight = model.encoder.layer[1].attention.self.query.weight
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
    order = {"method": method, "learning_rate": 1e-4, "seed": seed, "rows": "r"}
    record = {"null_twin": False, "method": method, "seed": seed, "base": {"sha256": "b"}, "order": order}
    return replace(checkpoint, model=model, name=name, provenance={"training": record | {"data": {}}})


ERRORS: dict[str, tuple[Any, type[AttnlensError], str]] = {
    "salience covers nothing": (
        lambda base, tuned: asked(base, tuned, lexicon=("unheard",)),
        CorpusError,
        "no text has a salient word by 'lexicon' within 512 tokens; try another --salience",
    ),
    "base and tuned tokenised differently": (
        lambda base, tuned: asked(base, other_tokens(tuned)),
        IncompatibleCheckpoints,
        "base and retokenised tokenise text '0' differently: base and tuned must give the same token ids",
    ),
    "NaN logits": (
        lambda base, tuned: asked(base, broken(tuned, QUERY)),
        CheckpointError,
        "broken gives NaN attention on 12 texts: its weights or activations are not finite",
    ),
    "NaN hidden states": (
        lambda base, tuned: asked(base, broken(tuned, LAST)),
        CheckpointError,
        "broken gives hidden states that are no numbers: its weights or activations are not finite",
    ),
    "one seed given twice": (
        lambda base, tuned: asked(base, trained(tuned, "run", 0, "full"), seeds=(trained(tuned, "again", 0, "full"),)),
        IncompatibleCheckpoints,
        "again and run were both trained with seed 0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_clear_error(case: str, base: Checkpoint, tuned: Checkpoint):
    ask, error, message = ERRORS[case]
    with pytest.raises(error) as caught:
        ask(base, tuned)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def everything(base: Checkpoint, tuned: Checkpoint) -> Comparison:
    return asked(base, tuned, lexicon=tuple(COMMON + RARE))


def no_match(base: Checkpoint, tuned: Checkpoint) -> Comparison:
    """One word in each text, alone with words of another frequency, and too few for a regression."""
    rng = np.random.default_rng(0)
    made = [" ".join(rng.permutation([*RARE[:1], *3 * COMMON[:3]])) for _ in range(12)]
    corpus = Corpus(tuple(Example(text, str(i), str(i), "x") for i, text in enumerate(made)), "made", "", True)
    return asked(base, tuned, corpus, lexicon=(RARE[0],))


def one_document(base: Checkpoint, tuned: Checkpoint) -> Comparison:
    return asked(base, tuned, texts(1))


def two_documents(base: Checkpoint, tuned: Checkpoint) -> Comparison:
    return asked(base, tuned, texts(2))


def unpaired_seeds(base: Checkpoint, tuned: Checkpoint) -> Comparison:
    """Two trainings, each with a seed that the other was not given."""
    first, second = trained(tuned, "one", 0, "full"), trained(tuned, "two", 0, "lora")
    seeds = (trained(tuned, "one-1", 1, "full"), trained(tuned, "two-2", 2, "lora"))
    return asked(base, [first, second], seeds=seeds)


# case: what is asked, what page one says.
FLAGGED = {
    "salience covers everything": (everything, "12 of 12 texts have words marked by lexicon but no control for them"),
    "no C1 match": (no_match, "12 of 12 texts have words marked by lexicon but no control for them"),
    "one document": (one_document, "Only 1 document: intervals rest on few units and are wide or unreliable."),
    "two documents": (two_documents, "Only 2 documents: intervals rest on few units and are wide or unreliable."),
    "unpaired seeds at level C": (unpaired_seeds, "two (seeds 0, 2) and one (seeds 0, 1) are not paired by seed"),
}


@pytest.mark.parametrize("case", FLAGGED)
def test_what_is_missing_is_said(
    case: str, base: Checkpoint, tuned: Checkpoint, tmp_path: Path, request: pytest.FixtureRequest
):
    """No verdict, no interval and no small p where nothing stands behind them; the report is written all the same."""
    ask, words = FLAGGED[case]
    if case != "one document":  # whose figures have least to draw
        request.getfixturevalue("unpictured")
    got = ask(base, tuned)
    assert words in " ".join(got.provenance["warnings"])
    assert not (got.tests["family"] == "against rival").any()
    if "seeds" not in case:
        assert got.answer.verdict == "unclear"
        moved = got.tests[(got.tests["family"] == "profile") & (got.tests["estimate"] != 0)]
        assert len(moved) and moved[["low", "high"]].isna().all(axis=None)
        assert (moved["p"].fillna(1) >= 0.5).all()
    page = report(got, tmp_path).read_text("utf-8")
    assert "nan" not in str(got.answer) and ">nan" not in page
