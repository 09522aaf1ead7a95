"""Model + examples -> Activations: one pooled residual-stream vector per example, in batches.

Every pooling is the mean of the block outputs over one window of tokens, so a batch needs one product per
block. Batches are padded on the right: with a causal mask no real token sees the padding, so neither mask
nor pad token is needed and the result does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.architectures import pads_right
from core.errors import BasiscopeError
from core.examples import TokenizedText
from core.model import LanguageModel, check_blocks, run_blocks

if TYPE_CHECKING:
    import torch

POOLINGS = ("mean", "mean-response", "last")
BLOCK_SCALES = ("raw", "rms")
TOKEN_BUDGET = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}

Progress = Callable[[str, int, int], None]
"""Called as progress(step, done, total)."""


def silent(_step: str, _done: int, _total: int) -> None:
    """The Progress of those who do not watch."""


@dataclass(frozen=True)
class Recipe:
    """How an example becomes a vector. The defaults are the published reasoning recipe."""

    pooling: str = "mean"
    blocks: str = "1:-1"
    block_scale: str = "raw"
    max_tokens: int = 8_000
    template: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        if self.pooling not in POOLINGS:
            raise BasiscopeError(f"Pooling {self.pooling!r} is not one of {', '.join(POOLINGS)}.")
        if self.block_scale not in BLOCK_SCALES:
            raise BasiscopeError(f"Block scale {self.block_scale!r} is not one of {', '.join(BLOCK_SCALES)}.")
        if self.max_tokens < 2:
            raise BasiscopeError(f"Max tokens {self.max_tokens}: it must be at least 2.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


PRESETS = {
    "reasoning": (10, Recipe()),
    "safety": (25, Recipe(pooling="last", blocks="middle", template="chat-prompt")),
}
"""The published recipes, each with its number of directions."""


@dataclass(frozen=True)
class Activations:
    """Pooled vectors (n, d) of n examples over `blocks`, each block a slice of `hidden_size` columns.

    They lie in shards (m, d) float16 or float32, usually mapped from disk, in no order; `example_id` (n,)
    names the rows in the order of the shards.
    """

    example_id: np.ndarray
    shards: Sequence[torch.Tensor]
    blocks: tuple[int, ...]

    @property
    def n(self) -> int:
        return len(self.example_id)

    @property
    def d(self) -> int:
        return int(self.shards[0].shape[1])

    @property
    def hidden_size(self) -> int:
        return self.d // len(self.blocks)


@dataclass(frozen=True)
class TokenWindows:
    """Token ids of all n examples and the window each is pooled over.

    `ids` (total tokens,) holds the texts one after the other, text i at `offsets[i]:offsets[i+1]`; `first`
    (n,) is the window's first token within the text, and the window ends with the text. `example_id` (n,).
    """

    ids: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    example_id: np.ndarray

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def tokens(self, i: int) -> np.ndarray:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


def window_start(tokens: TokenizedText, pooling: str) -> int | None:
    """The first pooled token, or None where the window is empty. The first token of a text is never pooled
    into a mean: the BOS token carries massive activations that would swamp it."""
    length = len(tokens.ids)
    if pooling == "last":
        return length - 1 if length else None
    start = 1 if pooling == "mean" else tokens.response_token
    if start is None:
        return None
    start = max(1, start)
    return start if start < length else None


@dataclass(frozen=True)
class PooledBatch:
    """Activations (m, d) float32 on the CPU of the examples at `positions` (m,) of the TokenWindows."""

    positions: np.ndarray
    activations: np.ndarray
    n_tokens: int


def plan_batches(lengths: np.ndarray, budget: int, may_pad: bool = True) -> list[np.ndarray]:
    """Positions sorted by length, longest first, cut into batches of at most `budget` padded tokens (or one
    example), of one length unless they may be padded. The longest come first so that memory only shrinks."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        batch = order[start : start + max(1, budget // longest)]
        batches.append(batch if may_pad else batch[lengths[batch] == longest])
        start += len(batches[-1])
    return batches


def extract(
    model: LanguageModel,
    windows: TokenWindows,
    todo: np.ndarray,
    blocks: tuple[int, ...],
    token_budget: int | None = None,
) -> Iterator[PooledBatch]:
    """Pool the examples at the positions `todo`, batch by batch. Where memory runs out the budget halves
    and the work goes on.

    Raises BasiscopeError for activations that are not finite, and where one example alone is too large.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    budget = token_budget or TOKEN_BUDGET[model.device.type]
    pooler = Pooler(model, blocks)
    may_pad = pads_right(model)
    queue = [todo[batch] for batch in plan_batches(windows.lengths[todo], budget, may_pad)]
    while queue:
        positions = queue.pop(0)
        try:
            pooled = pooler([windows.tokens(i) for i in positions], windows.first[positions])
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
            if len(positions) == 1:
                raise BasiscopeError(
                    f"Example {windows.example_id[positions[0]]} ({windows.lengths[positions[0]]:,} tokens) "
                    "does not fit into memory alone; lower --max-tokens."
                ) from error
            pooler.forget()
            clear_device_cache()
            budget = max(1, int(windows.lengths[positions].max()) * len(positions) // 2)
            rest = np.concatenate([positions, *queue])
            queue = [rest[batch] for batch in plan_batches(windows.lengths[rest], budget, may_pad)]
            continue
        finite = np.isfinite(pooled).all(axis=1)
        if not finite.all():
            bad = windows.example_id[positions[~finite]]
            raise BasiscopeError(
                f"Example {bad[0]}: its activations are not finite ({len(bad)} such in its batch). In float16 "
                "or bfloat16 this is an overflow: try --dtype float32."
            )
        yield PooledBatch(positions, pooled, int(windows.lengths[positions].sum()))


def extract_all(
    model: LanguageModel, windows: TokenWindows, todo: np.ndarray, blocks: tuple[int, ...]
) -> Activations:
    """The activations of the examples at the positions `todo`, in their order, in memory. Raises as `extract`."""
    import torch

    batches = list(extract(model, windows, todo, blocks))
    order = np.argsort(np.concatenate([batch.positions for batch in batches]), kind="stable")
    order = order[np.argsort(np.argsort(todo, kind="stable"), kind="stable")]
    rows = np.concatenate([batch.activations for batch in batches])[order]
    return Activations(windows.example_id[todo], [torch.from_numpy(rows)], blocks)


class Pooler:
    """Pools one padded batch. Keeps a float32 buffer between batches, because on the CPU large fresh
    allocations cost more than the arithmetic on them."""

    def __init__(self, model: LanguageModel, blocks: tuple[int, ...]) -> None:
        self.model = model
        self.blocks = blocks
        self._buffer: dict[torch.device, torch.Tensor] = {}

    def __call__(self, texts: Sequence[np.ndarray], first: np.ndarray, padding_side: str = "right") -> np.ndarray:
        """Token ids of m texts and their windows' starts (m,) -> activations (m, d) float32."""
        import torch

        inputs, weights = pad_batch(texts, first, padding_side, self.model.device)
        pooled: list[torch.Tensor] = []

        def receive(_block: int, hidden: torch.Tensor) -> None:
            product = torch.bmm(weights.to(hidden.device), self._float32(hidden))
            pooled.append(product[:, 0].to(self.model.device))

        run_blocks(self.model, inputs, self.blocks, receive)
        return torch.cat(pooled, dim=1).cpu().numpy()

    def forget(self) -> None:
        """Give the buffers back, which may be of a batch that was too large."""
        self._buffer.clear()

    def _float32(self, hidden: torch.Tensor) -> torch.Tensor:
        import torch

        if hidden.dtype == torch.float32:
            return hidden
        buffer = self._buffer.get(hidden.device)
        if buffer is None or buffer.numel() < hidden.numel():
            buffer = torch.empty(hidden.numel(), dtype=torch.float32, device=hidden.device)
            self._buffer[hidden.device] = buffer
        return buffer[: hidden.numel()].view(hidden.shape).copy_(hidden)


def pad_batch(
    texts: Sequence[np.ndarray], first: np.ndarray, padding_side: str, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Model inputs for m texts padded to one length, and the weights (m, 1, tokens) float32 that take the
    mean over each window. Left padding needs a mask and position ids, right padding neither. The padding is
    the text's own last token: a foreign one whose activations are not finite would spoil the product."""
    import torch

    longest = max(len(text) for text in texts)
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    weights = np.zeros((len(texts), 1, longest), dtype=np.float32)
    for row, (text, start) in enumerate(zip(texts, first, strict=True)):
        shift = longest - len(text) if padding_side == "left" else 0
        ids[row] = text[-1]
        ids[row, shift : shift + len(text)] = text
        mask[row, shift : shift + len(text)] = 1
        weights[row, 0, shift + start : shift + len(text)] = 1.0 / (len(text) - start)
    inputs = {"input_ids": torch.from_numpy(ids).to(device)}
    if padding_side == "left":
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
        inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        inputs["position_ids"] = torch.from_numpy(positions).to(device)
    return inputs, torch.from_numpy(weights).to(device)
