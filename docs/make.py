"""Writes docs/commands.md from the commands' own help, and docs/metrics.md from the registries.

Usage: python docs/make.py. A test holds the pages to what this writes.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import typer

from attnlens.analysis.variables import VARIABLES
from attnlens.cli import app
from attnlens.core.pairs import PAIRS
from attnlens.core.rows import STATISTICS

HERE = Path(__file__).parent
AXES = {"row": "(B, L, H, Q)", "group": "(B, L, H, Q, G)", "key": "(B, L, H, K)"}
# When a number misleads: what a reader would conclude, and should not.
MISLEADS = {
    "entropy": "It grows with the number of keys: never average it over rows or texts of different lengths, and never "
    "compare texts by it. A row that rests on a sink has a low entropy whatever it does with the words.",
    "entropy_normalized": "Sinks count as keys: attention released from [CLS] reads as a change of spread among words. "
    "`entropy_content` leaves them out.",
    "effective_keys": "An exponential: the mean over rows is not the exponential of the mean entropy, and `renyi2`'s "
    "participation ratio may be a fifth of it on the same row.",
    "max_weight": "High on a sink as on a word: it says how sure a head is, not of what.",
    "renyi2": "Ruled by the largest weight: a long tail of small ones hardly shows.",
    "lse": "Moves with any common offset of the logits, which the attention itself does not notice.",
    "distance": "Under a causal mask the mean possible distance grows along the text; early sinks make every later row "
    "look far-sighted.",
    "mass": "Raw: a sink that takes more leaves less for every group, and that is no loss of interest in the group.",
    "share": "A ratio of small numbers where a head rests on sinks: below 5 % on content it is drawn grey.",
    "lift": "Not corrected for position: early words of a decoder are seen by more rows, and its sinks count as keys.",
    "share_value": "Lengths of vectors before they are added up: two long ones may cancel.",
    "log_odds": "Unbounded and heavy-tailed in heads of one key; one row may rule a mean. Read it for its sign, "
    "beside `share`.",
    "entropy_content": "Punctuation counts as content. Undefined in rows that see fewer than two word pieces: at "
    "the start of a decoder's text.",
    "entropy_between": "Mixes sink release and refocusing: a rise may be either. Read it with the plane of both.",
    "received": "Corrected for position as if uniform attention were the neutral choice; not for recency.",
    "received_mean": "Under a causal mask even uniform rows favour early keys: it finds sinks and ranks no words.",
    "jsd": "Never below 0, so any two checkpoints differ: hold it against two seeds of one training, not against 0.",
    "kl_forward": "Infinite as soon as tuned hides a key that base sees, and ruled by keys that tuned all but drops.",
    "kl_backward": "Infinite as soon as base hides a key that tuned sees, and ruled by keys that base all but dropped.",
    "tv": "Blind to where the moved attention went: sink to sink counts as much as word to word.",
}


def commands() -> str:
    """A section for each command: what it does, an example, its arguments and options."""
    group = typer.main.get_command(app)
    parts = [
        "# Commands",
        "Written by `docs/make.py` from `attnlens COMMAND --help`. Progress goes to stderr, results to stdout; "
        "`--json` prints one JSON object instead. Exit codes: 0 done, 1 a fault told in one line, 2 wrong usage, 130 "
        "interrupted. `attnlens --debug COMMAND …` shows where a fault came from.",
    ]
    for name, command in getattr(group, "commands").items():  # noqa: B009 - a group's, which Typer types as a command
        about, _, example = (command.help or "").partition("Example:")
        parts += [f"## attnlens {name}", " ".join(about.split())]
        if example:
            parts += [f"```\n{example.strip()}\n```"]
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        rows = [(_spelled(each), _cell(getattr(each, "help", None) or ""), _default(each)) for each in shown]
        parts += [_table(("option", "meaning", "default"), rows)]
    return _page(parts)


def metrics() -> str:
    """Every statistic of the registries, and every variable of a comparison: formula, range, source, what misleads."""
    parts = [
        "# Metrics",
        "Written by `docs/make.py` from the registries. *Rows* are attention rows of one text, layer and head; NaN "
        "means no data and is never 0. Hand examples are rows over three keys, [1/2, 1/4, 1/4], unless they say "
        "otherwise.",
        "## Of one model: `attnlens.record`",
        "Axes: B texts, L attention layers, H heads, Q queries, K keys, G groups. n is the number of keys a row sees.",
    ]
    for name, record in STATISTICS.items():
        parts += _statistic(name, record.of.__doc__, record.unit, (record.low, record.high(3)), record.reference)
        parts[-1] += f" Axes: {AXES[record.axes]}."
    parts += ["## Of two models on the same rows: `attnlens.compare`"]
    for name, record in PAIRS.items():
        parts += _statistic(name, record.of.__doc__, record.unit, (record.low, record.high), record.reference)
    parts += [
        "## Variables of `comparison.data`",
        "Means over the measured rows of each text, by model, example, layer and head, unless the axes say otherwise.",
    ]
    rows = [
        (f"`{name}`", each.title, each.unit, _range(each.low, each.high), _source(each.reference) or "ours")
        for name, each in VARIABLES.items()
    ]
    return _page([*parts, _table(("variable", "what", "unit", "range", "source"), rows)])


def _statistic(name: str, text: str | None, unit: str, bounds: tuple[float, float], reference: str) -> list[str]:
    grows = name in STATISTICS and STATISTICS[name].high(3) != STATISTICS[name].high(4)
    low, high = bounds
    source = f"Source: {others}." if (others := _source(reference)) else "Ours."
    highest = {"nats": "log n", "keys": "n", "times uniform": "n"}[unit] if grows else _number(high)
    return [
        f"### `{name}`",
        _plain(text or ""),
        f"*Misleads:* {MISLEADS[name]}",
        f"Unit: {unit}. Range: {_number(low)} … {highest}. {source}",
    ]


def _plain(text: str) -> str:
    """One line, without the numbers of our own design notes, which a reader does not have."""
    return re.sub(r" ?\((see )?METRICS [^)]*\)", "", " ".join(text.split()))


def _source(reference: str) -> str:
    """Who defined it; nothing where we did."""
    return "; ".join(part for part in reference.split("; ") if not part.startswith("METRICS"))


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return {math.log(2): "log 2", math.log(3): "log 3"}.get(value, f"{value:g}")


def _range(low: float, high: float) -> str:
    return f"{_number(low)} … {_number(high)}"


def _spelled(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    """`--option`, or the name of an argument."""
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name or '').upper()}`"
    return ", ".join(f"`{name}`" for name in parameter.opts)


def _default(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value is False or value == () or callable(value) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


PAGES = {"commands.md": commands, "metrics.md": metrics}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (HERE / name).write_text(write(), "utf-8")
