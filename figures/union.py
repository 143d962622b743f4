"""A small language model tuned on speeches: stories260K on State of the Union addresses, reported on other addresses.

Neither the text (public domain) nor the model (MIT) is part of this project: give the joined file, whose speeches
each start with <<<name>>>, and the model's folder. Passages of whole paragraphs, about 300 characters; `full`, 300
steps of 16, learning rate 3e-3, seed 0; a fifth of the speeches held out, 100 passages of them measured. Only numbers
are kept, no passage.
Usage: python figures/union.py ../shared/data/lm/us_state_union.txt ../shared/models/stories260K [work folder]
"""

import json
import re
import shutil
import sys
from pathlib import Path

from attnlens.show.run import ReportOptions, run_report
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune

HERE = Path(__file__).parent
CHARACTERS, TOKENS, STEPS, LEARNING_RATE, SEED, PASSAGES = 300, 256, 300, 3e-3, 0, 100
NAMES = ("entropy_profile", "jsd_profile", "weight_change")


def write_passages(source: Path, path: Path) -> Path:
    """One passage a row, never across speeches; the speech is its document."""
    rows = []
    for part in source.read_text().split("<<<")[1:]:
        name, text = part.split(">>>", 1)
        passage = ""
        for paragraph in [*filter(None, (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))), ""]:
            if passage and (len(passage) > CHARACTERS or not paragraph):
                rows.append({"text": passage, "document": name})
                passage = ""
            passage = f"{passage} {paragraph}".strip()
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def main(source: Path, base: Path, work: Path) -> None:
    """Passages, training, report; then the numbers into this folder."""
    work.mkdir(parents=True, exist_ok=True)
    data = write_passages(source, work / "speeches.jsonl")
    tuned = work / "tuned.ckpt"
    if not tuned.exists():
        options = TrainOptions(max_steps=STEPS, max_length=TOKENS, learning_rate=LEARNING_RATE)
        print(finetune(base, data, output=tuned, seed=SEED, options=options))
    names = ("stories260K", "tuned on speeches")
    options = ReportOptions(output=work / "report", limit=PASSAGES, max_length=TOKENS, names=names, text=False)
    result = run_report([base, tuned], options)
    for name in NAMES:
        for ending in ("csv", "pdf", "png", "txt"):
            shutil.copy(result.directory / "figures" / f"{name}.{ending}", HERE / f"union_{name}.{ending}")
    print(result.comparison.answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else "union-work"))
