#!/usr/bin/env python3
"""Screens thousands of scans with the real program on two cores in minutes, to measure the engine.

    scale.py --binary target/release/neurosieve [--scans 10000] [--work DIR] [--json FILE] [--check]

Makes 16 skull-stripped synthetic heads of 4 mm, trains the smallest model on them for a minute, and links the heads
under as many names as requested. Every scan then passes all stages: listed, read, decoded, registered, tokenized,
scored, written, committed. Registration and bias field correction are shortened and scores are those of the intensity,
so that thousands of scans take minutes. Nothing is replaced by a stub.

Prints scans per minute, the CPU time of the engine per scan (all threads but those that preprocess and those of the
device), the resident memory after a tenth of the scans and at the end, bytes per row of `tokens`, and the time of an
aggregate of `tokens` by region before and after `tables optimize`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

HEADS = 16
# Shortened: the engine is measured, not the preprocessing.
QUICK = [
    "preprocess.register.iterations=1",
    "preprocess.bias.iterations=1",
    "preprocess.bias.levels=1",
    "preprocess.bias.sampling_mm=12",
    "score.method=threshold",
]
TINY = """
[train]
preset = "tiny"
name = "tiny"
device = "cpu"
healthy_map_scans = 0
tokenizer = { steps = 60, batch = 8 }
detector = { steps = 12, batch = 4 }
inpainter = { steps = 12, batch = 4 }
"""
AGGREGATE = "SELECT region, count(*) AS n, avg(p_anomalous) AS p, max(residual) AS r FROM tokens GROUP BY region"


class Threads:
    """CPU seconds of a process by the kind of its threads, as of the last update."""

    def __init__(self, pid):
        self.pid, self.seconds = pid, {}

    def update(self):
        tick = os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:
                continue
            fields = rest.split()
            self.seconds[task.name] = (name, (int(fields[11]) + int(fields[12])) / tick)

    def of(self, wanted):
        return sum(seconds for name, seconds in self.seconds.values() if wanted(name))


def resident_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def strip(cohort):
    """Removes the skulls, with the masks that the generator wrote as derivatives."""
    import nibabel as nib
    import numpy as np

    for scan in sorted(cohort.glob("sub-*/anat/*_T1w.nii.gz")):
        subject = scan.parts[-3]
        mask = cohort / f"derivatives/truth/{subject}/anat/{subject}_label-brain_mask.nii.gz"
        head, brain = nib.load(scan), np.asanyarray(nib.load(mask).dataobj) > 0
        data = np.where(brain, np.asanyarray(head.dataobj), 0).astype(head.get_data_dtype())
        nib.save(nib.Nifti1Image(data, head.affine, head.header), scan)


def link(heads, cohort, n):
    sources = sorted(heads.glob("sub-*/anat/*_T1w.nii.gz"))
    cohort.mkdir()
    (cohort / "dataset_description.json").write_text((heads / "dataset_description.json").read_text())
    for number in range(n):
        folder = cohort / f"sub-{number:06}" / "anat"
        folder.mkdir(parents=True)
        os.link(sources[number % len(sources)], folder / f"sub-{number:06}_T1w.nii.gz")


def seconds_of(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def show(figures):
    for name, value in figures.items():
        print(f"{name:<24}{value:>14.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--work", type=Path, help="an existing folder for temporary files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure is outside its limit")
    args = parser.parse_args()
    pipeline = Path(__file__).resolve().parents[2] / "pipelines" / "screen.toml"

    with TemporaryDirectory(dir=args.work) as folder:
        folder = Path(folder)
        heads, cohort, tables = folder / "heads", folder / "cohort", folder / "tables"

        def program(*arguments):
            subprocess.run([args.binary, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

        program("synth", heads, "--subjects", HEADS, "--lesions", 0, "--spacing", 4)
        strip(heads)
        (folder / "tiny.toml").write_text(TINY)
        train = [f"train.out={folder / 'tiny'}", f"train.work={folder / 'work'}"]
        program("train", folder / "tiny.toml", "--cohort", heads, *(part for s in train for part in ("--set", s)))
        link(heads, cohort, args.scans)

        settings = [*QUICK, f"model.bundle={folder / 'tiny'}"]
        command = [args.binary, "run", pipeline, "--cohort", cohort, "--tables", tables, "--device", "cpu"]
        command += ["--report", folder / "report.json", "--metrics", "127.0.0.1:0"]
        command += [part for s in settings for part in ("--set", s)]
        started = time.perf_counter()
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
            threads, memory = Threads(process.pid), []
            while process.poll() is None:
                try:
                    threads.update()
                    memory.append((time.perf_counter() - started, resident_mib(process.pid)))
                except OSError:
                    pass
                time.sleep(1)
        if process.returncode != 0:
            sys.exit((folder / "log").read_text()[-3000:])
        report = json.loads((folder / "report.json").read_text())
        assert report["done"] == args.scans, report

        elapsed = report["elapsed_s"]
        first = [m for t, m in memory if elapsed * 0.1 <= t <= elapsed * 0.2]
        last = [m for t, m in memory if t >= elapsed * 0.9]
        engine = threads.of(lambda name: not name.startswith(("device-", "core-")))
        token_bytes = sum(f.stat().st_size for f in (tables / "tokens").glob("*.parquet"))
        query = [args.binary, "sql", "--tables", str(tables), "--format", "json", "-c"]
        counted = subprocess.run([*query, "SELECT count(*) AS n FROM tokens"], check=True, capture_output=True)
        n_tokens = json.loads(counted.stdout)[0]["n"]
        figures = {
            "scans": args.scans,
            "scans_per_minute": 60 * args.scans / elapsed,
            "engine_ms_per_scan": 1000 * engine / args.scans,
            "first_tenths_mib": max(first, default=0),
            "last_tenth_mib": max(last, default=0),
            "token_rows": n_tokens,
            "bytes_per_token_row": token_bytes / n_tokens,
            "aggregate_s": seconds_of([*query, AGGREGATE]),
            "again_s": seconds_of(list(map(str, command))),
        }
        # Printed now, because the next step may fail.
        show(figures)
        for place in report["places"]:
            busy = "" if place["busy"] is None else f"{100 * place['busy']:8.0f} %"
            print(f"{place['place']:<24}{1000 * place['seconds'] / args.scans:>11.1f} ms{busy}", flush=True)
        started = time.perf_counter()
        program("tables", "optimize", "--tables", tables, "--table", "tokens")
        optimized = {"optimize_tokens_s": time.perf_counter() - started}
        optimized["aggregate_optimized_s"] = seconds_of([*query, AGGREGATE])
        counted = subprocess.run([*query, "SELECT count(*) AS n FROM tokens"], check=True, capture_output=True)
        assert json.loads(counted.stdout)[0]["n"] == n_tokens
        show(optimized)
        figures |= optimized
        if args.json:
            args.json.write_text(json.dumps({"figures": figures, "places": report["places"], "memory": memory}) + "\n")
        grown = figures["last_tenth_mib"] > 1.05 * figures["first_tenths_mib"]
        if args.check and (figures["engine_ms_per_scan"] > 5 or grown or figures["bytes_per_token_row"] > 6):
            sys.exit(1)


if __name__ == "__main__":
    main()
