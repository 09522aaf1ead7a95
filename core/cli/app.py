"""`demo`, `doctor`, `app`, `jobs`: the embedded demo, the machine, the web app and what runs behind it."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import click

from core.access import Access
from core.cli.group import Reporter, cli, json_option, table, workspace_option
from core.errors import BasiscopeError
from core.jobs import Job, cancel_command, list_jobs, recoveries_elsewhere, start_job
from core.limits import Limits
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
                f"Port {port} cannot be used ({error.strerror}); perhaps the app is open there on another "
                f"workspace: give that --workspace for its address. Another port: --port {port + 1}."
            ) from error


def _check_not_open(port: int, notes: Path) -> None:
    """Raises BasiscopeError where another program listens there; where it is this app, with its address."""
    from core.access import open_address

    try:
        _check_port(port)
    except BasiscopeError:
        if link := open_address(notes, port):
            said = f"The app is already open on this workspace, at {link}"
            raise BasiscopeError(f"{said}\nAnother one: --port {port + 1}.") from None
        raise


SHARE_HELP = "For people you trust, in a network or behind a proxy: paths, uploads and jobs are limited."
NO_TOKEN = (
    "Without a token everybody who can reach port {port}, such as each user of this machine, can read files and "
    "start jobs as you, {how}."
)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=8501, show_default=True, help="Port to listen on.")
@click.option("--headless", is_flag=True, help="Do not open a browser.")
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print the address and the workspace as JSON first.")
@click.option("--no-token", is_flag=True, help="Let in everybody who can reach the port.")
@click.option("--share", is_flag=True, help=SHARE_HELP)
@click.option("--host", default="127.0.0.1", show_default=True, help="With --share: the address to listen on.")
@click.option("--address", default="", metavar="URL", help="With --share: how people reach it through a proxy.")
@click.option(
    "--roots",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder that pages may read; may be repeated. With --share only the workspace by default, else all.",
)
@click.option("--read-only", is_flag=True, help="For looking: no job, no label, no deleting, nothing is written.")
@click.option("--login", "users", metavar="WHO", help="With --share: e-mails that may log in, such as *@lab.org.")
@click.option("--max-jobs", type=click.IntRange(0), help="Jobs at once.  [default: 2 with --share]")
@click.option("--max-upload", type=click.IntRange(1), help="MB of a file.  [default: 500; 100 with --share]")
@click.option("--max-uploads", type=click.IntRange(1), help="MB of all uploads.  [default: 1000 with --share]")
def app(port: int, headless: bool, workspace: Path, as_json: bool, **choices: Any) -> None:
    """Open the web app on this workspace, on localhost only.

    An empty workspace begins with the embedded demo, recovered in the background. The address that is printed ends
    in a token, without which nobody comes in; the same command again prints it again. SECURITY.md says what holds.
    """
    from core.access import kept_address, set_access

    root = Path(__file__).resolve().parents[2]
    space = Workspace(workspace)
    rules, limits = _rules(port, **choices), _limits(workspace, **choices)
    notes = _notes_folder(workspace, limits.read_only)
    _check_not_open(port, notes)
    set_access(rules)
    limits.to_environment()
    if not limits.read_only and limits.jobs != 0:
        _start_demo(space)
    if as_json:
        click.echo(json.dumps({"url": rules.link(port), "workspace": str(workspace.resolve())}))
    os.environ["BASISCOPE_WORKSPACE"] = str(workspace.resolve())
    os.environ["BASISCOPE_STARTED_IN"] = str(Path.cwd())
    sys.argv = ["streamlit", "run", "serve.py", *_server_flags(port, rules, limits, **choices)]
    try:
        with kept_address(notes.resolve(), port, rules.link(port)) as page:
            if not headless:
                os.environ["BASISCOPE_OPEN_WITH"] = str(page)
            os.chdir(root)
            sys.path[0] = str(root)
            runpy.run_module("streamlit", run_name="__main__")  # here: another process would import it all again
    finally:
        _say_what_goes_on(space)


def _notes_folder(workspace: Path, read_only: bool) -> Path:
    """Where the app's address is kept while it runs."""
    import tempfile

    if not read_only:
        return workspace / "app"
    own = Path(tempfile.gettempdir()) / f"basiscope-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    return own if own.lstat().st_uid == os.getuid() else Path(tempfile.mkdtemp())  # or another user's symlink


def _rules(
    port: int, *, no_token: bool, share: bool, host: str, address: str, users: str | None, **_limits: Any
) -> Access:
    """Who may come in; says what it risks to ask for no token. Raises click.UsageError where the choices
    contradict each other."""
    from core.access import LOCAL, Access, new_token, shared

    wide = [name for name, value in (("--address", address), ("--login", users)) if value]
    wide += ["--host"] if host not in LOCAL else []
    if wide and not share:
        raise click.UsageError(f"{wide[0]} lets others in: say --share, too.")
    if address and not address.startswith(("http://", "https://")):
        raise click.UsageError("--address is a whole address, such as https://lab.org/basiscope.")
    if no_token:
        how = "within the limits of --share" if share else "from any program"
        click.echo(NO_TOKEN.format(port=port, how=how), err=True)
    who = tuple(user.strip() for user in (users or "").split(",") if user.strip())
    if who:
        _check_login()
    rules = Access("" if no_token or who else new_token(), address=address, users=who)
    return shared(rules, host) if share else rules


def _check_login() -> None:
    """Raises BasiscopeError where a login cannot work."""
    from importlib.util import find_spec

    if find_spec("authlib") is None:
        raise BasiscopeError('--login needs Authlib: pip install "streamlit[auth]".')
    places = [folder / ".streamlit" / "secrets.toml" for folder in (Path.home(), Path(__file__).parents[2])]
    if not any(path.is_file() and "[auth" in path.read_text(encoding="utf-8") for path in places):
        raise BasiscopeError(f"--login needs a section [auth] in {places[1]} or {places[0]}; see SECURITY.md.")


def _limits(
    workspace: Path,
    *,
    share: bool,
    roots: tuple[str, ...],
    read_only: bool,
    max_jobs: int | None,
    max_uploads: int | None,
    **_rules: Any,
) -> Limits:
    """What the app may do. The workspace and the demo model always lie within the roots."""
    from core.demo.default import MODEL

    own = (str(workspace.resolve()), str(MODEL.resolve()))
    within = tuple(str(Path(root).resolve()) for root in roots)
    jobs = 2 if share and max_jobs is None else max_jobs
    megabytes = 1_000 if share and max_uploads is None else max_uploads
    return Limits(
        roots=(*within, *own) if share or roots else (),
        read_only=read_only,
        jobs=jobs,
        uploads=megabytes * 10**6 if megabytes else None,
    )


def _server_flags(
    port: int, rules: Access, limits: Limits, *, share: bool, host: str, max_upload: int | None, **_choices: Any
) -> list[str]:
    """The options of Streamlit's server. The door in serve.py checks the names by which the app is reached, of
    which Streamlit cannot be told some, such as any IP address."""
    size = max_upload or (100 if share else 500)
    flags = ["--server.port", str(port), "--server.address", host, "--server.maxUploadSize", str(size)]
    flags += [
        "--server.headless",
        "true",
        "--server.allowedHosts",
        "*",
    ]  # it would open a browser without the token
    flags += ["--server.baseUrlPath", rules.base] if rules.base else []
    return flags + (["--server.corsAllowedOrigins", rules.origin] if rules.origin else [])


def _start_demo(space: Workspace) -> None:
    """Recover the embedded demo in an empty workspace, unless it was cancelled there."""
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
