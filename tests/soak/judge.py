"""The verdict on a soak, from its logs: what was seen, and which bars were missed.

    python judge.py FOLDER

A *night* is a time at which a run is due. It is kept when a run that began at or after that time has finished, and every
scan that was in the cohort by then is done: a content that can be read has a row in `scans`, a damaged one a row in
`failures`; one that `neurosieve inspect` refuses as well, from a local folder and for the same reason, counts as damaged, because
that is not a matter of kills and faults; a content that was replaced before it was screened needs neither. It is lost where that takes longer than the
grace (minutes). The clock of the grace stands while nobody could work:

- no schedule is alive (killed, not started again yet, or frozen);
- the store is down, and 120 seconds after, because clients wait between their attempts;
- a lease is held by a schedule that was killed or is frozen: until it expires, three minutes after it was last renewed, or
  another takes it; and 20 seconds after. A schedule that ended by SIGTERM has no such excuse.

Upkeep is kept where one that ended later than its time was successful, in ten minutes of the same clock.
"""

import collections
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
from deltalake import DeltaTable

LEASE_S = 180
UPKEEP_GRACE_S = 600
# What the memory of a life is fitted on: from ten minutes after its start, where at least ten more follow.
WARM_UP_S, FITTED_S = 600, 600


def read_tables(url, variables):
    """The tables by a reader that is not the program's, as rows."""
    names = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    storage = {name: variables[name] for name in names} | {"AWS_ALLOW_HTTP": "true"}
    database = duckdb.connect()

    def rows(table, sql):
        delta = DeltaTable(f"{url}/{table}", storage_options=storage).to_pyarrow_table()
        database.register("delta", delta)
        done = database.sql(sql.format("delta"))
        return [dict(zip(done.columns, row)) for row in done.fetchall()]

    read = {
        "runs": "SELECT run_id, status, epoch(started_at) AS began, epoch(finished_at) AS ended FROM {}",
        "scans": "SELECT run_id, scan_id, content_id, recipe_id, size_bytes, n_tokens, n_findings, "
        "epoch(finished_at) AS t FROM {}",
        "failures": "SELECT run_id, scan_id, stage, kind, message, permanent, attempts, epoch(failed_at) AS t FROM {}",
    }
    owned = "SELECT run_id, scan_id, count(*) AS n FROM {} GROUP BY ALL"
    return {table: rows(table, sql) for table, sql in read.items()} | {
        table: rows(table, owned) for table in ("tokens", "masks", "findings")
    }


class Spans:
    """Spans of time that may overlap."""

    def __init__(self, spans):
        self.spans = []
        for low, high in sorted((low, high) for low, high in spans if high > low):
            if self.spans and low <= self.spans[-1][1]:
                self.spans[-1][1] = max(high, self.spans[-1][1])
            else:
                self.spans.append([low, high])

    def within(self, begin, end):
        return sum(max(0, min(high, end) - max(low, begin)) for low, high in self.spans)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Soak:
    def __init__(self, folder):
        self.folder = folder
        self.events = lines(folder / "events.jsonl")
        self.requests = lines(folder / "requests.jsonl")
        self.samples = lines(folder / "samples.jsonl")
        final = folder / "final.json"
        self.tables = json.loads(final.read_text()) if final.exists() else None
        self.settings = self.of("begin")[0]
        self.end = (self.of("end") or self.events[-1:])[0]["t"]
        self.refused = set(self.refused_alone())
        self.logs = {file.stem: file.read_text().splitlines() for file in (folder / f"{who}.log" for who in "AB")}

    def of(self, *names, **more):
        return [e for e in self.events if e["event"] in names and all(e.get(k) == v for k, v in more.items())]

    def refused_alone(self):
        """(scan, size) of contents that the program refuses by itself, too."""
        failures = self.tables["raw"]["failures"] if self.tables else []
        reasons = collections.defaultdict(set)
        for row in failures:
            if row["stage"] == "preprocess" and row["permanent"]:
                reasons[row["scan_id"]].add(row["message"])
        material = {file.stat().st_size: file for file in (self.folder / "material").rglob("*.nii.gz")}
        for upload in self.of("upload"):
            file = material.get(upload["size"])
            if reasons[upload["scan"]] and upload["kind"] != "damaged" and file:
                alone = subprocess.run([self.settings["program"], "inspect", file], capture_output=True, text=True)
                if alone.returncode and any(reason in alone.stderr for reason in reasons[upload["scan"]]):
                    yield upload["scan"], upload["size"]

    def is_damaged(self, upload):
        return upload["kind"] == "damaged" or (upload["scan"], upload["size"]) in self.refused

    def dead(self, who):
        """When a schedule was not alive or was frozen."""
        since, spans = self.settings["t"], []
        for event in self.of("started", "ended", "signal", who=who):
            if event["event"] == "ended" or event.get("signal") == "STOP":
                since = event["t"] if since is None else since
            elif event["event"] == "started" or event.get("signal") == "CONT":
                spans += [(since, event["t"])] if since is not None else []
                since = None
        return spans + ([(since, self.end)] if since is not None else [])

    def nobody(self):
        """When no schedule was alive."""
        spans = [span for a in self.dead("A") for b in self.dead("B") if (span := (max(a[0], b[0]), min(a[1], b[1])))]
        return [(low, high) for low, high in spans if low < high]

    def store_down(self):
        down, spans = None, []
        for event in self.of("store down", "store up"):
            if event["event"] == "store up":
                spans.append((down, event["t"] + 120))
            down = event["t"]
        return spans

    def held_by_the_dead(self, maintenance):
        """When a lease was held by a schedule that was killed or frozen."""
        spans = []
        claims = collections.defaultdict(list)
        for request in self.requests:
            put = request["method"] == "PUT"
            for path in [request["path"]] if put else request.get("deletes", []):
                name = path.rsplit("/", 1)[-1]
                lease = re.match(r"_.*(lock|lease)", name) and (maintenance or "_maintenance" not in name)
                if lease and request["status"] == 200:
                    claims[name].append((request["t"], request["client"] if put else None))
        stops, awake = [e for e in self.of("signal") if e["signal"] in ("KILL", "STOP")], self.of("signal", signal="CONT")
        for of_lock in claims.values():
            for (t, who), (until, _) in zip(of_lock, [*of_lock[1:], (self.end, None)]):
                for stop in stops:
                    if stop["who"] != who or not t <= stop["t"] < (ends := min(until, t + LEASE_S)):
                        continue
                    woken = [e["t"] for e in awake if e["who"] == who and e["t"] > stop["t"]]
                    spans.append((stop["t"], min([ends, *(woken if stop["signal"] == "STOP" else [])]) + 20))
        return spans

    def times(self, minutes, grace, offset=0):
        """The times at which something was due, from the first start of a schedule to the end without the grace (s)."""
        step, first, last = 60 * minutes, self.of("started")[0]["t"], self.end - grace
        return [t for t in range(int(first // step) * step + 60 * offset, int(last) + 1, step) if t > first]

    def nights(self):
        """(time, seconds of the clock until it was done, wall seconds, or none where it never was) of every night."""
        excused = Spans(self.nobody() + self.store_down() + self.held_by_the_dead(False))
        runs = [run for run in self.tables["raw"]["runs"] if run["status"] == "finished" and run["ended"]]
        rows = collections.defaultdict(list)
        for row in self.tables["raw"]["scans"]:
            rows[row["scan_id"], row["size_bytes"]].append(row["t"])
        for row in self.tables["raw"]["failures"]:
            rows[row["scan_id"], None].append(row["t"])
        of_scan = collections.defaultdict(list)
        for upload in self.of("upload"):
            of_scan[upload["scan"]].append(upload)
        judged = []
        for night in self.times(self.settings["night_every"], 60 * self.settings["grace"]):
            done = [min((run["ended"] for run in runs if run["began"] >= night - 1), default=None)]
            for scan, uploads in of_scan.items():
                for upload, later in zip(uploads, uploads[1:] + [None]):
                    if upload["t"] > night - 2 or (later and later["began"] <= night):
                        continue
                    damaged = self.is_damaged(upload)
                    times = rows[scan, None if damaged else upload["size"]]
                    times = [t for t in times if not damaged or t >= upload["began"]]
                    done.append(min(times + ([later["t"]] if later else []), default=None))
            if None in done:
                judged.append((night, self.end - night - excused.within(night, self.end), None))
            else:
                at = max(done)
                judged.append((night, at - night - excused.within(night, at), at - night))
        return judged

    def upkeep(self):
        excused = Spans(self.nobody() + self.store_down() + self.held_by_the_dead(True))
        done = []
        for log in self.logs.values():
            for line in log:
                if found := re.match(r"(20\S+Z) .*\bscans: \d+ files became", line):
                    done.append(datetime.datetime.fromisoformat(found[1]).timestamp())
        kept = []
        for time in self.times(self.settings["upkeep_every"], UPKEEP_GRACE_S, self.settings.get("upkeep_offset", 0)):
            at = min((t for t in done if t >= time), default=self.end)
            kept.append((time, at - time - excused.within(time, at)))
        return kept, len(done)

    def lives(self):
        """(who, life, minutes, peak, slope of the lowest value of each minute in MiB per hour or none) of every life."""
        by_life = collections.defaultdict(list)
        for sample in self.samples:
            by_life[sample["who"], sample["life"]].append(sample)
        for (who, life), samples in sorted(by_life.items()):
            low, began = {}, samples[0]["t"]
            for sample in samples:
                minute = int((sample["t"] - began) // 60)
                if sample["t"] - began >= WARM_UP_S:
                    low[minute] = min(sample["rss"], low.get(minute, sample["rss"]))
            lasted = samples[-1]["t"] - began
            fitted = 60 * slope(list(low.items())) if lasted >= WARM_UP_S + FITTED_S else None
            yield who, life, lasted / 60, max(s["peak"] for s in samples), fitted

    def cohort(self):
        """What is wrong with the scans at the end, by kind."""
        last, raw = {upload["scan"]: upload for upload in self.of("upload")}, self.tables["raw"]
        current = collections.defaultdict(list)
        for row in self.tables["scans"]:
            current[row["scan_id"]].append(row["size_bytes"])
        good = {scan: upload["size"] for scan, upload in last.items() if not self.is_damaged(upload)}
        damaged = last.keys() - good.keys()
        failed = {row["scan_id"] for row in self.tables["failures"]}
        keys = collections.Counter((r["scan_id"], r["content_id"], r["recipe_id"]) for r in raw["scans"])
        owners = {(row["run_id"], row["scan_id"]): row for row in raw["scans"]}
        states = {run["run_id"]: run["status"] for run in raw["runs"]}
        states |= {run["run_id"]: run["status"] for run in raw["runs"] if run["ended"]}
        counts = {name: {(r["run_id"], r["scan_id"]): r["n"] for r in raw[name]} for name in ("tokens", "masks", "findings")}
        orphans = [(run, n) for of in counts.values() for (run, scan), n in of.items() if (run, scan) not in owners]
        incomplete = [
            key for key, row in owners.items()
            if counts["tokens"].get(key, 0) != row["n_tokens"] or counts["masks"].get(key) != 1
            or counts["findings"].get(key, 0) != row["n_findings"]
        ]  # fmt: skip
        by_state = collections.Counter()
        for run, n in orphans:
            by_state[states.get(run, "unknown")] += n
        return {
            "scans": len(last), "done": sum(current[scan] == [size] for scan, size in good.items()),
            "missing": sorted(scan for scan in good if not current[scan]),
            "not the latest content": sorted(s for s, size in good.items() if current[s] and current[s] != [size]),
            "doubled": sorted(scan for scan, had in current.items() if len(had) > 1),
            "not of the cohort": sorted(current.keys() - last.keys()),
            "results of one key doubled": sorted(str(key) for key, n in keys.items() if n > 1),
            "incomplete": [str(key) for key in incomplete],
            "damaged": len(damaged), "damaged without a failure": sorted(damaged - failed),
            "failures of good scans": sorted(failed & good.keys()), "orphans": dict(by_state),
        }  # fmt: skip


def slope(points):
    """Of the least squares line."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / (sum((x - mean_x) ** 2 for x, _ in points) or 1)


def clock(t):
    return datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%H:%M:%S")


def counted(what):
    return ", ".join(f"{name} {n}" for name, n in sorted(collections.Counter(what).items())) or "none"


def verdict(folder):
    """The table as text, and the bars that were missed."""
    soak, out, missed = Soak(Path(folder)), [], []
    row = lambda name, value: out.append(f"{name:<28} {value}")
    bar = lambda held, text: None if held else missed.append(text)
    settings = soak.settings
    row("program", settings["program"])
    row("began, ended (UTC)", f"{clock(settings['t'])}, {clock(soak.end)}; seed {settings['seed']}")
    show_faults(soak, row)
    show_processes(soak, row, bar)
    show_memory(soak, row, bar)
    if soak.tables is None:
        bar(False, "the soak did not reach its end: final.json is missing")
    else:
        show_nights(soak, row, bar)
        show_cohort(soak, row, bar)
    for event in soak.of("final"):
        if event["name"] in ("last run", "run after the last", "check"):
            sentence = re.split(r"\.?\n|\. ", event["printed"])[0][:200]
            row(event["name"], f"exit code {event['code']}; {sentence}")
    expected = {"last run": (0, 3), "run after the last": (0, 3), "check": (0,)}
    for name, codes in expected.items():
        codes_seen = [event["code"] for event in soak.of("final", name=name)]
        bar(codes_seen and codes_seen[0] in codes, f"{name}: exit code {codes_seen}")
    out += ["", f"{len(missed)} bars missed" if missed else "every bar is held", *(f"  {line}" for line in missed), ""]
    return "\n".join(out), missed


def show_faults(soak, row):
    faults = [request["fault"] for request in soak.requests if request["fault"]]
    row("requests, faults", f"{len(soak.requests)}, {len(faults)}: {counted(faults)}")
    row("store down", counted(event["kind"] for event in soak.of("store down")))
    row("uploads", counted(event["kind"] for event in soak.of("upload")))


def show_processes(soak, row, bar):
    for victim in ("schedule A", "schedule B", "upkeep"):
        kills = soak.of("signal", victim=victim)
        row(f"kills of {victim}", counted(event["signal"] for event in kills if event["signal"] != "CONT"))
    hung = soak.of("signal", victim="hung")
    bar(not hung, f"{len(hung)} times SIGTERM did not end a schedule within {soak.settings['stop_within']:.0f} s")
    stopped = [e for e in soak.of("ended", asked=True) if e["code"] != -9]
    slowest = max((event["after"] for event in stopped), default=0)
    row("ends by SIGTERM", f"{counted(str(e['code']) for e in stopped)} (exit code, times); the slowest {slowest} s")
    bar(all(e["code"] in (0, 4) for e in stopped), "SIGTERM ended a schedule with another exit code than 0 and 4")
    for event in soak.of("ended", asked=False):
        bar(False, f"{clock(event['t'])} schedule {event['who']} ended by itself, exit code {event['code']}")
    said = [re.sub(r"^20\S+Z ", "", line) for log in soak.logs.values() for line in log]
    bar(not any("panicked" in line for line in said), "a schedule panicked")
    row("upkeep left out as busy", sum("this upkeep is left out" in line for line in said))
    failed = [line for line in said if re.match("error", line, re.I) or re.search(r"\b(WARN|ERROR)\b", line)]
    errors = collections.Counter(re.sub(r"[0-9a-f-]{36}|\d+", "#", line)[:150] for line in failed)
    row("errors and warnings", sum(errors.values()))
    for line, n in errors.most_common(8):
        row("", f"{n} x {line}")


def show_memory(soak, row, bar):
    for who, life, minutes, peak, fitted in soak.lives():
        if minutes >= 10:
            grows = "" if fitted is None else f"; {fitted:+.0f} MiB/h after the first 10 minutes"
            row(f"memory of {who}, life {life}", f"{minutes:.0f} min; peak {peak} MiB{grows}")
        bar(fitted is None or fitted <= soak.settings["slope"], f"memory of {who}, life {life}: {fitted or 0:+.0f} MiB/h")


def show_nights(soak, row, bar):
    grace = 60 * soak.settings["grace"]
    nights = soak.nights()
    lost = [night for night in nights if night[1] > grace or night[2] is None]
    row("nights", f"{len(nights)} due, {len(nights) - len(lost)} kept, {len(lost)} lost")
    took = sorted(night[1] for night in nights)
    if took:
        row("seconds until done", f"median {took[len(took) // 2]:.0f}, longest {took[-1]:.0f}; excuses are not counted")
    for t, counted_s, wall in lost:
        how = f"done after {wall:.0f} s, {counted_s:.0f} s of them count" if wall else "never done"
        bar(False, f"night {clock(t)} lost: {how}")
    upkeep, done = soak.upkeep()
    late = [t for t, seconds in upkeep if seconds > UPKEEP_GRACE_S]
    row("upkeep", f"{len(upkeep)} due, {len(upkeep) - len(late)} kept, {len(late)} lost; {done} done")
    bar(not late, f"upkeep lost at {', '.join(map(clock, late))}")


def show_cohort(soak, row, bar):
    found = soak.cohort()
    row("scans of the cohort", f"{found['scans']}: {found['done']} done, {found['damaged']} damaged")
    row("rows without a result", counted(found["orphans"]) + " (by the status of the run that wrote them)")
    for name, scans in found.items():
        if isinstance(scans, list):
            row(f"  {name}", len(scans))
            bar(not scans, f"{len(scans)} {name}: {', '.join(scans[:5])}")
    row("refused alone as well", ", ".join(sorted(scan for scan, _ in soak.refused)) or "none")
    failures = soak.tables["raw"]["failures"]
    row("failure rows", counted(f"{failure['stage']}/{failure['kind']}" for failure in failures))


if __name__ == "__main__":
    text, wrong = verdict(sys.argv[1])
    print(text)
    sys.exit(1 if wrong else 0)
