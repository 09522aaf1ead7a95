"""The app killed at random moments, and started on a damaged workspace: it opens again, and nothing is lost."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from processes import ROOT
from steps import WHOLE, content

SECONDS = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workspace, port):
    command = [sys.executable, "-m", "core.cli", "app", "--headless", "--port", str(port)]
    return subprocess.Popen(
        [*command, "--workspace", str(workspace)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answers(app, port):
    """Until the app answers; raises where it ends before."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert app.poll() is None, app.stderr.read()
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return True  # it is there, and wants to know who asks
        except OSError:
            time.sleep(0.2)
    return False


@pytest.mark.skipif(not WHOLE, reason="starting the app takes seconds; BASISCOPE_FAULTS=all")
def test_the_app_is_killed_and_opens_again_on_a_damaged_workspace(world):
    place = world.copy("app")
    (place / "workspace" / "jobs" / "20260101-000000-aaaaaa").mkdir(parents=True)
    (place / "workspace" / "jobs" / "20260101-000000-aaaaaa" / "job.json").write_text("{")
    (place / "workspace" / "runs" / "0123456789ab").mkdir()
    (place / "workspace" / "runs" / "0123456789ab" / "manifest.json").write_text("[")
    before, port = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}, free_port()
    for moment in (random.Random(i).uniform(0.5, 12) for i in range(3)):
        app = start(place / "workspace", port)
        time.sleep(moment)
        os.killpg(app.pid, signal.SIGKILL)
        app.wait()
    app = start(place / "workspace", port)
    try:
        assert answers(app, port)
    finally:
        os.killpg(app.pid, signal.SIGKILL)
        app.wait()
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert content(world.base)
