"""`attnlens finetune`: train a classifier or a language model and write its checkpoint with a training record."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from attnlens.training.train import TrainingResult

DATA = (
    "JSONL, CSV, Parquet, .txt or a datasets folder: `text`, `prompt` + `completion` or `messages`; "
    "also label, spans, document, id."
)
TRUST = "Run code that a checkpoint brings for an architecture of its own."
METHODS = "full, head, last_k, first_k, random_k, layers, lisa, alf, lora, ia3, prompt or adapter."
TASKS = "sequence-classification, multi-label, token-classification, causal-lm, masked-lm; default: by the rows."
SCORES = "What makes a block important to alf: weight_change (default), grad_ratio, inverse, random, last_k, rms."

OF_METHOD, STEPS, ROWS, WATCH, MACHINE = (
    partial(typer.Option, rich_help_panel=title)
    for title in ("Options of some methods", "Steps", "Rows", "Beside the training", "Machine")
)


def finetune(
    base: Annotated[str, typer.Argument(help="Hugging Face directory or hub id to start from.")],
    data: Annotated[Path, typer.Option(help=DATA)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint.")],
    method: Annotated[str, typer.Option(help=METHODS)] = "full",
    task: Annotated[str | None, typer.Option(help=TASKS)] = None,
    k: Annotated[int | None, OF_METHOD(min=1, help="Blocks that last_k, … train; default: a quarter.")] = None,
    layers: Annotated[str | None, OF_METHOD(help="Blocks that `layers` trains, from 0: 0,3 or 8-11.")] = None,
    budget: Annotated[float | None, OF_METHOD(help="Share of parameters alf trains at a time [0.25].")] = None,
    denominator: Annotated[str | None, OF_METHOD(help="The budget is a share of: total (default), blocks.")] = None,
    score: Annotated[str | None, OF_METHOD(help=SCORES)] = None,
    commit: Annotated[bool | None, OF_METHOD("--commit", help="alf: choose blocks once.")] = None,
    rank: Annotated[int | None, OF_METHOD(min=1, help="Rank of lora [8].")] = None,
    alpha: Annotated[float | None, OF_METHOD(help="Scale of lora; default: twice the rank.")] = None,
    virtual_tokens: Annotated[int | None, OF_METHOD(min=1, help="Tokens that prompt learns [20].")] = None,
    bottleneck: Annotated[int | None, OF_METHOD(min=1, help="Width of adapter [64].")] = None,
    variant: Annotated[str | None, OF_METHOD(help="Where adapter sits: pfeiffer (default), houlsby.")] = None,
    merge: Annotated[bool | None, OF_METHOD("--merge", help="lora, ia3: write merged weights.")] = None,
    max_steps: Annotated[int | None, STEPS(min=1, help="Optimizer steps; overrides --epochs.")] = None,
    epochs: Annotated[float, STEPS(help="Passes over the training rows.")] = 3.0,
    batch_size: Annotated[int, STEPS(min=1, help="Texts, or windows of texts, in one step.")] = 16,
    accumulation: Annotated[int, STEPS(min=1, help="Batches whose gradients make one step.")] = 1,
    learning_rate: Annotated[float | None, STEPS(help="Peak; default: the method's tested one.")] = None,
    max_length: Annotated[int | None, ROWS(min=3, help="Most tokens of a text, or of its windows.")] = None,
    validation: Annotated[Path | None, ROWS(help="Held-out data; default: a fifth of the documents.")] = None,
    class_weights: Annotated[bool, ROWS("--class-weights", help="Rare classes count as much.")] = False,
    windows: Annotated[bool, ROWS("--windows", help="Read long texts in windows, not their start.")] = False,
    general: Annotated[Path | None, WATCH(help="Text for forgetting; default: our sentences.")] = None,
    watch_attention: Annotated[bool, WATCH("--watch-attention", help="Record it while training.")] = False,
    seed: Annotated[int, STEPS(min=0, help="Of split, order and new weights.")] = 0,
    text_column: Annotated[str | None, ROWS(help="Column that holds the text.")] = None,
    prompt_column: Annotated[str | None, ROWS(help="Column that holds the prompt.")] = None,
    completion_column: Annotated[str | None, ROWS(help="Column that holds the completion.")] = None,
    messages_column: Annotated[str | None, ROWS(help="Column that holds the conversation.")] = None,
    label_column: Annotated[str | None, ROWS(help="Column that holds the label.")] = None,
    document_column: Annotated[str | None, ROWS(help="Column that names the document.")] = None,
    device: Annotated[str | None, MACHINE(help="cpu, cuda, …; default: what the machine has.")] = None,
    dtype: Annotated[str | None, MACHINE(help="bfloat16 computes in it; default: float32.")] = None,
    checkpointing: Annotated[bool, MACHINE("--checkpointing", help="Less memory, more time.")] = False,
    trust_remote_code: Annotated[bool, MACHINE("--trust-remote-code", help=TRUST)] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    null_twin: Annotated[bool, WATCH("--null-twin", help="Train once more on shuffled labels.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print size, memory and time; train nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune on labels (a classifier) or, where there are none, on the text itself (a causal language model).

    Lists of labels train a multi-label classifier. --task token-classification learns spans with labels, --task
    masked-lm trains an encoder on text. Completions and conversations train on the answer alone. The best step on
    held-out rows is kept: by macro-F1 where each text has one label, else by the loss.

    Example: attnlens finetune base.ckpt --method alf --data train.jsonl -o tuned.ckpt
    """
    from attnlens.cli import terminal
    from attnlens.training.estimate import Estimate
    from attnlens.training.estimate import estimate as expected
    from attnlens.training.options import TrainOptions
    from attnlens.training.train import finetune as train

    terminal.quiet()
    columns = terminal.named(
        text=text_column,
        prompt=prompt_column,
        completion=completion_column,
        messages=messages_column,
        label=label_column,
        document=document_column,
    )
    with terminal.progress("Training") as (advance,):
        options = TrainOptions(
            max_steps=max_steps,
            epochs=epochs,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=learning_rate,
            max_length=max_length,
            validation=validation,
            task=task,
            class_weights=class_weights,
            windows=windows,
            k=k,
            layers=_numbers(layers),
            budget=budget,
            denominator=denominator,
            score=score,
            commit=commit,
            rank=rank,
            alpha=alpha,
            virtual_tokens=virtual_tokens,
            bottleneck=bottleneck,
            variant=variant,
            merge=merge,
            dtype=dtype,
            checkpointing=checkpointing,
            general=general,
            watch_attention=watch_attention,
            columns=columns,
            device=device,
            null_twin=null_twin,
            resume=resume,
            force=force,
            trust_remote_code=trust_remote_code,
            progress=advance,
        )
        if estimate:
            told = expected(base, data, method=method, seed=seed, options=options)
        else:
            told = train(base, data, method=method, output=output, seed=seed, options=options)
    if as_json:
        terminal.print_json(told.record if isinstance(told, Estimate) else _outcome(told))
    else:
        terminal.say(str(told))


def _outcome(result: "TrainingResult") -> dict[str, Any]:
    """A finished run for programs, and its twin's where there is one."""
    told = ("seed", "parameters", "accounting", "cost", "selection_overlap")
    facts = {"path": str(result.path), "method": result.method, "metrics": result.metrics}
    facts |= {name: result.record[name] for name in told}
    return facts if result.twin is None else {**facts, "null_twin": _outcome(result.twin)}


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Block numbers as people write them: "0,3" or "8-11"."""
    if text is None:
        return None
    found = list[int]()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise typer.BadParameter(f"{text!r}: needed block numbers such as 0,3 or 8-11.", param_hint="--layers")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(dict.fromkeys(found))
