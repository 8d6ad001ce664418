"""A TCP proxy in front of PostgreSQL that fails on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

_BATCH = b"track_token_usage_batch"
_EVENT = b'"tenant_id"'


class Proxy:
    """Listens on 127.0.0.1 and passes to a Unix socket, unless it is told otherwise.

    `drop_batches` is the number of coming batches that never arrive; `drop_answers` of those whose
    answer is swallowed after their commit; either cuts the connection. `silent` accepts and never
    passes anything on, `swallowing` only no batches; `refusing` cuts at once. `renamed` is a text
    on the way to the server and another one of its length to send instead. `prepared` counts the
    statements that were prepared under a name.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self.drop_batches = 0
        self.drop_answers = 0
        self.dropped = 0
        self.on_drop: Callable[[], object] = bool
        self.silent = False
        self.swallowing = False
        self.refusing = False
        self.renamed = b"", b""
        self.prepared = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database} sslmode=disable"

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            links, self.links = self.links, set()
        for link in links:
            _close(link)

    def close(self) -> None:
        _close(self._listener)
        self._thread.join(5)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _close(client)
                continue
            with self._lock:
                self.links.add(client)
            if self.silent:
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                _close(server)
                _close(client)
                continue
            with self._lock:
                self.links.add(server)
            doomed = threading.Event()
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass, args=(source, sink, up, doomed), daemon=True
                ).start()

    def _pass(
        self, source: socket.socket, sink: socket.socket, up: bool, doomed: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            tail = b""
            while data := source.recv(65536):
                if self.silent:
                    continue
                if up and self.renamed[0]:
                    data = data.replace(*self.renamed)
                # A message that prepares a statement under a name, and is no batch.
                is_prepared = up and data[:1] == b"P" and data[5:6] > b"\0"
                self.prepared += is_prepared
                if up and not is_prepared:
                    tail = (tail + data)[-200_000:]
                    if self.swallowing and _BATCH in tail and _EVENT in tail:
                        continue
                    if self.drop_batches and _BATCH in tail and _EVENT in tail:
                        self.drop_batches -= 1
                        break
                    if self.drop_answers and _BATCH in tail and _EVENT in tail:
                        self.drop_answers -= 1
                        doomed.set()
                        tail = b""
                elif doomed.is_set():
                    self.on_drop()  # the statement is committed: this data says so
                    self.dropped += 1
                    break
                sink.sendall(data)
        _close(source)
        _close(sink)


def _close(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()


def socket_path(host: str) -> str:
    """Return the Unix socket's path in the folder that libpq calls host."""
    return str(next(Path(host).glob(".s.PGSQL.*[0-9]")))
