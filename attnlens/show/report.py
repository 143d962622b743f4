"""The report: one offline HTML file, its figures and tables beside it, and the answer as JSON."""

import base64
import json
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnlens.analysis.passages import SHORT, TOP_HEADS
from attnlens.analysis.results import Comparison
from attnlens.checkpoints.files import write
from attnlens.show import findings
from attnlens.show.document import document
from attnlens.show.drawing import NARROW, Drawing, margin
from attnlens.show.figures import figure_set, rendered, save_figures
from attnlens.show.folder import BIBLIOGRAPHY
from attnlens.show.island import island
from attnlens.show.page_tables import page_tables
from attnlens.show.references import bibliography, cited
from attnlens.show.tables import all_tables, csv, entropy_table, shares_layers, summary, weight_layers
from attnlens.show.tex_tables import tex_tables
from attnlens.show.training_records import training_records
from attnlens.show.training_words import data_sentences, forgetting_sentences, selection_sentences
from attnlens.show.twins import real_models, told, twins
from attnlens.show.word_figures import is_causal

MOST_SVG = 50_000  # bytes of one drawing in the page; pixels at 300 a inch take less, and the vectors lie beside
IN_VIEWER = ("passage", "word_maps")  # which shows every text: the figures of one are files beside the page
MOST_LISTED = 12
NOT_KNOWN = {
    1: "whether it is more than the choice of texts",
    2: "whether it is large enough to matter",
    3: "whether the task caused it",
    4: "whether it repeats",
    5: "whether the outputs rely on these words",
}
KNOWN = {
    (3, "yes"): "Attention moved less under the same training on shuffled labels",
    (3, "no"): "That attention moved less under the same training on shuffled labels was not shown",
    (4, "yes"): "The change repeats over training seeds",
    (4, "no"): "That the change repeats over training seeds was not shown",
    (5, "yes"): "The outputs rely on these words, and more than before tuning",
    (5, "no"): "That the outputs rely on these words more than before tuning was not shown",
}
ROWS = {
    "cls": "the first token, from which a classifier of this kind reads",
    "last": "the last token, from which a classifier of this kind reads",
    "content": "all words",
    "completion": "the words of the completion, looking at the prompt",
}
SENTENCES = (selection_sentences, forgetting_sentences, data_sentences)
DRAWN = ("history", "switching", "movement", "attention", "per_class")
GROUPS = {
    "models": "Models",
    "data": "Data",
    "salience": "Marked words",
    "options": "Options",
    "versions": "Versions",
    "nulls": "Shuffled twins",
    "seeds": "Seeds",
    "aids": "What the marking looked at",
    "rounding": "What rounding alone does",
}


def report(comparison: Comparison, directory: str | Path) -> Path:
    """Write DIR/report.html, DIR/figures/, DIR/tables/ (CSV, LaTeX), DIR/summary.json and DIR/references.bib.

    Returns the path of the page. Each file is there whole or not at all; the page comes last.
    """
    directory = Path(directory)
    figures = save_figures(comparison, directory)
    contents = {f"{name}.csv": csv(table) for name, table in all_tables(comparison).items()}
    contents |= {f"{name}.tex": table.encode() for name, table in tex_tables(comparison).items()}
    tables = [write(directory / "tables" / name, content) for name, content in contents.items()]
    works = cited(comparison, {path.stem for path in figures})
    write(directory / BIBLIOGRAPHY, bibliography(works).encode())
    paths: dict[str, Any] = {
        "report": "report.html",
        "references": BIBLIOGRAPHY,
        "figures": [path.relative_to(directory).as_posix() for path in figures],
        "tables": [path.relative_to(directory).as_posix() for path in tables],
    }
    content = json.dumps(summary(comparison) | {"paths": paths}, indent=2, ensure_ascii=False, allow_nan=False)
    write(directory / "summary.json", f"{content}\n".encode())
    return write(directory / "report.html", page(comparison, directory).encode())


def page(comparison: Comparison, directory: Path) -> str:
    """The report as one HTML text that asks the network for nothing; `directory` holds its saved figures."""
    figures = {d.name: shown_figure(d, directory) for d in figure_set(comparison) if d.name not in IN_VIEWER}
    works = cited(comparison, figures)
    content = {
        "base": comparison.models[0],
        "tuned": comparison.models[1:],
        "salience": comparison.salience,
        "counts": (comparison.data.sizes["example"], len(np.unique(comparison.data["document"].values))),
        "shape": (comparison.data.sizes["layer"], comparison.data.sizes["head"]),
        "margin": f"{margin(comparison):g}",
        "rows": ROWS.get(str(comparison.provenance.get("rows")), ""),
        "figures": figures,
        "works": works,
        "latex": list(tex_tables(comparison)),
        "bibliography": bibliography(works),
        "tables": page_tables(comparison),
        "of_text": [name for name in IN_VIEWER if (directory / "figures" / f"{name}.pdf").is_file()],
        "passages": comparison.passages,
        "maps": {"tokens": SHORT, "heads": TOP_HEADS},
        "causal": is_causal(comparison),
        "island": island(comparison, comparison.passages),
        "groups": _provenance(comparison.provenance),
        "command": str(comparison.provenance.get("command", "")),
        "training_lines": [line for told in SENTENCES for line in told(comparison)],
        "has_training": bool(training_records(comparison)),
        "nulls": twins(comparison),
        "warnings": [str(warning) for warning in comparison.provenance.get("warnings", [])],
    }
    return document("report.html.j2", content | _first_screen(comparison))


def _first_screen(comparison: Comparison) -> dict[str, Any]:
    """The answer in a reader's words, what else changed, what is not known."""
    answer, first = comparison.answer, comparison.models[1]
    lead, rest = split_sentence(answer.sentence)
    null = [model for model in twins(comparison) if model != first]
    beside = [(model, told(next(iter(comparison.answers[model].values())))) for model in null]
    return {
        "answer": answer,
        "lead": lead,
        "rest": rest,
        "also": also_found(comparison),
        "beside": [(model, words) for model, words in beside if words],
        "alone": len(real_models(comparison)) == 1,
        "unknown": not_known(comparison),
        "answers": comparison.answers,
        "several": sum(len(found) for found in comparison.answers.values()) > 1,
    }


def also_found(comparison: Comparison) -> list[str]:
    """What else changed in the first tuned model, and what the higher rungs say: a clause each, without a full stop."""
    first = comparison.models[1]
    entropy = entropy_table(comparison)
    weights = weight_layers(comparison)
    also = [findings.entropy_finding(entropy[entropy["model"] == first])] if len(entropy) else []
    also.append(findings.weights_finding(weights[weights["model"] == first], shared=shares_layers(comparison)))
    rungs = comparison.answer.rungs
    return also + [KNOWN[key] for rung in rungs if (key := (rung.number, rung.status)) in KNOWN]


def not_known(comparison: Comparison) -> list[str]:
    """What the first answer leaves open, in clauses: the rungs that were not tested."""
    answer = comparison.answer
    asked = answer.verdict not in ("identical", "not asked")
    return [NOT_KNOWN[rung.number] for rung in answer.rungs if asked and rung.status == "not tested"]


def split_sentence(text: str) -> tuple[str, str]:
    """The first sentence of an answer and the rest: 'Yes, mainly in layer 6. Of 100 …' splits after '6.'."""
    end = text.find(". ")
    return (text, "") if end < 0 else (text[: end + 1], text[end + 2 :])


def shown_figure(drawing: Drawing, directory: Path) -> dict[str, str]:
    """The drawing for a wide and a narrow window; one of very many marks in pixels, so that the page stays small.

    The wide one is taken from the files of `directory`.
    """

    def uri(kind: str, content: bytes) -> str:
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def smaller(file: Callable[[str], bytes]) -> str:
        vectors = file("svg")
        return uri("svg+xml", vectors) if len(vectors) <= MOST_SVG else uri("webp", _webp(file("png")))

    saved = directory / "figures" / drawing.name
    return {
        "title": drawing.title,
        "caption": drawing.caption,
        "wide": smaller(lambda ending: saved.with_suffix(f".{ending}").read_bytes()),
        "narrow": smaller(lambda ending: rendered(drawing, NARROW, (ending,))[ending]),
    }


def _webp(png: bytes) -> bytes:
    """The same pixels in less than half the bytes."""
    content = BytesIO()
    Image.open(BytesIO(png)).save(content, "WEBP", lossless=True)
    return content.getvalue()


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
            if name in DRAWN or inner is None:  # figures and tables of training show it; an option nobody set
                continue
            yield from _lines(inner, f"{path} · {name}" if path else str(name))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value, start=1):
            rest = {name: content for name, content in inner.items() if name != "name"}
            yield from _lines(rest, f"{path} {inner.get('name', number)}".strip())
    elif isinstance(value, list | tuple):
        more = f", … ({len(value)} in all)" if len(value) > MOST_LISTED else ""
        yield path, ", ".join(map(str, value[:MOST_LISTED])) + more
    else:
        yield path, "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
