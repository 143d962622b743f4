"""Small models of every architecture the tests record, built from configs with random weights, and batches for them."""

import torch
import transformers as tf

SIZES = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
LLAMA = BERT | {"num_key_value_heads": 2}
CONFIGS = {
    "bert": lambda: tf.BertConfig(**SIZES, **BERT),
    "roberta": lambda: tf.RobertaConfig(**SIZES, **BERT),
    "distilbert": lambda: tf.DistilBertConfig(vocab_size=100, dim=32, n_heads=4, n_layers=2, hidden_dim=48),
    "gpt2": lambda: tf.GPT2Config(**SIZES, n_embd=32, n_head=4, n_layer=2),
    "llama": lambda: tf.LlamaConfig(**SIZES, **LLAMA),
    "qwen2": lambda: tf.Qwen2Config(**SIZES, **LLAMA),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, **LLAMA, head_dim=8),
}

WIDE = SIZES | BERT | {"head_dim": 8}
LAYERED = {"layer_types": ["sliding_attention", "full_attention"]}
# Windows, softcap, shared modules, one name for two attentions: each needs more than CONFIGS' tests say.
SPECIAL = {
    "albert": lambda: tf.AlbertConfig(**SIZES, **BERT, embedding_size=16, num_hidden_groups=1),
    "opt": lambda: tf.OPTConfig(**SIZES, **BERT, ffn_dim=48, word_embed_proj_dim=32),
    "modernbert": lambda: tf.ModernBertConfig(
        **SIZES, **BERT, **LAYERED, local_attention=6, cls_token_id=1, sep_token_id=2
    ),
    "gemma2": lambda: tf.Gemma2Config(
        **WIDE, **LAYERED, num_key_value_heads=2, sliding_window=4, attn_logit_softcapping=5.0, query_pre_attn_scalar=8
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **WIDE, **LAYERED, num_key_value_heads=2, sliding_window=4, query_pre_attn_scalar=8
    ),
    "t5": lambda: tf.T5Config(
        **{name: size for name, size in SIZES.items() if name != "bos_token_id"},
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        initializer_factor=0.3,  # T5 does not scale its logits: wider ones would be all but one-hot
    ),
    "bart": lambda: tf.BartConfig(
        **SIZES,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    ),
}


def build(name: str, *, seed: int = 0, config=None) -> tf.PreTrainedModel:
    """A random model in evaluation mode; weights are drawn wide so that attention is far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModel.from_config((CONFIGS | SPECIAL)[name]() if config is None else config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8.0)
    return model.eval()


def batch(side: str = "right", *, texts: int = 3, tokens: int = 13) -> dict[str, torch.Tensor]:
    """Texts of unequal length, padded on one side."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (texts, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for text, padded in enumerate((5, 1, 0)[:texts]):
        if padded:
            mask[text, -padded:] = 0
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask}


def padded(texts: list[list[int]], *, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Token ids as a batch padded on the right, and random groups: content, marked, a sink in front, −1 on padding."""
    longest = max(map(len, texts))
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in texts])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in texts])
    groups = torch.randint(0, 2, ids.shape, generator=torch.Generator().manual_seed(seed))
    groups[:, 0] = 2
    return {"input_ids": ids, "attention_mask": mask}, groups.masked_fill(mask == 0, -1)
