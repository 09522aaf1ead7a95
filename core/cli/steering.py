"""`steer`, `sweep`, `export`: use a direction on the model it was found in."""

from __future__ import annotations

import json
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
from core.workspace import Run, Workspace

if TYPE_CHECKING:
    from core.steering.comparison import Comparison
    from core.steering.intervention import Directions
    from core.steering.sweep import Sweep


def steering_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What steering means, and how text is generated; shared by `steer` and `sweep`."""
    options = [
        click.option("--direction", type=int, required=True, help="Direction, from 1."),
        click.option(
            "--unit",
            type=click.Choice(["unit", "sd"]),
            default="unit",
            show_default=True,
            help="Strength in multiples of the unit direction, as published, or in standard deviations of its "
            "scores.",
        ),
        click.option(
            "--op",
            "operation",
            type=click.Choice(["add", "remove", "clamp"]),
            default="add",
            show_default=True,
            help="Add the direction, take a share of it out, or set every token's score.",
        ),
        click.option("--blocks", help="Blocks to steer, such as 1:-1; all that the run covers by default."),
        click.option(
            "--scope",
            default="all",
            show_default=True,
            help="Positions: all, prompt, response, or first:N generated tokens.",
        ),
        click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Stop after so many."),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
        click.option(
            "--top-p",
            type=float,
            default=1.0,
            show_default=True,
            help="Sample among the tokens that hold this share.",
        ),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            help="The same noise for every variant, so that differences are the steering's.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("run")
@steering_options
@click.option("--strength", type=float, help="Its sign is the polarity.")
@click.option("--variants", help='Further strengths of the same batch, such as "0,+2,-2".')
@click.option("--prompt", help="A text to go on from.")
@click.option("--prompts", type=click.Path(dir_okay=False), help="A text file, one prompt a line, or a data file.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N prompts.")
@device_option
@workspace_option
@json_option
def steer(run: str, workspace: Path, as_json: bool, device: str, **options: Any) -> dict[str, Any]:
    """Generate with and without a direction: the baseline first, all variants in one batch.

    A prompt of chat messages keeps what was said before its last question. Strengths count multiples of the unit
    direction unless --unit sd is given; what is printed shows both units.
    With --json: one object a line for each prompt and variant; prompt_number is the row in the file, from 0.
    """
    from core.examples import ReadReport
    from core.recovery import load_run_model
    from core.steering.comparison import compare, make_variants
    from core.steering.generation import Prompt, Sampling
    from core.steering.intervention import Directions
    from core.steering.prompts import read_prompts
    from core.steering.sweep import parse_strengths

    if options["strength"] is None and options["variants"] is None:
        raise click.UsageError("Give at least one of --strength and --variants.")
    if (options["prompt"] is None) == (options["prompts"] is None):
        raise click.UsageError("Give one of --prompt and --prompts.")
    _check_unit(options)
    opened = Workspace(workspace).run(run)
    check_direction(opened, options["direction"])
    sampling = _sampling(options, Sampling)
    strengths = parse_strengths(options["variants"]) if options["variants"] is not None else ()
    if options["strength"] is not None:
        strengths = tuple(dict.fromkeys((options["strength"], *strengths)))
    directions = Directions.of(opened)
    variants = make_variants(
        directions,
        options["direction"],
        strengths,
        options["unit"],
        operation=options["operation"],
        scope=options["scope"],
        blocks=_blocks(opened, directions, options["blocks"]),
    )
    prompts = [Prompt(options["prompt"] or "")]
    if options["prompts"]:
        report = ReadReport()
        prompts = read_prompts(options["prompts"], opened, limit=options["limit"], report=report)
        for sentence in report.sentences():
            click.echo(sentence, err=True)
    with Reporter(as_json) as progress:
        progress("model", 0, 1)
        model = load_run_model(opened, device)
        asked = (sampling, options["direction"], options["unit"])
        found = compare(opened, model, prompts, variants, *asked, progress=progress)
    numbered = [(prompt.number or 0, one) for prompt, one in zip(prompts, found, strict=True)]
    return {
        "objects": [_object(number, one, response) for number, one in numbered for response in one.responses],
        "lines": [line for one in found for line in _comparison_lines(one)],
    }


def _check_unit(options: dict[str, Any]) -> None:
    if options["operation"] == "remove" and options["unit"] == "sd":
        raise click.UsageError("--op remove takes a share of the direction out: --unit sd means nothing there.")


def _sampling(options: dict[str, Any], sampling: Any) -> Any:
    try:
        return sampling(*(options[name] for name in ("max_new_tokens", "temperature", "top_p", "seed")))
    except BasiscopeError as error:
        raise click.UsageError(str(error)) from error


def _blocks(run: Run, directions: Directions, blocks: str | None) -> tuple[int, ...] | None:
    from core.model import resolve_blocks

    if blocks is None:
        return None
    return directions.covered(resolve_blocks(blocks, int(run.manifest["model"]["n_blocks"])))


def _object(number: int, comparison: Comparison, response: Any) -> dict[str, Any]:
    deviations, share = dict(comparison.deviations), response.steering.operation == "remove"
    return {
        "prompt": comparison.prompt,
        "prompt_number": number,
        "before": [
            {"role": role, "content": content, **(json.loads(more[0]) if more else {})}
            for role, content, *more in comparison.before
        ],
        "variant": response.variant,
        "direction": comparison.direction,
        "strength": response.strength,
        "unit": comparison.unit,
        "strengths": [
            {"direction": j, "unit": times, "sd": None if share else times / deviations[j]}
            for j, times in response.steering.strengths
        ],
        "text": response.text,
        "token_ids": list(response.token_ids),
        "n_tokens": len(response.token_ids),
        "seconds": round(comparison.seconds, 3),
        "ended": response.ended,
        "note": response.note,
        "perplexity": response.perplexity,
        "divergence": response.divergence,
        "notes": list(comparison.notes),
    }


def _comparison_lines(comparison: Comparison) -> list[str]:
    from core.chats import turn_line

    lines = [turn_line(turn) for turn in comparison.before]
    lines += [f"prompt: {comparison.prompt}", ""]
    lines += [*comparison.notes, ""] if comparison.notes else []
    for response in comparison.responses:
        lines += [f"[{response.variant}] {comparison.describe(response)}", response.text, ""]
    return lines


@cli.command()
@click.argument("run")
@steering_options
@click.option(
    "--strengths", help='Such as "-4:4:9" (from:to:count) or "0,+2,-2"; without it, the calibrating sweep.'
)
@click.option(
    "--prompts",
    type=click.Path(dir_okay=False),
    help="A text file, one prompt a line, or a data file; without it, examples of the run.",
)
@click.option("--answer", help="Column with the answers that responses are verified against.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N prompts.")
@device_option
@workspace_option
@json_option
def sweep(run: str, workspace: Path, as_json: bool, device: str, **options: Any) -> dict[str, Any]:
    """What a direction does over strengths, and where it becomes damage; kept in the workspace.

    Without --strengths: the short calibrating sweep in standard deviations, of 40 new tokens unless
    --max-new-tokens is given, whose range without damage is kept with the run as the suggested one.
    """
    from core.demo.default import is_demo
    from core.evaluation import verifier
    from core.examples import ReadReport
    from core.recovery import load_run_model
    from core.steering import sweep as sweeps
    from core.steering.generation import Sampling
    from core.steering.intervention import Directions
    from core.steering.prompts import read_prompts, usable_prompts

    if options["answer"] and not options["prompts"]:
        raise click.UsageError("--answer needs --prompts, whose column it is.")
    calibrating = options["strengths"] is None
    _check_unit(options)
    given = given_options()
    if calibrating and "unit" in given and options["unit"] != "sd":
        raise click.UsageError("The calibrating sweep is in standard deviations (--unit sd); give --strengths.")
    defaults = {"operation": "add", "blocks": None, "scope": "all", "temperature": 0.0}
    if calibrating and any(options[name] != value for name, value in defaults.items()):
        raise click.UsageError(
            "The calibrating sweep is for --op add in all blocks and at all positions, at temperature 0, as the "
            "range that it suggests; give --strengths."
        )
    space = Workspace(workspace)
    opened = space.run(run)
    check_direction(opened, options["direction"])
    strengths = sweeps.CALIBRATION if calibrating else sweeps.parse_strengths(options["strengths"])
    if calibrating:
        options["unit"] = "sd"
        if "max_new_tokens" not in given:
            options["max_new_tokens"] = sweeps.CALIBRATION_TOKENS
    request = sweeps.SweepRequest(
        options["direction"],
        strengths,
        options["unit"],
        options["operation"],
        options["scope"],
        _blocks(opened, Directions.of(opened), options["blocks"]),
        _sampling(options, Sampling),
    )
    limit, report = options["limit"] or sweeps.CALIBRATION_PROMPTS, ReadReport()
    if options["prompts"]:
        prompts = read_prompts(options["prompts"], opened, options["answer"], options["limit"], report)
    else:
        prompts = []
    with Reporter(as_json) as progress:
        progress("model", 0, 1)
        model = load_run_model(opened, device)
        prompts = prompts or usable_prompts(opened, model, limit, request.sampling.max_new_tokens)
        verify = verifier("world" if is_demo(opened) else "math")
        found = sweeps.sweep(opened, model, request, prompts, verify, progress, report.sentences())
    sweep_id = space.save_sweep(found)
    if calibrating:
        opened.save_suggested_range(request.direction, sweeps.SuggestedRange.of(found))
    return {"run": opened.id, "sweep": sweep_id, **found.as_dict(), "lines": _sweep_lines(found)}


def _sweep_lines(found: Sweep) -> list[str]:
    from core.tables import sweep_range_sentence, table_of_sweep

    shown = table_of_sweep(found)
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.to_numpy()]
    return [*table(rows, tuple(shown.columns)), "", sweep_range_sentence(found), *found.notes]


@cli.command()
@click.argument("run")
@click.option("--direction", type=int, required=True, help="Direction, from 1.")
@click.option("--strength", type=float, required=True, help="Its sign is the polarity.")
@click.option(
    "--unit",
    type=click.Choice(["unit", "sd"]),
    default="unit",
    show_default=True,
    help="As for `steer`.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["checkpoint", "peft", "gguf", "vector"]),
    required=True,
    help="A steered model, a PEFT adapter, a llama.cpp control vector, or the vectors alone.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
@device_option
@workspace_option
@json_option
def export(
    run: str,
    direction: int,
    strength: float,
    unit: str,
    kind: str,
    out: Path,
    device: str,
    workspace: Path,
    as_json: bool,
) -> dict[str, Any]:
    """Write the steering in a form that other tools load.

    It is loaded again and compared with the live hook on prompts of the run before success is reported.
    """
    from core.checkpoint import export as write
    from core.recovery import load_run_model
    from core.steering.intervention import Directions, both_units

    opened = Workspace(workspace).run(run)
    check_direction(opened, direction)
    directions = Directions.of(opened)
    times = directions.in_unit(direction, strength, unit)
    in_sd = directions.in_sd(direction, times)
    with Reporter(as_json) as progress:
        agreement = write(opened, lambda: load_run_model(opened, device), direction, times, kind, out, progress)
    facts = {"run": opened.id, "direction": direction, "strength": times, "strength_in_sd": in_sd}
    both = f"Direction {direction} at {both_units(times, directions.deviations[direction - 1])}: "
    facts |= {"format": kind, "out": str(out), "sentence": f"{both}{agreement}."}
    limits = json.loads((out / "basiscope.json").read_text())["limits"]
    lines = [facts["sentence"], *([limits] if limits else []), str(out)]
    return {**facts, "limits": limits, "agreement": vars(agreement), "lines": lines}
