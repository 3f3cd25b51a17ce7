# SPDX-License-Identifier: Apache-2.0
"""The prose of the page that page.py writes around its tables."""

HEAD = """<!-- Written by scripts/bench from results.json. Change tests/bench/words.py and page.py, not this file. -->
# Benchmarks

What sockalarm costs and how soon it tells, beside what people use today. Both sides of every comparison are measured in
the same run, in turns, on connections of the same kind: so the *ratios* hold on other machines better than the figures.

How to read a figure: `12.3 (11.8 to 13.1)` is the median and its spread. Where a measurement goes in rounds, the spread is
the middle half of the rounds; else it is the lowest and the highest of the runs. p50 is the middle of all samples, p90 what
nine of ten stay below. *Of it* is a ratio: 0.4 of it takes 0.4 times as long.
"""

QUICK = """
**Some of this was measured with `--quick`: those figures say little.**
"""

ASKING = """## Asking and arming

What a thread pays to learn whether its client is still there, in nanoseconds:
"""

ARMING = """
To arm an alarm for one request and to cancel it at the end of its scope (second figure: `start()` and `cancel()` of one
Alarm that is kept). System calls are counted by a seccomp filter, allocations by a stand-in for malloc:
"""

REQUESTS = """
What a request scope adds to a handler that does nothing, in nanoseconds: with its limit of 180 s, and calls that take a
token and have a limit of 2 s. No system call is made, since none of the limits is earlier than the timer that is set.
"""

DAEMON = """## sockalarmd

{clients} clients with {each} connections each, both ends, through one daemon; from start to end over all of them, divided
by their number. And what an honest client notices of a hostile one: from the peer's close() to the signal handler, while a
process of another user does one kind of harm to the daemon as fast as it can (*deeds/s*), beside one that only uses a
processor, and beside two that wake each other over a socket, as a hostile client and the daemon do; all in turns.
"""

MACHINE_CODE = """
The machine code: of a `Peer`, which holds the address and may stay in a register, and of a Watch given by reference, where
one load fetches the address from the Watch and the other the word in shared memory.
"""

DIRECT = """## A signal to a blocked thread

A peer in another process closes its connection; the time counts from just before its `close()` to the first instruction of
the signal handler of a thread that is blocked in `recv()`. *Directly*: the share of the signals that the kernel sent
without the background thread. *Missed*: signals that did not come within ten seconds. The epoll thread, which the ratios
refer to, waits with EPOLLONESHOT and sends the signal by `tgkill`; so do the poll and the io_uring thread. *Short slice*:
the thread that is to be reached has called `set_time_slice(100us)`, and so has the epoll thread of that name.

On an idle machine the ratios depend on what it takes to enter the kernel and to wake a CPU. *F_SETSIG by hand* is the least
that Linux can do; nothing that signals a thread gets below it. A helper thread pays twice, so the dearer that is, the more is
gained without one: on a virtual machine that isolates the kernel's page tables the epoll thread took 107 us, F_SETSIG by hand
25, task work 42 and sigio 48. Task work has one interrupt more than a signal, which the CPU sends to itself (irq_work): cheap
on bare metal, in a virtual machine an exit, some 7 us.

Under load it matters what the CPU does on which the FIN was processed. A FIN from another host comes in an interrupt, and
the CPU goes on with what it did: so in the first of the two tables the process that closed goes on computing until the
signal has come. In the second it goes to sleep at once, which makes room for the thread that it has just woken.
"""

CALLBACK = """## A function on the background thread

The same, to the first instruction of a function that an alarm calls, or that a thread calls which waits in epoll or poll;
beside connections that are watched too and stay idle. *To one watch*: what the idle ones add. *FIN seen after*: the median
time from before the peer's `close()` until the kernel changed the state of our socket. Everybody pays that first, an epoll
thread too; no way of waiting can be faster. The thread that spins has a CPU for itself, as that mode is meant (the peer, which
else might be woken on it, keeps off); all others run where the scheduler likes.
"""

AFTER_ACTIVITY = """
The second of two closes that are {gap} µs apart: here the adaptive dispatcher is still awake.
"""

STEPS = """### Where the time goes

The same for `sleep`, step by step, by the kernel's own tracepoints, beside a few watches. Tracing makes each step dearer, so
it is the proportions that count.
"""

STEPS_REASON = """
What `sleep` takes longer than an epoll thread lies between the FIN and the wake-up. The socket itself wakes whoever waits in
epoll at once. A BPF program may run with locks held under which nobody can be woken, so the ring buffer asks for an
interrupt on the same CPU (`irq_work`) and wakes from there; in a virtual machine to ask for one is an exit to the host. Then
both are scheduled and call their function alike. Where these microseconds count: `Waking::spin` waits for no wake-up, and a
signal sent directly needs none.
"""

STORM = """## A storm

{sockets:,} peers close as fast as one process can. *Last alarm*: the time from the first close until the last alarm ran,
divided by the time that the closes took. *Wake-ups*: how often the background thread had to be woken for all of them.
"""

UNWATCHED = """## Connections that nobody watches

The programs see every TCP connection of the host. What a connect/accept/close cycle over loopback pays for that, in one
thread; all variants take turns in short slices, so that what else the machine does falls on all. *Nothing loaded, again*
shows what cannot be told apart here. *Empty programs* do nothing and return: what the kernel itself takes for running a
program in each change of state, which no program can get below. *Certain to*: half the width of the interval that holds the median with 95 %.
"""

OBSERVED = """## Observing every connection

Servers and clients in processes of their own keep all processors busy: connect, request, answer, close. Slices without an
observer, with one whose filters match nothing, and with one that records every end and is read in a third process take
turns. Each connection has two ends. *By processor time*: the same as the time that all these processes took for a
connection, which says it more exactly on a machine that others use too.
"""

MEMORY = """## Memory

Bytes, with {watches:,} watches. What the kernel takes for an epoll entry is not counted.
"""

LOADING = """## Loading

Milliseconds from nothing to the first watch, in a process of its own each time:
"""

ANCESTOR = """## IO::SocketAlarm

The Perl module that sockalarm descends from"""

REPEAT = """## How to repeat

```sh
scripts/bench                                          # as root; some 50 minutes; leave the machine alone meanwhile
scripts/bench --only direct --runs 1 --out bench-out   # one section, not into the documentation
scripts/bench --quick --out bench-out                  # a minute: shows that it runs
scripts/bench --page-only                              # only this page again
```

`results.json` has every figure. The programs are `tests/bench/*.cpp`; each is one run of one section.
"""
