"""Two schedules on one cohort and one set of tables for hours, while everything fails: see CONTRIBUTING.md.

    scripts/soak.sh --hours 2 --seed 1 --program target/release/neurosieve --report soak.txt

Takes   the program; the Python of the tests, with moto.
Gives   a table of what was seen and a line for each bar that was missed; exit code 1 where there is one. All logs are in
        --folder, and `judge.py FOLDER` makes the table from them again.

The seed decides which faults, kills and uploads are drawn. When they hit differs from run to run, as the program's own
times do.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contract
import judge
from feeder import Feeder, material
from fleet import CLIENTS, COHORT, REPOSITORY, TABLES, Events, Front, Schedule, Store, environment


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/soak.sh", description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--hours", type=float, help="how long faults and kills last; about 15 minutes more follow")
    length.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True, help="the table is written to this file, too")
    parser.add_argument("--folder", type=Path, help="folder of the logs, which must not exist [default: temporary]")
    parser.add_argument("--night-every", type=int, default=2, help="minutes between runs; divides 60 [default: %(default)s]")
    parser.add_argument("--upkeep-every", type=int, default=10, help="the same of upkeep [default: %(default)s]")
    parser.add_argument("--upkeep-offset", type=int, default=0, help="minutes after a run's time [default: %(default)s]")
    parser.add_argument("--scan-every", type=float, default=45, help="mean seconds between uploads [default: %(default)s]")
    parser.add_argument("--kill-every", type=float, default=150, help="mean seconds between kills [default: %(default)s]")
    parser.add_argument("--outage-every", type=float, default=600, help="the same of the store [default: %(default)s]")
    parser.add_argument("--percent", type=float, default=1, help="share of requests with a fault [default: %(default)s]")
    parser.add_argument("--kinds", help='weights of faults as JSON, such as {"503": 1, "flip": 1} [default: proxy.py]')
    parser.add_argument("--grace", type=float, default=5, help="minutes that a night may take [default: %(default)s]")
    parser.add_argument("--stop-within", type=float, default=120, help="seconds from SIGTERM on [default: %(default)s]")
    parser.add_argument("--slope", type=float, default=60, help="memory's growth, MiB per hour [default: %(default)s]")
    options = parser.parse_args()
    options.program = options.program.resolve(strict=True)
    options.seconds = 3600 * options.hours if options.hours else 60 * options.minutes
    return options


class Chaos:
    """Kills at random times: of schedules at any moment and at work, of upkeep, and of the store."""

    def __init__(self, options, folder, events, store, front, schedules):
        self.options, self.events, self.store, self.front = options, events, store, front
        self.schedules, self.random = schedules, random.Random(f"{options.seed}/chaos")
        self.requests = None
        self.log = folder / "requests.jsonl"
        self.began = time.time()
        # (time, what to do, whether it ends a fault: then it is done at the end, too); schedules hit at their next request.
        self.due, self.aimed, self.down = [], {}, False
        self.plan(self.kill, options.kill_every)
        self.plan(self.outage, options.outage_every)

    def plan(self, action, every):
        self.after(self.random.expovariate(1 / every), action)

    def after(self, seconds, action, mends=False):
        self.due.append((time.time() + seconds, action, mends))

    def pause(self):
        """Seconds until a schedule is started again: 1 s to 3 min, short ones as often as long ones."""
        return round(180 ** self.random.random(), 1)

    def calm(self, schedule):
        """Whether a schedule is left alive, so that its memory can be seen over time: a third of a long soak each."""
        share = (time.time() - self.began) / self.options.seconds
        low, high = {"A": (1 / 6, 1 / 2), "B": (1 / 2, 5 / 6)}[schedule.name]
        return self.options.seconds >= 3600 and low <= share < high

    def poll(self):
        now = time.time()
        ready = [action for at, action, _ in self.due if at <= now]
        self.due = [planned for planned in self.due if planned[0] > now]
        for action in ready:
            action()
        for request in self.new_requests():
            self.at_work(request)

    def new_requests(self):
        if self.requests is None:
            if not self.log.exists():
                return
            self.requests = open(self.log)
        while line := self.requests.readline():
            yield json.loads(line)

    def kill(self):
        self.plan(self.kill, self.options.kill_every)
        schedule = self.random.choice(self.schedules)
        what = self.random.choices(["KILL", "TERM", "STOP"], [5, 2, 3])[0]
        if self.random.random() < 0.6:
            self.aimed[schedule.name] = what
        else:
            self.hit(schedule, what, f"schedule {schedule.name}")

    def at_work(self, request):
        """A schedule made a request: is it one that is to be hit at work, or has it begun upkeep?"""
        schedule = next(one for one in self.schedules if one.name == request["client"])
        upkeep = request["method"] == "PUT" and "_maintenance" in request["path"] and request["status"] == 200
        if upkeep:
            self.events("upkeep began", who=schedule.name)
        if upkeep and self.random.random() < 1 / 3:
            what = self.random.choice(["KILL", "STOP"])
            self.after(self.random.uniform(0, 5), lambda: self.hit(schedule, what, "upkeep"))
        elif what := self.aimed.pop(schedule.name, None):
            delay = self.random.uniform(0, 6)
            self.after(delay, lambda: self.hit(schedule, what, f"schedule {schedule.name}"))

    def hit(self, schedule, what, victim):
        if schedule.process is None or schedule.frozen or schedule.ending_since:
            return
        if what != "STOP":
            if not self.calm(schedule):
                schedule.signal(what, victim)
            return
        # Now and then longer than a lease lasts: another schedule takes over, and this one wakes up within its work.
        long = self.options.seconds >= 3600 and self.random.random() < 0.2
        seconds = self.random.uniform(200, 280) if long else self.random.uniform(5, 60)
        schedule.signal("STOP", victim, seconds=round(seconds))
        process = schedule.process
        self.after(seconds, lambda: schedule.process is process and schedule.signal("CONT", victim), mends=True)

    def outage(self):
        self.plan(self.outage, self.options.outage_every)
        if self.down:
            return
        self.down = True
        kind, seconds = self.random.choice(["killed", "frozen"]), round(60 ** self.random.random(), 1)
        self.events("store down", kind=kind, seconds=seconds)
        if kind == "killed":
            self.front.kill()
        else:
            self.store.process.send_signal(signal.SIGSTOP)

        def up():
            if kind == "killed":
                self.front.start()
            else:
                self.store.process.send_signal(signal.SIGCONT)
            self.down = False
            self.events("store up")

        self.after(seconds, up, mends=True)

    def end(self):
        """Everything lives and works again."""
        ending = [action for _, action, mends in self.due if mends]
        self.due, self.aimed = [], {}
        for action in ending:
            action()


def soak(options, folder, events):
    kept = ("seed", "seconds", "grace", "night_every", "upkeep_every", "upkeep_offset", "slope", "stop_within")
    events("begin", program=str(options.program), **{name: getattr(options, name) for name in kept})
    store = Store()
    front = Front(folder, store, options)
    front.off.touch()
    front.start()
    contract.check(front.ports["A"], store.port)
    events("store", contract="conditional writes, ranges and entity tags pass")
    front.off.unlink()
    schedules = [Schedule(name, folder, front.ports[name], options, events) for name in CLIENTS]
    try:
        contents = material(options.program, folder, 10 + int(2 * options.seconds / options.scan_every), options.seed)
        feeder = Feeder(options, store, contents, events)
        feeder.begin(3)
        chaos = Chaos(options, folder, events, store, front, schedules)
        samples = open(folder / "samples.jsonl", "a", buffering=1)
        watch(schedules, chaos.poll, chaos.pause, samples, lambda: time.time() - chaos.began > options.seconds)
        events("calm", meaning="no more kills, faults and uploads")
        chaos.end()
        feeder.end()
        front.off.touch()
        # A lease of a killed schedule ends within three minutes; then there is time for the last night.
        until = time.time() + 60 * (6 + options.grace)
        watch(schedules, lambda: None, lambda: 1, samples, lambda: time.time() > until)
        events("end")
        for schedule in schedules:
            schedule.start_at = None
            if schedule.process:
                schedule.signal("TERM", "end")
        watch(schedules, lambda: None, lambda: None, samples, lambda: all(one.process is None for one in schedules))
        final(options, folder, events, environment(store.port))
    finally:
        for schedule in schedules:
            if schedule.process:
                schedule.process.kill()
        if front.process:
            front.kill()
        store.end()


def watch(schedules, poll, pause, samples, done):
    """Keeps the schedules alive and samples their memory every five seconds, until it is `done`."""
    sampled = 0
    while not done():
        poll()
        for schedule in schedules:
            schedule.poll(pause)
        if time.time() - sampled >= 5:
            sampled = time.time()
            for schedule in schedules:
                if memory := schedule.memory():
                    sample = {"t": round(sampled, 1), "who": schedule.name, "life": schedule.lives}
                    samples.write(json.dumps({**sample, "rss": round(memory[0]), "peak": round(memory[1])}) + "\n")
        time.sleep(0.2)


def final(options, folder, events, variables):
    """The last runs, the check of the tables, and the tables as other readers see them."""

    def program(name, *command):
        done = subprocess.run([options.program, *command], env=variables, cwd=folder, capture_output=True, text=True)
        events("final", name=name, code=done.returncode, printed=(done.stdout + done.stderr).strip()[-4000:])
        return done

    run = ["run", REPOSITORY / "tests/soak/pipeline.toml", "--cohort", COHORT, "--tables", TABLES]
    program("last run", *run)
    program("run after the last", *run)
    program("check", "tables", "check", "--tables", TABLES)
    views = {}
    for name in ("scans", "failures"):
        columns = "scan_id, size_bytes" if name == "scans" else "scan_id, kind, message, attempts"
        sql = f"SELECT {columns} FROM {name} ORDER BY 1"
        query = ["sql", "--tables", TABLES, "--format", "nd-json", "--output", f"{name}.jsonl", "-c", sql]
        done = program(f"view {name}", *query)
        lines = (folder / f"{name}.jsonl").read_text().splitlines() if done.returncode == 0 else []
        views[name] = [json.loads(line) for line in lines]
    views["raw"] = judge.read_tables(TABLES, variables)
    (folder / "final.json").write_text(json.dumps(views, default=str))


def main():
    options = arguments()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="neurosieve-soak-"))
    if options.folder:
        folder.mkdir(parents=True)
    folder = folder.resolve()
    print(f"logs are in {folder}", flush=True)
    soak(options, folder, Events(folder))
    table, missed = judge.verdict(folder)
    options.report.write_text(table)
    print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
