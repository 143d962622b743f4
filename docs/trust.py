"""Writes docs/trust.md: what becomes of bad input and of faults, from the lists that the tests go through.

Usage: python docs/trust.py. A test holds the page to what this writes, and the tests named in it to exist.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.cli.test_bad_files import LINES  # noqa: E402 - the repository's tests are importable from its root alone
from tests.cli.test_bad_input import FINETUNE, REPORT  # noqa: E402 - as above
from tests.text.test_corpus import FAULTS as TEXTS  # noqa: E402 - as above

# What goes wrong, what becomes of it, and the test that makes it happen.
FAULTS = (
    (
        "`report` is killed (SIGKILL) at any part",
        "the same command goes on; the same tables",
        "test_a_killed_run_resumes_and_gives_the_same_tables",
    ),
    (
        "`report` is killed while `--force` replaces a report",
        "the old report comes back",
        "test_a_report_that_a_kill_left_aside_comes_back",
    ),
    (
        "`report` is killed in its last moment",
        "leftovers are tidied away, the report is complete",
        "test_what_a_kill_in_the_last_moment_left_is_tidied",
    ),
    (
        "`report` is interrupted (Ctrl-C)",
        "exit 130 in a line; measured parts are kept",
        "test_an_interrupt_leaves_without_a_traceback_and_keeps_the_parts",
    ),
    (
        "`report` is interrupted before the first part",
        "exit 130; nothing is left",
        "test_an_interrupt_before_the_first_part_leaves_nothing",
    ),
    (
        "a second `report` writes the same folder",
        "the second is refused, the first does not notice",
        "test_two_runs_do_not_write_one_folder",
    ),
    (
        "one of several processes lacks room",
        "all end with one line; written parts are kept",
        "test_two_processes_write_the_tables_of_one",
    ),
    (
        "memory does not hold a batch",
        "it is halved until it fits, and says so (CKA, which compares within a batch, moves a little)",
        "test_a_batch_that_memory_does_not_hold_is_halved",
    ),
    (
        "memory does not hold one text",
        "one line that says what to shorten",
        "test_one_text_that_memory_does_not_hold_is_an_error_that_says_what_to_do",
    ),
    (
        "writing a file of a report fails",
        "the old file stays, no half is left",
        "test_a_failed_write_leaves_the_old_file_and_nothing_else",
    ),
    (
        "weights hold NaN or infinity",
        "refused, with the name of the first",
        "test_weights_that_are_no_numbers_name_the_first",
    ),
    (
        "`finetune` is killed at any step",
        "`--resume` ends with the bits of an undisturbed run",
        "test_a_resumed_run_ends_as_an_undisturbed_one",
    ),
    (
        "`finetune` is killed while it saves",
        "`--resume` goes on from the save before",
        "test_a_run_killed_while_it_saves_goes_on",
    ),
    (
        "the disk is full while `finetune` saves",
        "one line; the earlier checkpoint is kept",
        "test_a_full_disk_keeps_the_earlier_checkpoint",
    ),
    (
        "the loss is no number any more",
        "the best step before it is the checkpoint",
        "test_a_loss_that_is_no_number_keeps_the_best_step",
    ),
    ("a second `finetune` writes the same folder", "the second is refused", "test_two_runs_do_not_write_one_output"),
    (
        "`study` is killed",
        "finished cells are never run again; the same numbers",
        "test_a_kill_and_the_number_of_processes_change_no_number",
    ),
    (
        "a process of `study` vanishes",
        "its cell is told as failed, with the signal",
        "test_a_process_that_vanished_is_told_with_its_signal",
    ),
    ("a second `study` writes the same folder", "the second is refused", "test_a_second_run_at_once_is_refused"),
    ("any bytes in a weight file or a file of texts", "read as what it says, or one line", "test_any_safetensors_file"),
)


def page() -> str:
    """The whole page."""
    lines = [(f"`attnlens {line}`", message) for line, message in (*REPORT, *FINETUNE, *LINES)]
    texts = [(f"{name} ({file})", message) for name, (file, _, message) in TEXTS.items()]
    parts = [
        "# Files of strangers, and faults",
        "Checkpoints come from strangers and runs last for hours. Written by `docs/trust.py` from the lists that the "
        "tests go through.",
        "## What loading never does",
        "\n".join(
            f"- {line}"
            for line in (
                "It runs no code of a file: safetensors first; `.pt`, `.pth`, `.bin` and `.ckpt` by torch's loader of "
                "plain tensors alone, and a file that names code is refused with its name.",
                "It fetches no code from the hub: `trust_remote_code` is off, everywhere, and there is no switch.",
                "It reads nothing that a header merely claims: headers are checked against the size of the file, "
                "compressed archives are refused, and an index of shards may name no file outside its folder.",
                "It follows the data path of a training record only where that file's SHA-256 is the record's.",
                "What a file is called or says reaches pages, LaTeX, figures and the terminal as text: escaped in "
                "HTML under a policy that admits no script but ours, and without control characters.",
            )
        ),
        f"## Bad input: {len(lines) + len(texts)} cases",
        "One line on stderr, exit 1, nothing on stdout, nothing written. `--debug` before the command shows where it "
        "came from.",
        table(("command", "says"), lines),
        "Files of texts:",
        table(("file", "says"), texts),
        f"## Faults: {len(FAULTS)} cases",
        table(("fault", "outcome", "test"), [(fault, outcome, f"`{test}`") for fault, outcome, test in FAULTS]),
        "`make fuzz` tries 100,000 files of each kind with any bytes; the ordinary tests try some hundreds.",
    ]
    return "\n\n".join(parts) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table; its cells hold no line break and no bar of their own."""
    cells = [[" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells))


if __name__ == "__main__":
    (HERE / "trust.md").write_text(page(), "utf-8")
