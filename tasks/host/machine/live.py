"""A program's output on its way: whole lines, told a few times a second, and never more than is kept."""

from __future__ import annotations

import time

from longshore.tasks.implementation import Context

#: Seconds between two tellings.
_PAUSE = 0.5
#: Lines that are kept of a step; of what comes in one pause, no more are sent.
_LINES = 1000
#: Characters; a line without an end is told in pieces.
_LONGEST = 8192
#: Bytes of a line that has no end yet.
_HELD = 65536
_NAMES = {1: "stdout", 2: "stderr"}


class Live:
    """Give it to a program as `said`, have `check` called while it runs, and `flush` when it has ended."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held = {1: bytearray(), 2: bytearray()}
        self._lines: list[tuple[str, str]] = []
        self._told = 0.0

    def __call__(self, stream: int, piece: bytes) -> None:
        held = self._held[stream]
        held += piece
        *lines, rest = bytes(held).split(b"\n")
        while len(rest) > _HELD:
            lines.append(rest[:_HELD])
            rest = rest[_HELD:]
        held[:] = rest
        self._keep(stream, lines)
        self.check()

    def check(self) -> None:
        """Tell what is held, if it was held for long; to be called now and then, also while nothing comes."""
        if self._lines and time.monotonic() - self._told >= _PAUSE:
            self._tell()

    def flush(self) -> None:
        for stream, held in self._held.items():
            if held:
                self._keep(stream, [bytes(held)])
                held.clear()
        self._tell()

    def _keep(self, stream: int, lines: list[bytes]) -> None:
        for line in lines[-_LINES:]:
            text = self._ctx.redact(line.decode("utf-8", "replace"))  # before it is cut
            cuts = range(0, max(1, len(text)), _LONGEST)
            self._lines += [(_NAMES[stream], text[cut : cut + _LONGEST]) for cut in cuts]
        del self._lines[:-_LINES]

    def _tell(self) -> None:
        self._told = time.monotonic()
        while self._lines:
            stream = self._lines[0][0]
            count = next((n for n, (other, _) in enumerate(self._lines) if other != stream), len(self._lines))
            self._ctx.printed(stream, [line for _, line in self._lines[:count]])
            del self._lines[:count]
