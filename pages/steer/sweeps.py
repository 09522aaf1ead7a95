"""Sweeps over strengths: start one as a job, watch it, see effect and guard."""

from __future__ import annotations

import streamlit as st

from core import figures
from core.jobs import command_line, start_job
from core.steering.sweep import Sweep
from core.tables import sweep_name, sweep_range_sentence, table_of_sweep
from core.workspace import Run
from pages.common.session import PLAIN, follow, may_write, with_sentences, workspace

SWEEP_JOB, SHOWN = "sweep_job", "sweep_shown"


def show_sweeps(run: Run, chosen: tuple[int, ...]) -> None:
    st.subheader(
        "Sweep",
        help="One direction over several strengths: what it does to the texts, and the guard that shows where "
        "steering becomes damage.",
    )
    direction = start_sweep(run, chosen)
    kept = {i: sweep for i, sweep in workspace().sweeps(run.id).items() if sweep.request["direction"] == direction}
    if not kept:
        st.info(
            f"No sweep of direction {direction} yet. The short one takes its prompts from the data, and suggests "
            "a range."
        )
        return
    key = f"{SHOWN}_{run.id}_{direction}"
    shown = st.selectbox("Shown", list(kept), key=key, format_func=lambda i: sweep_name(kept[i]))
    show_sweep(kept[shown])


def start_sweep(run: Run, chosen: tuple[int, ...]) -> int:
    """The direction to sweep."""
    left, middle, right = st.columns([2, 3, 1.5], vertical_alignment="bottom")
    options = chosen or tuple(range(1, run.k + 1))
    direction = left.selectbox("Direction to sweep", options, key=f"sweep_direction_{run.id}")
    with middle.popover("Strengths and prompts of your own", width="stretch"):
        strengths = st.text_input("Strengths", key="sweep_strengths", placeholder="-4:4:9, or 0,+2,-2")
        unit = st.selectbox(
            "Unit", ["unit", "sd"], key="sweep_unit", disabled=not strengths, help="Of the strengths given."
        )
        prompts = st.text_input("Prompts file", key="sweep_prompts", placeholder="of the data")
        answer = st.text_input(
            "Column with answers",
            key="sweep_answer",
            placeholder="none",
            disabled=not prompts,
            help="Of the prompts file.",
        )
    arguments = ["sweep", run.id, "--direction", str(direction)]
    arguments += ["--strengths", strengths, "--unit", unit] if strengths else []
    arguments += ["--prompts", prompts] if prompts else []
    arguments += ["--answer", answer] if answer and prompts else []
    label = "Sweep" if strengths else "Suggest a range"
    meaning = "A job of its own, with its own model."
    if right.button(label, key="start_sweep", help=meaning, width="stretch", disabled=not may_write()):
        st.session_state[SWEEP_JOB] = start_job(workspace(), arguments).id, f"{SHOWN}_{run.id}_{direction}"
        st.rerun()
    st.code(command_line(arguments), language="bash", wrap_lines=True)
    if started := st.session_state.get(SWEEP_JOB):
        watch_sweep(*started)
    return direction


@st.fragment(run_every=0.5)
@with_sentences
def watch_sweep(job_id: str, shown: str) -> None:
    job = follow(job_id, "sweep")
    if job is None:
        return
    if job.state == "done":
        st.session_state.pop(SWEEP_JOB, None)
        st.session_state[shown] = job.result["sweep"]
        st.rerun()
    st.text(f"{job.state.capitalize()}. {job.result['message']}")


def show_sweep(sweep: Sweep) -> None:
    st.text(sweep_range_sentence(sweep))
    for note in sweep.notes:
        st.text(note)
    left, right = st.columns(2)
    left.plotly_chart(figures.sweep_effect(sweep), key="sweep_effect", config=PLAIN)
    right.plotly_chart(figures.sweep_guard(sweep), key="sweep_guard", config=PLAIN)
    st.caption(
        "Means over prompts with 95% intervals, shares with Wilson's. Red: beyond the range without damage."
    )
    st.dataframe(table_of_sweep(sweep), hide_index=True)
