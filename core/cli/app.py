"""`demo`, `doctor`, `app`, `jobs`: the embedded demo, the machine, the web app and what runs behind it."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from core.cli.group import Reporter, cli, json_option, table, workspace_option
from core.errors import BasiscopeError
from core.jobs import Job, cancel_command, list_jobs, recoveries_elsewhere, start_job
from core.workspace import Workspace


@cli.command()
@workspace_option
@json_option
def demo(workspace: Path, as_json: bool) -> dict[str, Any]:
    """Recover the embedded demo: a small model, trained on generated word problems. Needs no network.

    What is there already stays; what is missing is made again. The model's activations come with Basiscope.
    """
    from core.demo.default import recover_demo
    from core.selection.farthest import compile_ahead

    with Reporter(as_json) as progress:
        run = recover_demo(Workspace(workspace), progress)
        compile_ahead(progress)
    return {"run": run.id, "lines": [run.id]}


@cli.command()
@workspace_option
@json_option
def doctor(workspace: Path, as_json: bool) -> dict[str, Any]:
    """Versions, device, memory, and what is missing."""
    from core.doctor import examine

    facts = examine(Workspace(workspace))
    return facts | {"lines": [f"{name}: {value}" for name, value in facts.items()]}


def _check_port(port: int) -> None:
    """Raises BasiscopeError where another program listens there."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            raise BasiscopeError(
                f"Port {port} cannot be used ({error.strerror}); perhaps the app is already open at "
                f"http://localhost:{port}. Another: --port {port + 1}."
            ) from error


@cli.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=8501, show_default=True, help="Port on localhost.")
@click.option("--headless", is_flag=True, help="Do not open a browser.")
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print the address and the workspace as JSON first.")
def app(port: int, headless: bool, workspace: Path, as_json: bool) -> None:
    """Open the web app on this workspace, on localhost only.

    An empty workspace begins with the embedded demo, recovered in the background.
    """
    root = Path(__file__).resolve().parents[2]
    space = Workspace(workspace)
    _check_port(port)
    jobs = list_jobs(space)
    demos = [job.state for job in jobs if job.step == "demo"]
    wanted = not space.runs() or "killed" in demos[:1]
    if wanted and "cancelled" not in demos and not any(job.state == "running" for job in jobs):
        start_job(space, ["demo"])
        click.echo(
            "The embedded demo is recovered in the background; it goes on when the app is closed. "
            "`basiscope jobs` lists and stops what runs.",
            err=True,
        )
    if as_json:
        place = {"url": f"http://localhost:{port}", "workspace": str(workspace.resolve())}
        click.echo(json.dumps(place))
    os.environ["BASISCOPE_WORKSPACE"] = str(workspace.resolve())
    os.environ["BASISCOPE_STARTED_IN"] = str(Path.cwd())
    flags = ["--server.port", str(port), "--server.headless", "true" if headless else "false"]
    os.chdir(root)
    sys.path[0] = str(root)
    sys.argv = ["streamlit", "run", "serve.py", *flags]
    try:
        runpy.run_module("streamlit", run_name="__main__")  # here: another process would import it all again
    finally:
        _say_what_goes_on(space)


def _say_what_goes_on(space: Workspace) -> None:
    """Name the jobs that outlive the app, and how to stop them."""
    for job in list_jobs(space):
        if job.state == "running":
            click.echo(
                f"Still running in the background: {job.command}\n  To stop it: {cancel_command(space, job)}",
                err=True,
            )


@cli.command()
@click.option("--cancel", "ids", multiple=True, metavar="JOB", help="Stop a job that runs; may be repeated.")
@workspace_option
@json_option
def jobs(ids: tuple[str, ...], workspace: Path, as_json: bool) -> dict[str, Any]:
    """List the jobs of a workspace, the newest first, and recoveries that were started otherwise; or stop some.

    JOB is a job's id or a unique beginning of it. What a stopped job has finished is kept.
    """
    from core.tables import progress_sentence

    space = Workspace(workspace)
    known = list_jobs(space)
    if ids:
        chosen = [_job_of(known, one, space) for one in ids]
        ended = [job.id for job in chosen if job.state != "running"]
        if ended:
            raise BasiscopeError(f"Job {ended[0]} does not run any more.")
        for job in chosen:
            job.cancel()
        stopped = [job.id for job in chosen]
        return {"stopped": stopped, "lines": [f"Job {one} is asked to stop." for one in stopped]}
    rows = [
        {"job": "none", "state": "running", "command": f"recover, started elsewhere: {one.model} on {one.data}"}
        | {"progress": progress_sentence(one.progress), "run": one.run}
        for one in recoveries_elsewhere(space)
    ]
    rows += [
        {"job": job.id, "state": job.state, "command": job.command}
        | ({"progress": progress_sentence(job.progress)} if job.state == "running" else {})
        for job in known
    ]
    rows += [
        {"job": one.name, "state": "damaged", "command": f"{one.reason} `basiscope delete {one.name}` removes it."}
        for one in space.damaged("job")
    ]
    keys = ("job", "state", "progress", "command")
    return {"jobs": rows, "lines": table(rows, keys) if rows else [f"No jobs in {workspace} yet."]}


def _job_of(known: list[Job], reference: str, space: Workspace) -> Job:
    found = [job for job in known if job.id.startswith(reference)]
    if len(found) != 1:
        listed = ", ".join(job.id for job in found or known[:5]) or "none yet"
        raise BasiscopeError(f"Job {reference!r} is no single one in {space.root}. Jobs there: {listed}.")
    return found[0]
