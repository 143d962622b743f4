"""`attnlens info`: what a checkpoint is and what can be measured on it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from attnlens.checkpoints.load import Checkpoint
    from attnlens.checkpoints.source import Source

KINDS = {
    "directory": "Hugging Face directory",
    "hub": "hub id",
    "adapter": "PEFT adapter",
    "file": "single file of weights",
}


def info(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint or adapter directory, file of weights, or hub id.")],
    config: Annotated[str | None, typer.Option(help="Folder or hub id with the config.json of a single file.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id with the tokenizer of such a file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this checkpoint is: architecture, adapter, training record, and what can be measured on it.

    Example: attnlens info tuned.ckpt
    """
    from attnlens.checkpoints.load import load
    from attnlens.checkpoints.source import BOTTLENECK, locate
    from attnlens.cli import terminal
    from attnlens.training.base import longest_input

    terminal.quiet()
    _check_base(locate(checkpoint, config=config, tokenizer=tokenizer))
    loaded = load(checkpoint, config=config, tokenizer=tokenizer)
    tokens = longest_input(loaded.model, loaded.tokenizer)
    limit = tokens if tokens < 10**9 else None  # tokenizers without a limit give a huge number
    if as_json:
        provenance = {"adapter": None, "training": None} | loaded.provenance
        terminal.print_json({"name": loaded.name, **provenance, "longest_input": limit})
        return
    facts = {name: value for name, value in loaded.provenance.items() if name not in ("training", "adapter", "proof")}
    adapter = loaded.provenance.get("adapter") or {}
    kind = "bottleneck adapter" if adapter.get("type") == BOTTLENECK else KINDS[facts["kind"]]
    facts |= {"kind": kind, "model_type": loaded.model.config.model_type}
    facts |= _adapter(loaded) | _training(loaded)
    facts["attention"] = loaded.provenance["proof"]
    facts["measures"] = f"attention on texts of up to {limit} tokens, weights" if limit else "attention, weights"
    named = {name.replace("_", " "): value for name, value in facts.items() if value is not None}
    terminal.print_facts(loaded.name, named)


def _check_base(found: "Source") -> None:
    """An adapter is shown on its base, which must be here."""
    from attnlens.checkpoints.identity import home_free
    from attnlens.checkpoints.source import adapter_config
    from attnlens.core.errors import CheckpointError

    if found.kind == "adapter" and found.base is None and found.path is not None:
        name = adapter_config(found.path).get("base_model_name_or_path")
        base = home_free(name) if isinstance(name, str) and name else "(none named)"
        raise CheckpointError(
            f"the base {base} of the adapter {found.given} is neither here nor a hub id: put it there, or name another "
            "place as base_model_name_or_path in adapter_config.json"
        )


def _adapter(loaded: "Checkpoint") -> dict[str, Any]:
    """An adapter in one line, and what it stands on."""
    adapter = loaded.provenance.get("adapter")
    if adapter is None:
        return {}
    settings = [f"{name} {adapter[name]}" for name in ("r", "alpha", "variant", "width", "task") if name in adapter]
    flags = [name.removeprefix("use_") for name in adapter if name.startswith("use_")]
    line = ", ".join([adapter["type"], *settings, *flags, f"{adapter['parameters']:,} parameters of its own"])
    ignored = ", ".join(adapter.get("ignored", ())) or None
    return {"adapter": line, "base": adapter["base"], "ignored": ignored}


def _training(loaded: "Checkpoint") -> dict[str, Any]:
    """The training record: how, from what, on what, with which seed, how well."""
    record = loaded.provenance.get("training")
    if record is None:
        return {}
    data = {part: facts.get("path") or facts.get("name") for part, facts in record["data"].items() if facts}
    facts = {"method": record.get("method"), "task": record.get("task"), "base": record["base"].get("name")}
    facts |= {"trained_on": data.get("train"), "held_out": data.get("heldout"), "seed": record.get("seed")}
    return facts | record["metrics"]
