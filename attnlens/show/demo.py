"""The demonstration: a real pretrained encoder, clauses we wrote, fine-tuning by ALF with its null, report."""

from collections.abc import Callable
from pathlib import Path

from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.packaged import encoder
from attnlens.show.run import ReportOptions, ReportResult, run_report
from attnlens.text.embedded import embedded
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune
from attnlens.training.twin import twin_path

# Enough for a held-out accuracy above .95 on the embedded corpus (data/README.md).
STEPS, MAX_LENGTH, METHOD, SEED = 160, 128, "alf", 0
NAMES = ("all-MiniLM-L6-v2", "ALF", "ALF on shuffled labels")
CAVEAT = (
    "A check of the instrument on text we wrote; the deciding words are known, so a shift towards them is expected. "
    "It says nothing about ALF or real contracts."
)


def run_demo(
    output: str | Path,
    *,
    training: Callable[..., None] | None = None,
    measuring: Callable[[int, int], None] | None = None,
    further: Callable[[int, int], None] | None = None,
) -> ReportResult:
    """Fine-tune all-MiniLM-L6-v2 on the embedded clauses into OUTPUT/tuned.ckpt and report into OUTPUT/report.

    Beside it lies its shuffled twin, tuned.null.ckpt: the same training on labels that changed places among the
    clauses. What an earlier run finished is taken as it stands. training, measuring, further: progress, (done, total).
    """
    base, checkpoint = encoder(), Path(output) / "tuned.ckpt"
    twin = twin_path(checkpoint)
    data = embedded("contracts_train")
    if read_record(checkpoint) is None or read_record(twin) is None:
        options = TrainOptions(max_steps=STEPS, max_length=MAX_LENGTH, null_twin=True, resume=True, progress=training)
        finetune(base, data, method=METHOD, output=checkpoint, seed=SEED, options=options)
    return run_report(
        [base, checkpoint, twin],
        ReportOptions(
            data=embedded("contracts_eval"),
            output=Path(output) / "report",
            max_length=MAX_LENGTH,
            names=NAMES,
            notes=(CAVEAT,),
            knockout=True,
            progress=measuring,
            further=further,
        ),
    )
