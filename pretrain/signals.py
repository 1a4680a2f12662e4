"""Signals that ask a run to stop: noted at once, obeyed at the end of the step."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_APART_SECONDS = 1.0
"""Signals closer together are one request: a scheduler signals every process of a job, and the
launcher and torchrun pass on to the ranks what they get themselves."""


class StopSignals:
    """While open, SIGTERM, SIGINT and SIGUSR1 only set ``received``.

    A second request changes nothing; a third ends the process at once, with earlier checkpoints
    intact.
    """

    def __init__(self) -> None:
        self.received = 0
        """1 once a signal has come."""
        self._requests, self._last = 0, -_APART_SECONDS
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _ASKING:
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = 1
        now = time.monotonic()
        if now - self._last >= _APART_SECONDS:
            self._requests, self._last = self._requests + 1, now
        if self._requests >= 3:
            os._exit(128 + number)
