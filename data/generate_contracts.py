"""Writes the embedded contract corpus: clauses whose type is decided by what they state, not by what they mention.

Each text states one thing (its label) and mentions others: proposals not adopted, duties left to another section,
cross-references, misleading headings. The frames that state and the frames that mention share their words, so a bag
of words sees several types in most texts and cannot tell which one counts. `phrases.toml` holds every phrase;
`check_contracts.py` measures the claim.

    python data/generate_contracts.py            # the same bytes every time
"""

import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PHRASES = tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))
TYPES = {entry["label"]: entry for entry in PHRASES["types"]}
FRAMES = PHRASES["frames"]
NAMES = PHRASES["names"]

SEED = 20240607
SPLITS = {"train": (80, 2), "eval": (48, 1)}  # documents, and examples of each type in a document
UNSEEN_RATE = 0.25  # of the evaluation examples, how many state their type in a phrase that training never shows
MENTIONS = {0: 0.15, 1: 0.45, 2: 0.40}  # how often a text mentions so many other types in sentences of their own
OPENING_RATE = 0.25  # of the frames that take an opening, how many open with the name of another type
REFERENCE_RATE = 0.3  # of the sentences that state nothing, how many name another type
LONG = 60  # words from which a text gets no further sentence
TAKES_OPENING = ("{P} ", "{R}", "{O} ", "the ", "this ", "nothing ", "it is ")
TAKES_TAIL = ("{V}", "{R}")

Row = dict[str, str | list[dict[str, int | str]]]


@dataclass(frozen=True)
class Style:
    """How one document is drafted. Every example of the document follows it."""

    parties: tuple[str, str]
    outsiders: tuple[str, ...]
    modal: str
    agreement: str
    division: str
    number: str
    money: str
    state: str
    joint: str
    heading_rate: float
    rule_rate: float
    tail_rate: float
    asides: int
    frames: dict[str, list[str]]


def draw_style(rng: random.Random, companies: tuple[str, str]) -> Style:
    """A drafting style: two parties, a small stock of frames, and habits of numbering, money and length."""
    first, second = rng.choice(NAMES["roles"])
    stock = {"state_duty": 7, "state_rule": 5, "mention_duty": 6, "mention_rule": 4}
    return Style(
        parties=rng.choice([(f"the {first}", f"the {second}"), (first, second), companies]),
        outsiders=tuple(f"{name} {rng.choice(NAMES['houses'])}" for name in rng.sample(NAMES["firms"], 3)),
        modal=rng.choice(["shall", "shall", "will", "must"]),
        agreement=rng.choice(["this Agreement", "this Agreement", "this Contract", "this Deed"]),
        division=rng.choice(["Section", "Clause", "Article", "Paragraph"]),
        number=rng.choice(["", "{0}.{1} ", "{0}.{1} ", "({2}) ", "{0}({2}) "]),
        money=rng.choice(["USD {0},000", "${0},000", "EUR {0},000", "{0} thousand dollars"]),
        state=rng.choice(NAMES["states"]),
        joint=rng.choice([". ", ". ", "; "]),
        heading_rate=rng.choice([0.0, 0.0, 0.5, 1.0]),
        rule_rate=rng.choice([0.2, 0.4, 0.6]),
        tail_rate=rng.choice([0.0, 0.1, 0.4]),
        asides=rng.choice([0, 0, 1, 2]),
        frames={name: rng.sample(FRAMES[name], size) for name, size in stock.items()},
    )


class Slots:
    """Fills `{X}` in a phrase through `str.format_map`: the document's habits, and a fresh draw of numbers and names.

    Which party is bound is drawn once, so one sentence needs one `Slots`.
    """

    def __init__(self, rng: random.Random, style: Style):
        self.rng, self.style = rng, style
        bound, other = rng.sample(style.parties, 2)
        self.habits = {"P": bound, "O": other, "M": style.modal, "A": style.agreement, "s": style.division}

    def __getitem__(self, name: str) -> str:
        return self.habits[name] if name in self.habits else self.draw(name)

    def draw(self, name: str) -> str:
        rng, style = self.rng, self.style
        match name:
            case "S":
                return f"{style.division} {rng.randint(16, 40)}"
            case "money":
                return style.money.format(5 * rng.randint(4, 180))
            case "n":
                return str(rng.randint(2, 9))
            case "days":
                return str(rng.choice([10, 14, 20, 30, 45, 60, 90]))
            case "year":
                return str(rng.randint(2009, 2023))
            case "date":
                return f"{rng.randint(1, 28)} {rng.choice(NAMES['months'])} {rng.randint(2009, 2023)}"
            case "state":
                return rng.choice([style.state, rng.choice(NAMES["states"])])
            case "territory":
                return rng.choice(NAMES["territories"])
            case "company":
                return rng.choice(style.outsiders)
        raise KeyError(name)


class Writer:
    """Writes the sentences of one text. No frame comes twice in a text."""

    def __init__(self, rng: random.Random, style: Style):
        self.rng, self.style = rng, style
        stock = {**style.frames, "fillers": FRAMES["fillers"], "references": FRAMES["references"]}
        self.stock = {name: rng.sample(frames, len(frames)) for name, frames in stock.items()}

    def clause(self, kind: str, label: str, other: str, unseen: bool) -> str:
        """A sentence that states (kind "state") or only mentions ("mention") something of the type `label`.

        Where it states, the deciding words stand between asterisks. An opening names the type `other`.
        """
        is_rule = self.rng.random() < self.style.rule_rate
        form = "rules" if is_rule else "duties"
        phrase = self.rng.choice(TYPES[label][f"unseen_{form}" if unseen else form])
        frame = self.stock[f"{kind}_rule" if is_rule else f"{kind}_duty"].pop()
        text = frame.replace("{R}", phrase.replace("{M}", "*{M}*")).replace("{V}", phrase)
        if frame.endswith(TAKES_TAIL) and self.rng.random() < self.style.tail_rate:
            text += self.rng.choice(FRAMES["tails"])
        if frame.startswith(TAKES_OPENING) and self.rng.random() < OPENING_RATE:
            text = self.rng.choice(FRAMES["openings"]).replace("{T}", self.rng.choice(TYPES[other]["topics"])) + text
        if kind == "mention":
            text = text.replace("*", "")
        return text.format_map(Slots(self.rng, self.style))

    def aside(self, label: str) -> str:
        """A sentence that states nothing of any type: a filler, or a reference to the type `label`."""
        frame = self.stock["references" if self.rng.random() < REFERENCE_RATE else "fillers"].pop()
        topic = self.rng.choice(TYPES[label]["topics"])
        return frame.replace("{T}", topic).format_map(Slots(self.rng, self.style))


def marked_text(rng: random.Random, style: Style, label: str, unseen: bool) -> str:
    """A whole text, its deciding words between asterisks."""
    writer = Writer(rng, style)
    first, second, third, fourth = others = rng.sample([name for name in TYPES if name != label], 4)
    mentions = rng.choices(list(MENTIONS), weights=list(MENTIONS.values()))[0]
    sentences = [writer.clause("state", label, third, unseen)]
    sentences += [writer.clause("mention", other, third, unseen) for other in (first, second)[:mentions]]
    for _ in range(max(style.asides, mentions == 0)):
        if len(" ".join(sentences).split()) < LONG:
            sentences.append(writer.aside(fourth))
    rng.shuffle(sentences)
    if style.joint == ". ":
        sentences = [capital(sentence) for sentence in sentences]
    text = capital(style.joint.join(sentences)) + "."
    if rng.random() < style.heading_rate:
        headings = [TYPES[name]["heading"] for name in [label, *others[:mentions]]]
        text = f"{rng.choice([*headings, 'General', 'Further Terms'])}. {text}"
    return style.number.format(rng.randint(2, 15), rng.randint(1, 9), rng.choice("abcdefgh")) + text


def capital(sentence: str) -> str:
    """The sentence with its first letter in upper case, behind an asterisk or a quotation mark too."""
    first = next(index for index, character in enumerate(sentence) if character.isalnum())
    return sentence[:first] + sentence[first].upper() + sentence[first + 1 :]


def unmark(marked: str, label: str) -> Row:
    """The text without asterisks, and a span for each stretch between two of them; touching stretches become one."""
    text, spans = "", []
    for index, part in enumerate(marked.split("*")):
        if index % 2:
            if spans and text[spans[-1]["end"] :].isspace():
                spans[-1]["end"] = len(text) + len(part)
            else:
                spans.append({"start": len(text), "end": len(text) + len(part), "label": label})
        text += part
    return {"text": text, "label": label, "spans": spans}


def split_rows(rng: random.Random, split: str, companies: list[str]) -> list[Row]:
    """The rows of one split: every document has the same number of texts of each type, in an order of its own."""
    documents, each = SPLITS[split]
    rows = []
    for number in range(documents):
        style = draw_style(rng, (companies.pop(), companies.pop()))
        document = f"{split}-{number:03d}"
        labels = list(TYPES) * each
        rng.shuffle(labels)
        for index, label in enumerate(labels):
            unseen = split == "eval" and rng.random() < UNSEEN_RATE
            row = unmark(marked_text(rng, style, label, unseen), label)
            rows.append({"id": f"{document}-{index:02d}", "document": document, **row})
    return rows


def generate(seed: int = SEED) -> dict[str, str]:
    """Split name → the content of its file. No company is a party in two documents."""
    rng = random.Random(seed)
    companies = [f"{firm} {trade}" for firm in NAMES["firms"] for trade in NAMES["trades"]]
    rng.shuffle(companies)
    files = {}
    for split in SPLITS:
        rows = split_rows(rng, split, companies)
        files[split] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return files


if __name__ == "__main__":
    for split, content in generate().items():
        (HERE / f"contracts_{split}.jsonl").write_text(content, encoding="utf-8", newline="\n")
