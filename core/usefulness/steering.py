"""The steering proxy: what each direction does to the right answers when it steers, at a cost fixed before.

Every arm is a direction and polarity at a strength; random directions of the same norm are arms, too. All meet the
same problems with the same noise, beside the unsteered model. After each round on fresh problems the half of the
arms whose differences are least telling is dropped (successive halving, Karnin et al. 2013), random ones never.
Being kept does not bias a test that is corrected for all arms at the start: an arm's difference over all problems
is what it would have been without halving, and those dropped are never called significant.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval, verifier
from core.evaluation.intervals import difference_interval
from core.evaluation.overlap import overlap_notes
from core.evaluation.passk import Result, Tally, problem_differences, sign_flip_p
from core.evaluation.problems import Problem, ProblemSet
from core.evaluation.rollouts import BATCH_ROWS, UNSTEERED, Key, Rollout, encode_problems, roll_out
from core.evaluation.verifiers import VERSION, can_verify
from core.model import LanguageModel
from core.steering.check import notes_of
from core.steering.generation import Sampling
from core.steering.intervention import Directions, Steering
from core.usefulness.controls import MODEL_TRACES, check_models, random_model_directions, random_units
from core.usefulness.evidence import BOTH, Control, Cost, Effect, Evidence, Measure, false_discovery, p_outlier
from core.usefulness.recommend import Recommendation
from core.versions import versions_of
from core.workspace import KeptEvaluation, Run, Workspace, now

PACKAGES = ("torch", "transformers", "numpy", "scipy")
PILOT_ROLLOUTS = 32
MOST_ROUNDS = 3
LEAST_PROBLEMS = 5
RANDOM_ARMS = 8
SHARE_OF_RANGE = 0.5
SHARE_OF_COST = 0.25
"""What finding out the pace may likely take, and what the directions of random models may."""
MODEL_ARMS = 4
RANDOM = {"random model": "random weights", "random blocks": "random blocks under the trained embeddings"}
NOT_APPLIED = (
    "a random model writes no answers that steering could change, but its directions steer this one where "
    "--controls names it; words and length have no direction to steer along, and every arm gets verdicts of its "
    "own on the same problems, so there are none to shuffle"
)
FULL_BATCHES = 4
"""Problems are asked so many batches at a time: fewer leave rows empty, more leave more problems half through when
the time is up."""


@dataclass(frozen=True)
class Arm:
    """One thing to try: a direction (from 1) with a signed strength in multiples of the unit direction. model: the
    random one that it is a direction of, where it is."""

    name: str
    direction: int
    strength: float
    is_random: bool = False
    model: str = ""

    @property
    def polarity(self) -> str:
        return "+" if self.strength > 0 else "-"


@dataclass(frozen=True)
class SteeringRequest:
    """What to try. directions: from 1; strengths: in standard deviations of the scores, or none for half of the
    range without damage where a sweep has suggested one, else 1; seconds: what it may cost, the model's loading
    aside; random_arms: random directions with a polarity each; models: which of MODELS give MODEL_ARMS directions
    each as further controls."""

    problems: ProblemSet
    verifier: str
    directions: tuple[int, ...]
    strengths: tuple[float, ...] = ()
    seconds: float = 600.0
    r: int = 4
    random_arms: int = RANDOM_ARMS
    sampling: Sampling = field(default_factory=lambda: Sampling(512, temperature=1.0))
    wording: str = "boxed"
    template: str = "auto"
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_models(self.models)
        if self.r < 1 or self.seconds <= 0 or self.random_arms < 3:
            raise BasiscopeError(
                "Rollouts must be at least 1, the cost above 0 seconds, random directions at least 3."
            )
        if self.r > 1 and self.sampling.temperature == 0:
            raise BasiscopeError("Rollouts at temperature 0 would all be the same text: ask for 1.")
        if any(strength <= 0 or not math.isfinite(strength) for strength in self.strengths):
            raise BasiscopeError("Strengths: numbers above 0; both polarities are tried.")

    def as_dict(self) -> dict[str, Any]:
        """All that decides the rollouts but for run and model."""
        names = ("verifier", "directions", "strengths", "seconds", "r", "random_arms", "wording", "template")
        facts = self.problems.facts()
        named = {
            name: facts[name] for name in ("path", "fingerprint", "problem", "answer", "limit", "config", "split")
        }
        chosen = {name: getattr(self, name) for name in names}
        models = {"models": self.models} if self.models else {}
        return {"problems": named, **chosen, **models, "sampling": self.sampling.as_dict()}


@dataclass(frozen=True)
class Plan:
    """problems: how many fresh ones each round has; arms: how many are tried in it, random ones and the unsteered
    model aside; rate: measured rollouts per second; rollouts: in all."""

    problems: tuple[int, ...]
    arms: tuple[int, ...]
    rate: float
    rollouts: int

    @property
    def seconds(self) -> float:
        return self.rollouts / self.rate


def make_arms(run: Run, request: SteeringRequest) -> list[Arm]:
    """Both polarities of every direction at every strength."""
    deviations = Directions.of(run).deviations
    arms = []
    for j in request.directions:
        for sign, polarity in ((1, "+"), (-1, "-")):
            for strength in _strengths(run, request, j, sign, float(deviations[j - 1])):
                many = f" {strength / deviations[j - 1]:g} sd" if len(request.strengths) > 1 else ""
                arms.append(Arm(f"{j}{polarity}{many}", j, sign * strength))
    return arms


def _strengths(run: Run, request: SteeringRequest, direction: int, sign: int, deviation: float) -> list[float]:
    if request.strengths:
        return [strength * deviation for strength in request.strengths]
    return [_usual_strength(run, direction, sign, deviation)]


def _usual_strength(run: Run, direction: int, sign: int, deviation: float) -> float:
    suggested = run.suggested_range(direction)
    edge = (suggested.high if sign > 0 else -suggested.low) if suggested else 0.0
    return SHARE_OF_RANGE * edge if edge > 0 else deviation


def strength_to_try(run: Run, direction: int, polarity: str) -> float:
    """The signed strength, in multiples of the unit direction: half of the range without damage where a sweep has
    suggested one, else 1 standard deviation."""
    sign = 1 if polarity == "+" else -1
    return sign * _usual_strength(run, direction, sign, float(Directions.of(run).deviations[direction - 1]))


def strength_of(run: Run, evidence: Evidence, effect: Effect) -> float:
    """The strength to see an effect with: the one it was tried at, else one to try towards its end, or towards the
    end that helps where it speaks of both."""
    if math.isfinite(effect.strength):
        return effect.strength
    helping = "+" if effect.effect.value >= evidence.measure(effect.measure).null else "-"
    return strength_to_try(run, effect.direction, helping if effect.polarity == BOTH else effect.polarity)


def recommended_strength(
    run: Run, found: Recommendation, kept: Mapping[str, Evidence]
) -> tuple[int, float] | None:
    """(direction, strength) of the first end that is recommended; None where none is. Where steering is among what
    speaks for it, the strength is the one it was tried at."""
    if not found.helpful:
        return None
    end = found.helpful[0]
    direction, polarity = int(end[:-1]), end[-1]
    for one in found.findings:
        if one.name == end and one.proxy == "steering":
            evidence = kept[found.evidence[one.proxy]]
            effect = next(effect for effect in evidence.by(one.measure) if effect.name == end)
            return direction, strength_of(run, evidence, effect)
    return direction, strength_to_try(run, direction, polarity)


def variant_of(evidence: Evidence, effect: Effect) -> str | None:
    """The variant of the kept evaluation whose texts are behind an effect, where it has some."""
    tried = (
        arm["name"]
        for arm in evidence.facts.get("arms", ())
        if (arm["direction"], arm["strength"]) == (effect.direction, effect.strength)
    )
    known: dict[str, str] = evidence.parts.get("variants", {})
    return known.get(next(tried, effect.name))


def random_arms(arms: Sequence[Arm], n: int, k: int) -> list[Arm]:
    """n random directions, numbered from k + 1, at strengths spread over those of the arms."""
    sizes = np.quantile([abs(arm.strength) for arm in arms], (np.arange(n) + 0.5) / n)
    return [
        Arm(f"random {i + 1}", k + 1 + i, float(size) * (1 if i % 2 == 0 else -1), is_random=True)
        for i, size in enumerate(sizes)
    ]


def model_arms(arms: Sequence[Arm], models: Sequence[str], k: int, each: int = MODEL_ARMS) -> list[Arm]:
    """The leading directions of each random model, numbered from k + 1, as `random_arms`."""
    found: list[Arm] = []
    for model in models:
        made = random_arms(arms, each, k + len(found))
        name = model.replace("-", " ")
        found += [replace(arm, name=f"{name} {i + 1}", model=name) for i, arm in enumerate(made)]
    return found


def with_random(directions: Directions, n: int, seed: int) -> Directions:
    """The directions with n random ones of the same norm after them."""
    d = directions.basis.directions.shape[1]
    return with_units(directions, np.concatenate(list(random_units(n, d, seed))))


def with_units(directions: Directions, units: np.ndarray) -> Directions:
    """The directions with unit rows (n, d) after them."""
    basis = directions.basis
    values = np.concatenate([basis.singular_values, np.zeros(len(units), np.float32)])
    rows = np.concatenate([basis.directions, units.astype(np.float32)])
    return Directions(replace(basis, directions=rows, singular_values=values), directions.blocks)


def make_plan(arms: int, random: int, r: int, problems: int, rate: float, seconds: float) -> Plan:
    """Rounds of equal cost on as many problems as there are and `seconds` buy, fewer rounds where that is few.
    Raises BasiscopeError where it is too little to compare anything."""
    check_problems(problems)
    for rounds in range(min(MOST_ROUNDS, max(1, math.ceil(math.log2(arms)))), 0, -1):
        tried = [math.ceil(arms / 2**i) for i in range(rounds)]
        rows = np.array([one + random + 1 for one in tried], dtype=np.float64)
        affordable = rate * seconds / (rounds * rows * r)
        shares = np.minimum(affordable, problems * (1 / rows) / (1 / rows).sum())
        sizes = np.floor(shares + 1e-9).astype(int)
        if sizes.sum() >= LEAST_PROBLEMS and sizes.min():
            return Plan(tuple(sizes.tolist()), tuple(tried), rate, int((sizes * rows * r).sum()))
    need = LEAST_PROBLEMS * r * float(rows[0]) / rate
    raise BasiscopeError(
        f"--cost: the {seconds:,.0f} s left after trying out the pace, at {rate:.2g} rollouts a second, are "
        f"{int(rate * seconds):,} rollouts, too few to compare {arms} arms on {problems} problems. Give about "
        f"{need:,.0f} seconds more than the pace took, fewer --directions, or fewer --rollouts."
    )


def check_problems(n: int) -> None:
    """Raises BasiscopeError where they are too few to compare anything on."""
    if n < LEAST_PROBLEMS:
        raise BasiscopeError(
            f"Steering: {n} problem{'' if n == 1 else 's'} can be asked and verified, too few to compare arms on, "
            f"whatever the cost; give at least {LEAST_PROBLEMS}."
        )


def steer_proxy(
    run: Run, model: LanguageModel, request: SteeringRequest, workspace: Workspace, progress: Progress = silent
) -> Evidence:
    """Try all arms within the cost. The rollouts are kept as an evaluation; given again after it was stopped, it
    continues by the plan that was made then, and a finished one is only read. When the time is up before the plan
    is through, the arms are compared on the problems that they all were through with.

    Raises BasiscopeError where no problem can be verified or asked, or the cost buys too little.
    """
    arms = make_arms(run, request)
    chance = random_arms(arms, request.random_arms, run.k)
    each = min(MODEL_ARMS, int(run.manifest["n"]) - 1)
    chance += model_arms(arms, request.models, run.k + len(chance), each)
    usable = [problem for problem in request.problems.problems if can_verify(request.verifier, problem.answer)]
    if not usable:
        raise BasiscopeError(
            f"Problems {request.problems.source.path}: the verifier {request.verifier!r} can verify none of the "
            "answers. Choose another --verifier or --answer column."
        )
    prompts = encode_problems(model, usable, request.wording, request.template, request.sampling.max_new_tokens)
    asked = [problem for problem in usable if problem.problem_id in prompts]
    check_problems(len(asked))
    order = np.random.default_rng(request.sampling.seed).permutation(len(asked))
    stored = {
        "proxy": "steering",
        "run": run.id,
        "model": {"fingerprint": model.fingerprint, "dtype": model.dtype, "name": model.name},
        "r": request.r,
        "verifier_version": VERSION,
        "variants": {name: asdict(steering) for name, steering in _variants((*arms, *chance)).items()},
        **request.as_dict(),
    }
    with workspace.start_evaluation(stored) as kept:
        trial = _Trial(model, request, [asked[i] for i in order], prompts, kept, progress)
        return trial.run(run, arms, chance, stored, len(request.problems.problems) - len(asked))


def named_problems(problems: ProblemSet) -> dict[str, Any]:
    """What a kept request says of its problems."""
    facts = problems.facts()
    return {name: facts[name] for name in ("path", "fingerprint", "problem", "answer", "limit", "config", "split")}


def _variants(arms: Sequence[Arm]) -> dict[str, Steering]:
    """Name -> steering of the arms, the unsteered model first."""
    return {UNSTEERED: Steering()} | {arm.name: Steering(((arm.direction, arm.strength),)) for arm in arms}


class _Trial:
    """The rollouts of a proxy under way. After every batch the manifest has the seconds of all sittings so far."""

    def __init__(
        self,
        model: LanguageModel,
        request: SteeringRequest,
        problems: Sequence[Problem],
        prompts: Mapping[int, Sequence[int]],
        kept: KeptEvaluation,
        progress: Progress,
    ) -> None:
        self.model, self.request, self.kept = model, request, kept
        self.problems, self.prompts, self.progress = list(problems), prompts, progress
        self.verify = verifier(request.verifier)
        self.start = time.monotonic()
        self.manifest: dict[str, Any] = {}
        self.earlier = self.longest = 0.0
        self.total = self.tokens = 0

    @property
    def seconds(self) -> float:
        """Spent so far, in earlier sittings, too."""
        return self.earlier + time.monotonic() - self.start

    def run(
        self, run: Run, arms: Sequence[Arm], chance: Sequence[Arm], stored: Mapping[str, Any], left_out: int
    ) -> Evidence:
        self.manifest = self._manifest(stored)
        if self.manifest["status"] == "complete" and "evidence" in self.manifest:
            self.kept.rollouts()  # raises where they are damaged: by now there is no time left to make them again
            return Evidence.from_dict(self.manifest["evidence"])
        self.earlier = float(self.manifest["seconds"])
        self.kept.mend()
        try:
            self.directions = self._directions(run)
            plan = self._plan(len(arms), len(chance))
            dropped, counted, problems = self._rounds(plan, arms, chance)
        finally:
            if self.kept.folder.exists():
                self._save()
        found = self._evidence(run, arms, chance, plan, dropped, counted, left_out, problems)
        result = Result.of(counted, self.request.sampling.seed).as_dict()
        self._save(status="complete", finished=now(), result=result, evidence=found.as_dict())
        return found

    def _directions(self, run: Run) -> Directions:
        """The run's with those of all controls after them; making these is part of the cost, SHARE_OF_COST of it
        at most but for each model's first texts. How many were read is kept: given again, as many are."""
        request, seed = self.request, self.request.sampling.seed
        found = with_random(Directions.of(run), request.random_arms, seed)
        texts: dict[str, int] = dict(self.manifest.get("model_texts", {}))
        for i, kind in enumerate(request.models):
            self.progress("random models", i, len(request.models))
            share = math.inf if kind in texts else SHARE_OF_COST * request.seconds / len(request.models)
            goes_on = partial(self._is_before, self.seconds + share)
            most = texts.get(kind, MODEL_TRACES)
            made = random_model_directions(run, self.model, kind, MODEL_ARMS, seed, most, goes_on)
            found, self.tokens = with_units(found, made.units), self.tokens + made.tokens
            texts[kind] = made.texts
            self.progress("random models", i + 1, len(request.models))
            self._save(model_texts=texts)
        return found

    def _is_before(self, seconds: float) -> bool:
        return self.seconds < seconds

    def _manifest(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The kept one, or that of a new evaluation, which is kept now."""
        if (self.kept.folder / "manifest.json").exists():
            return self.kept.manifest
        self.kept.save_problems(self.request.problems.problems)
        manifest = {
            "format_version": 1,
            "request": dict(stored),
            "problems": self.request.problems.facts(),
            "left_out": {},
            "status": "under way",
            "created": now(),
            "seconds": 0.0,
            "versions": versions_of(PACKAGES),
        }
        self.kept.save_manifest(manifest)
        return manifest

    def _save(self, **more: Any) -> None:
        """Keep the seconds so far, and more."""
        self.manifest |= {"seconds": round(self.seconds, 3), **more}
        self.kept.save_manifest(self.manifest)

    def _plan(self, arms: int, random: int) -> Plan:
        """The kept plan, or one by the rate of a pilot. The rate is kept before the plan, which may be refused:
        given again, it is refused again."""
        if made := self.manifest.get("plan"):
            return Plan(tuple(made["problems"]), tuple(made["arms"]), made["rate"], made["rollouts"])
        if "rate" not in self.manifest:
            self._save(rate=self._pilot())
        left = max(self.request.seconds - self.seconds, 0.0)
        plan = make_plan(arms, random, self.request.r, len(self.problems), self.manifest["rate"], left)
        self._save(plan=asdict(plan))
        return plan

    def _pilot(self) -> float:
        """Rollouts per second of the unsteered model on the first problems, made again where it was stopped: on
        one problem, then on as many as PILOT_ROLLOUTS are and SHARE_OF_COST likely buys."""
        r = self.request.r
        self.progress("pace", 0, 2)
        seconds = max(self._timed(self.problems[:1]), 0.01)
        self.progress("pace", 1, 2)
        affordable = int(SHARE_OF_COST * self.request.seconds / seconds)
        more = self.problems[1 : 1 + min(affordable, max(1, PILOT_ROLLOUTS // r))]
        return r * len(more) / max(self._timed(more), 0.01) if more else r / seconds

    def _timed(self, problems: Sequence[Problem]) -> float:
        before = self.seconds
        for batch in self._batches(problems, _variants([]), frozenset()):
            self._keep(batch)
        return self.seconds - before

    def _rounds(
        self, plan: Plan, arms: Sequence[Arm], chance: Sequence[Arm]
    ) -> tuple[dict[str, int], list[Rollout], list[Problem]]:
        """Arm -> the round after which it was dropped; the rollouts that count, all of them on problems that every
        arm of their round was through with; these problems. Ends with the plan or with the time."""
        self.total = plan.rollouts
        self.progress("rollouts", len(self.kept.rollouts()), self.total)
        alive, dropped = list(arms), dict[str, int]()
        counted, seen = list[Rollout](), list[Problem]()
        for round_, size in enumerate(plan.problems):
            told = _strength_of_evidence(alive, counted) if round_ else dict.fromkeys((a.name for a in alive), 0.0)
            staying = sorted(alive, key=lambda arm: -told[arm.name])[: plan.arms[round_]]
            full = self._roll(self.problems[len(seen) : len(seen) + size], _variants([*staying, *chance]))
            if full:
                dropped |= {arm.name: round_ for arm in alive if arm not in staying}
                alive = [arm for arm in alive if arm in staying]
                names, ids = _variants([*alive, *chance]), {problem.problem_id for problem in full}
                counted += [o for o in self.kept.rollouts() if o.variant in names and o.problem_id in ids]
                seen += full
            if len(full) < size:
                break
        if len(seen) < LEAST_PROBLEMS:
            raise BasiscopeError(
                f"--cost: when the {self.request.seconds:,.0f} s were over, {len(seen)} of "
                f"{sum(plan.problems)} problems were through, too few to compare {len(arms)} arms. Give more "
                "seconds, fewer --directions, fewer --rollouts, or fewer --max-new-tokens."
            )
        return dropped, counted, seen

    def _roll(self, problems: Sequence[Problem], variants: Mapping[str, Steering]) -> list[Problem]:
        """Every problem under every variant, some problems at a time; what is kept already is not made again.
        The problems that are through, where no further batch is likely to be in time."""
        done = {one.key for one in self.kept.rollouts()}
        some = math.ceil(FULL_BATCHES * BATCH_ROWS / (len(variants) * self.request.r))
        full: list[Problem] = []
        for i in range(0, len(problems), some):
            part = problems[i : i + some]
            keys = {problem.problem_id: self._keys(problem, variants) for problem in part}
            wanted = set[Key]().union(*keys.values())
            batches = self._batches(part, variants, frozenset(done))
            while not wanted <= done and self.seconds + self.longest <= self.request.seconds:
                batch = next(batches)
                self._keep(batch)
                done |= {one.key for one in batch}
                self.progress("rollouts", len(done), self.total)
            through = [problem for problem in part if keys[problem.problem_id] <= done]
            full += through
            if len(through) < len(part):
                break
        return full

    def _keys(self, problem: Problem, variants: Mapping[str, Steering]) -> set[Key]:
        return {(name, problem.problem_id, i) for name in variants for i in range(self.request.r)}

    def _batches(
        self, problems: Sequence[Problem], variants: Mapping[str, Steering], done: frozenset[Key]
    ) -> Iterator[list[Rollout]]:
        request = self.request
        return roll_out(
            self.model,
            problems,
            self.prompts,
            self.verify,
            request.r,
            request.sampling,
            variants,
            self.directions,
            done,
        )

    def _keep(self, batch: Sequence[Rollout]) -> None:
        self.kept.append(batch)
        self.longest = max(self.longest, self.seconds - self.manifest["seconds"])
        self._save()

    def _evidence(
        self,
        run: Run,
        arms: Sequence[Arm],
        chance: Sequence[Arm],
        plan: Plan,
        dropped: Mapping[str, int],
        counted: Sequence[Rollout],
        left_out: int,
        problems: Sequence[Problem],
    ) -> Evidence:
        by_variant, rollouts = _by_variant(counted), self.kept.rollouts()
        seconds, planned = float(self.manifest["seconds"]), sum(plan.problems)
        every_k = (1,) if self.request.r == 1 else (1, self.request.r)
        measures = tuple(Measure(f"pass@{k}", f"change of Pass@{k}", f"Pass@{k}") for k in every_k)
        effects: list[Effect] = []
        controls: list[Control] = []
        for k, measure in zip(every_k, measures, strict=True):
            found = judge(by_variant, arms, chance, dropped, k, measure.name, self.request.sampling.seed)
            effects += found[0]
            controls += found[1]
        baseline = by_variant[UNSTEERED]
        solved = float(np.mean([one.right is True for one in baseline]))
        cut = sum(one.cut for one in rollouts)
        strengths = ", ".join(f"{arm.name} {arm.strength:+.3g}" for arm in arms)
        notes = [
            f"{len(rollouts):,} rollouts in {seconds:,.0f} s of {self.request.seconds:,.0f} s; planned "
            f"{plan.rollouts:,} at {plan.rate:.3g} a second, over {planned} problems in rounds of "
            f"{', '.join(map(str, plan.problems))}",
            *(
                [
                    f"the time was up before the plan was through: compared on the first {len(problems)} "
                    "problems, which all arms then left were through with"
                ]
                if len(problems) < planned
                else []
            ),
            f"the unsteered model is right in {solved:.1%} of its texts",
            f"strengths in multiples of the unit direction: {strengths}",
            *([f"{cut:,} of {len(rollouts):,} texts reached the token limit"] if cut else []),
            *([f"{left_out:,} problems left out: unverifiable, refused, or without room"] if left_out else []),
            *(
                f"{kind.replace('-', ' ')}: its directions are those of {texts:,} of the run's examples"
                for kind, texts in self.manifest.get("model_texts", {}).items()
            ),
            *self.request.problems.notes,
            NOT_APPLIED,
            *notes_of(self.model, self.model.name),
            *overlap_notes(run, [problem.prompt for problem in problems]),
        ]
        tokens = self.tokens + sum((one.n_tokens or 0) + len(self.prompts[one.problem_id]) for one in rollouts)
        return Evidence(
            "steering",
            run.id,
            measures[0].name,
            measures,
            tuple(effects),
            tuple(controls),
            self.kept.manifest["request"],
            Cost(round(seconds, 3), tokens),
            tuple(notes),
            {
                "plan": asdict(plan),
                "unsteered": solved,
                "arms": [asdict(arm) for arm in (*arms, *chance)],
                "seed": self.request.sampling.seed,
                "model": self.model.fingerprint,
                "versions": versions_of(PACKAGES),
            },
            {
                "evaluation": self.kept.id,
                "variants": {arm.name: arm.name for arm in arms},
                "problems": {arm.name: sorted({one.problem_id for one in by_variant[arm.name]}) for arm in arms},
            },
        )


def _strength_of_evidence(arms: Sequence[Arm], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Arm -> how many standard errors its Pass@1 is from the unsteered model's."""
    tallies = {name: Tally.of(ones) for name, ones in _by_variant(rollouts).items()}
    found = {}
    for arm in arms:
        differences = problem_differences(tallies[arm.name], tallies[UNSTEERED], 1)
        spread = max(float(differences.std(ddof=1)), 1e-9) if len(differences) > 1 else 1.0
        found[arm.name] = abs(float(differences.mean())) / (spread / math.sqrt(len(differences)))
    return found


def _by_variant(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    found: dict[str, list[Rollout]] = {}
    for one in rollouts:
        found.setdefault(one.variant, []).append(one)
    return found


def judge(
    by_variant: Mapping[str, Sequence[Rollout]],
    arms: Sequence[Arm],
    chance: Sequence[Arm],
    dropped: Mapping[str, int],
    k: int,
    measure: str,
    seed: int = 0,
) -> tuple[list[Effect], list[Control]]:
    """Effects of all arms on Pass@k, paired by problem with the unsteered model, against the random directions and
    those of random models: an arm counts where it is further off than every one of these, and no likely draw from
    the normal distribution that the random ones are of. Where all random directions change as much, such as
    nothing, there is no such distribution: the paired p-value over problems and the distance decide. Of several
    strengths of an end the strongest evidence is given."""
    tallies = {name: Tally.of(rollouts) for name, rollouts in by_variant.items()}
    differences = {
        arm.name: problem_differences(tallies[arm.name], tallies[UNSTEERED], k) for arm in (*arms, *chance)
    }
    null = np.array([differences[arm.name].mean() for arm in chance if not arm.model])
    reached = {"random directions": null}
    for model in dict.fromkeys(arm.model for arm in chance if arm.model):
        reached[model] = np.array([differences[arm.name].mean() for arm in chance if arm.model == model])
    p = np.array([sign_flip_p(differences[arm.name], seed) for arm in arms])
    values = np.array([differences[arm.name].mean() for arm in arms])
    tested = np.array([arm.name not in dropped for arm in arms])
    own = false_discovery(np.where(tested, p, 1.0))
    adjusted = own
    is_varied = float(np.ptp(null)) > 1e-9
    if is_varied:
        adjusted = np.maximum(own, false_discovery(np.where(tested, p_outlier(values, null), 1.0)))
    furthest = max(float(np.abs(means).max()) for means in reached.values())
    best: dict[tuple[int, str], Effect] = {}
    for i, arm in enumerate(arms):
        effect = Effect(
            arm.direction,
            arm.polarity,
            measure,
            difference_interval(differences[arm.name]),
            float(p[i]),
            float(adjusted[i]) if tested[i] else math.nan,
            abs(float(values[i])) - furthest,
            note=f"strength {arm.strength:+.3g}"
            + (f", dropped after round {dropped[arm.name]}" if not tested[i] else ""),
            strength=arm.strength,
        )
        other = best.get((arm.direction, arm.polarity))
        if other is None or _rank(effect) < _rank(other):
            best[arm.direction, arm.polarity] = effect
    controls = []
    for name, means in reached.items():
        level = Interval(float(np.abs(means).max()), float(means.min()), float(means.max()), len(means))
        what = "random directions" if name == "random directions" else f"directions of a model with {RANDOM[name]}"
        detail = f"the furthest of {len(means)} {what}, of the same norm; in brackets their lowest and highest"
        if name == "random directions" and not is_varied:
            detail += "; they do not differ, so p-values over problems decide"
        controls.append(Control(name, measure, level, detail))
    return list(best.values()), controls


def _rank(effect: Effect) -> tuple[float, float]:
    return (math.inf if math.isnan(effect.adjusted) else effect.adjusted, effect.p)
