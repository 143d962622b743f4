"""Adapters, PEFT's and our own: put into the loaded base, several side by side, and switched on and off."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from attnlens.checkpoints.bottleneck import attach_bottleneck, only
from attnlens.checkpoints.kinds import ADDS, PROMPTS, SAVED, WRAPPED, check_kind, shares_base
from attnlens.checkpoints.remote_code import own_model
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.source import BOTTLENECK, Source
from attnlens.checkpoints.virtual import prepend, prompt_count, prompted
from attnlens.core.errors import CheckpointError, UnsupportedModel

TASKS = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class Adapter:
    """Which adapter of a model a checkpoint is. name: in the model, None: it is the base, with all adapters off.

    facts: type, r and alpha where it has them, task, weights of a head that were ignored.
    """

    name: str | None
    facts: dict[str, Any]

    @property
    def adds(self) -> str | None:
        """What stands beside the weights of the base, which it leaves as they are; None where it changes those."""
        return ADDS.get(str(self.facts.get("type")))

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[None]:
        """The model computes with this adapter alone, or as the base; afterwards as before."""
        switches = [part for part in model.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        before = [(part, not part.disable_adapters, list(part.active_adapters)) for part in switches]
        try:
            for part in switches:
                _switch(part, [] if self.name is None else [self.name])
            with only(model, self.name), prompted(model, self.name):
                yield
        finally:
            for part, enabled, names in before:
                _switch(part, names if enabled else [])


def _switch(part: Any, names: list[str]) -> None:
    """Use these adapters in one part of the model; where they have nothing there it computes as in the base."""
    if isinstance(part, AuxiliaryTrainingWrapper):
        names = [name for name in names if name in part._adapters]
    part.enable_adapters(bool(names))
    if names:
        part.set_adapter(names, inference_mode=True)


def architecture_for(source: Source, settings: dict[str, Any], stored: Any, config: Any) -> Any:
    """The class of model that the adapter was trained in: names of its weights are names in that class.

    stored: the class the base was saved in. The size of a classification head is read from the adapter's weights.
    """
    with Shelf(source.files) as shelf:
        shapes = {name.removeprefix(SAVED).removeprefix(WRAPPED): shelf.shape(name) for name in shelf.names}
    prefix = f"{bare_class(config).base_model_prefix}."
    headed = settings["peft_type"] in PROMPTS and settings.get("task_type") in TASKS
    if not headed and not any(name.startswith(prefix) for name in shapes):
        return stored if _is_bare(stored, config) else bare_class(config)
    named = getattr(transformers, str((settings.get("auto_mapping") or {}).get("base_model_class")), None)
    found = TASKS.get(str(settings.get("task_type")))
    if found is not None:
        try:
            found = _class_of(found, config)
        except KeyError as error:
            raise CheckpointError(
                f"{source.given} is an adapter for {settings['task_type']}, which {config.model_type} has no head for"
            ) from error
    elif isinstance(named, type) and issubclass(named, PreTrainedModel) and named.config_class is type(config):
        found = named
    elif not _is_bare(stored, config):
        found = stored
    else:
        raise CheckpointError(
            f"{source.given} does not say which head it was trained with (no task_type in its adapter_config.json)"
        )
    _fit_labels(found, config, shapes)
    return found


def attach(model: PreTrainedModel, source: Source) -> Adapter:
    """Put an adapter into the model in place; CheckpointError where any of its weights finds no place or is absent.

    Weights of a head may have no place: heads are not measured, and `facts` names them.
    """
    assert source.path is not None
    settings = check_kind(source)
    if settings["peft_type"] == BOTTLENECK:
        name = attach_bottleneck(model, settings, source.files, source.given)
        model.requires_grad_(False)
        model.eval()
        return Adapter(name, _facts(settings))
    name = f"attnlens{len(getattr(model, 'peft_config', {})) + prompt_count(model)}"
    kept = _checksums(model) if shares_base(settings) else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they would say is checked below
            peft_config = PeftConfig.from_pretrained(str(source.path))
            wrapped = PeftModel.from_pretrained(
                model, str(source.path), adapter_name=name, config=peft_config, torch_device=str(model.device)
            )
            placed = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
            prompt = wrapped.get_prompt(1)[0] if settings["peft_type"] in PROMPTS else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
        reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
        raise CheckpointError(f"the adapter {source.given} does not fit its base: {reason}") from error
    model.requires_grad_(False)
    model.eval()
    ignored = _check_places(model, source, frozenset(placed))
    if prompt is not None:
        prepend(model, name, prompt)  # not through peft's wrapper: base and adapters are one model
    if any(torch.hash_tensor(parameter.data).item() != before for parameter, before in kept.items()):
        raise UnsupportedModel(
            f"the adapter {source.given} brings other weights for its base itself, so that switched off it is not the "
            "base: merge it into its base (merge_and_unload) and save the whole model"
        )
    return Adapter(name, _facts(settings) | ({"ignored": ignored} if ignored else {}))


def _check_places(model: PreTrainedModel, source: Source, placed: frozenset[str]) -> list[str]:
    """Names of head weights that were left out; CheckpointError where a weight of the backbone was."""
    with Shelf(source.files) as shelf:
        stored = frozenset(shelf.names)
        absent, stray = sorted(placed - stored), sorted(stored - placed)
        own = dict(model.named_parameters())
        # Some trainers save the base's embeddings along, and peft has put them into the base: `attach` compares them.
        stray = [name for name in stray if not _is_copy(shelf, name, own)]
    head = [name for name in stray if is_head(name.removeprefix(SAVED).removeprefix(WRAPPED), model)]
    for names, fault in (
        (absent, "lacks {} of its weights, the first is {}; they would be random"),
        (stray, "holds {} weights that have no place in its base, the first is {}: it was made for another model"),
    ):
        if faulty := [name for name in names if name not in head]:
            raise CheckpointError(f"the adapter {source.given} {fault.format(len(faulty), faulty[0])}")
    return head


def _is_copy(shelf: Shelf, name: str, own: dict[str, nn.Parameter]) -> bool:
    bare = name.removeprefix(SAVED).replace(".base_layer.", ".")
    match = own.get(bare, own.get(bare.removesuffix("weight") + "base_layer.weight"))
    return match is not None and torch.equal(shelf.read(name).to(match), match)


def is_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight lies outside the backbone; everything of a model without a head lies inside."""
    return model.base_model is not model and not name.startswith(f"{model.base_model_prefix}.")


def _checksums(model: PreTrainedModel) -> dict[nn.Parameter, int]:
    """Of every weight of the backbone; a head is not measured, and a base often has none of its own."""
    backbone = {parameter for name, parameter in model.named_parameters() if not is_head(name, model)}
    return {parameter: int(torch.hash_tensor(parameter.data).item()) for parameter in backbone}


def _facts(settings: dict[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of an adapter."""
    alpha = settings.get("lora_alpha", settings.get("alpha"))
    facts = {
        "type": settings["peft_type"],
        "r": settings.get("r"),
        "alpha": alpha,
        "task": settings.get("task_type"),
        "variant": settings.get("variant"),
        "width": settings.get("width"),
        "virtual_tokens": settings.get("num_virtual_tokens"),
    }
    flags = [name for name in ("use_dora", "use_rslora") if settings.get(name)]
    return {name: value for name, value in facts.items() if value is not None} | dict.fromkeys(flags, True)


def bare_class(config: Any) -> Any:
    """The class of the model without a head."""
    try:
        return _class_of(transformers.AutoModel, config)
    except KeyError as error:
        raise UnsupportedModel(f"transformers has no model for text of the type {config.model_type}") from error


def _class_of(auto: Any, config: Any) -> Any:
    """The class that an Auto class takes for this configuration; KeyError where it has none."""
    if (own := own_model(config, auto.__name__)) is not None:
        return own
    found = auto._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _is_bare(architecture: Any, config: Any) -> bool:
    return architecture is transformers.AutoModel or architecture is bare_class(config)


def _fit_labels(architecture: Any, config: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Set `num_labels` to what the adapter's head has."""
    with torch.device("meta"):
        model = architecture._from_config(config)
    for name, parameter in model.named_parameters():
        own = tuple(parameter.shape)
        stored = shapes.get(name, own)
        if stored != own and stored[1:] == own[1:] and own[0] == config.num_labels:
            config.num_labels = stored[0]
            return
