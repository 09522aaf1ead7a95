"""Jobs under way and ended, with progress, cancel, resume and log; and the runs there are."""

from __future__ import annotations

import streamlit as st

from core.jobs import Job, Recovery, find_job, last_tries, recoveries_elsewhere, start_job
from core.tables import progress_sentence, short_name
from pages.common.session import RUN, may_write, run_name, show_damaged, with_sentences, workspace

MOST_JOBS = 8


@st.fragment(run_every=1.0)
@with_sentences
def show_estimate(job_id: str) -> None:
    job = find_job(workspace(), job_id)
    if job.state == "running":
        st.progress(0.0, text="Counting the rows and tokenising a sample")
    elif job.state == "done":
        for line in job.result["sentences"]:
            st.text(line)
    else:
        st.text(f"No estimate. {job.result['message']}")


@with_sentences
def show_jobs() -> None:
    """All commands under way, looked at every second, and the newest of the others."""
    jobs = [job for job in last_tries(workspace()) if "--estimate" not in job.facts["arguments"]]
    running = [job for job in jobs if job.state == "running"]
    shown = [*running, *(job for job in jobs if job not in running)][: max(MOST_JOBS, len(running))]
    under_way = len(running) + len(recoveries_elsewhere(workspace()))
    if shown or under_way:
        st.subheader("Jobs")
        st.fragment(show_each, run_every=1.0 if under_way else None)(shown, under_way)


@with_sentences
def show_each(jobs: list[Job], under_way: int) -> None:
    elsewhere = recoveries_elsewhere(workspace())
    for recovery in elsewhere:
        with st.container(border=True, key=f"recovery_{recovery.run}"):
            show_recovery(recovery)
    for job in jobs:
        with st.container(border=True, key=f"job_{job.id}"):
            show_job(job)
    if sum(job.state == "running" for job in jobs) + len(elsewhere) < under_way:
        st.rerun()


def show_recovery(recovery: Recovery) -> None:
    st.text(f"{short_name(recovery.model)} on {short_name(recovery.data)}, run {recovery.run[:6]}")
    st.progress(recovery.progress.share, text=progress_sentence(recovery.progress))
    st.caption("Started outside the app; Ctrl-C in its terminal stops it, and what was finished is kept.")


def show_job(job: Job) -> None:
    state = job.state
    what, button = st.columns([6, 1], vertical_alignment="center")
    what.code(job.command, language="bash", wrap_lines=True)
    if state == "running":
        progress = job.progress
        st.progress(progress.share, text=progress_sentence(progress))
        if button.button("Cancel", key=f"cancel_{job.id}", disabled=not may_write()):
            job.cancel()
    elif state == "done":
        run_id = job.result.get("run")
        if run_id and button.button("Open", key=f"open_{job.id}"):
            st.session_state[RUN] = run_id
            st.switch_page("pages/basis/page.py")
        st.caption("Done.")
    else:
        st.text(
            job.result["message"] if state == "cancelled" else f"{state.capitalize()}. {job.result['message']}"
        )
        again = "Try again" if state == "failed" else "Resume"
        if button.button(again, key=f"resume_{job.id}", disabled=not may_write()):
            start_job(workspace(), job.facts["arguments"])
            st.rerun()
    if state != "running" and (log := job.log()):
        with st.expander("Log"):
            st.code(log, language=None)


@with_sentences
def show_runs() -> None:
    runs = workspace().readable_runs()
    if runs:
        st.subheader("Runs")
    for run in runs:
        name, button, delete = st.columns([6, 1, 1], vertical_alignment="center")
        name.text(run_name(run))
        if button.button("Open", key=f"run_{run.id}"):
            st.session_state[RUN] = run.id
            st.switch_page("pages/basis/page.py")
        with delete.popover("Delete", key=f"delete_{run.id}"):
            st.text("The run, its activations, labels and named sets go for good.")
            if st.button("Delete the run", key=f"really_delete_{run.id}", disabled=not may_write()):
                workspace().delete(run.id)
                st.rerun()
    show_damaged("run", "unfinished run", "evaluation", "job")
