"""Taking the steering away: the command that exports a column, and the job that runs it."""

from __future__ import annotations

import streamlit as st

from core.jobs import Job, command_line, find_job, start_job
from core.steering.comparison import Variant
from core.steering.intervention import Directions
from core.tables import export_arguments, exportable
from core.workspace import Run
from pages.common.session import follow, may_write, with_sentences, workspace

EXPORT_JOB = "export_job"
FORMATS = {
    "checkpoint": "checkpoint: a steered model for transformers",
    "peft": "peft: an adapter",
    "gguf": "gguf: a control vector for llama.cpp",
    "vector": "vector: safetensors and JSON",
}


def show_exporting(run: Run, directions: Directions, variants: list[Variant]) -> None:
    with st.expander("Take it away", icon=":material/ios_share:"):
        able = exportable(directions, variants)
        if not able:
            st.text("Only one direction, added at all positions and in all blocks of the run, can be exported.")
            return
        left, middle, right = st.columns([2, 3, 1], vertical_alignment="bottom")
        names = [variant.name for variant in able]
        name = left.selectbox("Column", names, key="export_column")
        kind = middle.selectbox("Format", list(FORMATS), key="export_format", format_func=FORMATS.__getitem__)
        chosen = able[names.index(name)]
        arguments = export_arguments(workspace(), run, chosen, kind)
        if right.button("Export", key="export", width="stretch", disabled=not may_write()):
            st.session_state[EXPORT_JOB] = start_job(workspace(), arguments).id
            st.rerun()
        st.code(command_line(arguments), language="bash", wrap_lines=True)
        if job_id := st.session_state.get(EXPORT_JOB):
            if find_job(workspace(), job_id).state == "running":
                watch_export(job_id)
            else:
                show_export(find_job(workspace(), job_id))


@st.fragment(run_every=0.5)
@with_sentences
def watch_export(job_id: str) -> None:
    if follow(job_id, "export"):
        st.rerun()


def show_export(job: Job) -> None:
    if job.state == "done":
        st.text(f"Written to {job.result['out']}. {job.result['sentence']}")
    elif job.state == "cancelled":
        st.text("Cancelled. Nothing of it is kept.")
    else:
        st.text(f"{job.state.capitalize()}. {job.result['message']}")
