"""What a report's methods rest on: one list of works, as lines of the page and as BibTeX."""

from collections.abc import Iterable
from dataclasses import dataclass

from attnlens.analysis.results import Comparison
from attnlens.show.latex import escape
from attnlens.show.training_records import text, training_records


@dataclass(frozen=True)
class Work:
    """One work. of: what it is cited for; authors: "Last, First" each; where: journal, book or publisher.

    kind: of the BibTeX entry. place: volume, number and pages, or an arXiv number. when: of what the work is cited for
    alone, by name: a definition of the marked words, a figure or a training method; empty: always.
    """

    key: str
    of: str
    authors: tuple[str, ...]
    year: int
    title: str
    where: str
    kind: str = "article"
    place: str = ""
    when: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """As a list of references has it."""
        names = [name.split(", ")[0] for name in self.authors]
        if len(names) > 3:
            told = f"{names[0]} et al."
        else:
            told = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
        place = f", {self.place}" if self.place else ""
        return f"{told} ({self.year}). {self.title}. {self.where}{place}."

    @property
    def bibtex(self) -> str:
        """As a BibTeX entry."""
        holder = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}[self.kind]
        fields = {"author": " and ".join(self.authors), "title": self.title, holder: self.where}
        fields |= {"year": str(self.year)} | ({"note": self.place} if self.place else {})
        fields = {name: escape(value) for name, value in fields.items()} | {"title": f"{{{escape(self.title)}}}"}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


EMNLP, BLACKBOX = "Proceedings of EMNLP", "Proceedings of the BlackboxNLP Workshop"
WORKS = (
    Work(
        "vig2019", "share of attention on marked words", ("Vig, Jesse", "Belinkov, Yonatan"), 2019,
        "Analyzing the Structure of Attention in a Transformer Language Model", BLACKBOX, "inproceedings",
        "pages 63–76",
    ),
    Work(
        "clark2019", "attention of words from that of word pieces",
        ("Clark, Kevin", "Khandelwal, Urvashi", "Levy, Omer", "Manning, Christopher D."), 2019,
        "What Does BERT Look at? An Analysis of BERT's Attention", BLACKBOX, "inproceedings", "pages 276–286",
    ),
    Work(
        "shannon1948", "entropy", ("Shannon, Claude E.",), 1948, "A Mathematical Theory of Communication",
        "Bell System Technical Journal", place="volume 27, pages 379–423",
    ),
    Work(
        "lin1991", "Jensen–Shannon divergence", ("Lin, Jianhua",), 1991,
        "Divergence Measures Based on the Shannon Entropy", "IEEE Transactions on Information Theory",
        place="volume 37, number 1, pages 145–151", when=("jsd_profile",),
    ),
    Work(
        "hao2020", "divergence of attention by layer in fine-tuning",
        ("Hao, Yaru", "Dong, Li", "Wei, Furu", "Xu, Ke"), 2020,
        "Investigating Learning Dynamics of BERT Fine-Tuning", "Proceedings of AACL-IJCNLP", "inproceedings",
        when=("jsd_profile",),
    ),
    Work(
        "gu2025", "received attention and sinks",
        (
            "Gu, Xiangming", "Pang, Tianyu", "Du, Chao", "Liu, Qian", "Zhang, Fengzhuo", "Du, Cunxiao", "Wang, Ye",
            "Lin, Min",
        ),
        2025, "When Attention Sink Emerges in Language Models: An Empirical View", "Proceedings of ICLR",
        "inproceedings", "arXiv:2410.10781",
    ),
    Work(
        "kobayashi2020", "attention by value vectors",
        ("Kobayashi, Goro", "Kuribayashi, Tatsuki", "Yokoi, Sho", "Inui, Kentaro"), 2020,
        "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms", EMNLP, "inproceedings",
        "pages 7057–7075", ("controls",),
    ),
    Work(
        "mann1947", "AUROC", ("Mann, Henry B.", "Whitney, Donald R."), 1947,
        "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other",
        "Annals of Mathematical Statistics", place="volume 18, number 1, pages 50–60", when=("agreement",),
    ),
    Work(
        "arras2022", "precision at k, as relevance rank accuracy",
        ("Arras, Leila", "Osman, Ahmed", "Samek, Wojciech"), 2022,
        "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network Explanations",
        "Information Fusion", place="volume 81, pages 14–40", when=("agreement",),
    ),
    Work(
        "geva2023", "attention knockout",
        ("Geva, Mor", "Bastings, Jasmijn", "Filippova, Katja", "Globerson, Amir"), 2023,
        "Dissecting Recall of Factual Associations in Auto-Regressive Language Models", EMNLP, "inproceedings",
        when=("reliance",),
    ),
    Work(
        "kornblith2019", "CKA of hidden states",
        ("Kornblith, Simon", "Norouzi, Mohammad", "Lee, Honglak", "Hinton, Geoffrey"), 2019,
        "Similarity of Neural Network Representations Revisited", "Proceedings of ICML", "inproceedings",
    ),
    Work(
        "song2012", "its estimator without bias",
        ("Song, Le", "Smola, Alex", "Gretton, Arthur", "Bedo, Justin", "Borgwardt, Karsten"), 2012,
        "Feature Selection via Dependence Maximization", "Journal of Machine Learning Research",
        place="volume 13, pages 1393–1434",
    ),
    Work(
        "efron1993", "bootstrap-t intervals", ("Efron, Bradley", "Tibshirani, Robert J."), 1993,
        "An Introduction to the Bootstrap", "Chapman & Hall", "book",
    ),
    Work(
        "nichols2002", "joint sign flips, largest deviation over layers",
        ("Nichols, Thomas E.", "Holmes, Andrew P."), 2002,
        "Nonparametric Permutation Tests for Functional Neuroimaging: A Primer with Examples", "Human Brain Mapping",
        place="volume 15, number 1, pages 1–25",
    ),
    Work(
        "westfall1993", "adjusted p over layers", ("Westfall, Peter H.", "Young, S. Stanley"), 1993,
        "Resampling-Based Multiple Testing: Examples and Methods for p-Value Adjustment", "Wiley", "book",
    ),
    Work(
        "benjamini1995", "false discovery rate over heads", ("Benjamini, Yoav", "Hochberg, Yosef"), 1995,
        "Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing",
        "Journal of the Royal Statistical Society B", place="volume 57, number 1, pages 289–300",
    ),
    Work(
        "schuirmann1987", "equivalence by two one-sided tests", ("Schuirmann, Donald J.",), 1987,
        "A Comparison of the Two One-Sided Tests Procedure and the Power Approach for Assessing the Equivalence of "
        "Average Bioavailability", "Journal of Pharmacokinetics and Biopharmaceutics",
        place="volume 15, number 6, pages 657–680",
    ),
    Work(
        "monroe2008", "keyness", ("Monroe, Burt L.", "Colaresi, Michael P.", "Quinn, Kevin M."), 2008,
        "Fightin' Words: Lexical Feature Selection and Evaluation for Identifying the Content of Political Conflict",
        "Political Analysis", place="volume 16, number 4, pages 372–403", when=("keyness", "spans_keyness"),
    ),
    Work(
        "mihalcea2004", "TextRank", ("Mihalcea, Rada", "Tarau, Paul"), 2004, "TextRank: Bringing Order into Text",
        EMNLP, "inproceedings", "pages 404–411", ("textrank",),
    ),
    Work(
        "lee2025", "adaptive layer-wise fine-tuning", ("Lee, Jee Young",), 2025,
        "A Study on LLM Fine-tuning Strategies", "International Journal of Advanced Smart Convergence",
        place="volume 14, number 4, pages 105–113", when=("alf",),
    ),
    Work(
        "hu2022", "LoRA",
        (
            "Hu, Edward J.", "Shen, Yelong", "Wallis, Phillip", "Allen-Zhu, Zeyuan", "Li, Yuanzhi", "Wang, Shean",
            "Wang, Lu", "Chen, Weizhu",
        ),
        2022, "LoRA: Low-Rank Adaptation of Large Language Models", "Proceedings of ICLR", "inproceedings",
        "arXiv:2106.09685", ("lora",),
    ),
    Work(
        "jain2019", "limits of attention as an explanation", ("Jain, Sarthak", "Wallace, Byron C."), 2019,
        "Attention is not Explanation", "Proceedings of NAACL", "inproceedings", "pages 3543–3556",
    ),
    Work(
        "wiegreffe2019", "the answer to it", ("Wiegreffe, Sarah", "Pinter, Yuval"), 2019,
        "Attention is not not Explanation", "Proceedings of EMNLP-IJCNLP", "inproceedings", "pages 11–20",
    ),
)  # fmt: skip


def cited(comparison: Comparison, figures: Iterable[str]) -> list[Work]:
    """The works that the page of `comparison` rests on, in the order of its text."""
    methods = {text(record.get("method")) for record in training_records(comparison).values()}
    named = {*comparison.salience, *figures, *methods}
    return [work for work in WORKS if not work.when or named & set(work.when)]


def bibliography(works: list[Work]) -> str:
    """A .bib file of them."""
    return "\n\n".join(work.bibtex for work in works) + "\n"
