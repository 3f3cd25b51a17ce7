#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may include whom. include_rules.py REPOSITORY [--self-test]"""
import pathlib
import re
import sys
import tempfile

# (files, what their includes may not match, why)
RULES = [
    (r"include/", r"^(?!(sockalarm/|tl/expected\.hpp$|sys/|netinet/|[a-z_]+$|[a-z]+\.h$))", "public headers stand alone"),
    (r"user/base/", r"^(core|ipc|daemon|request|cli|bpf)/", "base is the lowest room"),
    (r"user/ipc/(scm_rights|frame)\.", r"^(?!(sockalarm/(result|unique_fd)\.h$|base/|ipc/(scm_rights|frame)\.h$|sys/|[a-z_]+$|[a-z]+\.h$))", "sendmsg and the frame codec stand alone"),
    (r"user/(core|ipc)/", r"^(cli|daemon|request)/", "the library does not know daemon and tool, nor what is built on top"),
    (r"user/core/", r"^ipc/", "core does not know how the daemon is spoken to"),
    (r"user/ipc/", r"^bpf/", "a client needs no libbpf"),
    (r"user/daemon/", r"^(cli|request)/", "the daemon does not know the tool, nor request scopes"),
    (r"user/daemon/(?!kernel_side\.cpp)", r"^bpf/", "only kernel_side knows libbpf"),
    (r"user/(core|base|cli)/", r"^re2/", "only request scopes need RE2"),
    (r"user/(?!base/toml\.h)", r"^toml\+\+/", "TOML by base/toml.h, which says how"),
    (r"user/(core|ipc|cli)/", r"^base/toml\.h", "only request scopes and the daemon read TOML"),
    (r"user/request/", r"^(cli|bpf)/", "request scopes stand on the core"),
    (r"user/request/(?!policy_toml\.cpp)", r"^base/toml\.h", "only policy_toml knows TOML"),
    (r"user/core/(?!(bpf_programs|loaded_session)\.cpp)", r"^(bpf/|sockalarm\.skel\.h|cap-ng\.h)", "only bpf_programs and loaded_session know libbpf"),
    (r"user/observe/(?!observer(_programs)?\.cpp)", r"^(bpf/|observe\.skel\.h)", "only observer and observer_programs know libbpf"),
    (r"user/observe/", r"^(cli|daemon|ipc|request)/", "the observer stands on the core"),
    (r"user/(base|core|ipc|request|c_abi)/", r"^observe/", "only the daemon knows the observer"),
    (r"user/(?!cli/http_client\.cpp)", r"^curl/", "only http_client knows libcurl"),
    (r"user/cli/", r"^observe/(?!(filters|nats_reader)\.h$)", "of the observer the tool knows how a network is written, and how its stream is read"),
    (r"user/core/(?!(loaded_session\.cpp|ring_reader\.(h|cpp)|watch_state\.h))", r"^sockalarm_abi\.h$", "the record layout is the business of bpf_session, ring_reader and watch_state"),
    (r"user/core/poll_source\.cpp", r"^(linux/|sys/(epoll|eventfd|timerfd|signalfd|inotify|prctl|syscall)\.h)", "the poll source is plain POSIX"),
    (r"user/core/", r"^((postgres|mariadb)/|sockalarm/(postgres|mariadb)\.h$|(libpq-fe|mysql)\.h$)", "the core depends on no database"),
    (r"user/(postgres|mariadb)/", r"^(?!core/action_impl\.h$)(core|cli|bpf|postgres|mariadb)/", "a component knows what an action is, and no more of the core"),
    (r"user/c_abi/", r"^(?!core/fork\.h$)(core|ipc|daemon|cli|request|bpf)/", "the C library uses the public promise, and knows a forked child"),
    (r"user/observe/(?!nats_)", r"^nats/", "only nats_* knows libnats"),
    (r"user/observe/(?!prometheus_text)", r"^prometheus/", "only prometheus_text knows Prometheus"),
    (r"user/observe/(?!web_server)", r"^microhttpd\.h", "only web_server knows HTTP"),
    (r"user/cli/", r"^(core|daemon|request)/", "the tool uses the public promise"),
    (r"(include|user|bpf|tests)/", r"^\.\./", "includes are given from their root"),
]
FIRST_LINES = re.compile(r"SPDX-License-Identifier: ")


def violations(root):
    found = []
    files = [f for top in ("include", "user", "bpf", "tests", "examples", "vmtests", "scripts", "cmake", ".ci")
             for f in sorted((root / top).rglob("*")) if f.is_file() and f.suffix not in (".svg", ".json", ".md") and "corpus" not in f.parts]
    for file in files:
        name = file.relative_to(root).as_posix()
        text = file.read_text()
        if not FIRST_LINES.search(text[:300]):
            found.append(f"{name}: no SPDX-License-Identifier in its first lines")
        if file.suffix not in (".h", ".cpp", ".c"):
            continue
        for included in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.MULTILINE):
            for files_rule, forbidden, why in RULES:
                if re.match(files_rule, name) and re.match(forbidden, included):
                    found.append(f"{name} includes {included}: {why}")
    return found


def self_test():
    planted = {"include/sockalarm/a.h": "core/core.h", "user/base/a.h": "core/core.h", "user/core/a.cpp": "bpf/libbpf.h",
               "user/core/b.cpp": "sockalarm_abi.h", "user/core/poll_source.cpp": "sys/epoll.h", "user/cli/a.cpp": "core/core.h",
               "user/core/c.cpp": "cli/commands.h", "user/core/f.cpp": "libpq-fe.h", "user/postgres/a.cpp": "core/core.h",
               "user/core/c.cpp": "cli/commands.h", "user/core/d.cpp": "request/poke.h", "user/core/e.cpp": "re2/re2.h",
               "user/request/a.cpp": "cli/commands.h", "user/request/b.cpp": "toml++/toml.h", "tests/a.cpp": "../x.h", "user/c_abi/a.cpp": "core/core.h",
               "user/core/g.cpp": "observe/spool.h", "user/observe/a.cpp": "daemon/lane.h", "user/observe/b.cpp": "nats/nats.h", "user/observe/c.cpp": "microhttpd.h",
               "user/cli/b.cpp": "observe/spool.h", "user/cli/c.cpp": "curl/curl.h"}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, included in planted.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f'// SPDX-License-Identifier: x\n#include "{included}"\n')
        (root / "examples").mkdir()
        (root / "examples/bare.cpp").write_text("int main() {}\n")
        found = violations(root)
    missed = [name for name in [*planted, "examples/bare.cpp"] if not any(v.startswith(name) for v in found)]
    if missed:
        sys.exit("the rules miss what was planted in " + ", ".join(missed))


if "--self-test" in sys.argv:
    self_test()
else:
    all_found = violations(pathlib.Path(sys.argv[1]))
    print("\n".join(all_found) or "the include rules hold")
    sys.exit(1 if all_found else 0)
