"""Extraction from 1,000 GSM8K examples with a Llama-shaped model against the published loop and the bare trunk.

The model is random (speed does not depend on what it learned); its tokenizer is trained on the same texts, so
that lengths are like real ones. The contenders take turns batch by batch, so that other work on the machine
meets all of them alike, and ratios are of the seconds they spent on the same batches.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.measure import clock, machine, show, spread
from bench.precision import compare_bfloat16
from core.activations import TOKEN_BUDGET, TokenWindows, extract, pad_batch, plan_batches
from core.model import LanguageModel, load_model, resolve_blocks, run_blocks
from core.workspace import PartialRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
BLOCKS = resolve_blocks("1:-1", 8)
SLOW = 3
"""The published loops take part in every third batch only."""
GROUPS = 5


def main(quick: bool) -> None:
    """Print the figures; quick: every tenth example."""
    if not DATA.exists():
        print(f"extraction: skipped, there is no {DATA}")
        return
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()[:1_000]]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows][:: 10 if quick else 1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", texts)
        model = load_model(str(folder / "model"))
        windows = tokenize(model, texts)
        batches = plan_batches(windows.lengths, TOKEN_BUDGET[model.device.type])
        parameters = sum(weights.numel() for weights in model.module.parameters())
        print(
            f"extraction: {len(windows):,} examples, {windows.offsets[-1]:,} tokens, {parameters / 1e6:.1f}M "
            f"parameters, {model.dtype}, {len(batches)} batches; "
            f"(a) and (b) on every {SLOW}rd batch; median (min to max) of {GROUPS} groups of batches"
        )
        print(f"  {machine()}", flush=True)
        everything = np.arange(len(windows))
        contenders: dict[str, Iterator[object]] = {
            "(c) bare trunk": trunk(model, windows, batches),
            "ours": extract(model, windows, everything, BLOCKS),
            "ours, written to shards": PartialRun(folder, "float32").store(
                extract(model, windows, everything, BLOCKS), windows.example_id
            ),
            "(a) published loop": loop(load_published(folder / "model", "eager"), windows, batches),
            "(b) without attentions": loop(load_published(folder / "model", "sdpa"), windows, batches),
        }
        tokens = np.array([windows.lengths[batch].sum() for batch in batches])
        report(take_turns(contenders, len(batches)), tokens)
        compare_bfloat16(model, load_model(str(folder / "model"), dtype="bfloat16"), windows, BLOCKS)


def make_model(folder: Path, texts: list[str]) -> None:
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=8_192, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8_192,
        hidden_size=512,
        intermediate_size=1_408,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def tokenize(model: LanguageModel, texts: list[str]) -> TokenWindows:
    ids = [np.array(one, dtype=np.int32) for one in model.tokenizer(texts)["input_ids"]]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    return TokenWindows(np.concatenate(ids), offsets, np.ones(len(ids), dtype=np.int64), np.arange(len(ids)))


def trunk(model: LanguageModel, windows: TokenWindows, batches: list[np.ndarray]) -> Iterator[None]:
    """Nothing but the decoder on our batches, stopped after the same last block."""
    for batch in batches:
        texts = [windows.tokens(i) for i in batch]
        inputs, _ = pad_batch(texts, windows.first[batch], "right", model.device)
        run_blocks(model, inputs, BLOCKS[-1:], lambda _block, _hidden: None)
        yield


def load_published(folder: Path, attention: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def loop(module: PreTrainedModel, windows: TokenWindows, batches: list[np.ndarray]) -> Iterator[None]:
    """One example at a time through the whole model, as published; with attentions where they are eager."""
    attentions = module.config._attn_implementation == "eager"
    for step, batch in enumerate(batches):
        for i in batch if step % SLOW == 0 else ():
            ids = torch.from_numpy(windows.tokens(i).astype(np.int64))[None]
            with torch.no_grad():
                output = module(ids, output_hidden_states=True, output_attentions=attentions)
            parts = [output.hidden_states[block + 1][0, 1:].mean(dim=0) for block in BLOCKS]
            torch.cat(parts).numpy()
        yield


def take_turns(contenders: dict[str, Iterator[object]], n_steps: int) -> dict[str, np.ndarray]:
    """Seconds of each contender on each step; who begins alternates. The last step includes closing them."""
    seconds = {name: np.zeros(n_steps) for name in contenders}
    for step in range(n_steps):
        for name in list(contenders)[:: 1 if step % 2 else -1]:
            start = clock()
            next(contenders[name])
            if step == n_steps - 1:
                list(contenders[name])
            seconds[name][step] = clock() - start
    return seconds


def report(seconds: dict[str, np.ndarray], tokens: np.ndarray) -> None:
    """Speeds and ratios of times, over the batches that a contender took part in."""
    rows = []
    for name, own in seconds.items():
        took_part = np.arange(len(own)) % (SLOW if name[:3] in ("(a)", "(b)") else 1) == 0
        groups = [group for group in np.array_split(np.flatnonzero(took_part), GROUPS) if len(group)]
        ratios = {
            rival: [own[group].sum() / seconds[rival][group].sum() for group in groups]
            for rival in ("ours", "(c) bare trunk")
        }
        speed = tokens[took_part].sum() / own[took_part].sum()
        rows.append([name, f"{speed:,.0f}", *(spread(ratio) for ratio in ratios.values())])
    show(["", "tokens/s", "time / ours", "time / (c)"], rows)
