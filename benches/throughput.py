#!/usr/bin/env python3
"""Measures the trainer's two engines beside PyTorch's three modes, in turns, and writes docs/results/throughput.md.

Other programs slow everything down by turns: each round runs all of them once, with a large matrix product first, and
medians are compared. The learning rate falls with the batch, as 0.03 at 64 images: at 0.03 the network dies with ten
images a step, its values become zeros, and an engine that skips zeros would be fast at training nothing. PyTorch is taken
from the Python named by --python or PLURALITY_PYTHON; without it the trainer is measured alone and nothing is written.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from machine import BUILT, ROOT, provenance, together

BASELINE = ROOT / "benches" / "pytorch_baseline.py"
RECIPE = ROOT / "benches" / "lecture-network.toml"
TRAINER = BUILT / "worker-trainer"
RESULT = ROOT / "docs" / "results" / "throughput.md"
MODES = ("eager", "channels-last", "compile")
# The program that is compared, as a user runs it: it chooses the hand-written engine for this network.
OURS = "Plurality"
# The learning rate of the recipe, and the images a step that it is for.
RATE, RATE_BATCH = 0.03, 64
# Least ratio to PyTorch's best mode that is asked for, by batch.
GOALS = {64: 1.5, 10: 2.0}


def run(command):
    return together(command, 1)[0]


def has_pytorch(python):
    try:
        return subprocess.run([python, "-c", "import torch, numpy"], stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def programs(recipe, rate, modes, python):
    trainer = [TRAINER, "--bench", recipe, "--data", ROOT / "data" / "mnist"]
    commands = {OURS: trainer, "Plurality, LibTorch's operators": [*trainer, "--engine", "libtorch"]}
    for mode in modes:
        commands[f"PyTorch, {mode}"] = [python, BASELINE, "--mode", mode, "--rate", rate]
    return commands


def with_rate(rate):
    """The recipe as it is but for its constant learning rate."""
    before, line, after = RECIPE.read_text().partition(f"\nrate = {RATE}\n")
    if not line:
        raise SystemExit(f"throughput: {RECIPE.name} has no line `rate = {RATE}`")
    return f"{before}\nrate = {rate:.6f}\n{after}"


def measure(batch, modes, arguments):
    """Returns what each program printed in each round, and the best rate of a matrix product in each, in GFLOP/s."""
    rate = RATE * batch / RATE_BATCH
    with tempfile.TemporaryDirectory() as folder:
        recipe = pathlib.Path(folder) / RECIPE.name
        recipe.write_text(with_rate(rate))
        commands = programs(recipe, rate, modes, arguments.python)
        printed, products = {name: [] for name in commands}, []
        for number in range(arguments.rounds):
            products.append(run([TRAINER, "--bench-product"])["gflop_per_second"])
            print(f"batch {batch}, round {number + 1}: a matrix product: {products[-1]:.1f} GFLOP/s")
            for name, command in commands.items():
                measured = run([*command, "--batch", batch, "--threads", 1, "--seconds", arguments.seconds])
                printed[name].append(measured)
                print(f"batch {batch}, round {number + 1}: {name}: {measured['images_per_cpu_second']:.0f} images per CPU second,"
                      f" {measured['images_per_second']:.0f} per second")  # fmt: skip
    return printed, products


def median(rounds, key):
    return statistics.median(measured[key] for measured in rounds)


def cell(rounds, key):
    values = [measured[key] for measured in rounds]
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def ratio(printed, batch):
    rates = {name: median(rounds, "images_per_cpu_second") for name, rounds in printed.items()}
    best = max((name for name in rates if name.startswith("PyTorch")), key=rates.get)
    goal = f"; at least {GOALS[batch]:g} is the goal" if batch in GOALS else ""
    return f"- Batch {batch}: **{rates[OURS] / rates[best]:.2f}** times {best}, the best of its modes, by CPU time{goal}."


def page(results, arguments):
    flop = next(iter(results[0][1].values()))[0]["flop_per_image"]
    product = statistics.median(rate for _, _, products in results for rate in products)
    floor = flop / product / 1000
    lines = [
        "# Throughput of the trainer beside PyTorch",
        "",
        "Images trained on per second, one thread, the lecture's network (20-40-1000-1000 with dropout) on one-pixel shifts,",
        f"Nesterov momentum and weight decay. Medians of {arguments.rounds} rounds of {arguments.seconds:g} s each, in turns in one run; lowest and highest in",
        f"brackets. PyTorch uses the same LibTorch 2.11.0. The constant rate is {RATE} at {RATE_BATCH} images a step and falls with the batch,",
        "in both programs; the loss shows that the networks learn (2.30 is that of guessing).",
        "",
        *provenance("benches/throughput.py"),
        "",
        *(ratio(printed, batch) for batch, printed, _ in results),
        "",
        "| batch | program | images per CPU second | images per second of wall time | CPU µs an image | share of the floor | loss at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, printed, _ in results:
        for name, rounds in printed.items():
            microseconds = 1e6 / median(rounds, "images_per_cpu_second")
            lines.append(f"| {batch} | {name} | {cell(rounds, 'images_per_cpu_second')} | {cell(rounds, 'images_per_second')}"
                         f" | {microseconds:.0f} | {floor / microseconds:.2f} | {median(rounds, 'loss'):.2f} |")  # fmt: skip
    lines += [
        "",
        f"The floor is {floor:.0f} µs an image: {flop / 1e6:.1f} MFLOP of matrix products (forward, gradients of weights, gradients of inputs but",
        f"for the pixels) at {product:.1f} GFLOP/s, which LibTorch reaches on one thread of the same machine in the same run in a product of",
        "1024×1024 f32 matrices (the best of twenty each round, median of the rounds). The hand-written engine leaves out the",
        "products with zeros that dropout, ReLU and pooling make, so its share can be above 1.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="64,10", help="images a step, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--python", default=os.environ.get("PLURALITY_PYTHON", "python3"), help="a Python with PyTorch")
    parser.add_argument("--result", type=pathlib.Path, default=RESULT, help="the page to write")
    arguments = parser.parse_args()
    modes = MODES if has_pytorch(arguments.python) else ()
    if not modes:
        print(f"bench: {arguments.python} has no PyTorch; `pip install torch==2.11.0 numpy` into a virtual environment"
              " and set PLURALITY_PYTHON to its python to compare", file=sys.stderr)  # fmt: skip
    results = [(batch, *measure(batch, modes, arguments)) for batch in map(int, arguments.batches.split(","))]
    if modes:
        text = page(results, arguments)
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        arguments.result.write_text(text)
        print(f"\n{text}\nwritten to {arguments.result}")


if __name__ == "__main__":
    main()
