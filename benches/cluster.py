"""A real coordinator and many synthetic workers: started, killed, looked at through /proc and through what it tells."""

import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import time

from machine import BUILT, TICKS_PER_SECOND, cpu_seconds

COORDINATOR = BUILT / "coordinator"
WORKERS = BUILT / "synthetic-workers"
# How long a program may take to start, or to end when it is asked to.
PATIENCE_S = 60


def used_cpu_seconds(process):
    """CPU seconds that a process has used."""
    return cpu_seconds((pathlib.Path("/proc") / str(process.pid) / "stat").read_text())[1]


def machine_cpu_seconds():
    """CPU seconds that everything on this machine has used, so that a page can say what else it had to do."""
    first = pathlib.Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _idle, _waiting, *interrupts = map(int, first.split()[1:8])
    return (user + nice + system + sum(interrupts)) / TICKS_PER_SECOND


def prepare(folder):
    """Writes the dataset and the recipe of synthetic trainings."""
    subprocess.run([WORKERS, "prepare", folder], check=True)


class Coordinator:
    """`coordinator serve` with its state in `folder`, which `prepare` has filled."""

    def __init__(self, folder):
        self.folder, self.state = folder, folder / "state"
        self.address, self.lives = "127.0.0.1:0", 0
        self.start()

    def start(self):
        log = self.folder / f"coordinator-{self.lives}.log"
        command = [COORDINATOR, "serve", "--listen", self.address, "--state", self.state, "--data", self.folder / "dataset"]
        with log.open("w") as output:
            # It logs what it does unless it is told otherwise: that is part of the load.
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "RUST_LOG": "info"})
        self.lives += 1
        deadline = time.monotonic() + PATIENCE_S
        while True:
            said = [line for line in log.read_text().splitlines() if line.startswith("listening on ")]
            if said:
                self.address = said[0].removeprefix("listening on ")
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{log.read_text()}\nthe coordinator did not start")
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def proc(self, name):
        return (pathlib.Path("/proc") / str(self.process.pid) / name).read_text()

    def cpu_seconds(self):
        return used_cpu_seconds(self.process)

    def memory_mb(self, key="VmRSS"):
        """`VmRSS` is what is resident, `VmHWM` the most that was."""
        lines = [line for line in self.proc("status").splitlines() if line.startswith(key)]
        return int(lines[0].split()[1]) * 1024 / 1e6

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def ask(self, *command):
        """What a command of the coordinator's own client answers, or `None` if that fails."""
        asking = [COORDINATOR, *map(str, command), "--server", self.address, "--output", "json"]
        answer = subprocess.run(asking, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return json.loads(answer.stdout) if answer.returncode == 0 else None

    def events(self):
        """How often each kind of event was stored; to be asked once it has ended, because it shares its log with nobody."""
        database = sqlite3.connect(self.state / "events.sqlite")
        try:
            kinds = "SELECT json_extract(body, '$.event') AS kind, count(*) FROM events GROUP BY kind"
            return dict(database.execute(kinds))
        finally:
            database.close()


class Workers:
    """One process of `synthetic-workers`."""

    def __init__(self, coordinator, workers, first=0, seed=0, **further):
        arguments = {"workers": workers, "first": first, "seed": seed, "connect": coordinator.address,
                     "cache": coordinator.folder / f"cache-{first}", **further}  # fmt: skip
        command = [str(WORKERS), "work"]
        for name, value in arguments.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def until(self, event):
        """Waits until it says so, and returns what it says."""
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == event:
                return said
        raise SystemExit(f"synthetic-workers ended with {self.process.wait()} before it was {event}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def ask_to_leave(self):
        self.process.send_signal(signal.SIGTERM)

    def leave(self):
        """Has all of them say good-bye; returns what happened to them."""
        self.ask_to_leave()
        said = self.until("ended")
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return said
