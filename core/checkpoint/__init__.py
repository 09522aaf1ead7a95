"""Take the steering away: write it in a form that other tools load, and prove that it steers there.

Adding a vector to the output of a block equals a bias of the last layer of its MLP where that layer's output is
added to the residual stream as it is. A checkpoint keeps such a bias only where the architecture has the
parameter; others drop it without an error and serve the unsteered model. So nothing is called done before it has
been loaded again and compared with the live hook on real prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from core.activations import Progress, silent
from core.checkpoint.agreement import Agreement, compare_logits, observe
from core.checkpoint.card import limits, write_card
from core.checkpoint.formats import FORMATS, RELOAD, biased, writer_for
from core.errors import BasiscopeError
from core.model import LanguageModel, free_memory
from core.steering.intervention import Directions, Steering
from core.store import described, is_disk_full, new_folder, write_json
from core.workspace import Run


def export(
    run: Run,
    load: Callable[[], LanguageModel],
    direction: int,
    strength: float,
    kind: str,
    out: Path,
    progress: Progress = silent,
) -> Agreement:
    """Write direction (from 1) at `strength`, a multiple of the unit direction, to the new folder `out`.

    `load` gives the run's model anew each time; no two are held at once, and the logits to compare lie on the
    disk of `out` meanwhile. Raises BasiscopeError where the format
    cannot carry it for this model, where `out` is there and not empty, and where the export, loaded again,
    does not steer as the live hook does; then nothing is left behind.
    """
    if kind not in FORMATS:
        raise BasiscopeError(f"Format {kind!r} is not one of {', '.join(FORMATS)}.")
    if not np.isfinite(strength) or strength == 0:
        raise BasiscopeError(f"Strength {strength:g}: there is nothing to export.")
    out = out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BasiscopeError(f"Folder {out} is there and not empty; give a new one.")
    directions = Directions.of(run)
    vectors = {block: directions.vector(direction, strength, block) for block in directions.blocks}
    progress("model", 0, 1)
    model = load()
    write = writer_for(model, vectors, kind)
    dtype = model.dtype
    is_spread = getattr(model.module, "hf_device_map", None) is not None
    rounds = kind == "checkpoint" and dtype != "float32" and not is_spread
    surgery = partial(biased, model, vectors) if rounds else None
    device = "auto" if is_spread else str(model.device)
    in_sd = directions.in_sd(direction, strength)
    card, limited = write_card(run, model, direction, strength, in_sd, kind), limits(model, kind)
    with (
        _sentences(out),
        new_folder(out) as folder,
        TemporaryDirectory(dir=folder.parent, prefix=".logits.") as kept,
    ):
        expected = observe(
            model, run, directions, Steering(((direction, strength),)), Path(kept), surgery, progress
        )
        del model, surgery
        free_memory()
        progress("write", 0, 1)
        write(folder)
        progress("reload", 0, 1)
        steered_module = RELOAD[kind](folder, load, dtype, device)
        agreement = compare_logits(expected, steered_module, dtype, progress)
        del steered_module
        if not agreement.holds:
            raise BasiscopeError(
                f"The export, loaded again, does not steer as the live hook does ({agreement}); nothing is kept. "
                "A larger strength may show more than rounding."
            )
        facts = asdict(agreement) | {"direction": direction, "strength": strength, "strength_in_sd": in_sd}
        facts |= {"format": kind, "run": run.id, "limits": limited}
        text = card + f"\n## Checked\nLoaded again and compared: {agreement}.\n"
        (folder / "README.md").write_text(text + (f"\n## Limits\n{limited}\n" if limited else ""))
        files = {path.name: described(path) for path in sorted(folder.iterdir()) if path.is_file()}
        write_json(folder / "basiscope.json", facts | {"files": files})
    return agreement


@contextmanager
def _sentences(out: Path) -> Iterator[None]:
    """Turns the OSError of a folder that cannot be written into a BasiscopeError that names it."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise BasiscopeError(f"The disk of {out} is full; free some space, or give another folder.") from error
        if isinstance(error, OSError):
            raise BasiscopeError(f"Folder {out} cannot be written ({error.strerror}); give another.") from error
        raise
