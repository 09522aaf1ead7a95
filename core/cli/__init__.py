"""The command line: one command per step, each a thin adapter over the core."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import click

from core.cli import app, evaluating, reading, recover, selecting, steering, usefulness
from core.cli.group import asked_to_stop, cli
from core.errors import BasiscopeError
from core.limits import Limits
from core.workspace import disk_sentence

__all__ = ["app", "cli", "evaluating", "main", "reading", "recover", "selecting", "steering", "usefulness"]

LESS_MEMORY = "Ask for less at once, stop other work on the same device, or try --device cpu."


def _print_results(command: click.Command) -> None:
    """Have a command that returns a dict print its `lines`, or with --json everything but these, or its
    `objects` one a line where it has some."""
    inner = command.callback
    assert inner is not None

    @wraps(inner)
    def printing(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        if result is None:
            return None
        lines = result.pop("lines", [])
        objects = result.pop("objects", [result])
        as_json = (json.dumps(one, ensure_ascii=False) for one in objects)
        click.echo("\n".join(as_json if kwargs["as_json"] else lines))
        return result

    command.callback = printing


for _command in cli.commands.values():
    _print_results(_command)


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if sys.platform == "darwin" else "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _stop(_signal: int, _frame: Any) -> None:
    asked_to_stop.set()
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; a job's result goes into its folder, too."""
    from core.jobs import JOB_VARIABLE, JobReporter

    _quiet_libraries()
    asked_to_stop.clear()
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, _stop)
    folder = os.environ.get(JOB_VARIABLE)
    job = JobReporter(Path(folder)) if folder else None
    status, state, result = _run(arguments)
    if status == 1 and "message" in result:
        click.echo(result["message"], err=True)
    if job:
        job.finish(state, result)
    return status


def _run(arguments: list[str] | None) -> tuple[int, str, dict[str, Any]]:
    """(exit status, job state, result)."""
    from core.jobs import STOPPED

    try:
        Limits.now().check_arguments(sys.argv[1:] if arguments is None else arguments)
        result = cli.main(arguments, standalone_mode=False)
        return 0, "done", result if isinstance(result, dict) else {}
    except click.UsageError as error:
        error.show()
        return 2, "failed", {"message": error.format_message()}
    except (KeyboardInterrupt, click.Abort) as error:
        answered_no = isinstance(error, click.Abort) and error.__cause__ is None
        return 1, "cancelled", {"message": "Nothing was done." if answered_no else STOPPED}
    except BasiscopeError as error:
        return 1, "failed", {"message": str(error)}
    except BrokenPipeError:
        return 1, "failed", {}
    except Exception as error:
        if said := disk_sentence(error):
            return 1, "failed", {"message": said}
        from core.model import is_out_of_memory

        if is_out_of_memory(error):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return 1, "failed", {"message": f"There is not enough memory ({reason}). {LESS_MEMORY}"}
        import traceback

        traceback.print_exc()
        return 1, "failed", {"message": f"Unexpected error: {type(error).__name__}: {error}"}
