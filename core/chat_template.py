"""A chat template comes with a model and is a program: what it raises is said, what does not end is stopped."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock, Thread, get_ident
from typing import TYPE_CHECKING, Any

from core.errors import BasiscopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 2.0
"""Of processor time and by the clock, for what takes a thousandth of one."""
TRIES = 3
"""A template that was stopped so often is not tried again."""
INSTEAD = "--template plain does without it"


class BrokenTemplateError(BasiscopeError):
    """The template itself is at fault, whatever the messages."""


class _StoppedError(BaseException):
    """Raised in a thread by the watch."""


_running: dict[int, tuple[float, float]] = {}
"""Thread -> when it began by the clock, and by the processor."""
_lock = Lock()
_stopped: Counter[str] = Counter()


def render_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], /, **options: Any
) -> str:
    """The tokenizer's chat template over messages; options as `apply_chat_template` takes them.

    Raises BasiscopeError with the template's own reason, BrokenTemplateError where it is no template or does not
    end.
    """
    from jinja2 import TemplateSyntaxError

    template = str(tokenizer.chat_template)
    if _stopped[template] >= TRIES:
        raise BrokenTemplateError(f"the chat template did not end within {SECONDS:g} seconds; {INSTEAD}")
    try:
        return str(_limited(lambda: tokenizer.apply_chat_template(list(messages), tokenize=False, **options)))
    except _StoppedError:
        _stopped[template] += 1
        raise BrokenTemplateError(f"the chat template did not end within {SECONDS:g} seconds; {INSTEAD}") from None
    except TemplateSyntaxError as error:
        raise BrokenTemplateError(
            f"the chat template is not one, line {error.lineno}: {error}; {INSTEAD}"
        ) from error
    except RecursionError as error:
        raise BrokenTemplateError(f"the chat template calls itself without end; {INSTEAD}") from error
    except Exception as error:  # a template may raise whatever Python does
        roles = ", ".join(str(message.get("role")) for message in messages)
        own = type(error).__module__.startswith("jinja2") or isinstance(error, TypeError)
        why = str(error) if own else f"{type(error).__name__}: {error}"
        raise BasiscopeError(
            f"the chat template refuses messages with the roles {roles} ({why}); --template plain takes them"
        ) from error


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises BasiscopeError where the chat template is broken, before any row is read. One that only refuses a
    short conversation may take others."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    try:
        render_template(tokenizer, messages)
    except BrokenTemplateError as error:
        file = Path(tokenizer.name_or_path) / "chat_template.jinja"
        where = file.name if file.is_file() else "tokenizer_config.json"
        raise BasiscopeError(f"Model {tokenizer.name_or_path}, {where}: {error}.") from error
    except BasiscopeError:
        return


def _limited(work: Callable[[], Any]) -> Any:
    """What `work` returns. After SECONDS the watch raises a _StoppedError in it."""
    _watch()
    thread = get_ident()
    with _lock:
        _running[thread] = time.monotonic(), time.process_time()
    try:
        return work()
    finally:
        with _lock:
            if _running.pop(thread, None) is None:
                _raise_in(thread, None)  # if it is still on its way, it comes too late


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """At the thread's next step in Python; None takes back what was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


@cache
def _watch() -> Thread:
    thread = Thread(target=_stop_the_slow, daemon=True)
    thread.start()
    return thread


def _stop_the_slow() -> None:
    while True:
        time.sleep(SECONDS / 10)
        clock, processor = time.monotonic(), time.process_time()
        with _lock:
            slow = [t for t, (a, b) in _running.items() if min(clock - a, processor - b) > SECONDS]
            for thread in slow:
                del _running[thread]
                _raise_in(thread, _StoppedError)
