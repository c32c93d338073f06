#!/usr/bin/env python3
"""Measures what one trainer costs before and while it trains, and writes docs/results/trainer.md: the time from its start
to its first step, and its peak memory.

A trainer is started as a worker starts it: with a specification on its standard input, on one CPU thread. It reports
nothing after its first step, so the end of that is reckoned back from its first report of progress, at the pace between
the first and the second. Peak memory is the kernel's VmHWM after --steps steps, and that of a whole training of one short
pass, with validation, test predictions and the writing of both files. Needs Python 3.11.
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
import tomllib

from machine import BUILT, ROOT, provenance

COORDINATOR = BUILT / "coordinator"
TRAINER = BUILT / "worker-trainer"
RESULT = ROOT / "docs" / "results" / "trainer.md"
MNIST = ROOT / "data" / "mnist"
# What docs/results/trainer.md states beside what was measured.
START_LIMIT_S = 1.5
MEMORY_LIMIT_MB = 700
THREADS = 1
# Training images of the whole training: 500 steps of 10 shifted images.
SHORT_TRAIN = 1000


def unpacked(folder):
    """Unpacks the dataset, as a worker's cache holds it; returns the paths as a specification names them."""
    files = {
        "train_images": "train-images-idx3-ubyte",
        "train_labels": "train-labels-idx1-ubyte",
        "test_images": "t10k-images-idx3-ubyte",
    }
    for name in files.values():
        (folder / name).write_bytes(gzip.decompress((MNIST / f"{name}.gz").read_bytes()))
    return {key: str(folder / name) for key, name in files.items()}


def recipe(name):
    command = [str(COORDINATOR), "recipes", name]
    return tomllib.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def specification(name, dataset, out):
    return {
        "format": "plurality-trainer/3", "recipe": recipe(name), "run_seed": 1, "member": 0, **dataset, "device": "cpu",
        "threads": THREADS, "out": str(out), "resume": [], "snapshot_interval_ms": 2**32,
    }  # fmt: skip


def memory(process):
    """Peak resident memory so far, and the part of the present one that no file stands behind, in MB."""
    lines = (pathlib.Path("/proc") / str(process) / "status").read_text().splitlines()
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    return {"peak": kib["VmHWM"] * 1024 / 1e6, "own": kib["RssAnon"] * 1024 / 1e6}


def start(spec):
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    trainer = subprocess.Popen([str(TRAINER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    trainer.stdin.write(json.dumps(spec) + "\n")
    trainer.stdin.flush()
    return trainer


def events(trainer):
    for line in trainer.stdout:
        event = json.loads(line)
        if event["event"] == "failed":
            raise SystemExit(f"trainer: {event['message']}")
        yield event


def first_steps(spec, steps):
    """Starts a trainer, ends it after so many steps, and returns seconds and MB."""
    started = time.monotonic()
    trainer = start(spec)
    ready, reports, used = 0.0, [], None
    for event in events(trainer):
        now = time.monotonic() - started
        if event["event"] == "started":
            ready = now
        if event["event"] == "progress":
            reports.append((event["step"], now))
            if len(reports) >= 2 and event["step"] >= steps:
                used = memory(trainer.pid)
                break
    # The end of its standard input ends a trainer.
    trainer.stdin.close()
    trainer.wait()
    if used is None:
        raise SystemExit(f"trainer: ended before step {steps}")
    (first, first_at), (second, second_at) = reports[:2]
    pace = (second_at - first_at) / (second - first)
    return {"started": ready, "first step": max(ready, first_at - (first - 1) * pace), **used}


def whole(spec):
    """Trains one short pass to the end and returns the peak in MB."""
    short = json.loads(json.dumps(spec["recipe"]))
    short["data"]["train"], short["training"]["epochs"] = SHORT_TRAIN, 1
    trainer = start({**spec, "recipe": short})
    last = [event["event"] for event in events(trainer)][-1:]
    _, status, usage = os.wait4(trainer.pid, 0)
    trainer.returncode = os.waitstatus_to_exitcode(status)
    if last != ["finished"] or trainer.returncode != 0:
        raise SystemExit(f"trainer: ended with {trainer.returncode}")
    return usage.ru_maxrss * 1024 / 1e6


def measure(spec, steps):
    return {**first_steps(spec, steps), "whole": whole(spec)}


def cell(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def page(results, arguments):
    lines = [
        "# Start-up and memory of a trainer",
        "",
        f"`worker-trainer` on one CPU thread, started as a worker starts it. Medians of {arguments.rounds} starts; lowest and highest in",
        "brackets. One start before them is not counted: it brings LibTorch's files into memory. The first step's end is",
        "reckoned back from the first report of progress. Peak memory is the kernel's VmHWM (the most that was resident) after",
        f"{arguments.steps} steps and after a whole training of one pass of {SHORT_TRAIN} images; it counts what is read of LibTorch's files, which",
        f"all trainers of a machine share. Beside it what is the trainer's alone after {arguments.steps} steps (RssAnon). 1 MB is 10⁶ bytes.",
        "",
        *provenance("benches/trainer.py"),
        "",
        f"| recipe | start to `started`, s | start to first step, s | limit, s | peak after {arguments.steps} steps, MB | peak of a whole training, MB | limit, MB | its own, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, starts in results.items():
        columns = {key: [start[key] for start in starts] for key in starts[0]}
        lines.append(
            f"| `{name}` | {cell(columns['started'], 2)} | {cell(columns['first step'], 2)} | {START_LIMIT_S}"
            f" | {cell(columns['peak'], 0)} | {cell(columns['whole'], 0)} | {MEMORY_LIMIT_MB} | {cell(columns['own'], 0)} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="shift,dropout", help="built-in recipes, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="steps before memory is read")
    parser.add_argument("--result", type=pathlib.Path, default=RESULT, help="the page to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = unpacked(pathlib.Path(folder))
        specs = {name: specification(name, dataset, folder) for name in arguments.recipes.split(",")}
        results = {name: [] for name in specs}
        for number in range(arguments.rounds + 1):
            for name, spec in specs.items():
                measured = measure(spec, arguments.steps)
                print(f"round {number}: {name}: first step after {measured['first step']:.2f} s, {measured['whole']:.0f} MB")
                if number > 0:
                    results[name].append(measured)
    text = page(results, arguments)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(text)
    print(f"\n{text}\nwritten to {arguments.result}")


if __name__ == "__main__":
    main()
