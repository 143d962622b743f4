"""What a model lost by being trained: base and tuned side by side on general text."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from attnlens.checkpoints.remote_code import own_model
from attnlens.core.errors import CorpusError, UnsupportedModel
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded
from attnlens.training.job import Job
from attnlens.training.language import right_padded
from attnlens.training.losses import IGNORED
from attnlens.training.masked import hide
from attnlens.training.observer import Observer, undisturbed
from attnlens.training.split import LANGUAGE, MASKED
from attnlens.training.work import Row

TEXTS = 200
BATCH = 16
ENTRIES = 2**27  # logits of one batch at most: half a GiB in float32
HEADS = {  # the end of an architecture's name → how it is loaded with its language-model head
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForPreTraining": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
}


@dataclass(frozen=True)
class _Pair:
    """Base and tuned with one head; task: what they predict (`LANGUAGE` or `MASKED`), None where nothing: reason."""

    base: nn.Module
    tuned: nn.Module
    task: str | None
    reason: str | None = None


class Forgetting(Observer):
    """Loss on general text before and after, KL(base‖tuned) of what is predicted, and drift of the hidden states.

    At most 200 texts (of a larger file a sample, of a long text the beginning). A classifier has no words to predict:
    where the base's checkpoint was saved with a language-model head, that head reads the backbone before and after.
    Measured once the training is over, for which a second copy of the base is loaded; its outputs are not kept.
    """

    key = "forgetting"

    def __init__(self, job: Job):
        self._job, self._device = job, torch.device("cpu")
        general = job.options.general
        if not isinstance(general, Corpus):
            general = read_corpus(embedded("probe") if general is None else Path(general).expanduser())
        general = general.sample(TEXTS, 0)
        ids = _read(job.base.tokenizer, [row.text for row in general], job.options.length)
        special = set(job.base.tokenizer.all_special_ids)
        self._texts = [row for row in ids if len(set(row) - special) and len(row) > 1]
        self._name = general.name
        if not self._texts:
            if job.options.general is not None:
                raise CorpusError(f"{general.name} holds no text with a token to predict: give other general text.")
            return
        # A model that reads no such text, or shows no hidden states, is better known now than after the training.
        with undisturbed(job.model):
            _states(job.model, right_padded([_plain(max(self._texts, key=len))]))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Remember the device."""
        self._device = args.device

    def facts(self) -> dict[str, Any]:
        """text, texts, tokens (predicted ones); loss_before, loss_after in nats, perplexities; kl in nats a token.

        drift: of each layer, the embeddings first, the mean over tokens of ‖h − h₀‖ / ‖h₀‖. reason: why losses and kl
        are None.
        """
        if not self._texts:
            names = ("tokens", "loss_before", "loss_after", "perplexity_before", "perplexity_after", "kl", "drift")
            reason = f"the base's tokenizer knows no word of {self._name}: give general text in its language"
            return {"text": self._name, "texts": 0, "task": None, **dict.fromkeys(names), "reason": reason}
        try:
            return self._measured(self._device)
        except torch.OutOfMemoryError:  # two models may be more than a device takes that was filled by training one
            return self._measured(torch.device("cpu"))

    def _measured(self, device: torch.device) -> dict[str, Any]:
        tuned = self._job.model
        with undisturbed(tuned):
            pair = _pair(self._job)
            try:
                pair.base.eval().to(device)
                pair.tuned.eval().to(device)
                drift, language, tokens = self._sums(pair, device)
            finally:
                tuned.cpu()
        before, after, divergence = (language / tokens).tolist() if tokens else (math.nan,) * 3
        found = {
            "loss_before": before,
            "loss_after": after,
            "perplexity_before": math.exp(min(before, 700.0)),
            "perplexity_after": math.exp(min(after, 700.0)),
            "kl": divergence,
        }
        return {
            "text": self._name,
            "texts": len(self._texts),
            "tokens": tokens or None,
            "task": pair.task,
            **{name: value if math.isfinite(value) else None for name, value in found.items()},
            "drift": [value if math.isfinite(value) else None for value in drift.tolist()],
            "reason": pair.reason,
        }

    def _sums(self, pair: _Pair, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Mean drift (L + 1,); sums of both losses and of the divergence (3,); number of predicted tokens."""
        tokenizer, tokens, read = self._job.base.tokenizer, 0, 0
        language = torch.zeros(3, dtype=torch.float64)
        drift: Tensor | float = 0.0
        rows = [
            hide(tokenizer, ids, [0, number]) if pair.task == MASKED else _plain(ids)
            for number, ids in enumerate(self._texts)
        ]
        vocabulary = len(tokenizer) if pair.task is not None else 1
        size = max(1, min(BATCH, ENTRIES // (vocabulary * max(map(len, self._texts)))))
        for start in range(0, len(rows), size):
            batch = {name: value.to(device) for name, value in right_padded(rows[start : start + size]).items()}
            (base, old), (tuned, new) = (_states(model, batch) for model in (pair.base, pair.tuned))
            real = batch["attention_mask"].bool()
            ratios = [(h[real] - h0[real]).norm(dim=1) / h0[real].norm(dim=1) for h0, h in zip(old, new, strict=True)]
            drift = drift + torch.stack([ratio.double().sum() for ratio in ratios]).cpu()
            read += int(real.sum())
            if pair.task is not None:
                shift = 1 if pair.task == LANGUAGE else 0
                wanted = batch["labels"][:, shift:]
                for row in range(len(wanted)):
                    keep = wanted[row] != IGNORED
                    before, after = (
                        logits[row, : wanted.shape[1]][keep].float().log_softmax(-1) for logits in (base, tuned)
                    )
                    language += compared(before, after, wanted[row][keep]).cpu()
                    tokens += int(keep.sum())
        assert isinstance(drift, Tensor)
        return drift / read, language, tokens


def compared(before: Tensor, after: Tensor, truth: Tensor) -> Tensor:
    """Sums over tokens: loss of base and of tuned, KL(base‖tuned): log-probabilities (N, V) twice, (N,) -> (3,).

    Hand example: base (1/2, 1/2), tuned (1/4, 3/4), truth the first → ln 2, ln 4, ½ ln 2 + ½ ln ⅔ = 0.1438.
    """
    losses = [-logs.gather(1, truth[:, None]).double().sum() for logs in (before, after)]
    divergence = (before.double().exp() * (before.double() - after.double())).sum()
    return torch.stack([*losses, divergence])


def _read(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> list[list[int]]:
    """Ids of the texts' beginnings; the tokenizer, which goes into the checkpoint, forgets that it was told to cut."""
    backend: Any = tokenizer.backend_tokenizer
    before = backend.truncation
    ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    if before is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(**before)
    return ids


def _plain(ids: list[int]) -> Row:
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}


def _states(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the hidden states of the text's tokens, (B, T, D) for the embeddings and each layer.

    An encoder–decoder's are those of its encoder, then of its decoder; virtual tokens stand before the text's.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = model(**inputs, output_hidden_states=True)
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    states = [state for name in names for state in getattr(output, name, None) or ()]
    length = inputs["input_ids"].shape[1]
    return output.logits, [state[:, -length:] for state in states]


def _pair(job: Job) -> _Pair:
    """Base and tuned model as far as they can be held against each other."""
    base = job.task.load(job.base.directory, job.data).model
    if job.task.language:
        return _Pair(base, job.model, job.task.name)
    config: Any = base.config
    stored: Any = type(config).from_pretrained(job.base.directory, name_or_path=str(job.base.directory))
    loader = next((HEADS[end] for name in stored.architectures or () for end in HEADS if name.endswith(end)), None)
    plain = _Pair(base, job.model, None, "the base's checkpoint has no language-model head, and a classifier's is new")
    if loader is None:
        return plain
    if loader is AutoModelForMaskedLM and job.base.tokenizer.mask_token_id is None:
        return _Pair(base, job.model, None, "the base's tokenizer has no mask token for its language-model head")
    if getattr(getattr(job.model, "active_peft_config", None), "is_prompt_learning", False):
        return _Pair(base, job.model, None, "the base's language-model head cannot read behind a learnt prompt")
    try:
        kind = own_model(stored, loader.__name__) or loader
    except UnsupportedModel:
        return plain
    before, info = kind.from_pretrained(
        job.base.directory, config=stored, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    if info["missing_keys"]:
        return plain
    backbone = job.base.model.base_model
    after: PreTrainedModel = copy.deepcopy(before, {id(before.base_model): backbone})
    after.tie_weights()  # as transformers would, had it loaded the tuned backbone under this head
    return _Pair(before, after, MASKED if loader is AutoModelForMaskedLM else LANGUAGE)
