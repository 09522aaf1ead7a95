"""Three differently steered rows in one batch against one unsteered `generate` of the library, the hooks' own
cost, the time to the first token, and the private memory of an export, on a random Llama of 30M parameters (speed
does not depend on what it learned). The contenders take turns, so that other work on the machine meets all of them
alike."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from bench.extraction import BLOCKS, DATA, make_model
from bench.measure import clock, machine, private_peak, show, spread
from core.activations import Recipe
from core.basis import Basis
from core.checkpoint import export
from core.demo import world
from core.demo.default import MODEL
from core.evaluation.rollouts import BATCH_ROWS
from core.examples import Columns, DataSource
from core.model import LanguageModel, load_model
from core.recovery import Request, load_run_model, recover
from core.steering.generation import Generation, Row, Sampling
from core.steering.intervention import Directions, Steering, steered
from core.workspace import Run, Workspace

K, STRENGTH = 10, 2.0
TOKENS, ROUNDS, PROMPT_TOKENS = 128, 9, 64
ANSWERS, ANSWER_TOKENS = 64, 420


def main(quick: bool) -> None:
    """Print the figures; quick: a few short rounds."""
    if not DATA.exists():
        print(f"steering: skipped, there is no {DATA}")
        return
    tokens, rounds = (8, 3) if quick else (TOKENS, ROUNDS)
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()[:1_000]]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), texts)
        model = load_model(name)
        prompt = tuple(model.tokenizer(" ".join(texts[:5]))["input_ids"][:PROMPT_TOKENS])
        print(
            f"steering: {sum(w.numel() for w in model.module.parameters()) / 1e6:.1f}M parameters, {model.dtype}, "
            f"prompt of {len(prompt)} tokens, {tokens} new ones, {rounds} rounds; median (min to max)"
        )
        print(f"  {machine()}", flush=True)
        compare(model, random_directions(model), prompt, tokens, rounds)
        del model
        export_memory(Path(name), texts[: 20 if quick else 200])
    answer(8 if quick else ANSWERS, 1 if quick else 3)


def random_directions(model: LanguageModel) -> Directions:
    rng = np.random.default_rng(0)
    d = len(BLOCKS) * model.hidden_size
    rows = np.linalg.qr(rng.standard_normal((d, K)))[0].T.astype(np.float32)
    ones = np.ones(len(BLOCKS), np.float32)
    return Directions(Basis(rows, np.zeros(d, np.float32), np.ones(K, np.float32), ones, 1.0, 2, ones), BLOCKS)


def compare(
    model: LanguageModel, directions: Directions, prompt: tuple[int, ...], tokens: int, rounds: int
) -> None:
    plus, minus, none = (Steering(((1, strength),)) for strength in (STRENGTH, -STRENGTH, 0.0))
    removed = Steering(((1, 1.0),), "remove")
    first: list[float] = []

    def ours(*steerings: Steering, timed: bool = False) -> Callable[[], None]:
        rows = [Row(prompt, steering) for steering in steerings]

        def generate() -> None:
            start = clock()
            generation = Generation(model, directions, rows, Sampling(tokens))
            for step in generation.steps():
                if timed and step == 1:
                    first.append(1_000 * (clock() - start))
            assert all(len(ids) == tokens for ids in generation.tokens)

        return generate

    def library() -> None:
        ids = torch.tensor([prompt], device=model.device)
        with torch.inference_mode():
            model.module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    contenders = {
        "the library's generate, one row": library,
        "ours, one row, unsteered": ours(none),
        "ours, one row, add": ours(plus),
        "ours, one row, remove": ours(removed),
        "ours, three rows: 0, +, -": ours(none, plus, minus, timed=True),
        "ours, three rows, unsteered": ours(none, none, none),
        "ours, six rows": ours(none, plus, minus, plus, minus, plus),
    }
    model.module.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name in list(contenders)[:: 1 if round_ % 2 else -1]:
            start = clock()
            contenders[name]()
            if round_:  # the first warms up
                seconds[name].append(clock() - start)
    base, own = (np.array(seconds[name]) for name in list(contenders)[:2])
    lines = [
        [name, spread(times), spread(np.array(times) / base), spread(np.array(times) / own)]
        for name, times in seconds.items()
    ]
    show(["", "seconds", "time / the library's", "time / ours unsteered"], lines)
    print(f"  time to the first token of three rows: {spread(first[1:], 0)} ms")
    token = float(np.median(own)) / tokens
    for name, steering in (("add", plus), ("remove", removed)):
        alone = hook_seconds(model, directions, steering)
        print(f"  the hooks alone, {name}, one row: {1e6 * alone:.0f} microseconds a token, {alone / token:.2%}")


def answer(problems: int, rounds: int) -> None:
    """Print the time that the demo model's answers take, which end at different lengths, in batches of BATCH_ROWS,
    beside the library's `generate` on the same batches. Sampled, so by tokens written."""
    model = load_model(str(MODEL), device="cpu")
    prompts = [f"{problem.prompt}\n" for problem in world.generate(problems, "bench")]
    batches = [prompts[i : i + BATCH_ROWS] for i in range(0, problems, BATCH_ROWS)]
    ended = model.tokenizer.eos_token_id

    def ours() -> int:
        written = 0
        for number, batch in enumerate(batches):
            ids = [tuple(model.tokenizer(prompt)["input_ids"]) for prompt in batch]
            rows = [Row(row, Steering(), BATCH_ROWS * number + i) for i, row in enumerate(ids)]
            sampling = Sampling(ANSWER_TOKENS, temperature=1.0)
            written += sum(map(len, Generation(model, None, rows, sampling).run().tokens))
        return written

    def library() -> int:
        written = 0
        for batch in batches:
            inputs = model.tokenizer(batch, return_tensors="pt", padding=True, padding_side="left")
            inputs.pop("token_type_ids", None)
            tokens = model.module.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=ANSWER_TOKENS
            )[:, inputs["input_ids"].shape[1] :]
            written += int(((tokens == ended).cumsum(dim=1) == 0).sum())
        return written

    times: dict[str, list[float]] = {"the library's generate": [], "ours": []}
    for _ in range(rounds):
        for name, write in zip(times, (library, ours), strict=True):
            start = clock()
            written = write()
            times[name].append(1_000 * (clock() - start) / written)
    ratios = np.array(times["ours"]) / np.array(times["the library's generate"])
    lines = [[name, spread(found)] for name, found in times.items()]
    print(f"  {problems} answers of the demo model in batches of {BATCH_ROWS}, until the last of a batch ends:")
    show(["", "ms per token written"], lines)
    print(f"  ours / the library's: {spread(ratios)}")


def export_memory(folder: Path, texts: list[str]) -> None:
    """Print by how much an export of a run's direction as a checkpoint, in shards of 20 MB, raises the private
    memory, and by how much its model alone does."""
    model = load_model(str(folder))
    model.module.save_pretrained(folder / "shards", max_shard_size="20MB")
    model.tokenizer.save_pretrained(folder / "shards")
    del model
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source, columns = DataSource(str(folder / "texts.jsonl")), Columns(text="text")
    recipe = Recipe(dtype="float32")
    request = Request(str(folder / "shards"), source, columns, recipe, k=1, device="cpu", with_map=False)
    run = recover(request, Workspace(folder / "workspace"))
    rises = []
    for out in (None, folder / "out"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            rises.append(fresh.submit(_rise, run.folder, out).result())
    loaded, peak = rises
    shards = [path.stat().st_size / 1e6 for path in (folder / "out").glob("*.safetensors")]
    print(
        f"  export of {sum(shards):.0f} MB in {len(shards)} shards of up to {max(shards):.0f} MB: private memory "
        f"rises by {peak:.0f} MB at most, by {loaded:.0f} MB where the model is loaded and run once"
    )


def _rise(folder: Path, out: Path | None) -> float:
    """The rise in MB in this process, which is a new one: freed memory that it keeps would hide it."""
    run, peak = Run(folder), list[float]()
    with private_peak(peak):
        if out is None:
            load_run_model(run, "cpu").module(torch.zeros(1, 288, dtype=torch.long))
        else:
            times = Directions.of(run).in_unit(1, 4.0, "sd")
            export(run, lambda: load_run_model(run, "cpu"), 1, times, "checkpoint", out)
    return peak[0]


def hook_seconds(model: LanguageModel, directions: Directions, steering: Steering, calls: int = 2_000) -> float:
    """Seconds that the hooks of all blocks take for one token of one row."""
    hidden = torch.zeros(1, 1, model.hidden_size, device=model.device)
    with steered(model, directions, steering), torch.inference_mode():
        hooks = [(block, hook) for block in model.blocks for hook in block._forward_hooks.values()]
        start = clock()
        for _ in range(calls):
            for block, hook in hooks:
                hook(block, (), hidden)
        return (clock() - start) / calls
