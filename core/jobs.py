"""A job is a command of the CLI in a process of its own: it outlives the page that started it.

jobs/<job>/job.json       the command, when it started, its process
jobs/<job>/progress.json  step, done, total, rate and seconds left, written by the command
jobs/<job>/cancel.json    that it was asked to stop
jobs/<job>/result.json    how it ended; without it and without the process, the job was killed
jobs/<job>/log.txt        everything it printed
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from core.errors import BasiscopeError
from core.limits import Limits
from core.store import UNREADABLE, read_json, read_object, remove_folder, write_json
from core.workspace import DEFAULT_ROOT, PROGRESS, Workspace, now, read_job

JOB_VARIABLE = "BASISCOPE_JOB"
WRITE_SECONDS = 0.3
_starting = Lock()
STOPPED = "Stopped. What was finished is kept; the same command continues."


def command_line(arguments: list[str]) -> str:
    """The command a person would type."""
    return shlex.join(["basiscope", *arguments])


def _workspace_option(root: Path) -> list[str]:
    return [] if root.resolve() == DEFAULT_ROOT else ["--workspace", str(root)]


@dataclass(frozen=True)
class JobProgress:
    """Where a job stands: `done` of `total` in `step` (total 0: not known), with rate and time left."""

    step: str = "starting"
    done: int = 0
    total: int = 0
    rate: float = 0.0
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Job:
    """A job's folder. Its state is read from there and from the process table, never remembered."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        return read_job(self.folder)

    @property
    def command(self) -> str:
        """The command a person would type."""
        return command_line([*self.facts["arguments"], *_workspace_option(self.folder.parent.parent)])

    @property
    def step(self) -> str:
        return str(self.facts["arguments"][0])

    @property
    def state(self) -> str:
        """`running`, `done`, `failed`, `cancelled` or `killed`."""
        if "state" in (ended := self._ended()):
            return str(ended["state"])
        if _is_alive(self.facts["pid"], self.facts["pid_created"]):
            return "running"
        if "state" in (ended := self._ended()):  # written between the two looks
            return str(ended["state"])
        return "cancelled" if (self.folder / "cancel.json").exists() else "killed"

    @property
    def result(self) -> dict[str, Any]:
        """What the command returned, or `{"message": ...}` with one sentence on why it did not; empty while
        it runs."""
        if ended := self._ended():
            return ended
        messages = {
            "cancelled": STOPPED,
            "killed": "The process was ended from outside. Start it again: it continues where it was.",
        }
        return {"message": messages[self.state]} if self.state in messages else {}

    def _ended(self) -> dict[str, Any]:
        """What the command has written at its end; empty before it."""
        path = self.folder / "result.json"
        if not path.exists():
            return {}
        try:
            return read_object(path)
        except BasiscopeError as error:
            return {"state": "failed", "message": str(error)}

    @property
    def progress(self) -> JobProgress:
        return _progress(self.folder)

    def log(self, last: int = 20_000) -> str:
        """The end of what the command printed."""
        path = self.folder / "log.txt"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - last))
            return file.read().decode("utf-8", errors="replace")

    def cancel(self) -> None:
        """Ask the process to stop; it keeps what is finished."""
        Limits.now().check_writing()
        if self.state == "running":
            with suppress(ProcessLookupError):
                os.killpg(self.facts["pid"], signal.SIGTERM)
            with suppress(OSError):  # of a disk that takes no more: it is stopped all the same
                write_json(self.folder / "cancel.json", {"created": now()})


def start_job(workspace: Workspace, arguments: list[str]) -> Job:
    """Run `basiscope ARGUMENTS` in a process of its own, here and on this workspace. Raises BasiscopeError where
    the app's limits do not allow it."""
    with _starting:
        _check_limits(workspace, arguments)
        return _start(workspace, arguments)


def _check_limits(workspace: Workspace, arguments: list[str]) -> None:
    limits = Limits.now()
    limits.check_writing()
    limits.check_arguments(arguments)
    if limits.jobs is None:
        return
    running = sum(job.state == "running" for job in list_jobs(workspace))
    if running >= limits.jobs:
        raise BasiscopeError(
            f"{running} jobs are running, and at most {limits.jobs} may at once here (--max-jobs): wait for one, "
            "or cancel it."
        )


def _start(workspace: Workspace, arguments: list[str]) -> Job:
    import psutil

    job = Job(workspace.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}")
    job.folder.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "core.cli", *arguments, "--workspace", str(workspace.root.resolve())]
    root = Path(__file__).resolve().parent.parent
    with (job.folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {JOB_VARIABLE: str(job.folder.resolve()), "PYTHONPATH": str(root)},
            start_new_session=True,
        )
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    facts = {"arguments": arguments, "created": now(), "pid": process.pid, "pid_created": created}
    try:
        write_json(job.folder / "job.json", facts)
    except OSError:
        process.kill()  # nobody could find it
        raise
    return job


def list_jobs(workspace: Workspace) -> list[Job]:
    """All jobs, newest first, without those that are damaged: `Workspace.damaged` names them."""
    jobs = []
    for path in sorted(workspace.root.glob("jobs/*/job.json"), reverse=True):
        with suppress(BasiscopeError):
            jobs += [job] if (job := Job(path.parent)).facts else []
    return jobs


def last_tries(workspace: Workspace) -> list[Job]:
    """The newest job of every command, newest first: a job that was resumed or tried again stands for those before
    it."""
    newest: dict[tuple[str, ...], Job] = {}
    for job in list_jobs(workspace):
        newest.setdefault(tuple(job.facts["arguments"]), job)
    return list(newest.values())


@dataclass(frozen=True)
class Recovery:
    """A recovery under way that is no job: a person or a script started it."""

    run: str
    model: str
    data: str
    progress: JobProgress


def recoveries_elsewhere(workspace: Workspace) -> list[Recovery]:
    """Recoveries under way in this workspace that were not started as jobs."""
    in_jobs = {job.facts["pid"] for job in list_jobs(workspace) if job.state == "running"}
    found = []
    for run, request in workspace.partial_manifests().items():
        if request.get("pid") not in in_jobs and workspace.is_locked(run):
            asked = request.get("asked", {})
            progress = _progress(workspace.root / "partial" / run)
            found.append(Recovery(run, asked.get("model", ""), asked.get("data", ""), progress))
    return found


def delete_job(job: Job) -> None:
    """Raises BasiscopeError while it runs."""
    if job.state == "running":
        raise BasiscopeError(f"Job {job.id} is running; stop it first.")
    remove_folder(job.folder)


def cancel_command(workspace: Workspace, job: Job) -> str:
    """The command that stops a job."""
    return command_line(["jobs", "--cancel", job.id, *_workspace_option(workspace.root)])


def _progress(folder: Path) -> JobProgress:
    with suppress(BasiscopeError, *UNREADABLE):  # none yet, or finished meanwhile
        return JobProgress(**read_json(folder / PROGRESS))
    return JobProgress()


def find_job(workspace: Workspace, job_id: str) -> Job:
    """Raises BasiscopeError where there is none."""
    job = Job(workspace.root / "jobs" / Path(job_id).name)
    if not (job.folder / "job.json").exists():
        raise BasiscopeError(f"There is no job {job_id} in {workspace.root}.")
    return job


def _is_alive(pid: int, created: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class JobReporter:
    """Writes progress and result into the job's folder, for the process that runs the job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._meter = Meter()
        self._written = 0.0

    def progress(self, step: str, done: int, total: int) -> None:
        progress = self._meter.update(step, done, total)
        if time.monotonic() - self._written >= WRITE_SECONDS or done == 0:
            write_json(self.folder / PROGRESS, vars(progress), sync=False)
            self._written = time.monotonic()

    def finish(self, state: str, result: dict[str, Any]) -> None:
        with suppress(OSError):  # on a full disk the log and the dead process have to do
            write_json(self.folder / "result.json", result | {"state": state})


class Meter:
    """Rate and time left of the current step, counted from where the step began in this process."""

    def __init__(self) -> None:
        self._step = ""
        self._start, self._first = 0.0, 0

    def update(self, step: str, done: int, total: int) -> JobProgress:
        if step != self._step:
            self._step, self._start, self._first = step, time.monotonic(), done
        seconds = time.monotonic() - self._start
        rate = (done - self._first) / seconds if seconds > 0.5 else 0.0
        left = (total - done) / rate if rate > 0 and total else None
        return JobProgress(step, done, total, rate, left)
