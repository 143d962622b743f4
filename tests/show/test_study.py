"""A study written down: words, tables, figures and page hold the numbers of its cells."""

import dataclasses
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from attnlens.analysis.studies.outcome import StudyOutcome
from attnlens.core.errors import AttnlensError
from attnlens.show import study_plots
from attnlens.show.drawing import WIDE, style
from attnlens.show.figures import PICTURES, rendered
from attnlens.show.redraw import RedrawOptions, figure_table, redraw
from attnlens.show.study import StudyResult, told, write_study
from attnlens.show.study_figures import study_drawings
from attnlens.show.study_tables import shown_tables, study_tables, study_tex
from attnlens.show.study_words import edges, few_seeds, results
from tests.show.studied import HOSTILE, made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyOutcome:
    return made(tmp_path_factory.mktemp("study") / "study", failed=True)


@pytest.fixture(scope="module")
def folder(found: StudyOutcome) -> Path:
    return write_study(found).parent


def test_the_words_say_what_the_tables_say(found: StudyOutcome):
    words = dict(results(found))
    assert list(words) == ["Quality", "Cost", "Rivals", "Focus", "Stability", "Failures"]
    full = found.arms.set_index("arm").loc["full"]
    assert (
        f"full reached a test accuracy of {100 * full['quality']:.1f} % (40 documents, 6 seeds, 95 %"
        in words["Quality"]
    )
    assert f"Inferior to full by the margin: {HOSTILE} (−" in words["Quality"]
    assert "The margin of 2 points was fixed beforehand." in words["Quality"]
    assert f"ALF 30 % in 82 s, {HOSTILE} 1.0 % in 72 s" in words["Cost"], "means over the seeds"
    assert f"ALF is better than {HOSTILE}; not told apart from full." in words["Rivals"]
    assert words["Focus"].startswith(
        f"On the mean of the seeds attention moved to the marked words under full, ALF and {HOSTILE}."
    )
    assert "Repeated over seeds: yes for all arms." in words["Focus"]
    assert f"not tested for ALF and {HOSTILE}" in words["Focus"], "they have no twin"
    assert "Blocks chosen by ALF: Jaccard 1.00 with other seeds, 1.00 with the last blocks, 0.33" in words["Stability"]
    assert words["Failures"] == "1 of 18 cells failed; they are listed, and count nowhere."


def test_few_seeds_and_the_end_of_a_grid_are_warned_of(found: StudyOutcome):
    file = found.plan.file.model_copy(update={"seeds": (0, 1)})
    few = dataclasses.replace(found, plan=dataclasses.replace(found.plan, file=file))
    assert few_seeds(found) == "" and few_seeds(few).startswith("2 seeds: too few for a claim about a method")
    assert edges(found) == "The best learning rate lies at the end of its grid for full: a wider one may do better."


def test_every_table_is_written_and_read_back(found: StudyOutcome, folder: Path):
    tables = study_tables(found)
    assert set(tables) == {"cells", "arms", "pairs", "profiles", "ranks", "selections", "failed"}
    for name, table in tables.items():
        assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) == len(table)
    cells = tables["cells"]
    assert len(cells) == 18 and cells["changed"].tolist()[:3] == [100.0, 30.0, 1.0], "percent"
    assert (cells["forgetting"] == 0.5).all() and (cells["drift"] == 0.25).all()


def test_the_best_and_its_ties_are_bold(found: StudyOutcome):
    text = study_tex(found)["arms"]
    bold = re.findall(r"\\textbf\{([\d.]+)", text)
    assert len(bold) == 2, "ALF, and full which is not told apart from it"
    assert "\\toprule" in text and "\\textless{}script\\textgreater{}" in text and "\\$x\\$" in text


def test_the_shown_table_sorts_by_numbers(found: StudyOutcome):
    sheet = shown_tables(found)["arms"]
    quality = [row[sheet["columns"].index("test accuracy (%)")] for row in sheet["rows"]]
    arms = found.arms
    half = (arms["high"] - arms["low"]) / 2
    assert quality[0] == (f"{100 * arms['quality'][0]:.1f} ± {100 * half[0]:.1f}", 100 * arms["quality"][0])
    ladders = [row[sheet["columns"].index("ladder")][0] for row in sheet["rows"]]
    assert ladders[1] == "✓✓–✓–", "no twin, no knockout"


def test_every_figure_is_drawn_from_its_csv_alone(found: StudyOutcome, folder: Path):
    drawings = study_drawings(found)
    assert [drawing.name for drawing in drawings] == [
        *("study_quality", "study_difference", "study_trade_off", "study_focus", "study_selection")
    ]
    for drawing in drawings:
        table = figure_table(folder / "figures" / f"{drawing.name}.csv")
        again = dataclasses.replace(drawing, table=table, picture=PICTURES[drawing.name])
        one, other = (rendered(each, WIDE, ("svg",))["svg"].decode() for each in (drawing, again))
        numbers = [[float(n) for n in re.findall(r"-?\d+\.\d+", text)] for text in (one, other)]
        np.testing.assert_allclose(*numbers, atol=1e-3, err_msg=drawing.name)


def test_a_study_is_redrawn_for_a_venue(folder: Path, tmp_path: Path):
    drawn = redraw(folder, RedrawOptions(venue="neurips", formats=("pdf",), output=tmp_path / "neurips"))
    assert list(drawn.figures)[:2] == ["study_quality", "study_difference"]
    only = redraw(folder, RedrawOptions(formats=("svg",), output=tmp_path / "one", only=("study_focus",)))
    assert list(only.figures) == ["study_focus"]
    with pytest.raises(AttnlensError, match="models are renamed in a report"):
        redraw(folder, RedrawOptions(output=tmp_path / "named", names=("a", "b")))


def test_figures_hold_the_drawn_numbers(found: StudyOutcome):
    drawings = {drawing.name: drawing for drawing in study_drawings(found)}
    focus = drawings["study_focus"].table
    seeds = found.profiles[(found.profiles["family"] == "seeds") & (found.profiles["arm"] == "full")]
    mine = focus[(focus["model"] == "full") & (focus["kind"] == "tuned")]
    np.testing.assert_allclose(mine["estimate"], 100 * seeds["estimate"])
    beyond = found.profiles[(found.profiles["family"] == "beyond null") & (found.profiles["arm"] == "full")]
    null = focus[(focus["model"] == "full") & (focus["kind"] == "null")]
    np.testing.assert_allclose(null["estimate"], 100 * (seeds["estimate"].to_numpy() - beyond["estimate"].to_numpy()))
    assert set(focus.loc[focus["kind"] == "null", "model"]) == {"full"}, "one arm has a twin"
    quality = drawings["study_quality"].table
    assert (quality["part"] == "seed").sum() == 18 and quality["margin"].unique().tolist() == [-2.0]
    assert drawings["study_difference"].caption.count("n = 40 documents (80 texts), 6 seeds") == 1
    with matplotlib.rc_context(style()):
        figure = drawings["study_selection"].draw(WIDE)
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), [[0] * 6] * 4 + [[1] * 6] * 2)


def test_the_front_by_hand():
    quality, cost = pd.Series([0.8, 0.9, 0.7, 0.9]), pd.Series([1.0, 2.0, 2.0, 2.0])
    assert study_plots.on_front(quality, cost, higher=True).tolist() == [True, True, False, True], "equals both stay"
    assert study_plots.on_front(quality, cost, higher=False).tolist() == [True, False, True, False]


def test_the_page_tells_all_and_escapes_names(found: StudyOutcome, folder: Path):
    text = (folder / "study.html").read_text()
    assert "default-src &#39;none&#39;" in text and HOSTILE not in text and "&lt;script&gt;$x$ &amp; co" in text
    for topic, words in results(found)[:1]:
        assert topic in text and words.split(";")[0].split("(")[0] in text
    assert text.count('class="rung ') == 15 and "out of memory" in text


def test_the_summary_is_json(found: StudyOutcome, folder: Path):
    values = json.loads((folder / "summary.json").read_text())
    assert values["cells"] == {"planned": 18, "finished": 18, "failed": 1}
    assert [arm["arm"] for arm in values["arms"]] == ["full", "ALF", HOSTILE]
    assert values["results"] == told(found) and (folder / "results.txt").read_text().startswith("Quality. full reached")


def test_a_notebook_shows_the_arms_and_the_results(found: StudyOutcome, folder: Path):
    result = StudyResult(found, folder, was_complete=True)
    shown = result._repr_html_()
    assert HOSTILE not in shown and "&lt;script&gt;$x$ &amp; co" in shown and shown.count("<tr") == 4
    assert f"<p>{told(found)[0].split(';')[0]}" in shown and repr(result).endswith("study.html")


def test_an_unfinished_study_is_written_with_what_there_is(tmp_path: Path):
    part = made(tmp_path / "part", seeds=1)
    text = write_study(part).read_text()
    assert "15 of 18 cells are not finished." in text
    assert part.arms["low"].isna().all(), "one seed has no interval over seeds"
    assert "Rivals" not in dict(results(part)), "under six seeds nothing is said of who is better"
    assert dict(results(part))["Focus"].count("Repeated over seeds: not tested") == 1
    nothing = made(tmp_path / "nothing", seeds=0)
    assert "18 of 18 cells are not finished." in write_study(nothing).read_text() and not study_drawings(nothing)


def test_without_a_number_of_focus_there_is_no_figure_of_it(found: StudyOutcome):
    empty = dataclasses.replace(found, profiles=found.profiles.assign(estimate=np.nan, low=np.nan, high=np.nan))
    names = [drawing.name for drawing in study_drawings(empty)]
    assert "study_focus" not in names and "study_quality" in names
