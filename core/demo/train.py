"""Train the embedded demo's model from scratch on the world, and write the folder that the product ships.

    python -m core.demo.train --out DIR            the shipped recipe; --resume goes on where a run stopped
    torchrun --nproc-per-node 2 -m core.demo.train --out DIR      the same, each process on its share of the rows

The same recipe on the same machine gives the same model. The step number alone seeds a step's data, so a
resumed run needs to replay nothing. Two processes of one thread are 1.4 times as fast as one of two threads.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import torch.distributed as dist
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AttentionInterface,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from core.demo import card, grammar, world

STATE = "training.pt"
CONTEXT = 1024
PACKED = "within_examples"
LONGEST = 640  # tokens of a response; the world's own stay below
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)

_vocabulary = functools.cache(world.vocabulary)


@dataclass(frozen=True)
class Settings:
    """Everything that, with the world's source, determines the model. `mix` weighs the operations.

    Each of `steps` steps sees `rows` rows of `length` tokens. `spread` is the standard deviation of the fresh
    embeddings. They are wide and not tied to the output: from narrow, tied ones the model took more than two
    million tokens and had not begun to tell words of one kind (names, things) apart, so it copied none.
    """

    steps: int = 9_000
    seed: int = 0
    rows: int = 2
    length: int = 768
    hidden: int = 192
    blocks: int = 6
    heads: int = 6
    inner: int = 512
    rate: float = 4e-3
    spread: float = 1.0
    warmup: int = 150
    horizon: int = 24_000
    cooldown: int = 3_000
    decay: float = 0.1
    clip: float = 1.0
    mix: tuple[tuple[str, float], ...] = (("fraction", 0.25), ("conversion", 0.25))

    @property
    def tokens(self) -> int:
        return self.steps * self.rows * self.length


def recipe_hash(settings: Settings) -> str:
    """SHA-256 of the world's source and the settings."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (grammar, world)]
    return hashlib.sha256(b"".join([*sources, json.dumps(asdict(settings)).encode()])).hexdigest()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, digit and mark of the world, as told by `world.TOKEN`."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    words = [*special.values(), *_vocabulary()]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(world.TOKEN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        **special,
    )


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model, seeded."""
    torch.manual_seed(settings.seed)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.inner,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=settings.spread)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, **ids)
    return model


def batch(tokenizer: PreTrainedTokenizerFast, settings: Settings, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of one step and their positions, both (rows, length).

    A row is whole examples end to end, the last one cut off. Positions start anew with each example, from
    which transformers tells that no example attends to another.
    """
    examples = world.stream(f"train {settings.seed} {step}", dict(settings.mix))
    rows: list[list[int]] = []
    positions: list[list[int]] = []
    for _ in range(settings.rows):
        row: list[int] = []
        position: list[int] = []
        while len(row) < settings.length:
            tokens = [*tokenizer.encode(next(examples).text), tokenizer.eos_token_id]
            row += tokens
            position += range(len(tokens))
        rows.append(row[: settings.length])
        positions.append(position[: settings.length])
    return torch.tensor(rows), torch.tensor(positions)


def attend_within_examples(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor,
    scaling: float | None = None,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of packed rows, an example at a time: one starts where `position_ids` (rows, length) is 0.

    query, key, value (rows, heads, length, size); returns (rows, length, heads, size). It equals attention under
    the block-diagonal mask, which also computes what it masks: a step takes three quarters of the time.
    """
    rows = []
    for q, k, v, positions in zip(query.split(1), key.split(1), value.split(1), position_ids, strict=True):
        starts = [0, *((positions[1:] == 0).nonzero().flatten() + 1).tolist()]
        parts = [
            scaled_dot_product_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=True, scale=scaling)
            for a, b in itertools.pairwise([*starts, len(positions)])
        ]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, attend_within_examples)


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then a cosine that would reach a hundredth of the peak at `horizon`, taken linearly to
    nothing over the last `cooldown` steps."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.horizon - settings.warmup)
    left = min(1.0, (settings.steps - step) / settings.cooldown)
    return left * settings.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train(
    out: Path, settings: Settings, *, resume: bool = False, until: int | None = None, save_every: int = 200
) -> float:
    """Train into the folder `out` up to step `until` (default: all); returns the seconds spent in all.

    Every `save_every` steps, and at the end, `out` holds a model that loads and the state to resume from. In a
    group of p processes the r-th takes the rows r, r + p, ..., gradients are averaged, and the first one writes.
    Raises FileNotFoundError if there is no state to resume, ValueError if another recipe left it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer()
    model = build_model(settings, tokenizer)
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the method's signature
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if settings.rows % processes:
        raise ValueError(f"{settings.rows} rows a step cannot be shared evenly among {processes} processes")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.decay, betas=(0.9, 0.95), fused=True)
    first, seconds, recipe = 0, 0.0, recipe_hash(settings)
    if resume:
        state = torch.load(out / STATE, map_location=device, weights_only=True)
        if state["recipe"] != recipe:
            raise ValueError(f"{out / STATE} is of recipe {state['recipe'][:12]}, not {recipe[:12]}: no --resume")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    model.set_attn_implementation(PACKED)
    trained = DistributedDataParallel(model) if processes > 1 else model
    out.mkdir(parents=True, exist_ok=True)
    start, last = time.monotonic() - seconds, min(until or settings.steps, settings.steps)
    for step in range(first, last):
        tokens, positions = (part[rank::processes].to(device) for part in batch(tokenizer, settings, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        loss = update(trained, optimizer, tokens, positions, settings.clip)
        seconds = time.monotonic() - start
        if rank:
            continue
        if (step + 1) % 20 == 0:
            speed = settings.rows * settings.length * (step + 1) / seconds
            click.echo(f"step {step + 1}/{settings.steps}  loss {loss:.4f}  {speed:,.0f} tokens/s")
        if (step + 1) % save_every == 0 or step + 1 == last:
            state = {"recipe": recipe, "step": step + 1, "seconds": seconds}
            _save(out, model, tokenizer, optimizer, state)
    return seconds


def update(
    model: PreTrainedModel | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    clip: float,
) -> float:
    """One step on tokens (rows, length) that start anew where `positions` do; returns the loss."""
    bf16 = tokens.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
        loss = model(input_ids=tokens, position_ids=positions, labels=tokens, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _save(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    state: dict[str, object],
) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    torch.save(state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, out / f"{STATE}.tmp")
    (out / f"{STATE}.tmp").replace(out / STATE)


@torch.no_grad()
def sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int, size: int = 100
) -> list[str]:
    """One response to each prompt at temperature 1, in batches of `size`."""
    torch.manual_seed(seed)
    responses = []
    for i in range(0, len(prompts), size):
        texts = [f"{prompt}\n" for prompt in prompts[i : i + size]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        inputs.pop("token_type_ids", None)
        tokens = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=LONGEST)
        responses += tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return responses


def held_out(n: int, seed: int | str = 0) -> list[world.Example]:
    """Problems, all operations alike, that no training seed generates."""
    return world.generate(n, f"held out {seed}")


def right_solutions(n: int, stream: str) -> list[world.Example]:
    """The first n right ones of the held-out problems of a stream."""
    return [one for one in held_out(2 * n, stream) if one.correct][:n]


def pass_at_1(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[world.Example], seed: int = 0
) -> dict[str, card.Share]:
    """The share of right answers, over all examples and by operation."""
    responses = sample(model, tokenizer, [example.prompt for example in examples], seed)
    right = [world.verify(example, response) for example, response in zip(examples, responses, strict=True)]
    shares = {"all": card.Share(sum(right), len(right))}
    for operation in world.OPERATIONS:
        mine = [ok for example, ok in zip(examples, right, strict=True) if example.operation == operation]
        shares[operation] = card.Share(sum(mine), len(mine))
    return shares


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the finished model.")
@click.option("--steps", default=Settings.steps, show_default=True)
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the state that a stopped run left in --out.")
@click.option("--problems", default=1400, show_default=True, help="Held-out problems for the card's figures.")
@click.option("--threads", type=int, help="CPU threads [default: torch's].")
def main(out: Path, steps: int, seed: int, resume: bool, problems: int, threads: int | None) -> None:
    """Train the demo model, measure it on held-out problems and write its card."""
    if threads:
        torch.set_num_threads(threads)
    if "LOCAL_RANK" in os.environ:
        dist.init_process_group("gloo")
    settings = Settings(steps=steps, seed=seed)
    seconds = train(out, settings, resume=resume)
    processes = 1
    if dist.is_initialized():
        rank, processes = dist.get_rank(), dist.get_world_size()
        dist.barrier()
        dist.destroy_process_group()
        if rank:
            return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out).eval()
    shares = pass_at_1(model, tokenizer, held_out(problems))
    text = card.render(
        asdict(settings),
        recipe_hash(settings),
        settings.tokens,
        seconds,
        model.num_parameters(),
        shares,
        processes,
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    (out / STATE).unlink()
    click.echo(f"Pass@1 {shares['all']} written to {out / 'README.md'}")


if __name__ == "__main__":
    main()
