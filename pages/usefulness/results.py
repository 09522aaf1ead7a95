"""What utility and proxies found: the recommendation, forest plots, the problems behind a bar."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core import figures
from core.evaluation.changes import Change, changes
from core.tables import one_line
from core.usefulness.evidence import Effect, Evidence
from core.usefulness.recommend import recommend
from core.usefulness.steering import recommended_strength, strength_of, variant_of
from core.usefulness.table import (
    agreement_sentence,
    all_proxies,
    block_parts,
    change_name,
    control_table,
    evidence_name,
    evidence_notes,
    evidence_table,
    towards,
)
from core.workspace import Run
from pages.common.session import PLAIN, show_sentence, steer_with, with_sentences, workspace
from pages.usefulness.start import NEWEST

MOST_CHANGES = 100
BESIDE = (
    "In the first column at the strength at which it was tried, else half of the suggested range or 1 sd; in the "
    "second at the opposite."
)


def show_recommendation(run: Run, kept: Mapping[str, Evidence]) -> None:
    found = recommend(run.id, run.k, kept)
    for sentence in found.sentences:
        show_sentence(sentence)
    left, right = st.columns(2)
    names = ", ".join(found.helpful)
    if left.button(f"Select along {names or 'the useful ones'}", key="select_useful", disabled=not names):
        st.session_state["rule"] = "along"
        st.session_state[f"ends_{run.id}"] = list(found.helpful)
        st.switch_page("pages/select_data/page.py")
    first = recommended_strength(run, found, kept)
    if first and right.button(f"Steer with {found.helpful[0]}", key="steer_useful", help=BESIDE):
        steer_with(run, *first)
    with st.expander("All proxies in one table"):
        st.dataframe(all_proxies(run.k, [kept[i] for i in found.evidence.values()]), hide_index=True)
        st.caption("\\*: beyond every control of its proxy, before the number of proxies is corrected for.")


@st.fragment
@with_sentences
def show_evidence(run: Run, kept: Mapping[str, Evidence]) -> None:
    if (newest := st.session_state.pop(NEWEST, None)) in kept:
        st.session_state["evidence"] = newest
    left, right = st.columns(2, vertical_alignment="bottom")
    chosen = left.selectbox("Measured", list(kept), format_func=lambda i: evidence_name(kept[i]), key="evidence")
    evidence = kept[chosen]
    titles = {measure.name: measure.title for measure in evidence.measures}
    first = list(titles).index(evidence.primary)
    measure = right.selectbox("By", list(titles), first, format_func=titles.__getitem__, key=f"measure_{chosen}")
    event = st.plotly_chart(
        figures.forest(evidence, measure),
        key=f"forest_{chosen}_{measure}",
        config=PLAIN,
        on_select="rerun",
        selection_mode="points",
    )
    points = event["selection"]["points"] if event else []
    picked = next((str(point["customdata"]) for point in points if "customdata" in point), None)
    with st.expander("Table, controls and notes"):
        st.dataframe(evidence_table(evidence), hide_index=True)
        st.dataframe(control_table(evidence), hide_index=True)
        st.text("\n".join(evidence_notes(evidence)))
    if (parts := block_parts(evidence, measure)) and (blocks := evidence.facts.get("blocks")):
        with st.expander("By block"):
            figure = figures.block_effect_map(parts, blocks, evidence.measure(measure).unit)
            st.plotly_chart(figure, key=f"blocks_{chosen}_{measure}", config=PLAIN)
    behind = next((effect for effect in evidence.by(measure) if effect.name == picked), None)
    if behind:
        show_direction(run, evidence, behind)
    else:
        st.caption("Click a direction's mark for what is behind it.")


def show_direction(run: Run, evidence: Evidence, effect: Effect) -> None:
    """What is behind one mark: for texts that were generated, the problems that changed."""
    direction, labels = effect.direction, run.labels()
    st.subheader(f"Direction {effect.name}")
    st.text(labels[direction].text if direction in labels else "")
    left, right = st.columns(2)
    if left.button(f"Look at direction {direction}", key="look_at"):
        st.session_state["direction"] = direction
        st.switch_page("pages/directions/page.py")
    strength = strength_of(run, evidence, effect)
    if right.button(f"Steer with {direction} at {strength:+.3g}", key="steer_this", help=BESIDE):
        steer_with(run, direction, strength)
    variant = variant_of(evidence, effect)
    if variant is None:
        st.caption("No texts are kept behind this measure.")
        return
    evaluation = workspace().evaluation(evidence.parts["evaluation"])
    found = changes(evaluation, variant, evidence.parts.get("problems", {}).get(variant))
    if not found:
        st.text("No verdict changed.")
        return
    problems = evaluation.problems()
    titles = ("Not trained", "Trained") if evidence.proxy == "sft" else ("Not steered", "Steered")
    show_change(found, {problem_id: problem.prompt for problem_id, problem in problems.items()}, titles)


def show_change(found: list[Change], problems: Mapping[int, str], titles: tuple[str, str]) -> None:
    right = sum(change.became_right for change in found)
    st.text(f"{right:,} texts became right, {len(found) - right:,} wrong.")
    shown = found
    if 0 < right < len(found):
        kind = st.segmented_control(
            "Which became", ["right", "wrong"], default="right", key="became", required=True
        )
        shown = [change for change in found if change.became_right == (kind == "right")]
    if len(shown) > MOST_CHANGES:
        st.caption(f"The first {MOST_CHANGES} of {len(shown):,} are listed.")
    options = range(min(len(shown), MOST_CHANGES))

    def named(i: int) -> str:
        return one_line(f"{change_name(shown[i])}  {problems.get(shown[i].before.problem_id, '')}", 110)

    change = shown[st.selectbox("Problem", options, format_func=named, key="changed_problem")]
    if problem := problems.get(change.before.problem_id):
        st.text(problem)
    for place, title, rollout, base in zip(
        st.columns(2),
        titles,
        (change.before, change.after),
        (None, change.before.text),
        strict=True,
    ):
        with place:
            st.text(f"{title}: {'right' if rollout.right else 'wrong'}")
            st.html(figures.differing_text(rollout.text, base))


@st.fragment
@with_sentences
def show_agreement(kept: Mapping[str, Evidence]) -> None:
    """Two proxies against each other, where there are two."""
    newest = {evidence.proxy: evidence for evidence in reversed(list(kept.values()))}
    if len(newest) < 2:
        return
    st.subheader("Do the proxies agree?")
    left, right = st.columns(2)
    one = newest[left.selectbox("One proxy", list(newest), key="proxy_one")]
    others = [name for name in newest if name != one.proxy]
    other = newest[right.selectbox("Another", others, key=f"proxy_other_{one.proxy}")]
    figure = figures.proxy_scatter(one.proxy, towards(one), other.proxy, towards(other))
    st.plotly_chart(figure, key="proxy_scatter", config=PLAIN)
    st.text(agreement_sentence(one, other))
