"""Every model type of transformers' text mappings, tiny and random, and what `record` makes of each.

A type is `exact` where statistics under `record` equal those of the model's own eager weights, reduced by the slow
reference, on a batch padded left and one padded right, and the output is the model's own; `refused` where attnlens says
that it cannot measure it; `failed` in every other case. Run it: python -m tests.zoo [model types].
"""

import gc
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from attnlens.checkpoints.proof import PLAIN, TWO_STACKS, eager_output, prove
from attnlens.checkpoints.record import record
from attnlens.checkpoints.switch import off_interface
from attnlens.checkpoints.tape import Tape
from attnlens.core.errors import UnsupportedModel
from tests.reference import of_weights
from tests.shrunk import OVERRIDES, SMALL

MAPPINGS = {
    "causal LM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "masked LM": "MODEL_FOR_MASKED_LM_MAPPING",
    "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
}
STATISTICS = ("entropy", "max_weight", "renyi2", "received", "received_mean")
TOLERANCE, OUTPUT = 2e-5, 1e-5
MOST_PARAMETERS = 30_000_000
NOT_TEXT = re.compile(r"whisper|vision|audio|acoustic|speech|seamless|image|video|vq|fuyu|encodec")


@dataclass(frozen=True)
class Outcome:
    """What became of a model type. error: largest relative error of a statistic; output: of the output."""

    model_type: str
    task: str
    status: str
    route: str = ""
    error: float = float("nan")
    output: float = float("nan")
    reason: str = ""


class NotBuilt(Exception):
    """Why a model type is not built here."""


def model_types() -> Iterator[tuple[str, str]]:
    """(model type, task): each type once, with the first mapping that has it."""
    seen = set()
    for task, mapping in MAPPINGS.items():
        for name in getattr(modeling_auto, f"{mapping}_NAMES"):
            if name not in seen:
                seen.add(name)
                yield name, task


def built(name: str, task: str) -> PreTrainedModel:
    """A tiny random model without its head, in evaluation mode; NotBuilt says why there is none."""
    kind = CONFIG_MAPPING[name]
    parts = [part for part in _parts(kind) if NOT_TEXT.search(part)]
    if parts or NOT_TEXT.search(kind.__name__.casefold()):
        raise NotBuilt("out of scope: not text" + (f" alone ({parts[0]})" if parts else ""))
    config = shrunk(name, kind)
    classes = getattr(modeling_auto, MAPPINGS[task])[type(config)]
    architecture = classes[0] if isinstance(classes, tuple) else classes
    if "input_ids" not in {architecture.main_input_name, *_inputs(architecture)}:
        raise NotBuilt(f"out of scope: not text ({architecture.main_input_name})")
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in architecture(config).parameters())
    if size > MOST_PARAMETERS:
        raise NotBuilt(f"the shrinker leaves {size:,} parameters")
    torch.manual_seed(0)
    model = architecture(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # wide, so that attention is far from uniform
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return getattr(model, "base_model", model)


def _parts(kind: Any) -> list[str]:
    """Names of the configs inside a config, at any depth."""
    inside = getattr(kind, "sub_configs", {})
    return [*inside, *(name for part in inside.values() for name in _parts(part))]


def _inputs(architecture: Any) -> list[str]:
    return list(architecture.forward.__annotations__)


def shrunk(name: str, kind: Any) -> Any:
    """A config of the model type with few of everything."""
    try:
        plain = kind()
        known = {*plain.to_dict(), *getattr(plain, "attribute_map", {})}
    except Exception:  # some defaults do not fit each other
        known = {*kind.__init__.__annotations__, *getattr(kind, "__annotations__", {})}
    settings = {key: value for key, value in SMALL.items() if key in known}
    if "kv_lora_rank" in known and "num_key_value_heads" in settings:  # latent attention has no fewer key heads
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    config = kind(**settings | OVERRIDES.get(name, {}))
    for part in getattr(kind, "sub_configs", {}):
        inner = getattr(config, part, None)
        for key, value in SMALL.items():
            if hasattr(inner, key):
                setattr(inner, key, value)
    for token, number in {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}.items():
        if not isinstance(getattr(config, token, None), int) or getattr(config, token) >= SMALL["vocab_size"]:
            setattr(config, token, number)
    return config


def batch(model: PreTrainedModel, side: str) -> dict[str, torch.Tensor]:
    """Three texts of 7, 5 and 4 tokens, padded on one side; for an encoder–decoder shorter ones to write, too."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for prefix, lengths in {"": (7, 5, 4), "decoder_": (5, 3, 4)}.items():
        if prefix and not model.config.is_encoder_decoder:
            break
        ids = torch.randint(10, SMALL["vocab_size"] - 10, (3, max(lengths)), generator=generator)
        places = torch.arange(max(lengths))
        ends = torch.tensor(lengths)[:, None]
        mask = (places < ends if side == "right" else places >= max(lengths) - ends).long()
        found |= {f"{prefix}input_ids": ids.masked_fill(mask == 0, 1), f"{prefix}attention_mask": mask}
    return found


def outcome(name: str, task: str) -> Outcome:
    """What `record` makes of a model type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = built(name, task)
        except NotBuilt as error:
            status = "out of scope" if str(error).startswith("out") else "not built"
            return Outcome(name, task, status, reason=str(error))
        except Exception as error:
            return Outcome(name, task, "not built", reason=_line(error))
        try:
            return _judged(model, name, task)
        except NotBuilt as error:
            return Outcome(name, task, "not built", reason=str(error))
        except UnsupportedModel as error:
            return Outcome(name, task, "refused", reason=_line(error))
        except Exception as error:
            return Outcome(name, task, "failed", reason=_line(error))


def _line(error: Exception) -> str:
    return f"{'' if isinstance(error, UnsupportedModel) else type(error).__name__ + ': '}{' '.join(str(error).split())}"


def _judged(model: PreTrainedModel, name: str, task: str) -> Outcome:
    """Outputs in float32; statistics in float64, where the model can compute in it."""
    inputs = {side: batch(model, side) for side in ("left", "right")}
    try:
        with torch.no_grad():
            plain = {side: model(**inputs[side])[0] for side in inputs}
    except Exception as error:
        raise NotBuilt(f"its own forward pass fails: {_line(error)}") from error
    prove(model)
    note, output = "", max(_output(model, inputs[side], plain[side], exact=False) for side in inputs)
    if output > OUTPUT:
        output = max(_output(model, inputs[side], plain[side], exact=True) for side in inputs)
        note = "the output is the model's own bit for bit with exact=True alone: rounding grows in it"
    errors = [0.0]
    route = "interface" if off_interface(model) is None else "weights"
    double = _computes(model.double(), inputs.values())
    for tensors in inputs.values():
        with torch.no_grad(), record(model if double else model.float(), STATISTICS, exact=bool(note)) as tape:
            model(**tensors)
        errors += _errors(model, tensors, tape)
    status = "exact" if max(errors) <= TOLERANCE and output <= OUTPUT else "failed"
    reason = note if status == "exact" else "statistics differ from those of the eager weights, or the output does"
    return Outcome(name, task, status, route, max(errors), output, reason)


def _output(model: PreTrainedModel, inputs: dict[str, torch.Tensor], plain: torch.Tensor, *, exact: bool) -> float:
    """How far the output under `record` is from that without it, on tokens that are no padding."""
    with torch.no_grad(), record(model, STATISTICS, exact=exact):
        recorded = model(**inputs)[0]
    real = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    rows = real if recorded.shape[:2] == real.shape else ...
    return _gap(recorded[rows].numpy(), plain[rows].numpy())


def _computes(model: PreTrainedModel, inputs: Iterable[dict[str, torch.Tensor]]) -> bool:
    """Whether the model runs eagerly in its dtype, and comes to numbers: some mask with what float32 calls −∞."""
    try:
        with torch.no_grad():
            outputs = [eager_output(model, tensors)[0] for tensors in inputs]
    except (RuntimeError, TypeError):
        return False
    return all(output.dtype == model.dtype and bool(output.isfinite().all()) for output in outputs)


def _errors(model: PreTrainedModel, inputs: dict[str, torch.Tensor], tape: Tape) -> list[float]:
    """How far each statistic of each site is from that of the eager weights."""
    with torch.no_grad():
        eager = eager_output(model, inputs)
    errors = []
    for (stack, kind), (field, queries, keys) in (TWO_STACKS if model.config.is_encoder_decoder else PLAIN).items():
        shape = inputs[queries].shape[1], inputs[keys].shape[1]
        weights = [each for each in getattr(eager, field) if isinstance(each, torch.Tensor) and each.shape[2:] == shape]
        part = tape.select(stack=stack, kind=kind) if stack else tape
        masks = (inputs[queries].bool().numpy(), inputs[keys].bool().numpy())
        for layer, site in enumerate(weights):
            wanted = of_weights(site.double().numpy(), *masks)
            errors += [_gap(part[name][:, layer].numpy(), wanted[name]) for name in STATISTICS]
    return errors


def _gap(left: np.ndarray, right: np.ndarray) -> float:
    """Largest difference in units of the largest value; what one has no number for, the other must not have either."""
    if left.shape != right.shape or (np.isnan(left) != np.isnan(right)).any():
        return float("inf")
    if np.isnan(right).all():
        return 0.0
    return float(np.nanmax(np.abs(left - right)) / max(1.0, np.nanmax(np.abs(right))))


def outcomes(names: Sequence[str] = ()) -> Iterator[Outcome]:
    """Of these types, or of all."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for name, task in model_types():
        if not names or name in names:
            yield outcome(name, task)
            gc.collect()


if __name__ == "__main__":
    for found in outcomes(sys.argv[1:]):
        print(json.dumps(asdict(found)), flush=True)
