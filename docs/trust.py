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
    (
        "`report` is killed at random moments",
        "goes on; page, figures, tables and numbers are the same bytes",
        "test_report_goes_on_after_kills",
    ),
    (
        "`finetune` is killed at random moments",
        "`--resume` goes on; the same weights, records but for the clock",
        "test_finetune_goes_on_after_kills",
    ),
    (
        "`study` is killed at random moments",
        "goes on; the same numbers in every cell",
        "test_study_goes_on_after_kills",
    ),
    (
        "`diff` is killed at random moments",
        "no half table; the same bytes the next time",
        "test_diff_ends_the_same_after_kills",
    ),
    (
        "`diff` is killed between its tables",
        "the same command completes them; another one is refused",
        "test_tables_that_a_kill_left_half_are_written_again",
    ),
    (
        "a byte of a checkpoint changes on the disk",
        "one line that names the file",
        "test_a_changed_byte_in_a_checkpoint",
    ),
    (
        "a byte of a stored comparison changes",
        "one line that names the file",
        "test_a_changed_byte_in_a_stored_comparison",
    ),
    (
        "a byte of the numbers behind a complete report changes",
        "`report` says so and makes it again",
        "test_a_report_in_which_a_byte_changed_is_made_again",
    ),
    (
        "a byte of a measured part changes",
        "the part is measured again",
        "test_a_changed_byte_in_a_part_of_a_report",
    ),
    (
        "a byte of an interrupted training changes",
        "it goes on from the step before, says so, and ends with the same bits",
        "test_a_changed_byte_in_an_interrupted_training",
    ),
    (
        "all steps of an interrupted training are damaged",
        "one line before any work; nothing is removed",
        "test_a_training_of_which_no_step_is_whole",
    ),
    (
        "a file of a stored comparison goes missing",
        "one line that names it",
        "test_a_file_that_is_missing_in_a_stored_comparison",
    ),
    (
        "a byte of a cell of a study changes",
        "one line that says what to remove",
        "test_a_changed_byte_in_the_facts_of_a_study",
    ),
    (
        "a folder takes no files",
        "one line, before any work",
        "test_a_folder_that_takes_no_files",
    ),
    (
        "the report's folder vanishes amid the measuring",
        "one line, nothing is left",
        "test_an_output_that_vanishes",
    ),
    (
        "weights vanish between looking and loading",
        "one line that names the file",
        "test_weights_that_vanish",
    ),
    (
        "a checkpoint of an architecture of its own",
        "one line that names its code; `--trust-remote-code` runs it, and says so first",
        "test_code_that_nobody_asked_for_does_not_run",
    ),
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
                "plain tensors alone, and a file that names code is refused with its name. Arrays and stores are read "
                "without pickles. A test plants code in each form and sees that a naive loader runs it and we do not.",
                "It believes no file of ours that changed: `SHA256SUMS` in checkpoints, comparisons and steps of a "
                "training are checked before use, and `sha256sum --check SHA256SUMS` says the same. Who edits such a "
                "file removes the list.",
                "It runs no code that a checkpoint brings for an architecture of its own unless `--trust-remote-code` "
                "asks for it; in Python that is `trust_remote_code` of the options, or `with trusting():` of "
                "`attnlens.checkpoints.remote_code` around `load`. Each checkpoint then says first which classes of "
                "which modules run, and its provenance keeps them with the SHA-256 of the modules; changed code is "
                "another report, another training, another study. Without it such a checkpoint is refused, also where "
                "its weights would fit a known architecture. Where transformers has a class of the very name, that one "
                "is taken, and a line says so. Code for a part of a model is refused, code that generates text never "
                "runs, and `diff` reads weights without any code.",
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
        "`make fuzz` tries 100,000 files of each kind with any bytes, changes 200 bytes in each file of ours, and "
        "kills each command 20 times; the ordinary tests try some hundreds, ten and two.",
    ]
    return "\n\n".join(parts) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table; its cells hold no line break and no bar of their own."""
    cells = [[" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells))


if __name__ == "__main__":
    (HERE / "trust.md").write_text(page(), "utf-8")
