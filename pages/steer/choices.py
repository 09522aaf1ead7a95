"""What to steer with: directions, operation, scope, blocks, and a strength for every column."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from core.chats import turn_line
from core.reading import Label
from core.steering.comparison import BASELINE, Variant
from core.steering.generation import Prompt, Sampling
from core.steering.intervention import OPERATIONS, Directions, Steering
from core.steering.prompts import run_prompts
from core.tables import (
    column_strengths,
    covered_blocks,
    is_added_everywhere,
    one_line,
    slider_bounds,
    suggested_range_sentence,
)
from core.workspace import Run
from pages.common.session import DIRECTION, STEER_WITH, AskedStrength

EXAMPLES = 12
NEXT_SEED = "steer_next_seed"
"""Session key: the seed that the field is to show."""
UNIT_NAMES = {"unit": "unit direction", "sd": "standard deviations (sd)"}
STRENGTH_NAMES = {
    ("add", "unit"): "times the unit direction",
    ("add", "sd"): "in sd",
    ("clamp", "unit"): "score",
    ("clamp", "sd"): "score in sd",
    ("remove", "unit"): "share taken out",
}
OPERATION_NAMES = {"add": "add", "remove": "remove", "clamp": "clamp"}
SCOPE_NAMES = {"all": "all positions", "response": "response", "prompt": "prompt", "first": "first tokens"}


@dataclass(frozen=True)
class Choice:
    """Everything but the prompt and the strengths."""

    chosen: tuple[int, ...]
    unit: str
    operation: str
    scope: str
    blocks: tuple[int, ...] | None
    columns: int
    has_range: bool
    """Whether a suggested range is for such steering."""


def choose_steering(run: Run, directions: Directions, labels: dict[int, Label]) -> Choice:
    asked = st.query_params.get(DIRECTION, "1")
    default = int(asked) if asked.isdecimal() and 1 <= int(asked) <= run.k else 1
    chosen: list[int] = st.multiselect(
        "Directions",
        list(range(1, run.k + 1)),
        default=[default],
        key=f"steer_directions_{run.id}",
        format_func=lambda j: f"{j}  {one_line(labels[j].text, 60) if j in labels else ''}",
        persist_state="session",
    )
    second, third = st.columns([3, 2], vertical_alignment="bottom")
    operation: str = second.segmented_control(
        "Operation",
        OPERATIONS,
        default="add",
        key="steer_operation",
        required=True,
        format_func=OPERATION_NAMES.__getitem__,
        help="add: the published one. remove: take a share of the direction out of every block. clamp: give "
        "every token the same score.",
    )
    columns = third.number_input("Columns", 2, 6, 3, key="steer_columns", help="The first is not steered.")
    with st.expander("Unit, scope, blocks"):
        left, middle, right = st.columns(3, vertical_alignment="bottom")
        unit: str = left.segmented_control(
            "Strength in",
            list(UNIT_NAMES),
            default="sd",
            key="steer_unit",
            required=True,
            format_func=UNIT_NAMES.__getitem__,
            disabled=operation == "remove",
        )
        scope: str = middle.segmented_control(
            "Steer",
            list(SCOPE_NAMES),
            default="all",
            key="steer_scope",
            required=True,
            format_func=SCOPE_NAMES.__getitem__,
        )
        if scope == "first":
            scope = f"first:{middle.number_input('How many generated tokens', 1, 10_000, 8, key='steer_first')}"
        blocks = right.text_input(
            "Blocks", key="steer_blocks", placeholder="all of the run, or such as 2:-1", persist_state="session"
        )
    unit = "unit" if operation == "remove" else unit
    covered = covered_blocks(run, directions, blocks)
    has_range = is_added_everywhere(directions, operation, scope, covered)
    return Choice(tuple(chosen), unit, operation, scope, covered, int(columns), has_range)


def choose_prompt(run: Run) -> Prompt:
    key = f"steer_prompt_{run.id}"
    examples = example_prompts(str(run.folder), run)

    def put(prompt: Prompt) -> None:
        st.session_state[key], st.session_state[f"{key}_before"] = prompt.text, prompt.before

    def take() -> None:
        if st.session_state[f"{key}_example"] is not None:
            put(examples[st.session_state[f"{key}_example"]])

    if key not in st.session_state:
        put(examples[0] if examples else Prompt(""))

    st.selectbox(
        "Prompts from the data",
        range(len(examples)),
        index=None,
        key=f"{key}_example",
        format_func=lambda i: one_line(examples[i].text, 100),
        on_change=take,
        placeholder="take one into the box",
    )
    if before := st.session_state.get(f"{key}_before", ()):
        with st.expander(f"Said before the prompt ({len(before)})"):
            for turn in before:
                st.text(turn_line(turn))
            st.button("Leave it out", key=f"{key}_alone", on_click=st.session_state.pop, args=(f"{key}_before",))
    text = st.text_area("Prompt", key=key, height=150, persist_state="session")
    return Prompt(text, before=before)


@st.cache_resource(max_entries=16, show_spinner=False)
def example_prompts(folder: str, _run: Run) -> list[Prompt]:
    return run_prompts(_run, EXAMPLES)


def choose_sampling() -> Sampling:
    if NEXT_SEED in st.session_state:  # before the field is drawn, the only time when it can be set
        st.session_state["steer_seed"] = st.session_state.pop(NEXT_SEED)
    with st.popover("Generation", icon=":material/settings:"):
        tokens = st.number_input("New tokens at most", 1, 4_096, 256, key="steer_tokens", persist_state="session")
        temperature = st.number_input(
            "Temperature",
            0.0,
            5.0,
            0.0,
            0.1,
            key="steer_temperature",
            help="0 is greedy.",
            persist_state="session",
        )
        top_p = st.number_input("Top-p", 0.01, 1.0, 1.0, 0.05, key="steer_top_p", persist_state="session")
        seed = st.number_input(
            "Seed",
            0,
            None,
            0,
            key="steer_seed",
            help="All columns meet the same noise, so that their differences are the steering's.",
            persist_state="session",
        )
    return Sampling(int(tokens), float(temperature), float(top_p), int(seed))


def next_seed(sampling: Sampling) -> Sampling:
    """The same with the next seed, which the field shows from the next drawing on."""
    st.session_state[NEXT_SEED] = sampling.seed + 1
    return replace(sampling, seed=sampling.seed + 1)


def choose_variants(run: Run, directions: Directions, choice: Choice) -> list[Variant]:
    """The baseline and a column of sliders for each variant, one slider a direction."""
    variants = [Variant(BASELINE, Steering())]
    boxes = st.columns(choice.columns)
    boxes[0].text("baseline")
    boxes[0].caption("not steered")
    for column, box in enumerate(boxes[1:], 1):
        with box:
            st.text(f"column {column + 1}")
            strengths = tuple((j, _strength(run, directions, choice, j, column)) for j in choice.chosen)
        steering = Steering(
            tuple((j, directions.in_unit(j, strength, choice.unit)) for j, strength in strengths),
            choice.operation,
            choice.scope,
            choice.blocks,
        )
        name = ", ".join(f"{j}: {strength:+g}" for j, strength in strengths)
        suffix = " sd" if choice.unit == "sd" else ""
        variants.append(Variant(f"{name}{suffix}", steering, strengths[0][1] if strengths else 0.0))
    return variants


def _strength(run: Run, directions: Directions, choice: Choice, direction: int, column: int) -> float:
    deviation = float(directions.deviations[direction - 1])
    suggested = run.suggested_range(direction) if choice.has_range else None
    wanted: AskedStrength | None = st.session_state.get(STEER_WITH)
    if wanted is None or (wanted.run, wanted.direction) != (run.id, direction) or choice.operation != "add":
        wanted = AskedStrength(run.id, direction, 0.0, 0)
    form = suggested, deviation, choice.unit, choice.operation, wanted.strength
    low, high, step = slider_bounds(*form)
    defaults = column_strengths(*form)
    chosen = st.slider(
        f"Direction {direction}, {STRENGTH_NAMES[choice.operation, choice.unit]}",
        low,
        high,
        defaults[column - 1],
        step,
        key=f"strength_{run.id}_{direction}_{column}_{choice.unit}_{choice.operation}_{high:g}_{wanted.number}",
        persist_state="session",
    )
    if choice.operation != "remove":
        times = directions.in_unit(direction, chosen, choice.unit)
        st.caption(f"{times:+.3g} × the unit direction = {times / deviation:+.3g} sd")
    return float(chosen)


def show_suggestions(run: Run, choice: Choice) -> None:
    if not choice.has_range:
        st.caption(
            "No range is suggested for this: those of the sweep are for add, at all positions and in all blocks."
        )
        return
    for direction in choice.chosen:
        found = run.suggested_range(direction)
        if found:
            st.caption(f"Direction {direction}. {suggested_range_sentence(found)}")
        else:
            st.caption(f"Direction {direction}. No range is suggested yet: make the short sweep below.")
