"""Live output of a program: sends whole lines twice a second, at most as many as the step's record keeps."""

from __future__ import annotations

import time

from longshore.tasks.implementation import Context

#: Seconds between two sends.
_PAUSE = 0.5
#: Lines that the record of a step keeps, and that one send contains at most.
_LINES = 1000
#: Characters; longer lines are split.
_LONGEST = 8192
#: Bytes of an unfinished line.
_HELD = 65536
_NAMES = {1: "stdout", 2: "stderr"}


class Live:
    """The `on_output` callback of a program; call `check` while the program runs, and `flush` after its end."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held = {1: bytearray(), 2: bytearray()}
        self._lines: list[tuple[str, str]] = []
        self._sent_at = 0.0

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
        """Send the buffered lines if the pause is over; call it regularly, also without new output."""
        if self._lines and time.monotonic() - self._sent_at >= _PAUSE:
            self._send()

    def flush(self) -> None:
        for stream, held in self._held.items():
            if held:
                self._keep(stream, [bytes(held)])
                held.clear()
        self._send()

    def _keep(self, stream: int, lines: list[bytes]) -> None:
        for line in lines[-_LINES:]:
            text = self._ctx.redact(line.decode("utf-8", "replace"))  # before the split
            cuts = range(0, max(1, len(text)), _LONGEST)
            self._lines += [(_NAMES[stream], text[cut : cut + _LONGEST]) for cut in cuts]
        del self._lines[:-_LINES]

    def _send(self) -> None:
        self._sent_at = time.monotonic()
        while self._lines:
            stream = self._lines[0][0]
            count = next((n for n, (other, _) in enumerate(self._lines) if other != stream), len(self._lines))
            self._ctx.printed(stream, [line for _, line in self._lines[:count]])
            del self._lines[:count]
