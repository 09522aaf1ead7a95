"""`evaluate`, `evaluations`: verified answers of a model, steered or not, and Pass@k."""

from __future__ import annotations

from contextlib import suppress
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
from core.workspace import Run, Workspace

if TYPE_CHECKING:
    from core.steering.intervention import Steering
    from core.workspace import KeptEvaluation


@cli.command()
@click.argument("target", metavar="RUN|MODEL", required=False)
@click.option("--problems", "path", help="A file or hub data set of problems with answers.")
@click.option("--preset", help="gsm8k, math500, amc, aime, minerva or olympiadbench: columns and verifier.")
@click.option("--problem", help="Column with the problems.")
@click.option("--answer", help="Column with the answers.")
@click.option("--config", help="Config of a hub data set.")
@click.option("--split", help="Split of a hub data set, or of a folder whose names tell splits.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N problems.")
@click.option(
    "--verifier",
    "verifier_name",
    help="math, numeric[:TOLERANCE], exact, normalised, choice, regex:PATTERN (one group) or world (the demo's); "
    "the preset's or math by default.",
)
@click.option(
    "--wording",
    default=None,
    help="How to ask: boxed (think step by step, answer in a box), bare, or a text with {problem} in it.",
)
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "plain"]),
    default="auto",
    show_default=True,
    help="auto: chat where the tokenizer has a chat template.",
)
@click.option(
    "--rollouts", "r", type=click.IntRange(1), help="Texts per problem.  [default: 8; 1 at temperature 0]"
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Sample among the tokens of this share.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="A longer text is cut.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed, the same texts.")
@click.option(
    "--steer",
    "steers",
    multiple=True,
    help='Directions and strengths such as "1:+2,3:-1"; may be repeated. The unsteered model runs beside it.',
)
@click.option(
    "--unit",
    type=click.Choice(["unit", "sd"]),
    default="unit",
    show_default=True,
    help="Of --steer: multiples of the unit direction, or standard deviations of its scores.",
)
@click.option("--endpoint", help="Ask an OpenAI-compatible server instead, such as http://localhost:8000/v1.")
@click.option(
    "--model-name", help="The model to ask there; MODEL by default, or the only one that the server has."
)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds that a request may take.")
@click.option(
    "--traces",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the unsteered rollouts to this JSONL file: prompt, response, correct and problem, for `recover` "
    "and `utility`.",
)
@device_option
@workspace_option
@json_option
def evaluate(
    target: str | None, workspace: Path, as_json: bool, device: str, traces: Path | None, **options: Any
) -> dict[str, Any]:
    """Verified answers of a model, and Pass@k with intervals; kept in the workspace as they come.

    Given again after it was stopped, it continues. The key of a server is BASISCOPE_ENDPOINT_KEY in the
    environment.
    """
    from core.evaluation.problems import read_problems
    from core.evaluation.step import evaluate as roll_out
    from core.evaluation.step import evaluate_server
    from core.model import load_model
    from core.recovery import load_run_model

    if target is None and not options["endpoint"]:
        raise click.UsageError("Give a RUN, a MODEL, or --endpoint.")
    if not options["path"] and not options["preset"]:
        raise click.UsageError("Give --problems, or a --preset.")
    _check_used(options)
    space = Workspace(workspace)
    server = _server(options) if options["endpoint"] and options["model_name"] else None
    if options["endpoint"] and target is not None:
        run, server = _served(space, target, options)
    else:
        run = None if target is None else _run_of(space, target)
    problems = read_problems(
        _source(options), options["problem"], options["answer"], options["preset"], options["limit"]
    )
    request = _request(problems, run, options)
    with Reporter(as_json) as progress:
        if options["endpoint"]:
            kept = evaluate_server(request, space, server or _server(options), run, progress)
        else:
            assert target is not None
            progress("model", 0, 1)
            model = load_run_model(run, device) if run else load_model(target, device=device)
            kept = roll_out(request, space, model, run, progress)
    lines = _lines(kept)
    if traces:
        lines += ["", _write_traces(kept, traces)]
    return {"evaluation": kept.id, **kept.manifest, "lines": lines}


def _write_traces(kept: KeptEvaluation, path: Path) -> str:
    from core.evaluation.step import traces
    from core.workspace import write_lines

    rows = traces(kept)
    try:
        write_lines(path, rows)
    except OSError as error:
        raise BasiscopeError(f"--traces {path}: it cannot be written ({error.strerror}).") from error
    return f"{len(rows):,} traces in {path}, of them {sum(row['correct'] is True for row in rows):,} right."


OF_A_SERVER = ("model_name", "concurrency", "timeout")


def _check_used(options: dict[str, Any]) -> None:
    """Raises UsageError where an option is given that would not be heeded."""
    for name, option in given_options().items():
        if name in OF_A_SERVER and not options["endpoint"]:
            raise click.UsageError(f"{option} is for --endpoint, and there is none.")
        if name == "device" and options["endpoint"]:
            raise click.UsageError("--device is for a model here; with --endpoint the server has its own.")
        if name == "unit" and not options["steers"]:
            raise click.UsageError("--unit is of --steer, and there is none.")


def _served(space: Workspace, target: str, options: dict[str, Any]) -> tuple[Run | None, Any]:
    """The run that a target of --endpoint means, or the server with it as the model's name there."""
    from core.model import is_folder

    run = None
    if not is_folder(target):
        with suppress(BasiscopeError):
            run = space.run(target)
    if run is not None:
        return run, _server(options)
    if options["model_name"] and options["model_name"] != target:
        raise click.UsageError(
            f"{target} is no run, so it names a model, and so does --model-name; give one of them."
        )
    server = _server(options | {"model_name": target})
    if not options["model_name"] and target not in (listed := server.listed_models()):
        known = f"serves {', '.join(listed[:8])}" if listed else "lists no model"
        if is_folder(target) or listed:
            raise click.UsageError(
                f"{target} is neither a run nor a model of {server.url}, which {known}; "
                "name one of the server's, or leave it away where there is one only."
            )
    return None, server


def _run_of(space: Workspace, target: str) -> Run | None:
    """The run that a target means, or None where it means a model: a folder, or a hub id."""
    from core.model import is_folder

    if is_folder(target):
        return None
    try:
        return space.run(target)
    except BasiscopeError:
        if "/" in target:
            return None
        raise


def _source(options: dict[str, Any]) -> Any:
    from core.examples import DataSource

    if not options["path"]:
        return None
    return DataSource(options["path"], options["config"], options["split"])


def _server(options: dict[str, Any]) -> Any:
    from core.evaluation.endpoint import KEY_VARIABLE, Server
    from core.reading import check_without_key

    check_without_key(options["endpoint"], KEY_VARIABLE)
    choices = {name: options[name] for name in ("concurrency", "timeout")}
    return Server.at(options["endpoint"], options["model_name"], options["template"], **choices)


def _request(problems: Any, run: Run | None, options: dict[str, Any]) -> Any:
    from core.demo.default import is_demo
    from core.evaluation.step import Request
    from core.evaluation.verifiers import verifier
    from core.steering.generation import Sampling

    of_demo = run is not None and is_demo(run) and not problems.preset
    name = options["verifier_name"] or problems.verifier or ("world" if of_demo else "math")
    try:
        verifier(name)
        sampling = Sampling(*(options[part] for part in ("max_new_tokens", "temperature", "top_p", "seed")))
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error
    r = options["r"] or (8 if sampling.temperature else 1)
    wording = options["wording"] or ("bare" if of_demo else "boxed")
    variants = dict(_variant(run, steer, options["unit"]) for steer in options["steers"])
    return Request(problems, name, r, sampling, wording, options["template"], variants)


def _variant(run: Run | None, steer: str, unit: str) -> tuple[str, Steering]:
    """(name, steering) of a text such as `1:+2,3:-1`."""
    from core.steering.intervention import Directions, Steering

    if run is None:
        raise click.UsageError("--steer needs a RUN, whose directions it means.")
    try:
        pairs = [part.split(":") for part in steer.split(",")]
        strengths = [(int(direction), float(strength)) for direction, strength in pairs]
    except ValueError as error:
        raise click.UsageError(
            f'--steer {steer!r}: write directions and strengths, such as "1:+2,3:-1".'
        ) from error
    for direction, _ in strengths:
        check_direction(run, direction)
    directions = Directions.of(run)
    name = ",".join(
        f"{direction}:{strength:+g}{' sd' if unit == 'sd' else ''}" for direction, strength in strengths
    )
    steering = Steering(tuple((j, directions.in_unit(j, strength, unit)) for j, strength in strengths))
    if steering.is_baseline:
        raise click.UsageError(f"--steer {steer!r}: a strength of 0 is the unsteered model, which runs anyway.")
    return name, steering


def _lines(kept: KeptEvaluation) -> list[str]:
    from core.tables import evaluation_sentences, evaluation_tables

    manifest = kept.manifest
    lines = [f"evaluation {kept.id}", ""]
    for shown in evaluation_tables(manifest):
        rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.to_numpy()]
        lines += [*table(rows, tuple(shown.columns)), ""]
    return [*lines, *evaluation_sentences(manifest)]


@cli.command()
@workspace_option
@json_option
def evaluations(workspace: Path, as_json: bool) -> dict[str, Any]:
    """List every kept evaluation, newest first; `delete` removes one by its id.

    Pass@1 is that of the unsteered model; variants counts it and the steered ones beside it.
    """
    from core.tables import evaluation_row, share_text, short_name, stored_interval

    space, rows = Workspace(workspace), list[dict[str, Any]]()
    for kept in space.evaluations():
        try:
            rows.append(evaluation_row(kept, space.is_evaluating(kept.id)))
        except BasiscopeError as error:
            rows.append({"evaluation": kept.id, "status": "unreadable", "model": str(error)})
    rows += [
        {"evaluation": one.name, "status": "damaged", "model": one.reason} for one in space.damaged("evaluation")
    ]
    keys = ("evaluation", "status", "run", "model", "problems", "n", "verifier", "rollouts", "variants")
    shown = [
        {name: value for name, value in row.items() if value is not None}
        | {name: short_name(row[name]) for name in ("model", "problems") if row.get(name)}
        | {"Pass@1": share_text(stored_interval(row["pass_at_1"])) if row.get("pass_at_1") else ""}
        for row in rows
    ]
    lines = table(shown, (*keys, "Pass@1", "created")) if rows else [f"No evaluations in {workspace} yet."]
    return {"evaluations": rows, "lines": lines}
