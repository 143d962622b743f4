"""The process of one cell: it ends with its study, tells how far it is, and keeps the reason of a failure."""

import json
import os
import pickle
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnlens.analysis.studies.work import Job

WATCHED = 1.0  # seconds between two looks at whether the study still runs, and between two lines of progress


def main() -> int:
    """Work on the job that comes through stdin; progress goes to stdout, a line each. Argument: the study's process.

    The study may end while libraries are still imported, which takes seconds: the watch over it begins before.
    """
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    # What a library prints must not mix with the lines that the study reads.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job: Job = pickle.load(sys.stdin.buffer)  # of our own parent, through a pipe
    import torch

    from attnlens.analysis.studies.cells import FAILED
    from attnlens.analysis.studies.work import carry_out
    from attnlens.checkpoints.remote_code import trusting
    from attnlens.checkpoints.seal import write_facts

    torch.set_num_threads(job.plan.file.threads)
    last = [0.0]

    def progress(stage: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > WATCHED or done == total:
            last[0] = time.monotonic()
            lines.write(f"{json.dumps([stage, done, total])}\n")
            lines.flush()

    try:
        with trusting(job.plan.trusted):
            carry_out(job, progress)
    except Exception as error:  # one cell's fault is not the study's
        told = " ".join(str(error).split()) or type(error).__name__
        facts = {"key": job.plan.key(job.cell), "error": told, "traceback": traceback.format_exc().splitlines()}
        write_facts(job.folder / FAILED, facts)
        return 1
    return 0


def _end_with(study: int) -> None:
    """End this process when the study's has ended, however: two must never work on one cell."""
    while os.getppid() == study:
        time.sleep(WATCHED)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
