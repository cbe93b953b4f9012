"""A proxy before the socket of the engine, which records or answers requests."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

from tests.servers import engine_url


class EngineProxy:
    """Forwards all data, except the requests that `answer` answers."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/engine.sock"
        self._engine = engine_url().removeprefix("unix://")
        self._server = socket.create_server(str(folder / "engine.sock"), family=socket.AF_UNIX, backlog=50)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def answer(self, request: bytes) -> bytes:
        """Return the response to a request, or nothing if the engine has to respond."""
        return b""

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(self._engine)
                for pair in ((client, engine, True), (engine, client, False)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError), source:
            while piece := source.recv(1 << 16):
                if asks and (answer := self.answer(piece)):
                    source.sendall(answer)
                else:
                    target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


def refusal(why: str) -> bytes:
    """The response of an engine whose action fails."""
    body = json.dumps({"message": why}).encode()
    head = ["HTTP/1.1 500 Internal Server Error", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body
