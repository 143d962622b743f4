"""Laws of METRICS 7.3 through `compare` on real models; the table of all laws: tests/laws/__init__.py."""

import copy
from pathlib import Path

import numpy as np
from peft import LoraConfig, get_peft_model

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.pairs import PAIRS
from attnlens.text.corpus import Corpus, Example, Span
from tests.laws.models import Real, noisy


def small_corpus() -> Corpus:
    """Eight texts of eight documents, each with a marked word between two others."""
    nouns = "dog cat bird girl boy tree house car".split()
    examples = []
    for number, noun in enumerate(nouns):
        text = f"The {nouns[number - 1]} saw a {noun} near the {nouns[number - 2]}, and it rained on the {noun}."
        start = text.index(f"a {noun}") + 2
        examples.append(Example(text, str(number), str(number), None, (Span(start, start + len(noun)),)))
    return Corpus(tuple(examples), "small", "", True)


OPTIONS = CompareOptions(passages=0)


def single(real: Real, model=None, name: str = "base") -> Checkpoint:
    return Checkpoint(copy.deepcopy(real.model if model is None else model).float(), real.tokenizer, name, {})


def test_a_real_model_beside_itself_is_identical(real: Real, tmp_path: Path):
    """I-4, and an adapter that has not been trained (I-21)."""
    base = single(real)
    base.model.save_pretrained(tmp_path / "base")
    real.tokenizer.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "v_proj"] if real.causal else ["query", "value"]
    wrapped = get_peft_model(copy.deepcopy(base.model), LoraConfig(r=2, target_modules=targets))  # pyright: ignore[reportArgumentType]
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(tmp_path / "zero")
    untrained = compare(
        tmp_path / "base", tmp_path / "zero", corpus=small_corpus(), salience=("spans",), options=OPTIONS
    )
    copied = compare(base, single(real, name="copy"), corpus=small_corpus(), salience=("spans",), options=OPTIONS)
    for got in (untrained, copied):
        shift = got.data.isel(model=1) - got.data.isel(model=0)
        assert all((shift[name].fillna(0) == 0).all() for name in shift)
        assert all((got.data[name].isel(model=1).fillna(0) == 0).all() for name in PAIRS)
        tests = got.tests.dropna(subset="estimate")
        assert (tests[["estimate", "low", "high"]].dropna() == 0).all(axis=None) and len(tests) > 10
        assert (tests["p"].dropna() == 1).all() and (got.weights["relative"].fillna(0) == 0).all()
        assert got.answer.verdict == "identical"


def test_swapping_real_models_turns_every_sign(real: Real):
    """I-5."""
    base, tuned = single(real), single(real, noisy(real.model), "tuned")
    there, back = (
        compare(one, other, corpus=small_corpus(), salience=("spans",), options=OPTIONS)
        for one, other in ((base, tuned), (tuned, base))
    )
    shifts = [each.data.isel(model=1) - each.data.isel(model=0) for each in (there, back)]
    for name in ("share", "focus", "log_odds", "entropy", "mass", "content_mass", "received"):
        np.testing.assert_array_equal(shifts[0][name], -shifts[1][name], err_msg=name)
    one, other = (each.data.isel(model=1) for each in (there, back))
    for name in ("jsd", "tv"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-7)
    np.testing.assert_allclose(one["kl_forward"], other["kl_backward"], atol=1e-7)
    estimates = [each.tests[each.tests["family"] != "jsd layer"]["estimate"] for each in (there, back)]
    np.testing.assert_allclose(estimates[0], -estimates[1], atol=1e-15)
