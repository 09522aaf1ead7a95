"""The intervention: a basis' directions in the outputs of the blocks, another in every row of a batch.

With x = (h - mean) / scale the centred output h of a block in the units of the basis, and V (r, hidden) the parts
of r directions in that block, not orthogonal to each other there, G = V V^T:

    add     x + sum_j strength_j v_j
    remove  x - sum_j strength_j (G^+ V x)_j v_j, of the uncentred x; strength 1 projects the span out
    clamp   x + V^T G^+ (strength_j |v_j|^2 - V x): every token's score becomes the strength

All three are h + shift + (h read) write in raw units, which is what the hooks do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.basis import Basis
from core.errors import BasiscopeError
from core.model import CACHE_ARGUMENTS, LanguageModel, block_output, cached_tokens, with_block_output

if TYPE_CHECKING:
    import torch

    from core.workspace import Run

OPERATIONS = ("add", "remove", "clamp")
UNITS = ("unit", "sd")
SCOPES = ("all", "response", "prompt", "first:N")


def both_units(strength: float, deviation: float | None) -> str:
    """A multiple of the unit direction with the same in standard deviations of its scores, where these mean
    something.

    >>> both_units(0.5, 0.25)
    '+0.5 (+2 sd)'
    """
    return f"{strength:+.3g}" + (f" ({strength / deviation:+.3g} sd)" if deviation else "")


@dataclass(frozen=True)
class Steering:
    """What is done to one row. `strengths` are pairs of a direction (from 1) and its strength, whose sign is the
    polarity: with `add` in multiples of the unit direction, with `clamp` the score that every token gets, with
    `remove` the share taken out.

    scope: `all` positions, those of the `prompt`, of the `response`, or `first:N`, the first N generated tokens.
    A response's first token is predicted at the prompt's last position, which is the prompt's.
    blocks: the blocks steered, or None for all that the basis covers
    """

    strengths: tuple[tuple[int, float], ...] = ()
    operation: str = "add"
    scope: str = "all"
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise BasiscopeError(f"Operation {self.operation!r} is not one of {', '.join(OPERATIONS)}.")
        if self.scope not in SCOPES[:3] and not re.fullmatch(r"first:[1-9]\d*", self.scope):
            raise BasiscopeError(f"Scope {self.scope!r} is not one of {', '.join(SCOPES)}, N at least 1.")
        if not np.isfinite([strength for _, strength in self.strengths]).all():
            raise BasiscopeError(f"Strength {self.strengths[0][1]}: it must be a number.")
        if self.operation != "clamp":  # a clamp to 0 is not nothing
            object.__setattr__(self, "strengths", tuple(pair for pair in self.strengths if pair[1] != 0))

    @property
    def is_baseline(self) -> bool:
        return not self.strengths

    def positions(self, prompt_tokens: int) -> tuple[float, float]:
        """The first position steered and the one after the last, for a prompt of so many tokens."""
        if self.scope == "all":
            return 0, np.inf
        if self.scope == "prompt":
            return 0, prompt_tokens
        end = np.inf if self.scope == "response" else prompt_tokens + int(self.scope.removeprefix("first:"))
        return prompt_tokens, end


@dataclass(frozen=True)
class Directions:
    """A run's basis and the blocks that it covers: what steering needs of a run."""

    basis: Basis
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, run: Run) -> Directions:
        return cls(run.basis(), tuple(run.manifest["blocks"]))

    @property
    def deviations(self) -> np.ndarray:
        """(k,) standard deviations of the scores: the second unit of strength."""
        return self.basis.singular_values.astype(np.float64) / np.sqrt(self.basis.n - 1)

    def in_unit(self, direction: int, strength: float, unit: str) -> float:
        """A strength given in `unit` as a multiple of the unit direction."""
        return float(strength * (self.deviations[direction - 1] if unit == "sd" else 1.0))

    def in_sd(self, direction: int, times: float) -> float | None:
        """A multiple of the unit direction in standard deviations of its scores; None where they do not vary."""
        deviation = float(self.deviations[direction - 1])
        return times / deviation if deviation else None

    def parts(self, directions: Sequence[int], block: int) -> np.ndarray:
        """(r, hidden) parts of directions (from 1) in a block, in the units of the basis."""
        parts = self.basis.directions.reshape(self.basis.k, len(self.blocks), -1)
        return parts[[j - 1 for j in directions], self.blocks.index(block)].astype(np.float64)

    def vector(self, direction: int, strength: float, block: int) -> np.ndarray:
        """(hidden,) float32 in raw units: what `add` adds to the output of a block."""
        scale = float(self.basis.block_scale[self.blocks.index(block)])
        with np.errstate(over="ignore"):
            return (strength * scale * self.parts([direction], block)[0]).astype(np.float32)

    def covered(self, blocks: Sequence[int]) -> tuple[int, ...]:
        """Those of `blocks` that the basis covers. Raises BasiscopeError where there is none."""
        both = tuple(block for block in self.blocks if block in blocks)
        if not both:
            raise BasiscopeError(
                f"Blocks {blocks[0]} to {blocks[-1]}: the run's directions have no part there, only in "
                f"{self.blocks[0]} to {self.blocks[-1]}."
            )
        return both


@dataclass(frozen=True)
class _Edit:
    """One row's change of a block's output h (tokens, hidden): h + shift + (h @ read) @ write.

    shift (hidden,), read (hidden, r), write (r, hidden), float64 in raw units; r is 0 for `add`.
    """

    shift: np.ndarray
    read: np.ndarray
    write: np.ndarray


def _edit(directions: Directions, steering: Steering, block: int) -> _Edit:
    place = directions.blocks.index(block)
    scale = float(directions.basis.block_scale[place])
    parts = directions.parts([j for j, _ in steering.strengths], block)
    strengths = np.array([strength for _, strength in steering.strengths])
    hidden = parts.shape[1]
    if steering.operation == "add":
        return _Edit(scale * strengths @ parts, np.zeros((hidden, 0)), np.zeros((0, hidden)))
    dual = np.linalg.pinv(parts @ parts.T) @ parts
    if steering.operation == "remove":
        return _Edit(np.zeros(hidden), dual.T, -strengths[:, None] * parts)
    mean = directions.basis.mean.reshape(len(directions.blocks), -1)[place].astype(np.float64)
    target = strengths * (parts**2).sum(axis=1) + parts @ mean / scale
    return _Edit(scale * target @ dual, -parts.T, dual)


# --- the hooks ------------------------------------------------------------------------------------------


class Columns:
    """Which rows and columns of the forward pass under way are steered: `mask` (rows, tokens, 1). Kept by hooks
    on the model and its trunk, which see the cache and the attention mask; the blocks do not. Who runs a cache
    that does not tell its length says with `at` where the pass begins."""

    def __init__(self, rows: Sequence[Steering], prompt_tokens: Sequence[int]) -> None:
        windows = [row.positions(n) for row, n in zip(rows, prompt_tokens, strict=True)]
        self.start, self.stop = np.array(windows, dtype=np.float32).T  # Apple's GPUs have no float64
        self.mask: torch.Tensor | None = None
        self.is_empty = False
        self._begins: torch.Tensor | None = None

    def at(self, begins: torch.Tensor) -> None:
        """The position (rows, 1) of the first column of every pass from now on, negative where it is padding."""
        self._begins = begins

    def look(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before they run: positions are columns, less the padding on the left of the row."""
        import torch

        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        columns, padding = torch.arange(tokens.shape[1], device=tokens.device)[None], kwargs.get("attention_mask")
        if self._begins is not None:
            position = columns + self._begins.to(tokens.device)
        else:
            position = columns + _past(kwargs)
            if padding is not None:
                if getattr(padding, "ndim", 0) != 2:
                    if self.mask is not None and self.mask.shape[1] == tokens.shape[1]:
                        return  # a trunk whose model, looked at just before, has made masks of its own
                    raise BasiscopeError("Steering a part of the positions needs a mask of (rows, tokens).")
                position = position - (padding.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        start, stop = (torch.from_numpy(edge)[:, None].to(tokens.device) for edge in (self.start, self.stop))
        self.mask = ((position >= start) & (position < stop))[..., None]
        self.is_empty = not bool(self.mask.any())


def _past(given: dict[str, Any]) -> int:
    """The number of tokens in the cache that a forward pass is given. Raises BasiscopeError where it has one that
    does not tell."""
    caches = [given[name] for name in CACHE_ARGUMENTS if given.get(name) is not None]
    tokens = [cached_tokens(cache) for cache in caches]
    if None in tokens:
        raise BasiscopeError("Steering a part of the positions needs a cache that tells how many tokens it holds.")
    return max((count for count in tokens if count is not None), default=0)


class _BlockHook:
    """Applies the rows' edits to one block's output; the tensors follow its device and data type."""

    def __init__(self, edits: Sequence[_Edit | None], columns: Columns | None) -> None:
        import torch

        some = next(edit for edit in edits if edit is not None)
        rank = max(edit.read.shape[1] for edit in edits if edit is not None)
        hidden = len(some.shift)
        shift, read = np.zeros((len(edits), 1, hidden)), np.zeros((len(edits), hidden, rank))
        write = np.zeros((len(edits), rank, hidden))
        for row, edit in enumerate(edits):
            if edit is not None:
                width = edit.read.shape[1]
                shift[row, 0], read[row, :, :width], write[row, :width] = edit.shift, edit.read, edit.write
        with np.errstate(over="ignore"):  # what is no number any more is said where the logits are seen
            arrays = [array.astype(np.float32) for array in (shift, read, write)]
        self.shift, self.read, self.write = (torch.from_numpy(array) for array in arrays)
        self.columns = columns

    def __call__(self, _block: Any, _args: Any, output: Any) -> Any:
        hidden = block_output(output)
        if len(self.shift) not in (1, len(hidden)):
            raise BasiscopeError(f"Steering for {len(self.shift)} rows met a batch of {len(hidden)}.")
        return with_block_output(output, self._edited(hidden))

    def _edited(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.columns and self.columns.is_empty:
            return hidden
        mask = self.columns.mask if self.columns else None
        if self.read.shape[2]:
            self.read, self.write = self.read.to(hidden.device), self.write.to(hidden.device)
            self.shift = self.shift.to(hidden.device)
            change = (self.shift + (hidden.float() @ self.read) @ self.write).to(hidden.dtype)
        else:
            self.shift = self.shift.to(hidden.device, hidden.dtype)
            change = self.shift
        return hidden + (change if mask is None else change * mask.to(hidden.device))


@contextmanager
def steered(
    model: LanguageModel,
    directions: Directions,
    rows: Sequence[Steering] | Steering,
    prompt_tokens: Sequence[int] | None = None,
) -> Iterator[Columns | None]:
    """Within the block the model is steered: row i of every batch as `rows[i]` says, or all rows alike. Gives the
    columns where a scope is not `all`.

    Holds with and without a KV cache, and with padding on either side where the attention mask says so.
    prompt_tokens: for each row, needed where a scope is not `all`. Nothing of the model is changed; the
    hooks are gone after the block, however it ends. Raises BasiscopeError where the model has other blocks
    than the basis, or a batch another number of rows.
    """
    steerings = [rows] if isinstance(rows, Steering) else list(rows)
    if directions.basis.mean.size != len(directions.blocks) * model.hidden_size:
        raise BasiscopeError(f"Model {model.name}: it is not the model of the run, its blocks have another size.")
    if max(directions.blocks) >= len(model.blocks):
        raise BasiscopeError(f"Model {model.name}: it is not the model of the run, it has fewer blocks.")
    for steering in steerings:
        for direction, _ in steering.strengths:
            if not 1 <= direction <= directions.basis.k:
                raise BasiscopeError(f"Direction {direction}: there are directions 1 to {directions.basis.k}.")
    scoped = any(steering.scope != "all" for steering in steerings if not steering.is_baseline)
    if scoped and prompt_tokens is None:
        raise BasiscopeError("A scope other than `all` needs the number of prompt tokens of every row.")
    columns = Columns(steerings, prompt_tokens) if scoped and prompt_tokens is not None else None
    handles: list[Any] = []
    try:
        if columns:
            for module in (model.module, model.module.get_decoder()):
                handles.append(module.register_forward_pre_hook(columns.look, with_kwargs=True))
        for block in directions.blocks:
            edits = [
                _edit(directions, steering, block)
                if not steering.is_baseline and block in (steering.blocks or directions.blocks)
                else None
                for steering in steerings
            ]
            if any(edit is not None for edit in edits):
                handles.append(model.blocks[block].register_forward_hook(_BlockHook(edits, columns)))
        yield columns
    finally:
        for handle in handles:
            handle.remove()
