"""Intermediate checkpoints of a run: what was trained, the Trainer's state, and that of the run's own parts.

A kill may come at any moment: a checkpoint counts once its `SHA256SUMS` is there, which is written last, and only then
is an older one removed. The best and the last stay.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.seal import SUMS, check_seal, seal
from attnlens.core.errors import CheckpointError, Damaged
from attnlens.training.processes import agreed

STATE, WEIGHTS = "state.json", "trained.safetensors"


class Stateful(Protocol):
    """A part of the run that goes on where it stopped; the state is made of plain JSON values."""

    def state(self) -> dict[str, Any]:
        """What has happened so far."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up again, before training begins."""
        ...


@dataclass(frozen=True)
class Kept:
    """A complete intermediate checkpoint; finished: training had ended there. seconds: spent until then."""

    folder: Path
    step: int
    finished: bool
    seconds: float
    parts: dict[str, Any]


def last_kept(run: Path) -> Kept | None:
    """The latest complete checkpoint in the folder of a run that no byte has changed in, nor in the best by then.

    One before the last gives the same run, and that is said. CheckpointError where there are some and all are damaged.
    """
    faults = list[str]()
    for step in steps_kept(run):
        folder = run / f"checkpoint-{step}"
        try:
            check_seal(folder, whole=True)
            best = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["best_global_step"]
            if best not in (None, step):
                _check_best(run / f"checkpoint-{best}")
            kept = Kept(folder, step, **json.loads((folder / STATE).read_text(encoding="utf-8")))
        except (Damaged, OSError) as error:
            faults.append(error.fault if isinstance(error, Damaged) else str(error))
            continue
        if faults:
            logging.getLogger("attnlens").warning(f"{faults[0]}: going on from step {step}")
        return kept
    if faults:
        raise CheckpointError(
            f"no step of the interrupted run is whole any more ({faults[0]}): --force without --resume begins anew"
        )
    return None


def steps_kept(run: Path) -> list[int]:
    """Steps of the complete checkpoints in the folder of a run, the latest first; their files are not looked at."""
    return sorted((int(path.parent.name.rpartition("-")[2]) for path in run.glob(f"checkpoint-*/{SUMS}")), reverse=True)


def _check_best(folder: Path) -> None:
    if not (folder / SUMS).is_file():
        raise Damaged(f"{home_free(folder)}, the best step, is missing", "begin anew")
    check_seal(folder, whole=True)


class Intermediate(TrainerCallback):
    """Has every evaluated step saved, completes what the Trainer saved, and removes what is no longer needed.

    Comes last of the callbacks: others may put an evaluation off.
    """

    def __init__(self, parts: Mapping[str, Stateful]):
        self.parts, self._begun = parts, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on this run, that before an interruption included."""
        return time.monotonic() - self._begun

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._begun = time.monotonic() - value

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """The best checkpoint lies in this folder, wherever that lay when the run was interrupted."""
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """A step that is judged is saved, and no other."""
        control.should_save = control.should_evaluate

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """All processes have saved when they meet here; the first makes the checkpoint count."""
        agreed(None)
        if not state.is_world_process_zero:
            return
        run = Path(str(args.output_dir))
        here, best = (run / f"checkpoint-{step}" for step in (state.global_step, state.best_global_step))
        facts = {
            "finished": control.should_training_stop,
            "seconds": self.seconds,
            "parts": {name: part.state() for name, part in self.parts.items()},
        }
        (here / STATE).write_text(json.dumps(facts), encoding="utf-8")
        seal(here)
        for other in run.glob("checkpoint-*"):
            if other not in {here, best}:
                # The mark goes first: what a kill leaves half removed must not count.
                (other / SUMS).unlink(missing_ok=True)
                shutil.rmtree(other)


class QuietTrainer(Trainer):
    """The Trainer, saving and loading what is trained, whatever kind of model holds it.

    Its own way differs between plain models, adapters and prompts, keeps frozen weights again and again, and cannot
    load prompts. names: the parameters that may move. finished: the run being resumed had ended, so that nothing is
    left but to load the best step; the Trainer would make another.
    """

    names: frozenset[str]
    finished: bool = False
    before_clipping: Any = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained."""
        if not self.args.should_save:
            return
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self._trained().items()},
            Path(output_dir) / WEIGHTS,
        )

    def _trained(self) -> dict[str, nn.Parameter]:
        assert isinstance(self.model, nn.Module)
        return {name: parameter for name, parameter in self.model.named_parameters() if name in self.names}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        values = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        for name, parameter in self._trained().items():
            parameter.data.copy_(values[name])

    def load_best(self) -> None:
        """Put the best step so far back into the model; CheckpointError where it was damaged since."""
        best = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"
        check_seal(best, whole=True)
        self._load_from_checkpoint(str(best))

    def _load_best_model(self) -> None:
        self.load_best()

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # Before the first step a learnt prompt is noise before the text: what is judged then is the base.
        base = self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()
        with base if self.state.global_step == 0 else nullcontext():
            return super()._evaluate(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.finished:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.before_clipping is not None:
            self.before_clipping()
        return super()._clip_grad_norm(model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            # torch's writer says of a full disk no more than in which line of its source it failed.
            reason = "the disk does not take it" if isinstance(error, RuntimeError) else reason
            raise OSError(f"the checkpoint of step {self.state.global_step}: {reason}") from error
