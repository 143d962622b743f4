"""Methods that put new parameters into a frozen base: LoRA, (IA)³ and prompts through PEFT, bottlenecks of our own."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.checkpoints.bottleneck import Bottleneck, insert, save_bottleneck
from attnlens.checkpoints.tensors import module_of
from attnlens.core.errors import TrainingError, UnsupportedModel
from attnlens.training.options import TrainOptions
from attnlens.training.selections import Selection
from attnlens.training.tasks import TASKS

FUSED = "query+key+value"
NEW_HEAD = ("SEQ_CLS", "TOKEN_CLS")  # tasks of PEFT whose head is drawn at random and has to be trained
PROMPTED = ("SEQ_CLS", "CAUSAL_LM")  # tasks in which virtual tokens have no label of their own


def lora(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """Matrices of low rank beside the projections to queries and values; alpha is twice the rank, no dropout."""
    rank = options.rank or 8
    alpha = options.alpha if options.alpha is not None else 2 * rank
    targets = None
    if model.config.model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        targets = _suffixes(model, _attention(model, ("query", "value", FUSED)))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  divided by the rank: need not be whole
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=_has_conv1d(model),
    )
    return _inserted(model, config, options, seed, {"rank": rank, "alpha": alpha, "dropout": 0.0})


def ia3(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """Factors for keys, values and what the second matrix of each feed-forward layer reads; 1 at the start."""
    targets = feedforward = None
    if model.config.model_type not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        feedforward = _suffixes(model, _feedforward(model))
        targets = [*_suffixes(model, _attention(model, ("key", "value", FUSED))), *feedforward]
    config = IA3Config(
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=_has_conv1d(model),
        init_ia3_weights=True,
    )
    return _inserted(model, config, options, seed, {})


def prompt(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """Virtual tokens before every text, which begin as embeddings of tokens that the seed draws from the vocabulary."""
    kind, name = _task(options), type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModel(
            f"{name} cannot be prompt-tuned: an encoder–decoder's classifier takes token ids, and virtual tokens have "
            "none. Use method 'lora' or 'ia3'."
        )
    if kind not in PROMPTED:
        raise TrainingError(
            f"prompt tuning does not serve the task {options.task!r}, in which every token has a label and virtual "
            "tokens have none: use method 'lora' or 'ia3'."
        )
    table, count = model.get_input_embeddings(), options.virtual_tokens or 20
    text: Any = model.config.get_text_config()
    config = PromptTuningConfig(
        num_virtual_tokens=count,
        prompt_tuning_init="SAMPLE_VOCAB",
        token_dim=table.weight.shape[1],  # pyright: ignore[reportIndexIssue, reportArgumentType, reportAttributeAccessIssue]
        num_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_transformer_submodules=1,
    )
    selection = _inserted(model, config, options, seed, {"virtual_tokens": count})
    assert isinstance(selection.model, PeftModel)
    _TextOnly(selection.model, count).attach()
    return replace(selection, virtual=count)


def adapter(model: PreTrainedModel, options: TrainOptions, seed: int = 0) -> Selection:
    """Bottlenecks behind parts of each block, which change nothing at the start, and the head."""
    kind = Bottleneck(options.variant or "pfeiffer", options.bottleneck or 64)
    parameters = insert(model, kind, seed=seed) | head_parameters(model)

    def save(folder: Path) -> None:
        save_bottleneck(model, kind, parameters, folder)

    return Selection(parameters, {"variant": kind.variant, "bottleneck": kind.width}, save=save)


class _TextOnly:
    """Keeps virtual tokens and padding out of what a prompted model predicts, as long as it is this object in memory.

    A language model's logits lose those of the virtual tokens. A decoder's classifier reads the last token; as it is
    given embeddings, not ids, it takes padding for text, and here the last token that the mask shows is put there.
    """

    def __init__(self, wrapped: PeftModel, count: int):
        self.wrapped, self.count = wrapped, count
        self.last: Tensor | None = None
        self.length = 0

    def attach(self) -> None:
        """Hang the hooks on the model."""
        self.wrapped.register_forward_pre_hook(self.note, with_kwargs=True)
        self.wrapped.register_forward_hook(self.strip)
        score: Any = getattr(self.wrapped.get_base_model(), "score", None)
        if isinstance(score, nn.Module):
            score.register_forward_hook(self.move)

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """How long the texts are, and where each ends: the last 1 of its mask, virtual tokens counted."""
        self.length = kwargs["input_ids"].shape[1]
        mask = kwargs.get("attention_mask")
        places = None if mask is None else torch.arange(mask.shape[1], device=mask.device)
        self.last = None if mask is None else (mask * places).argmax(1) + self.count

    def strip(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Leave (B, T, V) of the logits (B, virtual + T, V) of a language model; (B, T, V) while the prompt is off."""
        if output.logits.ndim == 3:
            output.logits = output.logits[:, -self.length :]

    def move(self, model: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        """Put the logits of each text's last token last: (B, virtual + T, C) in both."""
        if self.last is None:
            return None
        chosen = logits[torch.arange(len(logits), device=logits.device), self.last]
        return torch.cat([logits[:, :-1], chosen[:, None]], 1)


def _inserted(
    model: PreTrainedModel, config: PeftConfig, options: TrainOptions, seed: int, settings: dict[str, Any]
) -> Selection:
    """The model with the adapter and, of a classifier, a copy of the head to train; the base stays as it was.

    What PEFT draws it draws from torch's global generator, which is put back.
    """
    if getattr(model, "is_quantized", False):
        raise UnsupportedModel(
            f"{type(model).__name__} is quantised: attnlens trains in float32. Start from the unquantised base."
        )
    config.task_type = _task(options)  # pyright: ignore[reportAttributeAccessIssue]
    heads, size = _head_modules(model) if config.task_type in NEW_HEAD else [], len(head_parameters(model))
    config.modules_to_save = list(heads) or None  # pyright: ignore[reportAttributeAccessIssue]
    name = str(model.name_or_path)
    where = str(Path(name).resolve()) if Path(name).is_dir() else name
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT 0.21.2 asks for a property that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            torch.manual_seed(seed)
            wrapped = get_peft_model(model, config)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UnsupportedModel(f"{type(model).__name__} takes no {config.peft_type} adapter: {reason}") from error
    assert isinstance(wrapped, PeftModel)
    # PEFT has lengthened the list by names that the model lacks.
    config.modules_to_save = list(heads) or None  # pyright: ignore[reportAttributeAccessIssue]
    config.base_model_name_or_path = ""  # PEFT asks the hub at every save for a base that is named
    if isinstance(getattr(config, "target_modules", None), set):
        settings = settings | {"targets": sorted(config.target_modules)}  # pyright: ignore[reportAttributeAccessIssue]
    trained = frozenset(name for name, parameter in wrapped.named_parameters() if parameter.requires_grad)
    assert sum(".modules_to_save." in name for name in trained) == (size if heads else 0)

    def save(folder: Path) -> None:
        _save(wrapped, folder, where, merge=bool(options.merge))

    return Selection(trained, settings, model=wrapped, save=save)


def _save(wrapped: PeftModel, folder: Path, base: str, *, merge: bool) -> None:
    """A plain PEFT directory that names its base, or the merged model; the run is over: merging is not undone."""
    if merge:
        # PEFT 0.21.2 cannot unload a trained copy of a module that is no single layer, as BERT's pooler.
        for name, module in list(wrapped.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                wrapped.set_submodule(name, module.modules_to_save["default"])
        wrapped.merge_and_unload().save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        return
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # a form that nobody has filled in


def _task(options: TrainOptions) -> str | None:
    """What PEFT calls the task; None where it has no name for it."""
    assert options.task is not None
    return TASKS[options.task].peft or None


def _head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the outermost modules that make up the head."""
    head = head_parameters(model)
    found = list[str]()
    for name, module in model.named_modules():
        own = {f"{name}.{part}" for part, _ in module.named_parameters()}
        if own and own <= head and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return found


def _has_conv1d(model: PreTrainedModel) -> bool:
    """Whether the matrices are stored (in, out), as GPT-2 stores them."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def _matrices(model: PreTrainedModel, role: Iterable[str]) -> list[str]:
    """Names of the linear layers of the backbone that have one of these roles, in order of computation."""
    backbone = f"{model.base_model_prefix}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(backbone)
        and module_of(f"{name.removeprefix(backbone)}.weight") in role
    ]


def _attention(model: PreTrainedModel, roles: Iterable[str]) -> list[str]:
    found = _matrices(model, roles)
    if not found:
        raise UnsupportedModel(
            f"{type(model).__name__}: found no query, key or value projections to adapt. Use method 'full' or 'head'."
        )
    return found


def _feedforward(model: PreTrainedModel) -> list[str]:
    """The last matrix of each block's feed-forward layer: it reads the inner activations."""
    names = {id(module): name for name, module in model.named_modules()}
    inner = set(_matrices(model, ("feed-forward",)))
    blocks = [[names[id(part)] for part in block.modules()] for block in transformer_blocks(model)]
    return [[name for name in block if name in inner][-1] for block in blocks]


def _suffixes(model: PreTrainedModel, wanted: list[str]) -> list[str]:
    """The shortest endings of the wanted names that no other module's name has: PEFT looks for endings."""
    others = [f".{name}" for name, _ in model.named_modules() if name not in wanted]
    found = dict[str, None]()
    for name in wanted:
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        found[next(end for end in endings if not any(other.endswith(f".{end}") for other in others))] = None
    return list(found)
