#!/usr/bin/env python3
"""Has a coordinator and synthetic workers work through random kills, and writes docs/results/soak.md: does anything leak?

Runs are submitted all the while. Sessions are dropped without a good-bye, whole processes of workers are killed with SIGKILL,
and in the first half so is the coordinator. In the second half one coordinator lives through it, whose memory is watched. At
the end every run has ended and every worker has left; then open files, slots and leases must be what they were. Of memory,
what a coordinator needs that has just read the same history back is no leak; what it has beyond that may be one.
"""

import argparse
import pathlib
import random
import resource
import tempfile
import time

from cluster import Coordinator, Workers, machine_cpu_seconds, prepare
from machine import ROOT, provenance

RESULT = ROOT / "docs" / "results" / "soak.md"
# Processes of workers: one at a time is killed.
PROCESSES = 4
# Members of a run, and so many runs that all slots have something to do and some members wait: a run whose last members were lost
# with their workers is open for minutes.
MEMBERS = 50
OPEN_RUNS_SPARE = 12
# Average seconds of a training, and of a snapshot's age.
TRAIN_S = 30
SNAPSHOT_S = 10
# Average seconds between two kills: of a session, of a process of workers, of the coordinator.
SESSION_KILL_S = 2
PROCESS_KILL_S = 60
COORDINATOR_KILL_S = 120
# How long whoever was killed stays away.
AWAY_S = (1, 8)
LOOK_S = 10
# How long the last runs may take once nothing is killed any more.
ENDING_S = 300
# Until a worker that was dropped while it waited counts as silent: a lease of 30 s and the longest wait of 25 s, and some more.
SILENCE_S = 60
# What a coordinator that was started needs to read its history back.
SETTLING_S = 15
# Beyond what the same history takes in a fresh coordinator: pages that the allocator keeps, connections' buffers, caches.
BEYOND_HISTORY_MB = 40
# Open files that come and go: an event store's journal, a blob being read.
FILES_TOLERANCE = 3


class Soak:
    """What works, what is still to come, and what has happened so far."""

    def __init__(self, folder, arguments):
        self.arguments, self.random = arguments, random.Random(arguments.seed)
        self.began, self.seconds = time.monotonic(), arguments.minutes * 60
        self.machine_began = machine_cpu_seconds()
        self.runs, self.ended, self.looks = [], {}, []
        self.kills = {"workers": 0, "coordinator": 0}
        self.told = {"lives": 0, "dropped": 0, "trainings": 0}
        self.recipe = folder / "recipe.toml"
        self.coordinator = Coordinator(folder)
        self.files_before = self.coordinator.open_files()
        self.fleets = {number: self.fleet(number) for number in range(PROCESSES)}
        # What is to happen when, the next first.
        self.deeds = []

    def fleet(self, number):
        workers = self.arguments.workers // PROCESSES
        return Workers(self.coordinator, workers, first=number * workers, seed=self.random.randrange(2**32),
                       train_seconds=TRAIN_S, snapshot_seconds=SNAPSHOT_S, kill_every=SESSION_KILL_S * PROCESSES)  # fmt: skip

    def elapsed(self):
        return time.monotonic() - self.began

    def later(self, seconds, deed):
        self.deeds.append((self.elapsed() + seconds, deed))
        self.deeds.sort(key=lambda entry: entry[0])

    def soon(self, average_s, deed):
        """Plans a deed at a random moment, on the average after so many seconds."""
        self.later(self.random.uniform(0.5, 1.5) * average_s, deed)

    def run(self):
        self.later(0, self.look)
        self.soon(PROCESS_KILL_S, self.kill_fleet)
        self.soon(COORDINATOR_KILL_S, self.kill_coordinator)
        while self.elapsed() < self.seconds:
            self.keep_busy()
            while self.deeds and self.deeds[0][0] <= self.elapsed():
                self.deeds.pop(0)[1]()
            time.sleep(1)

    def keep_busy(self):
        """Submits runs until all slots have something to do."""
        wanted = self.arguments.workers // MEMBERS + OPEN_RUNS_SPARE
        while len(self.runs) - len(self.ended) < wanted:
            submitted = self.coordinator.ask("submit", "--recipe", self.recipe, "--ensemble", MEMBERS, "--seed", len(self.runs))
            if submitted is None:
                return
            self.runs.append(submitted["run_id"])

    def look(self):
        """Notes what there is now, and which runs have ended."""
        self.later(LOOK_S, self.look)
        for run in [run for run in self.runs if run not in self.ended]:
            shown = self.coordinator.ask("show", run)
            if shown is not None and shown["status"] != "running":
                self.ended[run] = shown["status"]
        workers = self.coordinator.ask("workers")
        if workers is None:
            return
        self.looks.append({
            "at": self.elapsed(), "life": self.coordinator.lives, "memory": self.coordinator.memory_mb(),
            "files": self.coordinator.open_files(),
            "online": sum(worker["status"] == "online" for worker in workers),
            "attempts": sum(len(worker["attempts"]) for worker in workers), "ended": len(self.ended),
        })  # fmt: skip
        print(" ".join(f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}"
                       for key, value in self.looks[-1].items()), flush=True)  # fmt: skip

    def kill_fleet(self):
        number = self.random.choice(sorted(self.fleets))
        self.fleets.pop(number).kill()
        self.kills["workers"] += 1

        def bring_back():
            self.fleets[number] = self.fleet(number)
            self.soon(PROCESS_KILL_S, self.kill_fleet)

        self.later(self.random.uniform(*AWAY_S), bring_back)

    def kill_coordinator(self):
        # One life in the second half, so that its memory can be watched.
        if self.elapsed() > self.seconds / 2 - AWAY_S[1]:
            return
        self.coordinator.kill()
        self.kills["coordinator"] += 1
        time.sleep(self.random.uniform(*AWAY_S))
        self.coordinator.start()
        self.soon(COORDINATOR_KILL_S, self.kill_coordinator)

    def beside_percent(self):
        """What all else on the machine took, once all that is ours has ended."""
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        used = sum(usage.ru_utime + usage.ru_stime for usage in ours)
        return 100 * (machine_cpu_seconds() - self.machine_began - used) / self.elapsed()

    def end(self):
        """Lets every run come to its end and every worker leave, and notes what is left then."""
        self.deeds = [entry for entry in self.deeds if entry[1] == self.look]
        for number in set(range(PROCESSES)) - set(self.fleets):
            self.fleets[number] = self.fleet(number)
        deadline = self.elapsed() + ENDING_S
        while len(self.ended) < len(self.runs) and self.elapsed() < deadline:
            time.sleep(LOOK_S)
            self.look()
        for fleet in self.fleets.values():
            fleet.ask_to_leave()
        for fleet in self.fleets.values():
            told = fleet.leave()
            self.told = {key: value + told[key] for key, value in self.told.items()}
        time.sleep(SILENCE_S)
        self.look()
        self.coordinator.kill()
        events = self.coordinator.events()
        self.coordinator.start()
        time.sleep(SETTLING_S)
        fresh = self.coordinator.memory_mb()
        self.coordinator.stop()
        return events, fresh


def half_slope(looks):
    """MB a minute by which memory grew over the second half, by least squares, and seconds of it."""
    points = [(look["at"] / 60, look["memory"]) for look in looks]
    count, (x, y) = len(points), (sum(column) for column in zip(*points))
    squares = sum((at - x / count) ** 2 for at, _ in points)
    return sum((at - x / count) * (memory - y / count) for at, memory in points) / squares


def verdicts(soak, events, fresh):
    """Each rule with what was found and whether it holds."""
    last = soak.looks[-1]
    beyond = last["memory"] - fresh
    unended = len(soak.runs) - len(soak.ended)
    return [
        ("runs without an end", str(unended), unended == 0),
        ("runs that failed", str(list(soak.ended.values()).count("failed")), "failed" not in soak.ended.values()),
        ("members committed, of those submitted", f"{events.get('member-committed', 0):,} of {len(soak.runs) * MEMBERS:,}",
         events.get("member-committed", 0) == len(soak.runs) * MEMBERS),
        ("workers online at the end", str(last["online"]), last["online"] == 0),
        ("attempts that hold a slot or a lease at the end", str(last["attempts"]), last["attempts"] == 0),
        ("open files before the first worker and at the end", f"{soak.files_before} and {last['files']}",
         last["files"] <= soak.files_before + FILES_TOLERANCE),
        (f"memory beyond that of a fresh coordinator with the same history, at most {BEYOND_HISTORY_MB} MB",
         f"{last['memory']:.0f} − {fresh:.0f} = {beyond:.0f} MB", beyond <= BEYOND_HISTORY_MB),
    ]  # fmt: skip


def page(soak, events, fresh, slope, grown):
    rules = verdicts(soak, events, fresh)
    working = [look for look in soak.looks if look["at"] <= soak.seconds]
    shares = [min(working, key=lambda look: abs(look["at"] - soak.seconds * share / 100)) for share in (25, 50, 75, 100)]
    attempts = {kind.removeprefix("attempt-"): count for kind, count in events.items() if kind.startswith("attempt-")}
    completed = list(soak.ended.values()).count("completed")
    lines = [
        "# A coordinator and its workers through random kills",
        "",
        f"{soak.arguments.workers} synthetic workers in {PROCESSES} processes (real sessions, uploads and commits; trainings that compute nothing, {TRAIN_S} s on",
        f"the average, a snapshot each {SNAPSHOT_S} s) and one coordinator, for {soak.arguments.minutes:g} minutes. On the average a session is dropped without a",
        f"good-bye each {SESSION_KILL_S} s, a process of workers killed with SIGKILL each {PROCESS_KILL_S} s, and in the first half the coordinator each {COORDINATOR_KILL_S} s.",
        "In the second half one coordinator lives through it all.",
        "",
        *provenance("benches/soak.py"),
        "",
        f"- Runs of {MEMBERS} members: {len(soak.runs)} submitted, {completed} completed, {len(soak.ended) - completed} ended otherwise.",
        f"- Attempts: {attempts.get('offered', 0):,} given out; {attempts.get('suspected', 0):,} suspected, {attempts.get('superseded', 0):,} superseded, {attempts.get('lost', 0):,} lost,"
        f" {attempts.get('failed', 0):,} failed, {attempts.get('drained', 0):,} given back.",
        f"- Sessions of workers: {events.get('worker-registered', 0):,}; {soak.told['dropped']:,} dropped by the processes that lived to the end.",
        f"- Killed with SIGKILL: {soak.kills['workers']} processes of workers, {soak.kills['coordinator']} coordinators.",
        f"- Events stored: {sum(events.values()):,}.",
        f"- All else on the machine took {soak.beside_percent():.0f} % of a core meanwhile.",
        "",
        "| time | coordinator's memory, MB | its open files | online | attempts held | runs ended |",
        "|---|---|---|---|---|---|",
        *[
            f"| {share} % | {look['memory']:.0f} | {look['files']} | {look['online']} | {look['attempts']} | {look['ended']} |"
            for share, look in zip((25, 50, 75, 100), shares)
        ],
        f"| all have left | {soak.looks[-1]['memory']:.0f} | {soak.looks[-1]['files']} | {soak.looks[-1]['online']} | {soak.looks[-1]['attempts']} | {soak.looks[-1]['ended']} |",
        "",
        f"Over the second half memory grew by {slope:.2f} MB a minute, in which {grown:.1f} runs ended: {1000 * slope / max(grown, 1e-9):.0f} kB a run. That is history: runs,",
        "members, attempts and sessions, which a coordinator keeps for as long as it has them in its log. What is not history is",
        "what it has beyond a coordinator that has just read the same log.",
        "",
        "| rule | found | |",
        "|---|---|---|",
        *[f"| {rule} | {found} | {'holds' if holds else '**broken**'} |" for rule, found, holds in rules],
        "",
        f"Verdict: **{'flat' if all(holds for _, _, holds in rules) else 'not flat'}**.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n", all(holds for _, _, holds in rules)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=pathlib.Path, default=RESULT, help="the page to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        prepare(folder)
        soak = Soak(folder, arguments)
        try:
            soak.run()
            second_half = [look for look in soak.looks if look["at"] >= soak.seconds / 2]
            slope = half_slope(second_half)
            minutes = (second_half[-1]["at"] - second_half[0]["at"]) / 60
            grown = (second_half[-1]["ended"] - second_half[0]["ended"]) / minutes
            events, fresh = soak.end()
        finally:
            for fleet in soak.fleets.values():
                if fleet.process.poll() is None:
                    fleet.kill()
            if soak.coordinator.process.poll() is None:
                soak.coordinator.kill()
    text, is_flat = page(soak, events, fresh, slope, grown)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(text)
    print(f"\n{text}\nwritten to {arguments.result}")
    return 0 if is_flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
