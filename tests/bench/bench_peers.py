"""`record` against the tools of others: entropy, three masses, largest weight and Σ p² of every row of every head,
and λ besides, which the others do not give.

GPT-2-small shape, random weights, one text. Each tool runs in a process of its own, with the interpreter in which it is
installed (`python -m venv V; V/bin/pip install torch transformer-lens`), and does what its documentation says:
TransformerLens caches the patterns of all layers, nnsight saves the eager attention's weights while it traces, and the
maps are reduced; inseq attributes one further token by attention, which is one row of each head, not all. Seconds are
the best of some passes, memory what they added to the peak. Ratios, not seconds, travel between machines.
Usage: python tests/bench/bench_peers.py [--rival NAME=PYTHON …] [--lengths 128 512 2048] [--threads 1]
--write keeps each row in figures/speed.csv as soon as it is measured; `python figures/speed.py` draws them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys

from timing import keep

COMMON = """
import json, re, sys, time
import torch
tokens, texts, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(0)
ids, groups = torch.randint(0, 50257, (texts, tokens)), torch.randint(0, 3, (texts, tokens))
columns = torch.nn.functional.one_hot(groups, 3).float()

def reduced(maps):
    for p in maps:
        torch.special.entr(p).sum(-1), p @ columns[:, None], p.amax(-1), p.square().sum(-1)

def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def told(run, passes=4):
    with torch.inference_mode():
        open("/proc/self/clear_refs", "w").write("5")
        before, times = highest(), []
        for _ in range(passes if tokens < 4096 else 2):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(times), "extra_mib": highest() - before}))
"""
GPT2 = """
from transformers import GPT2Config, GPT2Model, GPT2LMHeadModel
config = GPT2Config(n_positions=max(tokens, 1024), use_cache=False)
"""
WORDS = """
import tempfile
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
raw = Tokenizer(models.WordLevel({f"w{n}": n for n in range(50255)} | {"<pad>": 50255, "</s>": 50256}, unk_token="w0"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
folder = tempfile.mkdtemp()
named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>"}
PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", **named).save_pretrained(folder)
words = PreTrainedTokenizerFast.from_pretrained(folder)
config.n_positions, config.pad_token_id = tokens + 8, 50255
"""
WAYS = {
    "plain": GPT2 + "model = GPT2Model(config).eval(); told(lambda: model(ids))",
    "attnlens": GPT2
    + """
from attnlens.checkpoints.record import record
model = GPT2Model(config).eval()
def run():
    with record(model, ("entropy", "mass", "max_weight", "renyi2", "log_odds"), groups=groups):
        model(ids)
told(run)
""",
    "eager": GPT2
    + """
config._attn_implementation = "eager"
model = GPT2Model(config).eval()
told(lambda: reduced(model(ids, output_attentions=True).attentions))
""",
    "transformer-lens": GPT2
    + WORDS
    + """
from transformer_lens.model_bridge import TransformerBridge
GPT2LMHeadModel(config).save_pretrained(folder)
model = TransformerBridge.boot_transformers(folder, tokenizer=words, device="cpu").eval()
names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(12)]
def run():
    _, cache = model.run_with_cache(ids, names_filter=names)
    reduced(cache[name] for name in names)
told(run)
""",
    "nnsight": GPT2
    + """
from nnsight import NNsight
config._attn_implementation = "eager"
model = NNsight(GPT2Model(config).eval())
def run():
    with model.trace(ids):
        maps = list().save()
        for layer in range(12):
            maps.append(model.h[layer].attn.output[1])
    reduced(maps)
told(run)
""",
    "inseq": GPT2
    + WORDS
    + """
import inseq
config._attn_implementation = "eager"
model = inseq.load_model(GPT2LMHeadModel(config).eval(), "attention", tokenizer=words)
text = " ".join(f"w{number}" for number in ids[0].tolist())
told(lambda: model.attribute(text, text + " </s>", show_progress=False))
""",
}


def measured(way: str, python: str, tokens: int, threads: int) -> dict[str, float] | str:
    """Seconds and extra MiB of one way, or the last line of why it failed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [python, "-c", COMMON + WAYS[way], str(tokens), "1", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """A table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", action="append", default=[], help="NAME=PYTHON")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024, 2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the rows in figures/speed.csv")
    arguments = parser.parse_args()
    pythons = dict.fromkeys(("plain", "attnlens", "eager"), sys.executable)
    pythons |= dict(rival.split("=", 1) for rival in arguments.rival)
    print(f"{arguments.threads} threads, {os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    rows = []
    for tokens in arguments.lengths:
        plain = None
        for way, python in pythons.items():
            found = measured(way, python, tokens, arguments.threads)
            if isinstance(found, str):
                print(f"{tokens:6d} {way:17s} failed: {found[:120]}", flush=True)
                continue
            plain = found["seconds"] if way == "plain" else plain
            told = {"tokens": tokens, "way": way, "threads": arguments.threads, "load": os.getloadavg()[0]}
            rows.append(told | found)
            if arguments.write:
                keep("speed", rows)
            ratio = f"{found['seconds'] / plain:6.2f} × plain" if plain else ""
            print(f"{tokens:6d} {way:17s} {found['seconds']:8.2f} s {ratio} {found['extra_mib']:8.0f} MiB", flush=True)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
