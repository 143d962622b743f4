"""`attnlens info`: what a checkpoint is and what can be measured on it."""

from typing import Annotated

import typer


def info(
    checkpoint: Annotated[str, typer.Argument(help="Hugging Face directory or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this checkpoint is: architecture, size, training record, and the proof of its attention.

    Example: attnlens info tuned.ckpt
    """
    from attnlens.checkpoints.load import load
    from attnlens.cli import terminal
    from attnlens.training.record import read_record

    terminal.quiet()
    loaded = load(checkpoint)
    record = read_record(checkpoint)
    if as_json:
        terminal.print_json({"name": loaded.name, **loaded.provenance, "record": record})
        return
    facts = {name: value for name, value in loaded.provenance.items() if value is not None}
    if record is not None:
        facts |= {"method": record.get("method"), "base": record["base"].get("name"), "seed": record.get("seed")}
        facts |= {name.replace("_", " "): value for name, value in record["metrics"].items()}
    terminal.print_facts(loaded.name, facts)
