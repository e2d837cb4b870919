#!/usr/bin/env python3
"""Measures how much of a store's latency is hidden: the same cohort from a bucket that answers at once, and from one
that takes 100 ms longer for every request.

    latency.py --binary target/release/neurosieve [--limit 20] [--latency-ms 100] [--check] COHORT

s3_server.py (moto) serves both buckets on this machine; they hold the cohort and the tables. Each round runs both, one
after the other. Prints the seconds of a run, how busy the device threads were, and the mean time of a fetch. Requests
that overlap with computation cost nothing. What remains are the requests before the first scan and after the last one,
which wait for each other. --check exits with 1 if more than sixty of them remain. Needs the Python of scripts/python.sh.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import boto3

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "study"
REMAINING_REQUESTS = 60
KEYS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class Server:
    """A bucket that takes `slower_s` seconds longer for each request that reads, lists or writes."""

    def __init__(self, scans, cohort, slower_s):
        command = [sys.executable, ROOT / "tests/servers/s3_server.py", BUCKET]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.endpoint = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        for scan in [cohort / "dataset_description.json", *scans]:
            client.put_object(Bucket=BUCKET, Key=f"cohort/{scan.relative_to(cohort)}", Body=scan.read_bytes())
        if slower_s:
            for method in ("GET", "HEAD", "PUT"):
                self.process.stdin.write(f"slow {slower_s} {method} .\n")
            self.process.stdin.flush()

    def run(self, binary, bundle, tables, report):
        command = [binary, "run", ROOT / "pipelines/screen.toml", "--cohort", f"s3://{BUCKET}/cohort", "--device", "cpu"]
        command += ["--tables", f"s3://{BUCKET}/{tables}", "--report", report]
        command += ["--set", f"model.bundle={bundle}"] if bundle else []
        environment = {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stdout[-1000:] + done.stderr[-2000:])
        report = json.loads(Path(report).read_text())
        places = {place["place"]: place for place in report["places"]}
        return {
            "elapsed_s": report["elapsed_s"],
            "device_busy": places["device"]["busy"],
            "fetch_ms": 1000 * places["fetch"]["seconds"] / report["done"],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--latency-ms", type=float, default=100.0)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    scans = sorted(p for p in args.cohort.glob("sub-*/**/*_T1w.nii.gz") if "derivatives" not in p.parts)[: args.limit]
    if not scans:
        sys.exit(f"{args.cohort} has no T1w scan")

    slow = f"{args.latency_ms:g} ms more"
    servers = {"at once": Server(scans, args.cohort, 0), slow: Server(scans, args.cohort, args.latency_ms / 1000)}
    rows = {name: [] for name in servers}
    with TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name, server in servers.items():
                rows[name].append(server.run(args.binary, args.bundle, f"tables-{number}", f"{folder}/report.json"))
    for server in servers.values():
        server.process.kill()

    figures = {name: {key: median(row[key] for row in runs) for key in runs[0]} for name, runs in rows.items()}
    print(f"{len(scans)} scans, {args.rounds} round(s)\n")
    print("| the bucket answers | run, s | scans/min | device busy | fetch of a scan, ms |\n|---|---|---|---|---|")
    for name, row in figures.items():
        per_minute, busy = 60 * len(scans) / row["elapsed_s"], 100 * row["device_busy"]
        print(f"| {name} | {row['elapsed_s']:.1f} | {per_minute:.1f} | {busy:.0f} % | {row['fetch_ms']:.0f} |")
    at_once, later = figures.values()
    more = later["elapsed_s"] - at_once["elapsed_s"]
    print(f"\n{more:.1f} s more, {1000 * more / args.latency_ms:.0f} requests in sequence")
    if args.check and more > REMAINING_REQUESTS * args.latency_ms / 1000:
        sys.exit(1)


if __name__ == "__main__":
    main()
