"""The size of a report's page and what it takes to build: 12 layers × 12 heads, four texts of 60 tokens, four of 256.

all-MiniLM-L6-v2 with its six layers twice over, and a copy with noise of a tenth of each matrix's deviation; the texts
are embedded contract clauses, joined and cut. Attention of real weights compresses as that of real models does. The
ratio is against the same maps as dense float32 JSON; BertViz's page of one text of 128 tokens at that size: 105 MB.
Usage: python tests/bench/bench_page.py
"""

import copy
import json
import re
import tempfile
import time
from pathlib import Path

import torch
import transformers as tf

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.results import Comparison
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.checkpoints.packaged import encoder
from attnlens.show.report import report
from attnlens.text.corpus import Corpus, Example, read_corpus
from attnlens.text.embedded import embedded

TOKENS, NOISE, MOST = (60, 60, 60, 60, 256, 256, 256, 256), 0.1, 5_000_000


def models() -> list[Checkpoint]:
    """The base of twelve layers, and what noise makes of it."""
    real = load(encoder())
    config = copy.deepcopy(real.model.config)
    config.num_hidden_layers = 12
    base = tf.BertModel(config).eval()
    state = real.model.base_model.state_dict()
    again = {re.sub(r"layer\.(\d+)", lambda m: f"layer.{int(m[1]) + 6}", name): value for name, value in state.items()}
    base.load_state_dict(state | again)
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.encoder.parameters():
            if parameter.ndim == 2:
                parameter.add_(NOISE * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return [Checkpoint(model, real.tokenizer, name, {}) for model, name in ((base, "base"), (tuned, "tuned"))]


def texts(tokenizer: tf.PreTrainedTokenizerBase) -> Corpus:
    """Clauses joined until they fill the tokens wanted; the longer ones are cut."""
    corpus = read_corpus(embedded("contracts_eval"))
    clauses, made = iter(example.text for example in corpus), []
    for number, length in enumerate(TOKENS):
        text = ""
        while len(tokenizer(text)["input_ids"]) < length:
            text = f"{text} {next(clauses)}".strip()
        offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        made.append(Example(text=text[: offsets[length - 3][1]], id=f"text-{number}", document=str(number)))
    return Corpus(tuple(made), "clauses", corpus.checksum, True)


def dense(comparison: Comparison) -> int:
    """Characters of the same maps as JSON of float32."""
    found = (passage.maps.values for passage in comparison.passages if passage.maps is not None)
    return sum(len(json.dumps([float(f"{value:.8g}") for value in maps.ravel().tolist()])) for maps in found)


torch.set_num_threads(1)
base, tuned = models()
compared = compare(base, tuned, corpus=texts(base.tokenizer), salience=("textrank",), options=CompareOptions())
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    page = report(compared, Path(folder)).read_text("utf-8")
    seconds = time.perf_counter() - start
packed = [len(text) for text in re.findall(r'"packed":"([^"]*)"', page)]
print("packed maps of each text:", *packed)
result = {
    "megabytes": round(len(page.encode()) / 1e6, 2),
    "maps_megabytes": round(sum(packed) / 1e6, 2),
    "received_megabytes": round(sum(len(text) for text in re.findall(r'"received":\[[^"]*', page)) / 1e6, 2),
    "texts_with_maps": sum(length > 0 for length in packed),
    "dense_json_megabytes": round(dense(compared) / 1e6, 1),
    "seconds": round(seconds, 1),
    "holds": len(page.encode()) <= MOST,
}
print(json.dumps(result))
