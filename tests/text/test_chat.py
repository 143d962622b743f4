"""Conversations: which characters the assistant speaks under templates of several kinds."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from attnlens.core.errors import CorpusError
from attnlens.text.chat import assistant_turns, rendered
from attnlens.text.corpus import Corpus, Example

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As Llama 2's: a start of text, no header of the assistant's, roles in turn.
BRACKETS = (
    "<s>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must\nalternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
# As Qwen 3's: the last answer has a marker that earlier ones lose, and the assistant is begun without it.
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHORT = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))
LONG = (*SHORT, ("user", "Hello?"), ("assistant", " Yes. "))


def example(messages: tuple[tuple[str, str], ...]) -> Example:
    return Example("\n".join(content for _, content in messages), "7", "7", messages=messages)


def tokenizer(template: str | None, *, adds_start: bool = False) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_start:
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>", chat_template=template)


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (CHATML, SHORT, ["Hello<|end|>\n"]),
        (CHATML, LONG, ["Hello<|end|>\n", "Yes.<|end|>\n"]),
        (BRACKETS, SHORT[1:], [" Hello </s>"]),
        (BRACKETS, LONG[1:], [" Hello </s>", "  Yes.  </s>"]),
        (THINKING, SHORT, ["<think></think>Hello<|end|>"]),
        (THINKING, LONG, ["Hello", "<think></think> Yes. <|end|>"]),
        (CHATML, SHORT[:2], []),
        (CHATML, (("assistant", "Welcome"), ("user", "Hi")), ["<|assistant|>\nWelcome<|end|>\n"]),
    ],
)
def test_turns_of_the_assistant(template: str, messages: tuple[tuple[str, str], ...], said: list[str]):
    text, turns = assistant_turns(example(messages), tokenizer(template))
    assert [text[start:end] for start, end in turns] == said


def test_the_rendered_corpus_marks_the_last_answer():
    corpus = Corpus((example(LONG), example(SHORT[:2]), Example("plain", "8", "8")), "chat", "0", False)
    long, unanswered, plain = rendered(corpus, tokenizer(CHATML))
    assert long.text == (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
        "<|user|>\nHello?<|end|>\n<|assistant|>\nYes.<|end|>\n"
    )
    assert long.completion is not None and long.text[long.completion :] == "Yes.<|end|>\n"
    assert unanswered.completion is None and plain == corpus.examples[2]
    assert long.messages == LONG and long.id == "7"


def test_a_corpus_without_messages_needs_no_template():
    corpus = Corpus((Example("ab", "1", "1", completion=1),), "plain", "0", False)
    assert rendered(corpus, tokenizer(None)) is corpus


def test_the_start_of_text_is_not_doubled():
    """A tokenizer that puts <s> before every text gets the template's text without it, and the same tokens."""
    once = tokenizer(BRACKETS, adds_start=True)
    text, ((start, end),) = assistant_turns(example(SHORT[1:]), once)
    assert text == "[INST] Hi [/INST] Hello </s>" and text[start:end] == " Hello </s>"
    expected = once.apply_chat_template([{"role": r, "content": c} for r, c in SHORT[1:]], return_dict=False)
    assert once(text)["input_ids"] == expected
    text, _ = assistant_turns(example(SHORT[1:]), tokenizer(BRACKETS))
    assert text.startswith("<s>[INST]")


def test_faults_are_one_line():
    corpus = Corpus((example(SHORT),), "chat", "0", False)
    with pytest.raises(
        CorpusError, match=r"row '7' holds messages, which need a chat template; the tokenizer has none"
    ):
        rendered(corpus, tokenizer(None))
    with pytest.raises(CorpusError, match=r"the chat template refuses the messages \(Roles must alternate\)\. Change"):
        rendered(corpus, tokenizer(BRACKETS))
    with pytest.raises(CorpusError, match=r"message 3 is not in its text\. Give prompt and completion"):
        rendered(corpus, tokenizer("{% for m in messages %}{{ m.content | upper }}{% endfor %}"))


def test_the_real_tokenizer_without_a_template_says_so(shared: Path):
    from transformers import AutoTokenizer

    corpus = Corpus((example(SHORT),), "chat", "0", False)
    with pytest.raises(CorpusError, match="the tokenizer has none"):
        rendered(corpus, AutoTokenizer.from_pretrained(shared / "models" / "stories260K"))
