"""Tiny random models of every family, saved as real folders that `load_model` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

VOCABULARY, HIDDEN, BLOCKS = 96, 32, 3
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w95, each a token of its own; neither a pad nor a BOS token."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def save_tiny(config: PretrainedConfig, folder: Path, auto: Any = AutoModelForCausalLM) -> str:
    """A model with weights so large that every token and every block changes what comes after it."""
    torch.manual_seed(0)
    module = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
