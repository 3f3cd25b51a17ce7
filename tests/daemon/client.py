#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A client of sockalarmd, from docs/protocol.md and bpf/sockalarm_abi.h alone: client.py SOCKET

Hands over two connections of its own, arms them, lets their peers leave, and sees both: one in the ring, the other by a
signal of the kernel. Says what it does not find as it should be, and exits with 1 then.
"""
import ctypes
import mmap
import os
import platform
import select
import signal
import socket
import struct
import sys

HELLO, WATCH, UNWATCH, MISSED = 1, 4, 5, 8
WELCOME, GIVE_TABLE, GIVE_RING, GIVE_INTRODUCTION, REPLY, COUNT = 0x81, 0x82, 0x83, 0x84, 0x85, 0x87
FIN, SHUT, ARMED, DELIVERED = 1, 15, 1, 4
SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
SO_COOKIE, BPF_PROG_TEST_RUN = 57, 10
PATIENCE_S = 20


def check(holds, what):
    if not holds:
        sys.exit("client.py: " + what)


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        self.socket.send(struct.pack("=IIIHHIIII", HELLO, 7, 0x4D4C4153, 1, 1, 64, mmap.PAGESIZE, 0, 0))
        frame, _ = self.receive(WELCOME, 7)
        _, _, version, abi, slots, ring_bytes, resumed, task_work = struct.unpack("=8I", frame)
        check((version, abi, resumed) == (1, 1, 0), f"a welcome to version {version}, layout {abi}, resumed {resumed}")
        table, ring = self.receive(GIVE_TABLE, 7)[1], self.receive(GIVE_RING, 7)[1]
        self.introduction = self.receive(GIVE_INTRODUCTION, 7)[1] if task_work else None
        self.table = memoryview(mmap.mmap(table, slots * 64))
        self.consumer = memoryview(mmap.mmap(ring, mmap.PAGESIZE)).cast("Q")
        self.produced = memoryview(
            mmap.mmap(ring, mmap.PAGESIZE + 2 * ring_bytes, prot=mmap.PROT_READ, offset=mmap.PAGESIZE))
        self.mask = ring_bytes - 1
        self.ring = select.epoll()
        self.ring.register(ring, select.EPOLLIN)

    def receive(self, kind, number):
        frame, fds, flags, _ = socket.recv_fds(self.socket, 4096, 1)
        check(struct.unpack_from("=II", frame) == (kind, number) and flags & socket.MSG_CTRUNC == 0, f"no frame {kind:#x}")
        return frame, (fds[0] if fds else None)

    # The second number of what it says; None: the kernel has no task work.
    def introduce_thread(self):
        if self.introduction is None:
            return None
        answer = ctypes.create_string_buffer(8)
        request = struct.pack("=I36xIIQQ", self.introduction, 8, 0, ctypes.addressof(answer), 0)
        done = ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, BPF_PROG_TEST_RUN, request, len(request))
        check(done == 0, "introduction: " + os.strerror(ctypes.get_errno()))
        return struct.unpack("=II", answer.raw)[1]

    def words(self, slot):
        return self.table[slot * 64:(slot + 1) * 64].cast("Q")

    def watch(self, slot, connection):
        cookie = struct.unpack("=Q", connection.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
        for at, value in enumerate((1 << 32, 1 << 32, 0, 0, cookie, 0, 0, 0)):
            self.words(slot)[at] = value
        frame = struct.pack("=IIQII", WATCH, slot, cookie, slot, 1)
        socket.send_fds(self.socket, [frame], [connection.fileno()])
        answer, _ = self.receive(REPLY, slot)
        error, length = struct.unpack_from("=II", answer, 8)
        check(error == 0, f"WATCH: {os.strerror(error)}: {answer[16:16 + length].decode()}")
        return cookie

    # Alarm generation 2. With a thread, it gets the signal from the kernel.
    def arm(self, slot, tid=0, number=0):
        struct.pack_into("=II", self.table, slot * 64 + 48, tid, number)
        self.words(slot)[1] = 2 << 32 | SHUT << 8 | ARMED

    # One record: cookie, at, slot, generation, events, error, direct.
    def next_record(self):
        check(self.ring.poll(PATIENCE_S), "nothing in the ring")
        at = self.consumer[0]
        check(at < struct.unpack_from("=Q", self.produced)[0], "woken for nothing")
        begin = mmap.PAGESIZE + (at & self.mask)
        length, = struct.unpack_from("=I", self.produced, begin)
        while length & 1 << 31:  # it is still being written
            length, = struct.unpack_from("=I", self.produced, begin)
        record = struct.unpack_from("=QQIIIIxxB", self.produced, begin + 8)
        self.consumer[0] = at + (8 + length + 7) // 8 * 8
        return record


def connect():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        return listener.accept()[0], peer


def main():
    client = Client(sys.argv[1])
    ours, peer = connect()
    cookie = client.watch(1, ours)
    client.arm(1)
    peer.close()
    record = client.next_record()
    check(record[0] == cookie and record[2:4] == (1, 1) and record[4] & FIN, f"another record: {record}, not of {cookie}")
    check(client.words(1)[0] == 1 << 32 | record[4], f"seen: {client.words(1)[0]:#x}")

    tid = client.introduce_thread()
    if tid is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        ours2, peer2 = connect()
        client.watch(2, ours2)
        client.arm(2, tid, signal.SIGUSR1)
        peer2.close()
        check(signal.sigtimedwait({signal.SIGUSR1}, PATIENCE_S), "no signal")
        check(client.words(2)[1] & 0xFF == DELIVERED, f"control: {client.words(2)[1]:#x}")

    client.socket.send(struct.pack("=IIQ", UNWATCH, 0, cookie))
    client.socket.send(struct.pack("=II", MISSED, 9))
    client.receive(COUNT, 9)
    ours.close()
    print("served" + (", and signalled" if tid is not None else ""))


if __name__ == "__main__":
    main()
