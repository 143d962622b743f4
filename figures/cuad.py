"""Real contracts: all-MiniLM-L6-v2 tuned on CUAD clause types, reported on other contracts with the lawyers' spans.

The data (CC BY 4.0, Hendrycks et al. 2021) is not part of this project: give the folder that holds train.jsonl and
test.jsonl. The twelve commonest types; windows of at most 128 tokens centred on the first span of the row; `full` at
1e-4 with its shuffled twin, and the last two blocks alone at their default rate, 200 steps of 16, seed 0; 200 test
windows; three definitions of the words that matter, and a knockout of the first. Only numbers are kept, no passage.
Usage: python figures/cuad.py ../shared/data/cuad [work folder]
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.analysis.studies.data import Places, prepared
from attnlens.analysis.studies.file import DataPart
from attnlens.checkpoints.packaged import encoder
from attnlens.show.run import ReportOptions, run_report
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune
from attnlens.training.twin import twin_path

HERE = Path(__file__).parent
TYPES, TOKENS, STEPS, LEARNING_RATE, SEED = 12, 128, 200, 1e-4, 0
SALIENCE = ("spans", "keyness", "textrank")
NAMES = ("layer_profile", "focus_heads", "weight_change")


def main(source: Path, work: Path) -> None:
    """Windows, training, report; then the numbers into this folder."""
    work.mkdir(parents=True, exist_ok=True)
    part = DataPart(name="CUAD", train="train.jsonl", test="test.jsonl", labels=TYPES, window=TOKENS)
    data, held_out = (file.path for file in prepared(part, str(encoder()), Places(source, None), work))
    full, last = work / "full.ckpt", work / "last-2.ckpt"
    options = TrainOptions(max_steps=STEPS, max_length=TOKENS, resume=True)
    finetune(
        encoder(),
        data,
        output=full,
        seed=SEED,
        options=replace(options, learning_rate=LEARNING_RATE, null_twin=True),
    )
    finetune(encoder(), data, method="last_k", output=last, seed=SEED, options=replace(options, k=2))
    names = ("all-MiniLM-L6-v2", "full fine-tuning", "last two blocks", "full, shuffled labels")
    asked = ReportOptions(data=held_out, output=work / "report", max_length=TOKENS, names=names, text=False)
    asked = replace(asked, salience=SALIENCE, knockout=True)
    result = run_report([encoder(), full, last, twin_path(full)], asked)
    for name in NAMES:
        for ending in ("csv", "pdf", "png", "txt"):
            shutil.copy(result.directory / "figures" / f"{name}.{ending}", HERE / f"cuad_{name}.{ending}")
    rows = ladders(result.comparison)
    rows.to_csv(HERE / "cuad_ladders.csv", index=False)
    print(rows.to_string())


def ladders(comparison: Comparison) -> pd.DataFrame:
    """One row a model and definition: the verdict, the headline's numbers, and each rung."""
    rows = []
    for model, answers in comparison.answers.items():
        for salience, answer in answers.items():
            numbers = {name: answer.headline.get(name) for name in ("layer", "estimate", "low", "high", "documents")}
            rungs = {f"rung_{rung.number}": rung.status for rung in answer.rungs}
            rows.append({"model": model, "salience": salience, "verdict": answer.verdict} | numbers | rungs)
    return pd.DataFrame(rows).round(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "cuad-work"))
