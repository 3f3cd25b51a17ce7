#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Python, by ctypes alone: a server that computes for its clients as an event loop's tasks, and drops the work of
those that leave. The library's descriptor is one more thing for the loop to look at.

  python_server.py [PORT [kernel|epoll|poll]]      curl --max-time 1 http://127.0.0.1:PORT/

The library is found as the system finds libraries, or where SOCKALARM_C_LIBRARY says."""
import ctypes
import os
import selectors
import socket
import sys


class Options(ctypes.Structure):
    _fields_ = ([("size", ctypes.c_size_t)] +
                [(name, ctypes.c_int32) for name in ("source", "delivery", "waking", "realtime_priority", "helper_threads", "closed_check_ms")] +
                [("max_watches", ctypes.c_uint64), ("ring_bytes", ctypes.c_uint64), ("spin_for", ctypes.c_int64),
                 ("daemon_socket", ctypes.c_char_p), ("log", ctypes.c_void_p), ("log_data", ctypes.c_void_p)])


class Event(ctypes.Structure):
    _fields_ = [("what", ctypes.c_uint32), ("error", ctypes.c_int32), ("at", ctypes.c_int64), ("cookie", ctypes.c_uint64)]


class News(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_void_p), ("event", Event)]


EVENT_SHUT = 15
library = ctypes.CDLL(os.environ.get("SOCKALARM_C_LIBRARY", "libsockalarm_c.so.0"))
library.sockalarm_error_text.restype = ctypes.c_char_p


class Peer(ctypes.Structure):
    _fields_ = [("seen", ctypes.POINTER(ctypes.c_uint64))]


library.sockalarm_watch_peer.restype = Peer
for handle in ("context", "actions", "watch", "alarm"):
    getattr(library, f"sockalarm_{handle}_free").restype = None


def call(name, *arguments):
    result = getattr(library, "sockalarm_" + name)(*arguments)
    if result < 0:
        raise OSError(-result, library.sockalarm_error_text().decode())
    return result


class Handle:
    """An opaque handle, freed with the object."""

    def __init__(self, kind, make, *arguments):
        self.kind, self._as_parameter_ = kind, ctypes.c_void_p()
        call(make, *arguments, ctypes.byref(self._as_parameter_))

    def free(self):
        getattr(library, f"sockalarm_{self.kind}_free")(self._as_parameter_)


class Client:
    def __init__(self, context, connection):
        self.connection = connection
        self.watch = Handle("watch", "watch_new", context, connection.fileno())
        self.seen = library.sockalarm_watch_peer(self.watch).seen
        self.actions = Handle("actions", "actions_new")
        call("actions_add_post", self.actions, context, ctypes.c_void_p(connection.fileno()))
        self.alarm = Handle("alarm", "alarm_new", self.watch, self.actions, ctypes.c_uint32(EVENT_SHUT), ctypes.c_int64(0))

    def gone(self):  # a load of shared memory
        return self.seen[0] & EVENT_SHUT != 0

    def close(self):
        for each in (self.alarm, self.actions, self.watch):
            each.free()
        self.connection.close()


def say(text):
    print(text, flush=True)


def serve(port, source):
    options = Options(size=ctypes.sizeof(Options), source=source)
    context = Handle("context", "context_new", ctypes.byref(options))
    text = ctypes.create_string_buffer(1024)
    call("context_describe", context, text, ctypes.c_size_t(len(text)))
    say(text.value.decode())
    listener = socket.create_server(("127.0.0.1", port))
    loop = selectors.DefaultSelector()
    loop.register(listener, selectors.EVENT_READ)
    loop.register(call("context_fd", context), selectors.EVENT_READ)
    clients = {}
    say(f"listening on port {listener.getsockname()[1]}")
    while True:
        for key, _ in loop.select():
            if key.fileobj is listener:
                client = Client(context, listener.accept()[0])
                clients[client.connection.fileno()] = client
                continue
            news = News()
            while call("context_next", context, ctypes.byref(news)):
                client = clients.pop(news.tag)
                call("events_text", ctypes.c_uint32(news.event.what), text, ctypes.c_size_t(len(text)))
                say(f"request given up: {text.value.decode()}, gone: {client.gone()}")
                client.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0,
          call("source_parse", sys.argv[2].encode()) if len(sys.argv) > 2 else 0)
