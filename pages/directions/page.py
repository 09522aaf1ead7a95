"""All directions as cards, and one direction in full: both ends, distribution, tokens, label."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import figures
from core.reading import Label
from core.tables import direction_facts, extremes, one_line
from core.workspace import Run
from pages.common.session import DIRECTION, may_write, pick_in_address, pick_run, table, with_sentences
from pages.directions.ends import show_ends

CARD_COLUMNS = 2


def choose(direction: int) -> None:
    st.session_state[DIRECTION] = direction


def show_cards(run: Run) -> None:
    st.title("Directions")
    part = " (its response, which alone is pooled)" if run.pooled_text == "response" else ""
    st.caption(f"Every direction with the first example of both ends{part}. Open one to read it.")
    examples, scores = table(run, "examples"), table(run, "scores")
    directions, labels = table(run, "directions"), run.labels()
    ranked = [scores[f"d{j}"].to_numpy() for j in range(1, run.k + 1)]
    ends = extremes(run, examples, ranked, 1, column=run.pooled_text)
    for start in range(0, run.k, CARD_COLUMNS):
        for column, j in zip(st.columns(CARD_COLUMNS), range(start + 1, run.k + 1), strict=False):
            with column.container(border=True, key=f"card_{j}"):
                head, button = st.columns([5, 1], vertical_alignment="center")
                label = labels[j].text if j in labels else "no label"
                head.text(f"{j}  {one_line(label, 80)}")
                button.button("Open", key=f"open_{j}", on_click=choose, args=(j,), width="stretch")
                facts = directions.iloc[j - 1]
                st.caption(f"{facts['explained_variance']:.1%} of the variance")
                for sign, (end,) in zip("+−", ends[j - 1], strict=True):
                    st.text(f"{sign}  {one_line(end.text, 110)}", wrap=False)


def show_direction(run: Run, direction: int, controls: list[DeltaGenerator]) -> None:
    before, after, overview = controls
    previous, following = (direction - 2) % run.k + 1, direction % run.k + 1
    before.button("Previous", key="previous", shortcut="Left", on_click=choose, args=(previous,), width="stretch")
    after.button("Next", key="next", shortcut="Right", on_click=choose, args=(following,), width="stretch")
    overview.button("All directions", key="all_directions", on_click=choose, args=(0,), width="stretch")
    label = run.labels().get(direction)
    st.title(f"Direction {direction}")
    st.text(label.text if label else "no label")
    st.html(figures.facts_row(direction_facts(table(run, "directions").iloc[direction - 1])))
    left, right = st.columns([3, 2])
    with left:
        scores = table(run, "scores")[f"d{direction}"].to_numpy()
        st.echarts_chart(figures.histogram(scores), key="histogram", height=240)
    with right:
        edit_label(run, direction, label)
    show_ends(run, direction)


def edit_label(run: Run, direction: int, label: Label | None) -> None:
    before = label.text if label else ""
    key = f"label_{run.id}_{direction}"
    if st.session_state.get(f"{key}_shown") != before:  # new, or changed elsewhere: not an edit made here
        st.session_state[f"{key}_shown"] = st.session_state[key] = before
    text = st.text_input(
        "Label: what the + end has : what the − end has", key=key, disabled=not may_write()
    ).strip()
    if text and text != before:
        words = (label.positive, label.negative) if label else ((), ())
        run.save_label(direction, Label(text, "person", *words))
        st.toast("The label is saved.")
        st.rerun()
    if not label:
        return
    origin = {"words": "from the texts", "person": "yours", "model": f"by {label.author}"}[label.source]
    lines = [f"This label is {origin}."]
    note = ""
    if label.source == "words" or label.positive or label.negative:
        for sign, end in (("+", label.positive), ("−", label.negative)):
            listed = ", ".join(f"{word} ({z:.1f})" for word, z in end) or "no word passes the corrected limit"
            lines.append(f"{sign}  {listed}")
        note = (
            f"Words in each {run.pooled_text} that go with an end, whether or not they make the score, with the "
            "z-score of their log-odds between ends of equal length; function words and symbols come later."
        )
    st.html(figures.paragraphs(lines, note))
    if label.raw:
        with st.expander("The language model's answer"):
            st.text(label.raw)


@st.fragment
@with_sentences
def show(run: Run) -> None:
    labels = run.labels()
    picker, *controls = st.columns([6, 1.4, 1.2, 1.8])
    chosen = pick_in_address(
        picker,
        DIRECTION,
        list(range(run.k + 1)),
        0,
        lambda j: f"{j}  {one_line(labels[j].text, 80) if j in labels else ''}" if j else "All directions",
        with_label=False,
    )
    if chosen:
        show_direction(run, chosen, controls)
    else:
        show_cards(run)


show(pick_run())
