"""Saving a selection as a job, opening, copying and comparing those that are kept."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core.errors import BasiscopeError
from core.jobs import command_line, find_job, start_job
from core.selection import FORMATS, measures
from core.tables import progress_sentence
from core.workspace import Run
from pages.common.session import show_sentence, with_sentences, workspace

SAVE_JOB = "select_job"
MOST_COMPARED = 4


def show_save(arguments: list[str]) -> None:
    name, form, button = st.columns([3, 2, 1.2], vertical_alignment="bottom")
    called = name.text_input("Save under a name", key="selection_name").strip()
    exported: str = form.selectbox("and export as", ["not now", *FORMATS], key="export_format")
    whole = [*arguments, *(["--name", called] if called else [])]
    whole += ["--format", exported] if exported != "not now" else []
    if button.button("Save", key="save_selection", type="primary", disabled=not called, width="stretch"):
        try:
            workspace().check_selection_name(called, replace_old=False)
            st.session_state[SAVE_JOB] = start_job(workspace(), whole).id
        except BasiscopeError as error:
            show_sentence(str(error))
    st.caption("The same from a terminal")
    st.code(command_line(whole), language="bash", wrap_lines=True)
    if job_id := st.session_state.get(SAVE_JOB):
        watch(job_id)


@st.fragment(run_every=0.5)
@with_sentences
def watch(job_id: str) -> None:
    job = find_job(workspace(), job_id)
    if job.state == "running":
        st.progress(job.progress.share, text=progress_sentence(job.progress))
        return
    if job.state == "done":
        st.text(f"Kept in {job.result['out'] or job.result['folder']}" if "folder" in job.result else "Done.")
    else:
        st.text(f"It was not done. {job.result['message']}")
    if st.session_state.get(f"{SAVE_JOB}_seen") != job_id:
        st.session_state[f"{SAVE_JOB}_seen"] = job_id
        st.rerun()


@with_sentences
def show_kept(run: Run) -> None:
    kept = workspace().selections(run.id)
    if not kept:
        st.caption("No selection of this run is kept yet.")
        return
    rows = [{"name": one.name, "rule": one.manifest["title"], **one.manifest["measures"]} for one in kept]
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    names = [one.name for one in kept]
    which, new, copy, delete = st.columns([3, 3, 1.5, 1.2], vertical_alignment="bottom")
    chosen = which.selectbox("Selection", names, key=f"kept_{run.id}")
    other = new.text_input("New name", key="copy_name").strip()
    if copy.button("Duplicate", key="copy_selection", disabled=not other, width="stretch"):
        workspace().copy_selection(chosen, other)
        st.rerun()
    with delete.popover("Delete", key="delete_selection", width="stretch"):
        st.text(f"{chosen}, with its exports in the workspace, is removed for good.")
        if st.button("Delete the selection", key=f"really_delete_{chosen}"):
            workspace().delete_selection(chosen)
            st.rerun()
    one = next(one for one in kept if one.name == chosen)
    with st.expander("Its examples, and what was dropped"):
        st.dataframe(one.chosen(), hide_index=True, height=240)
        st.dataframe(one.dropped(), hide_index=True, height=160)
    compared = st.multiselect(
        "Compare two to four", names, names[:2], max_selections=MOST_COMPARED, key=f"compare_{run.id}"
    )
    chosen_ones = [one for one in kept if one.name in compared]
    if len(chosen_ones) > 1:
        left, right = st.columns([3, 2])
        facts = pd.DataFrame({one.name: one.manifest["measures"] for one in chosen_ones})
        left.dataframe(facts)
        right.dataframe(measures.overlap({one.name: one.example_ids for one in chosen_ones}).round(2))
        right.caption("Overlap: shared examples over all of both (Jaccard).")
