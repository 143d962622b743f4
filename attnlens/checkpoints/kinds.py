"""Kinds of adapters, told from their settings alone."""

from typing import Any

from attnlens.checkpoints.source import BOTTLENECK, Source, adapter_config
from attnlens.core.errors import UnsupportedModel

SAVED, WRAPPED = "base_model.model.", "base_model."  # what peft puts before a model's names, the latter with a prompt
PROMPTS = ("PROMPT_TUNING", "P_TUNING")
ADDS = {BOTTLENECK: "bottleneck adapters"} | dict.fromkeys(PROMPTS, "virtual tokens")
# Ways to begin training that leave the base as it was; the others (pissa, olora, …) write into it.
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mipro")


def check_kind(source: Source) -> dict[str, Any]:
    """The adapter's settings; UnsupportedModel for kinds that attnlens cannot put into a model and switch off."""
    assert source.path is not None
    settings = adapter_config(source.path)
    kind = settings["peft_type"]
    if kind == BOTTLENECK:
        return settings
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # it takes seconds, and most checkpoints are no adapters

    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if known is None:
        raise UnsupportedModel(f"{source.given} is an adapter of the kind {kind}, which this version of peft lacks")
    if kind in ("PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT") or (
        kind in PROMPTS and settings.get("num_transformer_submodules") == 2
    ):
        where = " of an encoder–decoder" if kind in PROMPTS else ""
        raise UnsupportedModel(
            f"{source.given} is a {kind} adapter{where}: its virtual tokens take part in attention, and attnlens "
            "cannot measure those yet"
        )
    return settings


def shares_base(settings: dict[str, Any]) -> bool:
    """Whether the model with this adapter switched off is the base: it has trained no weight of the base itself."""
    starts = [value for name, value in settings.items() if name.startswith("init_") and name.endswith("weights")]
    return settings.get("bias", "none") == "none" and all(start in HARMLESS_STARTS for start in starts)
