"""`attnlens info`: what a checkpoint is and what can be measured on it."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnlens.cli.finetune import TRUST

if TYPE_CHECKING:
    from attnlens.checkpoints.load import Checkpoint
    from attnlens.checkpoints.source import Source

NESTED = ("training", "adapter", "proof", "remote_code")  # of the provenance, said in words of their own
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
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this checkpoint is: architecture, adapter, training record, and what can be measured on it.

    Example: attnlens info tuned.ckpt
    """
    from attnlens.checkpoints.load import load, longest_input
    from attnlens.checkpoints.remote_code import trusting
    from attnlens.checkpoints.source import BOTTLENECK, locate
    from attnlens.cli import terminal

    terminal.quiet()
    _check_base(locate(checkpoint, config=config, tokenizer=tokenizer))
    with trusting(trust_remote_code):
        loaded = load(checkpoint, config=config, tokenizer=tokenizer)
    tokens = longest_input(loaded.model, loaded.tokenizer) - loaded.virtual
    limit = tokens if tokens < 10**9 else None  # tokenizers without a limit give a huge number
    if as_json:
        provenance = {"adapter": None, "training": None} | loaded.provenance
        terminal.print_json({"name": loaded.name, **provenance, "longest_input": limit})
        return
    facts = {name: value for name, value in loaded.provenance.items() if name not in NESTED}
    adapter = loaded.provenance.get("adapter") or {}
    kind = "bottleneck adapter" if adapter.get("type") == BOTTLENECK else KINDS[facts["kind"]]
    facts |= {"kind": kind, "model_type": loaded.model.config.model_type}
    if code := loaded.provenance.get("remote_code"):
        told = ", ".join(reference for place in code for reference in place["classes"].values())
        facts["code of its own"] = told if code[0]["ran"] else f"{told} (not run)"
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
    settings = [
        f"{name.replace('_', ' ')} {adapter[name]}"
        for name in ("r", "alpha", "variant", "width", "virtual_tokens", "task")
        if name in adapter
    ]
    flags = [name.removeprefix("use_") for name in adapter if name.startswith("use_")]
    line = ", ".join([adapter["type"], *settings, *flags, f"{adapter['parameters']:,} parameters of its own"])
    ignored = ", ".join(adapter.get("ignored", ())) or None
    return {"adapter": line, "base": adapter["base"], "ignored": ignored}


def _training(loaded: "Checkpoint") -> dict[str, Any]:
    """The training record: how, from what, on what, with which seed, how well, at what cost; strangers write some."""
    from attnlens.show.training_records import number, part, text

    record = loaded.provenance.get("training")
    if record is None:
        return {}
    data = {name: text(part(record, "data", name).get("path")) for name in ("train", "heldout")}
    data = {name: path or text(part(record, "data", name).get("name")) or None for name, path in data.items()}
    facts = {"method": record.get("method"), **_method(record), "task": record.get("task")}
    facts |= {"base": part(record, "base").get("name"), "trained_on": data["train"], "held_out": data["heldout"]}
    facts |= {"seed": record.get("seed"), "twin": _twin(loaded, record)}
    metrics = {name: value for name, value in part(record, "metrics").items() if not math.isnan(number(value))}
    return facts | metrics | {"cost": _cost(record)}


def _method(record: dict[str, Any]) -> dict[str, Any]:
    """What the method was told, and how much it trained: at a time, on average, at most, in all."""
    from attnlens.show.training_records import number, part, switching
    from attnlens.show.training_words import selection_finding

    told = [f"{name} {value}" for name, value in part(record, "selection").items() if value is not None]
    counts = part(record, "parameters")
    trainable, total = number(counts.get("trainable")), number(counts.get("total"))
    shares = []
    if total > 0 and not math.isnan(trainable):
        shares.append(f"{trainable:,.0f} of {total:,.0f} parameters ({100 * trainable / total:.1f} %)")
    chosen = switching(record)
    if chosen is not None:
        shares[:1] = [f"{share} at a time" for share in shares[:1]]
        for name, word in {"mean": "on average", "peak": "at most", "cumulative": "changed in the end"}.items():
            share = number(part(record, "accounting", name).get("of_total"))
            shares += [] if math.isnan(share) else [f"{100 * share:.1f} % {word}"]
    chosen_blocks = selection_finding(chosen) if chosen is not None else None
    return {"settings": ", ".join(told) or None, "trained": ", ".join(shares) or None, "chosen": chosen_blocks}


def _twin(loaded: "Checkpoint", record: dict[str, Any]) -> str | None:
    """Whether this is a null, or where its own lies."""
    from attnlens.analysis.roles import is_null
    from attnlens.checkpoints.identity import home_free
    from attnlens.show.training_records import null_word
    from attnlens.training.twin import twin_path

    if is_null(record):
        return f"this is one: trained on {null_word(record)}, a null to hold the real run against"
    path = None if loaded.source is None else loaded.source.path
    beside = None if path is None else twin_path(path)
    return home_free(beside) if beside is not None and beside.is_dir() else None


def _cost(record: dict[str, Any]) -> str | None:
    """Operations, time, memory and bytes of the training, as far as they are known."""
    from attnlens.show.training_records import number, part, text

    cost = part(record, "cost")
    kind = {"cuda": " of the GPU", "process": " of the process"}.get(text(cost.get("memory_kind")), "")
    values = {
        "{:,.3g} TFLOP": number(cost.get("flops")) / 1e12,
        "{:,.0f} s": number(cost.get("seconds", record.get("seconds"))),
        "{:,.0f} ms a step": 1000 * number(cost.get("step_seconds")),
        f"peak memory {{:,.0f}} MiB{kind}": number(cost.get("peak_memory")) / 2**20,
        "checkpoint {:,.1f} MiB": number(cost.get("checkpoint_bytes")) / 2**20,
    }
    return ", ".join(form.format(value) for form, value in values.items() if not math.isnan(value)) or None
