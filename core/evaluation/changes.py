"""Which problems a variant changed: became right, or wrong, with the texts of both sides."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from core.evaluation.rollouts import UNSTEERED, Rollout
from core.workspace import KeptEvaluation


@dataclass(frozen=True)
class Change:
    """One rollout of a problem whose verdict the variant turned; both texts met the same noise."""

    before: Rollout
    after: Rollout

    @property
    def became_right(self) -> bool:
        return self.after.right is True


def changes(kept: KeptEvaluation, variant: str, problems: Collection[int] | None = None) -> list[Change]:
    """Those that became right, then those that became wrong, by problem; of some problems, by id, where given. A
    rollout that could not be verified is not right."""
    rollouts = [one for one in kept.rollouts() if problems is None or one.problem_id in problems]
    before = {(one.problem_id, one.rollout): one for one in rollouts if one.variant == UNSTEERED}
    found = [
        Change(base, one)
        for one in rollouts
        if one.variant == variant
        and (base := before.get((one.problem_id, one.rollout)))
        and (one.right is True) != (base.right is True)
    ]
    return sorted(found, key=lambda change: not change.became_right)
