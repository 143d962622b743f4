"""The layer controller inside the Trainer."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from attnlens.core.errors import TrainingError
from attnlens.training.alf import LayerController, Plan
from attnlens.training.groups import head_parameters, transformer_blocks
from attnlens.training.overlap import inverse_rms


class LayerSwitching(TrainerCallback):
    """Runs a controller for `plan`(steps of the run); its choices and phases are there to be read afterwards.

    It starts once the Trainer has built the optimizer, which takes only what requires a gradient at that moment: a
    block frozen earlier would never move again. Evaluations that fall into a probe wait for its end: all blocks have
    moved then, and a checkpoint would keep what the rollback is to undo.
    """

    controller: LayerController

    def __init__(self, plan: Callable[[int], Plan], model: PreTrainedModel):
        self.plan, self.model = plan, model
        self.rms = inverse_rms(model)  # of the base
        self._owed = False

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
        if args.world_size > 1:
            raise TrainingError(
                f"{args.world_size} processes: blocks that are frozen and freed again would drift apart between them. "
                "Use one process, or method 'full' or 'last_k'."
            )
        names = head_parameters(self.model)
        head = [parameter for name, parameter in self.model.named_parameters() if name in names]
        blocks = [list(block.parameters()) for block in transformer_blocks(self.model)]
        self.controller = LayerController(blocks, head, optimizer, self.plan(state.max_steps))

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Count the step, while its learning rate is still that of the optimizer."""
        self.controller.step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Put an evaluation off until the probe is over."""
        self._owed |= control.should_evaluate
        control.should_evaluate = self._owed and not self.controller.probing
        self._owed &= self.controller.probing
