"""Findings: what a figure shows, said in one sentence; the titles of the figures and the report's second paragraph."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from attnlens.analysis.results import Answer, Comparison
from attnlens.analysis.wording import signed
from attnlens.show.plots import SIGNIFICANT, SMALLEST_PERCENT, detected, percent
from attnlens.show.training_records import QUALITIES, number, part
from attnlens.show.twins import real_models, twins

MOVED = ("yes", "away")
# What marked words are held against, by its name in the table of controls.
CONTROLS = {
    "matched words": "that of matched words",
    "what position, length and frequency explain": "what position, length and frequency explain",
}


def listed(items: Iterable[object]) -> str:
    """'5', '5 and 6', '2, 5 and 6'."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def layers_named(layers: Iterable[int]) -> str:
    """Layers counted from 1 in words, runs of three or more as a range: 'layer 6', 'layers 1, 4–6 and 9'."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run]
    single = len(parts) == 1 and "–" not in parts[0]
    return f"{'layer' if single else 'layers'} {listed(parts)}"


def null_words(comparison: Comparison) -> str:
    """A caption's words for the twins among the models; nothing where there is none."""
    null = [model for model in comparison.models[1:] if model not in real_models(comparison)]
    kind = "a null" if len(null) == 1 else "nulls"
    return f" Grey, dashed: {listed(null)}, {kind}, no answer." if null else ""


def focus_finding(comparison: Comparison) -> str:
    """Did attention move to the marked words: the verdicts under the headline definition."""
    answers = {model: next(iter(comparison.answers[model].values())) for model in comparison.models[1:]}
    real = [answers[model] for model in real_models(comparison)]
    null = [answers[model].verdict for model in twins(comparison)] if len(real) < len(answers) else []
    return f"{_focus_of(real)}{_on_shuffled(real, null)}"


def _on_shuffled(real: list[Answer], null: list[str]) -> str:
    """Whether a twin moved as well."""
    if not null or not any(answer.verdict in MOVED for answer in real):
        return ""
    moved = sum(verdict in MOVED for verdict in null)
    if len(null) == 1:
        beyond = all(rung.status == "yes" for answer in real for rung in answer.rungs if rung.number == 3)
        as_well = "; less so in the null" if beyond else "; so it did in the null"
        return as_well if moved else "; not so in the null"
    return f"; so it did in {moved} of {len(null)} nulls"


def _focus_of(answers: list[Answer]) -> str:
    if len(answers) > 1:
        verdicts = [answer.verdict for answer in answers]
        towards = verdicts.count("yes")
        away = f", away from them in {verdicts.count('away')}" if "away" in verdicts else ""
        return f"Attention moved towards the marked words in {towards} of {len(verdicts)} tuned models{away}"
    answer = answers[0]
    where = f" in {layers_named(layer + 1 for layer in answer.layers)}" if answer.layers else ""
    return {
        "yes": f"Attention moved towards the marked words{where}",
        "away": f"Attention moved away from the marked words{where}",
        "no": "Attention on the marked words stayed the same in every layer, within the margin",
        "identical": "Attention did not change: the two models are identical",
    }.get(answer.verdict, "Whether attention moved to the marked words stays open on these texts")


def points(value: float) -> str:
    """'+1.2 points'; a change that would be printed as 0.0 is 'below 0.1 points'."""
    return "below 0.1 points" if 0 < abs(value) < 0.05 else f"{signed(value)} points"


def entropy_finding(table: pd.DataFrame) -> str:
    """Where attention became more concentrated or more spread out. table: the rows of one model, one row a layer."""
    if table["estimate"].isna().all():
        return "No data on how concentrated attention is"
    found = table[detected(table)]
    if found.empty:
        return "No layer's attention became detectably more concentrated or more spread out"
    down, up = found[found["estimate"] < 0], found[found["estimate"] > 0]
    parts = [
        f"more {word} in {layers_named(rows['layer'])}"
        for word, rows in (("concentrated", down), ("spread out", up))
        if len(rows)
    ]
    top = found.iloc[int(found["estimate"].abs().to_numpy().argmax())]
    most = "" if len(found) == 1 else f", most in layer {int(top['layer'])}"
    return f"Attention became {' and '.join(parts)}{most} ({points(top['estimate'])})"


def heads_finding(table: pd.DataFrame, what: str) -> str:
    """How many heads changed. table: the shown heads of one model; what: 'concentration', 'focus on marked words'."""
    if table.empty:
        return "No head gives words enough attention to be judged"
    if table["estimate"].isna().all():
        return f"No data on the {what} of heads"
    found = table[table["p_adjusted"] < SIGNIFICANT]
    if found.empty:
        return f"None of {len(table)} heads changed its {what} detectably"
    counts = found["layer"].value_counts()
    layer = int(counts.index[0])
    share = "most of them" if 2 * counts.iloc[0] > len(found) else "the largest part"
    most = f", {share} ({counts.iloc[0]}) in layer {layer}" if len(counts) > 1 else f", all in layer {layer}"
    return f"{len(found)} of {len(table)} heads changed {'its' if len(found) == 1 else 'their'} {what}{most}"


def weights_finding(table: pd.DataFrame, *, shared: bool = False) -> str:
    """Where the weights changed most, rounding left aside.

    table: of one model, layer (from 1; empty outside the layers), relative (percent), rounding. shared: the layers run
    through the same weights.
    """
    if table["relative"].isna().all():
        return "No data on the weights"
    numbered = table[table["layer"].notna() & (table["layer"] > 0)]
    rows = table if numbered.empty else numbered
    moved = rows[rows["relative"] > 0]
    if moved.empty:
        return "No weight changed" if numbered.empty else "No layer's weights changed"
    rounded = moved["rounding"].astype(bool) if "rounding" in moved else pd.Series(False, moved.index)
    beyond = moved[~rounded]
    top = most_moved(moved if beyond.empty else beyond, "relative")
    size = f"{percent(top['relative'])} % of their size"
    if beyond.empty:
        return f"Weights differ by rounding alone (up to {size})"
    if numbered.empty:
        size = size.replace("their", "its")
        return f"The whole backbone{', whose layers share their weights,' if shared else ''} changed by {size}"
    still = set(rows["layer"]) - set(moved["layer"])
    end = f"; rounding alone in {layers_named(moved.loc[rounded, 'layer'])}" if rounded.any() else ""
    end += f"; {layers_named(still)} did not change" if still else ""
    return f"Weights changed most in layer {int(top['layer'])} ({size}){end}"


def top_heads_finding(table: pd.DataFrame, what: str) -> str:
    """The most changed head. table: the rows drawn, the most changed first."""
    top = table.iloc[0]
    head = f"Layer {int(top['layer'])}, head {int(top['head'])}"
    doubt = "" if top["p_adjusted"] < SIGNIFICANT else ", but not beyond chance"
    return f"{head} changed its {what} most ({points(top['estimate'])}){doubt}"


def most_moved(table: pd.DataFrame, column: str) -> pd.Series:
    """The row whose `column` is the farthest from zero."""
    return table.iloc[int(table[column].abs().fillna(0).to_numpy().argmax())]


def jsd_finding(table: pd.DataFrame) -> str:
    """Where the maps moved apart most. table: layer, estimate, low and floor (percent of the maximum) of one model.

    A layer whose interval reaches down to the floor, what rounding alone makes, is none that moved.
    """
    if table["estimate"].isna().all():
        return "No data on how far the attention maps moved apart"
    top = most_moved(table, "estimate")
    if top["estimate"] == 0:
        return "The attention maps are the same in every layer"
    if top["estimate"] < SMALLEST_PERCENT / 2:  # it would be printed as 0.00
        return f"Attention maps are all but the same in every layer (JSD below {SMALLEST_PERCENT} % of its maximum)"
    beyond = table[table["low"].fillna(table["estimate"]) > table["floor"]]
    if beyond.empty:
        size = f"JSD up to {percent(top['estimate'])} % of its maximum"
        return f"Attention maps moved apart no further than rounding moves them ({size})"
    top = most_moved(beyond, "estimate")
    size = f"JSD {percent(top['estimate'])} % of its maximum"
    return f"Attention maps moved apart most in layer {int(top['layer'])} ({size})"


def received_finding(table: pd.DataFrame) -> str:
    """Where marked words gained or lost most received attention against their controls.

    table: one model; low, high: simultaneous over layers, for the layer told is the one that changed most.
    """
    if table["change"].isna().all():
        return "No data on the attention that marked words receive"
    top = most_moved(table, "change")
    if top["change"] == 0:
        return "Marked words receive what they received before"
    if abs(top["change"]) < 0.005:  # it would be printed as 0.00
        return "Against matched words, marked words receive what they received before, within 0.01 × uniform"
    more = "more" if top["change"] > 0 else "less"
    doubt = "" if top["low"] > 0 or top["high"] < 0 else ", but not beyond chance"
    doubt = "; too few documents for an interval" if pd.isna(top["low"]) else doubt
    marked = f"{top['marked_base']:.2f} → {top['marked_tuned']:.2f} × uniform"
    control = f"{top['control_base']:.2f} → {top['control_tuned']:.2f}"
    return (
        f"Against matched words, marked words receive {more} attention, most in layer {int(top['layer'])} "
        f"({marked}; matched: {control}){doubt}"
    )


def refocusing_finding(table: pd.DataFrame) -> str:
    """What moved the attention on marked words in the layer where it moved most. table: the heads of one model."""
    if table["change"].isna().all():
        return "No data on the attention on marked words"
    layers = table.groupby("layer")[["refocusing", "sink_release", "change"]].mean().reset_index()
    top = most_moved(layers, "change")
    if top["change"] == 0:
        return "Attention on the marked words did not move"
    if abs(top["change"]) < 0.05:  # it would be printed as 0.0
        return "Attention on the marked words moved by less than 0.1 points in every layer"
    larger = abs(top["refocusing"]) >= abs(top["sink_release"])
    first, second = ("refocusing", "sink release") if larger else ("sink release", "refocusing")
    return (
        f"Attention on the marked words moved most in layer {int(top['layer'])} ({signed(top['change'])} points), more "
        f"by {first} ({signed(top[first.replace(' ', '_')])}) than by {second} "
        f"({signed(top[second.replace(' ', '_')])})"
    )


def circuits_finding(table: pd.DataFrame, *, shared: bool = False) -> str:
    """The heads whose QK and OV products changed most, rounding left aside.

    table: layer, head, circuit, relative (percent), rounding of one model. shared: the layers run through the same
    weights; layer then counts the blocks of weights.
    """
    if table["relative"].isna().all():
        return "No data on the weights of heads"
    largest = table["relative"].max()
    if largest == 0:
        return "No head's weights changed what it computes"
    beyond = table[~table["rounding"].astype(bool) & (table["relative"] > 0)]
    if beyond.empty:
        return f"What the heads compute differs by rounding alone (up to {percent(largest)} %)"
    parts = []
    for circuit, rows in beyond.groupby("circuit", sort=False):
        top = most_moved(rows, "relative")
        place = f"{'block' if shared else 'layer'} {int(top['layer'])}, head {int(top['head'])}"
        parts.append(f"{circuit} of {place} ({percent(top['relative'])} %)")
    return f"Most changed by its weights: {', '.join(parts)}"


def definitions_finding(table: pd.DataFrame) -> str:
    """Under how many definitions attention moved by more than the margin. table: one model, a row a definition."""
    if table.empty:
        return "No data on the definitions of the marked words"
    parts = []
    for words, rows in (
        ("moved towards the marked words", table[table["filled"] & (table["estimate"] > 0)]),
        ("moved away from the marked words", table[table["filled"] & (table["estimate"] < 0)]),
    ):
        if len(rows):
            parts.append(f"{words} under {len(rows)} of {len(table)} definitions ({listed(rows['label'])})")
    where = f"In layer {table['layer'].iloc[0]}"
    if not parts:
        return f"{where} none of {len(table)} definitions of the marked words shows a change beyond the margin"
    return f"{where} attention {' and '.join(parts)}"


def controls_finding(table: pd.DataFrame) -> str:
    """What marked words gained beside their controls, where the two parted most. table: one model; words, layer."""
    wide = table.pivot(index="layer", columns="words", values="estimate")
    marked, control = table["words"].iloc[0], next(name for name in CONTROLS if name in wide)
    gap = (wide[marked] - wide[control]).abs()
    if gap.isna().all():
        return "No data on the share of the marked words"
    if not table["estimate"].abs().max() > 0.05:  # it would be printed as 0.0
        return "Neither marked words nor their controls changed their share of attention by 0.1 points"
    place = int(gap.fillna(-1.0).to_numpy().argmax())
    change = {str(name): signed(float(wide[name].iloc[place])) for name in wide}
    return (
        f"In layer {wide.index[place]} the share of the marked words changed by {change[marked]} points; "
        f"{CONTROLS[control]} by {change[control]}, that of random words by {change['random words']}"
    )


def agreement_finding(table: pd.DataFrame) -> str:
    """Whether received attention picks out the marked words better than before. table: one tuned model."""
    rows = table[table["measure"] == table["measure"].iloc[0]]
    if rows["change"].isna().all():
        return "No data on how well received attention picks out the marked words"
    top = most_moved(rows, "change")
    before, after = (f"{value:.2f}".removeprefix("0") for value in (top["estimate"] - top["change"], top["estimate"]))
    if before == after:
        return f"Received attention picks out the marked words as it did before ({top['measure']} {after})"
    word = "better" if top["change"] > 0 else "worse"
    doubt = "" if top["filled"] else ", but not beyond chance"
    doubt = "; too few documents for an interval" if pd.isna(top["low"]) else doubt
    where = f"most in layer {int(top['layer'])} ({top['measure']} {before} → {after})"
    return f"Received attention picks out the marked words {word} than before, {where}{doubt}"


def reliance_finding(table: pd.DataFrame) -> str:
    """Whether hiding the marked words costs more than hiding others, and more than in the base. table: one model."""
    if table.empty:
        return "No data on what the outputs lose without the marked words"
    beyond, against = (bool(rows["filled"].any()) for _, rows in table.groupby("label", sort=False))
    if beyond:
        more = ", and more than before tuning" if against else "; that they do so more than before was not shown"
        return f"The outputs rely on the marked words{more}"
    return "That the outputs rely on the marked words was not shown"


def methods_finding(table: pd.DataFrame) -> str:
    """Who did best, and who changed least. table: model, quality, value, changed (percent)."""
    table = table[table["value"].notna()]
    quality = str(table["quality"].iloc[0])
    values = table["value"].to_numpy(float)
    table = table.assign(written=[_quality(quality, value) for value in values])
    reached = _quality(quality, float(values.min() if quality == "perplexity" else values.max()))
    best = list(table.loc[table["written"] == reached, "model"])
    told = f"Best held-out {quality}: {listed(best)} ({reached})"
    if table["changed"].isna().all():
        return told
    least = table.iloc[int(table["changed"].fillna(np.inf).to_numpy().argmin())]
    if least["model"] in best:
        return f"{told}, having trained {percent(least['changed'])} % of the weights, the fewest"
    return f"{told}; fewest weights trained: {least['model']} ({percent(least['changed'])} %, {least['written']})"


def passage_finding(table: pd.DataFrame, models: list[str], where: str, unit: str) -> str:
    """How much of the attention on words the marked ones of one text hold.

    table: model, position, piece, is_word, marked, received. unit: what `received` counts: 'attention on words', of a
    causal model the position-corrected.
    """
    base, tuned = (table[(table["model"] == name) & table["is_word"]].set_index("position") for name in models[:2])
    change = (tuned["received"] - base["received"]).to_numpy(float)
    if np.isnan(change).any():
        return "One text as the models read it"
    if table["marked"].any():
        before, after = (rows.loc[rows["marked"], "received"].sum() for rows in (base, tuned))
        return f"The marked words shown receive {before:.0f} % of the {unit}, then {after:.0f} %"
    place = int(abs(change).argmax())
    if change[place] == 0:
        return f"Every word shown receives what it received before ({where})"
    return f"Of the words shown “{base['piece'].iloc[place]}” changed most ({signed(change[place])} points)"


def training_finding(comparison: Comparison, records: dict[str, dict]) -> str:
    """How well each tuned model did on its held-out data, before training where that is recorded, and after."""
    told = []
    for model, record in records.items():
        metrics = part(record, "metrics")
        name = next((name for name in QUALITIES if not math.isnan(number(metrics.get(name)))), "")
        if name:
            told.append((model, name, number(metrics.get(f"base_{name}")), number(metrics[name])))
    if not told:
        return "Training loss over steps"
    if len(comparison.models) == 2:
        _, name, before, after = told[0]
        what, last = QUALITIES[name], _quality(name, after)
        if math.isnan(before):
            return f"Training reached a held-out {what} {last}"
        first = _quality(name, before)
        if _worse(name, before, after):
            return f"Training made the held-out {what} worse: {first} → {last}"
        return f"Held-out {what}: {first} before training, {last} after"
    parts = []
    for model, name, before, after in told:
        first = "" if math.isnan(before) else f"{_quality(name, before)} → "
        worse = " (worse)" if _worse(name, before, after) else ""
        parts.append(f"{model} {QUALITIES[name]} {first}{_quality(name, after)}{worse}")
    return f"Held-out results: {', '.join(parts)}"


def _worse(name: str, before: float, after: float) -> bool:
    """Never where it is not known what was before."""
    return after > before if name == "perplexity" else after < before


def _quality(name: str, value: float) -> str:
    """.813 of a share, 41.0 or 1,956,383 of a perplexity."""
    if name == "perplexity":
        return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
    return f"{value:.3f}".removeprefix("0")
