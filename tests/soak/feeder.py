"""The cohort that grows: scans made before the soak and uploaded one by one, some of them damaged, some replaced.

Runs on a thread of its own, past the proxy. Every upload is an event: scan, size, kind, began (when it was sent), and t
(when it was there). Sizes tell the contents of a scan apart: no two contents of the soak have the same size.
"""

import random
import subprocess
import threading
import time

import boto3
from botocore.config import Config

from fleet import BUCKET

# Kinds of uploads and their weights; those that need a scan of some kind are replaced by `new` where there is none.
KINDS = {"new": 65, "damaged": 8, "repaired": 5, "replaced": 15, "restored": 7}


def material(program, folder, count, seed):
    """`count` scans as bytes, of different sizes."""
    made = folder / "material"
    command = [program, "synth", made, "--subjects", str(count), "--spacing", "4", "--lesions", "0", "--seed", str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {file.stat().st_size: file for file in made.glob("sub-*/anat/*_T1w.nii.gz")}


class Feeder:
    def __init__(self, options, store, contents, events):
        self.options, self.events = options, events
        self.contents = list(contents.values())
        self.random = random.Random(f"{options.seed}/feeder")
        self.client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{store.port}", region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test", config=Config(read_timeout=600),
        )  # fmt: skip
        # Scan -> contents that it had, the last one is current; a damaged one is None.
        self.scans = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def put(self, key, content):
        self.client.put_object(Bucket=BUCKET, Key=f"cohort/{key}", Body=content)

    def begin(self, scans):
        """The cohort as it is when the schedules start."""
        self.put("dataset_description.json", b'{"Name": "soak", "BIDSVersion": "1.9.0"}')
        for _ in range(scans):
            self.upload("new")
        self.thread.start()

    def end(self):
        self.stop.set()
        self.thread.join()

    def work(self):
        while self.contents and not self.stop.wait(self.random.expovariate(1 / self.options.scan_every)):
            self.upload(self.random.choices(list(KINDS), list(KINDS.values()))[0])

    def upload(self, kind):
        fit = {
            "repaired": lambda had: had[-1] is None,
            "replaced": lambda had: had[-1] is not None,
            "restored": lambda had: had[-1] is not None and len(set(had) - {None}) > 1,
        }.get(kind, lambda had: False)
        fitting = [scan for scan, had in self.scans.items() if fit(had)]
        if kind != "damaged" and not fitting:
            kind = "new"
        scan = self.random.choice(fitting) if fitting else f"sub-{len(self.scans) + 1:04}"
        had = self.scans.setdefault(scan, [])
        if kind == "restored":
            file = self.random.choice([file for file in dict.fromkeys(had) if file not in (None, had[-1])])
        else:
            file = self.contents.pop()
        content = file.read_bytes()
        if kind == "damaged":
            content = content[: len(content) // 2]
        had.append(None if kind == "damaged" else file)
        began = time.time()
        self.put(f"{scan}/anat/{scan}_T1w.nii.gz", content)
        self.events("upload", scan=f"cohort/{scan}_T1w", size=len(content), kind=kind, began=round(began, 3))
