#!/usr/bin/env python3
"""Runs the main job once for each seed and writes docs/results/ensemble.md: wall time, members, vote, what the coordinator cost.

The coordinator's CPU time is read from /proc while it runs: all of its threads, and apart from them those that verify
members. Local workers are processes of their own and not counted. Run it on a machine that has nothing else to do.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

from machine import BUILT, ROOT, cpu_seconds, provenance

COORDINATOR = BUILT / "coordinator"
RESULT = ROOT / "docs" / "results" / "ensemble.md"
KEPT = ROOT / "results"
# The name that the coordinator gives to the threads of its verification.
VERIFY = "verify-"


def sample(process):
    """CPU seconds of the whole process and of its verification, so far; None once it has ended."""
    try:
        folder = pathlib.Path("/proc") / str(process)
        whole = cpu_seconds((folder / "stat").read_text())[1]
        threads = [cpu_seconds(path.read_text()) for path in folder.glob("task/*/stat")]
        return whole, sum(seconds for name, seconds in threads if name.startswith(VERIFY))
    except (FileNotFoundError, ProcessLookupError):
        return None


def measure(seed, arguments):
    out = KEPT / f"ensemble-{arguments.recipe}-seed-{seed}"
    with tempfile.TemporaryDirectory() as state:
        command = [COORDINATOR, "--ensemble", arguments.ensemble, "--local-workers", "auto", "--recipe", arguments.recipe,
                   "--seed", seed, "--listen", "127.0.0.1:0", "--state", state, "--out", out]  # fmt: skip
        start, cpu = time.monotonic(), (0.0, 0.0)
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT)
        while process.poll() is None:
            whole, verify = sample(process.pid) or cpu
            # The verification's threads end before the process does: their last figure is kept.
            cpu = (whole, max(verify, cpu[1]))
            time.sleep(0.2)
        wall = time.monotonic() - start
    if process.returncode != 0:
        raise SystemExit(f"ensemble: seed {seed} ended with {process.returncode}")
    report = json.loads((out / "report.json").read_text())
    return {"seed": seed, "wall": wall, "cpu": cpu, "report": report}


def row(measured):
    report, (whole, verify) = measured["report"], measured["cpu"]
    members = [100 * member["test_accuracy"] for member in report["members"]]
    vote, mean = report["ensemble"]["majority_vote"], report["ensemble"]["mean_softmax"]
    low, high = (100 * bound for bound in vote["interval95"])
    seconds = statistics.mean(member["train_seconds"] for member in report["members"])
    return " | ".join([
        f"| {measured['seed']}", f"{measured['wall'] / 60:.1f} min", ", ".join(f"{member:.2f}" for member in members),
        f"{statistics.mean(members):.3f}", f"**{100 * vote['accuracy']:.2f}** ({low:.2f} to {high:.2f})",
        f"{vote['total'] - vote['correct']}", f"{vote['ties']} ({vote['ties_correct']} right)",
        f"{100 * mean['accuracy']:.2f}", f"{seconds:.0f}", f"{whole - verify:.1f}", f"{verify:.1f} |",
    ])  # fmt: skip


def page(runs, origin, arguments):
    return "\n".join([
        "# The main job",
        "",
        f"`coordinator --ensemble {arguments.ensemble} --local-workers auto` with the recipe `{arguments.recipe}`, once for each seed. Accuracies in",
        "percent of the 10,000 test images; in brackets the 95 % interval (Wilson). The coordinator's CPU seconds are those of",
        "the whole run without and for verification. Seeds were fixed before; nothing was chosen by these figures.",
        "",
        *origin,
        "",
        "| seed | wall | members | mean member | majority vote | errors | ties | mean softmax | seconds a member | coordinator, CPU s | verification, CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(row, runs),
    ]) + "\n"  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2", help="seeds of the runs, separated by commas")
    parser.add_argument("--ensemble", type=int, default=5)
    parser.add_argument("--recipe", default="default", help="a built-in recipe or a file")
    arguments = parser.parse_args()
    # Before the first page is written, which changes the tree.
    runs, origin = [], provenance("benches/ensemble.py")
    for seed in map(int, arguments.seeds.split(",")):
        runs.append(measure(seed, arguments))
        text = page(runs, origin, arguments)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(text)
    print(f"\n{text}\nwritten to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
