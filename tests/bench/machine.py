# SPDX-License-Identifier: Apache-2.0
"""What figures depend on: the machine, the kernel, the compiler. Nothing that names the machine."""
import os
import pathlib
import platform
import re
import subprocess


def read(path, default=""):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return default


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cache_value(build, name):
    match = re.search(rf"^{name}:\w+=(.*)$", read(build / "CMakeCache.txt"), re.MULTILINE)
    return match.group(1) if match else ""


def facts(build):
    cpuinfo = read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", read("/proc/meminfo"), re.MULTILINE)
    meltdown = read("/sys/devices/system/cpu/vulnerabilities/meltdown", "unknown").strip()
    compiler = output(cache_value(build, "CMAKE_CXX_COMPILER") or "c++", "--version").splitlines()
    return {
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / 2**20, 1) if memory else None,
        "kernel": f"{platform.system()} {platform.release()}",
        # PTI makes every system call dearer, and with it every baseline.
        "meltdown": meltdown,
        "virtual_machine": "hypervisor" in (flags.group(1).split() if flags else []),
        "compiler": compiler[0] if compiler else "unknown",
        "build_type": cache_value(build, "CMAKE_BUILD_TYPE") or "none",
    }


def commit(root):
    return output("git", "-C", str(root), "describe", "--always", "--dirty") or "unknown"


def cpu_ticks():
    """All ticks of all cores so far, and those that the hypervisor gave to others."""
    fields = [int(word) for word in read("/proc/stat").splitlines()[0].split()[1:9]]
    return sum(fields), fields[7]


def load_average():
    return os.getloadavg()[0]
