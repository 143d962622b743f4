"""`attnlens report`: base against tuned, from checkpoints to a folder with page, figures and tables."""

from pathlib import Path
from typing import Annotated

import typer

from attnlens.cli.finetune import DATA, TRUST


def report(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="BASE TUNED [TUNED …], or one TUNED that names its base: folders, adapters, files, hub ids."
        ),
    ],
    data: Annotated[Path | None, typer.Option(help=DATA)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the report.")] = None,
    salience: Annotated[str | None, typer.Option(help="Which words count, comma-separated: spans,keyness,…")] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Terms that matter, one a line; for --salience lexicon.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A third model; for --salience leave_one_out, attribution or input_x_gradient.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most texts, spread over documents.")] = 200,
    max_length: Annotated[int, typer.Option(min=3, help="Most tokens of a text.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in one forward pass.")] = 16,
    rows: Annotated[str | None, typer.Option(help="Whose attention counts: cls, last, content or completion.")] = None,
    memory: Annotated[float, typer.Option(help="GiB for the base's queries and keys of one batch.")] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling and resampling.")] = 0,
    text_column: Annotated[str | None, typer.Option(help="Column that holds the text.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="Column that holds the completion.")] = None,
    messages_column: Annotated[str | None, typer.Option(help="Column that holds the conversation.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column that holds the label.")] = None,
    document_column: Annotated[str | None, typer.Option(help="Column that names the document.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto spreads over all GPUs.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default as stored.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Folder or hub id with the config.json of single weight files.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id with the tokenizer of such files.")] = None,
    null: Annotated[
        list[Path] | None, typer.Option(help="A shuffled twin: the same training on shuffled labels. Repeatable.")
    ] = None,
    seeds: Annotated[
        list[Path] | None, typer.Option(help="The same training from another seed; six runs in all. Repeatable.")
    ] = None,
    knockout: Annotated[
        bool, typer.Option("--knockout", help="Hide the marked words from attention: do the outputs rely on them?")
    ] = False,
    noise_band: Annotated[int, typer.Option(min=0, help="Draws of random weight noise to set beside; 19 will do.")] = 0,
    no_text: Annotated[bool, typer.Option("--no-text", help="Keep example texts out of the report.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another run's report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what tuning did to attention and layers, test it, and write the report.

    Example: attnlens report base.ckpt tuned.ckpt --data eval.jsonl
    """
    from attnlens.cli import terminal
    from attnlens.show.run import ReportOptions, run_report
    from attnlens.show.tables import summary

    terminal.quiet()
    columns = terminal.named(
        text=text_column,
        prompt=prompt_column,
        completion=completion_column,
        messages=messages_column,
        label=label_column,
        document=document_column,
    )
    with terminal.progress("Measuring", "Further passes") as (measuring, further):
        options = ReportOptions(
            data=data,
            output=output,
            salience=None if salience is None else tuple(name.strip() for name in salience.split(",")),
            lexicon=lexicon,
            encoder=encoder,
            limit=limit,
            max_length=max_length,
            batch_size=batch_size,
            rows=rows,
            memory=memory,
            seed=seed,
            text=not no_text,
            columns=columns,
            device=device,
            dtype=dtype,
            config=config,
            tokenizer=tokenizer,
            force=force,
            trust_remote_code=trust_remote_code,
            null=tuple(null or ()),
            seeds=tuple(seeds or ()),
            knockout=knockout,
            noise_band=noise_band,
            progress=measuring,
            further=further,
            announce=terminal.announce,
        )
        result = run_report(checkpoints, options)
    if as_json:
        terminal.print_json({**summary(result.comparison), "report": str(result.page)})
        return
    if result.was_complete:
        terminal.announce(f"{result.directory} is already complete: nothing was measured again.")
    terminal.print_answer(result.comparison)
    terminal.print_paths(result.page)
