"""The group that all commands belong to, and what they share: options, progress, tables."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click
from click.core import ParameterSource

from core import __version__
from core.errors import BasiscopeError
from core.workspace import DEFAULT_ROOT, Run

LINE_SECONDS = 30.0
asked_to_stop = Event()
"""Set by the signal handler beside its KeyboardInterrupt, which is swallowed where a library calls back from C, as
compilers do; then the next progress stops the command."""
workspace_option = click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_ROOT,
    show_default=True,
    help="Folder with the runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="basiscope")
def cli() -> None:
    """Recover a language model's own basis for a data set, read it, and act on it.

    RUN is a run's id, a unique beginning of it, or `latest`. Directions count from 1. Exit status: 0 fine,
    1 could not, 2 wrong usage.
    """


def check_direction(run: Run, direction: int) -> None:
    if not 1 <= direction <= run.k:
        raise BasiscopeError(f"Direction {direction}: run {run.id} has directions 1 to {run.k}.")


def table(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[str]:
    """Rows as aligned text columns under a header."""
    cells = [keys, *(tuple(str(row.get(key, "")) for key in keys) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(keys))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def given_options() -> dict[str, str]:
    """Name -> as written, of the options given to the command under way, be it as their defaults."""
    context = click.get_current_context()
    return {
        option.name: option.opts[0]
        for option in context.command.params
        if option.name and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }


class Reporter:
    """Progress of a command: into its job's folder, as bars on a terminal, as lines into a log, or with --json
    nowhere."""

    def __init__(self, as_json: bool) -> None:
        from core.jobs import JOB_VARIABLE, JobReporter, Meter

        folder = os.environ.get(JOB_VARIABLE)
        self._job = JobReporter(Path(folder)) if folder else None
        self._quiet = as_json
        self._meter, self._told = Meter(), 0.0
        self._bar: Any = None
        self._step = ""
        self._ended = Event()
        self._clock = Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Callable[[str, int, int], None]:
        if self._draws:
            self._clock.start()
        return self.progress

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        if self._draws:
            self._clock.join()
        if self._bar is not None:
            self._bar.close()

    @property
    def _draws(self) -> bool:
        return not self._job and not self._quiet and sys.stderr.isatty()

    def _tick(self) -> None:
        """Draw the bar again every second, so that a long step is seen to go on."""
        while not self._ended.wait(1.0):
            if (bar := self._bar) is not None:
                bar.refresh()

    def progress(self, step: str, done: int, total: int) -> None:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt
        if self._job:
            self._job.progress(step, done, total)
        elif self._draws:
            self._draw(step, done, total)
        elif not self._quiet:
            self._tell(step, done, total)

    def _tell(self, step: str, done: int, total: int) -> None:
        """A line for every step, and now and then within it, for a log."""
        from core.tables import progress_sentence

        progress = self._meter.update(step, done, total)
        if step != self._step or time.monotonic() - self._told > LINE_SECONDS:
            click.echo(progress_sentence(progress), err=True)
            self._step, self._told = step, time.monotonic()

    def _draw(self, step: str, done: int, total: int) -> None:
        from tqdm import tqdm

        from core.tables import STEPS, USUALLY

        if step != self._step:
            if self._bar is not None:
                self._bar.close()
            doing, unit = STEPS.get(step, (step.capitalize(), ""))
            usually = f", usually {USUALLY[step]}" if step in USUALLY else ""
            form = f"{{desc}}{usually}: {{elapsed}}" if total == 1 else None
            self._bar = tqdm(
                total=total or None,
                desc=doing,
                unit=f" {unit}" if unit else "it",
                unit_scale=True,
                initial=done,
                file=sys.stderr,
                bar_format=form,
            )
            self._step = step
        self._bar.update(done - self._bar.n)
