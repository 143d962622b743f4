"""Conversations as text: the tokenizer's chat template, and where in its text the assistant speaks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attnlens.core.errors import CorpusError
from attnlens.text.corpus import Corpus, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]
Turn = tuple[int, int]  # characters [start, end)


def rendered(corpus: Corpus, tokenizer: "PreTrainedTokenizerBase") -> Corpus:
    """The corpus with its conversations written out by the chat template; without conversations it is the same corpus.

    `completion` is the start of the last turn where that is the assistant's, else None.
    """
    if not any(example.messages for example in corpus):
        return corpus
    return replace(corpus, examples=tuple(_rendered(example, tokenizer) for example in corpus))


def assistant_turns(example: Example, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[Turn]]:
    """The conversation's text and the parts of it that the assistant says, each with what ends a turn.

    A turn starts where the template would have the assistant begin. The tokenizer adds its own start of text, so that
    of the template is left out.
    """
    assert example.messages is not None
    text, turns, reached = _template(example, example.messages, tokenizer), list[Turn](), 0
    for place, (role, content) in enumerate(example.messages):
        if role != "assistant":
            continue
        before = _template(example, example.messages[:place], tokenizer, begun=True) if place else ""
        through = _template(example, example.messages[: place + 1], tokenizer)
        # Templates may write the last turn otherwise than it stands once more follow, or begin it with a marker that
        # the finished turn lacks: what the texts share decides, and the content must be found behind it.
        start = max(reached, _shared(text, before))
        found = text.find(content.strip(), start)
        if found < 0:
            raise CorpusError(
                f"row {example.id!r}: needs a chat template that writes the assistant's words as they are; message "
                f"{place + 1} is not in its text. Give prompt and completion instead of messages."
            )
        reached = max(_shared(text, through), found + len(content.strip()))
        turns.append((start, reached))
    begin = _own_start(text, tokenizer)
    return text[begin:], [(max(start - begin, 0), end - begin) for start, end in turns]


def _rendered(example: Example, tokenizer: "PreTrainedTokenizerBase") -> Example:
    if example.messages is None:
        return example
    text, turns = assistant_turns(example, tokenizer)
    answered = bool(turns) and example.messages[-1][0] == "assistant"
    return replace(example, text=text, completion=turns[-1][0] if answered else None)


def _template(
    example: Example, messages: Messages, tokenizer: "PreTrainedTokenizerBase", *, begun: bool = False
) -> str:
    if not tokenizer.chat_template:
        raise CorpusError(
            f"row {example.id!r} holds messages, which need a chat template; the tokenizer has none. "
            "Give prompt and completion instead, or start from a checkpoint whose tokenizer has a chat template."
        )
    conversation = [{"role": role, "content": content} for role, content in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=begun)
    except Exception as error:  # a template is somebody's program and may raise anything
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(
            f"row {example.id!r}: the chat template refuses the messages ({reason}). Change the roles, or give prompt "
            "and completion instead."
        ) from error
    return str(text)


def _shared(first: str, second: str) -> int:
    """Length of the beginning that two texts have in common."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _own_start(text: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Length of the start-of-text token in `text` where the tokenizer puts one before every text by itself."""
    start = tokenizer.bos_token
    adds = bool(start) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return len(str(start)) if adds and text.startswith(str(start)) else 0
