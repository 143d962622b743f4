"""Any texts, any changes and any names: groups hold their laws, verdicts their definition, stores every bit.

CI draws a few dozen of each; `make fuzz` a thousand (a hundredth of ATTNLENS_FUZZ).
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attnlens.analysis.evidence import decide
from attnlens.analysis.inference import infer
from attnlens.analysis.ladder import Case
from attnlens.analysis.prepare import CONTROL, MARKED, MATCHED, PER_DEFINITION, Reading, prepare
from attnlens.analysis.results import Answer, open_comparison
from attnlens.analysis.roles import Roles
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.core.errors import CorpusError
from attnlens.text.corpus import Corpus, Example, Span
from tests.analysis.test_evidence import planted
from tests.conftest import Tuning
from tests.show.synthetic import make_comparison

INPUTS = max(20, int(os.environ.get("ATTNLENS_FUZZ", "0")) // 100)
some = settings(
    max_examples=INPUTS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SESOI = 0.02
LETTERS = st.characters(exclude_categories=["Cs"])
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=6) | st.sampled_from(["rent", "the", "42", "…"]), max_size=12)


@pytest.fixture(scope="module")
def base(tuning: Tuning) -> Checkpoint:
    return load(tuning.base)


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    """Texts of any characters in which some stretches are marked."""
    examples = []
    for number in range(draw(st.integers(1, 4))):
        text = f"{' '.join(draw(WORDS))} end"
        start = draw(st.integers(0, len(text) - 1))
        spans = (Span(start, draw(st.integers(start + 1, len(text))), "marked"),)
        examples.append(Example(text, str(number), f"d{number % 2}", spans=spans))
    return Corpus(tuple(examples), "drawn", "0" * 64, True)


@given(corpus=corpora())
@some
def test_groups_of_any_texts(base: Checkpoint, corpus: Corpus):
    """Weights are shares of a piece; the kinds lie within the content; matched words and their controls are apart."""
    try:
        found = prepare(corpus, [base], Reading("content", ("spans",)))
    except CorpusError:
        return  # texts of strange signs alone, or with nothing marked
    for encoded, columns, rows in zip(found.encodings, found.columns, found.rows, strict=True):
        assert columns.shape == (len(encoded.ids), 1 + PER_DEFINITION) and len(rows) == len(encoded.ids)
        content, kinds = columns[:, :1], columns[:, 1:]
        assert set(content.ravel()) <= {0.0, 1.0} and not content[encoded.special].any()
        assert ((kinds >= 0) & (kinds <= content)).all()
        assert not (kinds[:, CONTROL] * kinds[:, MARKED]).any()
        assert (kinds[:, MATCHED] <= kinds[:, MARKED]).all()
        assert bool(kinds[:, MATCHED].any()) == bool(kinds[:, CONTROL].any())


@st.composite
def measured(draw: st.DrawFn) -> xr.Dataset:
    """Focus of two models, with effects of any size, and texts without data."""
    effects = draw(st.lists(st.sampled_from([0.0, 0.001, -0.03, 0.05, 0.4, -1.0]), min_size=1, max_size=3))
    spread, documents = draw(st.sampled_from([0.0, 1e-9, 0.01, 0.5])), draw(st.integers(1, 14))
    data = planted(effects, spread=spread, documents=documents, seed=draw(st.integers(0, 99)))
    missing = draw(st.lists(st.tuples(st.integers(0, documents - 1), st.integers(0, len(effects) - 1)), max_size=20))
    for name in ("focus", "share", "log_odds", "mass"):
        for text, layer in missing:
            data[name].values[:, text, layer] = np.nan
    return data


@given(data=measured())
@some
def test_the_verdict_of_any_change(data: xr.Dataset):
    """ "yes" iff a tested lower bound lies over the least change that matters, and so on; words for all of it."""
    tests = infer(data, roles=Roles(("tuned",)), sesoi=SESOI, seed=0)
    got = decide(tests[tests["model"] == "tuned"], data, Case("tuned", "spans", SESOI))
    profile = tests[(tests["family"] == "profile") & (tests["model"] == "tuned")]
    beats = profile["p_adjusted"] < 0.05
    toward, away = beats & (profile["low"] > SESOI), beats & (profile["high"] < -SESOI)
    if got.verdict in ("yes", "away"):
        assert toward.any() if got.verdict == "yes" else (away.any() and not toward.any())
        assert set(got.layers) == set(np.flatnonzero(toward if got.verdict == "yes" else away))
    else:
        assert got.verdict in ("no", "unclear", "not asked") and not toward.any() and not away.any()
    assert got.sentence.strip() and "nan" not in f"{got.sentence} {got.abstract} {' '.join(got.remarks)}".lower()
    assert all(rung.status in ("yes", "no", "not tested", "not applicable") for rung in got.rungs)


def alike(first: Any, second: Any) -> bool:
    """Equal, NaN being equal to itself."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(alike(first[name], second[name]) for name in first)
    return first == second or (first != first and second != second)


@given(
    names=st.lists(st.text(LETTERS, min_size=1, max_size=9), min_size=2, max_size=3, unique=True),
    text=st.text(LETTERS, max_size=30),
    holes=st.lists(st.integers(0, 10**6), max_size=9),
    facts=st.dictionaries(st.text(LETTERS), st.integers() | st.text(LETTERS) | st.floats(allow_infinity=False)),
)
@example(names=["0", "\r"], text="", holes=[], facts={})  # which the CSV of a table once lost
@example(names=["base", "=1+1\r\n"], text='"\x00,\ufeff\u2028</script>', holes=[0], facts={})
@some
def test_any_comparison_is_opened_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], text: str, holes: list[int], facts: dict
):
    folder = tmp_path_factory.mktemp("store")
    made = make_comparison(base=names[0], tuned=tuple(names[1:]), texts=(f"word {text}",), shape=(2, 2))
    for array in made.data.data_vars.values():
        for hole in holes:
            array.values.reshape(-1)[hole % array.size] = np.nan
    made = replace(made, provenance=made.provenance | {"facts": {k: v for k, v in facts.items() if v == v}})
    made.save(folder)
    got = open_comparison(folder)
    xr.testing.assert_identical(got.data, made.data)
    for table in ("weights", "heads", "tests"):
        pd.testing.assert_frame_equal(getattr(got, table), getattr(made, table), check_dtype=False)
    assert got.provenance == made.provenance and got.passages[0].words == made.passages[0].words
    np.testing.assert_array_equal(got.passages[0].received, made.passages[0].received)
    for model, answers in made.answers.items():
        for name, answer in answers.items():
            other: Answer = got.answers[model][name]
            assert all(alike(value, vars(other)[key]) for key, value in vars(answer).items())


def test_the_folder_of_a_store_is_left_clean(tmp_path: Path):
    make_comparison(shape=(2, 2)).save(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
