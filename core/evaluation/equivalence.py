"""The child process that verifiers ask: are two formulas the same, and what does a pattern find.

It reads a JSON object a line and writes a JSON value a line. It is run as a file and knows nothing of Basiscope;
who asks kills it when it takes too long, and an alarm does when who asked is gone. Formulas are parsed by a
grammar; nothing is evaluated as code.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

MEMORY_BYTES = 4 * 2**30
ALARM_SECONDS = 120


def same_formula(answer: str, found: str) -> bool:
    """Whether two LaTeX or plain formulas are equal, by math-verify (Kydlicek 2024)."""
    from math_verify import verify

    gold = _parsed(answer)
    return bool(gold) and verify(gold, _parsed(found), timeout_seconds=None)


def _parsed(formula: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    only_boxes = LatexExtractionConfig(boxed_match_priority=0)
    return parse(rf"\boxed{{{formula}}}", extraction_config=[only_boxes], parsing_timeout=None)


def last_group(pattern: str, text: str) -> list[str | None]:
    """The group of the pattern's last match in the text, in a list; [None] where there is no match."""
    found = None
    for match in re.finditer(pattern, text):
        found = match[1]
    return [found]


QUESTIONS: dict[str, Callable[[str, str], Any]] = {"same_formula": same_formula, "last_group": last_group}


def main() -> None:
    import logging

    with suppress(ImportError, ValueError, OSError):  # no such limit on this system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401

    alarm = getattr(signal, "alarm", int)  # some systems have none
    answers, sys.stdout = sys.stdout, sys.stderr
    print("true", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        alarm(ALARM_SECONDS)
        try:
            value = QUESTIONS[asked["question"]](*asked["arguments"])
        except (Exception, RecursionError, MemoryError):
            value = None
        alarm(0)
        print(json.dumps(value), file=answers, flush=True)


if __name__ == "__main__":
    main()
