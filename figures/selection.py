"""Does ALF choose anything? Its selections on true and on shuffled labels, beside the controls.

all-MiniLM-L6-v2, `alf` at its defaults (a quarter of all parameters: 3 of 6 blocks), 120 steps of 8 texts of at most 48
tokens, three seeds, on the embedded contract clauses and on CUAD's clause windows (figures/rates.py). One line a choice
goes to selection.csv, and a run that stands there is not repeated; its macro-F1 is of 24 rows that training saw too, to
tell that something was learnt. Then Jaccards are printed: of the last choice with the last blocks and with 1 / RMS of
the base's weights, between seeds, between true and shuffled labels, and what chance expects; and of the scores of all
probes their coefficient of variation over blocks and their rank correlation with
1 / RMS. A choice made by the data differs from its controls and between true and shuffled labels.
Usage: python figures/selection.py ../shared [--score weight_change] [--seeds 0 1 2]
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from rates import clauses
from scipy.stats import spearmanr
from transformers import AutoModel

from attnlens.checkpoints.load import quiet
from attnlens.checkpoints.packaged import encoder
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded
from attnlens.training.importance import SCORES
from attnlens.training.job import prepare
from attnlens.training.loop import train_model
from attnlens.training.methods import METHODS
from attnlens.training.options import TrainOptions
from attnlens.training.output import seeded
from attnlens.training.overlap import expected_jaccard, inverse_rms, jaccard, selection_overlap
from attnlens.training.split import split
from attnlens.training.switching import LayerSwitching
from attnlens.training.twin import shuffled

TABLE = Path(__file__).parent / "selection.csv"
FIELDS = ("data", "score", "labels", "seed", "step", "active", "scores", "last_k", "rms", "macro_f1")
STEPS, BATCH, TOKENS, HELD_OUT = 120, 8, 48, 24


def corpora(shared: Path, folder: Path) -> dict[str, Corpus]:
    """The two data sets."""
    return {"contracts": read_corpus(embedded("contracts_train")), "cuad": read_corpus(clauses(shared, folder)[0])}


def choices(corpus: Corpus, score: str, labels: str, seed: int, folder: Path) -> Iterator[dict[str, object]]:
    """One run: a row for every choice that it made."""
    data = split(corpus, corpus.select(range(0, len(corpus), len(corpus) // HELD_OUT)), seed)
    options = TrainOptions(max_steps=STEPS, batch_size=BATCH, max_length=TOKENS, patience=100, score=score)
    with seeded(seed):
        job = prepare(encoder(), shuffled(data, seed) if labels == "shuffled" else data, METHODS["alf"], options, seed)
        assert job.selection.plan is not None
        switching = LayerSwitching(job.selection.plan, job.base.model)
        outcome = train_model(job, folder, [switching])
    found = selection_overlap(switching.controller, switching.rms)
    assert found is not None
    blocks = len(switching.controller.blocks)
    best = sorted(range(blocks), key=lambda number: -switching.rms[number])
    for choice in switching.controller.choices:
        count = len(choice.active)
        yield {
            "step": choice.step,
            "active": " ".join(map(str, choice.active)),
            "scores": " ".join(f"{value:.4g}" for value in choice.scores),
            "last_k": round(jaccard(choice.active, range(blocks - count, blocks)), 4),
            "rms": round(jaccard(choice.active, best[:count]), 4),
            "macro_f1": round(outcome.metrics["macro_f1"], 4),
        }


def rows() -> list[dict[str, str]]:
    """The table so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(found: list[dict[str, str]]) -> None:
    """Jaccards of the last choices of all runs in the table."""
    with quiet():
        rms = inverse_rms(AutoModel.from_pretrained(encoder()))
    print("1 / RMS of the base's blocks:", " ".join(f"{value:.4g}" for value in rms))
    last = {(row["data"], row["score"], row["labels"], row["seed"]): row for row in found}
    sets = {key: [int(number) for number in row["active"].split()] for key, row in last.items()}
    for data, score in sorted({key[:2] for key in last}):
        own = {key[2:]: chosen for key, chosen in sets.items() if key[:2] == (data, score)}
        for labels in ("true", "shuffled"):
            runs = {seed: chosen for (kind, seed), chosen in own.items() if kind == labels}
            values = [float(last[data, score, labels, seed]["macro_f1"]) for seed in runs]
            seeds = [jaccard(runs[one], runs[two]) for one, two in combinations(sorted(runs), 2)]
            mine = [row for row in found if (row["data"], row["score"], row["labels"]) == (data, score, labels)]
            probes = [np.array([float(value) for value in row["scores"].split()]) for row in mine]
            size = len(next(iter(runs.values()), ()))
            print(
                f"{data} {score} {labels}: last sets {list(runs.values())}; Jaccard with last-k "
                f"{_mean(float(last[data, score, labels, seed]['last_k']) for seed in runs):.2f}, with 1/RMS "
                f"{_mean(float(last[data, score, labels, seed]['rms']) for seed in runs):.2f}, between seeds "
                f"{_mean(seeds):.2f}, by chance {expected_jaccard(6, size, size):.2f}; macro-F1 {_mean(values):.2f}; "
                f"of a probe: spread of scores {_mean(scores.std() / scores.mean() for scores in probes):.3f}, rank "
                f"correlation with 1/RMS {_mean(spearmanr(scores, rms).statistic for scores in probes):.2f}"
            )
        pairs = [jaccard(own["true", seed], own["shuffled", seed]) for kind, seed in own if kind == "shuffled"]
        print(f"{data} {score}: true with shuffled labels {_mean(pairs):.2f}")


def _mean(values) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")


def main() -> None:
    """Run what is missing, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--score", choices=SCORES, default="weight_change")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for data, corpus in corpora(arguments.shared, Path(name)).items():
            for seed in arguments.seeds:
                for labels in ("true", "shuffled"):
                    key = {"data": data, "score": arguments.score, "labels": labels, "seed": str(seed)}
                    if any(all(row[field] == value for field, value in key.items()) for row in rows()):
                        continue
                    new = [key | row for row in choices(corpus, arguments.score, labels, seed, Path(name) / "run")]
                    fresh = not TABLE.exists()
                    with TABLE.open("a", newline="") as file:
                        writer = csv.DictWriter(file, FIELDS)
                        if fresh:
                            writer.writeheader()
                        writer.writerows(new)
                    print(*new, sep="\n", flush=True)
    summary(rows())


if __name__ == "__main__":
    main()
