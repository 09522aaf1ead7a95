"""`runs`, `show`, `label`, `tokens`: what a workspace and its runs hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import click

from core.cli.group import Reporter, check_direction, cli, device_option, json_option, table, workspace_option
from core.errors import BasiscopeError
from core.jobs import delete_job, list_jobs
from core.workspace import KINDS, Run, Workspace


@cli.command()
@workspace_option
@json_option
def runs(workspace: Path, as_json: bool) -> dict[str, Any]:
    """List every run: id, model, data, n, d, k, status."""
    space = Workspace(workspace)
    damaged = space.damaged("run", "unfinished run")
    rows = [_run_row(run) for run in space.runs()]
    for run_id, request in space.partial_manifests().items():
        status = "running" if space.is_locked(run_id) else "interrupted"
        rows.append({"run": run_id, "status": status, "k": request.get("k", ""), **request.get("asked", {})})
    listed = {row["run"] for row in rows}
    rows += [
        {"run": one.name, "status": "damaged", "model": one.reason} for one in damaged if one.name not in listed
    ]
    keys = ("run", "status", "n", "d", "k", "model", "data")
    return {"runs": rows, "lines": table(rows, keys) if rows else [f"No runs in {workspace} yet."]}


@cli.command()
@click.argument("reference", metavar="RUN|EVALUATION|SELECTION|JOB")
@click.option("--yes", is_flag=True, help="Do not ask.")
@workspace_option
@json_option
def delete(reference: str, yes: bool, workspace: Path, as_json: bool) -> dict[str, Any]:
    """Delete a run, finished or not, with its activations, labels and named sets; a kept evaluation or selection;
    a job that has ended; or whatever else is damaged, by its name, or where several have it by its place."""
    space = Workspace(workspace)
    found = _deletable(space, reference)
    if len(found) > 1:
        names = [one.name for one in found]
        told = [one.name if names.count(one.name) == 1 else one.place for one in found]
        raise BasiscopeError(f"{reference!r} could be any of {', '.join(told)}.")
    if not found:
        run_id = space.any_run_id(reference)
        found = [_Deletable("run", run_id, "", partial(space.delete, run_id))]
    (chosen,) = found
    if not yes:
        click.confirm(f"Delete {chosen.kind} {chosen.name} and everything in it?", abort=True, err=True)
    chosen.remove()
    return {"deleted": chosen.name, "lines": [f"{chosen.kind.capitalize()} {chosen.name} is deleted."]}


@dataclass(frozen=True)
class _Deletable:
    """place: where it lies in the workspace, since what two runs have may be called the same."""

    kind: str
    name: str
    place: str
    remove: Callable[[], None]


def _deletable(space: Workspace, reference: str) -> list[_Deletable]:
    """What a reference may mean; what is named in full, or by its place, is meant alone."""
    kinds = (kind for kind in KINDS if kind not in ("run", "unfinished run"))
    known = [
        _Deletable(one.kind, one.name, str(one.path.relative_to(space.root)), partial(space.delete_damaged, one))
        for one in space.damaged(*kinds)
    ]
    intact: list[tuple[str, str, Callable[[], None]]] = [
        *(("run", run_id, partial(space.delete, run_id)) for run_id in space.run_ids()),
        *(("evaluation", one.id, partial(space.delete_evaluation, one.id)) for one in space.evaluations()),
        *(("selection", one.name, partial(space.delete_selection, one.name)) for one in space.selections()),
        *(("job", job.id, partial(delete_job, job)) for job in list_jobs(space)),
    ]
    known += [_Deletable(kind, name, f"{kind}s/{name}", remove) for kind, name, remove in intact]
    exact = [one for one in known if reference in (one.name, one.place)]
    return exact or [one for one in known if reference and one.name.startswith(reference)]


def _run_row(run: Run) -> dict[str, Any]:
    try:
        manifest = run.manifest
        row = {"run": run.id, "status": "finished"} | {
            key: manifest.get(key) for key in ("n", "d", "k", "created")
        }
        return row | {"model": manifest["model"]["name"], "data": manifest["data"]["path"]}
    except BasiscopeError as error:
        return {"run": run.id, "status": "unreadable", "model": str(error)}
    except (KeyError, TypeError) as error:
        return {"run": run.id, "status": "damaged", "model": f"{run.folder / 'manifest.json'} lacks {error}."}


@cli.command()
@click.argument("run")
@click.option("--direction", type=int, help="One direction in full.")
@click.option("--polarity", type=click.Choice(["+", "-"]), help="Only this end of the direction.")
@click.option("--top", type=click.IntRange(1), help="Examples at each end, with --direction.  [default: 5]")
@click.option(
    "--rank",
    type=click.Choice(["score", "cosine"]),
    help="By the centred score (default), or by the published uncentred cosine; with --direction.",
)
@workspace_option
@json_option
def show(
    run: str,
    direction: int | None,
    polarity: str | None,
    top: int | None,
    rank: str | None,
    workspace: Path,
    as_json: bool,
) -> dict[str, Any]:
    """Show a run: all its directions, or the examples at the ends of one."""
    opened = Workspace(workspace).run(run)
    if direction is None:
        if polarity or top or rank:
            raise click.UsageError("--polarity, --top and --rank need --direction.")
        return _show_run(opened)
    check_direction(opened, direction)
    return _show_direction(opened, direction, polarity or "+-", top or 5, rank or "score")


def _show_run(run: Run) -> dict[str, Any]:
    manifest, labels = run.manifest, run.labels()
    rows = json.loads(run.directions().to_json(orient="records"))
    for row in rows:
        row["label"] = labels[row["direction"]].text if row["direction"] in labels else ""
    shown = [
        {
            "direction": row["direction"],
            "variance": f"{row['explained_variance']:.1%}",
            "95% interval": f"{row['explained_variance_low']:.1%} to {row['explained_variance_high']:.1%}",
            "angle": f"{row['angle']:.0f} to {row['angle_95']:.0f} deg",
            "group": row["group"] + 1,
            "label": row["label"],
        }
        for row in rows
    ]
    lines = [
        f"run {run.id}, {manifest['created']}",
        f"model {manifest['model']['name']}, data {manifest['data']['path']}",
        f"{manifest['n']:,} examples, {manifest['d']:,} dimensions, blocks {manifest['recipe']['blocks']}, "
        f"pooling {manifest['recipe']['pooling']}, block scale {manifest['recipe']['block_scale']}",
        *(f"warning: {warning}" for warning in manifest["warnings"]),
        "",
        *table(shown, ("direction", "variance", "95% interval", "angle", "group", "label")),
        "",
        "angle: median and 95th percentile of the turn under resampling. Directions of one group are stable "
        "only as a span.",
        'label: what the + end has : what the - end has; "none" where no word passes the corrected limit.',
    ]
    return {"manifest": manifest, "directions": rows, "lines": lines}


def _show_direction(run: Run, direction: int, polarities: str, top: int, rank: str) -> dict[str, Any]:
    from core.reading import POLARITIES, rank_examples

    ranked = run.scores() if rank == "score" else run.cosines()
    values, ids = ranked[f"d{direction}"].to_numpy(), ranked["example_id"].to_numpy()
    label = run.labels().get(direction)
    lines = [f"direction {direction}: {label.text if label else 'no label'}"]
    ends: dict[str, list[dict[str, Any]]] = {}
    for polarity in polarities:
        positions = rank_examples(values, POLARITIES[polarity], top)
        records = run.records(ids[positions].tolist())
        ends[polarity] = [
            _as_json(record, rank) | {rank: float(values[position])}
            for record, position in zip(records, positions, strict=True)
        ]
        lines.append(f"\n{polarity} end")
        for row in ends[polarity]:
            text = "".join(c for c in " ".join(row["text"].split()) if c.isprintable())
            lines.append(f"  {row[rank]:+.4g}  example {row['example_id']}  {text[:160]}")
    return {"direction": direction, "label": label.as_dict() if label else None, "ends": ends, "lines": lines}


def _as_json(record: dict[str, Any], rank: str) -> dict[str, Any]:
    """A record's values, null for what is no number; a column named like the ranking as `data_<name>`."""
    return {
        f"data_{name}" if name == rank else name: None
        if isinstance(value, float) and not isfinite(value)
        else value
        for name, value in record.items()
    }


@cli.command()
@click.argument("run")
@click.option("--direction", type=int, help="Only this direction.")
@click.option("--set", "text", help='Your own label, such as "explains : computes".')
@click.option("--words", is_flag=True, help="Make the label from the texts anew.")
@click.option("--llm", is_flag=True, help="Ask the language model at BASISCOPE_LLM_URL.")
@workspace_option
@json_option
def label(
    run: str, direction: int | None, text: str | None, words: bool, llm: bool, workspace: Path, as_json: bool
) -> dict[str, Any]:
    """Show or set the labels of a run's directions.

    Without --direction, --words and --llm leave the labels alone that a person has set.

    --llm sends the ten most extreme examples of each end to an OpenAI-compatible server: BASISCOPE_LLM_URL
    (such as http://localhost:8000/v1), BASISCOPE_LLM_MODEL, and BASISCOPE_LLM_KEY where it needs one.
    """
    from core.reading import Label
    from core.recovery import label_by_endpoint, label_run

    if sum([text is not None, words, llm]) > 1:
        raise click.UsageError("Give one of --set, --words and --llm.")
    if text is not None and (direction is None or not text.strip()):
        raise click.UsageError("--set needs --direction and a text that is not empty.")
    opened = Workspace(workspace).run(run)
    if direction is not None:
        check_direction(opened, direction)
    directions = [direction] if direction else list(range(1, opened.k + 1))
    by_hand = {j for j, found in opened.intact_labels().items() if found.source == "person" and direction is None}
    others = [j for j in directions if j not in by_hand]
    with Reporter(as_json) as progress:
        if text is not None:
            opened.save_label(directions[0], Label(text.strip(), "person"))
        elif words:
            label_run(opened, others, progress, over_person=direction is not None)
        elif llm:
            label_by_endpoint(opened, others, progress, over_person=direction is not None)
    labels = {j: found for j, found in opened.labels().items() if j in directions}
    lines = [f"{j}  {found.text}  ({found.source})" for j, found in labels.items()]
    return {"labels": {str(j): found.as_dict() for j, found in labels.items()}, "lines": lines}


@cli.command()
@click.argument("run")
@click.option("--example", "examples", type=int, multiple=True, help="An example's id; may be repeated.")
@device_option
@workspace_option
@json_option
def tokens(run: str, examples: tuple[int, ...], device: str, workspace: Path, as_json: bool) -> dict[str, Any]:
    """Score every token of some examples on all directions, and keep the scores with the run.

    Without --example: the examples at both ends of every direction.
    """
    from core.recovery import extreme_examples, load_run_model, shade_examples

    opened = Workspace(workspace).run(run)
    chosen = list(examples) or extreme_examples(opened)
    missing = [example for example in chosen if opened.lacks_token_scores(example)]
    with Reporter(as_json) as progress:
        if missing:
            shade_examples(opened, load_run_model(opened, device), missing, progress)
    return {"examples": chosen, "lines": [f"{len(chosen)} examples have token scores."]}
