"""`attnlens figures`: the column of each venue, its fonts, the choice of figures, names, and what is refused."""

import json
import re
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib import font_manager
from typer.testing import CliRunner

from attnlens.analysis.results import Comparison, open_comparison
from attnlens.cli import app
from attnlens.core.errors import AttnlensError, OutputExists, UnknownName
from attnlens.show.drawing import truetype
from attnlens.show.figures import figure_set
from attnlens.show.latex import escape
from attnlens.show.redraw import RedrawOptions, redraw, renamed
from attnlens.show.venues import VENUES, venue

SIDE = {"neurips": 5.5, "iclr": 5.5, "icml": 3.25, "acl": 7.7 / 2.54, "aaai": 3.3, "plain": 6.75}  # inches


@pytest.fixture(scope="module")
def saved(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comparison.save(tmp_path_factory.mktemp("saved"))


def page_width(pdf: Path) -> float:
    """Width of the page in points."""
    return float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf.read_bytes())[1])  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize("name", sorted(SIDE))
def test_every_venue_has_its_column(saved: Path, tmp_path: Path, name: str):
    result = redraw(saved, RedrawOptions(venue=name, output=tmp_path, only=("jsd_profile",)))
    assert result.directory == tmp_path and list(result.figures) == ["jsd_profile"]
    assert page_width(tmp_path / "jsd_profile.pdf") == pytest.approx(72 * SIDE[name], abs=0.01)
    pdf = (tmp_path / "jsd_profile.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf, "TrueType, embedded"


def test_sizes_of_type_are_the_venues_and_latex_is_not_needed():
    for place in VENUES.values():
        settings = place.settings()
        assert settings["text.usetex"] is False and settings["pdf.fonttype"] == 42
        assert settings["font.family"], "some font is always there"
        with matplotlib.rc_context(settings):
            assert matplotlib.rcParams["font.size"] == {"plain": 8, "icml": 8}.get(place.name, 9)


def test_a_missing_font_falls_back_in_silence():
    assert truetype(("No Such Font", "DejaVu Serif")) == ["DejaVu Serif"]
    assert all(
        font_manager.findfont(name, fallback_to_default=False) for name in venue("acl").settings()["font.family"]
    )


def test_all_figures_with_numbers_and_captions(saved: Path, comparison: Comparison):
    result = redraw(saved, RedrawOptions(venue="icml", formats=("svg",)))
    assert result.directory == saved / "figures-icml"
    drawings = {drawing.name: drawing for drawing in figure_set(comparison)}
    assert list(result.figures) == list(drawings)
    for name, drawing in drawings.items():
        files = {path.suffix: path for path in result.figures[name]}
        assert set(files) == {".svg", ".csv", ".txt", ".tex"} and all(path.is_file() for path in files.values())
        assert len(pd.read_csv(files[".csv"])) == len(drawing.table)
        assert files[".txt"].read_text().startswith(f"{drawing.title}. ")
        caption = files[".tex"].read_text()
        assert caption.startswith("\\caption{\\textbf{") and f"\\label{{fig:{name}}}" in caption
        # TeX's own characters appear escaped or in what we wrote ourselves
        bare = re.sub(r"\\[a-zA-Z]+|\\[&%$#_{}]|\$[^$]*\$", "", caption.replace(f"fig:{name}", ""))
        assert not re.search(r"[&%$#_~^\\<>]", bare), bare
    again = redraw(saved, RedrawOptions(venue="icml", formats=("svg",), only=("weights",)))
    assert list(again.figures) == ["weight_change", "weight_modules", "circuit_change"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % of $x_1$ & {#}", r"50 \% of \$x\_1\$ \& \{\#\}"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("\u22122.5 … +1 × ≤", r"$-$2.5 \ldots{} +1 $\times$ $\leq$"),
        ("√ΣΔ²", r"$\surd\Sigma\Delta^2$"),
        ("\u202e$\u2212", r"\$$-$"),
        ("Vertrag für Ü", "Vertrag für Ü"),
    ],
)
def test_captions_are_text_for_latex(text: str, escaped: str):
    assert escape(text) == escaped


def test_models_take_other_names(saved: Path, tmp_path: Path):
    result = redraw(saved, RedrawOptions(output=tmp_path, only=("weight_change", "training"), names=("base", "ours")))
    assert set(pd.read_csv(tmp_path / "weight_change.csv")["model"]) == {"ours"}
    assert list(result.figures) == ["weight_change", "training"]
    changed = renamed(open_comparison(saved), ("base", "ours"))
    assert changed.models == ["base", "ours"] and changed.answer.verdict == "yes"
    with pytest.raises(AttnlensError, match=r"needed 2 different names, for all-MiniLM-L6-v2, minilm-contracts; got a"):
        redraw(saved, RedrawOptions(output=tmp_path / "x", names=("a",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RedrawOptions(venue="nips"), "unknown venue 'nips'"),
        (RedrawOptions(formats=("pfd",)), "unknown format 'pfd': did you mean 'pdf'"),
        (RedrawOptions(only=("layer_profil",)), "unknown figure 'layer_profil': did you mean 'layer_profile'"),
    ],
)
def test_an_unknown_name_is_told(saved: Path, tmp_path: Path, options: RedrawOptions, message: str):
    with pytest.raises(UnknownName, match=re.escape(message)):
        redraw(saved, options)


def test_what_stands_there_stays(saved: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputExists, match=r"holds other files: choose another -o DIR"):
        redraw(saved, RedrawOptions(output=tmp_path))
    with pytest.raises(OutputExists, match="is a file: needed the name of a folder"):
        redraw(saved, RedrawOptions(output=tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(AttnlensError, match="holds no comparison"):
        redraw(tmp_path)


def test_the_command(saved: Path, tmp_path: Path):
    words = ["figures", str(saved), "--venue", "acl", "--format", "pdf,png", "--only", "jsd_profile,training"]
    found = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out"), "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["venue"] == "acl" and list(told["figures"]) == ["jsd_profile", "training"]
    assert all(Path(path).is_file() for paths in told["figures"].values() for path in paths)
    plain = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert plain.exit_code == 0 and str(tmp_path / "out") in plain.stdout.replace("\n", "")
    assert "jsd_profile" in plain.stdout
