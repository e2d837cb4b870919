#!/usr/bin/env python3
"""Simulates runs on a cluster, to say how long they take and what limits them first.

    python3 scripts/scaling_model.py [--figures FILE] [--check PAGE | --write PAGE]

Takes   scripts/scaling_figures.toml: what one scan, one chunk and one commit cost, each measured, assumed or estimated.
Gives   the tables of docs/scaling.md. --check compares them with those in PAGE, and the measured figures with the pages
        that they come from; exit code 1 where they differ. --write replaces those in PAGE.

The model has three kinds of servers:

    driver      one thing after the other: submits a chunk, accepts a chunk, commits
    scheduler   one chunk after the other
    executors   each works on the oldest chunk in its slots, whose scans were admitted first, as fast as its cores, its
                GPU and its network allow; a slot keeps its chunk longer than that, because the last scans drain

Chunks are made as the driver makes them: largest scans first, a quarter of an equal share of what is left to each slot,
8 to 256 scans, and twice as many jobs as slots in flight. Executors run throughout, nothing fails, and cores are as
fast in a large machine as in a small one. Driver and scheduler have cores of their own.
"""

import argparse
import heapq
import itertools
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- scripts/scaling_model.py -->", "<!-- end of scripts/scaling_model.py -->"
BASES = ("measured", "assumed", "estimate")

SLOTS = 2
SMALLEST_CHUNK, LARGEST_CHUNK = 8, 256
COMMIT_SCANS, COMMIT_SECONDS = 512, 60
# Scans per data file, and tables that each file of scans is written to: scans, tokens, masks, findings.
ROLL, TABLES = 64, 4
# Commits should leave the driver half of its time.
COMMIT_SHARE = 0.5

SCANS = (10_000, 100_000, 1_000_000)
GPUS = (0, 8)
CORES = (64, 256)
HEADS = ("1mm", "2mm")


@dataclass
class Executor:
    """One executor."""

    cores: float
    free_slots: int
    # When it has worked on all chunks that it has.
    free_at: float = 0.0


class Simulation:
    """One run of `scans` scans."""

    def __init__(self, figures, head, scans, gpus, cores, slots=SLOTS):
        self.f, self.scans, self.gpus, self.cores = figures, scans, gpus, cores
        n = gpus or max(1, round(cores / figures["cores_per_executor"]))
        self.executors = [Executor(cores / n, slots) for _ in range(n)]
        self.slots = n * slots
        self.core_s = core_seconds(figures, head, bool(gpus))
        self.device_s = figures["networks_gpu_s"] if gpus else 0.0
        self.bytes_in = figures[f"scan_{head}_bytes"]
        self.busy = dict.fromkeys(["cores", "GPU", "network", "commits", "chunks", "scheduler"], 0.0)
        self.events, self.order = [], itertools.count()
        self.queue, self.sizes = [], {}
        self.assigned = self.in_flight = self.uncommitted = self.commits = self.files = 0
        self.driver = self.scheduler = self.last_commit = 0.0

    def at(self, when, what, *arguments):
        heapq.heappush(self.events, (when, next(self.order), what, arguments))

    def run(self):
        """Gives the seconds that the run takes."""
        f = self.f
        edges = f["run_requests"] * f["store_latency_s"] / 2
        pages = self.scans * f["listed_objects"] / 1000
        self.driver = self.last_commit = pages * f["store_latency_s"] + f["plan_s"] * self.scans + edges
        self.submit()
        while self.events:
            now, _, what, arguments = heapq.heappop(self.events)
            what(now, *arguments)
        if self.uncommitted:
            self.commit()
        self.elapsed = self.driver + edges
        return self.elapsed

    def submit(self):
        """Submits chunks, as long as there are scans and fewer than twice the slots in flight."""
        while self.assigned < self.scans and self.in_flight < 2 * self.slots:
            left = self.scans - self.assigned
            n = min(left, max(SMALLEST_CHUNK, min(LARGEST_CHUNK, left // (4 * self.slots))))
            chunk = len(self.sizes)
            # Largest first: sizes fall evenly from 1 + spread to 1 - spread of the mean.
            middle = (self.assigned + n / 2) / self.scans
            self.sizes[chunk] = (n, n * (1 + self.f["size_spread"] * (1 - 2 * middle)))
            self.assigned += n
            self.in_flight += 1
            self.spend("chunks", self.f["chunk_driver_s"] / 2)
            self.at(self.driver, self.schedule, chunk)

    def spend(self, what, seconds):
        self.driver += seconds
        self.busy[what] += seconds

    def schedule(self, now, chunk):
        self.scheduler = max(self.scheduler, now) + self.f["chunk_schedule_s"]
        self.busy["scheduler"] += self.f["chunk_schedule_s"]
        self.at(self.scheduler + self.f["chunk_wait_s"] / 2, self.enqueue, chunk)

    def enqueue(self, now, chunk):
        self.queue.append(chunk)
        self.place(now)

    def place(self, now):
        """Hands queued chunks to free slots, on the executor that has the most of them."""
        while self.queue:
            executor = max(self.executors, key=lambda e: e.free_slots)
            if not executor.free_slots:
                return
            chunk = self.queue.pop(0)
            executor.free_slots -= 1
            executor.free_at = max(executor.free_at, now) + self.work(executor, chunk)
            self.at(executor.free_at + self.f["chunk_drain_s"], self.drained, executor, chunk)

    def work(self, executor, chunk):
        """Seconds that an executor works on a chunk; what limits it is busy all that time."""
        n, weight = self.sizes[chunk]
        cores, device, read = weight * self.core_s, n * self.device_s, weight * self.bytes_in
        self.busy["cores"] += cores
        self.busy["GPU"] += device
        self.busy["network"] += read
        return max(cores / executor.cores, device, read / self.f["executor_network_bytes_per_s"])

    def drained(self, now, executor, chunk):
        executor.free_slots += 1
        self.place(now)
        self.at(now + self.f["chunk_wait_s"] / 2, self.accept, chunk)

    def accept(self, now, chunk):
        """The driver accepts a chunk, commits where that is due, and submits the next."""
        self.driver = max(self.driver, now)
        self.spend("chunks", self.f["chunk_driver_s"] / 2)
        n, _ = self.sizes[chunk]
        self.in_flight -= 1
        self.uncommitted += n
        self.files += -(-n // ROLL) * TABLES
        self.submit()
        if self.uncommitted >= COMMIT_SCANS or self.driver - self.last_commit >= COMMIT_SECONDS:
            self.commit()
        else:
            self.at(self.last_commit + COMMIT_SECONDS, self.commit_in_time, self.commits)

    def commit_in_time(self, now, commits):
        if commits == self.commits and self.uncommitted:
            self.driver = max(self.driver, now)
            self.commit()

    def commit(self):
        self.last_commit = self.driver
        self.spend("commits", commit_seconds(self.f, self.files))
        self.uncommitted = 0
        self.commits += 1

    def shares(self):
        """How busy each resource was, the busiest first; `start and end` is the time in which the busiest was idle."""
        n, rate = len(self.executors), self.f["executor_network_bytes_per_s"]
        capacity = {"cores": self.cores, "GPU": max(self.gpus, 1), "network": n * rate}
        shares = {name: busy / (self.elapsed * capacity.get(name, 1)) for name, busy in self.busy.items()}
        shares["start and end"] = 1 - max(shares.values())
        return sorted(shares.items(), key=lambda share: -share[1])


def core_seconds(figures, head, gpu):
    """Core-seconds that a scan takes in an executor with or without a GPU."""
    beside = figures["assess_s"] if gpu else figures["networks_cpu_s"]
    return figures[f"preprocess_{head}_s"] + beside + figures["engine_s"]


def commit_seconds(figures, files, latency=None):
    """Seconds of a commit on logs that hold this many files."""
    latency = figures["store_latency_s"] if latency is None else latency
    return figures["commit_s"] + figures["commit_requests"] * latency + figures["commit_file_s"] * files


def commit_scans(seconds, rate):
    """The power of two, from the default on, with which commits of this many seconds leave the driver half of its time."""
    n = COMMIT_SCANS
    while n < rate * seconds / COMMIT_SHARE:
        n *= 2
    return n


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value):
    return f"{value:,.0f}"


def value(v):
    return number(v) if v >= 1000 else f"{v:.6f}".rstrip("0").rstrip(".")


def duration(seconds):
    return f"{seconds / 3600:.2f}" if seconds < 36_000 else f"{seconds / 3600:.1f}"


def size(n):
    return f"{n / 1e12:.2f} TB" if n >= 1e12 else f"{n / 1e9:.0f} GB"


def runs(figures, head):
    rows = []
    for scans, gpus, cores in itertools.product(SCANS, GPUS, CORES):
        run = Simulation(figures, head, scans, gpus, cores)
        seconds = run.run()
        (first, most), (second, next_most) = run.shares()[:2]
        rows.append(
            [number(scans), gpus, cores, duration(seconds), f"{scans / seconds:.0f}", size(scans * run.bytes_in)]
            + [size(scans * figures["result_bytes"]), number(len(run.sizes)), number(run.commits)]
            + [f"{first} ({most:.0%})", f"{second} ({next_most:.0%})"]
        )
    header = ["scans", "GPUs", "cores", "hours", "scans/s", "read", "written", "chunks", "commits"]
    return markdown([*header, "first bottleneck", "next"], rows)


def slots(figures):
    rows = []
    for n in (1, 2, 3, 4):
        row = [n]
        for gpus, head in itertools.product(GPUS, HEADS):
            run = Simulation(figures, head, max(SCANS), gpus, max(CORES), n)
            row.append(f"{max(SCANS) / run.run():.0f}")
        rows.append(row)
    kinds = [f"{gpus} GPUs, {head.replace('mm', ' mm')}: scans/s" for gpus, head in itertools.product(GPUS, HEADS)]
    return markdown(["slots an executor", *kinds], rows)


def executors(figures):
    rows = []
    for head in HEADS:
        with_gpu, without = (core_seconds(figures, head, gpu) for gpu in (True, False))
        feeding, rate = figures[f"preprocess_{head}_s"], 1 / figures["networks_gpu_s"]
        network = rate * figures[f"scan_{head}_bytes"] / 1e6
        rows.append([head.replace("mm", " mm"), f"{feeding * rate:.0f}", f"{with_gpu * rate:.0f}", f"{network:.0f}"])
        rows[-1] += [f"{1 / without:.2f}", f"{32 / without:.0f}"]
    header = ["heads", "cores that preprocess for a GPU", "cores of an executor with a GPU", "it reads, MB/s"]
    return markdown([*header, "without a GPU: scans/s a core", "scans/s of 32 cores"], rows)


def commits(figures):
    rows = []
    for latency in (0.0, figures["store_latency_s"], 0.1):
        seconds = [commit_seconds(figures, scans / ROLL * TABLES, latency) for scans in (0, 1_000_000)]
        rates = [COMMIT_SCANS * COMMIT_SHARE / s for s in seconds]
        enough = [commit_scans(seconds[1], rate) for rate in (400, 1600)]
        rows.append([f"{latency * 1000:.0f} ms", *(f"{s:.2f}" for s in seconds), *(number(r) for r in rates)])
        rows[-1] += [number(n) for n in enough]
    header = ["a request takes", "commit, short log, s", "commit, 1,000,000 scans in the log, s"]
    header += ["512 suffices up to, scans/s: short log", "long log"]
    return markdown([*header, "`commit_scans` at 400 scans/s", "at 1,600 scans/s"], rows)


def inputs(raw):
    rows = []
    for entry in raw.values():
        command = f"`{entry['command']}`" if "command" in entry else ""
        rows.append([entry["what"], value(entry["value"]), entry["unit"], entry["basis"], command])
    return markdown(["figure", "value", "unit", "basis", "command"], rows)


def tables(raw):
    """All tables, by caption."""
    figures = {name: entry["value"] for name, entry in raw.items()}
    parts = [("An executor.", executors(figures))]
    parts += [(f"Heads of {head.replace('mm', ' mm')}.", runs(figures, head)) for head in HEADS]
    parts += [(f"Slots, {number(max(SCANS))} scans, {max(CORES)} cores.", slots(figures))]
    parts += [("Commits.", commits(figures)), ("What went in.", inputs(raw))]
    return "\n\n".join(f"**{caption}**\n\n{table}" for caption, table in parts)


def load(file):
    raw = tomllib.loads(file.read_text())
    for name, entry in raw.items():
        if entry.get("basis") not in BASES:
            sys.exit(f"{file}: [{name}] has the basis {entry.get('basis')!r}; it is one of {', '.join(BASES)}")
        if entry["basis"] == "measured" and "command" not in entry:
            sys.exit(f"{file}: [{name}] is measured, and no `command` says how")
    return raw


def stale(raw):
    """Measured figures that the page they come from no longer holds."""
    pages = {}
    for name, entry in raw.items():
        if "doc" in entry:
            text = pages.setdefault(entry["doc"], " ".join((ROOT / entry["doc"]).read_text().split()))
            if entry["says"] not in text:
                yield f"[{name}]: {entry['doc']} no longer says `{entry['says']}`; update the figure and these words"


def split(page):
    """The text of a page before its tables, these tables, and the text after them."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    held, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page} has no lines `{BEGIN}` and `{END}` around its tables; add them")
    return before + begin, held.strip(), end + after


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--figures", type=Path, default=ROOT / "scripts/scaling_figures.toml")
    parser.add_argument("--check", type=Path, metavar="PAGE")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    raw = load(arguments.figures)
    printed = tables(raw)
    if arguments.write:
        before, _, after = split(arguments.write)
        arguments.write.write_text(f"{before}\n{printed}\n\n{after}")
    elif arguments.check:
        wrong = list(stale(raw))
        if split(arguments.check)[1] != printed:
            wrong.append(f"{arguments.check}: the tables differ from what the model gives; "
                         f"run scripts/scaling_model.py --write {arguments.check}")
        if wrong:
            sys.exit("\n".join(wrong))
        print(f"{arguments.check}: the tables are those of the model")
    else:
        print(printed)


if __name__ == "__main__":
    main()
