"""Keep the numbers, figures and sentences of a finished study in this folder: no text of its data, no weights.

What we conclude from a study is written by hand, in NAME/conclusion.md; legal also gets the table of another paper's
abstract beside ours.
Usage: python figures/studies/keep.py STUDY_FOLDER NAME
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from attnlens.analysis.studies.file import read_study
from attnlens.show.plots import percent

HERE = Path(__file__).parent
KINDS = ("csv", "pdf", "png", "txt", "tex")
MARKS = {"yes": "✓", "no": "✕"}
# As printed in the abstract "Efficient Fine-Tuning Strategies for Domain-specific LLMs" (2025): XLM-R on legal and
# medical texts; the scores are of different measures and tasks, and "adapters" alone is an F1.
PRINTED = {
    "full": ("full fine-tuning", "92.3 % accuracy"),
    "LoRA": ("LoRA", "91.5 % accuracy, 99 % fewer trained parameters"),
    "adapters": ("adapter layers", "90.5 % F1"),
    "prompt": ("prompt tuning", "88.2 % accuracy on medical texts, 0.1 M parameters"),
}


def kept(source: Path, target: Path) -> None:
    """Tables, figures, results and provenance."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "tables").glob("*.*")):
        shutil.copy(path, target / path.name)
    for path in sorted((source / "figures").glob("*.*")):
        if path.suffix[1:] in KINDS:
            shutil.copy(path, target / path.name)
    for name in ("results.txt", "study.toml", "summary.json"):
        shutil.copy(source / name, target / name)


def readme(target: Path) -> str:
    """The page of a kept study."""
    summary = json.loads((target / "summary.json").read_text("utf-8"))
    cells, conclusion = summary["cells"], target / "conclusion.md"
    lines = [
        f"# {summary['title']}",
        f"{cells['finished']} of {cells['planned']} cells, {cells['failed']} failed; attnlens {summary['attnlens']}, "
        "every cell in one thread on a CPU. The study is [study.toml](study.toml), a row a cell "
        "[cells.csv](cells.csv), the arms [arms.csv](arms.csv), every two of them [pairs.csv](pairs.csv).",
        *([conclusion.read_text("utf-8").strip()] if conclusion.is_file() else []),
        arms_table(summary),
        "Accuracy: mean over test documents and seeds in percent, with its 95 % interval over both. Difference: to "
        f"{read_study(target / 'study.toml').held_against}, paired by seed. Focus: change in points, in the layer "
        "where it is largest. Ladder: rungs 1 to 5 of the evidence, ✓ shown, ✕ not shown, – not tested.",
        "![Quality of the arms](study_quality.png)",
        "![Quality against what it took](study_trade_off.png)",
        *(["![Change of focus by layer](study_focus.png)"] if (target / "study_focus.png").is_file() else []),
        "## Results",
        *summary["results"],
    ]
    if target.name == "legal":
        lines += ["## Beside another paper's abstract", *beside(target)]
    return "\n\n".join(lines) + "\n"


def arms_table(summary: dict[str, Any]) -> str:
    """One row an arm: quality, difference, price, focus, ladder."""
    rungs = {answer["arm"]: answer["rungs"].values() for answer in summary["answers"]}
    rows = ["| arm | accuracy | difference | weights trained | focus | ladder |", "|---|---|---|---|---|---|"]
    for arm in summary["arms"]:
        cells = [
            arm["arm"],
            span(arm, ("quality", "low", "high"), ".1f"),
            span(arm, ("difference", "difference_low", "difference_high"), "+.1f"),
            f"{percent(arm['changed'])} %",
            "" if arm["focus"] is None else f"{arm['focus']:+.1f}".replace("-", "−"),
            "".join(MARKS.get(status, "–") for status in rungs.get(arm["arm"], ())),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def span(row: Any, names: tuple[str, str, str], form: str) -> str:
    """A share and its interval, in percent; empty where there is none."""
    if row[names[0]] is None:
        return ""
    value, low, high = (f"{100 * row[name]:{form}}".replace("-", "−") for name in names)
    return f"{value} ({low} … {high})"


def beside(target: Path) -> list[str]:
    """What an abstract printed, and what the same methods reached here."""
    arms = pd.read_csv(target / "arms.csv").set_index("arm")
    rows = ["| method | printed there | here: test accuracy | macro-F1 | weights trained |", "|---|---|---|---|---|"]
    there = [name for name in PRINTED if name in arms.index]
    for name in there:
        arm, (method, printed) = arms.loc[name], PRINTED[name]
        cells = (span(arm, ("quality", "low", "high"), ".1f"), f"{100 * arm['macro_f1']:.1f}")
        rows.append(f"| {method} | {printed} | {' | '.join(cells)} | {percent(arm['changed'])} % |")
    order = sorted(there, key=lambda name: -arms.loc[name, "quality"])
    return [
        "\n".join(rows),
        f"Printed order: {' ≥ '.join(there)}. Order here: {' ≥ '.join(order)}; which of these differences are told "
        "apart stands above. This is no reproduction: there XLM-R of unstated size, whole texts, an unstated number of "
        "seeds and measures that differ from method to method; here a six-layer English encoder, windows of 64 tokens, "
        "120 steps, six seeds, one measure for all.",
    ]


if __name__ == "__main__":
    folder = HERE / sys.argv[2]
    kept(Path(sys.argv[1]), folder)
    (folder / "README.md").write_text(readme(folder), "utf-8")
