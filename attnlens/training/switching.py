"""The layer controller inside the Trainer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.training.alf import LayerController, Plan
from attnlens.training.overlap import inverse_rms
from attnlens.training.processes import agreed


class LayerSwitching(TrainerCallback):
    """Runs a controller for `plan`(steps of the run); its choices and phases are there to be read afterwards.

    It starts once the Trainer has built the optimizer, which takes only what requires a gradient at that moment: a
    block frozen earlier would never move again. Evaluations that fall into a probe wait for its end: all blocks have
    moved then, and a checkpoint would keep what the rollback is to undo.

    Several processes hold the same weights and measure the same; the first one's scores count all the same, since
    blocks that differ by one bit between devices would drift apart unseen.
    """

    controller: LayerController

    def __init__(self, plan: Callable[[int], Plan], model: PreTrainedModel):
        self.plan, self.model = plan, model
        self.rms = inverse_rms(model)  # of the base
        self._owed = False
        self._stopped: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """The controller's."""
        return self.controller.state()

    def restore(self, state: dict[str, Any]) -> None:
        """What the controller is to go on from."""
        self._stopped = state

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: Any,
    ):
        """Take over the blocks, all of which the optimizer holds."""
        names = head_parameters(self.model)
        head = [parameter for name, parameter in self.model.named_parameters() if name in names]
        blocks = [list(block.parameters()) for block in transformer_blocks(self.model)]
        in_parts = args.world_size * args.gradient_accumulation_steps > 1
        plan = replace(self.plan(state.max_steps), in_parts=in_parts)
        self.controller = LayerController(blocks, head, optimizer, plan, agree=agreed, state=self._stopped)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Count the step, while its learning rate is still that of the optimizer."""
        self.controller.step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Put an evaluation off until the probe is over."""
        self._owed |= control.should_evaluate
        control.should_evaluate = self._owed and not self.controller.probing
        self._owed &= self.controller.probing

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Leave no probe open, where training stopped at its beginning."""
        self.controller.finish()

    def phase_ended(self, step: int) -> bool:
        """Whether `step` was the last of a phase in which the chosen blocks trained."""
        *_, before, now = (None, None, *self.controller.phases)
        return before is not None and before.kind == "run" and now is not None and now.first == step + 1
