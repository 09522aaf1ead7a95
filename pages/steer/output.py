"""The columns: streaming, side by side, with what differs from the baseline or what every token scores."""

from __future__ import annotations

import json

import numpy as np
import streamlit as st

from core import figures
from core.chats import turn_line
from core.reading import Label
from core.steering.comparison import Comparison
from core.steering.intervention import Steering
from core.steering.live import LiveModel, Stream
from core.tables import one_line, stream_sentence, with_name
from core.workspace import Run
from pages.common.session import live_model, may_write, with_sentences, workspace

STREAM = "steer_stream"
"""Session key: the stream that this session asked for last."""
OPENED = "steer_opened"
"""Session key: the id of the kept comparison that is shown instead, and the run's."""
POLL_SECONDS = 0.2


def show_output(run: Run, wanted: tuple[Steering, ...]) -> None:
    """What is asked for, or what was kept and is opened again; wanted: the columns as they are set now."""
    stream: Stream | None = st.session_state.get(STREAM)
    opened = st.session_state.get(OPENED)
    if opened and opened[0] == run.id:
        kept = workspace().comparisons(run.id).get(opened[1])
        if kept is None:
            st.info("This comparison is no longer kept.")
            return
        st.subheader("Kept")
        st.text(kept.name or kept.created)
        for turn in kept.before:
            st.text(turn_line(turn))
        st.text(kept.prompt)
        say_whether_current(kept, wanted)
        show_columns(kept)
        show_exports(kept)
    elif stream and stream.question.run.id == run.id:
        if stream.is_over:
            if stream.comparison:
                say_whether_current(stream.comparison, wanted)
            show_stream(stream)
        else:
            st.fragment(follow, run_every=POLL_SECONDS)(stream)


def say_whether_current(comparison: Comparison, wanted: tuple[Steering, ...]) -> None:
    if tuple(response.steering for response in comparison.responses) != wanted:
        st.caption("Not what is set above: each column says below its text how it was steered.")


@with_sentences
def follow(stream: Stream) -> None:
    show_stream(stream)
    if stream.is_over:
        st.rerun()


def show_stream(stream: Stream) -> None:
    model: LiveModel = live_model()
    st.text(stream_sentence(stream, model.before(stream), model.status()))
    if stream.comparison:
        show_columns(stream.comparison, is_over=stream.is_over)
        if stream.is_over:
            offer_keeping(stream.comparison)
            show_exports(stream.comparison)


def show_columns(comparison: Comparison, is_over: bool = True) -> None:
    shade = False
    has_scores = any(response.scores for response in comparison.responses)
    if is_over and not has_scores:
        st.caption(
            "Tokens cannot be shaded: a text that was stopped, or is empty, is not read by the unsteered model."
        )
    elif is_over:
        shade = st.toggle(
            f"Shade tokens by their score on direction {comparison.direction}",
            key="steer_shade",
            help="As the unsteered model reads the text. Orange is above the mean, blue below. Off: the words "
            "that differ from the baseline are marked.",
        )
    for note in comparison.notes:
        st.text(note)
    responses = comparison.responses
    if is_over and not shade and len(responses) > 1:
        st.caption("Marked: the words that differ from the baseline.")
    scale = figures.shading_scale(*(response.scores for response in responses))
    for number, (box, response) in enumerate(zip(st.columns(len(responses)), responses, strict=True)):
        with box.container(border=True, key=f"steered_{number}"):
            st.text(response.variant)
            if shade and response.scores:
                html = figures.shaded_tokens(response.tokens, np.array(response.scores), scale=scale)
                st.html(figures.CARD_STYLE + html)
            else:
                baseline = responses[0].text if number and is_over else None
                st.html(figures.differing_text(response.text, baseline))
            if is_over:
                st.text(comparison.describe(response))


def offer_keeping(comparison: Comparison) -> None:
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    name = left.text_input("Keep it under a name", key="steer_name", placeholder="name (may be empty)")
    keeps = may_write()
    if right.button("Keep", key="steer_keep", icon=":material/bookmark:", width="stretch", disabled=not keeps):
        kept = workspace().save_comparison(with_name(comparison, name))
        st.session_state[OPENED] = (comparison.run, kept)
        st.rerun()


def show_exports(comparison: Comparison) -> None:
    markdown, data = comparison.as_markdown(), json.dumps(comparison.as_dict(), ensure_ascii=False, indent=2)
    first, second, third = st.columns(3)
    first.download_button("Markdown", markdown, "comparison.md", key="steer_md", width="stretch")
    second.download_button("JSON", data, "comparison.json", key="steer_json", width="stretch")
    with third.popover("Copy", icon=":material/content_copy:", width="stretch"):
        for response in comparison.responses:
            st.text(response.variant)
            st.code(response.text, language=None, wrap_lines=True)


def show_kept(run: Run, labels: dict[int, Label]) -> None:
    kept = workspace().comparisons(run.id)
    if not kept:
        return
    nothing_else = OPENED not in st.session_state and STREAM not in st.session_state
    with st.expander(f"Kept comparisons ({len(kept)})", expanded=nothing_else):
        for comparison_id, comparison in kept.items():
            what, open_, delete = st.columns([8, 1, 1], vertical_alignment="center")
            names = ", ".join(response.variant for response in comparison.responses[1:])
            title = f"{comparison.name or 'no name'} · {comparison.created} · {comparison.steered}: {names}"
            what.text(f"{title}\n{one_line(comparison.prompt, 110)}")
            if open_.button("Open", key=f"open_comparison_{comparison_id}", width="stretch"):
                st.session_state[OPENED] = (run.id, comparison_id)
                st.rerun()
            name = f"delete_comparison_{comparison_id}"
            if delete.button("Delete", key=name, width="stretch", disabled=not may_write()):
                workspace().delete_comparison(run.id, comparison_id)
                st.rerun()
