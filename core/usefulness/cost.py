"""What a measurement will cost, before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.usefulness.controls import MODEL_TRACES
from core.usefulness.sft import SftRequest
from core.usefulness.steering import SHARE_OF_COST
from core.usefulness.utility import MODEL_DRAWS
from core.workspace import Run

MOST_TOKENS = ("--max-new-tokens", 512)
FORWARDS = 3
"""A forward and a backward pass, in forward passes."""


def cost_sentence(run: Run, arguments: Sequence[str]) -> str:
    """What a command line will take, by the rate at which the run's examples were read where it counts texts."""
    given = dict(zip(arguments, [*arguments[1:], ""], strict=True))
    models = tuple(name for name in given.get("--controls", "").split(",") if name)
    if arguments[0] == "utility":
        if not models:
            return "Seconds: no model is loaded."
        return _about(run, MODEL_DRAWS * len(models) * min(MODEL_TRACES, int(run.manifest["n"])), 1)
    if given.get("--kind") == "first-order":
        if "--correct" in given:
            return _about(run, int(run.manifest["n"]), FORWARDS)
        return _about(run, int(given["--limit"]) if "--limit" in given else None, FORWARDS)
    if given.get("--kind") == "sft":
        named = given.get("--directions", "all")
        directions = tuple(map(int, named.split(","))) if named != "all" else tuple(range(1, run.k + 1))
        examples, random, seeds = (
            int(given.get(name, usual)) for name, usual in (("--examples", 64), ("--random", 8), ("--seeds", 2))
        )
        asked = SftRequest(directions, examples, random, seeds, models=models)
        trained = _about(run, asked.trainings * asked.examples, FORWARDS + 1)
        chosen = f" Random models: {_about(run, len(models) * int(run.manifest['n']), 1)}" if models else ""
        said = f"{asked.trainings} trainings, the controls' among them. {trained}{chosen}"
        return f"{said} {_measuring(run, asked.trainings + 1, given, '--passes' in arguments)}"
    part = (
        f" Recovering the directions of random models is part of it, up to {SHARE_OF_COST:.0%}, but each reads "
        "its first texts in any case."
    )
    return (
        f"About {float(given.get('--cost', 600)):,.0f} seconds at most after the model is loaded: the texts of "
        "one problem are written to learn the pace, whatever they take; after them no batch is begun that would "
        "likely end later, and the arms are compared on the problems that all were through with."
        + (part if models else "")
    )


def _measuring(run: Run, times: int, given: Mapping[str, str], is_passed: bool) -> str:
    """What the losses and texts take by which `times` models are measured: each trained one, and as it was."""
    n, r, tokens = (
        int(given.get(name, usual)) for name, usual in (("--limit", 0), ("--rollouts", 4), MOST_TOKENS)
    )
    each = _seconds_each(run)
    if each is None:
        return "Measuring each on the problems comes on top."
    many = f"{n:,} problems" if n else "each problem"
    said = f"Measuring the loss on {many} after each adds about {times * (n or 1) * each:,.2g} seconds."
    if not is_passed:
        return said
    texts = times * r * (n or 1)
    least = texts * tokens / float(run.manifest["steps"]["activations"]["tokens_per_second"])
    return (
        f"{said} Pass@1 adds {texts:,} texts{'' if n else ' for each problem'} of at most {tokens:,} tokens, "
        f"{least:,.0f} seconds if all were as long and as fast as reading; writing is slower."
    )


def _seconds_each(run: Run) -> float | None:
    """Of reading a text as long as the run's own, by the rate at which these were; None where it is not known."""
    rate = run.manifest["steps"].get("activations", {}).get("tokens_per_second")
    tokens = run.manifest["data"].get("tokens")
    return tokens / int(run.manifest["n"]) / rate if rate and tokens else None


def _about(run: Run, texts: int | None, passes: int) -> str:
    """So many texts, as long as the run's own, so many times through the model."""
    each = _seconds_each(run)
    if each is None:
        return "How long it takes is not known: the run does not say how fast it was read."
    if texts is None:
        return f"About {passes * each:.2g} seconds a solution, and loading the model."
    return f"About {texts * passes * each:,.0f} seconds for {texts:,} texts, and loading the model."
