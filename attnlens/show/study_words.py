"""What a study found, in sentences: every number comes from its tables."""

import numpy as np
import pandas as pd

from attnlens.analysis.ladder import ALPHA, LEAST_SEEDS
from attnlens.analysis.studies.file import describe_arm
from attnlens.analysis.studies.outcome import StudyOutcome
from attnlens.analysis.studies.quality import BETTER, INFERIOR, NOT_INFERIOR, OPEN
from attnlens.analysis.wording import digits_of, interval, signed
from attnlens.show.findings import listed
from attnlens.show.plots import percent
from attnlens.show.study_plots import on_front

SAID = {
    BETTER: "Better than {reference}",
    NOT_INFERIOR: "Not inferior to {reference} by the margin",
    INFERIOR: "Inferior to {reference} by the margin",
    OPEN: "Left open",
}


def results(outcome: StudyOutcome) -> list[tuple[str, str]]:
    """What was found, (topic, sentences) each: quality, cost, rivals of the methods that choose, focus, stability.

    Where there are several models or data sets, the topic names them.
    """
    found = []
    lines = outcome.arms.groupby(["model", "data"], sort=False) if len(outcome.arms) else ()
    for (model, data), arms in lines:
        place = (str(model), str(data))
        topics = {
            "Quality": _quality(outcome, arms),
            "Cost": _took(arms),
            "Rivals": _rivals(outcome, arms, place),
            "Focus": _focus(outcome, place),
            "Stability": _stability(outcome, place),
        }
        where = f", {model} on {data}" if len(lines) > 1 else ""
        found += [(f"{topic}{where}", words) for topic, words in topics.items() if words]
    if outcome.failed:
        told = f"{len(outcome.failed)} of {outcome.planned} cells failed; they are listed, and count nowhere."
        found.append(("Failures", told))
    return found


def _quoted(arm: str) -> str:
    """An arm's name in a sentence; in quotes where a comma in it would pass for the sentence's."""
    return f"“{arm}”" if "," in arm else arm


def _names(arms: list[str]) -> str:
    return listed([_quoted(arm) for arm in arms])


def counted(outcome: StudyOutcome) -> str:
    """'n = 101 documents (949 texts), 6 seeds' of the whole study."""
    documents, seeds = outcome.arms["documents"], outcome.arms["seeds"]
    texts = outcome.cells["texts"].dropna()
    words = f"n = {_range(documents[documents > 0])} documents"
    words += f" ({_range(texts)} texts)" if len(texts) else ""
    return f"{words}, {_range(seeds)} seed{'' if seeds.max() == 1 else 's'}"


def _range(values: pd.Series) -> str:
    if values.empty:
        return "0"
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low}–{high}"


def _quality(outcome: StudyOutcome, arms: pd.DataFrame) -> str:
    """The reference's quality, and which arms are held to be what beside it."""
    if arms["quality"].isna().all():
        return ""
    reference, margin = outcome.plan.file.held_against, outcome.plan.file.margin
    lines = []
    row = arms[arms["arm"] == reference]
    if len(row) and row["quality"].notna().all():
        lines.append(f"{_quoted(reference)} reached {_level(row.iloc[0])}.")
    for verdict, words in SAID.items():
        rows = arms[arms["verdict"] == verdict]
        if len(rows):
            told = [f"{_quoted(each['arm'])} ({_difference(each)})" for _, each in rows.iterrows()]
            lines.append(f"{words.format(reference=_quoted(reference))}: {listed(told)}.")
    unit = f"{100 * margin:g} points" if arms["unit"].iloc[0] == "accuracy" else f"{margin:g} nats"
    return f"{' '.join(lines)} The margin of {unit} was fixed beforehand."


def _level(row: pd.Series) -> str:
    if row["unit"] == "accuracy":
        span = "" if np.isnan(row["low"]) else f", 95 % {100 * row['low']:.1f} … {100 * row['high']:.1f}"
        f1 = (
            f"; macro-F1 {100 * row['macro_f1']:.1f}"
            if "macro_f1" in row and row["macro_f1"] == row["macro_f1"]
            else ""
        )
        seeds = f"{row['seeds']} seed{'' if row['seeds'] == 1 else 's'}"
        return f"a test accuracy of {100 * row['quality']:.1f} % ({row['documents']} documents, {seeds}{span}{f1})"
    span = "" if np.isnan(row["low"]) else f", 95 % {row['low']:.3f} … {row['high']:.3f}"
    return (
        f"a test loss of {row['quality']:.3f} nats a token ({row['documents']} documents, {row['seeds']} seeds{span})"
    )


def _difference(row: pd.Series) -> str:
    unit, digits = (100, 1) if row["unit"] == "accuracy" else (1, 3)
    low, high = unit * row["difference_low"], unit * row["difference_high"]
    span = "no interval" if np.isnan(low) else f"{signed(low, digits)} … {signed(high, digits)}"
    return f"{signed(unit * row['difference'], digits)}; {span}"


def _took(arms: pd.DataFrame) -> str:
    """What share of the weights and of the reference's time each arm took."""
    known = arms[arms["changed"].notna() & arms["seconds"].notna()]
    if known.empty:
        return ""
    told = [
        f"{_quoted(row['arm'])} {percent(row['changed'])} % in {row['seconds']:.0f} s" for _, row in known.iterrows()
    ]
    return f"Weights that training changed, and its time: {', '.join(told)}."


def _rivals(outcome: StudyOutcome, arms: pd.DataFrame, place: tuple[str, str]) -> str:
    """Where each arm that chooses blocks by measuring them stands against every other: who is told apart from whom."""
    adaptive = [arm.name for arm in outcome.plan.file.arms if arm.method == "alf"]
    mine = _pairs(outcome, place, "quality")
    mine = mine[mine["n_seeds"] >= LEAST_SEEDS]  # of fewer seeds nothing is said about methods
    sign = 1 if arms["higher"].all() else -1
    lines = []
    for name in (name for name in adaptive if name in set(arms["arm"])):
        ahead, behind, level = [], [], []
        for _, row in mine[(mine["arm"] == name) | (mine["other"] == name)].iterrows():
            rival = row["other"] if row["arm"] == name else row["arm"]
            estimate = sign * (row["estimate"] if row["arm"] == name else -row["estimate"])
            apart = row["p_adjusted"] < ALPHA
            (level if not apart else ahead if estimate > 0 else behind).append(rival)
        told = [
            f"{words} {_names(names)}"
            for words, names in (("better than", ahead), ("worse than", behind), ("not told apart from", level))
            if names
        ]
        if told:
            lines.append(f"{_quoted(name)} is {'; '.join(told)}.")
    return f"{' '.join(lines)} Told apart: p < {ALPHA:g}, adjusted over all pairs of arms." if lines else ""


def _pairs(outcome: StudyOutcome, place: tuple[str, str], measure: str) -> pd.DataFrame:
    pairs = outcome.pairs
    if pairs.empty:
        return pd.DataFrame(columns=["arm", "other", "p_adjusted", "n_seeds"])
    return pairs[(pairs["model"] == place[0]) & (pairs["data"] == place[1]) & (pairs["measure"] == measure)]


def _focus(outcome: StudyOutcome, place: tuple[str, str]) -> str:
    """Which arms moved attention to the marked words, and how far the evidence goes."""
    answers = outcome.answers.get(place, {})
    verdicts: dict[str, list[str]] = {}
    for arm, answer in answers.items():
        verdicts.setdefault(answer.verdict, []).append(arm)
    said = {
        "yes": "attention moved to the marked words",
        "away": "it moved away from them",
        "no": "it did not move by what matters",
        "unclear": "it is unclear whether it moved",
        "identical": "it is the base's",
    }
    told = [f"{said[verdict]} under {_names(verdicts[verdict])}" for verdict in said if verdict in verdicts]
    if not told:
        return ""
    line = f"On the mean of the seeds {'; '.join(told)}."
    for number, words in {3: "More than on shuffled labels", 4: "Repeated over seeds"}.items():
        status = {arm: next((r.status for r in a.rungs if r.number == number), "") for arm, a in answers.items()}
        alike = len(set(status.values())) == 1 and len(status) > 1
        groups = [
            f"{which} for {'all arms' if alike else _names([arm for arm in status if status[arm] == which])}"
            for which in ("yes", "no", "not tested")
            if which in status.values()
        ]
        line += f" {words}: {'; '.join(groups)}." if groups else ""
    return line + _focus_rivals(outcome, place)


def _focus_rivals(outcome: StudyOutcome, place: tuple[str, str]) -> str:
    """Which arms' change of focus, summed over layers, is told apart from the reference's."""
    mine, reference = _pairs(outcome, place, "focus"), outcome.plan.file.held_against
    mine = mine[((mine["arm"] == reference) | (mine["other"] == reference)) & (mine["n_seeds"] >= LEAST_SEEDS)]
    if mine["p_adjusted"].isna().all():
        return ""
    told = []
    for _, row in mine[mine["p_adjusted"] < ALPHA].iterrows():
        turned = row["arm"] == reference
        ends = [row[name] for name in ("estimate", "low", "high")]
        estimate, low, high = (
            [-100 * ends[0], -100 * ends[2], -100 * ends[1]] if turned else [100 * end for end in ends]
        )
        digits = digits_of(estimate, low, high)
        name = row["other"] if turned else row["arm"]
        told.append(f"{_quoted(name)} {signed(estimate, digits)} ({interval(low, high, digits)})")
    if not told:
        return f" No arm's change of focus, summed over layers, is told apart from that of {reference}."
    return f" Summed over layers, the change of focus differs from that of {reference} under {listed(told)} points."


def _stability(outcome: StudyOutcome, place: tuple[str, str]) -> str:
    """Whether the order of the arms repeats over seeds, and whether selections do."""
    lines, ranks, chosen = [], outcome.ranks, outcome.selections
    mine = ranks[(ranks["model"] == place[0]) & (ranks["data"] == place[1])] if len(ranks) else ranks
    if len(mine) and mine["agreement"].notna().any():
        lines.append(f"The order of the arms agrees over seeds with Kendall's W = {mine['agreement'].iloc[0]:.2f}.")
    if len(chosen):
        rows = chosen[(chosen["model"] == place[0]) & (chosen["data"] == place[1])]
        for arm, table in rows.groupby("arm", sort=False):
            means = table[["other_seeds", "last_k", "rms", "shuffled", "chance"]].mean()
            words = {"other_seeds": "other seeds", "last_k": "the last blocks", "rms": "the blocks of least weight"}
            words["shuffled"] = "shuffled labels"
            told = [f"{means[name]:.2f} with {what}" for name, what in words.items() if means[name] == means[name]]
            chance = f"(chance {means['chance']:.2f})"
            lines.append(f"Blocks chosen by {_quoted(str(arm))}: Jaccard {', '.join(told)} {chance}.")
    return " ".join(lines)


def quality_finding(outcome: StudyOutcome) -> str:
    """Best and worst arm of the first line."""
    arms = _first(outcome)
    arms = arms[arms["quality"].notna()]
    order = arms.sort_values("quality", ascending=not arms["higher"].iloc[0], kind="stable")
    best, worst = order.iloc[0], order.iloc[-1]
    if len(arms) == 1:
        return f"{best['arm']}: {_short(best)}"
    return f"From {_short(best)} ({best['arm']}) to {_short(worst)} ({worst['arm']})"


def _short(row: pd.Series) -> str:
    return f"{100 * row['quality']:.1f} %" if row["unit"] == "accuracy" else f"{row['quality']:.3f} nats"


def _first(outcome: StudyOutcome) -> pd.DataFrame:
    """The arms on the first model and data set."""
    first = outcome.arms.iloc[0]
    return outcome.arms[(outcome.arms["model"] == first["model"]) & (outcome.arms["data"] == first["data"])]


def difference_finding(outcome: StudyOutcome) -> str:
    """How many arms are not inferior."""
    arms = _first(outcome)
    arms = arms[arms["verdict"] != ""]
    good = arms[arms["verdict"].isin((BETTER, NOT_INFERIOR))]
    reference = outcome.plan.file.held_against
    if good.empty:
        return f"No arm is shown to be as good as {reference}"
    return f"{len(good)} of {len(arms)} arms are shown not to be inferior to {reference}"


def front_finding(outcome: StudyOutcome) -> str:
    """Who gives most for what was trained."""
    arms = _first(outcome)
    arms = arms[arms["quality"].notna() & arms["changed"].notna()]
    if arms.empty:
        return "Quality against what it took"
    front = arms[on_front(arms["quality"], arms["changed"], higher=bool(arms["higher"].iloc[0]))]
    return f"Most quality for the weights trained: {_names(list(front.sort_values('changed')['arm']))}"


def focus_finding(outcome: StudyOutcome) -> str:
    """Which arms moved attention to the marked words."""
    answers = next(iter(outcome.answers.values()), {})
    yes = [arm for arm, answer in answers.items() if answer.verdict == "yes"]
    if not yes:
        return "No arm is shown to have moved attention to the marked words"
    return f"Attention moved to the marked words under {_names(yes)}"


def selection_finding(outcome: StudyOutcome) -> str:
    """Whether seeds choose alike, and how near the last blocks."""
    told = []
    for arm, table in outcome.selections.groupby("arm", sort=False):
        means = table[["other_seeds", "last_k"]].mean()
        between = "" if np.isnan(means["other_seeds"]) else f"seeds agree by {means['other_seeds']:.2f}, "
        told.append(f"{arm}: {between}last blocks {means['last_k']:.2f}")
    return f"Overlap of the chosen blocks (Jaccard): {'; '.join(told)}"


def arm_lines(outcome: StudyOutcome) -> list[tuple[str, str]]:
    """Each arm and what it does."""
    return [(arm.name, describe_arm(arm)) for arm in outcome.plan.file.arms]


def few_seeds(outcome: StudyOutcome) -> str:
    """A warning where no claim about a procedure can be made."""
    seeds = len(outcome.plan.file.seeds)
    if seeds >= LEAST_SEEDS:
        return ""
    count = f"{seeds} seed{'' if seeds == 1 else 's'}"
    return f"{count}: too few for a claim about a method; it takes {LEAST_SEEDS}. Read the numbers as a first look."


def edges(outcome: StudyOutcome) -> str:
    """Arms whose best learning rate lies at the end of its grid."""
    if outcome.cells.empty:
        return ""
    names = list(dict.fromkeys(outcome.cells.loc[outcome.cells["at_edge"], "arm"]))
    if not names:
        return ""
    return f"The best learning rate lies at the end of its grid for {_names(names)}: a wider one may do better."
