"""The live model: one in a process, loaded in the background, shared by all who ask, one after the other."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.errors import BasiscopeError
from core.examples import Turns
from core.model import LanguageModel, choose_device, choose_dtype, free_memory, is_out_of_memory
from core.recovery import load_run_model
from core.steering.comparison import Comparison, Variant, compare
from core.steering.generation import Prompt, Sampling
from core.workspace import Run

SNAPSHOT_SECONDS = 0.1
ENDED = ("done", "stopped", "failed")
TOO_LITTLE_MEMORY = (
    "There is not enough memory for it: take fewer columns, fewer new tokens or a shorter prompt, or stop other "
    "work on the same device."
)


@dataclass(frozen=True)
class Question:
    """What one person asks: a prompt, after the messages `before` it, under some variants; `direction` (from 1) is
    the one to score tokens on."""

    run: Run
    prompt: str
    variants: tuple[Variant, ...]
    sampling: Sampling
    direction: int
    unit: str = "unit"
    before: Turns = ()


@dataclass
class Stream:
    """A question on its way. `state` is `waiting`, `loading`, `running`, `assessing` once the texts are written,
    or one of ENDED; `comparison` grows while it runs; `message` says why it failed. Only the worker writes it, but
    for a stop while it waits."""

    question: Question
    state: str = "waiting"
    comparison: Comparison | None = None
    message: str = ""
    since: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _begins: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_over(self) -> bool:
        return self.state in ENDED

    @property
    def was_stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Ends it at once while it waits, else before the next token."""
        with self._begins:
            self._stop.set()
            if self.state == "waiting":
                self.state = "stopped"

    def begin(self) -> bool:
        """From waiting to loading, unless it was stopped before; whether it was not."""
        with self._begins:
            if self.state == "waiting":
                self.state, self.since = "loading", time.monotonic()
            return not self.is_over

    def wait(self, seconds: float = 600) -> Stream:
        """Until it is over, for those without a page to draw."""
        end = time.monotonic() + seconds
        while not self.is_over and time.monotonic() < end:
            time.sleep(0.01)
        return self


@dataclass(frozen=True)
class LiveStatus:
    """The run whose model is loaded, the one being loaded and for how many seconds, and how many wait."""

    loaded: str | None
    loading: str | None
    seconds: float
    waiting: int
    busy: bool


def load_live_model(run: Run) -> LanguageModel:
    """A run's model for generation: on a GPU in bfloat16 where it has that, else as the run has it."""
    device = choose_device()
    return load_run_model(run, device, choose_dtype("auto", device) if device.startswith("cuda") else None)


class LiveModel:
    """Answers questions in the order they came, in a thread of its own; loads the model that a question needs,
    in place of the one before."""

    def __init__(self, load: Callable[[Run], LanguageModel] = load_live_model) -> None:
        self._load = load
        self._changed = threading.Condition()
        self._queue: deque[Stream] = deque()
        self._current: Stream | None = None
        self._model: LanguageModel | None = None
        self._key: tuple[str, ...] = ()
        self._run_id: str | None = None
        self._loading: tuple[str, float] | None = None
        self._to_unload = False
        self._thread: threading.Thread | None = None

    def ask(self, question: Question) -> Stream:
        stream = Stream(question)
        with self._changed:
            self._queue.append(stream)
            self._to_unload = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="live model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return stream

    def before(self, stream: Stream) -> int:
        """How many are answered before a stream that waits."""
        with self._changed:
            queued = [other for other in self._queue if not other.is_over or other is stream]
            place = next((i for i, other in enumerate(queued) if other is stream), 0)
            return place + (self._current is not None)

    def unload(self) -> None:
        """Free the model's memory, after the answer under way; the next question loads it again."""
        with self._changed:
            self._to_unload = True
            if self._current is None:
                self._forget()
            self._changed.notify_all()

    def status(self) -> LiveStatus:
        with self._changed:
            loading, since = self._loading or (None, time.monotonic())
            busy = self._current is not None
            waiting = sum(not stream.is_over for stream in self._queue)
            return LiveStatus(self._run_id, loading, time.monotonic() - since, waiting, busy)

    def _forget(self) -> None:
        was_loaded = self._model is not None
        self._model, self._key, self._run_id, self._to_unload = None, (), None, False
        if was_loaded:
            free_memory()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                stream = self._current = self._queue.popleft()
            failure = ""
            try:
                self._answer(stream)
            except BasiscopeError as error:
                failure = str(error)
            except Exception as error:
                traceback.print_exc()
                failure = f"Unexpected: {type(error).__name__}: {error}."
                if is_out_of_memory(error):
                    failure = TOO_LITTLE_MEMORY
            finally:
                if failure == TOO_LITTLE_MEMORY:
                    free_memory()  # for jobs on the same GPU; the error, which held it, is gone
                if failure:
                    stream.message, stream.state = failure, "failed"
                with self._changed:
                    self._current = self._loading = None
                    if self._to_unload:
                        self._forget()

    def _answer(self, stream: Stream) -> None:
        if not stream.begin():
            return
        question = stream.question
        model = self._model_of(question.run)
        stream.state, last = "running", 0.0

        def watch(step: int | None, snapshot: Callable[[], Sequence[Comparison]]) -> bool:
            nonlocal last
            if step is None:
                stream.state = "assessing"
            if step is None or time.monotonic() - last >= SNAPSHOT_SECONDS:
                (stream.comparison,), last = snapshot(), time.monotonic()
            return not stream.was_stopped

        asked = (question.sampling, question.direction, question.unit, watch)
        prompt = Prompt(question.prompt, before=question.before)
        (stream.comparison,) = compare(question.run, model, [prompt], question.variants, *asked)
        was_cut = any(response.ended == "stopped" for response in stream.comparison.responses)
        stream.state = "stopped" if was_cut else "done"

    def _model_of(self, run: Run) -> LanguageModel:
        facts = run.manifest["model"]
        key = tuple(str(facts[name]) for name in ("name", "revision", "fingerprint", "dtype"))
        if self._model is None or key != self._key:
            with self._changed:
                self._forget()
                self._loading = (run.id, time.monotonic())
            model = self._load(run)
            with self._changed:
                self._model, self._key, self._loading = model, key, None
        self._run_id = run.id
        return self._model
