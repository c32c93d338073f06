"""What a measurement must be quoted with: the processor, the commit, the command."""

import json
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What `getconf CLK_TCK` says: /proc counts CPU time in these.
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Where cargo put the programs that are measured.
BUILT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def cpu_seconds(stat):
    """CPU seconds, user and system, of a process or thread from the text of its /proc stat file, and its name."""
    # The name, in brackets, may hold spaces and brackets.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def together(command, count):
    """Runs a program so often at the same time, and returns what each printed as its last line, which is JSON."""
    command = [str(part) for part in command]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    printed = [process.communicate()[0] for process in running]
    for process in running:
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
    return [json.loads(text.strip().splitlines()[-1]) for text in printed]


def commit():
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip() or "unknown"


def provenance(program):
    """The lines that head every page of results."""
    command = " ".join([program, *sys.argv[1:]])
    return [
        f"- Machine: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        f"- Commit: {commit()}",
        f"- Command: `{command}`",
    ]
