"""The embedded demo: waiting for it in a new workspace, and the banner that says what it is."""

from __future__ import annotations

import streamlit as st

from core.demo.default import about, shows_demo
from core.errors import BasiscopeError
from core.jobs import find_job, list_jobs, start_job
from core.limits import Limits
from core.tables import progress_sentence
from core.workspace import Run, Workspace


def show_banner(run: Run) -> None:
    if shows_demo(run):
        st.info(about(), icon=":material/science:")


def show_empty(workspace: Workspace) -> None:
    """What to do in a workspace without a run: watch the demo come, start it, or recover one's own."""
    st.title("Basiscope")
    job = next((job for job in list_jobs(workspace) if job.step == "demo"), None)
    if job and job.state == "running":
        watch(workspace, job.id)
    else:
        st.text("There is no run in this workspace yet.")
    if job and job.state not in ("running", "done"):
        st.text(f"The embedded demo was not recovered. {job.result['message']}")
    if not (job and job.state == "running") and st.button(
        "Recover the embedded demo", key="demo", disabled=Limits.now().read_only
    ):
        try:
            start_job(workspace, ["demo"])
        except BasiscopeError as error:
            st.text(str(error))
        else:
            st.rerun()
    st.page_link("pages/recover/page.py", label="Recover a model of your own", icon=":material/play_circle:")


@st.fragment(run_every=0.5)
def watch(workspace: Workspace, job_id: str) -> None:
    job = find_job(workspace, job_id)
    st.text(
        "The embedded demo is being recovered: a small model over generated word problems. It takes under a "
        "minute on two idle cores, longer on busy ones; each step has its own bar."
    )
    st.progress(job.progress.share, text=progress_sentence(job.progress))
    if job.state != "running":
        st.rerun()
