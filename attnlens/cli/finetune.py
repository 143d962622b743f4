"""`attnlens finetune`: train a classifier or a language model and write its checkpoint with a training record."""

from pathlib import Path
from typing import Annotated

import typer

DATA = (
    "JSONL, CSV, Parquet, .txt or a datasets folder: `text`, `prompt` + `completion` or `messages`; "
    "also label, spans, document, id."
)
METHODS = "full, head, last_k, first_k, random_k, lisa or alf."
SCORES = "What makes a block important to alf: weight_change (default), grad_ratio, inverse, random, last_k, rms."


def finetune(
    base: Annotated[str, typer.Argument(help="Hugging Face directory or hub id to start from.")],
    data: Annotated[Path, typer.Option(help=DATA)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint.")],
    method: Annotated[str, typer.Option(help=METHODS)] = "full",
    k: Annotated[int | None, typer.Option(min=1, help="Blocks that last_k, … train; default: a quarter.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of parameters alf trains at a time [0.25].")] = None,
    denominator: Annotated[str | None, typer.Option(help="The budget is a share of: total (default), blocks.")] = None,
    score: Annotated[str | None, typer.Option(help=SCORES)] = None,
    commit: Annotated[bool | None, typer.Option("--commit", help="alf: choose blocks once.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps; overrides --epochs.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the training rows.")] = 3.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts, or windows of texts, in one step.")] = 16,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default: the method's tested one.")] = None,
    max_length: Annotated[int | None, typer.Option(min=3, help="Most tokens of a text, or of its windows.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Held-out data; default: a fifth of the documents.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, order and new weights.")] = 0,
    text_column: Annotated[str | None, typer.Option(help="Column that holds the text.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="Column that holds the completion.")] = None,
    messages_column: Annotated[str | None, typer.Option(help="Column that holds the conversation.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column that holds the label.")] = None,
    document_column: Annotated[str | None, typer.Option(help="Column that names the document.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: what the machine has.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune on labels (a classifier) or, where there are none, on the text itself (a causal language model).

    Completions and conversations train on the answer alone. The best step on held-out rows is kept: by macro-F1 of a
    classifier, by the loss of a language model.

    Example: attnlens finetune base.ckpt --method alf --data train.jsonl -o tuned.ckpt
    """
    from attnlens.cli import terminal
    from attnlens.training.options import TrainOptions
    from attnlens.training.train import finetune as train

    terminal.quiet()
    columns = {
        "text": text_column,
        "prompt": prompt_column,
        "completion": completion_column,
        "messages": messages_column,
        "label": label_column,
        "document": document_column,
    }
    with terminal.progress("Training") as (advance,):
        options = TrainOptions(
            max_steps=max_steps,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_length=max_length,
            validation=validation,
            k=k,
            budget=budget,
            denominator=denominator,
            score=score,
            commit=commit,
            columns={name: column for name, column in columns.items() if column is not None} or None,
            device=device,
            force=force,
            progress=advance,
        )
        result = train(base, data, method=method, output=output, seed=seed, options=options)
    if as_json:
        terminal.print_json({"path": str(result.path), "method": result.method, "metrics": result.metrics})
    else:
        terminal.say(str(result))
