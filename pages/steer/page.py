"""Steer: the same directions, added while the model generates, side by side."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.steering.intervention import Directions
from core.steering.live import Question, Stream
from core.tables import live_sentence
from core.workspace import Run
from pages.common.session import live_model, pick_run, show_damaged, with_sentences
from pages.steer.choices import (
    choose_prompt,
    choose_sampling,
    choose_steering,
    choose_variants,
    next_seed,
    show_suggestions,
)
from pages.steer.exports import show_exporting
from pages.steer.output import OPENED, STREAM, show_kept, show_output
from pages.steer.sweeps import show_sweeps

WANTED = "steer_wanted"
"""Session key: whether Generate has been clicked and nothing asked yet."""


@st.cache_resource(max_entries=16, show_spinner=False)
def directions_of(folder: str, _run: Run) -> Directions:
    return Directions.of(_run)


def want() -> None:
    """The prompt typed last reaches the page in the same run as the click, after callbacks: ask then."""
    st.session_state[WANTED] = True


def ask(question: Question) -> None:
    """Ask the live model; the very same question again means another sample."""
    before: Stream | None = st.session_state.get(STREAM)
    if before:
        before.stop()
        if before.question == question and question.sampling.temperature > 0:
            question = replace(question, sampling=next_seed(question.sampling))
    st.session_state[OPENED] = None
    st.session_state[STREAM] = live_model().ask(question)


@with_sentences
def show(run: Run) -> None:
    st.title("Steer")
    st.caption("Add directions to the model while it generates. All columns stream from one batch.")
    directions, labels = directions_of(str(run.folder), run), run.labels()
    left, right = st.columns([3, 4], gap="medium")
    with left:
        prompt = choose_prompt(run)
    with right:
        choice = choose_steering(run, directions, labels)
    if not choice.chosen:
        st.info("Choose a direction.", icon=":material/info:")
        return
    show_suggestions(run, choice)
    variants = choose_variants(run, directions, choice)
    go, stop, settings, status, unload = st.columns([1.5, 1, 1.5, 4, 1.3], vertical_alignment="center")
    with settings:
        sampling = choose_sampling()
    steering = (tuple(variants), sampling, choice.chosen[0], choice.unit)
    question = Question(run, prompt.text, *steering, prompt.before)
    if st.session_state.pop(WANTED, False):
        ask(question)
    stream: Stream | None = st.session_state.get(STREAM)
    under_way = bool(stream and not stream.is_over)
    can_stop = bool(under_way and stream and stream.state != "assessing" and not stream.was_stopped)
    label = "Generate again" if stream else "Generate"
    go.button(label, type="primary", key="generate", on_click=want, width="stretch")
    stop.button(
        "Stop", key="stop", disabled=not can_stop, on_click=stream.stop if stream else None, width="stretch"
    )
    live = live_model().status()
    status.caption("" if under_way else live_sentence(live))
    unload.button("Unload", key="unload", disabled=not live.loaded, on_click=live_model().unload, width="stretch")
    show_output(run, tuple(variant.steering for variant in variants))
    show_damaged("comparison", "sweep", "suggested range", run_id=run.id)
    show_kept(run, labels)
    show_exporting(run, directions, variants)
    show_sweeps(run, choice.chosen)


show(pick_run())
