"""The choices of a selection, each returned as the command-line options that say it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core.selection.pool import RULES
from core.tables import colour_columns, one_line
from core.workspace import Run
from pages.common.session import table, workspace

WITH_DIRECTIONS = ("along", "both")
PINNED, DROPPED = "select_pinned", "select_dropped"
"""Session keys: example id -> reason, by run."""


def option(name: str, value: object) -> list[str]:
    return [name, str(value)] if value not in (None, "", 0, 0.0) else []


def text_columns_first(run: Run) -> list[str]:
    facts = table(run, "examples")
    return sorted(colour_columns(run), key=lambda name: pd.api.types.is_numeric_dtype(facts[name]))


def choose_rule(run: Run) -> list[str]:
    labels = run.labels()
    name: str = st.selectbox("Rule", list(RULES), index=1, format_func=RULES.__getitem__, key="rule")
    made = {"coverage": ["--coverage"], "facility": ["--representative", "facility"]}
    made |= {"medoids": ["--representative", "medoids"]}
    arguments = made.get(name, [])
    if name in WITH_DIRECTIONS:
        ends = [f"{j}{sign}" for j in range(1, run.k + 1) for sign in "+-"]

        def described(end: str) -> str:
            j = int(end[:-1])
            sides = labels[j].text.split(" : ") if j in labels else [""]
            return f"{end}  {one_line(sides[0] if end.endswith('+') else sides[-1], 40)}"

        chosen = st.multiselect("Directions", ends, ["1+"], format_func=described, key=f"ends_{run.id}")
        arguments = ["--along", ",".join(chosen)] if chosen else []
        if name == "both":
            arguments += ["--coverage", "--useful-end", str(st.slider("Useful end", 0.05, 1.0, 0.2, key="end"))]
        elif len(chosen) > 1:
            arguments += option("--weights", st.text_input("Weights", key="weights", placeholder="equal; 3,1"))
        if name == "along":
            arguments += option("--floor", st.number_input("Floor (SD)", -5.0, 5.0, 0.0, 0.1, key="floor"))
    elif name in ("label", "quality"):
        column = st.selectbox("Column", text_columns_first(run), key=f"rule_column_{run.id}_{name}")
        arguments = ["--quality", column] if name == "quality" else ["--baseline", f"label:{column}"]
    elif not arguments:
        arguments = ["--baseline", name]
    if name in ("coverage", "both", "facility", "medoids", "quality"):
        trim = st.slider("Leave out outliers", 0.0, 0.2, 0.0, 0.005, key="trim", help="Share of the pool.")
        arguments += option("--trim", trim)
    if name in ("random", "label", "medoids", "text"):
        arguments += option("--seed", st.number_input("Seed", 0, None, 0, key="select_seed"))
    return arguments


def choose_budget(run: Run) -> tuple[int, int]:
    """(budget, largest)."""
    n = int(run.manifest["n"])
    largest = int(
        st.number_input("Largest budget", 2, n, min(n, 1_000 if n <= 20_000 else 500), key=f"largest_{run.id}")
    )
    budget = st.slider("Budget in examples", 1, largest, min(200, largest), key=f"budget_{run.id}_{largest}")
    return budget, largest


def choose_constraints(run: Run) -> list[str]:
    columns = colour_columns(run)
    arguments: list[str] = []
    with st.expander("Constraints"):
        quota = st.text_input(
            "Quotas", key="quota", placeholder="subject=Algebra:0.3,level=5:0.5", help="column=value:share, ..."
        )
        arguments += option("--quota", quota)
        left, right = st.columns(2)
        column = left.selectbox("No value above", [None, *columns], key=f"cap_{run.id}", placeholder="column")
        share = right.number_input("its share", 0.01, 1.0, 0.3, 0.05, key="cap_share")
        arguments += ["--at-most", f"{column}:{share}"] if column else []
        required = st.multiselect("Only with a value in", columns, key=f"require_{run.id}")
        arguments += [word for name in required for word in ("--require", name)]
        low = left.number_input("Tokens, least", 0, None, 0, key="min_tokens")
        high = right.number_input("Tokens, most", 0, None, 0, key="max_tokens", help="0: no limit.")
        arguments += [*option("--min-tokens", low), *option("--max-tokens", high)]
        if st.toggle("Within length strata", key="strata", help="The pool's distribution of lengths."):
            arguments.append("--within-length-strata")
        names = [named.name for named in workspace().sets(run.id)]
        sets = st.multiselect("Only from named sets", names, key=f"sets_{run.id}")
        arguments += [word for name in sets for word in ("--set", name)]
        dedup: str = st.selectbox("Remove duplicates", ["none", "exact", "near"], key="dedup")
        arguments += ["--dedup", dedup] if dedup != "none" else []
        against = st.text_input("Held-out file, to flag overlaps with", key="against").strip()
        arguments += option("--against", against)
        if against and st.toggle("Remove what overlaps", key="drop_contaminated"):
            arguments.append("--drop-contaminated")
    for key, name in ((PINNED, "--must"), (DROPPED, "--never")):
        for example, reason in st.session_state.get(key, {}).get(run.id, {}).items():
            arguments += [name, f"{example}:{reason}"]
    return arguments


def choose_origins(run: Run) -> list[str]:
    columns = [None, *[name for name in table(run, "examples").columns if name not in ("example_id", "n_tokens")]]
    arguments: list[str] = []
    with st.expander("Provenance"):
        left, right = st.columns(2)
        for i, name in enumerate(("source", "licence", "author", "date")):
            place = right if i % 2 else left
            column = place.selectbox(name.capitalize(), columns, key=f"origin_{name}_{run.id}")
            arguments += option(f"--{name}", column)
        use: str = right.selectbox("Use", ["research", "commercial"], key="use")
        arguments += ["--use", use] if use != "research" else []
        arguments += option("--pay", left.number_input("A sum to pay out", 0.0, None, 0.0, key="pay"))
    return arguments
