import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import jobs
from core.errors import BasiscopeError
from core.jobs import Job, JobReporter, Meter, find_job, list_jobs, recoveries_elsewhere, start_job
from core.workspace import DEFAULT_ROOT, Workspace, write_json

ROOT = Path(__file__).resolve().parent.parent


def wait(job, state=None, seconds=90):
    """Until the job has ended or reached `state`."""
    deadline = time.monotonic() + seconds
    while job.state == "running" and not (state and state(job)):
        assert time.monotonic() < deadline, job.log()
        time.sleep(0.02)
    return job.state


def read_by_another_process(job):
    """State and message as a process sees them that did not start the job."""
    code = (
        "import sys, json; from pathlib import Path; from core.jobs import Job; job = Job(Path(sys.argv[1])); "
        "print(json.dumps([job.state, job.result, job.progress.step]))"
    )
    command = [sys.executable, "-c", code, str(job.folder)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def long_recovery(stories, gsm8k):
    options = ["--model", stories, "--data", gsm8k, "--text", "question", "--no-map", "--device", "cpu"]
    return ["recover", *options, "--token-budget", "300"]


def test_a_job_that_finishes(tmp_path):
    workspace = Workspace(tmp_path / "a workspace")
    job = start_job(workspace, ["runs", "--json"])
    assert wait(job) == "done"
    assert json.loads(job.log()) == {"runs": []} and job.result == {"runs": [], "state": "done"}
    assert job.command == f"basiscope runs --json --workspace '{workspace.root}'" and job.step == "runs"
    assert list_jobs(workspace) == [job] and find_job(workspace, job.id).facts["pid"] == job.facts["pid"]
    assert read_by_another_process(job) == ["done", {"runs": [], "state": "done"}, "starting"]


def test_a_relative_path_means_what_it_means_where_the_job_was_started(tmp_path, monkeypatch, stories):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("rows.jsonl").write_text('{"text": "Once upon a time"}\n{"text": "there was a cat"}\n')
    Path("core").mkdir()  # a folder of that name there does not stand in for the program
    (Path("core") / "__init__.py").write_text("raise SystemExit('the wrong core')")
    asked = ["recover", "--model", stories, "--data", "rows.jsonl", "--text", "text", "--k", "1", "--estimate"]
    job = start_job(Workspace(tmp_path / "w"), asked)
    assert wait(job) == "done", job.log()


def test_the_default_workspace_needs_no_option(monkeypatch):
    monkeypatch.setattr(Job, "facts", {"arguments": ["runs", "--text", "a b"]})
    assert Job(DEFAULT_ROOT / "jobs" / "x").command == "basiscope runs --text 'a b'"


def test_a_job_that_fails_says_why_in_one_sentence(tmp_path):
    job = start_job(Workspace(tmp_path), ["show", "nope"])
    assert wait(job) == "failed"
    assert job.result["message"] == f"Run 'nope' is not in {tmp_path}. Runs there: none yet."
    assert job.result["message"] in job.log() and "Traceback" not in job.log()
    wrong = start_job(Workspace(tmp_path), ["show", "nope", "--rank", "x"])
    assert wait(wrong) == "failed" and "--rank" in wrong.result["message"]
    with pytest.raises(BasiscopeError, match="There is no job nothing"):
        find_job(Workspace(tmp_path), "nothing")


def test_a_job_is_watched_cancelled_and_killed_and_goes_on(stories, gsm8k, tmp_path):
    workspace = Workspace(tmp_path)
    job = start_job(workspace, long_recovery(stories, gsm8k))
    assert job.state == "running" and job.result == {}
    wait(job, lambda job: job.progress.step == "activations" and job.progress.seconds_left)
    progress = job.progress
    assert 0 < progress.done < progress.total and progress.rate > 0 and 0 < progress.share < 1
    # the time left is what the rate says
    assert progress.seconds_left == pytest.approx((progress.total - progress.done) / progress.rate)
    assert read_by_another_process(job)[0] == "running"
    job.cancel()
    assert wait(job) == "cancelled" and job.result["message"] == jobs.STOPPED
    job.cancel()  # of a job that has ended: nothing
    done = job.progress.done

    again = start_job(workspace, job.facts["arguments"])
    wait(again, lambda job: job.progress.step == "activations" and job.progress.done > 0)
    assert again.progress.done >= done  # what was finished is kept
    os.killpg(again.facts["pid"], signal.SIGKILL)
    assert wait(again) == "killed" and "it continues where it was" in again.result["message"]
    assert read_by_another_process(again)[:2] == ["killed", again.result]
    assert {found.id for found in list_jobs(workspace)} == {job.id, again.id}
    assert [run["status"] for run in runs_of(workspace)] == ["interrupted"]


def runs_of(workspace):
    command = [sys.executable, "-m", "core.cli", "runs", "--json", "--workspace", str(workspace.root)]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)["runs"]
    assert all(run["model"].endswith("stories260K") and run["data"].endswith("train.jsonl") for run in found)
    return found


def test_a_job_stopped_before_it_listens_is_cancelled(tmp_path):
    job = start_job(Workspace(tmp_path), ["runs"])
    job.cancel()  # python is still starting: the signal ends it outright, or it has ended by itself
    assert wait(job) in ("cancelled", "done")
    if not (job.folder / "result.json").exists():
        assert job.result == {"message": jobs.STOPPED}


def test_a_process_id_taken_by_another_process_is_no_running_job(tmp_path):
    job = Job(tmp_path / "job")
    write_json(job.folder / "job.json", {"arguments": ["runs"], "pid": os.getpid(), "pid_created": 1.0})
    assert job.state == "killed" and job.log() == "" and job.progress.step == "starting"
    job.cancel()  # must not signal this very process


def test_progress_is_written_at_every_step_and_not_at_every_call(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(jobs, "write_json", lambda path, value, **_: written.append((path.name, dict(value))))
    reporter = JobReporter(tmp_path)
    for done in range(1_000):
        reporter.progress("read", done, 1_000)
    reporter.progress("basis", 0, 10)
    assert len(written) < 100 and written[0][1]["step"] == "read" and written[-1][1]["step"] == "basis"


def test_the_meter_counts_from_where_the_step_began(monkeypatch):
    clock = iter([0.0, 0.0, 10.0, 10.0, 20.0])
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    meter = Meter()
    assert meter.update("activations", 500, 1_000).seconds_left is None  # resumed half-way
    progress = meter.update("activations", 600, 1_000)
    assert (progress.rate, progress.seconds_left, progress.share) == (10.0, 40.0, 0.6)
    assert meter.update("basis", 0, 0).share == 0.0


def test_a_result_that_cannot_be_written_is_no_second_error(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "write_json", full)
    JobReporter(tmp_path).finish("failed", {"message": "The disk is full"})


def full(*_args):
    raise OSError(28, "No space left on device")


def test_a_job_is_cancelled_where_the_disk_takes_no_more(stories, gsm8k, tmp_path, monkeypatch):
    job = start_job(Workspace(tmp_path), long_recovery(stories, gsm8k))
    monkeypatch.setattr(jobs, "write_json", full)
    job.cancel()
    assert wait(job) in ("cancelled", "killed")


def test_a_job_that_cannot_be_noted_down_does_not_run(tmp_path, monkeypatch):
    started, real = [], subprocess.Popen
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *a, **o: started.append(real(*a, **o)) or started[0])
    monkeypatch.setattr(jobs, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        start_job(Workspace(tmp_path), ["runs"])
    assert started[0].wait(timeout=30) == -signal.SIGKILL and list_jobs(Workspace(tmp_path)) == []


def test_a_recovery_from_a_terminal_is_seen_while_it_runs(stories, gsm8k, tmp_path):
    workspace = Workspace(tmp_path)
    command = [sys.executable, "-m", "core.cli", *long_recovery(stories, gsm8k), "--workspace", str(tmp_path)]
    terminal = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 180

        def runs_the_model(seen):
            return bool(seen) and seen[0].progress.step == "activations" and seen[0].progress.total > 0

        while not runs_the_model(seen := recoveries_elsewhere(workspace)):
            assert terminal.poll() is None and time.monotonic() < deadline, seen
            time.sleep(0.05)
        (recovery,) = seen
        assert (recovery.model, recovery.data) == (stories, gsm8k)
        assert list(workspace.partial_manifests()) == [recovery.run] and list_jobs(workspace) == []
    finally:
        terminal.send_signal(signal.SIGTERM)
        terminal.wait(60)
    assert recoveries_elsewhere(workspace) == []


def test_a_job_is_listed_and_stopped_from_a_terminal(run_cli, stories, gsm8k, tmp_path):
    workspace = Workspace(tmp_path)
    job = start_job(workspace, long_recovery(stories, gsm8k))
    wait(job, lambda job: job.progress.step == "activations")
    assert recoveries_elsewhere(workspace) == []  # it is a job's
    status, out, _ = run_cli("jobs", "--workspace", tmp_path)
    assert status == 0 and job.id in out and "running" in out and "Running the model over the examples" in out
    status, out, _ = run_cli("jobs", "--cancel", job.id[:-2], "--json", "--workspace", tmp_path)
    assert status == 0 and json.loads(out) == {"stopped": [job.id]}
    assert wait(job) == "cancelled"
    status, out, err = run_cli("jobs", "--cancel", job.id, "--workspace", tmp_path)
    assert status == 1 and f"Job {job.id} does not run any more." in err
    assert run_cli("jobs", "--cancel", "nope", "--workspace", tmp_path)[0] == 1
    (row,) = json.loads(run_cli("jobs", "--json", "--workspace", tmp_path)[1])["jobs"]
    assert row["state"] == "cancelled"


def test_the_app_says_what_goes_on_without_it(tmp_path):
    command = [sys.executable, "-m", "core.cli", "app", "--headless", "--port", str(free_port())]
    app = subprocess.Popen(
        [*command, "--workspace", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where tests run in the background
    )
    try:
        assert app.stdout is not None
        while "URL" not in (line := app.stdout.readline()):
            assert line or app.poll() is None
        (job,) = list_jobs(Workspace(tmp_path))
        app.send_signal(signal.SIGINT)
        _, errors = app.communicate(timeout=60)
        assert f"Still running in the background: {job.command}" in errors
        assert f"To stop it: basiscope jobs --cancel {job.id} --workspace {tmp_path}" in errors
    finally:
        app.kill()
        for job in list_jobs(Workspace(tmp_path)):
            job.cancel()
    assert wait(job) == "cancelled"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
