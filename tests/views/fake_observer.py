# SPDX-License-Identifier: Apache-2.0
"""An observer that says what a test wants: docs/observing.md has the interface."""
import copy
import http.server
import json
import math
import os
import queue
import socket
import socketserver
import threading

PATIENCE = 60  # seconds that nothing here takes; a guard against a hang


def end(service, cause="peer_reset", verdict="abandoned", count=1, orphaned=0.0, direction="inbound"):
    return {"service": service, "direction": direction, "cause": cause, "verdict": verdict, "count": count,
            "bytes_received": 100 * count, "bytes_sent": 200 * count, "orphaned_seconds": orphaned}


def totals(uptime, ends=(), started="2026-11-27T03:00:00.000000000Z", **others):
    stages = ("ring", "states", "metrics", "late", "missed", "rate_limit", "queue", "sink", "spool_size", "spool_age",
              "spool_write", "spool_corrupt", "readers")
    lost = dict.fromkeys(stages, 0) | others.pop("lost", {})
    return {"schema": "sockalarm.totals.v1", "version": "0.5.0", "host": {"id": "0" * 32, "name": "web-1", "region": "eu-1"},
            "time": "2026-11-27T03:18:33.123456789Z", "started_at": started, "uptime_seconds": uptime, "ends": list(ends),
            "lost": lost, "limits": [], "of_a_newer_one": True} | others


def busy_host(i):
    """For pictures: what a host has counted in the i-th second."""
    wave = [sum(int(3 + 2 * math.sin(step / 7 + phase) + (step % 11 == phase)) for step in range(i)) for phase in range(4)]
    return totals(3600 + i, [end("postgresql@15-main.service", "peer_reset", count=wave[0], orphaned=wave[0] * 0.21),
                             end("php8.2-fpm.service", "peer_fin", count=wave[1], orphaned=wave[1] * 0.11),
                             end("php8.2-fpm.service", "timeout", count=wave[2] // 9, orphaned=wave[2] * 0.05),
                             end("docker-3f1c9a7be042", "peer_reset", count=wave[3] // 3, orphaned=wave[3] * 0.01),
                             end("nginx.service", "peer_fin", "idle_close", 140 * i), end("nginx.service", "peer_reset", count=wave[2] // 20)],
                  lost={"ring": 12, "queue": 3}, spool={"bytes": 1_840_000, "pending": 2100, "oldest_seconds": 3.2, "connected": True})


def record(**fields):
    return {"schema": "sockalarm.connection_ended.v1", "event.id": "0" * 32 + "-" + "0" * 32 + "-1",
            "timestamp": "2026-11-27T03:18:33.123456789Z", "host.id": "0" * 32, "host.name": "web-1",
            "network.transport": "tcp", "network.type": "ipv4", "network.local.address": "10.0.0.1", "network.local.port": 443,
            "network.peer.address": "192.0.2.7", "network.peer.port": 50123, "process.pid": 1234,
            "process.executable.name": "nginx", "service.name": "nginx.service", "sockalarm.cause": "peer_reset",
            "sockalarm.verdict": "abandoned", "sockalarm.direction": "inbound", "sockalarm.age": 12.5,
            "sockalarm.orphaned": 2.5, "sockalarm.bytes_received": 10, "sockalarm.bytes_sent": 20, "sockalarm.unread": 0,
            "sockalarm.unsent": 0, "sockalarm.socket.cookie": "1"} | {key.replace("__", "."): value for key, value in fields.items()}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def address_string(self):
        return "test"

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/v1/totals":
            totals = self.server.observer.next_totals()
            if isinstance(totals, int):
                self.answer(totals, "text/plain", b"not now\n")
            else:
                self.answer(200, "application/json", json.dumps(totals).encode())
        elif path == "/" and self.server.observer.page is not None:
            self.answer(200, "text/html; charset=utf-8", self.server.observer.page, self.server.observer.page_headers)
        elif path == "/v1/events" and self.server.observer.readers > 0:
            self.stream()
        elif path == "/v1/events":
            self.answer(503, "text/plain", b"too many readers\n")
        else:
            self.answer(404, "text/plain", b"no such page\n")

    def answer(self, status, kind, body, headers=()):
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = queue.Queue()
        self.server.observer.streams.put(pieces)
        while isinstance(piece := pieces.get(), bytes):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if piece == "end":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _TcpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True


class FakeObserver:
    """Serves on `path`, or on a port of loopback if that is None. `page` is the body of /, `answers` are as of serve()."""

    def __init__(self, path=None, port=0, page=None, page_headers=(), answers=()):
        self.page, self.page_headers, self.readers = page, page_headers, 1
        self.streams = queue.Queue()  # of those that read /v1/events: a queue each, that takes bytes, "end" or "break off"
        self.asked = 0
        self._totals, self._lock = list(answers) or [totals(1)], threading.Lock()
        if path is not None and os.path.exists(path):
            os.unlink(path)
        self._server = _TcpServer(("127.0.0.1", port), _Handler) if path is None else _UnixServer(path, _Handler)
        self._server.observer = self
        self._connections, process = [], self._server.process_request

        def remembered(request, address):
            self._connections.append(request)
            process(request, address)
        self._server.process_request = remembered
        self.port = None if path is not None else self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def serve(self, *answers):
        """The next answers to /v1/totals, of which the last one stays; a number is a status."""
        with self._lock:
            self._totals = [copy.deepcopy(answer) for answer in answers]

    def next_totals(self):
        with self._lock:
            self.asked += 1
            return self._totals.pop(0) if len(self._totals) > 1 else self._totals[0]

    def reader(self):
        return self.streams.get(timeout=PATIENCE)

    def stop(self):
        """As a killed one: what is under way is broken off."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
