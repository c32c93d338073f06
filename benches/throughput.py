#!/usr/bin/env python3
"""Measures the trainer beside PyTorch's three modes, in turns, and writes docs/results/throughput.md.

Other programs slow everything down by turns: each round runs all four once, and medians of CPU time are compared.
PyTorch is taken from the Python named by --python or PLURALITY_PYTHON; without it the trainer is measured alone and
nothing is written.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from machine import BUILT, ROOT, provenance

BASELINE = ROOT / "benches" / "pytorch_baseline.py"
RECIPE = ROOT / "benches" / "lecture-network.toml"
TRAINER = BUILT / "worker-trainer"
RESULT = ROOT / "docs" / "results" / "throughput.md"
MODES = ("eager", "channels-last", "compile")


def run(command):
    finished = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(finished.stdout.strip().splitlines()[-1])


def has_pytorch(python):
    try:
        return subprocess.run([python, "-c", "import torch, numpy"], stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def programs(arguments):
    trainer = [TRAINER, "--bench", RECIPE, "--data", ROOT / "data" / "mnist"]
    commands = {"Plurality": trainer}
    if has_pytorch(arguments.python):
        for mode in MODES:
            commands[f"PyTorch, {mode}"] = [arguments.python, BASELINE, "--mode", mode]
    else:
        print(f"bench: {arguments.python} has no PyTorch; `pip install torch==2.11.0 numpy` into a virtual environment"
              " and set PLURALITY_PYTHON to its python to compare", file=sys.stderr)  # fmt: skip
    return commands


def measure(commands, batch, arguments):
    rates = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            measured = run([*command, "--batch", batch, "--threads", 1, "--seconds", arguments.seconds])
            rates[name].append(measured["images_per_cpu_second"])
            print(f"batch {batch}, round {number + 1}: {name}: {measured['images_per_cpu_second']} images per CPU second")
    return rates


def page(results, arguments):
    lines = [
        "# Throughput of the trainer beside PyTorch",
        "",
        "Images trained on per CPU second, one thread, the lecture's network (20-40-1000-1000 with dropout) on one-pixel",
        f"shifts, Nesterov momentum and weight decay. Medians of {arguments.rounds} rounds of {arguments.seconds:g} s each, in turns in one run; lowest and",
        "highest in brackets. The ratio is to the fastest mode of PyTorch, which uses the same LibTorch 2.11.0.",
        "",
        *provenance("benches/throughput.py"),
        "",
        "| batch | " + " | ".join(results[0][1]) + " | ratio |",
        "|" + "---|" * (len(results[0][1]) + 2),
    ]
    for batch, rates in results:
        medians = {name: statistics.median(values) for name, values in rates.items()}
        best = max(median for name, median in medians.items() if name != "Plurality")
        cells = [f"{medians[name]:.0f} ({min(values)} to {max(values)})" for name, values in rates.items()]
        lines.append(f"| {batch} | " + " | ".join(cells) + f" | {medians['Plurality'] / best:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="64,10", help="images a step, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--python", default=os.environ.get("PLURALITY_PYTHON", "python3"), help="a Python with PyTorch")
    arguments = parser.parse_args()
    commands = programs(arguments)
    results = [(batch, measure(commands, batch, arguments)) for batch in map(int, arguments.batches.split(","))]
    if len(commands) > 1:
        text = page(results, arguments)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(text)
        print(f"\n{text}\nwritten to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
