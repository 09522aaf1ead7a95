"""`utility`, `proxies`, `recommend`: which directions help the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.cli.group import (
    Reporter,
    check_direction,
    cli,
    device_option,
    given_options,
    json_option,
    table,
    workspace_option,
)
from core.errors import BasiscopeError
from core.usefulness import PROXY_KINDS
from core.workspace import Run, Workspace

if TYPE_CHECKING:
    from core.usefulness.evidence import Evidence

VERDICT_HELP = "Column with verdicts: true or false, 1 or 0, right or wrong; a.b leads into nested ones."

VERIFIER_HELP = (
    "As for `evaluate`. For first-order and sft it decides which worked solutions are right, where --solution "
    "names no column."
)


@cli.command()
@click.argument("run")
@click.option("--correct", help=f"{VERDICT_HELP} One with a usual name by default.")
@click.option(
    "--control", default="length", show_default=True, help="Columns to control for, such as length,level; or none."
)
@click.option("--problem", help="Column that tells problems apart; the prompt by default.")
@click.option("--controls", help="Also run models that have learnt nothing: random-model,random-blocks.")
@click.option(
    "--control-traces", type=click.IntRange(10), default=1_000, show_default=True, help="Traces for --controls."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of shuffles, draws and random models.")
@device_option
@workspace_option
@json_option
def utility(
    run: str,
    correct: str | None,
    control: str,
    problem: str | None,
    controls: str | None,
    control_traces: int,
    seed: int,
    device: str,
    workspace: Path,
    as_json: bool,
) -> dict[str, Any]:
    """How scores go with verified correctness over the run's traces; kept in the workspace.

    Correlation and AUC with 95% intervals over problems, raw, controlled, and within problems where there are
    several traces of one; beside random directions, shuffled verdicts, a bag of words, and length alone.
    """
    from core.recovery import load_run_model
    from core.usefulness.utility import UtilityRequest
    from core.usefulness.utility import utility as measure

    for name, option in given_options().items():
        if name in ("control_traces", "device") and not controls:
            raise click.UsageError(f"{option} is for --controls, and there is none.")
    space = Workspace(workspace)
    opened = space.run(run)
    columns = tuple(name.strip() for name in control.split(",") if name.strip() not in ("", "none"))
    try:
        request = UtilityRequest(correct, columns, problem, _models(controls), control_traces, seed)
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error
    with Reporter(as_json) as progress:
        found = measure(opened, request, lambda: load_run_model(opened, device), progress)
    return _kept(space, found)


def _models(controls: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in controls.split(",")) if controls else ()


def _kept(space: Workspace, found: Evidence) -> dict[str, Any]:
    from core.usefulness.table import control_table, evidence_notes, evidence_table

    evidence_id = space.save_evidence(found)
    lines = [*_rows(evidence_table(found)), "", *_rows(control_table(found)), "", *evidence_notes(found)]
    return {"evidence": evidence_id, **found.as_dict(), "lines": lines}


def _rows(shown: Any) -> list[str]:
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.to_numpy()]
    return table(rows, tuple(shown.columns))


def _above_zero(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise click.BadParameter(f"{value:g} is no number above 0.")
    return value


def problem_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The development set, as `evaluate` takes its problems."""
    options = [
        click.option("--problems", "path", help="Development problems with answers: a file or hub data set."),
        click.option("--preset", help="A usual problem set, as for `evaluate`."),
        click.option("--problem", help="Column with the problems."),
        click.option("--answer", help="Column with the answers."),
        click.option("--config", help="Config of a hub data set."),
        click.option("--split", help="Split of a hub data set, or of a folder whose names tell splits."),
        click.option("--limit", type=click.IntRange(1), help="Only the first N problems."),
        click.option("--verifier", "verifier_name", help=VERIFIER_HELP),
        click.option("--wording", help="How to ask, as for `evaluate`."),
        click.option(
            "--template",
            type=click.Choice(["auto", "chat", "plain"]),
            default="auto",
            show_default=True,
            help="auto: chat where the tokenizer has a chat template.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("run")
@click.option("--kind", type=click.Choice(PROXY_KINDS), required=True, help="Which proxy.")
@problem_options
@click.option(
    "--solution",
    help="Column with worked solutions, for first-order and sft. By default that of the run's responses, where "
    "they give the answer, else `solution`, else the answers.",
)
@click.option("--correct", help=f"First-order on the run's own traces, right against wrong. {VERDICT_HELP}")
@click.option(
    "--directions", default="all", show_default=True, help="all, or numbers such as 1,3. For steering and sft."
)
@click.option(
    "--cost",
    type=float,
    callback=_above_zero,
    default=600.0,
    show_default=True,
    help="Seconds for steering, fixed beforehand.",
)
@click.option(
    "--strengths",
    help="For steering, in standard deviations, such as 0.5,1; half of the suggested range by default.",
)
@click.option(
    "--rollouts",
    "r",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Texts per problem, for steering and --passes.",
)
@click.option(
    "--random",
    "random_arms",
    type=click.IntRange(3),
    default=8,
    show_default=True,
    help="Random directions or selections as controls, for steering and sft.",
)
@click.option(
    "--controls",
    help="For steering and sft, models that have learnt nothing: random-model,random-blocks.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="For sft: each selection has as many tokens as so many examples of mean length.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="For sft: trainings of each selection, random ones too.",
)
@click.option("--epochs", type=float, callback=_above_zero, default=1.0, show_default=True, help="For sft.")
@click.option("--passes", is_flag=True, help="For sft, measure Pass@1, too, not the loss alone.")
@click.option(
    "--learning-rate", type=float, callback=_above_zero, default=2e-4, show_default=True, help="For sft."
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy, with --rollouts 1.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="A longer text is cut.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is left to chance.")
@device_option
@workspace_option
@json_option
def proxies(run: str, kind: str, workspace: Path, as_json: bool, device: str, **options: Any) -> dict[str, Any]:
    """Try the directions cheaply on development problems; kept in the workspace.

    first-order: the derivative of the loss on solutions along all directions, from one backward pass.
    steering: the change of Pass@k when each direction steers, within --cost seconds; a stopped one continues.
    sft: the loss on solutions after a short LoRA training along each direction, against random selections.
    """
    from core.examples import data_files, is_local
    from core.recovery import load_run_model

    _check_used(kind, options)
    space = Workspace(workspace)
    opened = space.run(run)
    if options["path"] and is_local(options["path"]):
        data_files(options["path"])  # before the model, which takes seconds
    elif not options["path"] and not options["preset"] and not options["correct"]:
        raise click.UsageError("Give --problems FILE or --preset NAME.")
    _directions(opened, options["directions"])
    with Reporter(as_json) as progress:
        progress("model", 0, 1)
        model = load_run_model(opened, device)
        if kind == "steering":
            found = _steering(space, opened, model, options, progress)
        elif kind == "sft":
            found = _sft(space, opened, model, options, progress)
        else:
            found = _first_order(opened, model, options, progress)
    return _kept(space, found)


TRACES, PASSES = "--kind first-order with --correct", "--kind sft with --passes"
TRAINED, WRITTEN = ("--kind sft", PASSES), ("--kind first-order", "--kind sft", PASSES)
GENERATED, PROBLEMS = ("--kind steering", PASSES), ("--kind steering", *WRITTEN)
USED_BY = {
    **dict.fromkeys(("answer", "config", "split", "limit", "wording", "template", "verifier_name"), PROBLEMS),
    **dict.fromkeys(("r", "temperature", "max_new_tokens"), GENERATED),
    **dict.fromkeys(("directions", "random_arms", "controls"), ("--kind steering", *TRAINED)),
    **dict.fromkeys(("cost", "strengths"), ("--kind steering",)),
    **dict.fromkeys(("examples", "seeds", "epochs", "passes", "learning_rate"), TRAINED),
    "solution": WRITTEN,
    "correct": (TRACES,),
}
"""The options of `proxies` that not every use of it heeds -> the uses that do."""


def _check_used(kind: str, options: dict[str, Any]) -> None:
    """Raises UsageError where an option is given that the chosen proxy would not heed."""
    if options["correct"] and (options["path"] or options["preset"]):
        raise click.UsageError("Give --correct, for the run's own traces, or --problems, not both.")
    use = f"--kind {kind}"
    if kind == "first-order" and options["correct"]:
        use = TRACES
    if kind == "sft" and options["passes"]:
        use = PASSES
    for name, option in given_options().items():
        heeded = USED_BY.get(name, (use,))
        if use not in heeded:
            shortest = [one for one in heeded if one != PASSES or "--kind sft" not in heeded]
            raise click.UsageError(f"{option} is for {' or '.join(shortest)}; {use} does not use it.")
    if options["verifier_name"]:
        _check_verifier(use, options)


def _check_verifier(use: str, options: dict[str, Any]) -> None:
    from core.evaluation.verifiers import verifier

    if use not in GENERATED and options["solution"]:
        raise click.UsageError(
            f"--verifier decides which solutions are right; {use} with --solution takes them all."
        )
    try:
        verifier(options["verifier_name"])
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error


def _directions(run: Run, text: str) -> tuple[int, ...]:
    if text.strip() == "all":
        return tuple(range(1, run.k + 1))
    try:
        chosen = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise click.UsageError(f"--directions {text!r}: write all, or numbers such as 1,3.") from error
    for direction in chosen:
        check_direction(run, direction)
    return chosen


def _steering(space: Workspace, run: Run, model: Any, options: dict[str, Any], progress: Any) -> Evidence:
    from core.evaluation.verifiers import verifier
    from core.steering.generation import Sampling
    from core.steering.sweep import parse_strengths
    from core.usefulness.steering import SteeringRequest, steer_proxy

    development = _problems(options)
    name, wording = _asking(run, development, options)
    try:
        verifier(name)
        request = SteeringRequest(
            development,
            name,
            _directions(run, options["directions"]),
            parse_strengths(options["strengths"]) if options["strengths"] else (),
            options["cost"],
            options["r"],
            options["random_arms"],
            Sampling(options["max_new_tokens"], options["temperature"], seed=options["seed"]),
            wording,
            options["template"],
            _models(options["controls"]),
        )
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error
    return steer_proxy(run, model, request, space, progress)


def _first_order(run: Run, model: Any, options: dict[str, Any], progress: Any) -> Evidence:
    from core.evaluation.overlap import overlap_notes
    from core.usefulness.development import traced_solutions, written_solutions
    from core.usefulness.first_order import first_order
    from core.usefulness.traces import read_traces

    asked = {name: value for name, value in options.items() if value is not None}
    if options["correct"]:
        traces = read_traces(run, options["correct"], (), options["problem"])
        solutions = traced_solutions(run, model, traces)
        notes = ["the solutions are the run's own traces, from which the directions come, too"]
    else:
        development = _problems(options)
        written, told = _solutions(run, options, development)
        wording = options["wording"] or "bare"
        solutions = written_solutions(model, development.problems, written, wording, options["template"])
        notes = [told, *development.notes]
        notes += overlap_notes(run, [problem.prompt for problem in development.problems])
        asked["fingerprint"] = development.fingerprint
    return first_order(run, model, solutions, asked, notes, options["seed"], progress)


def _sft(space: Workspace, run: Run, model: Any, options: dict[str, Any], progress: Any) -> Evidence:
    from core.evaluation.overlap import overlap_notes
    from core.usefulness.development import written_solutions
    from core.usefulness.sft import SftRequest, train_proxy
    from core.usefulness.steering import named_problems

    development = _problems(options)
    written, told = _solutions(run, options, development)
    wording, template = options["wording"] or "bare", options["template"]
    asked = {"problems": named_problems(development), "solution": options["solution"], "wording": wording}
    asked |= {"template": template, "passes": _passes(run, development, options) if options["passes"] else None}
    if options["verifier_name"]:
        asked |= {"verifier": options["verifier_name"]}
    chosen = _directions(run, options["directions"])
    numbers = {name: options[name] for name in ("examples", "seeds", "epochs", "seed")}
    try:
        request = SftRequest(
            chosen,
            random=options["random_arms"],
            rate=options["learning_rate"],
            models=_models(options["controls"]),
            asked=asked,
            **numbers,
        )
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error
    solutions = written_solutions(model, development.problems, written, wording, template)
    notes = [told, *development.notes, *overlap_notes(run, [problem.prompt for problem in development.problems])]
    answers = _answers(run, model, development, options) if options["passes"] else None
    return train_proxy(run, model, solutions, request, answers, notes, progress, space)


def _passes(run: Run, development: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What of --passes decides its figures, for the request."""
    name, wording = _asking(run, development, options)
    chosen = {part: options[part] for part in ("r", "temperature", "max_new_tokens")}
    return {"verifier": name, "wording": wording, **chosen}


def _answers(run: Run, model: Any, development: Any, options: dict[str, Any]) -> Any:
    from core.evaluation.rollouts import encode_problems
    from core.evaluation.verifiers import can_verify
    from core.steering.generation import Sampling
    from core.usefulness.sft import Answers

    name, wording = _asking(run, development, options)
    usable = tuple(problem for problem in development.problems if can_verify(name, problem.answer))
    if not usable:
        raise BasiscopeError(f"The verifier {name!r} can verify none of the answers; choose another --verifier.")
    sampling = Sampling(options["max_new_tokens"], options["temperature"], seed=options["seed"])
    refused: dict[int, str] = {}
    prompts = encode_problems(model, usable, wording, options["template"], sampling.max_new_tokens, refused)
    left_out = {
        "the verifier cannot verify their answers": len(development.problems) - len(usable),
        "no room for the new tokens in the model's context": len(usable) - len(prompts) - len(refused),
        "the chat template refuses them": len(refused),
    }
    left_out = {why: count for why, count in left_out.items() if count}
    return Answers(usable, prompts, name, options["r"], sampling, left_out)


def _asking(run: Run, development: Any, options: dict[str, Any]) -> tuple[str, str]:
    """The verifier and the wording, by default those of the preset, or of the demo's world."""
    from core.demo.default import is_demo

    of_demo = is_demo(run) and not development.preset
    name = options["verifier_name"] or development.verifier or ("world" if of_demo else "math")
    return name, options["wording"] or ("bare" if of_demo else "boxed")


def _problems(options: dict[str, Any]) -> Any:
    from core.evaluation.problems import read_problems
    from core.examples import DataSource

    if not options["path"] and not options["preset"]:
        raise click.UsageError("Give --problems FILE or --preset NAME.")
    source = DataSource(options["path"], options["config"], options["split"]) if options["path"] else None
    return read_problems(source, options["problem"], options["answer"], options["preset"], options["limit"])


def _solutions(run: Run, options: dict[str, Any], development: Any) -> tuple[dict[int, str], str]:
    """Problem id -> worked solution, and where they are from. Responses that are not asked for by name are taken
    where they give the answer."""
    from core.evaluation.verifiers import verifier
    from core.examples import ReadReport, field_value, read_rows

    rows = dict(read_rows(development.source, ReadReport()))
    response = run.manifest["data"]["columns"].get("response")
    named = {name for row in rows.values() for name in row}
    worked = [name for name in (response, "solution") if name in named]
    column = options["solution"] or next(iter(worked), development.answer)
    values = {number: field_value(row, column) for number, row in rows.items()}
    found = {number: str(value) for number, value in values.items() if value is not None and str(value).strip()}
    if not found:
        raise BasiscopeError(f"Problems {development.source.path}: no row has the column {column!r}.")
    told = f"the solutions are the column {column!r}"
    if column == development.answer or options["solution"]:
        return found, told
    verify = verifier(_asking(run, development, options)[0])
    right = {
        problem.problem_id: found[problem.problem_id]
        for problem in development.problems
        if problem.problem_id in found and verify(problem.answer, found[problem.problem_id])
    }
    if not right:
        raise BasiscopeError(
            f"Problems {development.source.path}: none of the texts in the column {column!r} gives its problem's "
            "answer; name the column with worked solutions by --solution."
        )
    return right, f"{told}, where it gives the answer"


@cli.command()
@click.argument("run")
@workspace_option
@json_option
def recommend(run: str, workspace: Path, as_json: bool) -> dict[str, Any]:
    """What utility and proxies say together, in plain words with the evidence."""
    from core.usefulness.recommend import recommend as conclude
    from core.usefulness.table import all_proxies

    space = Workspace(workspace)
    opened = space.run(run)
    kept = space.intact_evidence(opened.id)
    found = conclude(opened.id, opened.k, kept)
    space.save_recommendation(found)
    shown = all_proxies(opened.k, [kept[i] for i in found.evidence.values()])
    return {**found.as_dict(), "lines": [*_rows(shown), "", *found.sentences]}
