#!/usr/bin/env python3
"""Measures how much faster two local workers train an ensemble than one, in turns, and writes docs/results/scaling.md.

Times are those of the coordinator's own events, from its log in a state folder that is made for each run: from the first
attempt that a worker reported to the last result that came in. Neither the start of coordinator and workers nor the
verification of the last member is part of it. Before and after each round two trainers run without a cluster, and one: what
two of the machine's processors give is the most that two workers can. Run it on a machine that has nothing else to do.
"""

import argparse
import json
import pathlib
import sqlite3
import statistics
import subprocess
import tempfile

from machine import BUILT, ROOT, provenance, together

COORDINATOR = BUILT / "coordinator"
TRAINER = BUILT / "worker-trainer"
RECIPE = ROOT / "benches" / "lecture-network.toml"
RESULT = ROOT / "docs" / "results" / "scaling.md"
# How long trainers run without a cluster.
ALONE_SECONDS = 15
# What docs/results/scaling.md states beside what was measured.
GOAL = 1.9


def events(state):
    database = sqlite3.connect(state / "events.sqlite")
    try:
        return [json.loads(body) for (body,) in database.execute("SELECT body FROM events ORDER BY sequence")]
    finally:
        database.close()


def seconds(log):
    """Wall seconds of training, and the means of a member: wall and CPU seconds in its trainer, seconds to verify it."""
    started = [event["at"] for event in log if event["event"] == "attempt-started"]
    received = {event["attempt"]: event for event in log if event["event"] == "result-received"}
    committed = {event["attempt"]: event["at"] for event in log if event["event"] == "member-committed"}
    if not len(started) == len(received) == len(committed):
        raise SystemExit(f"scaling: {len(started)} attempts gave {len(committed)} members: the run was disturbed")
    results = [event["result"] for event in received.values()]
    return {
        "wall": (max(event["at"] for event in received.values()) - min(started)) / 1000,
        "member": statistics.mean(result["train_seconds"] for result in results),
        "member CPU": statistics.mean(result["train_cpu_seconds"] for result in results),
        "verification": statistics.mean(at - received[attempt]["at"] for attempt, at in committed.items()) / 1000,
    }


def measure(workers, arguments):
    with tempfile.TemporaryDirectory() as folder:
        state, out = pathlib.Path(folder) / "state", pathlib.Path(folder) / "out"
        command = [COORDINATOR, "--ensemble", arguments.ensemble, "--local-workers", workers, "--recipe", arguments.recipe,
                   "--seed", arguments.seed, "--listen", "127.0.0.1:0", "--state", state, "--out", out]  # fmt: skip
        command = [str(part) for part in command]
        finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if finished.returncode != 0:
            raise SystemExit(f"{finished.stdout}\nscaling: the coordinator ended with {finished.returncode}")
        return seconds(events(state))


def without_cluster(arguments):
    """How many times the images of one trainer two have that run at the same time, and nothing else does."""
    command = [TRAINER, "--bench", arguments.recipe, "--data", ROOT / "data" / "mnist", "--seconds", ALONE_SECONDS]
    one, two = (sum(printed["images_per_second"] for printed in together(command, count)) for count in (1, 2))
    return two / one


def page(runs, alone, arguments):
    recipe = pathlib.Path(arguments.recipe).stem
    lines = [
        "# One worker and two",
        "",
        f"`coordinator --ensemble {arguments.ensemble} --recipe {recipe} --local-workers N` on one machine: {arguments.ensemble} members that train on one thread",
        f"each. Medians of {arguments.rounds} rounds, in turns; lowest and highest in brackets. The wall time is that from the first attempt that a",
        "worker reported to the last result that came in, by the coordinator's events: without its start and without the",
        "verification of the last member. Members that are verified while others train take time from them, as always.",
        "",
        *provenance("benches/scaling.py"),
        "",
        "| local workers | wall, s | seconds a member | CPU seconds a member | seconds to verify one |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    medians = {}
    for workers, measured in runs.items():
        columns = {key: [run[key] for run in measured] for key in measured[0]}
        medians[workers] = statistics.median(columns["wall"])
        lines.append(f"| {workers} | " + " | ".join(
            f"{statistics.median(columns[key]):.1f} ({min(columns[key]):.1f} to {max(columns[key]):.1f})" for key in columns
        ) + " |")  # fmt: skip
    ratio, most = medians[1] / medians[2], statistics.median(alone)
    lines += [
        "",
        f"Two workers are **{ratio:.2f}** times as fast as one; the goal is at least {GOAL}. Two trainers without a cluster train {most:.2f} times",
        f"({min(alone):.2f} to {max(alone):.2f}) the images of one on this machine, whose processors share what they do not have twice: the",
        f"cluster reaches {100 * ratio / most:.0f} % of that.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ensemble", type=int, default=4, help="members; an even number, so that two workers share them")
    parser.add_argument("--recipe", default=str(RECIPE.relative_to(ROOT)), help="a built-in recipe or a file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=pathlib.Path, default=RESULT, help="the page to write")
    arguments = parser.parse_args()
    runs, alone = {1: [], 2: []}, [without_cluster(arguments)]
    for number in range(arguments.rounds):
        for workers, measured in runs.items():
            measured.append(measure(workers, arguments))
            print(f"round {number + 1}: {workers} local: {measured[-1]['wall']:.1f} s")
        alone.append(without_cluster(arguments))
        print(f"two trainers without a cluster: {alone[-1]:.2f} times one")
    text = page(runs, alone, arguments)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(text)
    print(f"\n{text}\nwritten to {arguments.result}")


if __name__ == "__main__":
    main()
