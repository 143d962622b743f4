"""The report: one offline HTML file, its figures and tables beside it, and the answer as JSON."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from attnlens.analysis.evidence import signed
from attnlens.analysis.results import Comparison, Passage
from attnlens.show import findings
from attnlens.show.figures import NARROW, Drawing, figure_set, margin, rendered, save_figures
from attnlens.show.files import write
from attnlens.show.plots import percent, plain
from attnlens.show.tables import all_tables, csv, heads_table, layers_table, summary, tests_table, weight_layers

VIEWER = Path(__file__).parent / "viewer"
SHOWN_HEADS = 40
NOT_KNOWN = {
    1: "whether it is more than the choice of texts",
    2: "whether it is large enough to matter",
    3: "whether the task caused it",
    4: "whether it repeats",
    5: "whether the outputs rely on these words",
}
Cell = Callable[[Any], tuple[str, Any]]  # a row of a table → what is written, and what is sorted by
ROWS = {
    "cls": "the first token, from which this classifier reads",
    "last": "the last token, from which this classifier reads",
    "content": "all words",
    "completion": "the words of the completion, looking at the prompt",
}
GROUPS = {
    "models": "Models",
    "data": "Data",
    "salience": "Marked words",
    "options": "Options",
    "versions": "Versions",
    "rounding": "What rounding alone does",
}


def report(comparison: Comparison, directory: str | Path) -> Path:
    """Write DIR/report.html, DIR/figures/, DIR/tables/*.csv and DIR/summary.json; return the path of the page.

    Each file is there whole or not at all; the page comes last.
    """
    directory = Path(directory)
    figures = save_figures(comparison, directory)
    tables = [write(directory / "tables" / f"{name}.csv", csv(table)) for name, table in all_tables(comparison).items()]
    paths: dict[str, Any] = {
        "report": "report.html",
        "figures": [path.relative_to(directory).as_posix() for path in figures],
        "tables": [path.relative_to(directory).as_posix() for path in tables],
    }
    content = json.dumps(summary(comparison) | {"paths": paths}, indent=2, ensure_ascii=False, allow_nan=False)
    write(directory / "summary.json", f"{content}\n".encode())
    return write(directory / "report.html", page(comparison, directory).encode())


def page(comparison: Comparison, directory: Path) -> str:
    """The report as one HTML text that asks the network for nothing; `directory` holds its saved figures."""
    environment = Environment(
        loader=FileSystemLoader(VIEWER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheet, script = ((VIEWER / name).read_text("utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        sheet=Markup(sheet),
        script=Markup(script),
        policy=_policy(sheet, script),
        base=comparison.models[0],
        tuned=comparison.models[1:],
        salience=comparison.salience,
        counts=(comparison.data.sizes["example"], len(np.unique(comparison.data["document"].values))),
        shape=(comparison.data.sizes["layer"], comparison.data.sizes["head"]),
        margin=f"{margin(comparison):g}",
        rows=ROWS.get(str(comparison.provenance.get("rows")), ""),
        figures={drawing.name: _figure(drawing, directory) for drawing in figure_set(comparison)},
        tables=[table for table in (layer_rows(comparison), head_rows(comparison)) if table["rows"]],
        passages=comparison.passages,
        island=island(comparison),
        groups=_provenance(comparison.provenance),
        command=str(comparison.provenance.get("command", "")),
        warnings=[str(warning) for warning in comparison.provenance.get("warnings", [])],
        **_first_screen(comparison),
    )


def _policy(sheet: str, script: str) -> str:
    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(sheet)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _first_screen(comparison: Comparison) -> dict[str, Any]:
    """The answer in a reader's words, what else changed, what is not known."""
    answer, first = comparison.answer, comparison.models[1]
    lead, rest = split_sentence(answer.sentence)
    entropy = tests_table(comparison, "entropy layer")
    weights = weight_layers(comparison)
    also = [findings.entropy_finding(entropy[entropy["model"] == first])] if len(entropy) else []
    also.append(findings.weights_finding(weights[weights["model"] == first]))
    asked = answer.verdict not in ("identical", "not asked")
    unknown = [NOT_KNOWN[rung.number] for rung in answer.rungs if asked and rung.status == "not tested"]
    return {
        "answer": answer,
        "lead": lead,
        "rest": rest,
        "also": also,
        "unknown": unknown,
        "answers": comparison.answers,
        "several": sum(len(found) for found in comparison.answers.values()) > 1,
    }


def split_sentence(text: str) -> tuple[str, str]:
    """The first sentence of an answer and the rest: 'Yes, mainly in layer 6. Of 100 …' splits after '6.'."""
    end = text.find(". ")
    return (text, "") if end < 0 else (text[: end + 1], text[end + 2 :])


def _figure(drawing: Drawing, directory: Path) -> dict[str, str]:
    def uri(content: bytes) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(content).decode()

    return {
        "title": drawing.title,
        "caption": drawing.caption,
        "wide": uri((directory / "figures" / f"{drawing.name}.svg").read_bytes()),
        "narrow": uri(rendered(drawing, NARROW, ("svg",))["svg"]),
    }


def island(comparison: Comparison) -> Markup:
    """The passages for the script, as JSON that cannot end its element; attention in hundredths of a percent."""
    content = {
        "models": comparison.models,
        "start": 1 + (comparison.answer.layers or (comparison.data.sizes["layer"] - 1,))[0],  # the most changed layer
        "passages": [_passage(passage) for passage in comparison.passages],
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _passage(passage: Passage) -> dict[str, Any]:
    is_word = np.array(passage.is_word, dtype=bool)
    received = np.round(100 * np.asarray(passage.received, dtype=float)[..., is_word])
    return {
        "id": passage.id,
        "label": passage.label,
        "words": list(passage.words),
        "isWord": [int(flag) for flag in passage.is_word],
        "marked": [int(flag) for flag in passage.marked],
        "maps": [[int(layer) + 1, int(head) + 1] for layer, head in passage.heads],  # head 0: mean over the heads
        "received": [
            [[None if np.isnan(value) else int(value) for value in row] for row in model] for model in received
        ],
    }


def layer_rows(comparison: Comparison) -> dict[str, Any]:
    """The report's table of layers: focus, entropy and weight change, one row for each tuned model and layer."""
    columns: dict[str, Cell] = {"layer": lambda row: (str(row["layer"]), row["layer"])}
    if len(comparison.models) > 2:
        columns = {"model": lambda row: (row["model"], row["model"])} | columns
    shown = [("focus", f"focus_{name}_") for name in comparison.salience[:1]] + [("entropy", "entropy_content_")]
    for name, prefix in shown:
        columns |= {
            f"change of {name} (points)": lambda row, prefix=prefix: _number(row[f"{prefix}estimate"], signed),
            f"95 % interval of {name}": lambda row, prefix=prefix: _interval(row, prefix),
            f"adjusted p of {name}": lambda row, prefix=prefix: _p(row[f"{prefix}p_adjusted"]),
        }
    columns["weight change (%)"] = lambda row: (percent(row["relative"]), row["relative"])
    return _table("Layers", "layers", layers_table(comparison).dropna(subset="layer"), columns)


def head_rows(comparison: Comparison) -> dict[str, Any]:
    """The report's table of heads: the most changed of the first tuned model by the headline measure."""
    table = heads_table(comparison)
    measure = "focus" if comparison.salience else "entropy_content"
    chosen = (table["measure"] == measure) & (table["model"] == comparison.models[1]) & table["shown"]
    rows = table[chosen & (table["salience"] == (comparison.salience or [""])[0]) & (table["estimate"] != 0)]
    rows = rows.loc[rows["estimate"].abs().sort_values(ascending=False, kind="stable").index].head(SHOWN_HEADS)
    name = "focus" if comparison.salience else "content entropy"
    columns: dict[str, Cell] = {
        "layer": lambda row: (str(row["layer"]), row["layer"]),
        "head": lambda row: (str(row["head"]), row["head"]),
        f"{name}, base": lambda row: _number(row["base"], plain),
        f"{name}, tuned": lambda row: _number(row["tuned"], plain),
        "change (points)": lambda row: _number(row["estimate"], signed),
        "95 % interval": lambda row: _interval(row, ""),
        "adjusted p": lambda row: _p(row["p_adjusted"]),
        "attention on words (%)": lambda row: (f"{row['content_mass']:.0f}", row["content_mass"]),
    }
    return _table(f"The {len(rows)} most changed heads by {name}", "heads", rows, columns)


def _table(title: str, file: str, frame: pd.DataFrame, columns: dict[str, Cell]) -> dict[str, Any]:
    rows = [[cell(row) for cell in columns.values()] for _, row in frame.iterrows()]
    return {"title": title, "file": f"tables/{file}.csv", "columns": list(columns), "rows": rows}


def _number(value: float, written: Callable[[float, int], str]) -> tuple[str, float]:
    return written(value, 2), value


def _interval(row: Any, prefix: str) -> tuple[str, Any]:
    return f"{signed(row[f'{prefix}low'], 2)} … {signed(row[f'{prefix}high'], 2)}", row[f"{prefix}low"]


def _p(value: float) -> tuple[str, float]:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0"), value


def _provenance(provenance: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (name, value) lines; whatever the record holds is shown, known groups first."""
    apart = {name: value for name, value in provenance.items() if name not in ("warnings", "command")}
    groups = [name for name, value in apart.items() if isinstance(value, dict | list) and value]
    known = [name for name in GROUPS if name in groups]
    ordered = known + [name for name in groups if name not in known]
    found = [(GROUPS.get(name, name), list(_lines(apart[name], ""))) for name in ordered]
    single = {name: value for name, value in apart.items() if name not in groups and value is not None}
    return [*found, ("Run", list(_lines(single, "")))] if single else found


def _lines(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _lines(inner, f"{path} · {name}" if path else str(name))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value, start=1):
            rest = {name: content for name, content in inner.items() if name != "name"}
            yield from _lines(rest, f"{path} {inner.get('name', number)}".strip())
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(str, value))
    else:
        yield path, "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
