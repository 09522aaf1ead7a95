"""The examples at both ends of one direction, side by side."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

import numpy as np
import pandas as pd
import streamlit as st

from core import figures
from core.errors import BasiscopeError
from core.jobs import find_job, start_job
from core.reading import RANKS
from core.tables import Extreme, RangeScale, colour_columns, extremes, filter_values, matching, value_range, within
from core.workspace import Run
from pages.common.session import ends, may_write, search, table, token_scores, with_sentences, workspace

FOLD = 420
TOKENS_JOB = "tokens_job"


@st.fragment
@with_sentences
def show_ends(run: Run, direction: int) -> None:
    examples = table(run, "examples")
    first, second, third, fourth, fifth = st.columns([2, 2, 2, 1, 1], vertical_alignment="bottom")
    text = first.text_input("Search the texts", key="search")
    names: list[str | None] = [None, *colour_columns(run)]
    column = second.selectbox("Filter by column", names, key=f"by_{run.id}")
    with third:
        allowed = choose_allowed(run, examples[column]) if column else None
    rank = fourth.selectbox(
        "Rank by",
        RANKS,
        key="rank",
        help="score: centred; cosine: with the uncentred activations, as published.",
    )
    top = fifth.number_input("Each end", 1, 50, 5, key="top")
    shade = st.toggle(
        "Shade tokens",
        value=True,
        key="shade",
        help="Orange raises the score, blue lowers it. Faint is not pooled.",
    )
    if text:
        found = search(run, text)
        allowed = found if allowed is None else allowed & found
    if allowed is not None and not allowed.any():
        st.info("No example matches. Clear the search or the filter.", icon=":material/filter_alt_off:")
        return
    ranked_by = "scores" if rank == "score" else "cosines"
    if allowed is None:
        shown = ends(run, direction, ranked_by, top)
        beside = [(direction + step - 1) % run.k + 1 for step in (1, -1)]
        Thread(target=prepare, args=(run, beside, ranked_by, top), daemon=True).start()
    else:
        ranked = table(run, ranked_by)[f"d{direction}"].to_numpy()
        shown = extremes(run, examples, [ranked], top, allowed)[0]
    if shade:
        offer_token_scores(run, [example.example_id for end in shown for example in end])
    for box, name, end in zip(st.columns(2), ("+ end", "− end"), shown, strict=True):
        with box:
            st.subheader(name)
            st.html(figures.example_cards([describe_example(run, direction, example, shade) for example in end]))


def prepare(run: Run, directions: list[int], ranked_by: str, top: int) -> None:
    """Read what the next click will show."""
    with suppress(BasiscopeError):  # said when it is shown
        for direction in directions:
            for end in ends(run, direction, ranked_by, top):
                for example in end:
                    token_scores(run, example.example_id)


def choose_allowed(run: Run, column: pd.Series) -> np.ndarray | None:
    """(n,) whether an example's value of the column is among those chosen; None where all are."""
    key = f"values_{run.id}_{column.name}"
    if bounds := value_range(column):
        scale = RangeScale.of(*bounds)
        ends = (scale.low, scale.high)
        low, high = st.slider("From and to", *ends, value=ends, step=scale.step, format=scale.form, key=key)
        return None if (low, high) == ends else within(column, low, high)
    options: list[str] = filter_values(column)
    values = st.multiselect("Values", options, key=key)
    return matching(column, values) if values else None


def describe_example(run: Run, direction: int, example: Extreme, shade: bool) -> tuple[str, str]:
    """What is known of an example, and the HTML of its text."""
    facts = f"{example.value:+.4g} · example {example.example_id} · {example.n_tokens:,} tokens"
    tokens = token_scores(run, example.example_id) if shade else None
    if tokens is None:
        return facts, figures.plain_text(example.text, FOLD)
    return facts, figures.shaded_tokens(tokens.tokens, tokens.scores[:, direction - 1], FOLD)


def offer_token_scores(run: Run, shown: list[int]) -> None:
    """A button that starts the job which scores the tokens of the examples shown, and its progress."""
    missing = [example_id for example_id in shown if not run.has_token_scores(example_id)]
    job_id = st.session_state.get(TOKENS_JOB)
    job = find_job(workspace(), job_id) if job_id else None
    if job and job.state == "running":
        wait_for(job.id)
    elif job and job.state != "done":
        st.text(f"The tokens could not be scored. {job.result['message']}")
        st.session_state.pop(TOKENS_JOB)
    if missing and not (job and job.state == "running"):
        label = f"Score the tokens of {len(missing)} more example{'s' * (len(missing) > 1)}"
        meaning = "Loads the model in a job of its own; the scores are kept."
        if st.button(label, key="score_tokens", help=meaning, disabled=not may_write()):
            arguments = ["tokens", run.id, *(word for i in missing for word in ("--example", str(i)))]
            st.session_state[TOKENS_JOB] = start_job(workspace(), arguments).id
            st.rerun()


@st.fragment(run_every=0.5)
@with_sentences
def wait_for(job_id: str) -> None:
    job = find_job(workspace(), job_id)
    progress = job.progress
    st.progress(progress.share, text=f"Scoring tokens: {progress.step}")
    if job.state != "running":
        st.rerun()
