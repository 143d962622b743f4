"""How often each score finds the two blocks of six whose gradients are whole, the others' being attenuated.

A tiny random BERT in a plain loop; ten steps, of which the first probe is all. The factor multiplies the gradients of
the four other blocks: at 0 they cannot change, at 1 nothing is planted, and a draw finds a third. Reported, not gated,
but for factor 0 (tests/training/test_alf.py). Adam divides a constant factor out, its ε aside, so that a weight change
rate hardly sees it; under plain SGD it does, and gradient norms always do. About two minutes on two cores.
Usage: python tests/bench/bench_planted.py [--seeds 10] [--factors 0 0.1 0.5 1]
"""

import argparse
import json
import os

import torch
from transformers import BertConfig, BertForSequenceClassification

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.training.alf import Choice, LayerController, Plan
from attnlens.training.importance import SCORES

BLOCKS, PLANTED, STEPS = 6, 2, 10
OPTIMIZERS = {"adamw": (torch.optim.AdamW, 1e-3), "sgd": (torch.optim.SGD, 1e-1)}


def bert(seed: int) -> BertForSequenceClassification:
    """Six small blocks, no dropout."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 30, "num_labels": 3}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**shape, **dropout, num_hidden_layers=BLOCKS)).train()


def chosen(score: str, factor: float, optimizer: str, seed: int) -> tuple[set[int], Choice]:
    """The planted blocks, and the choice of a controller."""
    with torch.random.fork_rng():
        model = bert(seed)
    generator = torch.Generator().manual_seed(seed)
    planted = set(torch.randperm(BLOCKS, generator=generator)[:PLANTED].tolist())
    blocks = [list(block.parameters()) for block in transformer_blocks(model)]
    for number, block in enumerate(blocks):
        for parameter in block if number not in planted else ():
            parameter.register_hook(lambda gradient: factor * gradient)
    names = head_parameters(model)
    head = [parameter for name, parameter in model.named_parameters() if name in names]
    kind, rate = OPTIMIZERS[optimizer]
    stepping = kind(model.parameters(), lr=rate)
    controller = LayerController(blocks, head, stepping, Plan(score, k=PLANTED, warmup=STEPS, seed=seed))
    rows = torch.randint(3, 30, (24, 7), generator=generator)
    while not controller.choices:
        ids = rows[torch.randint(24, (6,), generator=generator)]
        model(input_ids=ids, labels=ids[:, 0] % 3).loss.backward()
        stepping.step()
        controller.step()
        stepping.zero_grad()
    return planted, controller.choices[0]


def hit_rate(score: str, factor: float, optimizer: str, seeds: int) -> float:
    """Share of the planted blocks that are chosen, over seeds."""
    found = [chosen(score, factor, optimizer, seed) for seed in range(seeds)]
    return sum(len(planted & set(choice.active)) for planted, choice in found) / (PLANTED * seeds)


def main() -> None:
    """Print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.0, 0.01, 0.1, 0.3, 0.6, 1.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores; share of the planted blocks found, by factor")
    print(f"{'optimizer':10s} {'score':14s} " + " ".join(f"{factor:6.2f}" for factor in arguments.factors))
    rows = []
    for optimizer in OPTIMIZERS:
        for score in SCORES:
            rates = [hit_rate(score, factor, optimizer, arguments.seeds) for factor in arguments.factors]
            print(f"{optimizer:10s} {score:14s} " + " ".join(f"{rate:6.2f}" for rate in rates), flush=True)
            rows.append({"optimizer": optimizer, "score": score, "hit_rates": rates})
    print(json.dumps({"seeds": arguments.seeds, "factors": arguments.factors, "rows": rows}))


if __name__ == "__main__":
    main()
