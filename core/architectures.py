"""What a model can do, checked on the model itself and not assumed: libraries rename arguments, and models ignore
masks. A check costs a few passes over some tokens, is made once for a model, the versions that run it and the
device, and its outcome is kept in the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from core.errors import BasiscopeError
from core.model import LanguageModel, embedding_rows, run_blocks

if TYPE_CHECKING:
    import torch

CHECK_VERSION = 3
DECIDING = (
    *("torch", "transformers", "accelerate", "kernels", "flash-attn"),
    *("causal-conv1d", "mamba-ssm", "flash-linear-attention"),
)
"""The packages whose versions, or absence, decide which code computes a model."""
LENGTHS = (7, 4, 2)
"""Tokens of the texts that a model is checked on: of unequal length, so that a batch needs padding."""
_KNOWN: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def remembered(model: LanguageModel, question: str, ask: Callable[[LanguageModel], Any]) -> Any:
    """What `ask(model)` answers (as JSON has it), asked once for a loaded model, and once on this machine for the
    same files, versions, device and data type."""
    known = _KNOWN.setdefault(model.module, {})
    if question not in known:
        known[question] = _kept(model, question, ask) if model.fingerprint else ask(model)
    return known[question]


def _kept(model: LanguageModel, question: str, ask: Callable[[LanguageModel], Any]) -> Any:
    from core.store import read_json, write_json
    from core.workspace import content_hash

    who = {"model": model.fingerprint, "dtype": model.dtype, "device": model.device.type, "check": CHECK_VERSION}
    who["attention"] = getattr(model.module.config, "_attn_implementation", None)
    versions = {name: _version(name) for name in DECIDING}
    path = _folder() / f"{content_hash(who | versions | {'question': question})}.json"
    try:
        return read_json(path)["answer"]
    except (BasiscopeError, OSError, KeyError, TypeError):
        answer = ask(model)
    with suppress(OSError, BasiscopeError):  # a full disk, or one that may not be written: asked again next time
        write_json(path, {**who, **versions, "question": question, "answer": answer})
    return answer


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


@cache
def _folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("basiscope") / "checks"


def some_tokens(model: LanguageModel, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Texts of these lengths, of tokens that mean nothing special to the model; the same for the same model."""
    config, rows = model.module.config, embedding_rows(model.module)
    special = {
        number
        for one in (config, config.get_text_config())
        for name, value in one.to_dict().items()
        if name.endswith(("_token_id", "_token_index"))
        for number in (value if isinstance(value, list) else [value])
    }
    rng = np.random.default_rng(0)
    plain = [i for i in rng.permutation(min(rows, 50_000)).tolist() if i not in special] or [0]
    return [tuple(np.resize(plain[17 * place :], length).tolist()) for place, length in enumerate(lengths)]


def tolerance(model: LanguageModel) -> float:
    """How far two ways of computing the same may lie apart, as a share of its spread: in float32, where rounding
    adds up to some 1e-5, a thousandth; in 16 bits five times what a row changes by beside another as long."""
    return 1e-3 if model.dtype == "float32" else float(remembered(model, "rounding", _rounding))


def _rounding(model: LanguageModel) -> float:
    text, other = some_tokens(model, LENGTHS[:1] * 2)
    alone = _outputs(model, [text])[:, 0]
    off = _apart(_outputs(model, [text, other])[:, 0], alone)
    return float((5 * off.max()).clamp(0.01, 0.1))


def pads_right(model: LanguageModel) -> bool:
    """Whether a row padded on its right, without a mask, equals the row alone in the output of every block; else
    only rows of one length go into a batch. So reads whoever pools, scores or takes losses.

    Raises BasiscopeError where tokens attend to later ones, or a block's output is not one stream of vectors.
    """
    answer = remembered(model, "pads-right", _pads_right)
    if answer == "looks ahead":
        raise BasiscopeError(
            f"Model {model.name} ({model.module.config.model_type}): what it makes of a token depends on later "
            "ones; Basiscope needs a decoder-only model."
        )
    return bool(answer == "yes")


def _pads_right(model: LanguageModel) -> str:
    texts = some_tokens(model, LENGTHS)
    alone = [_outputs(model, [text])[:, 0] for text in texts]
    longest = max(LENGTHS)
    padded = _outputs(model, [[*text, *[text[-1]] * (longest - len(text))] for text in texts])
    if all(is_same(padded[:, row, : len(text)], alone[row], model) for row, text in enumerate(texts)):
        return "yes"
    begun = _outputs(model, [texts[0][:-1]])[:, 0]
    return "only equal lengths" if is_same(alone[0][:, :-1], begun, model) else "looks ahead"


def _outputs(model: LanguageModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(blocks, rows, tokens, hidden) float32 on the CPU. Raises BasiscopeError where a block gives what is not."""
    import torch

    found: list[torch.Tensor] = []

    def receive(block: int, hidden: torch.Tensor) -> None:
        if hidden.shape != (len(rows), len(rows[0]), model.hidden_size):
            raise BasiscopeError(
                f"Model {model.name} ({model.module.config.model_type}): block {block} gives "
                f"{tuple(hidden.shape)}, not one vector of {model.hidden_size} for each token; Basiscope cannot "
                "read several streams."
            )
        found.append(hidden.float().cpu())

    ids = torch.tensor([list(row) for row in rows], device=model.device)
    run_blocks(model, {"input_ids": ids}, tuple(range(len(model.blocks))), receive)
    return torch.stack(found)


def is_same(found: torch.Tensor, expected: torch.Tensor, model: LanguageModel) -> bool:
    """Whether all rows (rows, ...) are what they should be, but for rounding."""
    return bool((_apart(found, expected) <= tolerance(model)).all())


def _apart(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """(rows,) root mean square of the difference, as a share of the spread of what is expected."""
    off = (found - expected).square().flatten(1).mean(dim=1).sqrt()
    return off / expected.flatten(1).std(dim=1).clamp(min=1e-12)
