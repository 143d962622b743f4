"""A long run in flat memory: texts through `report`, and by how much a thousand of them make the process grow.

A random encoder of two layers, and that with noise on its weights; texts are made of the embedded clauses' words. The
slope is that of the passes, whose numbers go to part files. In the end all are in memory, about 30 numbers a head and
text: how many MiB that is, and the peak of the whole run, are printed beside it.
Usage: python tests/bench/bench_soak.py [--texts 50000], with 2,000 otherwise; `make bench-long` runs all.
"""

import argparse
import itertools
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers as tf

from attnlens.checkpoints.packaged import encoder
from attnlens.show.run import ReportOptions, run_report
from attnlens.text.corpus import read_corpus
from attnlens.text.embedded import embedded

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}


def resident() -> float:
    """MiB of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def models(folder: Path) -> list[Path]:
    """Base and tuned, with MiniLM's tokenizer."""
    tokenizer = tf.AutoTokenizer.from_pretrained(encoder())
    torch.manual_seed(0)
    model = tf.BertModel(tf.BertConfig(vocab_size=len(tokenizer), **SIZES))
    made = []
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        made.append(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
    return made


def texts(path: Path, count: int) -> Path:
    """So many rows of some thirty words, ten a document, one word of each marked."""
    draw = random.Random(0)
    words = sorted({word for example in read_corpus(embedded("contracts_train")) for word in example.text.split()})
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chosen = draw.choices(words, k=draw.randint(20, 40))
            place = draw.randrange(len(chosen))
            start = len(" ".join(chosen[:place])) + (place > 0)
            spans = [{"start": start, "end": start + len(chosen[place])}]
            row = {"text": " ".join(chosen), "id": str(number), "document": f"d{number // 10}", "spans": spans}
            file.write(json.dumps(row) + "\n")
    return path


def main() -> None:
    """Print resident memory every twentieth of the way, the slope, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2_000)
    count = parser.parse_args().texts
    seen: list[tuple[int, float]] = []
    begun = time.monotonic()
    marks = itertools.count(0, max(1, count // 20))
    following = [next(marks)]

    def progress(done: int, total: int) -> None:
        seen.append((done, resident()))
        if done >= following[0]:
            following[0] = next(mark for mark in marks if mark > done)
            print(f"{done:7d} of {total}  {seen[-1][1]:8.0f} MiB  {time.monotonic() - begun:7.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ReportOptions(
            data=texts(folder / "texts.jsonl", count),
            output=folder / "report",
            salience=("spans",),
            limit=None,
            text=False,
            progress=progress,
        )
        result = run_report(models(folder), options)
        done, memory = np.array(seen[len(seen) // 2 :]).T
        slope = 1000 * float(np.polyfit(done, memory, 1)[0])
        kept = 1000 * result.comparison.data.nbytes / count / 2**20
        seconds = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{slope:+.2f} MiB a thousand texts while the models run; in the end {kept:.2f} MiB; peak {peak:.0f} MiB")
        found = {"slope_mib_1000": slope, "kept_mib_1000": kept, "peak_mib": peak}
        print(json.dumps({"texts": count, "seconds": seconds} | found))


if __name__ == "__main__":
    main()
