#!/usr/bin/env python3
"""Runs `neurosieve run` and the plain pipeline of plain.py in turns, on the same scans with the same weights.

    compare.py --binary target/release/neurosieve --bundle models/t1w-2mm COHORT [--limit 20] [--rounds 2] [--json FILE]

Each round runs both, one after the other. The time of a run includes loading. Its memory is the largest sum of the
proportional set sizes of its processes (shared pages count once), sampled twenty times a second. --check exits with 1
if neurosieve is not twice as fast, or takes more than half the memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

PLAIN = Path(__file__).with_name("plain.py")


def processes(root):
    """A process and its descendants."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def memory_mib(root):
    kib = 0
    for pid in processes(root):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kib += int(line.split()[1])
        except OSError:
            continue
    return kib / 1024


def run(command, log):
    started, peak = time.perf_counter(), 0.0
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            peak = max(peak, memory_mib(process.pid))
            time.sleep(0.05)
    if process.returncode != 0:
        sys.exit(f"{command[:3]}: exit code {process.returncode}\n{Path(log).read_text()[-2000:]}")
    return time.perf_counter() - started, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    scans = sorted(p for p in args.cohort.glob("sub-*/**/*_T1w.nii.gz") if "derivatives" not in p.parts)[: args.limit]
    if not scans:
        sys.exit(f"{args.cohort} has no T1w scan")
    pipeline = Path(__file__).resolve().parents[2] / "pipelines" / "screen.toml"
    rows = {"neurosieve": [], "plain Python": []}
    with TemporaryDirectory() as folder:
        for number in range(args.rounds):
            out = Path(folder) / "out"
            ours = [args.binary, "run", str(pipeline), "--cohort", str(args.cohort), "--tables", str(out)]
            ours += ["--device", "cpu", "--limit", str(len(scans)), "--set", f"model.bundle={args.bundle}"]
            plain = [sys.executable, str(PLAIN), str(args.bundle), str(out), *map(str, scans)]
            for name, command in (("neurosieve", ours), ("plain Python", plain)):
                rows[name].append(run(command, Path(folder) / "log"))
                shutil.rmtree(out)
                seconds, peak = rows[name][-1]
                print(f"round {number + 1}, {name}: {seconds:.1f} s, {peak:.0f} MiB", file=sys.stderr, flush=True)
    figures = {
        name: {"scans_per_minute": 60 * len(scans) / median(s for s, _ in runs), "peak_mib": max(m for _, m in runs)}
        for name, runs in rows.items()
    }
    ours, plain = figures.values()
    speed, memory = ours["scans_per_minute"] / plain["scans_per_minute"], ours["peak_mib"] / plain["peak_mib"]
    print(f"{len(scans)} scans, {args.rounds} round(s), {os.cpu_count()} processors\n")
    print("| pipeline | scans/min | peak memory, MiB |\n|---|---|---|")
    for name, row in figures.items():
        print(f"| {name} | {row['scans_per_minute']:.1f} | {row['peak_mib']:.0f} |")
    print(f"| neurosieve / plain Python | {speed:.2f} x | {memory:.2f} x |")
    if args.json:
        args.json.write_text(json.dumps({"scans": len(scans), "runs": rows, "figures": figures}, indent=1) + "\n")
    if args.check and (speed < 2 or memory > 0.5):
        sys.exit(1)


if __name__ == "__main__":
    main()
