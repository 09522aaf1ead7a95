"""Session keys, cached resources and the run picker: the only home of all three."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pandas as pd
import streamlit as st

from core.errors import BasiscopeError
from core.workspace import DEFAULT_ROOT, Run, Workspace
from pages.common.demo import show_banner, show_empty

T = TypeVar("T", int, str)
RUN, DIRECTION = "run", "direction"
KEPT = "kept_examples"
"""Session key: (run id, tuple of row numbers) last chosen with a lasso or box."""


def workspace() -> Workspace:
    return Workspace(os.environ.get("BASISCOPE_WORKSPACE", DEFAULT_ROOT))


@st.cache_resource(max_entries=4, show_spinner=False)
def _open(folder: str) -> Run:
    return Run(workspace().root / "runs" / folder)


@st.cache_resource(max_entries=8, show_spinner=False)
def _table(folder: str, name: str, columns: tuple[str, ...] | None) -> pd.DataFrame | None:
    run = _open(folder)
    if name == "examples":
        return run.examples(list(columns) if columns else None)
    return {"scores": run.scores, "cosines": run.cosines, "map": run.map, "directions": run.directions}[name]()


def table(run: Run, name: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
    """A table of a run, shared by all sessions: read it, never change it."""
    found = _table(run.id, name, columns)
    return pd.DataFrame() if found is None else found


def pick_run() -> Run:
    """The run picker in the sidebar. Stops the page with what to do where there is no run to show."""
    runs = {run.id: run for run in workspace().runs()}
    if not runs:
        show_empty(workspace())
        st.stop()
    asked = st.session_state.get(RUN) or st.query_params.get(RUN)
    if asked and asked not in runs:
        st.warning("The address names a run that is not in this workspace. The newest is shown instead.")
    run_id = pick_in_address(
        RUN, list(runs), asked if asked in runs else next(iter(runs)), lambda run_id: run_name(runs[run_id])
    )
    run = _open(run_id)
    try:
        _ = run.manifest
    except BasiscopeError as error:
        stop_with(error)
    show_banner(run)
    return run


def pick_in_address(key: str, options: list[T], first: T, name: Callable[[T], str]) -> T:
    """A sidebar choice that the address bar holds under `key`, so that a view can be shared.

    Binding the widget itself would put its label into the address, which changes with every new label.
    """
    if st.session_state.get(key) not in options:
        st.session_state[key] = first
    chosen = st.sidebar.selectbox(key.capitalize(), options, key=key, persist_state="session", format_func=name)
    st.query_params[key] = str(chosen)
    return chosen


def run_name(run: Run) -> str:
    """One line that tells a run from its neighbours."""
    try:
        manifest = run.manifest
    except BasiscopeError:
        return f"{run.id} (unreadable)"
    model = manifest["model"]["name"].rstrip("/").rsplit("/", 1)[-1]
    data = manifest["data"]["path"].rstrip("/").rsplit("/", 1)[-1]
    recipe = manifest["recipe"]
    return f"{model} · {data} · {recipe['pooling']} · k {manifest['k']} · {run.id[:6]}"


def stop_with(error: BasiscopeError) -> None:
    """Show the error's sentence as plain text and end the page."""
    with st.container(border=True):
        st.text(f"This could not be done. {error}")
    st.stop()


def is_dark() -> bool:
    return st.context.theme.type == "dark"
