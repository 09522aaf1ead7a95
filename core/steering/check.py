"""Whether a model that is steered writes what it should: with a cache and padding as without, at the positions of
every scope, as blocks do whose own arithmetic is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.architectures import LENGTHS, is_same, pads_right, remembered, some_tokens
from core.basis import Basis
from core.errors import BasiscopeError
from core.model import LanguageModel, block_output, is_out_of_memory, named_options, run_blocks, with_block_output
from core.steering.intervention import Directions, Steering, steered

if TYPE_CHECKING:
    import torch

    from core.steering.generation import Row

NEW_TOKENS = 2
CHECKED_SCOPES = ("response", "prompt", "first:1")


@dataclass(frozen=True)
class Abilities:
    """cache: a step with the cache equals the whole text read again, in batches, too
    padding: a row padded on the left equals the row alone"""

    cache: bool = True
    padding: bool = True

    def notes(self, name: str) -> tuple[str, ...]:
        """What is done the slow way, in words."""
        reasons = []
        if not self.cache:
            reasons.append(
                f"Model {name}: with its cache it writes other texts than without, so every token reads the whole "
                "text again, which is slower."
            )
        if not self.padding:
            reasons.append(
                f"Model {name}: padding changes what it writes, so only prompts of one length share a batch."
            )
        return tuple(reasons)


def abilities(model: LanguageModel) -> Abilities:
    """What generation may use of a model, found by trying: steered at the positions of three scopes in one padded
    batch with a cache, then less of that. The truth are rows alone, without cache and hooks, the blocks' own
    `forward` changed.

    Raises BasiscopeError where not even a row alone, without a cache, is steered right, and as `pads_right` does.
    """
    pads_right(model)
    answer = remembered(model, "generates", _abilities)
    if answer is None:
        raise BasiscopeError(
            f"Model {model.name} ({model.module.config.model_type}): what is added to its blocks' outputs does "
            "not arrive as it should, so it cannot be steered. Another version of transformers may mend that."
        )
    return Abilities(**answer)


def notes_of(model: LanguageModel, name: str) -> tuple[str, ...]:
    """What is to be known of a model that generates: how it was loaded, and what is done the slow way."""
    return (*model.notes, *abilities(model).notes(name))


def _abilities(model: LanguageModel) -> dict[str, bool] | None:
    directions, rows, more = _trial(model)
    truth = [_changed(model, directions, row, ids) for row, ids in zip(rows, more, strict=True)]
    for able in (Abilities(), Abilities(padding=False), Abilities(cache=False), Abilities(False, False)):
        if _holds(model, directions, rows, more, truth, able):
            return asdict(able)
    return None


def _trial(model: LanguageModel) -> tuple[Directions, list[Row], list[tuple[int, ...]]]:
    """A random direction over the first and a middle block, as long as their outputs there, and three rows steered
    along it in three scopes, each with the tokens that it goes on with."""
    from core.steering.generation import Row

    blocks = tuple(dict.fromkeys((0, len(model.blocks) // 2)))
    texts = some_tokens(model, [length + NEW_TOKENS for length in LENGTHS])
    scale = _sizes(model, texts[0], blocks)
    d = len(blocks) * model.hidden_size
    vector = np.random.default_rng(0).standard_normal((1, d)).astype(np.float32)
    basis = Basis(
        vector / np.float32(np.sqrt(model.hidden_size)),
        np.zeros(d, np.float32),
        np.ones(1, np.float32),
        scale,
        1.0,
        2,
        np.zeros(1),
    )
    ways = [Steering(((1, 1.0),), scope=scope) for scope in CHECKED_SCOPES]
    rows = [Row(text[:-NEW_TOKENS], way) for text, way in zip(texts, ways, strict=True)]
    return Directions(basis, blocks), rows, [text[-NEW_TOKENS:] for text in texts]


def _sizes(model: LanguageModel, ids: Sequence[int], blocks: tuple[int, ...]) -> np.ndarray:
    """The typical length of the blocks' outputs, (blocks,) float32."""
    import torch

    found: list[float] = []

    def receive(_block: int, hidden: torch.Tensor) -> None:
        found.append(float(hidden.float().norm(dim=-1).median()))

    run_blocks(model, {"input_ids": torch.tensor([list(ids)], device=model.device)}, blocks, receive)
    return np.array(found, np.float32)


def _holds(
    model: LanguageModel,
    directions: Directions,
    rows: Sequence[Row],
    more: Sequence[tuple[int, ...]],
    truth: Sequence[torch.Tensor],
    able: Abilities,
) -> bool:
    places = list(range(len(rows)))
    batches = [places] if able.padding else [[i, i] for i in places]  # a cache may hold for one row alone
    try:
        for batch in batches:
            found = _steps(model, directions, [rows[i] for i in batch], [more[i] for i in batch], able.cache)
            if not all(is_same(found[place], truth[i], model) for place, i in enumerate(batch)):
                return False
    except Exception as error:  # whatever a model says of inputs that it does not take
        if is_out_of_memory(error):
            raise
        return False
    return True


def _steps(
    model: LanguageModel,
    directions: Directions,
    rows: Sequence[Row],
    more: Sequence[tuple[int, ...]],
    use_cache: bool,
) -> torch.Tensor:
    """(rows, NEW_TOKENS + 1, vocabulary) logits as generation sees them."""
    import torch

    from core.steering.generation import Trunk

    trunk, found = Trunk(model, [row.prompt for row in rows], use_cache), []
    ways, lengths = [row.steering for row in rows], [len(row.prompt) for row in rows]
    with torch.inference_mode(), steered(model, directions, ways, lengths) as columns:
        for tokens in (*zip(*more, strict=True), None):
            if columns is not None:
                columns.at(trunk.begins)
            found.append(trunk.logits().cpu())
            if tokens is not None:
                trunk.append(torch.tensor(tokens))
    if use_cache and not trunk.use_cache:
        raise BasiscopeError("It gave no cache back.")
    return torch.stack(found, dim=1)


def _changed(model: LanguageModel, directions: Directions, row: Row, more: tuple[int, ...]) -> torch.Tensor:
    """(NEW_TOKENS + 1, vocabulary) logits of one row read as a whole, its blocks' `forward` replaced."""
    import torch

    ids = torch.tensor([[*row.prompt, *more]], device=model.device)
    start, stop = row.steering.positions(len(row.prompt))
    places = torch.arange(ids.shape[1], device=model.device)
    mask = ((places >= start) & (places < stop)).float()[:, None]
    with torch.inference_mode(), _replaced(model, directions, row.steering, mask):
        logits = model.module(input_ids=ids, **named_options(model.module, use_cache=False)).logits
    return logits[0, len(row.prompt) - 1 :].float().cpu()


@contextmanager
def _replaced(
    model: LanguageModel, directions: Directions, steering: Steering, mask: torch.Tensor
) -> Iterator[None]:
    """Blocks that add the vectors where `mask` (tokens, 1) is 1, by their own `forward`."""
    import torch

    def wrapped(forward: Any, vector: torch.Tensor) -> Any:
        def changed(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            hidden = block_output(output)
            shift = mask.to(hidden.device) * vector.to(hidden.device)
            return with_block_output(output, hidden + shift.to(hidden.dtype))

        return changed

    before = {block: vars(model.blocks[block]).get("forward") for block in directions.blocks}
    try:
        for block in directions.blocks:
            ((direction, strength),) = steering.strengths
            vector = torch.from_numpy(directions.vector(direction, strength, block))
            model.blocks[block].forward = wrapped(model.blocks[block].forward, vector)
        yield
    finally:
        for block, forward in before.items():
            del model.blocks[block].forward
            if forward is not None:
                model.blocks[block].forward = forward
