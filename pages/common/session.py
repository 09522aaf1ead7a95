"""Session keys, cached resources and the run picker: the only home of all three."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.demo.default import is_demo
from core.errors import BasiscopeError
from core.figures import ColourBins, colour_bins
from core.jobs import Job, find_job
from core.limits import Limits
from core.reading import TokenScores
from core.steering.live import LiveModel
from core.tables import Extreme, extremes, progress_sentence
from core.workspace import DEFAULT_ROOT, Run, Workspace, disk_sentences
from pages.common.demo import show_banner, show_empty

T = TypeVar("T", int, str)
P = ParamSpec("P")
RUN, DIRECTION = "run", "direction"
PLAIN = {"displayModeBar": False}
"""Plotly without its tools, which lie over the legend."""
STEER_WITH = "steer_with"
"""Session key: the AskedStrength that another page has asked the page Steer for last."""
KEPT = "kept_examples"
"""Session key: (run id, tuple of row numbers) last chosen with a lasso or box."""


@st.cache_resource(show_spinner=False)
def live_model() -> LiveModel:
    """The one live model of this process, for all sessions."""
    return LiveModel()


def workspace() -> Workspace:
    return Workspace(os.environ.get("BASISCOPE_WORKSPACE", DEFAULT_ROOT))


@st.cache_resource(max_entries=256, show_spinner=False)
def _open(folder: str) -> Run:
    """The run, whose manifest is then read once."""
    return Run(Path(folder))


@st.cache_resource(max_entries=8, show_spinner=False)
def _table(folder: str, name: str) -> pd.DataFrame | None:
    run = _open(folder)
    if name == "examples":
        return run.examples(run.facts_columns())
    return {"scores": run.scores, "cosines": run.cosines, "map": run.map, "directions": run.directions}[name]()


def table(run: Run, name: str) -> pd.DataFrame:
    """A table of a run, shared by all sessions: read it, never change it. `examples` without the texts."""
    found = _table(str(run.folder), name)
    return pd.DataFrame() if found is None else found


@st.cache_resource(max_entries=16, show_spinner=False)
def _colours(folder: str, name: str, source: str) -> ColourBins:
    return colour_bins(table(_open(folder), source)[name])


def colours(run: Run, name: str, source: str) -> ColourBins:
    """Every example's colour by a column of the table `source`: `scores` or `examples`."""
    return _colours(str(run.folder), name, source)


@st.cache_resource(max_entries=32, show_spinner=False)
def _search(folder: str, text: str) -> np.ndarray:
    return _open(folder).search(text)


def search(run: Run, text: str) -> np.ndarray:
    """(n,) whether an example's text contains `text`, case ignored."""
    return _search(str(run.folder), text)


@st.cache_resource(max_entries=1_000, show_spinner=False)
def _token_scores(folder: str, example_id: int) -> TokenScores | None:
    return _open(folder).token_scores(example_id)


def token_scores(run: Run, example_id: int) -> TokenScores | None:
    """Scores of an example's tokens, where they have been computed."""
    return _token_scores(str(run.folder), example_id) if run.has_token_scores(example_id) else None


@st.cache_resource(max_entries=64, show_spinner=False)
def _ends(folder: str, direction: int, ranked_by: str, top: int) -> tuple[list[Extreme], list[Extreme]]:
    run = _open(folder)
    return extremes(run, table(run, "examples"), [table(run, ranked_by)[f"d{direction}"].to_numpy()], top)[0]


def ends(run: Run, direction: int, ranked_by: str, top: int) -> tuple[list[Extreme], list[Extreme]]:
    """The `top` examples at the + and the - end of a direction by the table `ranked_by`: `scores` or `cosines`."""
    return _ends(str(run.folder), direction, ranked_by, top)


def pick_run() -> Run:
    """The run picker in the sidebar. Stops the page with what to do where there is no run to show."""
    runs = {run.id: _open(str(run.folder)) for run in workspace().runs()}
    if not runs:
        show_empty(workspace())
        st.stop()
    asked = st.query_params.get(RUN)
    if asked and len(meant := [run_id for run_id in runs if run_id.startswith(asked)]) == 1:
        st.query_params[RUN] = asked = meant[0]
    if asked and asked not in runs:
        st.warning("The address names a run that is not in this workspace. The newest is shown instead.")
    newest = next((run_id for run_id, run in runs.items() if is_readable(run)), next(iter(runs)))
    run = runs[pick_in_address(st.sidebar, RUN, list(runs), newest, lambda run_id: run_name(runs[run_id]))]
    try:
        _ = run.manifest
    except BasiscopeError as error:
        stop_with(error)
    st.sidebar.text(run_name(run))  # the picker cuts it
    show_banner(run)
    return run


def pick_in_address(
    place: DeltaGenerator,
    key: str,
    options: list[T],
    first: T,
    name: Callable[[T], str],
    *,
    with_label: bool = True,
) -> T:
    """A choice that the address bar holds under `key`, so that a view can be shared and the browser's Back
    goes to the view before.

    Binding the widget itself would put its label into the address, which changes with every new label.
    """
    written = f"{key}_in_address"
    asked = st.query_params.get(key)
    if asked is not None and asked != st.session_state.get(written):  # not by this page: a link, or Back
        st.session_state[key] = next((option for option in options if str(option) == asked), first)
    if st.session_state.get(key) not in options:
        st.session_state[key] = first
    chosen = place.selectbox(
        key.capitalize(),
        options,
        key=key,
        persist_state="session",
        format_func=name,
        label_visibility="visible" if with_label else "collapsed",
    )
    st.query_params[key] = st.session_state[written] = str(chosen)
    return chosen


def is_readable(run: Run) -> bool:
    try:
        return bool(run.manifest)
    except BasiscopeError:
        return False


def run_name(run: Run) -> str:
    """One line that tells a run from its neighbours."""
    try:
        manifest = run.manifest
    except BasiscopeError:
        return f"{run.id} (unreadable)"
    model = "demo" if is_demo(run) else manifest["model"]["name"].rstrip("/").rsplit("/", 1)[-1]
    data = manifest["data"]["path"].rstrip("/").rsplit("/", 1)[-1]
    recipe = manifest["recipe"]
    return f"{model} · {data} · {recipe['pooling']} · k {manifest['k']} · {run.id[:6]}"


def stop_with(error: BasiscopeError) -> None:
    """Show the error's sentence as plain text and end the page."""
    show_sentence(f"This could not be done. {error}")
    st.stop()


def show_sentence(sentence: str) -> None:
    """A sentence that may quote a file or a data set, as plain text in a box."""
    with st.container(border=True):
        st.text(sentence)


def show_damaged(*kinds: str, run_id: str = "*") -> None:
    """What of some kinds cannot be read, each with why and a button that deletes it."""
    for one in workspace().damaged(*kinds, run_id=run_id):
        with st.container(border=True):
            what, delete = st.columns([6, 1], vertical_alignment="center")
            what.text(f"{one.kind.capitalize()} {one.name} cannot be read. {one.reason}")
            with delete.popover("Delete", key=f"damaged_{one.kind}_{one.name}"):
                st.text(f"The damaged {one.kind} goes for good.")
                key = f"really_delete_{one.kind}_{one.name}"
                if st.button(f"Delete the {one.kind}", key=key, disabled=not may_write()):
                    workspace().delete_damaged(one)
                    st.rerun()


def with_sentences(show: Callable[P, None]) -> Callable[P, None]:
    """Has a page or fragment end in the sentence of a BasiscopeError, or of a disk that cannot be written. An
    error inside a fragment never reaches the page around it, so each needs its own."""

    @wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with disk_sentences():
                show(*args, **kwargs)
        except BasiscopeError as error:
            stop_with(error)

    return shown


def follow(job_id: str, key: str) -> Job | None:
    """The job once it has ended; one that runs is shown with its progress and a button to cancel it."""
    job = find_job(workspace(), job_id)
    if job.state != "running":
        return job
    st.progress(job.progress.share, text=progress_sentence(job.progress))
    if st.button("Cancel", key=f"cancel_{key}", disabled=not may_write()):
        job.cancel()
    return None


@dataclass(frozen=True)
class AskedStrength:
    """A strength in multiples of the unit direction; `number` tells asking again from what a slider was moved to
    since."""

    run: str
    direction: int
    strength: float
    number: int


def steer_with(run: Run, direction: int, strength: float) -> None:
    """Open the page Steer with one direction in all blocks: in the first column at this strength, in multiples of
    the unit direction, in the second at its opposite."""
    before: AskedStrength | None = st.session_state.get(STEER_WITH)
    number = before.number + 1 if before else 1
    st.session_state[STEER_WITH] = AskedStrength(run.id, direction, strength, number)
    st.session_state[f"steer_directions_{run.id}"] = [direction]
    st.session_state["steer_blocks"] = ""
    st.switch_page("pages/steer/page.py")


def may_write() -> bool:
    """Whether anything may be started, changed or deleted; if not, what does is disabled."""
    return not Limits.now().read_only


def show_limits() -> None:
    """Say in the sidebar what cannot be done here."""
    if not may_write():
        st.sidebar.caption("For looking only: nothing can be started, changed or deleted here.")


def is_dark() -> bool:
    return st.context.theme.type == "dark"
