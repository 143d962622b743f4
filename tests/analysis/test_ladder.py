"""Rungs 3 to 5, what stands beside them, and the sentence for an abstract: from planted twins, seeds and knockouts."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from attnlens.analysis.evidence import agreement, decide
from attnlens.analysis.inference import infer
from attnlens.analysis.ladder import Case
from attnlens.analysis.results import Answer
from attnlens.analysis.roles import Roles

SESOI = 0.02
CASE = Case("tuned", "spans", SESOI)
EFFECT = (0.0, 0.06)


def models(*effects: tuple[float, ...], spread: float = 0.01, documents: int = 40) -> xr.Dataset:
    """Base, "tuned" and further models "m2", "m3", …, whose focus differs from the base's by effects (L,) each."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.1, 0.05, (documents, len(effects[0]), 2, 1))
    noise = [rng.normal(0, spread, base.shape) for _ in effects]
    moved = [base + np.asarray(effect)[:, None, None] + n for effect, n in zip(effects, noise, strict=True)]
    focus = np.stack([base, *moved])
    dims = ("model", "example", "layer", "head")
    flat = np.full(focus.shape[:-1], 0.5)
    marked = (*dims, "salience")
    return xr.Dataset(
        {
            "focus": (marked, focus),
            "share": (marked, 0.2 + focus),
            "mass": (marked, 0.5 * (0.2 + focus)),
            "log_odds": (marked, 5 * focus),
            "entropy": (dims, flat),
            "entropy_content": (dims, flat),
            "jsd": (dims, flat),
            "content_mass": (dims, flat),
        },
        coords={
            "model": ["base", "tuned", *(f"m{number}" for number in range(2, len(effects) + 1))],
            "salience": ["spans"],
            "document": ("example", [f"d{i:03d}" for i in range(documents)]),
        },
    )


def answer(data: xr.Dataset, roles: Roles | None = None, case: Case = CASE) -> Answer:
    tests = infer(data, roles=roles or Roles(("tuned",)), sesoi=SESOI, seed=0)
    return decide(tests[(tests["model"] == "tuned") & (tests["salience"] == "spans")], data, case)


def beside_a_twin(real: tuple[float, ...], null: tuple[float, ...]) -> Answer:
    return answer(models(real, null), Roles(("tuned",), {"tuned": "m2"}), replace(CASE, null="m2"))


def over_seeds(*effects: tuple[float, ...]) -> Answer:
    names = tuple(f"m{number}" for number in range(2, len(effects) + 1))
    case = replace(CASE, runs=len(effects))
    return answer(models(*effects), Roles(("tuned",), seeds={"tuned": names} if names else {}), case)


def test_two_checkpoints_reach_two_rungs_and_name_the_commands_for_the_rest():
    rungs = answer(models(EFFECT)).rungs
    assert [rung.status for rung in rungs] == ["yes", "yes", "not tested", "not tested", "not tested"]
    assert "--null-twin" in rungs[2].command and "--seeds" in rungs[3].command and "--knockout" in rungs[4].command


def test_the_third_rung_asks_for_more_than_the_twin():
    rung = beside_a_twin(EFFECT, (0.0, 0.01)).rungs[2]
    assert rung.status == "yes" and rung.detail.startswith("Layer 2: +4.8 of 100 units (95 % +4.")
    assert rung.detail.endswith("more than m2, simultaneous over layers.")
    assert beside_a_twin(EFFECT, EFFECT).rungs[2].status == "no"


def test_the_third_rung_holds_in_a_layer_of_the_verdict_and_in_its_direction():
    """Layer 1 differs from the twin and layer 2 does not: the claim is about layer 2, so it does not stand."""
    other = beside_a_twin((0.012, 0.06), (-0.012, 0.06))
    assert (other.verdict, other.layers, other.rungs[2].status) == ("yes", (1,), "no")
    less = beside_a_twin((0.0, 0.04), (0.0, 0.09))
    assert less.verdict == "yes" and less.rungs[2].status == "no"
    away = beside_a_twin((0.0, -0.06), (0.0, 0.0))
    assert away.verdict == "away" and away.rungs[2].status == "yes" and "\N{MINUS SIGN}6" in away.rungs[2].detail


def test_without_a_weight_change_there_is_no_training_to_shuffle():
    rung = answer(models(EFFECT), case=replace(CASE, same_weights=True)).rungs[2]
    assert rung.status == "not applicable" and "No weight" in rung.detail


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_fewer_than_six_seeds_test_nothing(runs: int):
    rung = over_seeds(*[EFFECT] * runs).rungs[3]
    assert rung.status == "not tested" and "at least 6 runs" in rung.detail
    assert (f"{runs} runs were given" in rung.detail) == (runs > 1)


def test_six_seeds_that_agree_repeat_and_six_that_do_not_do_not():
    rung = over_seeds(*[EFFECT] * 6).rungs[3]
    assert rung.status == "yes" and "over 6 seeds" in rung.detail and rung.detail.startswith("Layer 2: +6.")
    apart = over_seeds(EFFECT, *[(0.0, effect) for effect in (-0.05, 0.04, -0.06, 0.01, -0.02)])
    assert apart.verdict == "yes", "of these two checkpoints"
    assert apart.rungs[3].status == "no"


def knocked_out(focus: float, before: float) -> Answer:
    """`focus`: what the tuned model loses more without these words than without others; `before`: the base."""
    data = models(EFFECT)
    noise = np.random.default_rng(1).normal(0, 0.05, (2, data.sizes["example"]))
    causal = np.array([before, focus])[:, None] + noise
    dims = ("model", "example")
    facts = {"salience": "spans", "unit": "nats", "outcome": "label loss"}
    data["causal_focus"] = (dims, causal, facts)
    data["reliance"] = (dims, causal - causal[:1], facts)
    return answer(data, case=replace(CASE, knockout=facts))


def test_the_fifth_rung_asks_for_reliance_that_tuning_brought():
    rung = knocked_out(0.5, 0.1).rungs[4]
    assert rung.status == "yes" and "move the label loss by +0.493" in rung.detail and "(nats)" in rung.detail
    assert knocked_out(0.5, 0.5).rungs[4].status == "no", "it relied on them before"
    assert knocked_out(0.0, -0.4).rungs[4].status == "no", "it relies on no word at all"
    assert knocked_out(-0.3, 0.1).rungs[4].status == "no"


def test_the_remarks_tell_the_log_odds_and_the_split():
    """Δλ = 5 · .06 nats; with half of all attention on words, .06 of it is .03 of all, none of it from sinks."""
    remarks = answer(models(EFFECT, spread=0.0)).remarks
    assert "changed by +0.30 nats in layer 2" in remarks[0]
    assert "gained +3.0 units of 100: +3.0 by refocusing among words, 0.0 by release" in remarks[1]


def test_the_sentence_says_what_the_net_is_net_of():
    assert "Net of matched ordinary words: +5.9" in answer(models(EFFECT)).sentence
    explained = answer(models(EFFECT), case=replace(CASE, regression=True))
    assert "Net of what position, length and frequency explain: +5.9" in explained.sentence
    assert "net of what position, length and frequency explain;" in explained.abstract


def test_two_trainings_on_paired_seeds_are_held_against_each_other():
    """Level C: "tuned" moves by .06 and its rival "m2" by .03, six seeds each."""
    data = models(*[EFFECT, (0.0, 0.03)] * 6)
    names = [str(name) for name in data["model"].values[1:]]
    mine, other = names[0::2], names[1::2]
    numbers = {name: seed for runs in (mine, other) for seed, name in enumerate(runs)}
    roles = Roles(("m2", "tuned"), {}, {"tuned": tuple(mine[1:]), "m2": tuple(other[1:])}, numbers)
    assert roles.pairs("tuned") == list(zip(mine, other, strict=True)) and roles.pairs("m2") == []
    told = answer(data, roles, replace(CASE, runs=6, rival="m2")).remarks[-1]
    assert told.startswith("Against the training of m2, over 6 paired seeds: +3.") and "no test" not in told
    unpaired = replace(roles, numbers=numbers | {"tuned": 9})
    assert unpaired.pairs("tuned") == []
    assert not any("paired" in remark for remark in answer(data, unpaired, replace(CASE, runs=6)).remarks)


def test_the_abstract_says_what_was_held_against_what():
    text = beside_a_twin(EFFECT, (0.0, 0.0)).abstract
    assert text.startswith(
        "On 40 documents, fine-tuning moved attention towards the words marked by spans in layer 2 ("
    )
    assert "; this exceeds what the same training on shuffled labels does; " in text
    assert text.endswith("not tested: repetition over seeds, reliance of the outputs.")
    assert "by less than 2 of 100 units" in answer(models((0.0, 0.001))).abstract
    assert "stayed open" in answer(models((0.0, 0.02))).abstract


def test_definitions_agree_or_say_what_they_say():
    def said(verdict: str) -> Answer:
        return Answer(verdict, "", headline={"layer": 1.0})

    assert agreement({"spans": said("yes")}) == ""
    told = agreement({"spans": said("yes"), "tfidf": said("no"), "keyness": said("yes")})
    assert told == "2 of 3 definitions of the words that matter say yes (spans, keyness); tfidf says no."
    without = Answer("unclear", "Unclear: there is no focus answer.")
    assert agreement({"spans": said("yes"), "tfidf": without}) == agreement({"spans": without, "tfidf": without}) == ""
