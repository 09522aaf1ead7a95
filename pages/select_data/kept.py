"""Saving a selection as a job, opening, copying and comparing those that are kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from core import figures
from core.errors import BasiscopeError
from core.jobs import command_line, find_job, start_job
from core.selection import FORMATS, measures
from core.selection.live import can_compare, readable
from core.selection.measures import Curve, curve
from core.selection.pool import Pool
from core.tables import placed_examples
from core.workspace import KeptSelection, Run
from pages.common.session import (
    follow,
    is_dark,
    may_write,
    show_damaged,
    show_sentence,
    table,
    with_sentences,
    workspace,
)
from pages.select_data.choices import columns_of
from pages.select_data.results import LISTED, counted, map_points, say_how_many

SAVE_JOB, REOPEN = "select_job", "select_reopen"
MOST_COMPARED = 4


def show_save(arguments: list[str], problem: str) -> None:
    """problem: why it cannot be made."""
    name, form, button = st.columns([3, 2, 1.2], vertical_alignment="bottom")
    called = name.text_input("Save under a name", key="selection_name", persist_state="session").strip()
    exported: str = form.selectbox(
        "and export as", ["not now", *FORMATS], key="export_format", persist_state="session"
    )
    whole = [*arguments, *(["--name", called] if called else [])]
    whole += ["--format", exported] if exported != "not now" else []
    if button.button(
        "Save", key="save_selection", type="primary", width="stretch", disabled=bool(problem) or not may_write()
    ):
        try:
            workspace().check_selection_name(called, replace_old=False)
            st.session_state[SAVE_JOB] = start_job(workspace(), whole).id
        except BasiscopeError as error:
            show_sentence(str(error))
    if problem:
        show_sentence(problem)
    else:
        st.caption("The same from a terminal")
        st.code(command_line(whole), language="bash", wrap_lines=True)
    if job_id := st.session_state.get(SAVE_JOB):
        job = find_job(workspace(), job_id)
        if job.state == "running" or job.facts["arguments"][: len(arguments)] == arguments:
            watch(job_id, "selection")


@st.fragment(run_every=0.5)
@with_sentences
def watch(job_id: str, key: str) -> None:
    job = follow(job_id, key)
    if job is None:
        return
    if job.state == "done":
        st.text(f"Kept in {job.result['out'] or job.result['folder']}" if "folder" in job.result else "Done.")
    else:
        st.text(f"It was not done. {job.result['message']}")
    if st.session_state.get(f"{key}_seen") != job_id:
        st.session_state[f"{key}_seen"] = job_id
        st.rerun()


@with_sentences
def show_kept(run: Run, pool: Pool) -> None:
    show_damaged("selection", "screening", "set", run_id=run.id)
    kept = workspace().selections(run.id)
    if not kept:
        st.caption("No selection of this run is kept yet.")
        return
    rows = [
        {"name": one.name, "rule": one.manifest["title"], **readable(one.manifest["measures"])} for one in kept
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    names = [one.name for one in kept]
    which, reopen, delete = st.columns([4, 1.2, 1.2], vertical_alignment="bottom")
    chosen = which.selectbox("Selection", names, key=f"kept_{run.id}")
    if reopen.button("Open", key="open_selection", help="Its choices come back to the controls.", width="stretch"):
        st.session_state[REOPEN] = chosen
        st.rerun(scope="app")
    with delete.popover("Delete", key="delete_selection", width="stretch"):
        st.text(f"{chosen}, with its exports in the workspace, is removed for good.")
        if st.button("Delete the selection", key=f"really_delete_{chosen}", disabled=not may_write()):
            workspace().delete_selection(chosen)
            st.rerun()
    new, copy = st.columns([4, 2.4], vertical_alignment="bottom")
    other = new.text_input("New name", key="copy_name").strip()
    if copy.button("Duplicate", key="copy_selection", width="stretch", disabled=not may_write()):
        workspace().copy_selection(chosen, other)
        st.rerun()
    one = next(one for one in kept if one.name == chosen)
    with st.expander("Its examples, and what was dropped"):
        show_examples(run, pool, one)
    show_comparison(run, pool, kept)


def show_examples(run: Run, pool: Pool, one: KeptSelection) -> None:
    ids, dropped = one.example_ids, one.dropped()
    say_how_many(len(ids))
    rows = pool.rows(tuple(ids[:LISTED]), one.name)
    reasons = one.chosen()["reason"][:LISTED].tolist()
    places = range(1, len(rows) + 1)
    st.dataframe(placed_examples(run, table(run, "examples"), rows, places, reasons), hide_index=True, height=240)
    if dropped.empty:
        st.caption("Nothing was dropped.")
    else:
        st.dataframe(dropped, hide_index=True, height=160)


def show_comparison(run: Run, pool: Pool, kept: list[KeptSelection]) -> None:
    names = [one.name for one in kept]
    compared = st.multiselect(
        "Compare two to four", names, names[:2], max_selections=MOST_COMPARED, key=f"compare_{run.id}"
    )
    chosen = [one for one in kept if one.name in compared]
    if len(chosen) < 2:
        return
    left, right = st.columns([3, 2])
    left.dataframe(pd.DataFrame({one.name: readable(one.manifest["measures"]) for one in chosen}))
    right.dataframe(measures.overlap({one.name: one.example_ids for one in chosen}).round(2))
    right.caption("Overlap: shared examples over all of both (Jaccard).")
    rows = {one.name: pool.rows(tuple(one.example_ids), one.name) for one in chosen}
    if can_compare(pool, rows):
        curves = {name: curve_for(pool, own, run.id, tuple(own.tolist())) for name, own in rows.items()}
        for place, title, measure in zip(
            st.columns(2), ("covering radius", "mean distance"), ("radius", "mean"), strict=True
        ):
            lines = {name: (one.budgets, getattr(one, measure)) for name, one in curves.items()}
            place.echarts_chart(figures.covering_of(lines, title), key=f"compared_{measure}", height=340)
    else:
        st.caption("These selections are too long for their curves to be drawn at once.")
    column = st.selectbox("Composition by", columns_of(str(run.folder), run), key=f"compared_column_{run.id}")
    shares = measures.composition(counted(pool, pool.run, column)[0], rows)
    st.echarts_chart(figures.shares(shares), key="compared_composition", height=340)
    bins, chosen_rows = figures.member_bins(pool.n, rows)
    st.html(figures.legend(bins))
    spec = figures.scatter(map_points(run, pool), bins, chosen_rows, "map, across", "map, up", is_dark())
    st.echarts_chart(spec, key=f"compared_map_{run.id}", height=420)


@st.cache_resource(max_entries=16, show_spinner=False)
def curve_for(_pool: Pool, _rows: np.ndarray, run_id: str, rows: tuple[int, ...]) -> Curve:
    return curve(_pool, _rows)
