"""Findings: what a figure shows, said in one sentence; the titles of the figures and the report's second paragraph."""

from collections.abc import Iterable

import pandas as pd

from attnlens.analysis.evidence import signed
from attnlens.analysis.results import Comparison
from attnlens.show.plots import SIGNIFICANT, percent


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


def focus_finding(comparison: Comparison) -> str:
    """Did attention move to the marked words: the verdicts under the headline definition."""
    answers = {model: next(iter(found.values())) for model, found in comparison.answers.items()}
    if len(answers) > 1:
        verdicts = [answer.verdict for answer in answers.values()]
        towards = verdicts.count("yes")
        away = f", away from them in {verdicts.count('away')}" if "away" in verdicts else ""
        return f"Attention moved towards the marked words in {towards} of {len(verdicts)} tuned models{away}"
    answer = comparison.answer
    where = f" in {layers_named(layer + 1 for layer in answer.layers)}" if answer.layers else ""
    return {
        "yes": f"Attention moved towards the marked words{where}",
        "away": f"Attention moved away from the marked words{where}",
        "no": "Attention on the marked words stayed the same in every layer, within the margin",
        "identical": "Attention did not change: the two models are identical",
    }.get(answer.verdict, "Whether attention moved to the marked words stays open on these texts")


def entropy_finding(table: pd.DataFrame) -> str:
    """Where attention became more concentrated or more spread out. table: the rows of one model, one row a layer."""
    found = table[table["p_adjusted"] < SIGNIFICANT]
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
    return f"Attention became {' and '.join(parts)}{most} ({signed(top['estimate'])} points)"


def heads_finding(table: pd.DataFrame, what: str) -> str:
    """How many heads changed. table: the shown heads of one model; what: 'concentration', 'focus on marked words'."""
    found = table[table["p_adjusted"] < SIGNIFICANT]
    if found.empty:
        return f"None of {len(table)} heads changed its {what} detectably"
    counts = found["layer"].value_counts()
    layer = int(counts.index[0])
    share = "most of them" if 2 * counts.iloc[0] > len(found) else "the largest part"
    most = f", {share} ({counts.iloc[0]}) in layer {layer}" if len(counts) > 1 else f", all in layer {layer}"
    return f"{len(found)} of {len(table)} heads changed {'its' if len(found) == 1 else 'their'} {what}{most}"


def weights_finding(table: pd.DataFrame) -> str:
    """Where the weights changed most. table: layer (from 1; empty outside the layers) and relative (percent)."""
    rows = table[table["layer"].notna() & (table["layer"] > 0)]
    moved = rows[rows["relative"] > 0]
    if moved.empty:
        return "No layer's weights changed"
    top = moved.iloc[int(moved["relative"].to_numpy().argmax())]
    if "rounding" in moved and moved["rounding"].all():
        return f"Weights differ by rounding alone (up to {percent(top['relative'])} % of their size)"
    still = sorted(set(rows["layer"]) - set(moved["layer"]))
    end = f"; {layers_named(still)} stayed as they were" if still else ""
    return f"Weights changed most in layer {int(top['layer'])} ({percent(top['relative'])} % of their size){end}"


def top_heads_finding(table: pd.DataFrame, what: str) -> str:
    """The most changed head. table: the rows drawn, the most changed first."""
    top = table.iloc[0]
    head = f"Layer {int(top['layer'])}, head {int(top['head'])}"
    doubt = "" if top["p_adjusted"] < SIGNIFICANT else ", but not beyond chance"
    return f"{head} changed its {what} most ({signed(top['estimate'])} points){doubt}"


def most_moved(table: pd.DataFrame, column: str) -> pd.Series:
    """The row whose `column` is the farthest from zero."""
    return table.iloc[int(table[column].abs().fillna(0).to_numpy().argmax())]


def jsd_finding(table: pd.DataFrame) -> str:
    """Where the maps moved apart most. table: layer and estimate (percent of the maximum) of one model."""
    top = most_moved(table, "estimate")
    if not top["estimate"] > 0:
        return "The attention maps are the same in every layer"
    return f"Attention maps moved apart most in layer {top['layer']} (JSD {percent(top['estimate'])} % of its maximum)"


def received_finding(table: pd.DataFrame) -> str:
    """Where marked words gained or lost most received attention against their controls. table: one model."""
    top = most_moved(table, "change")
    if not abs(top["change"]) > 0:
        return "Marked words receive what they received before"
    more = "more" if top["change"] > 0 else "less"
    doubt = "" if top["low"] > 0 or top["high"] < 0 else ", but not beyond chance"
    marked = f"{top['marked_base']:.2f} → {top['marked_tuned']:.2f} × uniform"
    control = f"{top['control_base']:.2f} → {top['control_tuned']:.2f}"
    return (
        f"Against matched words, marked words receive {more} attention, most in layer {top['layer']} "
        f"({marked}; matched: {control}){doubt}"
    )


def refocusing_finding(table: pd.DataFrame) -> str:
    """What moved the attention on marked words in the layer where it moved most. table: the heads of one model."""
    layers = table.groupby("layer")[["refocusing", "sink_release", "change"]].mean().reset_index()
    top = most_moved(layers, "change")
    if not abs(top["change"]) > 0:
        return "Attention on the marked words did not move"
    larger = abs(top["refocusing"]) >= abs(top["sink_release"])
    first, second = ("refocusing", "sink release") if larger else ("sink release", "refocusing")
    return (
        f"Attention on the marked words moved most in layer {int(top['layer'])} ({signed(top['change'])} points), more "
        f"by {first} ({signed(top[first.replace(' ', '_')])}) than by {second} "
        f"({signed(top[second.replace(' ', '_')])})"
    )


def circuits_finding(table: pd.DataFrame) -> str:
    """The heads whose QK and OV products changed most. table: layer, head, circuit, relative (percent) of one model."""
    parts = []
    for circuit, rows in table.groupby("circuit", sort=False):
        top = most_moved(rows, "relative")
        if top["relative"] > 0:
            place = f"layer {top['layer']}, head {top['head']}"
            parts.append(f"{circuit} of {place} ({percent(top['relative'])} %)")
    return f"Most changed by its weights: {', '.join(parts)}" if parts else "No head's weights changed what it computes"


def passage_finding(table: pd.DataFrame, models: list[str], where: str) -> str:
    """How much of the attention on words the marked ones of one text hold. table: model, is_word, marked, received."""
    base, tuned = (table[(table["model"] == name) & table["is_word"]].set_index("position") for name in models[:2])
    if table["marked"].any():
        before, after = (rows.loc[rows["marked"], "received"].sum() for rows in (base, tuned))
        return f"In this text the marked words receive {before:.0f} % of the attention on words, then {after:.0f} %"
    change = (tuned["received"] - base["received"]).fillna(0).to_numpy(float)
    place = int(abs(change).argmax())
    if change[place] == 0:
        return f"In this text every word receives what it received before ({where})"
    return f"In this text “{base['piece'].iloc[place]}” changed most ({signed(change[place])} points)"


def training_finding(comparison: Comparison, records: dict[str, dict]) -> str:
    """How well each tuned model did on its held-out data, as recorded."""
    told = []
    for model, record in records.items():
        metrics = record.get("metrics") or {}
        for name, words in (("macro_f1", "macro-F1"), ("accuracy", "accuracy"), ("perplexity", "perplexity")):
            if isinstance(metrics.get(name), int | float):
                value = f"{metrics[name]:.1f}" if name == "perplexity" else f"{metrics[name]:.3f}".removeprefix("0")
                told.append((model, f"{words} {value}"))
                break
    if not told:
        return "Training loss over steps"
    if len(comparison.models) == 2:
        return f"Training reached a held-out {told[0][1]}"
    return "Held-out results: " + ", ".join(f"{model} {value}" for model, value in told)
