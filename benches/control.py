#!/usr/bin/env python3
"""Measures what a coordinator costs that has thousands of workers, and writes docs/results/control.md.

Each row has a coordinator of its own and as many synthetic workers, in one process: real sessions over loopback, real
uploads and commits, and trainings that compute nothing. Idle workers are looked at for --seconds, those that train from the
moment at which their members are submitted until each must be committed. CPU and memory are the coordinator's own, by /proc.
"""

import argparse
import pathlib
import tempfile
import time

from cluster import Coordinator, Workers, machine_cpu_seconds, prepare, used_cpu_seconds
from machine import ROOT, provenance

RESULT = ROOT / "docs" / "results" / "control.md"
# What docs/results/control.md states beside what was measured: with a thousand idle workers.
CPU_GOAL_PERCENT = 5
MEMORY_GOAL_MB = 200
# Between registration and measurement: what workers fetch or store at their start is no part of being idle.
SETTLING_S = 10
# The longest training, in averages, and the time for the last results to be handed over and verified.
LONGEST = 1.5
COMMITTING_S = 30
# Between two looks, and the length of the busiest part that the table names.
LOOK_S = 1
BUSIEST_S = 10
# Workers that are idle, or train; the first row is the one that the goals are about.
ROWS = [(1000, False), (2000, False), (2000, True)]


class Watch:
    """Looks at a coordinator each second, and at what else the machine does."""

    def __init__(self, coordinator, fleet):
        self.coordinator, self.fleet, self.looks, self.beside, self.files = coordinator, fleet, [], [], 0
        self.look()

    def look(self):
        ours = self.coordinator.cpu_seconds() + used_cpu_seconds(self.fleet.process)
        self.beside.append((time.monotonic(), machine_cpu_seconds() - ours))
        self.looks.append((time.monotonic(), self.coordinator.cpu_seconds()))
        self.files = max(self.files, self.coordinator.open_files())

    def watch(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            self.look()

    def seconds(self):
        return self.looks[-1][0] - self.looks[0][0]

    def cpu_percent(self):
        return percent(self.looks[0], self.looks[-1])

    def beside_percent(self):
        """What all else took."""
        return percent(self.beside[0], self.beside[-1])

    def busiest_percent(self):
        """The greatest share of a core over some ten seconds."""
        reach = BUSIEST_S // LOOK_S
        pairs = list(zip(self.looks, self.looks[reach:])) or [(self.looks[0], self.looks[-1])]
        return max(percent(*pair) for pair in pairs)


def percent(earlier, later):
    return 100 * (later[1] - earlier[1]) / (later[0] - earlier[0])


def measure(workers, is_training, arguments):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        prepare(folder)
        coordinator = Coordinator(folder)
        try:
            members = workers if is_training else 0
            fleet = Workers(coordinator, workers, members=members, train_seconds=arguments.train_seconds)
            online = fleet.until("online")
            if is_training:
                fleet.until("submitted")
                seconds = LONGEST * arguments.train_seconds + COMMITTING_S
            else:
                time.sleep(SETTLING_S)
                seconds = arguments.seconds
            watch = Watch(coordinator, fleet)
            watch.watch(seconds)
            peak, resident = coordinator.memory_mb("VmHWM"), coordinator.memory_mb()
            told = fleet.leave()
        finally:
            coordinator.kill()
        events = coordinator.events()
        committed = events.get("member-committed", 0)
        if committed != members:
            raise SystemExit(f"control: {committed} of {members} members are committed after {seconds:.0f} s")
        return {
            "is training": is_training, "online": online["after_seconds"], "watch": watch, "peak": peak,
            "resident": resident, "events": sum(events.values()), **told,
        }  # fmt: skip


def milliseconds(figures):
    if not figures["count"]:
        return "–"
    return f"{figures['p50_ms']:.1f} / {figures['p99_ms']:.1f} / {figures['max_ms']:.1f}"


def row(found):
    watch, what = found["watch"], "train" if found["is training"] else "idle"
    return (
        f"| {found['workers']:,} {what} | {watch.seconds():.0f} | {watch.beside_percent():.0f} | {watch.cpu_percent():.1f} | {watch.busiest_percent():.1f}"
        f" | {found['peak']:.0f} | {found['resident']:.0f} | {watch.files} | {milliseconds(found['sync'])}"
        f" | {found['sync']['count']} | {milliseconds(found['begun_after_submit'])} | {found['events']:,} |"
    )


def page(rows, arguments):
    idle = rows[0]
    lines = [
        "# Thousands of workers on one coordinator",
        "",
        "Synthetic workers, all of a row in one process: real sessions, heartbeats, uploads and commits over loopback, and",
        f"trainings that compute nothing, of {arguments.train_seconds / 2:.0f} to {arguments.train_seconds * LONGEST:.0f} s each, without snapshots, with a small network that is verified like any other.",
        f"A worker has one slot. Those that train are looked at from the moment at which a member for each is submitted to {COMMITTING_S} s after",
        "the last training must have ended: all members are committed by then.",
        "",
        *provenance("benches/control.py"),
        "",
        f"| workers | looked at, s | all else on the machine, % of a core | CPU, % of a core | the busiest {BUSIEST_S} s | peak memory, MB | at the end, MB | open files, at most | `Sync`: median / p99 / longest, ms | calls | begun after submit: median / p99 / longest, ms | events stored |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *[row(found) for found in rows],
        "",
        "CPU and memory (resident; 1 MB is 10⁶ bytes) are the coordinator's own, by `/proc`, and the peak is that since its start.",
        "Open files are connections for the most part: a worker that trains has two. `Sync` is what a probe measures, on a thread",
        "and a connection of its own, ten times a second: a call that is answered at once, which takes the way of any other",
        "(connection, mailbox, decision, answer). What workers call themselves waits for its answer by design: 25 s where they",
        "are idle, a heartbeat where they train. The time from submit to begin goes from the request to the moment at which a",
        "worker starts the training, for each. Workers and coordinator share the machine's cores with each other, and with all else",
        "that it had to do meanwhile, which the third column counts: latencies suffer from that. On a machine that is shared with others",
        "CPU seconds, too, differ from run to run.",
        "",
        f"The goals for {idle['workers']:,} idle workers: at most {CPU_GOAL_PERCENT} % of a core, reached **{idle['watch'].cpu_percent():.1f} %**; at most {MEMORY_GOAL_MB} MB,",
        f"reached **{idle['peak']:.0f} MB** at the peak.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long idle workers are looked at")
    parser.add_argument("--train-seconds", type=float, default=60, help="what a training takes on the average")
    parser.add_argument("--scale", type=float, default=1, help="share of the workers, for a quick look")
    parser.add_argument("--result", type=pathlib.Path, default=RESULT, help="the page to write")
    arguments = parser.parse_args()
    rows = []
    for workers, is_training in ROWS:
        rows.append(measure(round(workers * arguments.scale), is_training, arguments))
        print(f"online after {rows[-1]['online']:.1f} s: {row(rows[-1])}", flush=True)
    text = page(rows, arguments)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(text)
    print(f"\n{text}\nwritten to {arguments.result}")


if __name__ == "__main__":
    main()
