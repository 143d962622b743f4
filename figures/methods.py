"""Every method on three real jobs: does it train, does its checkpoint come back, what does it cost, what moves?

all-MiniLM-L6-v2 on CUAD clause types (CC BY 4.0, Hendrycks et al. 2021), a small Llama trained on children's stories
(MIT) on State of the Union addresses (public domain), and a four-layer XLM-R with random weights on the phrases that
decide four clause types in this project's own corpus: behind a random frozen body a head can still tell words apart,
not what they mean together. CUAD, the addresses and the Llama are not part of this project: give the folder that
holds them. STEPS steps (RANDOM_STEPS for the random model), each method at its default learning rate, one seed: a
check of the machinery with its prices, not a comparison of methods, which takes seeds and grids. Only numbers are
kept. A run that stopped goes on where it was.
Usage: python figures/methods.py ../shared [work folder]
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel
from union import write_passages

import attnlens
from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.packaged import encoder
from attnlens.core.errors import TrainingError, UnsupportedModel
from attnlens.show.run import ReportOptions, run_report
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded
from attnlens.text.windows import commonest, labelled, windowed
from attnlens.training.methods import METHODS
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune

HERE = Path(__file__).parent
STEPS, RANDOM_STEPS, TYPES, TEXTS, SEED = 40, 400, 6, 40, 0
ENDS = (0, 3)  # blocks that `layers` trains


@dataclass(frozen=True)
class Work:
    """One job: a base, its data, and the options that all methods share."""

    name: str
    base: Path
    data: Corpus | Path
    options: TrainOptions


def jobs(shared: Path, work: Path) -> Iterator[Work]:
    """The three jobs, their data written into the work folder."""
    train = read_corpus(shared / "data/cuad/train.jsonl")
    clauses = labelled(train.sample(1000, SEED), commonest(train, TYPES))
    clauses = windowed(clauses, AutoTokenizer.from_pretrained(encoder()), 128)
    options = TrainOptions(max_steps=STEPS, max_length=128, patience=100, resume=True)
    yield Work("MiniLM, CUAD", encoder(), clauses, options)
    speeches = work / "speeches.jsonl"
    if not speeches.exists():
        write_passages(shared / "data/lm/us_state_union.txt", speeches)
        rows = read_corpus(speeches).sample(300, SEED)
        speeches.write_text("".join(json.dumps({"text": r.text, "document": r.document}) + "\n" for r in rows))
    yield Work("stories260K, addresses", shared / "models/stories260K", speeches, options)
    phrases = work / "phrases.jsonl"
    if not phrases.exists():
        _write_phrases(phrases)
    options = replace(options, max_steps=RANDOM_STEPS, max_length=32)
    yield Work("XLM-R, random, phrases", _xlm_roberta(work / "xlmr"), phrases, options)


def _write_phrases(path: Path) -> None:
    """The marked words alone of the rows of four clause types: labels that single words give away."""
    train = read_corpus(embedded("contracts_train"))
    types = commonest(train, 4)
    with path.open("w") as file:
        for row in train:
            marked = " ".join(row.text[span.start : span.end] for span in row.spans if span.label == row.label)
            if row.label in types and marked:
                file.write(json.dumps({"text": marked, "label": row.label, "document": row.document}) + "\n")


def _xlm_roberta(folder: Path) -> Path:
    """A tiny XLM-R with random weights and MiniLM's tokenizer, whose padding token has the same number.

    Its weights have the deviation 1/√64 that keeps a signal's size from layer to layer; at the usual .02, meant for
    widths of a thousand, each position keeps all but a hundredth of its own vector and the first one tells nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    torch.manual_seed(SEED)
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=160,
        initializer_range=0.125,
        **shape,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def row(job: Work, method: str, work: Path) -> dict[str, object]:
    """What one method did on one job."""
    output = work / f"{job.name.split(',')[0]}-{method}".replace(" ", "")
    made = {"job": job.name, "method": method}
    if not output.exists():
        try:
            options = replace(job.options, layers=ENDS) if method == "layers" else job.options
            finetune(job.base, job.data, method=method, output=output, seed=SEED, options=options)
        except (TrainingError, UnsupportedModel) as refusal:
            return made | {"refused": str(refusal)}
    record = read_record(output)
    assert record is not None
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    report = run_report([job.base, output], ReportOptions(output=Path(f"{output}-report"), limit=TEXTS, max_length=128))
    accounting, cost, metrics = record["accounting"], record["cost"], record["metrics"]
    return made | {
        "learning_rate": record["options"]["learning_rate"],
        "trained_of_total": round(accounting["mean"]["of_total"], 5),
        "trained_of_blocks": accounting["mean"]["of_blocks"],
        "first_loss": round(sum(losses[:5]) / 5, 4),
        "last_loss": round(sum(losses[-5:]) / 5, 4),
        "quality": round(metrics.get("macro_f1", metrics.get("perplexity")), 4),
        "seconds": round(cost["seconds"], 1),
        "flops": cost["flops"],
        "peak_memory": cost["peak_memory"],
        "checkpoint_bytes": cost["checkpoint_bytes"],
        "answer": report.comparison.answer.verdict,
    }


def main(shared: Path, work: Path) -> None:
    """All methods on all jobs, into one table."""
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for job in jobs(shared, work):
        for method in METHODS:
            rows.append(row(job, method, work))
            print(json.dumps(rows[-1]), flush=True)
            columns = list(dict.fromkeys(name for each in rows for name in each))
            with (HERE / "methods.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
    print(f"attnlens {attnlens.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "methods-work"))
