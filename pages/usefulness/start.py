"""Start a measurement: its choices, what it will cost, the same command, its job."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.demo.default import is_demo, usual_problems
from core.jobs import command_line, start_job
from core.tables import colour_columns
from core.usefulness import PROXIES
from core.usefulness.cost import cost_sentence
from core.usefulness.traces import likely_verdicts
from core.workspace import Run
from pages.common.session import follow, may_write, with_sentences, workspace

JOB = "usefulness_job"
NEWEST = "usefulness_newest"
"""Session key: id of the evidence that a job has left, to be shown once."""
TITLES = {
    "utility": "Utility: scores against verdicts",
    "first-order": "First order: one backward pass",
    "steering": "Steering on problems",
    "sft": "Short training along each direction",
}

MISSING = {
    False: "Name a file of problems with answers first.",
    True: "Choose a column of verdicts first; where the run has none, turn off its own traces and name problems.",
}
"""What a proxy lacks, by whether it is to look at the run's own traces."""


USUAL_SOLUTIONS = (
    "Where none is named: the column with the run's responses, else `solution`, each where it gives the answer, "
    "else the answers."
)


def option(name: str, value: object) -> list[str]:
    return [name, str(value)] if value not in (None, "") else []


def show_start(run: Run) -> None:
    st.subheader("Measure")
    kind: str = st.segmented_control(
        "What", PROXIES, default=PROXIES[0], format_func=TITLES.__getitem__, key="proxy_kind", required=True
    )
    if kind == "utility":
        arguments = choose_utility(run)
    else:
        arguments = ["proxies", run.id, "--kind", kind, *choose_problems(run, kind), *choose_proxy(run, kind)]
    st.text(cost_sentence(run, arguments))
    ready = kind == "utility" or "--problems" in arguments or "--preset" in arguments or "--correct" in arguments
    if st.button("Measure", type="primary", key="measure", disabled=not (ready and may_write())):
        st.session_state[JOB] = start_job(workspace(), arguments).id
        st.rerun()
    if not ready:
        st.caption(MISSING[kind == "first-order" and bool(st.session_state.get("own_traces"))])
    st.code(command_line(arguments), language="bash", wrap_lines=True)
    if job_id := st.session_state.get(JOB):
        watch(job_id)


@st.fragment(run_every=0.5)
@with_sentences
def watch(job_id: str) -> None:
    job = follow(job_id, "usefulness")
    if job is None:
        return
    if job.state == "done":
        st.session_state.pop(JOB, None)
        st.session_state[NEWEST] = job.result["evidence"]
        st.rerun()
    st.text(f"{job.state.capitalize()}. {job.result['message']}")


def choose_utility(run: Run) -> list[str]:
    columns = colour_columns(run)
    left, middle, right = st.columns(3)
    verdict = left.selectbox(
        "Verdicts", columns, place_of_verdicts(run, columns), key=f"verdict_{run.id}", placeholder="a column"
    )
    controls = middle.multiselect("Control for", ["length", *columns], ["length"], key=f"controls_{run.id}")
    arguments = ["utility", run.id, *option("--correct", verdict), "--control", ",".join(controls) or "none"]
    return [*arguments, *choose_models(right)]


def choose_models(place: DeltaGenerator) -> list[str]:
    models = place.multiselect(
        "Also hold against",
        ["random-model", "random-blocks"],
        key="control_models",
        help="Models that have learnt nothing: the control that tells most, and takes longest.",
    )
    return option("--controls", ",".join(models))


def place_of_verdicts(run: Run, columns: list[str]) -> int | None:
    likely = likely_verdicts(run)
    return columns.index(likely) if likely is not None and likely in columns else None


def choose_problems(run: Run, kind: str) -> list[str]:
    own = kind == "first-order" and st.toggle("On the run's own traces, right against wrong", key="own_traces")
    if own:
        columns = colour_columns(run)
        place = place_of_verdicts(run, columns)
        return option("--correct", st.selectbox("Verdicts", columns, place, key=f"own_verdict_{run.id}"))
    path, limit = st.columns([4, 1])
    usual = usual_problems(run, workspace())
    file = path.text_input(
        "Problems: a file or hub data set", key="problems", placeholder=usual, persist_state="session"
    )
    most = limit.number_input("Only the first", 1, None, None, key="problems_limit", placeholder="all")
    first, second, third = st.columns(3)
    problem = first.text_input("Column with the problems", key="problem_column", placeholder="of a usual name")
    answer = second.text_input("Column with the answers", key="answer_column", placeholder="of a usual name")
    arguments = [*option("--problems", file.strip() or usual), *option("--limit", most)]
    arguments += [*option("--problem", problem), *option("--answer", answer)]
    if kind == "steering":
        return arguments + choose_verifier(run, third)
    written = f"{run.manifest['data']['columns'].get('response') or 'solution'}, where right"
    solution = third.text_input(
        "Column with worked solutions", key="solution_column", placeholder=written, help=USUAL_SOLUTIONS
    )
    return [*arguments, *option("--solution", solution)]


def choose_verifier(run: Run, place: DeltaGenerator) -> list[str]:
    placeholder = "world" if is_demo(run) else "math, or the problem set's own"
    return option("--verifier", place.text_input("Verifier", key="verifier", placeholder=placeholder))


def choose_proxy(run: Run, kind: str) -> list[str]:
    if kind == "first-order":
        return []
    left, right = st.columns(2)
    chosen = left.multiselect(
        "Directions", range(1, run.k + 1), key=f"proxy_directions_{run.id}", placeholder="all"
    )
    arguments = [*option("--directions", ",".join(map(str, chosen))), *choose_models(right)]
    if kind == "sft":
        return arguments + choose_training(run)
    seconds, *places = st.columns(3)
    cost = seconds.number_input("Cost in seconds", 10, None, 600, key="proxy_cost", help="Fixed beforehand.")
    return [*arguments, *option("--cost", cost), *choose_rollouts(*places)]


def choose_rollouts(left: DeltaGenerator, right: DeltaGenerator) -> list[str]:
    rollouts = left.number_input("Rollouts a problem", 1, 64, 4, key="proxy_rollouts")
    tokens = right.number_input("New tokens at most", 16, 8_192, 512, key="proxy_tokens")
    return [*option("--rollouts", rollouts), *option("--max-new-tokens", tokens)]


def choose_training(run: Run) -> list[str]:
    left, middle, right = st.columns(3)
    meaning = "Each selection has as many tokens as so many examples of mean length."
    examples = left.number_input("Examples", 1, None, 64, key="sft_examples", help=meaning)
    seeds = middle.number_input("Trainings of each selection", 1, 32, 2, key="sft_seeds")
    random = right.number_input("Random selections", 3, 64, 8, key="sft_random", help="As controls.")
    arguments = [*option("--examples", examples), *option("--seeds", seeds), *option("--random", random)]
    if not st.toggle("Measure Pass@1, too", key="sft_passes", help="The loss alone takes far less time."):
        return arguments
    verifier, *places = st.columns(3)
    return [*arguments, "--passes", *choose_verifier(run, verifier), *choose_rollouts(*places)]
