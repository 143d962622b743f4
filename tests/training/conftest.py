"""Tiny random models of five architectures, each with a tokenizer trained here, and a task that words decide."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from attnlens.text.corpus import Corpus, Example

VERBS = {"cap": "limits liability", "law": "governs disputes", "term": "ends renewal"}
FILLER = "the party of this contract agrees that section seven of the deed".split()
SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
LONG = {"max_position_embeddings": 40}


def rows(documents: int = 12) -> list[dict[str, str]]:
    """Three rows a document, one of each label; the deciding words stand in changing places."""
    made = []
    for document in range(documents):
        for place, (label, words) in enumerate(VERBS.items()):
            cut = (document + place) % len(FILLER)
            text = " ".join([*FILLER[cut:], words, *FILLER[:cut][: document % 4]])
            made.append({"id": f"{document}-{label}", "document": f"d{document:02}", "text": text, "label": label})
    return made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of models this small cost a hundred times what they save where other processes run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def corpus() -> Corpus:
    examples = tuple(Example(row["text"], row["id"], row["document"], row["label"]) for row in rows())
    return Corpus(examples, "task.jsonl", "0" * 64, True)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "task.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, between a first and a last token."""
    special = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=[*special.values()])
    tokenizer.train_from_iterator((row["text"] for row in rows()), trainer)
    pairs = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs, nothing added to a text, no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)  # pyright: ignore
    tokenizer.train_from_iterator((row["text"] for row in rows()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _config(architecture: str, vocab: int, pad: int | None):
    common = {"vocab_size": vocab, "pad_token_id": pad}
    return {
        "bert": lambda: BertConfig(**SHAPE, **LONG, **common),
        "roberta": lambda: RobertaConfig(**SHAPE, **LONG, **common, type_vocab_size=1),
        "xlm-roberta": lambda: XLMRobertaConfig(**SHAPE, **LONG, **common, type_vocab_size=1),
        "distilbert": lambda: DistilBertConfig(
            dim=16, n_layers=4, n_heads=2, hidden_dim=24, max_position_embeddings=40, **common
        ),
        "gpt2": lambda: GPT2Config(
            n_embd=16, n_layer=4, n_head=2, n_positions=40, vocab_size=vocab, bos_token_id=0, eos_token_id=0
        ),
        "llama": lambda: LlamaConfig(**SHAPE, **LONG, **common, num_key_value_heads=1),
        "qwen2": lambda: Qwen2Config(**SHAPE, **LONG, **common, num_key_value_heads=1),
    }[architecture]()


ARCHITECTURES = ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen2")


def _builder(folder: Path, auto: type) -> Callable[[str], Path]:
    made = dict[str, Path]()

    def build(architecture: str) -> Path:
        if architecture not in made:
            encoder = architecture in {"bert", "roberta", "xlm-roberta", "distilbert"}
            tokenizer = encoder_tokenizer() if encoder else _decoder_tokenizer()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = auto.from_config(_config(architecture, len(tokenizer), tokenizer.pad_token_id))
            path = folder / architecture
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[architecture] = path
        return made[architecture]

    return build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a tiny base model (no task head) of an architecture; decoders come without a padding token."""
    return _builder(tmp_path_factory.mktemp("tiny"), AutoModel)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a tiny decoder with its language-model head: GPT-2's is tied to the embeddings, Llama's is not."""
    return _builder(tmp_path_factory.mktemp("tiny_lm"), AutoModelForCausalLM)
