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
    still = sorted(set(rows["layer"]) - set(moved["layer"]))
    end = f"; {layers_named(still)} stayed as they were" if still else ""
    return f"Weights changed most in layer {int(top['layer'])} ({percent(top['relative'])} % of their size){end}"


def top_heads_finding(table: pd.DataFrame, what: str) -> str:
    """The most changed head. table: the rows drawn, the most changed first."""
    top = table.iloc[0]
    head = f"Layer {int(top['layer'])}, head {int(top['head'])}"
    doubt = "" if top["p_adjusted"] < SIGNIFICANT else ", but not beyond chance"
    return f"{head} changed its {what} most ({signed(top['estimate'])} points){doubt}"
