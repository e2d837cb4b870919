"""Measures a cluster of real processes on this machine, and prints the figures as a Markdown table.

    scripts/bench_cluster.sh --program target/release/neurosieve --report cluster.md

Takes   the program; two cores. Every process is bound to cores by taskset, so that what is compared has the same cores.
Gives   a table with a row per figure, its bar and whether it is held; exit code 1 where one is missed.

Scans are synthetic heads of 4 mm that are screened without networks, about a second of one core each. Where the number of
scans matters and not what is in them (memory, chunks), their files are truncated: each becomes a row in failures,
which costs about a millisecond. The driver and the scheduler see receipts in both cases.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BOTH, FIRST, SECOND = "0,1", "0", "1"
WITHOUT_NETWORKS = ["--set", "score.method=threshold"]
PARTS = ("local", "scaling", "memory", "chunks")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench_cluster.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="the table is written to this file, too")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts to measure [default: %(default)s]")
    parser.add_argument("--scans", type=int, default=500, help="whole scans of a run [default: %(default)s]")
    parser.add_argument("--truncated", type=int, default=100_000, help="scans of `memory` [default: %(default)s]")
    parser.add_argument("--repeat", type=int, default=1, help="runs of a kind; the median counts [default: %(default)s]")
    parser.add_argument("--quick", action="store_true", help="24 scans and 2,000 truncated ones: does it work?")
    options = parser.parse_args()
    options.program = options.program.resolve(strict=True)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.quick:
        options.scans, options.truncated = 24, 2_000
    if not {0, 1} <= os.sched_getaffinity(0):
        parser.error("cores 0 and 1 are needed")
    return options


class Process:
    """A process on certain cores. Its output goes to a file."""

    def __init__(self, log, cores, command):
        self.log = log
        with open(log, "w") as file:
            command = ["taskset", "-c", cores, *map(str, command)]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, cwd=REPOSITORY)

    def listens(self):
        """The address, once it listens."""
        until = time.time() + 60
        while time.time() < until:
            if found := re.search(r"listening on ([^\s,]+)", self.log.read_text()):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        sys.exit(f"it does not listen: {self.log.read_text()}")

    def memory_mib(self):
        """taskset replaces itself by the program, whose process this is."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        found = re.search(r"VmRSS:\s*(\d+) kB", status)
        return int(found[1]) / 1024 if found else None

    def runs(self):
        """True until it ends; leaves its end to `wait`."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def cpu_s(self):
        """Processor time so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self):
        """Its exit code, and the processor time that it took, s."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode, usage.ru_utime + usage.ru_stime

    def kill(self):
        self.process.kill()
        self.process.wait()


class Cluster:
    """A scheduler, and an executor for every item of `cores`. A context manager: it ends with its block."""

    def __init__(self, bench, cores, slots):
        self.bench, self.processes = bench, []
        listen = ["scheduler", "--listen", "127.0.0.1:0"]
        self.scheduler = self.start("scheduler", BOTH, listen)
        self.url = f"http://{self.scheduler.listens()}"
        for n, core in enumerate(cores):
            work = bench.fresh("work")
            work.mkdir()
            options = ["--slots", slots, "--device", "cpu", "--memory-mib", 2000, "--work-dir", work]
            executor = ["executor", "--scheduler", self.url, "--listen", "127.0.0.1:0", *options]
            self.start(f"executor-{n}", core, executor).listens()
        until = time.time() + 60
        while len(self.stations()) < len(cores):
            if time.time() > until:
                sys.exit("an executor has not joined the cluster")
            time.sleep(0.2)

    def start(self, name, cores, command):
        process = Process(self.bench.fresh(f"{name}.log"), cores, [self.bench.program, *command])
        self.processes.append(process)
        return process

    def stations(self):
        return json.loads(self.bench.output("cluster", "status", "--cluster", self.url, "--format", "json"))["executors"]

    def ended(self):
        """Scans that have ended on its executors."""
        return sum(station["done"] + station["failed"] for station in self.stations())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()


class Run:
    """A run that has ended: how long it screened, by its own row and those of its scans."""

    def __init__(self, bench, screened):
        tables, self.cpu_s = screened
        row = bench.rows(tables, "SELECT started_at, finished_at, n_done, n_failed FROM runs")[0]
        started, finished = (datetime.datetime.fromisoformat(row[at]) for at in ("started_at", "finished_at"))
        self.seconds = (finished - started).total_seconds()
        self.scans = row["n_done"] + row["n_failed"]
        self.per_minute = 60 * self.scans / self.seconds
        times = bench.rows(tables, "SELECT finished_at AS t FROM raw.scans UNION ALL SELECT failed_at FROM raw.failures ORDER BY 1")
        nine_tenths = datetime.datetime.fromisoformat(times[len(times) * 9 // 10 - 1]["t"])
        # From the moment at which nine tenths were done to the end of the run, over the mean of all tenths.
        self.last_tenth = (finished - nine_tenths).total_seconds() / (self.seconds / 10)


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder, self.program = options, folder, options.program
        self.names, self.lines = 0, []

    def fresh(self, name):
        """A path that nothing has."""
        self.names += 1
        return self.folder / f"{self.names:03}-{name}"

    def output(self, *command):
        done = subprocess.run([self.program, *map(str, command)], capture_output=True, text=True, cwd=REPOSITORY)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def rows(self, tables, sql):
        return json.loads(self.output("sql", "--tables", tables, "--format", "json", "-c", sql))

    def say(self, text):
        print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)

    def figure(self, what, figure, bar="", held=None):
        mark = {True: "yes", False: "**no**", None: ""}[held]
        self.lines.append((what, figure, bar, mark))
        self.say(f"{what}: {figure}{f' (bar: {bar}, held: {mark})' if bar else ''}")

    def screen(self, cohort, more, cores=BOTH, watch=None):
        """A run to its end; gives its tables, and the processor time of its process. `watch` gets that while it runs."""
        tables, log = self.fresh("tables"), self.fresh("run.log")
        command = [self.program, "run", "pipelines/demo.toml", "--cohort", cohort, "--tables", tables]
        command += [*WITHOUT_NETWORKS, "--set", "tables.commit_scans=512", *more]
        run = Process(log, cores, command)
        if watch:
            watch(run)
        code, cpu_s = run.wait()
        if code not in (0, 3):
            sys.exit(f"exit code {code}: {log.read_text()}")
        return tables, cpu_s

    def median(self, measure):
        """The run of median length of several."""
        runs = sorted((measure() for _ in range(self.options.repeat)), key=lambda run: run.seconds)
        return runs[(len(runs) - 1) // 2]

    def here(self, cohort, cores):
        return self.median(lambda: Run(self, self.screen(cohort, ["--device", "cpu"], cores)))

    def on_cluster(self, cohort, executors, slots, more=()):
        def once():
            with Cluster(self, executors, slots) as cluster:
                before = cluster.scheduler.cpu_s()
                run = Run(self, self.screen(cohort, ["--cluster", cluster.url, *more]))
                run.scheduler_cpu_s = cluster.scheduler.cpu_s() - before
                return run

        return self.median(once)

    def heads(self, scans):
        cohort = self.folder / f"heads-{scans}"
        if not cohort.exists():
            self.output("synth", cohort, "--subjects", scans, "--lesions", 0, "--spacing", 4)
        return cohort

    def truncated(self, scans):
        """Scans whose files end after 400 bytes: no two are the same file."""
        cohort = self.folder / f"truncated-{scans}"
        if not cohort.exists():
            head = self.heads(1) / "sub-synth001/anat/sub-synth001_T1w.nii.gz"
            bytes = head.read_bytes()[:400]
            cohort.mkdir()
            shutil.copy(self.heads(1) / "dataset_description.json", cohort)
            for n in range(1, scans + 1):
                folder = cohort / f"sub-{n:06}/anat"
                folder.mkdir(parents=True)
                (folder / f"sub-{n:06}_T1w.nii.gz").write_bytes(bytes)
        return cohort

    def local(self):
        """A cluster of one machine against the local runner, and the end of a run on four slots."""
        scans = self.options.scans
        cohort = self.heads(scans)
        here = self.here(cohort, BOTH)
        self.figure(f"local run, 2 cores, {scans} scans", f"{here.per_minute:.1f} scans/min")
        one = self.on_cluster(cohort, [BOTH], 2)
        slower = 100 * (here.per_minute / one.per_minute - 1)
        figure = f"{one.per_minute:.1f} scans/min, {slower:+.1f} % time per scan"
        self.figure("cluster on the same cores, one executor of 2 slots", figure, "at most +10 %", slower <= 10)
        four = self.on_cluster(cohort, [FIRST, SECOND], 2)
        figure = f"{four.last_tenth:.2f} of the mean tenth"
        self.figure(f"last tenth of {scans} scans, four slots", figure, "at most 1.5", four.last_tenth <= 1.5)

    def scaling(self):
        """Two executors of one core each against one."""
        scans = max(24, self.options.scans // 2)
        cohort = self.heads(scans)
        one = self.on_cluster(cohort, [FIRST], 2)
        two = self.on_cluster(cohort, [FIRST, SECOND], 2)
        factor = two.per_minute / one.per_minute
        self.figure(f"one executor of one core, {scans} scans", f"{one.per_minute:.1f} scans/min")
        figure = f"{two.per_minute:.1f} scans/min, {factor:.2f} x"
        self.figure("two executors of one core each", figure, "at least 1.8 x", factor >= 1.8)

    def memory(self):
        """Memory of driver and scheduler while very many scans are screened."""
        scans = self.options.truncated
        cohort = self.truncated(scans)
        samples = []
        with Cluster(self, [FIRST, SECOND], 2) as cluster:

            def watch(driver):
                while driver.runs():
                    memory = [process.memory_mib() for process in (driver, cluster.scheduler)]
                    if all(memory):
                        samples.append((cluster.ended() / scans, *memory))
                    time.sleep(0.5)

            run = Run(self, self.screen(cohort, ["--cluster", cluster.url], watch=watch))
        self.figure(f"{scans:,} truncated scans, two executors", f"{60 * run.per_minute:,.0f} scans/h, {run.seconds:.0f} s")
        for at, who in ((1, "driver"), (2, "scheduler")):
            early = [sample[at] for sample in samples if 0 < sample[0] <= 0.2]
            late = [sample[at] for sample in samples if sample[0] > 0.8]
            if not early or not late:
                self.figure(f"memory of the {who}", f"n/a: {run.seconds:.0f} s are too short")
                continue
            before, after = statistics.median(early), statistics.median(late)
            peak = max(sample[at] for sample in samples)
            figure = f"{before:.0f} MiB in the first fifth, {after:.0f} MiB in the last, peak {peak:.0f} MiB"
            # An allocator keeps a little of everything.
            self.figure(f"memory of the {who}", figure, "flat: at most +10 % or 16 MiB", after <= max(1.1 * before, before + 16))

    def chunks(self):
        """What a chunk costs: the same scans in many and in few. What a commit costs, `benches/scale` measures."""
        scans = 2_000 if not self.options.quick else 200
        cohort = self.truncated(scans)

        def run(chunk):
            more = ["--chunk-scans", chunk, "--set", "tables.commit_seconds=3600"]
            return self.on_cluster(cohort, [BOTH], 2, more)

        few, many = run(100), run(1)
        more_chunks = scans - scans / 100
        self.figure(f"{scans:,} truncated scans in chunks of 100, and of 1", f"{few.seconds:.1f} s, {many.seconds:.1f} s")
        self.figure("cost of a chunk, with 4 in flight", f"{1000 * (many.seconds - few.seconds) / more_chunks:.1f} ms")
        self.figure("processor time of the driver for a chunk", f"{1000 * (many.cpu_s - few.cpu_s) / more_chunks:.1f} ms")
        of_scheduler = 1000 * (many.scheduler_cpu_s - few.scheduler_cpu_s) / more_chunks
        self.figure("processor time of the scheduler for a chunk", f"{of_scheduler:.1f} ms")

    def table(self):
        cells = [("what", "figure", "bar", "held"), ("---",) * 4, *self.lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main():
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="bench-cluster-"))
    bench = Bench(options, folder)
    began = time.time()
    try:
        for part in options.parts:
            bench.say(f"measuring {part}: {getattr(bench, part).__doc__}")
            getattr(bench, part)()
    finally:
        if bench.lines:
            cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
            machine = f"{cpu[1] if cpu else platform.machine()}, cores 0 and 1, {datetime.date.today()}"
            version = bench.output("--version").strip()
            text = f"{version}; {machine}; {(time.time() - began) / 60:.0f} minutes.\n\n{bench.table()}\n"
            print(text)
            if options.report:
                options.report.write_text(text)
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(any(held == "**no**" for *_, held in bench.lines))


if __name__ == "__main__":
    main()
