#!/usr/bin/env python3
"""Measures what training on a GPU gives, part by part, and writes docs/results/gpu.md and, for the next part, gpu.json.

speed: images a second of the lecture's network beside PyTorch on the same GPU, in turns, and of the recipes alone.
share: the images a second that several trainers have together which share the GPU.
repeat: whether two trainings of one seed, each by a cluster of its own, give the same bytes.
accuracy: the main job with several seeds, beside what docs/results/ensemble.md says of the CPU.
best: an ensemble of the recipe `best`, with fewer passes than it has if there is less time.

LIBTORCH names the torch folder of a PyTorch with CUDA, as README.md says; the same Python runs the peer.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

from machine import BUILT, ROOT, provenance, together
from throughput import BASELINE, MODES, RATE, RATE_BATCH, RECIPE, cell, median, run, with_rate

COORDINATOR = BUILT / "coordinator"
TRAINER = BUILT / "worker-trainer"
RESULTS = ROOT / "docs" / "results"
KEPT = ROOT / "results"
OURS = "Plurality"
DEVICE = "cuda"
BATCHES = (64, 10)
# What trains alone in `speed`, and together in `share`.
RECIPES = ("default", "dropout", "deep-mlp", "best")
SHARED = "default"
TOGETHER = (1, 2, 4, 8)
# What is trained twice, and how many passes of it; None for all.
REPEATED = {"smoke": None, "smoke-norm": None, "default": 2, "best": 1}
REPEATED_SEED = 7
REPEATED_MEMBERS = 2


def gpu():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def bench(recipe, *further):
    return [TRAINER, "--bench", recipe, "--device", DEVICE, "--data", ROOT / "data" / "mnist", *further]


def speed(arguments):
    """Returns what each program printed in each round, by batch, and what the trainer printed for each recipe."""
    beside, seconds = {}, ["--seconds", arguments.seconds]
    with tempfile.TemporaryDirectory() as folder:
        for batch in BATCHES:
            recipe, rate = pathlib.Path(folder) / RECIPE.name, RATE * batch / RATE_BATCH
            recipe.write_text(with_rate(rate))
            commands = {OURS: bench(recipe)}
            for mode in MODES:
                commands[f"PyTorch, {mode}"] = [arguments.python, BASELINE, "--mode", mode, "--rate", rate, "--device", DEVICE]
            printed = beside[str(batch)] = {name: [] for name in commands}
            for number in range(arguments.rounds):
                for name, command in commands.items():
                    printed[name].append(run([*command, "--batch", batch, *seconds]))
                    rate_seen = printed[name][-1]["images_per_second"]
                    print(f"batch {batch}, round {number + 1}: {name}: {rate_seen:.0f} images a second", flush=True)
    alone = {name: run([*bench(name), *seconds]) for name in RECIPES}
    return {"beside": beside, "alone": alone, "rounds": arguments.rounds, "seconds": arguments.seconds}


def share(arguments):
    """Returns the images a second that each of so many trainers had at the same time, by their number."""
    rates = {}
    for count in TOGETHER:
        printed = together([*bench(SHARED), "--seconds", 2 * arguments.seconds], count)
        rates[str(count)] = [trainer["images_per_second"] for trainer in printed]
        print(f"{count} trainers: {sum(rates[str(count)]):.0f} images a second", flush=True)
    return rates


def train(recipe, seed, members, slots, out):
    """Trains on a cluster of its own and returns the report and the seconds that the command took."""
    with tempfile.TemporaryDirectory() as state:
        command = [COORDINATOR, "--ensemble", members, "--local-workers", slots, "--recipe", recipe, "--seed", seed,
                   "--listen", "127.0.0.1:0", "--state", state, "--out", out]  # fmt: skip
        environment = {**os.environ, "PLURALITY_DEVICE": DEVICE}
        start = time.monotonic()
        subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=environment)
        seconds = time.monotonic() - start
    report = json.loads((pathlib.Path(out) / "report.json").read_text())
    if any(not member["device"].startswith(DEVICE) for member in report["members"]):
        raise SystemExit("gpu: a member was not trained on the GPU")
    return report, seconds


def shortened(name, passes, folder):
    """A recipe as a file, with so many passes."""
    text = subprocess.run([COORDINATOR, "recipes", "show", name], check=True, stdout=subprocess.PIPE, text=True).stdout
    full = tomllib.loads(text)["training"]["epochs"]
    path = pathlib.Path(folder) / f"{name}.toml"
    path.write_text(text.replace(f"epochs = {full}\n", f"epochs = {passes or full}\n"))
    return path


def repeat(arguments):
    """Trains each recipe twice; returns the digests of the checkpoints of both times."""
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, passes in REPEATED.items():
            recipe = shortened(name, passes, folder)
            with ThreadPoolExecutor() as pool:
                outs = [pathlib.Path(folder) / f"{name}-{number}" for number in range(2)]
                each = [pool.submit(train, recipe, REPEATED_SEED, REPEATED_MEMBERS, REPEATED_MEMBERS, out) for out in outs]
                reports = [training.result()[0] for training in each]
            twice = [[member["checkpoint_sha256"] for member in report["members"]] for report in reports]
            digests[name] = {"passes": passes, "digests": twice}
            print(f"{name}: {'the same bytes' if twice[0] == twice[1] else 'other bytes'}", flush=True)
    return digests


def accuracy(arguments):
    """Trains the main job once for each seed; returns what the page needs of each report."""
    runs = []
    for seed in map(int, arguments.seeds.split(",")):
        report, seconds = train("default", seed, 5, arguments.slots, KEPT / f"gpu-default-seed-{seed}")
        members = [member["test_accuracy"] for member in report["members"]]
        vote = report["ensemble"]["majority_vote"]
        runs.append({"seed": seed, "wall": seconds, "members": members, "vote": vote["accuracy"],
                     "train": [member["train_seconds"] for member in report["members"]]})  # fmt: skip
    return {"runs": runs, "slots": arguments.slots}


def best(arguments):
    """Trains an ensemble of `best` and returns what the page needs of its report."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = shortened("best", arguments.passes, folder)
        report, seconds = train(recipe, 1, arguments.members, arguments.slots, KEPT / "gpu-best")
    votes = report["ensemble"]
    return {"wall": seconds, "passes": report["run"]["recipe"]["training"]["epochs"], "slots": arguments.slots,
            "members": [member["test_accuracy"] for member in report["members"]],
            "train": [member["train_seconds"] for member in report["members"]],
            "vote": votes["majority_vote"]["accuracy"], "softmax": votes["mean_softmax"]["accuracy"]}  # fmt: skip


def on_cpu():
    """Members' accuracies and votes, in percent, from the page about the CPU."""
    members, votes = [], []
    for line in (RESULTS / "ensemble.md").read_text().splitlines():
        cells = [text.strip() for text in line.split("|")]
        if len(cells) > 5 and cells[1].isdigit():
            members += [float(text) for text in cells[3].split(",")]
            votes.append(float(cells[5].split("**")[1]))
    return members, votes


def speed_lines(found):
    lines = [
        "## Speed",
        "",
        "The lecture's network (20-40-1000-1000 with dropout) on one-pixel shifts, all data on the GPU. Images a second of wall",
        f"time: medians of {found['rounds']} rounds of {found['seconds']:g} s each, in turns; lowest and highest in brackets. PyTorch is that of the same folder.",
        "",
        "| batch | program | images a second | to the best of PyTorch | loss at the end |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for batch, printed in found["beside"].items():
        best = max(median(rounds, "images_per_second") for name, rounds in printed.items() if name != OURS)
        for name, rounds in printed.items():
            ratio = median(rounds, "images_per_second") / best
            lines.append(f"| {batch} | {name} | {cell(rounds, 'images_per_second')} | {ratio:.2f} | {median(rounds, 'loss'):.2f} |")
    lines += ["", "Recipes as they are, once each:", "", "| recipe | batch | images a second | µs a step |", "|---|---|---|---|"]
    for name, printed in found["alone"].items():
        step = 1e6 * printed["batch"] / printed["images_per_second"]
        lines.append(f"| `{name}` | {printed['batch']} | {printed['images_per_second']:.0f} | {step:.0f} |")
    return lines


def share_lines(found):
    lines = [
        f"## Trainers that share the GPU, each with a network of `{SHARED}`",
        "",
        "| trainers | images a second, together | to one alone |",
        "|---|---|---|",
    ]
    alone = sum(found[str(TOGETHER[0])])
    for count, rates in found.items():
        lines.append(f"| {count} | {sum(rates):.0f} | {sum(rates) / alone:.2f} |")
    return lines


def repeat_lines(found):
    lines = [
        "## Two trainings of one seed",
        "",
        f"Each recipe was trained twice with seed {REPEATED_SEED}, {REPEATED_MEMBERS} members each, at the same time by clusters that know nothing of each other.",
        "",
        "| recipe | passes | checkpoints |",
        "|---|---|---|",
    ]
    for name, trained in found.items():
        first, second = trained["digests"]
        same = sum(one == other for one, other in zip(first, second))
        told = "identical" if same == len(first) else f"{same} of {len(first)} identical"
        lines.append(f"| `{name}` | {trained['passes'] or 'all'} | {told} |")
    return lines


def accuracy_lines(found):
    members, votes = on_cpu()
    ours = [100 * accuracy for trained in found["runs"] for accuracy in trained["members"]]
    own_votes = [100 * trained["vote"] for trained in found["runs"]]
    difference = statistics.mean(ours) - statistics.mean(members)
    error = math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(members) / len(members))
    lines = [
        "## Accuracy of the main job",
        "",
        f"`coordinator --ensemble 5` with the recipe `default`, {found['slots']} at a time on the GPU, once for each seed; per cent of the 10,000 test images.",
        "",
        "| seed | wall, s | seconds a member | members | majority vote |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for trained in found["runs"]:
        told = ", ".join(f"{100 * accuracy:.2f}" for accuracy in trained["members"])
        lines.append(f"| {trained['seed']} | {trained['wall']:.0f} | {statistics.mean(trained['train']):.0f} | {told} | **{100 * trained['vote']:.2f}** |")
    return lines + [
        "",
        f"Mean member: {statistics.mean(ours):.3f} ± {statistics.stdev(ours):.3f} (n = {len(ours)}) on the GPU, {statistics.mean(members):.3f} ± {statistics.stdev(members):.3f} (n = {len(members)}) on the CPU",
        f"([ensemble.md](ensemble.md)): a difference of {difference:+.3f} with a standard error of {error:.3f}, {abs(difference) / error:.1f} of it. Mean vote:",
        f"{statistics.mean(own_votes):.2f} on the GPU, {statistics.mean(votes):.2f} on the CPU.",
    ]  # fmt: skip


def best_lines(found):
    members = [100 * accuracy for accuracy in found["members"]]
    return [
        "## The recipe `best`",
        "",
        f"`coordinator --ensemble {len(members)}` with `best`, {found['passes']} passes, seed 1, {found['slots']} at a time: {found['wall']:.0f} s,"
        f" {statistics.mean(found['train']):.0f} s a member beside the others.",
        f"Members {', '.join(f'{accuracy:.2f}' for accuracy in members)} (mean {statistics.mean(members):.3f}); majority vote"
        f" **{100 * found['vote']:.2f}**, mean softmax {100 * found['softmax']:.2f}.",
    ]  # fmt: skip


PARTS = {"speed": speed, "share": share, "repeat": repeat, "accuracy": accuracy, "best": best}
LINES = {"speed": speed_lines, "share": share_lines, "repeat": repeat_lines, "accuracy": accuracy_lines, "best": best_lines}


def page(kept):
    lines = ["# On a GPU", "", "Made by `benches/gpu.py`, part by part. gpu.json holds what it measured."]
    for name, part in kept.items():
        lines += ["", *LINES[name](part["found"]), "", *part["origin"], f"- GPU and driver: {part['gpu']}"]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--seeds", default="1,2,3", help="seeds of the main job, separated by commas")
    parser.add_argument("--passes", type=int, help="passes of `best`, its own if not given")
    parser.add_argument("--members", type=int, default=5, help="members of `best`")
    parser.add_argument("--slots", type=int, default=5, help="networks that are trained at the same time")
    parser.add_argument("--python", default="python3", help="a Python with PyTorch and CUDA")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="the folder of gpu.json and gpu.md")
    arguments = parser.parse_args()
    store, origin = arguments.out / "gpu.json", provenance("benches/gpu.py")
    for name in arguments.parts.split(","):
        part = {"found": PARTS[name](arguments), "origin": origin, "gpu": gpu()}
        # Read late: another part may have been measured meanwhile.
        kept = json.loads(store.read_text()) if store.exists() else {}
        kept[name] = part
        kept = {known: kept[known] for known in PARTS if known in kept}
        store.write_text(json.dumps(kept, indent=1) + "\n")
        (arguments.out / "gpu.md").write_text(page(kept))
    print(f"\n{page(kept)}\nwritten to {arguments.out / 'gpu.md'}")


if __name__ == "__main__":
    main()
