"""Tiny configurations of the families beside those that every test of models goes through (`FAMILIES`)."""

from __future__ import annotations

from typing import Any

import transformers as tf
from tiny import SHAPE, VOCABULARY

PLAIN = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
SLIDING = SHAPE | {"sliding_window": 5}
NO_HEAD = {key: value for key, value in SHAPE.items() if key != "head_dim"}
LATENT = NO_HEAD | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SIGHT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_SIGHT = {"depth": 2, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 16}
STATE = {**PLAIN, "hidden_size": 32, "num_hidden_layers": 3}
GPT = {**PLAIN, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}


def rotated(*section: int) -> dict[str, Any]:
    """A text model whose positions have three axes."""
    return SHAPE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*section]}}


MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("LlamaConfig", SHAPE | {"tie_word_embeddings": True}),
    "ministral": ("MinistralConfig", SLIDING),
    "gemma4": ("Gemma4TextConfig", SHAPE | {"vocab_size_per_layer_input": VOCABULARY}),
    "gemma3n": (
        "Gemma3nTextConfig",
        SLIDING
        | {
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 4,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.0] * 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3-moe": ("Qwen3MoeConfig", SHAPE | EXPERTS),
    "qwen3-next": (
        "Qwen3NextConfig",
        SHAPE | EXPERTS | DELTA | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 16},
    ),
    "olmoe": ("OlmoeConfig", NO_HEAD | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": (
        "GptOssConfig",
        SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "deepseek-v2": ("DeepseekV2Config", LATENT | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek-v3": ("DeepseekV3Config", LATENT | {"q_lora_rank": 8, "n_group": 2, "topk_group": 1}),
    "llama4": (
        "Llama4TextConfig",
        SHAPE
        | {
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 16,
        },
    ),
    "glm4": ("Glm4Config", SHAPE),
    "cohere2": ("Cohere2Config", SHAPE | {"sliding_window": 8}),
    "phi": ("PhiConfig", NO_HEAD),
    "persimmon": (
        "PersimmonConfig",
        {key: value for key, value in NO_HEAD.items() if key != "num_key_value_heads"},
    ),
    "apertus": ("ApertusConfig", NO_HEAD),
    "arcee": ("ArceeConfig", SHAPE),
    "diffllama": ("DiffLlamaConfig", SHAPE),
    "bloom": ("BloomConfig", {**PLAIN, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": (
        "MptConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_layers": 3,
            "n_heads": 4,
            "expansion_ratio": 2,
            "max_seq_len": 64,
        },
    ),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 4}),
    "gpt-bigcode": ("GPTBigCodeConfig", GPT),
    "xglm": (
        "XGLMConfig",
        {**PLAIN, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48}
        | {"max_position_embeddings": 64},
    ),
    "bert, as decoder": (
        "BertConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "is_decoder": True,
        },
    ),
    "mamba": ("MambaConfig", STATE | {"state_size": 4}),
    "mamba2": (
        "Mamba2Config",
        STATE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 2, "chunk_size": 8},
    ),
    "falcon-mamba": ("FalconMambaConfig", STATE | {"state_size": 4}),
    "rwkv": ("RwkvConfig", STATE | {"attention_hidden_size": 32, "context_length": 64, "rescale_every": 2}),
    "xlstm": (
        "xLSTMConfig",
        {**PLAIN, "hidden_size": 32, "embedding_dim": 32, "num_blocks": 3, "num_hidden_layers": 3}
        | {"num_heads": 2, "chunk_size": 8, "mode": "inference"},
    ),
    "recurrent-gemma": (
        "RecurrentGemmaConfig",
        NO_HEAD | {"lru_width": 32, "attention_window_size": 6, "num_key_value_heads": 1},
    ),
    "jamba": (
        "JambaConfig",
        NO_HEAD
        | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
    ),
    "zamba2": (
        "Zamba2Config",
        {**PLAIN, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
        | {"intermediate_size": 48, "mamba_d_state": 8, "mamba_expand": 2, "mamba_headdim": 8}
        | {"mamba_ngroups": 1, "n_mamba_heads": 8, "chunk_size": 8, "num_mem_blocks": 1}
        | {"layers_block_type": ["mamba", "hybrid"] * 2, "max_position_embeddings": 64},
    ),
    "nemotron-h": (
        "NemotronHConfig",
        {**SHAPE, "num_hidden_layers": 4, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1}
        | {"ssm_state_size": 8, "chunk_size": 8, "layers_block_type": ["mamba", "attention", "mamba", "moe"]}
        | {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
        | {"moe_shared_expert_intermediate_size": 16},
    ),
    "lfm2": ("Lfm2Config", SHAPE | {"full_attn_idxs": [1], "conv_L_cache": 3}),
    "kimi-linear, all blocks linear": (
        "KimiLinearConfig",
        LATENT
        | {"num_experts": 4, "linear_head_dim": 8, "linear_num_heads": 4, "q_lora_rank": None}
        | {"layer_types": ["linear_attention"] * 3},
    ),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": rotated(1, 1, 2),
            "vision_config": {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        {"text_config": rotated(1, 1, 2), "vision_config": QWEN_SIGHT | {"fullatt_block_indexes": [1]}},
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        {
            "text_config": rotated(2, 1, 1),
            "vision_config": QWEN_SIGHT | {"deepstack_visual_indexes": [1], "num_position_embeddings": 16},
        },
    ),
    "qwen3.5": (
        "Qwen3_5Config",
        {
            "text_config": SHAPE | DELTA | {"num_hidden_layers": 4},
            "vision_config": QWEN_SIGHT | {"num_position_embeddings": 16},
        },
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": SHAPE | {"model_type": "llama"},
            "vision_config": SIGHT | {"model_type": "clip_vision_model"},
            "image_token_index": 95,
        },
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": SHAPE | {"model_type": "mistral"},
            "vision_config": SIGHT | {"model_type": "pixtral"},
            "image_token_index": 95,
        },
    ),
}
"""Name -> configuration class of transformers and its arguments."""

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertConfig", dict(MORE["bert, as decoder"][1]) | {"is_decoder": False}, "attend to later ones"),
    "gemma3, attention both ways": (
        "Gemma3TextConfig",
        SLIDING | {"query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
        "attend to later ones",
    ),
    "paligemma, whose prompts attend both ways": (
        "PaliGemmaConfig",
        {
            "text_config": SHAPE | {"model_type": "gemma"},
            "vision_config": SIGHT | {"model_type": "siglip_vision_model", "projection_dim": 32},
            "image_token_index": 95,
        },
        "attend to later ones",
    ),
    "deepseek-v4, several streams": (
        "DeepseekV4Config",
        SHAPE
        | {"head_dim": 16, "num_key_value_heads": 1, "moe_intermediate_size": 16, "q_lora_rank": 8}
        | {"num_experts_per_tok": 2, "n_routed_experts": 4, "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2}
        | {"index_head_dim": 16, "index_topk": 8, "sliding_window": 16, "layer_types": ["sliding_attention"] * 3},
        "not one vector of 32 for each token",
    ),
    "xlnet": (
        "XLNetConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48},
        "not one vector of 32 for each token",
    ),
}
"""Name -> configuration class, its arguments, and what is said of such a model."""


def configure(kind: str, arguments: dict[str, Any]) -> Any:
    return getattr(tf, kind)(**arguments)
