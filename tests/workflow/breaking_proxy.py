"""A TCP proxy on 127.0.0.1 that breaks chosen connections off in the middle of the answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class BreakingProxy:
    """Forwards to a port; of the answers that carry `marked`, the first `times` are cut after `kept` bytes."""

    def __init__(self, port: int, marked: bytes, times: int, kept: int):
        self.port, self.marked, self.left, self.kept = port, marked, times, kept
        self.broken = 0
        self.lock = threading.Lock()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def serve(self) -> None:
        """Accept until the socket is closed."""
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client: socket.socket) -> None:
        """Forward one connection both ways."""
        server = socket.create_connection(("127.0.0.1", self.port))
        threading.Thread(target=self.forward, args=(client, server), daemon=True).start()
        sent = 0
        with suppress(OSError):
            while block := server.recv(1 << 16):
                with self.lock:
                    cut = self.left > 0 and self.marked in block
                    if cut:
                        self.left -= 1
                        self.broken += 1
                if cut:
                    client.sendall(block[: block.index(self.marked) + self.kept])
                    break
                client.sendall(block)
                sent += len(block)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    @staticmethod
    def forward(client: socket.socket, server: socket.socket) -> None:
        """Forward what the client sends."""
        with suppress(OSError):
            while block := client.recv(1 << 16):
                server.sendall(block)


@contextmanager
def breaking_proxy(port: int, marked: bytes, times: int = 2, kept: int = 10) -> Iterator[BreakingProxy]:
    """Run the proxy in a thread."""
    proxy = BreakingProxy(port, marked, times, kept)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.listening.close()
