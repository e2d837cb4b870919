"""The verdict on soaks that are written by hand: python -m unittest discover tests/soak"""

import json
import tempfile
import unittest
from pathlib import Path

import judge

# A full hour, so that nights lie on whole minutes.
T = 1_795_856_400
SETTINGS = {"program": "p", "seed": 1, "seconds": 600, "grace": 5, "night_every": 2, "upkeep_every": 60, "slope": 60,
            "stop_within": 120}  # fmt: skip


def scan(name, size, at, run="r"):
    owned = {"run_id": run, "scan_id": name}
    return {**owned, "content_id": str(size), "recipe_id": "x", "size_bytes": size, "n_tokens": 2, "n_findings": 0, "t": at}


def run(began, ended, status="finished"):
    return {"run_id": f"r{began}", "status": status, "began": began, "ended": ended}


class Judged(unittest.TestCase):
    def soak(self, events=(), requests=(), runs=(), scans=(), failures=(), current=None):
        """A soak that begins a minute before T with two schedules, and ends 20 minutes later."""
        started = [{"t": T - 60, "event": "started", "who": who, "life": 1} for who in "AB"]
        ends = {"t": T + 1200, "event": "end"}
        events = [{"t": T - 60, "event": "begin", **SETTINGS}, *started, *sorted(events, key=lambda e: e["t"]), ends]
        tokens = [{"run_id": s["run_id"], "scan_id": s["scan_id"], "n": 2} for s in scans]
        masks = [{**row, "n": 1} for row in tokens]
        raw = {"runs": list(runs), "scans": list(scans), "failures": list(failures), "tokens": tokens, "masks": masks,
               "findings": []}  # fmt: skip
        shown = [{"scan_id": s["scan_id"], "size_bytes": s["size_bytes"]} for s in (scans if current is None else current)]
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name, rows in (("events", events), ("requests", requests)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for who in "AB":
            (folder / f"{who}.log").write_text("")
        (folder / "final.json").write_text(json.dumps({"scans": shown, "failures": list(failures), "raw": raw}))
        return judge.Soak(folder)

    def lost(self, soak):
        return [(t - T) // 60 for t, counted, wall in soak.nights() if wall is None or counted > 300]

    def every_two_minutes(self, without=()):
        return [run(T + 60 * m, T + 60 * m + 5) for m in range(0, 20, 2) if m not in without]

    def test_a_run_at_every_time_loses_no_night(self):
        self.assertEqual(self.lost(self.soak(runs=self.every_two_minutes())), [])

    def test_times_without_a_run_for_longer_than_the_grace_are_lost(self):
        # The run at minute 10 is 6 minutes after that of minute 4.
        soak = self.soak(runs=self.every_two_minutes(without=(4, 6, 8)))
        self.assertEqual(self.lost(soak), [4])

    def test_runs_that_were_stopped_or_failed_keep_no_night(self):
        runs = [run(T + 60 * m, T + 60 * m + 5, "stopped" if m in (4, 6, 8) else "finished") for m in range(0, 20, 2)]
        self.assertEqual(self.lost(self.soak(runs=runs)), [4])

    def test_time_without_any_schedule_does_not_count(self):
        dead = [{"t": T + 239, "event": "ended", "who": who, "life": 1} for who in "AB"]
        back = [{"t": T + 580, "event": "started", "who": "B", "life": 2}]
        soak = self.soak(dead + back, runs=self.every_two_minutes(without=(4, 6, 8)))
        self.assertEqual(self.lost(soak), [])

    def test_the_lease_of_a_killed_schedule_is_an_excuse_until_it_expires(self):
        lease = {"t": T + 240, "client": "A", "method": "PUT", "path": "/study/tables/_schedule.lock", "status": 200}
        kill = {"t": T + 242, "event": "signal", "who": "A", "signal": "KILL", "victim": "schedule A"}
        runs = self.every_two_minutes(without=(4, 6, 8))
        self.assertEqual(self.lost(self.soak([kill], [lease], runs)), [])
        # Another schedule's lease is none, nor is one that ended by SIGTERM.
        self.assertEqual(self.lost(self.soak([{**kill, "who": "B"}], [lease], runs)), [4])
        self.assertEqual(self.lost(self.soak([{**kill, "signal": "TERM"}], [lease], runs)), [4])
        # It was given back before the kill.
        back = {"t": T + 241, "client": "A", "method": "POST", "status": 200, "path": "/study?delete",
                "deletes": ["tables/_schedule.lock"]}  # fmt: skip
        self.assertEqual(self.lost(self.soak([kill], [lease, back], runs)), [4])

    def test_a_night_needs_every_scan_that_was_there(self):
        here = {"t": T + 100, "began": T + 99, "event": "upload", "scan": "s", "size": 7, "kind": "new"}
        runs = self.every_two_minutes()
        self.assertEqual(self.lost(self.soak([here], runs=runs, scans=[scan("s", 7, T + 121)])), [])
        self.assertEqual(self.lost(self.soak([here], runs=runs, scans=[scan("s", 7, T + 480)])), [2])
        # Another content is no result, unless the first one was replaced before its time came.
        self.assertEqual(len(self.lost(self.soak([here], runs=runs, scans=[scan("s", 8, T + 121)]))), 7)
        replaced = {**here, "t": T + 200, "began": T + 199, "size": 8, "kind": "replaced"}
        soak = self.soak([here, replaced], runs=runs, scans=[scan("s", 8, T + 241)])
        self.assertEqual(self.lost(soak), [])

    def test_the_cohort_at_the_end(self):
        here = [
            {"t": T + n, "began": T + n, "event": "upload", "scan": name, "size": n, "kind": kind}
            for n, name, kind in [(1, "good", "new"), (2, "absent", "new"), (3, "twice", "new"), (4, "bad", "damaged")]
        ]
        rows = [scan("good", 1, T), scan("twice", 3, T, "a"), scan("twice", 3, T, "b"), scan("other", 9, T)]
        found = self.soak(here, scans=rows, failures=[]).cohort()
        self.assertEqual((found["scans"], found["done"], found["missing"]), (4, 1, ["absent"]))
        self.assertEqual((found["doubled"], found["not of the cohort"]), (["twice"], ["other"]))
        self.assertEqual((len(found["results of one key doubled"]), found["damaged without a failure"]), (1, ["bad"]))


if __name__ == "__main__":
    unittest.main()
