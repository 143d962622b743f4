"""The model a run starts from: a sequence classifier on the base's backbone, with its tokenizer."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import cached_file

from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.load import check_hub
from attnlens.core.errors import CheckpointError, UnsupportedModel
from attnlens.training.methods import head_parameters

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Base:
    """A base ready to be trained; `path` is its directory (home as ~) or hub id, `directory` holds its files."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    name: str
    directory: Path
    new_parameters: tuple[str, ...]


def load_base(base: str | Path, labels: tuple[str, ...]) -> Base:
    """Load `base` with a head for `labels`, in float32: steps of 1e-5 are lost in bfloat16 weights.

    The head's weights are drawn from torch's global generator where the base has none of that size. A backbone
    weight that is missing or of another shape is an error: the model would train from noise.
    """
    source, path = _locate(base)
    tokenizer = _attempt(path, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    if not tokenizer.is_fast:
        raise UnsupportedModel(f"{path} has no fast tokenizer (tokenizer.json): attnlens needs its character offsets.")
    config = _attempt(path, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))
    _agree_on_padding(tokenizer, config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    model, info = _attempt(
        path,
        lambda: AutoModelForSequenceClassification.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        ),
    )
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    absent = sorted(new - head_parameters(model) - {name for name, _ in model.named_buffers()})
    if absent:
        raise CheckpointError(
            f"{path} lacks {len(absent)} weights of the backbone that its config.json describes (first: {absent[0]})."
        )
    found = _attempt(path, lambda: cached_file(source, CONFIG_NAME))
    return Base(model, tokenizer, path, Path(path).name, Path(str(found)).parent, tuple(sorted(new)))


@contextmanager
def quiet():
    """Silence transformers' notices and progress bars: a new head is what was asked for."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens the model reads: what its positions and its tokenizer allow."""
    limits = [int(tokenizer.model_max_length)]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa counts positions from the padding index on, so that many rows are never reached.
        tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
        padding = [table.padding_idx for table in tables if isinstance(table, nn.Embedding)]
        limits.append(positions - max((index + 1 for index in padding if index is not None), default=0))
    return min(limits)


def _locate(base: str | Path) -> tuple[str, str]:
    """What transformers is given, and what the record says: a resolved directory, or a hub id as it stands."""
    local = Path(base).expanduser()
    if local.is_dir():
        if not (local / CONFIG_NAME).is_file():
            raise CheckpointError(
                f"{home_free(local)} holds no {CONFIG_NAME}: needed a Hugging Face checkpoint directory."
            )
        return str(local), home_free(local.resolve())
    if local.exists():
        raise CheckpointError(f"{home_free(local)} is a file: needed a Hugging Face checkpoint directory or a hub id.")
    if isinstance(base, Path) or str(base).startswith((".", "/", "~")) or str(base).count("/") > 1:
        raise CheckpointError(f"no checkpoint at {home_free(local)}: needed a Hugging Face directory or a hub id.")
    check_hub(str(base))
    return str(base), str(base)


def _attempt(path: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"cannot load {path} as a sequence classifier: {reason}") from error


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
