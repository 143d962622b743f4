"""The model a run starts from: the base's backbone with the head of the task, and its tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from attnlens.checkpoints.blocks import head_parameters
from attnlens.checkpoints.config import first_line
from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.load import longest_input
from attnlens.checkpoints.remote_code import check_code, faults, own_model, trusted
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.source import check_hub, locate
from attnlens.core.errors import CheckpointError, TrainingError, UnsupportedModel

Loaded = TypeVar("Loaded")
Problem = Literal["single_label_classification", "multi_label_classification"]
LONGEST = 512  # tokens of a text that are read unless `max_length` says otherwise


@dataclass(frozen=True)
class Base:
    """A base ready to be trained; `path` is its directory (home as ~) or hub id, `directory` holds its files.

    labels: of a classifier, in the order of its head.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    name: str
    directory: Path
    new_parameters: tuple[str, ...]
    labels: tuple[str, ...] = ()


def load_classifier(
    base: str | Path,
    labels: tuple[str, ...],
    problem: Problem = "single_label_classification",
    auto: Any = AutoModelForSequenceClassification,
) -> Base:
    """Load `base` with a head for `labels`, in float32: steps of 1e-5 are lost in bfloat16 weights.

    A head that the base has for these very labels is kept, with their order; otherwise one is drawn from torch's global
    generator, also where the base has another of that size. A backbone weight that is missing or of another shape is an
    error: the model would train from noise.
    """
    source, path, tokenizer, config = _parts(base)
    _agree_on_padding(tokenizer, config)
    had, kind = tuple((config.id2label or {}).values()), config.architectures
    same = sorted(had) == sorted(labels) and config.problem_type in (None, problem)
    ordered = had if same else labels
    config.id2label = dict(enumerate(ordered))
    config.label2id = {label: number for number, label in enumerate(ordered)}
    config.problem_type = problem
    model, new = _model(auto, source, path, config)
    absent = sorted(new - head_parameters(model))
    if absent:
        raise CheckpointError(
            f"{path} lacks {len(absent)} weights of the backbone that its config.json describes (first: {absent[0]})."
        )
    if not same or kind != [type(model).__name__]:
        new |= _redrawn(model, len(ordered), new)
    return Base(model, tokenizer, path, Path(path).name, _directory(source, path), tuple(sorted(new)), ordered)


def load_tagger(base: str | Path, labels: tuple[str, ...]) -> Base:
    """Load `base` with a head that tells the class of each token, as `load_classifier` does."""
    _, path, _, config = _parts(base)
    if config.is_encoder_decoder or not _has(AutoModelForTokenClassification, config):
        raise UnsupportedModel(
            f"token-classification needs an encoder or a decoder alone with a head for tokens, which {path} "
            f"({config.model_type}) is not: start from another model."
        )
    return load_classifier(base, labels, "single_label_classification", AutoModelForTokenClassification)


def load_masked_model(base: str | Path) -> Base:
    """Load `base` with its own head for masked tokens, in float32; tokenizer and config stay as they are."""
    source, path, tokenizer, config = _parts(base)
    if config.is_encoder_decoder or not _has(AutoModelForMaskedLM, config):
        raise UnsupportedModel(
            f"masked-lm needs an encoder with a head for masked tokens, which {path} ({config.model_type}) is not: "
            "start from an encoder, or use --task causal-lm."
        )
    if tokenizer.mask_token_id is None:
        raise UnsupportedModel(
            f"masked-lm needs a mask token, which the tokenizer of {path} lacks: start from a model that was trained "
            "with one."
        )
    model, new = _model(AutoModelForMaskedLM, source, path, config)
    _check_complete(path, new)
    return Base(model, tokenizer, path, Path(path).name, _directory(source, path), ())


def load_language_model(base: str | Path, reason: str) -> Base:
    """Load `base` with its own language-model head, in float32; tokenizer and config stay as they are.

    Refused: models that see the token they are to predict (encoders), with the `reason` why one is needed; and missing
    weights, those of the head included.
    """
    source, path, tokenizer, config = _parts(base)
    unfit = UnsupportedModel(
        f"{reason}, which {path} ({config.model_type}) is not: "
        "start from a decoder, give text and labels to train a classifier, or use --task masked-lm."
    )
    if config.is_encoder_decoder or not _has(AutoModelForCausalLM, config):
        raise unfit
    model, new = _model(AutoModelForCausalLM, source, path, config)
    if _sees_ahead(model):
        raise unfit
    _check_complete(path, new)
    return Base(model, tokenizer, path, Path(path).name, _directory(source, path), ())


def _check_complete(path: str, new: set[str]) -> None:
    if new:
        raise CheckpointError(
            f"{path} lacks {len(new)} weights of the language model that its config.json describes "
            f"(first: {min(new)}): start from a checkpoint that was saved with its language-model head."
        )


def _redrawn(model: PreTrainedModel, labels: int, new: set[str]) -> set[str]:
    """Draw the last layer of a head that stood for other classes; the names of its parameters."""
    body = {id(module) for module in model.base_model.modules()}
    drawn = set[str]()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in body and module.out_features == labels:
            if f"{name}.weight" in new:
                continue
            nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            drawn |= {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
    return drawn


def reading_length(base: Base, wanted: int | None, virtual: int = 0) -> int:
    """Tokens of a text that are read at once: what was asked for if the model reads as many, else at most 512.

    virtual: tokens that a method puts before the text, and that take up positions.
    """
    limit = longest_input(base.model, base.tokenizer) - virtual
    beside = f" beside {virtual} virtual tokens" if virtual else ""
    if limit < 1:
        raise TrainingError(f"{base.name} reads no text{beside}: ask for fewer --virtual-tokens.")
    if wanted is not None and wanted > limit:
        raise TrainingError(f"max_length={wanted} is more than {base.name} reads{beside}: at most {limit} tokens.")
    return wanted or min(LONGEST, limit)


def _locate(base: str | Path) -> tuple[str, str]:
    """What transformers is given, and what the record says: a resolved directory, or a hub id as it stands."""
    local = Path(base).expanduser()
    if local.is_dir():
        if not (local / CONFIG_NAME).is_file():
            raise CheckpointError(
                f"{home_free(local)} holds no {CONFIG_NAME}: needed a Hugging Face checkpoint directory."
            )
        Shelf(locate(local).files)  # a file that lies or names code is refused before anything reads it
        return str(local), home_free(local.resolve())
    if local.exists():
        raise CheckpointError(f"{home_free(local)} is a file: needed a Hugging Face checkpoint directory or a hub id.")
    if isinstance(base, Path) or str(base).startswith((".", "/", "~")) or str(base).count("/") > 1:
        raise CheckpointError(f"no checkpoint at {home_free(local)}: needed a Hugging Face directory or a hub id.")
    check_hub(str(base))
    return str(base), str(base)


def _parts(base: str | Path) -> tuple[str, str, PreTrainedTokenizerBase, PreTrainedConfig]:
    """What transformers is given, what the record says, tokenizer and config."""
    source, path = _locate(base)
    check_code(Path(source) if Path(source).is_dir() else source)
    tokenizer = _attempt(path, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=trusted()))
    if not tokenizer.is_fast:
        raise UnsupportedModel(f"{path} has no fast tokenizer (tokenizer.json): attnlens needs its character offsets.")
    config = _attempt(path, lambda: AutoConfig.from_pretrained(source, trust_remote_code=trusted()))
    return source, path, tokenizer, config


def _model(auto: Any, source: str, path: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """The model in float32, and the names of the parameters that the checkpoint lacks or has in another size."""
    kind = own_model(config, auto.__name__) or auto
    model, info = _attempt(
        path,
        lambda: kind.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,  # the class is known: what is left is code that generates text
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        ),
    )
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return model, new - {name for name, _ in model.named_buffers()}


def _has(auto: Any, config: PreTrainedConfig) -> bool:
    """Whether there is a class of this kind for the architecture."""
    return own_model(config, auto.__name__) is not None or type(config) in auto._model_mapping


def _directory(source: str, path: str) -> Path:
    return Path(str(_attempt(path, lambda: cached_file(source, CONFIG_NAME)))).parent


def _sees_ahead(model: PreTrainedModel) -> bool:
    """Whether another last token changes what is predicted before it."""
    tokens = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]])
    with torch.no_grad():
        first, second = model.eval()(input_ids=tokens).logits[:, :-1].float()
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-5)


def _attempt(path: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except faults() as error:
        raise CheckpointError(f"cannot load {path}: {first_line(error)}") from error


def _agree_on_padding(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Give tokenizer and config one padding token: decoders classify at the last token that is not padding.

    The first that the model has an embedding for: the tokenizer's, the config's, end of text, start of text.
    """
    text: Any = config.get_text_config()
    known = (tokenizer.pad_token_id, text.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    limit = min(len(tokenizer), text.vocab_size)
    usable = [index for index in known if isinstance(index, int) and 0 <= index < limit]
    if not usable:
        raise UnsupportedModel(
            "the base's tokenizer has no token to pad with: needed a pad, eos or bos token in the model's vocabulary."
        )
    if usable[0] != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0])
    text.pad_token_id = config.pad_token_id = usable[0]
