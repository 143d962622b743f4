"""The figures of a study: quality, what it took, focus by layer, and what was chosen. Each is drawn from its table."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.studies.focus import told
from attnlens.analysis.studies.outcome import StudyOutcome
from attnlens.analysis.studies.quality import BETTER, INFERIOR, NOT_INFERIOR
from attnlens.show import evidence_plots, plots, study_plots, study_words
from attnlens.show.drawing import Drawing, Layout, labels, panels
from attnlens.show.method_figures import AXES

QUALITY = {"accuracy": ("test accuracy (%)", 100.0), "loss": ("test loss (nats a token)", 1.0)}
TOOK = AXES | {"drift": "hidden states moved (%)"}
TWIN = "shuffled labels"


def study_drawings(outcome: StudyOutcome) -> list[Drawing]:
    """Every figure that the finished cells have numbers for."""
    found = []
    if len(outcome.arms) and outcome.arms["quality"].notna().any():
        found.append(quality(outcome))
        if outcome.arms["difference"].notna().any():
            found.append(difference(outcome))
        found.append(trade_offs(outcome))
    if len(outcome.profiles) and outcome.profiles["estimate"].notna().any():
        found.append(focus(outcome))
    if len(outcome.selections):
        found.append(selection(outcome))
    return found


def placed(outcome: StudyOutcome, table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column place: the data set, and the model where there are several."""
    several = len(outcome.plan.file.models) > 1
    place = table["model"] + ", " + table["data"] if several else table["data"]
    return table.assign(place=place)


def quality(outcome: StudyOutcome) -> Drawing:
    """Test quality of every arm with its interval, and every seed."""
    arms = placed(outcome, outcome.arms)
    name, unit = QUALITY[arms["unit"].iloc[0]]
    means = arms.assign(part="mean", value=arms["quality"])
    seeds = placed(outcome, outcome.cells).assign(part="seed", low=np.nan, high=np.nan)
    seeds = seeds.assign(value=seeds["quality"])
    order = {arm.name: number for number, arm in enumerate(outcome.plan.file.arms)}
    table = pd.concat([means, seeds], ignore_index=True)
    table = table.sort_values("arm", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    numbers = unit * table[["value", "low", "high"]]
    sign = -1 if arms["higher"].iloc[0] else 1
    table = pd.DataFrame({"place": table["place"], "model": table["arm"], "part": table["part"], **numbers})
    table = table.assign(
        quality=name, reference=outcome.plan.file.held_against, margin=sign * unit * outcome.plan.file.margin
    )
    caption = (
        f"{name.capitalize()} of each arm: mean over test documents and seeds with its 95 % interval over both "
        f"(crossed t); small dots: the seeds. {study_words.counted(outcome)}. Line: the mean of "
        f"{outcome.plan.file.held_against}; broken line: the margin beyond which an arm is inferior, fixed beforehand."
    )
    return Drawing("study_quality", "study", study_words.quality_finding(outcome), caption, table, quality_picture)


def quality_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `quality`."""
    places = list(table["place"].unique())
    shown = table.assign(model=table["model"].map(labels(table["model"].unique(), limit=24)))
    names = labels(table["reference"].unique(), limit=24)

    def panel(ax: Axes, index: int) -> None:
        rows = shown[shown["place"] == places[index]]
        reference, margin = names[rows["reference"].iloc[0]], float(rows["margin"].iloc[0])
        study_plots.arm_levels(rows, ax, reference=reference, margin=margin)
        if len(places) > 1:
            ax.set_title(places[index])

    height = 0.7 + 0.24 * shown["model"].nunique()
    return panels(Layout(len(places), height, str(table["quality"].iloc[0]), across=1), panel)


def difference(outcome: StudyOutcome) -> Drawing:
    """The difference of every arm to the reference, beside the margin."""
    arms = placed(outcome, outcome.arms)
    arms = arms[arms["difference"].notna()]
    _, unit = QUALITY[arms["unit"].iloc[0]]
    numbers = unit * arms[["difference", "difference_low", "difference_high"]]
    table = pd.DataFrame({"place": arms["place"], "model": arms["arm"], "verdict": arms["verdict"]})
    table[["estimate", "low", "high"]] = numbers.to_numpy()
    table = table.assign(margin=unit * outcome.plan.file.margin, unit="points" if unit > 1 else "nats a token")
    reference = outcome.plan.file.held_against
    caption = (
        f"Test quality of each arm less that of {reference}, over test documents and the seeds of both, paired by "
        f"seed, with 95 % intervals (crossed t). {study_words.counted(outcome)}. Broken lines: ± the margin, fixed "
        "beforehand; filled: the interval shows that the arm is not inferior by the margin, or that it is."
    )
    title = study_words.difference_finding(outcome)
    return Drawing("study_difference", "study", title, caption, table.reset_index(drop=True), difference_picture)


def difference_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `difference`."""
    places = list(table["place"].unique())
    shown = table.assign(label=table["model"].map(labels(table["model"].unique(), limit=24)), model="arm")
    shown = shown.assign(filled=table["verdict"].isin((INFERIOR, NOT_INFERIOR, BETTER)))
    unit = str(table["unit"].iloc[0])

    def panel(ax: Axes, index: int) -> None:
        rows = shown[shown["place"] == places[index]].reset_index(drop=True)
        digits = 1 if unit == "points" else 3
        evidence_plots.forest(rows, ax, margin=float(rows["margin"].iloc[0]), digits=digits)
        if len(places) > 1:
            ax.set_title(places[index])

    rows = max(int((table["place"] == place).sum()) for place in places)
    return panels(Layout(len(places), 0.8 + 0.3 * rows, f"difference ({unit})", across=1), panel)


def trade_offs(outcome: StudyOutcome) -> Drawing:
    """Quality against weights trained, time and forgetting."""
    arms = placed(outcome, outcome.arms)
    name, unit = QUALITY[arms["unit"].iloc[0]]
    table = pd.DataFrame({"place": arms["place"], "model": arms["arm"], "quality": name, "higher": arms["higher"]})
    table[["value", "low", "high"]] = unit * arms[["quality", "low", "high"]].to_numpy()
    for column in TOOK:
        known = arms[column] if column in arms else np.nan
        table[column] = 100 * known if column == "drift" else known
    if table["forgetting"].notna().any():
        table["drift"] = np.nan  # the loss on general text says it better
    told = {
        "changed": "weights: parameters that training changed in the end, of an adapter those that it adds",
        "seconds": "time: of the training, each cell in one process, as measured",
        "forgetting": "forgetting: rise of the loss on general text",
        "drift": "hidden states moved: in the last layer, on general text, ‖h − h₀‖ / ‖h₀‖",
    }
    shown = [text for column, text in told.items() if table[column].notna().any()]
    caption = (
        f"{name.capitalize()} with its 95 % interval against what it took, means over seeds; "
        f"{'; '.join(shown)}. {study_words.counted(outcome)}. The broken line joins the arms that no other beats in "
        "both."
    )
    return Drawing("study_trade_off", "study", study_words.front_finding(outcome), caption, table, trade_off_picture)


def trade_off_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `trade_offs`."""
    shown = table.assign(model=table["model"].map(labels(table["model"].unique(), limit=24)))
    columns = [name for name in TOOK if table[name].notna().any()]
    pairs = [(place, column) for place in table["place"].unique() for column in columns]
    several = table["place"].nunique() > 1

    def panel(ax: Axes, index: int) -> None:
        place, column = pairs[index]
        rows = shown[shown["place"] == place]
        study_plots.trade_off(rows, ax, column, higher=bool(rows["higher"].iloc[0]))
        ax.set_xlabel(TOOK[column])
        if several:
            ax.set_title(place)

    return panels(Layout(len(pairs), 2.3, "", str(table["quality"].iloc[0]), across=len(columns)), panel)


def focus(outcome: StudyOutcome) -> Drawing:
    """Change of focus by layer, a panel an arm: the procedure over its seeds, and its shuffled twins."""
    profiles = placed(outcome, outcome.profiles)
    keys = ["place", "arm", "layer"]
    shown = told(profiles)
    seeds = shown.set_index(keys)
    beyond = profiles[profiles["family"] == "beyond null"].set_index(keys)["estimate"]
    real = seeds[["estimate", "low", "high", "p_adjusted", "n", "n_seeds"]].assign(line="", kind="tuned")
    null = real.loc[real.index.isin(beyond.index)].copy()
    null = null.assign(estimate=null["estimate"] - beyond, low=np.nan, high=np.nan, p_adjusted=np.nan)
    table = pd.concat([real, null.assign(line=TWIN, kind="null")]).reset_index()
    table["layer"] += 1
    table[["estimate", "low", "high"]] *= 100
    table = table.rename(columns={"arm": "model"}).assign(margin=100 * outcome.plan.file.measure.sesoi)
    over = "seeds and documents; bands: 95 %, for all layers together (crossed t)"
    if (shown["family"] == "profile").any():
        over = "documents, mean over the seeds at hand; bands: 95 %, simultaneous over layers"
    twins = f"; grey: the mean of the same trainings on {TWIN}" if len(null) else ""
    caption = (
        f"Change of focus, tuned minus base, by layer, over {over}{twins}. Focus = attention on the marked words minus "
        "attention on position-matched ordinary words, in points of 100 spent on words. "
        f"{study_words.counted(outcome)}. Broken lines: the smallest change "
        "declared to matter; filled markers lie beyond it with their whole interval and have adjusted p < .05."
    )
    return Drawing("study_focus", "study", study_words.focus_finding(outcome), caption, table, focus_picture)


def focus_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `focus`."""
    names = labels(table["model"].unique(), limit=24)
    pairs = list(table[["place", "model"]].drop_duplicates().itertuples(index=False, name=None))
    several = table["place"].nunique() > 1

    def panel(ax: Axes, index: int) -> None:
        place, arm = pairs[index]
        rows = table[(table["place"] == place) & (table["model"] == arm)]
        rows = rows.assign(model=rows["line"].replace("", "tuned"))
        plots.layer_profile(rows, ax, margin=float(table["margin"].iloc[0]))
        ax.set_title(f"{place}: {names[arm]}" if several else names[arm])

    return panels(Layout(len(pairs), 1.75, "layer", "change of focus (points)"), panel)


def selection(outcome: StudyOutcome) -> Drawing:
    """Which blocks were chosen in the end, seed by seed."""
    chosen = placed(outcome, outcome.selections)
    layers = 1 + int(outcome.profiles["layer"].max()) if len(outcome.profiles) else 0
    blocks = max(layers, *(int(number) for row in chosen["blocks"] for number in row.split()))
    rows = [
        {"place": row["place"], "model": row["arm"], "seed": row["seed"], "block": block}
        | {"chosen": int(str(block) in row["blocks"].split())}
        for _, row in chosen.iterrows()
        for block in range(1, blocks + 1)
    ]
    caption = (
        "The blocks that each method held at the step that was kept, counted from 1, by seed. Dark: chosen, and "
        "trained when the method was not probing."
    )
    title = study_words.selection_finding(outcome)
    return Drawing("study_selection", "study", title, caption, pd.DataFrame(rows), selection_picture)


def selection_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `selection`."""
    names = labels(table["model"].unique(), limit=24)
    pairs = list(table[["place", "model"]].drop_duplicates().itertuples(index=False, name=None))
    several = table["place"].nunique() > 1

    def panel(ax: Axes, index: int) -> None:
        place, arm = pairs[index]
        study_plots.chosen_blocks(table[(table["place"] == place) & (table["model"] == arm)], ax)
        ax.set_title(f"{place}: {names[arm]}" if several else names[arm])

    return panels(Layout(len(pairs), 0.7 + 0.2 * int(table["block"].max()), "seed", "block"), panel)


PICTURES = {
    "study_quality": quality_picture,
    "study_difference": difference_picture,
    "study_trade_off": trade_off_picture,
    "study_focus": focus_picture,
    "study_selection": selection_picture,
}
