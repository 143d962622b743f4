"""LaTeX tables and references: whole, escaped, of the numbers that stand in the CSV."""

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

from attnlens.analysis.results import Comparison
from attnlens.show.figures import figure_set
from attnlens.show.latex import SPECIAL, booktabs, escape
from attnlens.show.references import WORKS, bibliography, cited
from attnlens.show.tables import layers_table
from attnlens.show.tex_tables import tex_tables
from tests.show.evidence import NULL, make_evidence
from tests.show.synthetic import make_comparison


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    return tex_tables(make_evidence())


def assert_sound(text: str) -> None:
    """Environments and braces are closed, every row has as many cells as the table columns, nothing is unescaped."""
    opened, closed = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert opened == closed[::-1] == ["table", "tabular"]
    bare = re.sub(r"\\[\\&%$#_{}]", "", text.replace("\\usepackage", ""))
    assert bare.count("{") == bare.count("}")
    columns = len(re.search(r"@\{\}([lr]+)@\{\}", text)[1])  # pyright: ignore[reportOptionalSubscript]
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) > 1 and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    body = re.sub(r"\\[a-zA-Z]+|\\[\\&%$#_{}]|\$[^$]*\$", "", "\n".join(rows))
    assert not re.search(r"[%$#_~^\\<>−…]", body), body


def test_every_table_is_sound(tables: dict[str, str]):
    assert list(tables) == ["layers", "heads", "models", "tests"]
    for name, text in tables.items():
        assert_sound(text)
        assert f"\\label{{tab:{name}}}" in text and "\\toprule" in text and "booktabs" in text


def test_cells_are_the_numbers_of_the_csv(tables: dict[str, str]):
    frame = layers_table(make_evidence()).set_index(["model", "layer"])
    row = next(line for line in tables["layers"].splitlines() if line.startswith("LoRA & 6 & "))
    cells = row.removesuffix(r" \\").split(" & ")
    wanted = frame.loc[[("LoRA", 6)]].iloc[0]
    assert cells[2].startswith(f"+{wanted['focus_spans_estimate']:.1f} (") and cells[2].count("\\ldots") == 1
    assert len([line for line in tables["heads"].splitlines() if re.match(r"\d+ & \d+ & ", line)]) == 10
    assert f"{NULL} & null: " in tables["models"]
    assert re.findall(r"^(\w+) & (\w+) & ", tables["tests"], re.M)[1:3] == [("full", "spans"), ("full", "keyness")]


def test_names_are_text():
    names = ("a_b & 50 % $x$ \\input{x}", "#{~^}")
    for text in tex_tables(make_comparison(tuned=names)).values():
        assert_sound(text)
    assert escape(names[0]) in tex_tables(make_comparison(tuned=names))["models"]


def test_no_cell_is_an_argument_of_the_line_break_before_it():
    text = booktabs("x", "c", {"model": ["a", "[SEP] run", "*b"], "answer": ["yes", "no", "[1]"]}, words=["model"])
    assert [line for line in text.splitlines() if "run" in line or "b &" in line] == [
        r"{}[SEP] run & no \\",
        r"{}*b & [1] \\",
    ]


def test_tables_of_less(comparison: Comparison):
    assert list(tex_tables(make_comparison(salience=()))) == ["layers", "heads", "models"]
    assert "heads" not in tex_tables(make_comparison(scale=0.0)), "no head changed"
    assert booktabs("x", "c", {"a": ["1"], "b": ["2"]}, words=["a"]).count("{@{}lr@{}}") == 1


def test_what_a_caption_holds_is_known_to_latex():
    for drawing in figure_set(make_evidence()):
        for char in f"{drawing.title} {drawing.caption}":
            assert ord(char) < 0x180 or char in SPECIAL, f"{drawing.name}: {char!r}"


def test_sinks_are_shares_of_heads(comparison: Comparison):
    table = layers_table(comparison).set_index("layer")
    values = comparison.data["sink_census"].isel(layer=2).transpose("model", "example", "head").values
    by_document = pd.DataFrame(values[1]).groupby(comparison.data["document"].values).mean()
    assert table["sink_tuned"][3] == pytest.approx(100 * by_document.to_numpy().mean())
    older = layers_table(dataclasses.replace(comparison, data=comparison.data.drop_vars("sink_census")))
    assert older["sink_tuned"].isna().all()


def test_the_page_cites_what_it_uses(written: Path, comparison: Comparison):
    text, stored = (written / "report.html").read_text(), (written / "references.bib").read_text()
    works = cited(comparison, [drawing.name for drawing in figure_set(comparison)])
    keys = re.findall(r"^@\w+\{(\w+),$", stored, re.M)
    assert keys == [work.key for work in works] and stored == bibliography(works)
    assert stored.count("{") == stored.count("}") and len(set(keys)) == len(keys)
    assert "monroe2008" in keys and "mihalcea2004" not in keys and "geva2023" not in keys
    for work in works:
        assert work.authors[0].split(",")[0] in text and str(work.year) in work.line
    assert "@article{shannon1948," in text and 'href="references.bib"' in text and 'href="tables/layers.tex"' in text
    assert (written / "tables" / "layers.tex").is_file()


def test_lines_of_references():
    works = {work.key: work for work in WORKS}
    assert works["vig2019"].line.startswith("Vig and Belinkov (2019). Analyzing the Structure")
    assert works["clark2019"].line.startswith("Clark et al. (2019). ")
    assert works["monroe2008"].line.startswith("Monroe, Colaresi and Quinn (2008). ")
    assert "  author = {Lin, Jianhua},\n" in works["lin1991"].bibtex
    assert not re.search(r"(?<!\\)[&%#$_]", "".join(work.bibtex for work in WORKS)), "LaTeX would stop"
