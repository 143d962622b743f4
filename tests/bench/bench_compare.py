"""What a comparison costs: `compare` on real contracts against the two plain forward passes over the same batches.

all-MiniLM-L6-v2 and a copy with noise (time does not depend on the weights), 200 windows of 256 tokens of CUAD (CC BY
4.0, Hendrycks et al. 2021; cut as figures/cuad.py does), salience by spans, keyness and TextRank. Repetitions are
interleaved and the minimum is kept, on one thread. Ratios, not seconds, travel between machines.
With --profile also what the statistics of one layer cost, each left out of the rest in turn.
Usage: python tests/bench/bench_compare.py [../shared/data/cuad] [--texts 200] [--repetitions 3] [--profile]
"""

import argparse
import copy
import importlib.util
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from timing import fastest

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.measure import FOCUS, MARKED_ONLY, STATISTICS, MeasureOptions, measure
from attnlens.analysis.prepare import PER_DEFINITION, Prepared, Reading, assemble, plan, prepare
from attnlens.analysis.subjects import Subject
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.checkpoints.packaged import encoder
from attnlens.core.pairs import PAIRS, Logits, pair_statistics
from attnlens.core.rows import Groups
from attnlens.core.scores import Scores
from attnlens.core.tiled import Wanted, attend
from attnlens.salience import Aids
from attnlens.text.corpus import Corpus, read_corpus

CUAD = Path(__file__).parents[3] / "shared" / "data" / "cuad"
TOKENS, TYPES, TRAINING, BATCH = 256, 12, 2000, 16
SALIENCE = ("spans", "keyness", "textrank")
GOAL = 1.9


def windows(source: Path, tokenizer) -> tuple[Corpus, Corpus]:
    """Held-out and training windows of the commonest clause types."""
    script = Path(__file__).parent.parent.parent / "figures" / "cuad.py"
    spec = importlib.util.spec_from_file_location("cuad", script)
    assert spec is not None and spec.loader is not None
    cuad = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cuad)
    cuad.TOKENS = TOKENS
    train = read_corpus(source / "train.jsonl").sample(TRAINING, 0)
    types = {label for label, _ in Counter(example.label for example in train).most_common(TYPES) if label}
    with tempfile.TemporaryDirectory() as folder:
        held_out = cuad.write_windows(read_corpus(source / "test.jsonl"), types, tokenizer, Path(folder) / "a.jsonl")
        background = cuad.write_windows(train, types, tokenizer, Path(folder) / "b.jsonl")
        return read_corpus(held_out), read_corpus(background)


def pair() -> list[Checkpoint]:
    """The base, and a copy with a little noise on every matrix."""
    base = load(encoder())
    model, generator = copy.deepcopy(base.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05 * parameter.std().nan_to_num())
    return [base, Checkpoint(model, base.tokenizer, "noisy", {})]


def plain(models: list[Checkpoint], prepared: Prepared) -> None:
    """The forward passes alone, in the batches that `measure` makes."""
    with torch.inference_mode():
        for model in models:
            for indices in plan(prepared, BATCH):
                batch = assemble(prepared, indices, model)
                model.backbone(input_ids=batch.ids, attention_mask=batch.mask)


def profile(definitions: int) -> None:
    """Time of one layer's statistics on a batch of random queries and keys, each left out of the rest in turn."""
    torch.manual_seed(0)
    query, key, value, other = (torch.randn(BATCH, 12, TOKENS, 32) for _ in range(4))
    mask = torch.ones(BATCH, 1, TOKENS, TOKENS, dtype=torch.bool)
    mask[:, :, :, -20:] = False
    weights = (torch.rand(BATCH, TOKENS, 1 + PER_DEFINITION * definitions) < 0.2).float()
    weights[..., 0] = 1
    groups, scores = Groups.of(weights), Scores(32**-0.5, mask=mask)
    names = (*STATISTICS, *FOCUS)
    marked = tuple(range(1, 1 + PER_DEFINITION * definitions, PER_DEFINITION))
    columns = {"mass": (0, *marked)} | dict.fromkeys(MARKED_ONLY, marked)  # as `measure` asks

    def run(*chosen: str) -> Callable[[], object]:
        wanted = Wanted(chosen, groups, norms=torch.ones(BATCH, 12, TOKENS), columns=columns)
        return lambda: attend(query, key, value, scores, wanted)

    def pairs() -> None:
        pair_statistics(Logits(query, key, scores), Logits(query, other, scores), tuple(PAIRS))

    def bare() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    rest = {name: run(*(other for other in names if other != name)) for name in names}
    with torch.inference_mode():
        best = fastest({"sdpa": bare, "output alone": run(), "all": run(*names), "pairs": pairs} | rest, 7)
    print(f"one layer, milliseconds: {', '.join(f'{name} {1000 * best[name]:.0f}' for name in list(best)[:4])}")
    for name in sorted(names, key=best.__getitem__):
        print(f"  {name:20s} {1000 * (best['all'] - best[name]):6.1f}")


def main() -> None:
    """Print the ratios, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=CUAD, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        print(f"no texts in {arguments.source}: name a folder with train.jsonl and test.jsonl")
        return
    torch.set_num_threads(1)
    models = pair()
    corpus, background = windows(arguments.source, models[0].tokenizer)
    corpus = corpus.sample(arguments.texts, 0)
    options = CompareOptions(limit=None, max_length=TOKENS, batch_size=BATCH, background=background)
    reading = Reading("content", SALIENCE, Aids(background=background), TOKENS)
    prepared = prepare(corpus, models, reading)
    subjects = [Subject(model, reference=not number) for number, model in enumerate(models)]
    runs = {
        "plain": lambda: plain(models, prepared),
        "measure": lambda: measure(subjects, prepared, MeasureOptions(BATCH)),
        "compare": lambda: compare(*models, corpus=corpus, salience=SALIENCE, options=options),
    }
    load_before = os.getloadavg()[0]
    best = fastest(runs, arguments.repetitions)
    print(
        f"{len(corpus)} texts, {sum(len(encoded.ids) for encoded in prepared.encodings)} tokens, 1 thread, load "
        f"{load_before:.2f} → {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, torch {torch.__version__}"
    )
    ratios = {name: best[name] / best["plain"] for name in ("measure", "compare")}
    print(f"plain {best['plain']:.1f} s, measure {ratios['measure']:.2f} ×, compare {ratios['compare']:.2f} ×", end=" ")
    print(f"≤ {GOAL}: {'ok' if ratios['compare'] <= GOAL else 'missed'}")
    if arguments.profile:
        profile(len(SALIENCE))
    print(json.dumps({"seconds": best, "ratios": ratios, "texts": len(corpus), "load": load_before}))


if __name__ == "__main__":
    main()
