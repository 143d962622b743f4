"""What training records say, in sentences: which blocks were chosen and whether that means anything, what was lost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.analysis.roles import is_null
from attnlens.show.findings import layers_named, listed
from attnlens.show.plots import percent
from attnlens.show.training_records import (
    Switching,
    null_word,
    number,
    part,
    switching,
    text,
    texts,
    training_records,
)

CONTROLS = {"last_k": "the last blocks", "first_k": "the first blocks", "rms": "the blocks of the smallest weights"}
SAME = 0.005  # Jaccards that are printed alike


def blocks_named(blocks: Sequence[int]) -> str:
    """Blocks counted from 0 in words that count from 1: 'block 6', 'blocks 1 and 4–6', 'no block'."""
    return layers_named(block + 1 for block in blocks).replace("layer", "block") if blocks else "no block"


def place(blocks: Sequence[int], count: int) -> str:
    """Where a set of blocks lies: 'all', 'the last ones', 'the first ones' or nothing to be said."""
    chosen = sorted(set(blocks))
    if len(chosen) == count:
        return "all of them"
    if not chosen or chosen[-1] - chosen[0] + 1 != len(chosen):
        return ""
    word = "ones" if len(chosen) > 1 else "one"
    return f"the last {word}" if chosen[-1] == count - 1 else f"the first {word}" if chosen[0] == 0 else ""


def selection_finding(told: Switching) -> str:
    """Which blocks a run trained, and whether they were the last ones; for a title."""
    sets = told.chosen
    if not sets:
        return "no block was chosen before training ended"
    final = blocks_named(sets[-1])
    where = place(sets[-1], told.blocks)
    where = f", {where}," if where else ""
    if len(sets) == 1:
        return f"{final}{where} chosen once".replace(",, ", ", ")
    if len(set(sets)) == 1:
        times = "both times" if len(sets) == 2 else f"each of {len(sets)} times"
        return f"{final}{where} chosen {times}"
    return f"{final}{where} chosen last ({len(set(sets))} different sets in {len(sets)} choices)"


def selection_sentences(comparison: Comparison) -> list[str]:
    """For each run that chose blocks: which, how far the choice is that of its controls, and what a twin chose."""
    return [
        f"{model}: {sentence}"
        for model, record in training_records(comparison).items()
        if (sentence := _selection(record))
    ]


def _selection(record: dict[str, Any]) -> str:
    told, facts = switching(record), part(record, "selection_overlap")
    if told is None or not told.chosen:
        return ""
    final = told.chosen[-1]
    where = place(final, told.blocks)
    sentence = f"the blocks chosen last are {final and listed(block + 1 for block in final)} of {told.blocks}"
    sentence = f"{sentence}: {where}." if where else f"{sentence}."
    jaccard = part(facts, "jaccard")
    known = {name: number(jaccard.get(name)) for name in CONTROLS}
    told_of = [f"{value:.2f} with {CONTROLS[name]}" for name, value in known.items() if not math.isnan(value)]
    chance = number(facts.get("chance"))
    if told_of:
        random = "" if math.isnan(chance) else f"; a random set of this size has {chance:.2f} on average"
        sentence += f" Overlap (Jaccard, 1 = the same set): {listed(told_of)}{random}."
    if known["last_k"] > 1 - SAME:
        sentence += " Training the last blocks, without any score, would have trained the same ones."
    return f"{sentence}{_against_real(record, number(facts.get('real')), chance)}"


def _against_real(record: dict[str, Any], real: float, chance: float) -> str:
    """Of a twin: whether it chose what the real run chose."""
    if not is_null(record) or math.isnan(real):
        return ""
    if real > 1 - SAME:
        return (
            f" On {null_word(record)} the real run's blocks were chosen too: the choice does not show what was learned."
        )
    more = "" if math.isnan(chance) else f", where chance gives {chance:.2f}"
    return f" Overlap with what the real run chose: {real:.2f}{more}."


def movement_finding(table: pd.DataFrame) -> str:
    """The block that moved farthest by the end. table: the rows of one model: step, block, part, change (percent)."""
    end = table[table["step"] == table["step"].max()]
    if end.empty or not end["change"].max() > 0:
        return "no block moved"
    row = end.loc[end["change"].idxmax()]
    still = sorted(set(end["block"]) - set(end.loc[end["change"] > 0, "block"]))
    end_of = f"; {layers_named(still).replace('layer', 'block')} did not move" if still else ""
    return f"the {row['part']} of block {int(row['block'])} moved farthest ({percent(row['change'])} %){end_of}"


def gradient_finding(table: pd.DataFrame) -> str:
    """Where the gradient was largest. table: the rows of one model: step, block, gradient."""
    middle = table.groupby("block", as_index=False)["gradient"].median().dropna()
    top = middle.iloc[int(middle["gradient"].to_numpy().argmax())]
    return f"the gradient was largest in block {top['block']:.0f} (median {top['gradient']:.2g} over steps)"


def attention_finding(table: pd.DataFrame) -> str:
    """Where attention became most concentrated or spread out while training. table: step, layer, entropy."""
    ordered = table.sort_values("step").groupby("layer")["entropy"]
    change = ordered.last() - ordered.first()
    layer = int(change.abs().to_numpy().argmax())
    size = float(change.iloc[layer])
    if abs(size) < 5e-4:
        return "attention entropy did not change while training"
    word = "fell" if size < 0 else "rose"
    first, last = ordered.first().iloc[layer], ordered.last().iloc[layer]
    return f"attention entropy {word} most in layer {int(change.index[layer])} ({first:.2f} → {last:.2f})"


def forgetting_sentences(comparison: Comparison) -> list[str]:
    """What each run lost on a general text, or why it is not known."""
    found = []
    for model, record in training_records(comparison).items():
        facts = part(record, "forgetting")
        before, after, kl = (number(facts.get(name)) for name in ("loss_before", "loss_after", "kl"))
        name = text(facts.get("text")) or "a general text"
        told = []
        if not math.isnan(before) and not math.isnan(after):
            word = "worse" if after > before else "better" if after < before else "the same"
            told.append(f"loss {before:.3f} nats a token before training, {after:.3f} after ({word})")
        if not math.isnan(kl):
            told.append(f"KL(base‖tuned) {kl:.3f} nats a token")
        drift = _drift(facts)
        reason = text(facts.get("reason")).rstrip(".")
        unknown = [f"the loss is not known: {reason}"] if reason and not told else []
        if told or drift or unknown:
            found.append(f"{model}, on {name}: {'; '.join([*told, *drift, *unknown])}.")
    return found


def data_sentences(comparison: Comparison) -> list[str]:
    """What each run found to be the matter with its data; once where several runs say the same."""
    found: dict[str, list[str]] = {}
    for model, record in training_records(comparison).items():
        for warning in texts(part(record, "data_report").get("warnings")):
            if not is_null(record):
                found.setdefault(warning, []).append(model)
    return [f"Data of {listed(models)}: {warning}" for warning, models in found.items()]


def _drift(facts: dict[str, Any]) -> list[str]:
    """The layer whose hidden states moved farthest on the general text; the embeddings stand before the first."""
    values = facts.get("drift")
    drift = np.array([number(value) for value in values] if isinstance(values, list) else [], float)
    if not np.isfinite(drift).any():
        return []
    top = int(np.nanargmax(drift))
    where = f"layer {top}" if top else "the embeddings"
    return [f"hidden states moved farthest in {where} (by {100 * drift[top]:.0f} % of their length)"]
