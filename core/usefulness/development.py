"""The development set: solutions of problems as tokens, and their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.activations import TOKEN_BUDGET, plan_batches
from core.architectures import pads_right
from core.errors import BasiscopeError
from core.evaluation.problems import Problem, asked
from core.evaluation.rollouts import resolve_asking
from core.examples import Example, TokenizedText, prompt_text, tokenize
from core.model import LanguageModel, check_tokens, named_options
from core.usefulness.traces import Traces
from core.workspace import Run

if TYPE_CHECKING:
    import torch

LOGIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Solutions:
    """Token ids of n texts, each a prompt and its response, which begins at the token `first`.

    problem: (n,) codes from 0; right: (n,) bool; left_out: why other texts are not among them, and how many
    """

    ids: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    problem: np.ndarray
    right: np.ndarray
    left_out: dict[str, int]

    @property
    def n(self) -> int:
        return len(self.ids)

    @property
    def problems(self) -> int:
        return len(np.unique(self.problem))

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def written_solutions(
    model: LanguageModel,
    problems: Sequence[Problem],
    solutions: Mapping[int, str],
    wording: str = "boxed",
    template: str = "auto",
) -> Solutions:
    """Solutions by problem id as the model would have written them when it is asked as in an evaluation. All of
    them count as right. Raises BasiscopeError where none fits into the model's context."""
    template = resolve_asking(model, template)
    columns = {"prompt": "problem", "response": "answer"}
    texts, codes = [], []
    for code, problem in enumerate(problems):
        if problem.problem_id in solutions:
            prompt, special = prompt_text(asked(problem, wording), columns, template, model.tokenizer)
            text = prompt + solutions[problem.problem_id]
            example = Example(problem.problem_id, text, prompt, "", len(prompt), special, {})
            texts += tokenize([example], model.tokenizer, context_of(model), spans=True)
            check_tokens(model, texts[-1].ids, f"Problem {problem.problem_id} with its solution")
            codes.append(code)
    missing = {"the problem has no worked solution": len(problems) - len(codes)}
    return _usable(texts, np.array(codes), np.ones(len(codes), dtype=bool), missing)


def traced_solutions(run: Run, model: LanguageModel, traces: Traces) -> Solutions:
    """The run's own traces, right and wrong, tokenised as they were recovered."""
    if "response" not in run.columns():
        raise BasiscopeError(
            f"Run {run.id} has no responses, so it is not known where its solutions begin; recover it with "
            "--prompt and --response."
        )
    shown = run.examples(["text", "prompt", "response"]).iloc[traces.rows]
    special = run.manifest["recipe"]["template"] == "plain"
    texts = []
    columns = (shown[name].fillna("").astype(str) for name in ("text", "prompt", "response"))
    for i, (text, prompt, response) in enumerate(zip(*columns, strict=True)):
        start = response_start(text, prompt, response)
        example = Example(i, text, None, response, start, special, {})
        texts += tokenize([example], model.tokenizer, context_of(model), spans=True)
    return _usable(texts, traces.problem, traces.right)


def response_start(text: str, prompt: str, response: str) -> int | None:
    """The character of a run's text at which its response begins: after its prompt, where that begins the text."""
    if not response.strip():
        return None
    begins = bool(prompt) and text.startswith(prompt)
    found = text.find(response.strip(), len(prompt)) if begins else text.rfind(response.strip())
    return found if found >= 0 else len(prompt) if begins else None


NO_BETTER = "the model finds these texts less likely than a guess among all its tokens"


def guess_notes(model: LanguageModel, loss: float) -> list[str]:
    """A sentence where the loss, in nats per token, is above that of a guess among all tokens."""
    guess = math.log(model.module.config.get_text_config().vocab_size)
    if not loss > guess:
        return []
    return [
        f"{NO_BETTER} ({guess:.1f} nats per token): "
        "it was hardly asked as it has learnt; see --solution, --wording and --template"
    ]


def context_of(model: LanguageModel) -> int:
    return model.context or 8_000


def _usable(
    texts: Sequence[TokenizedText],
    problem: np.ndarray,
    right: np.ndarray,
    missing: Mapping[str, int] | None = None,
) -> Solutions:
    """missing: why there are no texts at all, and how often."""
    kept, reasons = [], {"its response begins at no token": 0, "it does not fit into the model's context": 0}
    reasons |= missing or {}
    for i, text in enumerate(texts):
        if text.was_cut:
            reasons["it does not fit into the model's context"] += 1
        elif not text.response_token or text.response_token >= len(text.ids):
            reasons["its response begins at no token"] += 1
        else:
            kept.append(i)
    left_out = {reason: count for reason, count in reasons.items() if count}
    if not kept:
        raise BasiscopeError(
            f"The development set: none of {len(texts):,} solutions can be used ("
            f"{'; '.join(f'{count:,}: {reason}' for reason, count in left_out.items()) or 'there is none'})."
        )
    codes = np.unique(problem[kept], return_inverse=True)[1]
    ids = tuple(tuple(texts[i].ids) for i in kept)
    return Solutions(ids, tuple(texts[i].response_token or 0 for i in kept), codes, right[kept], left_out)


# --- losses ---------------------------------------------------------------------------------------------


def batches_of(model: LanguageModel, solutions: Solutions) -> list[np.ndarray]:
    """Rows in batches that fit the device's token budget and leave room for the logits."""
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    budget = min(TOKEN_BUDGET[model.device.type], max(1, LOGIT_BYTES // (8 * vocabulary)))
    return plan_batches(np.array([len(ids) for ids in solutions.ids]), budget, pads_right(model))


def row_losses(model: LanguageModel, solutions: Solutions, rows: np.ndarray) -> torch.Tensor:
    """(m,) mean negative log-likelihood in nats per response token of some rows, in one forward pass. Padded
    on the right, which no real token sees; autograd is as the caller has it."""
    import torch
    from torch.nn.functional import cross_entropy

    texts = [solutions.ids[row] for row in rows]
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts], device=model.device)
    place = torch.arange(longest - 1, device=model.device)[None] + 1
    first, end = (
        torch.tensor(edge, device=model.device)[:, None]
        for edge in ([solutions.first[row] for row in rows], list(map(len, texts)))
    )
    counted = ((place >= first) & (place < end)).float()
    logits = model.module(ids, **named_options(model.module, use_cache=False)).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    each = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(counted.shape)
    return (each * counted).sum(dim=1) / counted.sum(dim=1)


def losses(model: LanguageModel, solutions: Solutions) -> np.ndarray:
    """(n,) mean negative log-likelihood in nats per response token of every text."""
    import torch

    found = np.empty(solutions.n)
    with torch.inference_mode():
        for rows in batches_of(model, solutions):
            found[rows] = row_losses(model, solutions, rows).double().cpu().numpy()
    return found
