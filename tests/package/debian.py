#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""debian.py SOURCE BUILD CXX WORK: packages BUILD, and installs, uses and removes the packages in a root of its own.

Everything happens in namespaces that end with this program, even if it is killed: processes, mounts, connections, and
what the daemon pins. WORK is an empty directory that a file system of the test's own is mounted on. Needs root.
"""
import gzip
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys

ours = re.compile(r"(lib)?sockalarm")
SKIPPED = 77  # SKIP_RETURN_CODE of CTest
patience = 60  # seconds; guards against a hang


def run(*command, **more):
    """Its output. What fails is shown."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def expect(holds, words):
    if not holds:
        raise SystemExit(f"package: {words}")


class Root:
    """A root directory with dpkg's database, a shell for maintainer scripts, and nothing else.

    The database is that of this machine, so what the packages depend on must be what Debian has.
    """

    def __init__(self, path):
        self.path = path
        for name in ("usr/bin", "usr/sbin", "usr/lib", "dev", "etc", "run", "tmp", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"):
            (path / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib"):
            (path / name).symlink_to("usr/" + name)
        shutil.copy("/etc/os-release", path / "usr/lib/os-release")  # so that usr/lib is not empty when the packages go
        shutil.copy("/bin/busybox", path / "bin/busybox")
        (path / "bin/sh").symlink_to("busybox")
        os.mknod(path / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (path / "etc/ld.so.conf").write_text("/usr/lib\n")
        shutil.copy("/sbin/ldconfig", path / "sbin/ldconfig")
        database = path / "var/lib/dpkg"
        installed = pathlib.Path("/var/lib/dpkg/status").read_text().strip().split("\n\n")
        (database / "status").write_text("".join(p + "\n\n" for p in installed if not ours.match(p.removeprefix("Package: "))))
        for name in run("dpkg-query", "-W", "-f", "${binary:Package}\n").split():
            if not ours.match(name):
                (database / "info" / (name + ".list")).touch()
        run("chroot", path, "/sbin/ldconfig")  # its cache was there before the packages
        self.before = self.files()

    def dpkg(self, *words):
        return run("dpkg", f"--root={self.path}", *words)

    def files(self):
        found = {}
        for directory, names, files in os.walk(self.path):
            names[:] = [name for name in names if directory != str(self.path / "var")]
            for name in names + files:
                file = pathlib.Path(directory, name)
                found[str(file.relative_to(self.path))] = file.lstat().st_mode
        return found

    def expect_untouched(self):
        after = self.files()
        expect(after == self.before, f"left behind: {sorted(set(after) ^ set(self.before))}")
        known = run("dpkg-query", f"--admindir={self.path}/var/lib/dpkg", "-W", "-f", "${Package}\n").split()
        expect(not [name for name in known if ours.match(name)], "dpkg still knows the packages")
        left = [str(p) for p in (self.path / "var/lib/dpkg/info").iterdir() if ours.match(p.name)]
        expect(not left, f"left behind: {left}")


class Daemon:
    """The daemon of a root, in a directory with a BPF file system."""

    def __init__(self, root, home):
        home.mkdir()
        (home / "bpf").mkdir()
        run("mount", "-t", "bpf", "bpf", home / "bpf")
        self.socket, self.pins = home / "socket", home / "bpf/pins"
        self.program = root.path / "usr/sbin/sockalarmd"
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(str(home / "notify"))  # sd_notify(3)
        ready.settimeout(patience)
        self.process = subprocess.Popen([self.program, "--config", root.path / "usr/share/doc/sockalarmd/examples/sockalarmd.toml",
                                         "--socket", self.socket, "--bpffs", self.pins, "--log-level", "warning"],
                                        env=dict(os.environ, NOTIFY_SOCKET=str(home / "notify")))
        told = b""
        while b"READY=1" not in told:
            try:
                told = ready.recv(512)
            except socket.timeout:
                raise SystemExit(f"package: sockalarmd does not get ready; its exit status: {self.process.poll()}") from None

    def stop(self):
        self.process.terminate()
        expect(self.process.wait(patience) == 0, f"sockalarmd ended with {self.process.returncode}")
        expect(any(self.pins.iterdir()), "nothing was pinned")
        run(self.program, "--remove", "--bpffs", self.pins)
        expect(not self.pins.exists() or not any(self.pins.iterdir()), "sockalarmd --remove left something")


def make_packages(build, target):
    # Whatever the time; `scripts/package` takes that of the last commit.
    run("cpack", "--config", build / "CPackConfig.cmake", "-B", target, env=dict(os.environ, SOURCE_DATE_EPOCH="1700000000"))
    packages = {run("dpkg-deb", "-f", file, "Package").strip(): file for file in target.glob("*.deb")}
    expect(len(packages) == 4, f"four packages were expected, not {sorted(packages)}")
    return packages


def check_contents(packages, root, places):
    """What each package must have, and that nothing tells where it was built."""
    for name in packages:
        doc = root.path / "usr/share/doc" / name
        expect("Apache-2.0" in (doc / "copyright").read_text(), f"{name}: no copyright")
        expect(b"Changelog" in gzip.decompress((doc / "changelog.gz").read_bytes()), f"{name}: no changelog")
        run("dpkg-parsechangelog", "--file", doc / "changelog.Debian.gz")
    listing = root.dpkg("--listfiles", *packages)
    for file in ("bin/sockalarm", "sbin/sockalarmd", "lib/systemd/system/sockalarmd.service", "lib/systemd/system/sockalarmd.socket",
                 "lib/systemd/system/run-sockalarm-bpf.mount", "lib/sysusers.d/sockalarm.conf", "share/man/man1/sockalarm.1.gz",
                 "share/man/man3/sockalarm_c.3.gz", "share/man/man8/sockalarmd.8.gz", "share/bash-completion/completions/sockalarm",
                 "share/zsh/vendor-completions/_sockalarm", "share/doc/sockalarmd/examples/prometheus/alerts.yml", "share/fish/vendor_completions.d/sockalarm.fish"):
        expect(f"\n/usr/{file}\n" in listing, f"/usr/{file} is in no package")
    unit = (root.path / "usr/lib/systemd/system/sockalarmd.service").read_text()
    expect("ExecStart=/usr/sbin/sockalarmd " in unit, "the unit does not start /usr/sbin/sockalarmd")
    for line in set(listing.split("\n")):
        file = root.path / line[1:]
        if line and file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            content = gzip.decompress(content) if file.suffix == ".gz" else content
            for place in places:
                expect(os.fsencode(place) not in content, f"{line} names {place}")


def watch_one_client(root, daemon):
    """`sockalarm watch` tells, by the daemon, when the peer of a connection of this process leaves."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    served, _ = listener.accept()
    command = [root.path / "usr/bin/sockalarm", "watch", "--json", "--pid", str(os.getpid()), "--socket", daemon.socket,
               "--source", "daemon", "--remote", "%s:%d" % client.getsockname()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        first = json.loads(watching.stdout.readline() or "{}")
        expect((first.get("event"), first.get("source")) == ("watching", "daemon"), f"sockalarm watch: {first}")
        status = json.loads(run(root.path / "usr/bin/sockalarm", "status", "--json", "--socket", daemon.socket))
        expect([client["watches"] for client in status["clients"]] == [1], f"sockalarm status: {status}")
        client.close()
        second = json.loads(watching.stdout.readline() or "{}")
        expect((second.get("event"), second.get("events")) == ("left", "fin"), f"sockalarm watch: {second}")
    expect(watching.returncode == 0, f"sockalarm watch ended with {watching.returncode}")
    served.close()


def build_outside(source, cxx, root, work, daemon):
    """Programs that use the packages: by CMake, and in C by pkg-config."""
    outside = source / "tests/contract/outside"
    run("cmake", "-S", outside, "-B", work / "outside", f"-DCMAKE_PREFIX_PATH={root.path}/usr", f"-DCMAKE_CXX_COMPILER={cxx}")
    cache = (work / "outside/CMakeCache.txt").read_text()
    expect(f"sockalarm_DIR:PATH={root.path}/usr/lib" in cache, "another sockalarm was found than the packages'")
    run("cmake", "--build", work / "outside")
    for program in ("outside", "databases", "outside_request", "outside_c"):
        run(work / "outside" / program)

    [config] = (root.path / "usr").rglob("sockalarm-c.pc")
    environment = dict(os.environ, PKG_CONFIG_LIBDIR=str(config.parent), PKG_CONFIG_SYSROOT_DIR=str(root.path))
    run("pkg-config", "--validate", "sockalarm-c", env=environment)
    flags = run("pkg-config", "--cflags", "--libs", "sockalarm-c", env=environment).split()
    expect(f"-I{root.path}/usr/include" in flags, f"pkg-config says {flags}")
    run(os.environ.get("CC", "cc"), "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", outside / "main.c", "-o", work / "in_c", *flags)
    library_path = dict(os.environ, LD_LIBRARY_PATH=str(config.parent.parent))
    expect(str(root.path) in run("ldd", work / "in_c", env=library_path), "another libsockalarm_c was found than the package's")
    said = run(work / "in_c", daemon.socket, env=library_path)
    expect(re.search(r": daemon\b", said), f"the C program is not served by the daemon: {said}")


def check_scripts_with_systemd(packages, work):
    """What the maintainer scripts of sockalarmd ask of systemd, in a root where programs only record that."""
    root = Root(work / "systemd")
    (root.path / "run/systemd/system").mkdir(parents=True)
    for name in ("systemd-sysusers", "systemctl", "deb-systemd-helper", "deb-systemd-invoke"):
        (root.path / "usr/bin" / name).write_text('#!/bin/sh\necho "${0##*/} $*" >>/tmp/calls\n')
        (root.path / "usr/bin" / name).chmod(0o755)
    calls = root.path / "tmp/calls"
    both = "sockalarmd.socket sockalarmd.service"
    enabled = [f"deb-systemd-helper {words}{unit}" for unit in both.split() for words in ("--quiet was-enabled ", "enable ")]
    started = ["systemctl daemon-reload", "deb-systemd-invoke start sockalarmd.socket", "deb-systemd-invoke restart sockalarmd.service"]
    installed = ["systemd-sysusers sockalarm.conf", *enabled, *started]
    removed = [f"deb-systemd-invoke stop {both}", "deb-systemd-invoke stop run-sockalarm-bpf.mount", "systemctl daemon-reload"]
    for words, expected in ((("--install", packages["sockalarmd"]), installed), (("--install", packages["sockalarmd"]), installed),
                            (("--remove", "sockalarmd"), removed), (("--purge", "sockalarmd"), [f"deb-systemd-helper purge {both}"])):
        calls.write_text("")
        said = root.dpkg(*words)
        got = calls.read_text().splitlines()
        expect(got == expected, f"dpkg {words[0]}: {got} instead of {expected}\n{said}")


def inside(source, build, cxx, work):
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", work)
    run("ip", "link", "set", "lo", "up")
    os.umask(0o022)
    packages = make_packages(build, work / "packages")
    root = Root(work / "root")
    root.dpkg("--install", *packages.values())
    check_contents(packages, root, {str(source), str(build), str(work)})
    daemon = Daemon(root, work / "daemon")
    try:
        watch_one_client(root, daemon)
        build_outside(source, cxx, root, work, daemon)
        daemon.stop()
    finally:
        daemon.process.kill()
        daemon.process.wait()
    root.dpkg("--purge", *packages)
    root.expect_untouched()
    check_scripts_with_systemd(packages, work)
    print("installed, used and removed:", *sorted(packages))


def main():
    source, build, cxx, work = sys.argv[1:5]
    if sys.argv[5:] == ["--inside"]:
        return inside(pathlib.Path(source), pathlib.Path(build), cxx, pathlib.Path(work))
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0 or subprocess.run([*namespaces, "true"], check=False).returncode != 0:
        print("package: needs root and namespaces of its own")
        return 1 if os.environ.get("SOCKALARM_REQUIRE_KERNEL") == "1" else SKIPPED
    # In place of this process, not below it: --kill-child ends them all with the process that CTest knows.
    os.execvp(namespaces[0], [*namespaces, sys.executable, "-B", __file__, *sys.argv[1:5], "--inside"])


sys.exit(main())
