"""The step `select`: from a run, a rule and constraints to a kept selection that its manifest reproduces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.evaluation import Interval
from core.provenance import Origins, ledger, licence_conflicts
from core.selection.choose import choose
from core.selection.live import is_prefix_stable
from core.selection.measures import MOST_MEASURED, curve, summary
from core.selection.pool import (
    Constraints,
    Pool,
    Rule,
    Selection,
    as_json,
    constraints_from,
    pool_of,
    rule_from,
    show_directions,
)
from core.selection.rules import positive, utilities, utility_weights
from core.selection.screening import Screening, file_digest, screen
from core.selection.vectors import text_model_fingerprint, text_vectors
from core.versions import versions_of
from core.workspace import KeptSelection, Run, Workspace, content_hash

SELECTION_VERSION = 3
NUMBERED = r"\b(example|row) \d+"
"""What is left out of the reasons for dropping when they are counted."""
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
    request: Request,
    workspace: Workspace,
    name: str,
    replace_old: bool = False,
    progress: Progress = silent,
    again: bool = False,
) -> KeptSelection:
    """Make a selection and keep it in the workspace. Raises BasiscopeError where another has its name; `again`:
    not where it is the same, which a killed process may have left before its export."""
    workspace.check_selection_name(name, replace_old, request.as_dict() if again else None)
    run = workspace.run(request.run)
    pool = pool_of(run)
    found = find_selection(request, run, pool, workspace, progress)
    manifest, owners = describe(request, run, pool, found, screening_of(request.constraints, run, workspace))
    return workspace.save_selection(name, manifest, chosen_table(found), found.dropped, owners, replace_old, again)


def rule_of(request: Request, pool: Pool) -> Rule:
    """The rule that is asked for, its weights found where a column of verdicts is to give them."""
    if not request.weights_by:
        return request.rule
    weights = utility_weights(pool, request.rule.directions, request.weights_by)
    return replace(request.rule, weights=weights)


def stored_utilities(run_id: str, directions: tuple[int, ...], workspace: Workspace) -> tuple[Interval, ...]:
    """What the run's newest `utility` found for each signed direction, as a difference from no association. Raises
    BasiscopeError where it found nothing for one of them."""
    newest = next((one for one in workspace.intact_evidence(run_id).values() if one.proxy == "utility"), None)
    if newest is None:
        raise BasiscopeError(
            f"Weights by utility: run {run_id} has none yet; start `basiscope utility` on it, or name a column of "
            "verdicts, utility:COLUMN."
        )
    null = newest.measure(newest.primary).null
    found = {effect.direction: effect.effect for effect in newest.by(newest.primary)}
    missing = [abs(j) for j in directions if abs(j) not in found or not isfinite(found[abs(j)].value)]
    if missing:
        raise BasiscopeError(f"Weights by utility: run {run_id} has none for direction {missing[0]}.")
    ends = []
    for j in directions:
        one, sign = found[abs(j)], 1 if j > 0 else -1
        low, high = sorted((sign * (one.low - null), sign * (one.high - null)))
        ends.append(Interval(sign * (one.value - null), low, high, one.n))
    return tuple(ends)


def stored_weights(run_id: str, directions: tuple[int, ...], workspace: Workspace) -> tuple[float, ...]:
    """The run's utility of each signed direction, none below zero. Raises BasiscopeError where none is above."""
    return positive([one.value for one in stored_utilities(run_id, directions, workspace)], "right answers")


def stored_sentences(run_id: str, directions: tuple[int, ...], workspace: Workspace) -> tuple[str, ...]:
    return tuple(
        f"{show_directions((j,))}: utility {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}, {one.n:,} traces)"
        for j, one in zip(directions, stored_utilities(run_id, directions, workspace), strict=True)
    )


def utility_sentences(request: Request, pool: Pool) -> tuple[str, ...]:
    """Where a column of verdicts weighs the directions: how each goes with it, and what share it gets."""
    if not request.weights_by:
        return ()
    directions = request.rule.directions
    weights = np.array(rule_of(request, pool).weights)
    return tuple(
        f"{show_directions((j,))} goes with {request.weights_by} at r = {one.value:+.3f} ({one.low:+.3f} to "
        f"{one.high:+.3f}, {one.n:,} examples): {share:.0%} of the budget."
        for j, one, share in zip(
            directions, utilities(pool, directions, request.weights_by), weights / weights.sum(), strict=True
        )
    )


def find_selection(
    request: Request, run: Run, pool: Pool, workspace: Workspace, progress: Progress = silent
) -> Selection:
    rule, constraints = rule_of(request, pool), request.constraints
    screening = screening_of(constraints, run, workspace)
    if needs_screening(constraints) and screening is None:
        screening = screen_run(run, workspace, constraints.against, progress)
    return choose(
        pool, rule, constraints, lambda: vectors_of(run, workspace, rule.text_model, progress), screening, progress
    )


def vectors_of(
    run: Run, workspace: Workspace, model: str | None = None, progress: Progress = silent
) -> np.ndarray:
    """The vectors (n, m) of a run's texts, kept in the workspace once they are made."""
    found = workspace.text_vectors(run.id, model)
    if found is None:
        found = text_vectors(run.all_texts(), model, progress)
        workspace.save_text_vectors(run.id, model, found)
    return found


def needs_screening(constraints: Constraints) -> bool:
    return constraints.dedup != "none" or bool(constraints.against)


def screening_of(constraints: Constraints, run: Run, workspace: Workspace) -> Screening | None:
    """What a look at the run's texts, and at the held-out files where any are named, has found; None before it."""
    if not constraints.against:
        return workspace.duplicates(run.id)
    return workspace.screening(run.id, {path: file_digest(path) for path in constraints.against})


def screen_run(run: Run, workspace: Workspace, against: tuple[str, ...], progress: Progress = silent) -> Screening:
    """Look for duplicates in a run's texts and for overlaps with held-out files, and keep what is found."""
    ids = run.examples(["example_id"])["example_id"].to_numpy()
    found = screen(ids, run.all_texts(), against, progress=progress)
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
        "nested": is_prefix_stable(found.rule, found.constraints),
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
            "text_model": text_model_fingerprint(found.rule.text_model),
        },
        "measures": {name: round(float(value), 6) for name, value in _measures(pool, found).items()},
        "scores": _scores(pool, found.rows),
        "dropped": found.dropped["reason"].str.replace(NUMBERED, r"\1 N", regex=True).value_counts().to_dict(),
        "duplicates": _duplicates(screening, chosen) if screening else None,
        "overlaps": [overlap | {"chosen": overlap["example_id"] in chosen} for overlap in overlaps],
        "ledger": owners.to_dict("records"),
        "licence_conflicts": list(licence_conflicts(pool, found.rows, request.origins)),
        "notes": [*utility_sentences(request, pool), *found.notes],
        "versions": versions_of(_packages(found.rule)),
    }
    return manifest, owners


def _packages(rule: Rule) -> tuple[str, ...]:
    return (*PACKAGES, "sentence-transformers") if rule.text_model else PACKAGES


def _scores(pool: Pool, rows: np.ndarray) -> dict[str, list[float]]:
    """The chosen's scores on every direction, in order, to six digits."""
    return {f"d{j + 1}": [float(f"{value:.6g}") for value in pool.scores[rows, j]] for j in range(pool.k)}


def _duplicates(screening: Screening, chosen: set[int]) -> list[dict[str, Any]]:
    """Every example that repeats an earlier one, exactly or nearly."""
    return [
        {
            "example_id": example,
            "of": other,
            "kind": "exact" if example in screening.exact else "near",
            "chosen": example in chosen,
        }
        for example, other in sorted(screening.duplicates("near").items())
    ]


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
    again: bool = False,
) -> KeptSelection:
    """Make the selection of a manifest again. Raises BasiscopeError where anything it rests on has changed, or
    where other examples come out. again: as for `select`."""
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
    model = text_model_fingerprint(request.rule.text_model)
    if manifest["fingerprints"].get("text_model") not in (None, model):
        raise BasiscopeError(
            f"Text model {request.rule.text_model} is no longer that of the manifest's selection."
        )
    workspace.check_selection_name(name, replace_old, request.as_dict() if again else None)
    pool = pool_of(run)
    found = find_selection(request, run, pool, workspace, progress)
    if found.example_id.tolist() != chosen:
        raise BasiscopeError(
            "Another selection came out than the manifest's. It was made with "
            f"{manifest.get('versions')}; install these versions."
        )
    screening = screening_of(request.constraints, run, workspace)
    if manifest.get("duplicates") is None:
        screening = None
    elif screening is None:
        screening = screen_run(run, workspace, (), progress)
    made, owners = describe(request, run, pool, found, screening)
    return workspace.save_selection(name, made, chosen_table(found), found.dropped, owners, replace_old, again)
