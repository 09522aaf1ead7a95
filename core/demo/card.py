"""The demo model's card: what its README.md says, and the shares with intervals that it states."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """`hits` out of `n`."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else 0.0

    def wilson(self, z: float = 1.96) -> tuple[float, float]:
        """The Wilson score interval, by default at 95%; (0, 1) where n is 0."""
        if not self.n:
            return 0.0, 1.0
        middle = (self.value + z * z / (2 * self.n)) / (1 + z * z / self.n)
        spread = math.sqrt(self.value * (1 - self.value) / self.n + z * z / (4 * self.n**2))
        half = z * spread / (1 + z * z / self.n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.wilson()
        return f"{self.value:.1%} ({low:.1%} to {high:.1%}, {self.hits} of {self.n})"


def read_share(card: str) -> Share:
    """Pass@1 over all problems, from the front matter of a card."""
    found = re.search(r"^pass_at_1: \{hits: (\d+), problems: (\d+)\}$", card, flags=re.M)
    if not found:
        raise ValueError("the card has no pass_at_1")
    return Share(int(found[1]), int(found[2]))


def render(
    settings: Mapping[str, object],
    recipe: str,
    tokens: int,
    seconds: float,
    parameters: int,
    shares: Mapping[str, Share],
    processes: int = 1,
) -> str:
    """The card as Markdown with YAML front matter; `shares` is Pass@1 under "all" and each operation, `processes`
    trained together."""
    rows = "\n".join(f"| {name} | {share} |" for name, share in shares.items())
    whole = shares["all"]
    command = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
recipe: {recipe}
pass_at_1: {{hits: {whole.hits}, problems: {whole.n}}}
---
# Basiscope's demo model

A language model of {parameters:,} parameters (Llama architecture, random initialisation) that writes
step-by-step solutions to word problems of an invented world; how often they are right stands below. It
exists to show and to test Basiscope on something small whose ground truth is known; it can do nothing else.

## How it was made
`{command} -m core.demo.train` trained it on {tokens:,} tokens drawn from `core/demo/world.py`, no example
twice, in {seconds / 60:.0f} minutes. An example is the problem, a new line and the solution, between BOS and
EOS. The operations that `mix` names below were made rare on purpose, so that there is something to teach.
Many of the solutions that it learned from are careless and wrong, so it makes mistakes of that kind too.

The hash of the recipe (the world's source and these settings) is `{recipe}`.

```json
{json.dumps(settings)}
```

## Figures
Pass@1 at temperature 1 on held-out problems, all operations alike; 95% Wilson intervals.

| problems | Pass@1 |
|---|---|
{rows}
"""
