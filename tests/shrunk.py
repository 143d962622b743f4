"""How a model type is made small: names that configs share, and what single types need beside them."""

SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "hidden_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "state_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "v_head_dim": 12,
    "sliding_window": 4,
    "rotary_dim": 4,
    "vocab_size": 120,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "attention_probs_dropout_prob": 0.0,
}
LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
HYBRID = ["mamba", "hybrid"]
PART = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 120}
GEMMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
GEMMA |= {
    "vocab_size": 120,
    "intermediate_size": 64,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
# What single types need beside that: at least one layer of attention, sizes that fit each other, a language.
OVERRIDES: dict[str, dict] = {
    "axk1": {"n_group": 2, "topk_group": 1},
    "bailing_hybrid": LINEAR_AND_FULL,
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "encoder-decoder": {"encoder": PART, "decoder": PART | {"is_decoder": True, "add_cross_attention": True}},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": LINEAR_AND_FULL | {"linear_num_heads": 4, "linear_head_dim": 8},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 20},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "mistral4": {"qk_rope_head_dim": 4, "num_key_value_heads": 4},
    "neomme": {"head_dim": 16},
    "perceiver": {"d_latents": 32, "num_latents": 8, "image_size": 4, "num_frames": 1, "max_position_embeddings": 64},
    "qwen3_5_moe_text": LINEAR_AND_FULL,
    "qwen3_5_text": LINEAR_AND_FULL,
    "qwen3_next": LINEAR_AND_FULL,
    "qwen4_exp_text": LINEAR_AND_FULL,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "t5gemma": {"encoder": GEMMA, "decoder": GEMMA | {"cross_attention_hidden_size": 32}},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": 2 * HYBRID, "layer_types": 2 * HYBRID},
    "zamba2": {"layers_block_type": HYBRID, "layer_types": HYBRID},
    "zaya": {"num_experts_per_tok": 1},
}
