"""Learning rates: every method on two real tasks over a grid, for the defaults in attnlens/training/methods.py.

clauses: all-MiniLM-L6-v2, the 12 commonest clause types of CUAD in windows of 310 characters around the row's first
own span; 90 steps of 16 texts, macro-F1 and accuracy on 160 windows of the test contracts. speeches: stories260K on
250 passages of State of the Union addresses; 60 steps of 8 passages of at most 128 tokens at a time, perplexity on a
fifth of the speeches.
One line a run is appended to rates.csv, and a run that stands there is not repeated. Only numbers are kept.
Usage: python figures/rates.py ../shared clauses alf=4e-4,1e-3,2e-3 lisa=1e-3 [--seed 0]
"""

import argparse
import csv
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from union import write_passages

from attnlens.checkpoints.packaged import encoder
from attnlens.text.corpus import Corpus, Example, read_corpus
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune

TABLE = Path(__file__).parent / "rates.csv"
FIELDS = ("task", "method", "rate", "seed", "macro_f1", "accuracy", "perplexity", "best_step", "seconds")
TYPES, CHARACTERS, WINDOWS, PASSAGES = 12, 310, 160, 250
CLAUSES = TrainOptions(max_steps=90, batch_size=16, max_length=128, patience=100, device="cpu")
SPEECHES = TrainOptions(max_steps=60, batch_size=8, max_length=128, patience=100, device="cpu")


def window(example: Example) -> dict[str, str | None]:
    """The characters around the middle of the first span of the row's own label."""
    own = [span for span in example.spans or () if span.label == example.label] or list(example.spans or ())
    first = max(0, (own[0].start + own[0].end) // 2 - CHARACTERS // 2)
    text = example.text[first : first + CHARACTERS]
    return {"id": example.id, "document": example.document, "text": text, "label": example.label}


def clauses(shared: Path, folder: Path) -> tuple[Path, Path]:
    """Training and test windows of the commonest types, as files."""
    parts = [read_corpus(shared / "data" / "cuad" / f"{part}.jsonl") for part in ("train", "test")]
    types = {label for label, _ in Counter(example.label for example in parts[0]).most_common(TYPES)}
    kept = [[window(example) for example in part if example.label in types] for part in parts]
    drawn = sorted(np.random.default_rng(0).choice(len(kept[1]), WINDOWS, replace=False).tolist())
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, rows in zip(paths, (kept[0], [kept[1][number] for number in drawn]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def speeches(shared: Path, folder: Path) -> Corpus:
    """Passages of the addresses, evenly spread over them."""
    corpus = read_corpus(write_passages(shared / "data" / "lm" / "us_state_union.txt", folder / "speeches.jsonl"))
    return corpus.select(np.linspace(0, len(corpus) - 1, PASSAGES).round().astype(int).tolist())


def done() -> set[tuple[str, str, float, int]]:
    """What the table holds."""
    if not TABLE.exists():
        return set()
    with TABLE.open(newline="") as file:
        return {(row["task"], row["method"], float(row["rate"]), int(row["seed"])) for row in csv.DictReader(file)}


def run(shared: Path, task: str, method: str, rate: float, seed: int) -> dict[str, object]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if task == "clauses":
            train, test = clauses(shared, folder)
            base, options = encoder(), {"validation": test}
        else:
            train, base, options = speeches(shared, folder), shared / "models" / "stories260K", {}
        settings = CLAUSES if task == "clauses" else SPEECHES
        chosen = TrainOptions(**{**vars(settings), **options, "learning_rate": rate})
        result = finetune(base, train, method=method, output=folder / "out", seed=seed, options=chosen)
    numbers = {name: round(value, 4) for name, value in result.metrics.items() if name in FIELDS}
    fixed = {"task": task, "method": method, "rate": rate, "seed": seed, "seconds": round(result.record["seconds"])}
    return fixed | numbers


def main() -> None:
    """Run what is missing; print every line as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("task", choices=("clauses", "speeches"))
    parser.add_argument("grids", nargs="+", metavar="METHOD=RATE,RATE")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for grid in arguments.grids:
        method, rates = grid.split("=")
        for rate in map(float, rates.split(",")):
            if (arguments.task, method, rate, arguments.seed) in done():
                continue
            row = run(arguments.shared, arguments.task, method, rate, arguments.seed)
            new = not TABLE.exists()
            with TABLE.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
