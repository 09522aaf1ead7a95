"""A child process for questions that might never be answered: it ends after a limit of processor time.

math-verify's own limit is a signal, which works in the main thread only and not within one long multiplication,
and counts the time that passes: a machine busy with something else would decide what is right.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from core.errors import BasiscopeError

SECONDS = 5.0
"""Of processor time for one question."""
WALL_SECONDS = 300.0
"""For one that waits and uses none. As long as it may take to start."""
PROGRAM = Path(__file__).with_name("equivalence.py")


class Child:
    """One process, started when it is first asked. May be asked by several threads, one after the other."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: str, *arguments: str) -> Any:
        """The answer of one of `equivalence.QUESTIONS`, None where it has none or takes longer than the limit."""
        with self._lock:
            process = self._process = self._process or self._start()
            asked = json.dumps({"question": question, "arguments": arguments, "seconds": self.seconds}) + "\n"
            line = _line_within(process, WALL_SECONDS, asked)
            if not line:
                self._end()
            return json.loads(line) if line else None

    def close(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,
        )
        if not _line_within(process, WALL_SECONDS):
            _kill(process)
            raise BasiscopeError(
                "The process that compares formulas did not start; install the packages again "
                '(`pip install "math-verify[antlr4_13_2]"`).'
            )
        return process

    def _end(self) -> None:
        if self._process:
            _kill(self._process)
            self._process.communicate()
            self._process = None


def _kill(process: subprocess.Popen[str]) -> None:
    """With the fork of it that answers."""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _line_within(process: subprocess.Popen[str], seconds: float, asked: str = "") -> str:
    """The process' next line; after so many seconds it is killed, and the line is empty."""
    assert process.stdin and process.stdout
    timer = Timer(seconds, _kill, [process])
    timer.start()
    try:
        process.stdin.write(asked)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # it has ended
        return ""
    finally:
        timer.cancel()


CHILD = Child()
atexit.register(CHILD.close)
