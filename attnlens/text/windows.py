"""Long texts cut to a window around the words that matter."""

from collections import Counter
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from attnlens.core.errors import CorpusError
from attnlens.text.corpus import Corpus, Example, Span


def commonest(corpus: Corpus, count: int) -> tuple[str, ...]:
    """The `count` labels that most rows have, the commonest first; of equals the one that comes first."""
    counted = Counter(example.label for example in corpus if example.label is not None)
    return tuple(label for label, _ in counted.most_common(count))


def labelled(corpus: Corpus, labels: tuple[str, ...]) -> Corpus:
    """The rows that have one of these labels."""
    return corpus.select(number for number, example in enumerate(corpus) if example.label in labels)


def windowed(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Corpus:
    """Every text cut to at most `tokens` of its tokens, special ones included, around its first own span.

    A word that is cut may come to other tokens when the piece is read alone; max_length cuts off what that adds.
    Own spans are those with the row's label, all of them where none has it; a text without spans keeps its beginning.
    Spans are cut with their text. Raises CorpusError for prompts, completions and conversations, which are one piece.
    """
    room = tokens - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise CorpusError(f"a window of {tokens} tokens leaves no room for text beside the special tokens")
    whole = [example.id for example in corpus if example.completion is not None or example.messages]
    if whole:
        raise CorpusError(
            f"a window cuts plain texts, but {len(whole)} of {len(corpus)} rows of {corpus.name} are prompts with "
            f"completions or conversations (first: id {whole[0]!r}): leave window out"
        )
    return replace(corpus, examples=tuple(_window(example, tokenizer, room) for example in corpus))


def _window(example: Example, tokenizer: PreTrainedTokenizerBase, room: int) -> Example:
    spans = example.spans or ()
    own = [span for span in spans if span.label == example.label] or list(spans)
    encoded = tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]  # pyright: ignore[reportAssignmentType]
    if len(offsets) <= room:
        return example
    centre = (own[0].start + own[0].end) / 2 if own else 0.0
    middle = min(range(len(offsets)), key=lambda number: abs(sum(offsets[number]) / 2 - centre))
    first = max(0, min(middle - room // 2, len(offsets) - room))
    start, end = offsets[first][0], offsets[first + room - 1][1]
    inside = [
        Span(max(span.start, start) - start, min(span.end, end) - start, span.label)
        for span in spans
        if span.start < end and span.end > start
    ]
    cut = None if example.spans is None else tuple(inside)
    return replace(example, text=example.text[start:end], spans=cut)
