"""The choices of a selection, each returned as the command-line options that say it; and the way back, from a
request to the state of the controls."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.cli.selecting import QUOTA_HELP
from core.errors import BasiscopeError
from core.selection.live import first_budgets
from core.selection.pool import RULES, Pool, parse_directions, show_directions, show_quotas
from core.selection.step import Request, stored_sentences
from core.tables import colour_columns, labels_first, one_line
from core.workspace import Run
from pages.common.session import table, workspace

WITH_DIRECTIONS = ("along", "both")
WITH_COLUMN = ("label", "quality")
SPLITS = ("equally", "by weights", "by the run's utility", "by a column of verdicts")
ORIGINS = ("source", "licence", "author", "date")
LEAST_CAP = 0.001
PINNED, DROPPED = "select_pinned", "select_dropped"
"""Session keys: example id -> reason, by run."""


def option(name: str, value: object) -> list[str]:
    return [name, str(value)] if value not in (None, "") else []


@st.cache_resource(max_entries=16, show_spinner=False)
def columns_of(folder: str, _run: Run) -> list[str]:
    """The columns to compare and colour by, those with few values first."""
    return labels_first(table(_run, "examples"), colour_columns(_run))


def origin_columns(run: Run) -> list[str]:
    return [str(name) for name in table(run, "examples").columns if name not in ("example_id", "n_tokens")]


def choose_rule(run: Run) -> list[str]:
    name: str = st.selectbox("Rule", list(RULES), index=1, format_func=RULES.__getitem__, key="rule")
    made = {"coverage": ["--coverage"], "facility": ["--representative", "facility"]}
    made |= {"medoids": ["--representative", "medoids"]}
    arguments = made.get(name, [])
    if name in WITH_DIRECTIONS:
        arguments = choose_directions(run, name)
    elif name in WITH_COLUMN:
        column = st.selectbox("Column", columns_of(str(run.folder), run), key=f"rule_column_{run.id}_{name}")
        arguments = ["--quality", column] if name == "quality" else ["--baseline", f"label:{column}"]
    elif not arguments:
        arguments = ["--baseline", name]
    if name == "text":
        model = st.text_input("Sentence model", key="text_model", placeholder="none: TF-IDF")
        arguments += option("--text-model", model.strip())
    trim = st.number_input(
        "Leave out outliers", 0.0, 0.9, 0.0, 0.01, key="trim", help="Share of the pool that lies farthest out."
    )
    arguments += option("--trim", trim or None)
    if name in ("random", "label", "medoids"):
        arguments += option("--seed", st.number_input("Seed", 0, 2**32 - 1, 0, key="select_seed") or None)
    return arguments


def choose_directions(run: Run, rule: str) -> list[str]:
    labels = run.labels()
    ends = [f"{j}{sign}" for j in range(1, run.k + 1) for sign in "+-"]

    def described(end: str) -> str:
        j = int(end[:-1])
        sides = labels[j].text.split(" : ") if j in labels else [""]
        return f"{end}  {one_line(sides[0] if end.endswith('+') else sides[-1], 40)}"

    chosen = st.multiselect("Directions", ends, ["1+"], format_func=described, key=f"ends_{run.id}")
    arguments = ["--along", ",".join(chosen)] if chosen else []
    if rule == "both":
        end = st.number_input(
            "Useful end", 0.001, 1.0, 0.2, 0.05, key="useful_end", help="Share of the pool within which to cover."
        )
        return [*arguments, "--coverage", "--useful-end", str(end)]
    if len(chosen) > 1:
        split: str = st.selectbox("Split the budget", SPLITS, key="split")
        if split == SPLITS[1]:
            arguments += option("--weights", st.text_input("Weights", key="weights", placeholder="3,1"))
        elif split == SPLITS[2]:
            arguments += ["--weights", "utility"]
            for sentence in stored_sentences(run.id, parse_directions(",".join(chosen)), workspace()):
                st.text(sentence)
        elif split == SPLITS[3]:
            column = st.selectbox(
                "Column of verdicts",
                colour_columns(run),
                key=f"utility_{run.id}",
                help="Right or wrong, as a number: directions whose scores go with it get more.",
            )
            arguments += ["--weights", f"utility:{column}"]
    floor = st.number_input("Floor (SD)", None, None, None, 0.1, key="floor", placeholder="none")
    return arguments + option("--floor", floor)


def choose_budget(run: Run, pool: Pool) -> tuple[list[str], int]:
    """(options, largest)."""
    unit: str = st.segmented_control(
        "Budget in", ["examples", "tokens"], default="examples", key="budget_in", required=True
    )
    most, reach, first = first_budgets(pool, unit)
    largest = int(st.number_input("Largest budget", 2, most, reach, key=f"largest_{unit}_{run.id}"))
    budget = st.slider(
        f"Budget in {unit}", 1, largest, min(first, largest), key=f"budget_{unit}_{run.id}_{largest}"
    )
    return ["--budget" if unit == "examples" else "--budget-tokens", str(budget)], largest


def choose_constraints(run: Run) -> list[str]:
    columns = colour_columns(run)
    arguments: list[str] = []
    with st.expander("Constraints", key="constraints"):
        quota = st.text_input(
            "Quotas", key="quota", placeholder="subject=Algebra:0.3,level=5:0.5", help=QUOTA_HELP
        )
        arguments += option("--quota", quota)
        for column in st.multiselect("No value above a share, in", columns, key=f"cap_{run.id}"):
            share = st.number_input(
                f"Most of one value of {column}", LEAST_CAP, 1.0, 0.3, 0.05, key=f"cap_{run.id}_{column}"
            )
            arguments += ["--at-most", f"{column}:{share}"]
        required = st.multiselect("Only with a value in", columns, key=f"require_{run.id}")
        arguments += [word for name in required for word in ("--require", name)]
        left, right = st.columns(2)
        low = left.number_input("Tokens, least", 0, None, None, key="min_tokens", placeholder="any")
        high = right.number_input("Tokens, most", 0, None, None, key="max_tokens", placeholder="any")
        arguments += [*option("--min-tokens", low), *option("--max-tokens", high)]
        if st.toggle("Within length strata", key="strata", help="The pool's distribution of lengths."):
            arguments.append("--within-length-strata")
        names = [named.name for named in workspace().sets(run.id)]
        sets = st.multiselect("Only from named sets", names, key=f"sets_{run.id}")
        arguments += [word for name in sets for word in ("--set", name)]
        dedup: str = st.selectbox("Remove duplicates", ["none", "exact", "near"], key="dedup")
        arguments += ["--dedup", dedup] if dedup != "none" else []
        files = st.text_area(
            "Held-out files, to flag overlaps with", key="against", height=68, placeholder="one a line"
        )
        against = [line.strip() for line in files.splitlines() if line.strip()]
        arguments += [word for path in against for word in ("--against", path)]
        if against and st.toggle("Remove what overlaps", key="drop_contaminated"):
            arguments.append("--drop-contaminated")
    for key, name in ((PINNED, "--must"), (DROPPED, "--never")):
        for example, reason in st.session_state.get(key, {}).get(run.id, {}).items():
            arguments += [name, f"{example}:{reason}"]
    return arguments


def choose_origins(run: Run) -> list[str]:
    columns = [None, *origin_columns(run)]
    arguments: list[str] = []
    with st.expander("Provenance", key="provenance"):
        left, right = st.columns(2)
        for i, name in enumerate(ORIGINS):
            place = right if i % 2 else left
            column = place.selectbox(name.capitalize(), columns, key=f"origin_{name}_{run.id}")
            arguments += option(f"--{name}", column)
        use: str = st.selectbox("Use", ["research", "commercial"], key="use")
        arguments += ["--use", use] if use != "research" else []
        no_source = "--source" not in arguments
        pay = st.number_input("A sum to pay out", 0.0, None, 0.0, key="pay", disabled=no_source)
        arguments += [] if no_source else option("--pay", pay or None)
    return arguments


def state_of(run: Run, pool: Pool, request: Request) -> dict[str, Any]:
    """Session key -> value of every control, such that the page asks for the request. Raises BasiscopeError where
    no control can say a part of it."""
    rule, wanted, origins = request.rule, request.constraints, request.origins
    named = [getattr(origins, name) for name in ORIGINS]
    if any(name is not None and name not in origin_columns(run) for name in named) or any(
        share < LEAST_CAP for _, share in wanted.caps
    ):
        raise BasiscopeError(
            f"The page has no controls for all of this selection, such as a share below {LEAST_CAP:g}; "
            "`basiscope select --from-manifest` makes it again."
        )
    split = SPLITS[3] if request.weights_by else SPLITS[1] if rule.weights else SPLITS[0]
    unit = "examples" if wanted.budget_tokens is None else "tokens"
    budget = wanted.budget_tokens if wanted.budget is None else wanted.budget
    most, reach, _ = first_budgets(pool, unit)
    largest = min(most, max(reach, budget or 1))
    state: dict[str, Any] = {
        "rule": rule.name,
        f"ends_{run.id}": [show_directions((j,)) for j in rule.directions] or ["1+"],
        "useful_end": rule.useful_end,
        "split": split,
        "weights": ",".join(str(weight) for weight in rule.weights),
        "floor": rule.floor,
        "trim": rule.trim,
        "text_model": rule.text_model or "",
        "select_seed": rule.seed,
        "budget_in": unit,
        f"largest_{unit}_{run.id}": largest,
        f"budget_{unit}_{run.id}_{largest}": min(budget or 1, largest),
        "quota": show_quotas(wanted.quotas),
        f"cap_{run.id}": [column for column, _ in wanted.caps],
        **{f"cap_{run.id}_{column}": share for column, share in wanted.caps},
        f"require_{run.id}": list(wanted.required),
        "min_tokens": wanted.min_tokens,
        "max_tokens": wanted.max_tokens,
        "strata": wanted.within_length_strata,
        f"sets_{run.id}": sets_of(run, wanted.only),
        "dedup": wanted.dedup,
        "against": "\n".join(wanted.against),
        "drop_contaminated": wanted.drop_contaminated,
        PINNED: {**st.session_state.get(PINNED, {}), run.id: dict(wanted.must)},
        DROPPED: {**st.session_state.get(DROPPED, {}), run.id: dict(wanted.never)},
        **{f"origin_{name}_{run.id}": getattr(origins, name) for name in ORIGINS},
        "use": origins.use,
        "pay": origins.total,
    }
    if request.weights_by:
        state[f"utility_{run.id}"] = request.weights_by
    if rule.name in WITH_COLUMN:
        state[f"rule_column_{run.id}_{rule.name}"] = rule.column
    return state


def sets_of(run: Run, examples: tuple[int, ...]) -> list[str]:
    """The named sets that hold these examples together. Raises BasiscopeError where there are none."""
    if not examples:
        return []
    parts = [named for named in workspace().sets(run.id) if set(named.example_id) <= set(examples)]
    if {example for named in parts for example in named.example_id} != set(examples):
        raise BasiscopeError("This selection is from named sets that are no longer there; it cannot be reopened.")
    return [named.name for named in parts]
