"""The step `evaluate`: from problems and a model, or a server, to a kept evaluation that can be continued."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation.endpoint import Server
from core.evaluation.overlap import overlap_notes
from core.evaluation.passk import Result
from core.evaluation.problems import Problem, ProblemSet, asked
from core.evaluation.rollouts import BATCH_ROWS, UNSTEERED, Key, Rollout, encode_problems, resolve_asking, roll_out
from core.evaluation.verifiers import VERSION, Verify, can_verify, verifier
from core.model import LanguageModel
from core.recovery import check_model
from core.steering.check import notes_of
from core.steering.generation import Sampling
from core.steering.intervention import Directions, Steering
from core.versions import versions_of
from core.workspace import KeptEvaluation, Run, Workspace, content_hash, now

FORMAT_VERSION = 1
ENDED = ("finished", "result", "unread", "unread_reasons")
"""What a manifest says of an evaluation that has come to its end."""
PACKAGES = ("torch", "transformers", "numpy", "math-verify", "latex2sympy2_extended", "openai")


@dataclass(frozen=True)
class Request:
    """What a person asks of `evaluate`. wording, template: as `asked` and `resolve_asking` take them; variants:
    name -> steering, beside the unsteered model."""

    problems: ProblemSet
    verifier: str
    r: int = 8
    sampling: Sampling = field(default_factory=lambda: Sampling(512, temperature=1.0))
    wording: str = "boxed"
    template: str = "auto"
    variants: Mapping[str, Steering] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise BasiscopeError(f"Rollouts {self.r}: there must be at least 1 a problem.")
        if self.r > 1 and self.sampling.temperature == 0:
            raise BasiscopeError(
                f"Rollouts {self.r} at temperature 0 would all be the same: ask for 1, or raise the temperature."
            )

    @property
    def steerings(self) -> dict[str, Steering]:
        return {UNSTEERED: Steering(), **self.variants}

    def as_dict(self) -> dict[str, Any]:
        """All that decides the rollouts but for the model."""
        chosen = {"verifier": self.verifier, "verifier_version": VERSION, "r": self.r}
        chosen |= {"wording": self.wording, "template": self.template}
        steerings = {name: asdict(steering) for name, steering in self.steerings.items()}
        facts = self.problems.facts()
        named = {name: facts[name] for name in ("fingerprint", "problem", "answer", "limit", "config", "split")}
        return {"problems": named, **chosen, "sampling": self.sampling.as_dict(), "variants": steerings}


def evaluate(
    request: Request,
    workspace: Workspace,
    model: LanguageModel,
    run: Run | None = None,
    progress: Progress = silent,
) -> KeptEvaluation:
    """Roll out in process. Given again after it was stopped it continues; a finished one is only read.

    run: whose directions steer, needed where a variant is steered. Raises BasiscopeError where nothing can be
    verified, no problem leaves room for the new tokens, or the model is not the run's.
    """
    if request.variants and run is None:
        raise BasiscopeError("Steering needs the directions of a run: give a RUN, not a model.")
    if run is not None:
        check_model(run, model)
    directions = Directions.of(run) if run is not None and request.variants else None
    template = resolve_asking(model, request.template)
    named = {"name": model.name, "fingerprint": model.fingerprint, "dtype": model.dtype}
    verify, usable, left_out = _usable(request)
    refused: dict[int, str] = {}
    new_tokens = request.sampling.max_new_tokens
    prompts = encode_problems(model, usable, request.wording, request.template, new_tokens, refused)
    left_out["too_long"] = sorted({problem.problem_id for problem in usable} - prompts.keys() - refused.keys())
    notes = [*notes_of(model, model.name)]
    if refused:
        left_out["not_asked"] = sorted(refused)
        notes += [f"problem {min(refused)} cannot be asked: {refused[min(refused)].rstrip('.')}"]

    def texts(done: frozenset[Key]) -> Iterator[list[Rollout]]:
        return roll_out(
            model,
            usable,
            prompts,
            verify,
            request.r,
            request.sampling,
            request.steerings,
            directions,
            done,
            progress,
        )

    stored = request.as_dict() | {"model": named, "template": template, "run": run.id if run else None}
    return _kept(request, workspace, stored, left_out, texts, run, notes=notes)


def evaluate_server(
    request: Request, workspace: Workspace, server: Server, run: Run | None = None, progress: Progress = silent
) -> KeptEvaluation:
    """As `evaluate`, with texts by a server. run: what the results are kept with, where they belong to one.

    Raises BasiscopeError where a variant is steered: a server steers nothing, it serves a steered checkpoint.
    """
    if request.variants:
        raise BasiscopeError(
            "A server cannot steer: write a steered checkpoint with `basiscope export`, serve and evaluate that."
        )
    verify, usable, left_out = _usable(request)
    refused: dict[int, str] = {}
    unread: dict[Key, str] = {}

    def texts(done: frozenset[Key]) -> Iterator[list[Rollout]]:
        prompts = {problem.problem_id: asked(problem, request.wording) for problem in usable}
        return server.roll_out(
            usable, prompts, verify, request.r, request.sampling, done, progress, refused, unread
        )

    stored = request.as_dict() | {"server": server.facts(), "run": run.id if run else None}
    return _kept(request, workspace, stored, left_out, texts, run, refused, unread)


def traces(kept: KeptEvaluation, variant: str = UNSTEERED) -> list[dict[str, Any]]:
    """The rollouts of one variant as rows that `recover` reads and `utility` takes the verdicts of: what was
    asked, the text, the verdict (none where it could not be said), the problem's id and the rollout's
    number. Without empty texts."""
    problems, wording = kept.problems(), kept.manifest["request"]["wording"]
    return [
        {
            "prompt": asked(problems[one.problem_id], wording),
            "response": one.text,
            "correct": one.right,
            "problem": one.problem_id,
            "rollout": one.rollout,
            **({"reasoning": one.reasoning} if one.reasoning else {}),
        }
        for one in kept.rollouts()
        if one.variant == variant and one.text.strip()
    ]


def _usable(request: Request) -> tuple[Verify, list[Problem], dict[str, list[int]]]:
    """The verifier, the problems whose answers it can verify, and the ids of the others."""
    asked(request.problems.problems[0], request.wording)
    verify = verifier(request.verifier)
    usable = [problem for problem in request.problems.problems if can_verify(request.verifier, problem.answer)]
    if not usable:
        first = request.problems.problems[0].answer
        raise BasiscopeError(
            f"Problems {request.problems.source.path}: the verifier {request.verifier!r} can verify none of the "
            f"answers, such as {first[:80]!r}. Choose another --verifier or --answer column."
        )
    known = {problem.problem_id for problem in usable}
    others = [problem.problem_id for problem in request.problems.problems if problem.problem_id not in known]
    return verify, usable, {"unverifiable": others}


def _kept(
    request: Request,
    workspace: Workspace,
    stored: Mapping[str, Any],
    left_out: Mapping[str, Sequence[int]],
    texts: Callable[[frozenset[Key]], Iterator[list[Rollout]]],
    run: Run | None,
    refused: Mapping[int, str] = MappingProxyType({}),
    unread: Mapping[Key, str] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> KeptEvaluation:
    """refused: problem id -> why, filled while the texts come; these problems are left out. unread: key
    of a text that could not be read -> why, filled likewise; it stays undone, and with it the evaluation."""
    with workspace.start_evaluation(stored) as kept:
        was_damaged = kept.mend()
        manifest = _manifest(kept, request, stored, left_out, run, notes)
        if manifest["status"] == "complete" and not was_damaged:
            return kept
        manifest = {name: value for name, value in manifest.items() if name not in ENDED} | {"status": "under way"}
        begun = kept.rollouts()
        manifest["notes"] = list(dict.fromkeys([*manifest["notes"], *_earlier(workspace, stored)]))
        kept.save_problems(request.problems.problems)
        kept.save_manifest(manifest)
        start = time.monotonic()
        try:
            for batch in texts(frozenset(rollout.key for rollout in begun)):
                kept.append(batch)
        finally:
            manifest["seconds"] = round(manifest["seconds"] + time.monotonic() - start, 3)
            manifest["left_out"].pop("refused", None)
            manifest.pop("refusals", None)
            if refused:
                manifest["left_out"]["refused"] = sorted(refused)
                manifest["refusals"] = {str(problem_id): why for problem_id, why in sorted(refused.items())}
            if kept.folder.exists():
                kept.save_manifest(manifest)
        counted = [one for one in kept.rollouts() if one.problem_id not in refused]
        found = Result.of(counted, request.sampling.seed).as_dict()
        ended = {"finished": now(), "result": found}
        if undone := sorted((problem_id, i) for _, problem_id, i in unread if problem_id not in refused):
            reasons = Counter(why for (_, problem_id, _), why in unread.items() if problem_id not in refused)
            kept.save_manifest(
                manifest | ended | {"unread": undone, "unread_reasons": dict(reasons.most_common())}
            )
        else:
            kept.save_manifest(manifest | ended | {"status": "complete"})
    return kept


def _earlier(workspace: Workspace, stored: Mapping[str, Any]) -> list[str]:
    """A note on an evaluation of the same request whose texts were verified before verifiers had versions."""
    earlier = content_hash({name: value for name, value in stored.items() if name != "verifier_version"})
    if not (workspace.root / "evaluations" / earlier / "manifest.json").exists():
        return []
    return [f"evaluation {earlier} asked the same of an earlier verifier, whose verdicts can differ"]


def _manifest(
    kept: KeptEvaluation,
    request: Request,
    stored: Mapping[str, Any],
    left_out: Mapping[str, Sequence[int]],
    run: Run | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    with suppress(BasiscopeError):  # there is none yet, or a damaged one: all of it can be said again
        return kept.manifest
    prompts = [problem.prompt for problem in request.problems.problems]
    return {
        "format_version": FORMAT_VERSION,
        "request": dict(stored),
        "problems": request.problems.facts(),
        "left_out": {reason: list(ids) for reason, ids in left_out.items()},
        "notes": [*notes, *(overlap_notes(run, prompts, "problems") if run else [])],
        "status": "under way",
        "created": now(),
        "seconds": 0.0,
        "batch_rows": BATCH_ROWS,
        "versions": versions_of(PACKAGES),
    }
