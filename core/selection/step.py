"""The step `select`: from a run, a rule and constraints to a kept selection that its manifest reproduces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from math import isfinite
from typing import Any

import pandas as pd

from core import __version__
from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.provenance import Origins, ledger
from core.selection.choose import choose
from core.selection.measures import MOST_MEASURED, curve, summary
from core.selection.pool import (
    NESTED,
    Constraints,
    Pool,
    Rule,
    Selection,
    as_json,
    constraints_from,
    pool_of,
    rule_from,
)
from core.selection.rules import utility_weights
from core.selection.screening import Screening, file_digest, screen
from core.workspace import KeptSelection, Run, Workspace, content_hash

SELECTION_VERSION = 1
PACKAGES = ("numpy", "pandas", "scipy", "scikit-learn", "numba", "rensa")


@dataclass(frozen=True)
class Request:
    """Everything a person asks of `select`. weights_by: a column of verdicts whose association with the scores
    weighs the directions."""

    run: str
    rule: Rule
    constraints: Constraints
    origins: Origins = field(default_factory=Origins)
    weights_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "rule": as_json(self.rule),
            "constraints": as_json(self.constraints),
            "origins": asdict(self.origins),
            "weights_by": self.weights_by,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Request:
        """Raises BasiscopeError where a part is missing."""
        try:
            return cls(
                stored["run"],
                rule_from(stored["rule"]),
                constraints_from(stored["constraints"]),
                Origins(**stored["origins"]),
                stored["weights_by"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BasiscopeError(f"The manifest is damaged or no manifest of a selection ({error}).") from error

    @property
    def name(self) -> str:
        """What a selection is called that was given no name."""
        return f"{self.rule.name}-{content_hash(self.as_dict())[:8]}"


def select(
    request: Request, workspace: Workspace, name: str, replace_old: bool = False, progress: Progress = silent
) -> KeptSelection:
    """Make a selection and keep it in the workspace. Raises BasiscopeError where another has its name."""
    workspace.check_selection_name(name, replace_old)
    run = workspace.run(request.run)
    pool = pool_of(run)
    found = find_selection(request, run, pool, workspace, progress)
    manifest, owners = describe(request, run, pool, found, screening_of(request.constraints, run, workspace))
    return workspace.save_selection(name, manifest, chosen_table(found), found.dropped, owners, replace_old)


def rule_of(request: Request, pool: Pool) -> Rule:
    """The rule that is asked for, its weights found where a column of verdicts is to give them."""
    if not request.weights_by:
        return request.rule
    weights = utility_weights(pool, request.rule.directions, request.weights_by)
    return replace(request.rule, weights=weights)


def find_selection(
    request: Request, run: Run, pool: Pool, workspace: Workspace, progress: Progress = silent
) -> Selection:
    rule, constraints = rule_of(request, pool), request.constraints
    if needs_screening(constraints) and screening_of(constraints, run, workspace) is None:
        screen_run(run, workspace, constraints.against, progress)
    screening = screening_of(constraints, run, workspace)
    return choose(pool, rule, constraints, lambda: run.texts(range(pool.n)), screening, progress)


def needs_screening(constraints: Constraints) -> bool:
    return constraints.dedup != "none" or bool(constraints.against)


def screening_of(constraints: Constraints, run: Run, workspace: Workspace) -> Screening | None:
    """What screening found, where the constraints need it and it has been done."""
    if not needs_screening(constraints):
        return None
    return workspace.screening(run.id, {path: file_digest(path) for path in constraints.against})


def screen_run(run: Run, workspace: Workspace, against: tuple[str, ...], progress: Progress = silent) -> Screening:
    """Look for duplicates in a run's texts and for overlaps with held-out files, and keep what is found."""
    ids = run.examples(["example_id"])["example_id"].to_numpy()
    found = screen(ids, run.texts(range(len(ids))), against, progress=progress)
    workspace.save_screening(run.id, found)
    return found


def chosen_table(found: Selection) -> pd.DataFrame:
    """One row per chosen example, in order."""
    return pd.DataFrame({"example_id": found.example_id, "value": found.value, "reason": list(found.reasons)})


def describe(
    request: Request, run: Run, pool: Pool, found: Selection, screening: Screening | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The manifest of a selection, the same for the same request, and its ledger."""
    owners = ledger(pool, found.rows, request.origins)
    chosen = set(found.example_id.tolist())
    overlaps = [vars(overlap) for overlap in screening.overlaps] if screening else []
    manifest = {
        "selection_version": SELECTION_VERSION,
        "request": request.as_dict(),
        "rule": as_json(found.rule),
        "title": found.rule.title,
        "nested": found.rule.name in NESTED,
        "seed": found.rule.seed,
        "budget": found.budget,
        "tokens": int(pool.lengths[found.rows].sum()),
        "pool": pool.n,
        "example_ids": found.example_id.tolist(),
        "values": [round(float(value), 9) if isfinite(value) else None for value in found.value],
        "fingerprints": {
            "run": run.id,
            "data": run.manifest["data"].get("fingerprint"),
            "model": run.manifest["model"]["fingerprint"],
            "against": screening.against if screening else {},
        },
        "measures": {name: round(float(value), 6) for name, value in _measures(pool, found).items()},
        "dropped": found.dropped["reason"].str.replace(r"\d+", "N", regex=True).value_counts().to_dict(),
        "duplicates": len(screening.duplicates("near")) if screening else None,
        "contamination": [overlap | {"chosen": overlap["example_id"] in chosen} for overlap in overlaps],
        "ledger": owners.to_dict("records"),
        "notes": list(found.notes),
        "versions": {"basiscope": __version__} | {name: version(name) for name in PACKAGES},
    }
    return manifest, owners


def _measures(pool: Pool, found: Selection) -> dict[str, float]:
    facts = summary(pool, found.rows)
    if len(found.rows) <= MOST_MEASURED:
        facts["knee"] = curve(pool, found.rows).knee
    return facts


def reproduce(
    manifest: Mapping[str, Any],
    workspace: Workspace,
    name: str,
    replace_old: bool = False,
    progress: Progress = silent,
) -> KeptSelection:
    """Make the selection of a manifest again. Raises BasiscopeError where anything it rests on has changed, or
    where other examples come out."""
    try:
        against, data = (manifest["fingerprints"][name] for name in ("against", "data"))
        chosen = list(manifest["example_ids"])
    except (KeyError, TypeError) as error:
        raise BasiscopeError(f"The manifest is damaged or no manifest of a selection ({error}).") from error
    request = Request.from_dict(manifest.get("request", {}))
    run = workspace.run(request.run)
    now = {path: file_digest(path) for path in request.constraints.against}
    if against and now != against:
        raise BasiscopeError("A held-out file is no longer what the manifest's selection was made against.")
    if run.manifest["data"].get("fingerprint") != data:
        raise BasiscopeError(f"Run {run.id} was made of other data than the manifest's selection.")
    workspace.check_selection_name(name, replace_old)
    pool = pool_of(run)
    found = find_selection(request, run, pool, workspace, progress)
    if found.example_id.tolist() != chosen:
        raise BasiscopeError(
            "Another selection came out than the manifest's. It was made with "
            f"{manifest.get('versions')}; install these versions."
        )
    made, owners = describe(request, run, pool, found, screening_of(request.constraints, run, workspace))
    return workspace.save_selection(name, made, chosen_table(found), found.dropped, owners, replace_old)
