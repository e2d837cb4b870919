"""The processes of the soak: the store, the proxy before it, and two schedules; and the log of what happens to them.

Every event is a line of JSON in events.jsonl: t (seconds since 1970), at (UTC), event, and what belongs to it. The verdict
is made from this log, that of the proxy, samples.jsonl (memory) and the tables.
"""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUCKET = "study"
COHORT, TABLES = f"s3://{BUCKET}/cohort", f"s3://{BUCKET}/tables"
CLIENTS = ("A", "B")
# Signals after which a process is gone; SIGSTOP only freezes it.
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP, "CONT": signal.SIGCONT}


class Events:
    def __init__(self, folder):
        self.file = open(folder / "events.jsonl", "a", buffering=1)
        self.lock = threading.Lock()

    def __call__(self, event, **more):
        now = time.time()
        at = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%H:%M:%S")
        with self.lock:
            self.file.write(json.dumps({"t": round(now, 3), "at": at, "event": event, **more}) + "\n")
            print(at, event, *(f"{k}={v}" for k, v in more.items()), flush=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(port):
    """The variables with which the program finds the store behind a port."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "NEUROSIEVE_"))},
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "sekret-of-tests",
    }


class Store:
    """moto, in a process of its own. It keeps everything in memory: it may be frozen, but not end."""

    def __init__(self):
        command = [sys.executable, REPOSITORY / "tests/servers/s3_server.py", BUCKET]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.port = int(self.process.stdout.readline())

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


class Front:
    """The proxy: the store's front, which has no state and is killed and started again as a store is."""

    def __init__(self, folder, store, options):
        self.folder, self.store, self.options = folder, store, options
        self.ports = {client: free_port() for client in CLIENTS}
        self.off = folder / "faults-off"
        self.lives = 0
        self.process = None

    def start(self):
        self.lives += 1
        command = [sys.executable, REPOSITORY / "tests/soak/proxy.py", "--upstream", self.store.port]
        command += [f"--port={client}={port}" for client, port in self.ports.items()]
        command += ["--log", self.folder / "requests.jsonl", "--off", self.off]
        command += ["--seed", f"{self.options.seed}/{self.lives}", "--percent", self.options.percent]
        command += ["--kinds", self.options.kinds] if self.options.kinds else []
        errors = open(self.folder / "proxy.log", "a")
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=errors)
        self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None


class Schedule:
    """One of the two schedules, over all its lives."""

    def __init__(self, name, folder, port, options, events):
        self.name, self.folder, self.port, self.options, self.events = name, folder, port, options, events
        self.process, self.lives, self.frozen, self.ending_since = None, 0, False, None
        self.start_at = time.time()

    def start(self):
        self.lives += 1
        command = [self.options.program, "schedule", REPOSITORY / "tests/soak/pipeline.toml"]
        command += ["--cohort", COHORT, "--tables", TABLES]
        options = self.options
        for key, first, every in (("run", 0, options.night_every), ("upkeep", options.upkeep_offset, options.upkeep_every)):
            command.append(f'--set=schedule.{key}="{first}-59/{every} * * * *"')
        log = open(self.folder / f"{self.name}.log", "a")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(self.port), cwd=self.folder)
        self.frozen, self.ending_since, self.start_at = False, None, None
        self.events("started", who=self.name, pid=self.process.pid, life=self.lives)

    def signal(self, name, victim, **more):
        """Sends a signal; `victim` is what the kill counts as."""
        self.process.send_signal(SIGNALS[name])
        self.events("signal", who=self.name, signal=name, victim=victim, life=self.lives, **more)
        if name in ("KILL", "TERM"):
            self.ending_since = time.time()
        else:
            self.frozen = name == "STOP"

    def poll(self, pause):
        """Notices the end of the process and starts it again; `pause` gives the seconds until then, or none."""
        now = time.time()
        if self.process is None:
            if self.start_at is not None and now >= self.start_at:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            if self.ending_since and now - self.ending_since > self.options.stop_within:
                self.signal("KILL", "hung")
            return
        asked = self.ending_since is not None
        seconds = round(now - self.ending_since, 1) if asked else None
        self.process, self.frozen = None, False
        wait = pause()
        self.start_at = None if wait is None else now + wait
        self.events("ended", who=self.name, code=code, asked=asked, after=seconds, life=self.lives, restart_in=wait)

    def memory(self):
        """Resident memory now and at its peak, in MiB; none where there is no process."""
        if self.process is None:
            return None
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return (kib["VmRSS"] / 1024, kib["VmHWM"] / 1024) if len(kib) == 2 else None
