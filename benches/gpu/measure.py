#!/usr/bin/env python3
"""Measures neurosieve on a GPU, in one run of at most nine minutes.

    measure.py [--device cuda|cpu] [--quick] [--out FOLDER] [--program PROGRAM] [--minutes 9]

Runs from the folder that `make bench-gpu` packs, on a machine with an NVIDIA driver and a Python that has PyTorch 2.11.0;
the standard library does the rest. Writes gpu.json (every figure) and gpu.md (tables for docs/performance.md).

Every part has a time limit of its own, and a part that fails leaves its message in the result while the others
continue. The parts, the most important first:

    works      doctor; the same heads by processor and by device, twice by device, one scan and eight at once
    end_to_end a screening of many heads, and scoring of the same heads with nothing else around it
    networks   every network of the built-in bundle and of the preset `paper`, f32 and bf16
    rivals     the autoregressive prior beside masked image modelling, on the same scans
    pytorch    the same networks in eager PyTorch, same weights and batches
    memory     a batch that does not fit into memory is halved, and the run finishes
    where      where the device's time goes: networks, launches, copies, the rest

--quick with --device cpu runs every part in its smallest form, as the tests do. Ends with exit code 0 where every part
has figures, 1 where one has not.
"""

import argparse
import hashlib
import importlib.util
import json
import lzma
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import tables

HERE = Path(__file__).resolve().parent
# With --quick the limits are this many times as long: tests run beside others on few cores.
PATIENCE = 10
PIPELINE = HERE / "screen.toml"
if not PIPELINE.exists():
    PIPELINE = HERE.parents[1] / "pipelines" / "screen.toml"
# Seconds that a part may take.
LIMITS = {"works": 130, "end_to_end": 110, "networks": 150, "rivals": 90, "pytorch": 80, "memory": 60, "where": 45}
# Memory of the GPU, MiB, that is left to the program in the part `memory`: enough for its networks, not for the batch.
ROOM_MIB = 3000


class Failed(Exception):
    """A part that has no figures, with the reason."""


class Machine:
    """The program, where its libraries are, and what a part may still take of the time."""

    def __init__(self, args, work):
        self.device, self.quick, self.work = args.device, args.quick, work
        self.ends = time.monotonic() + 60 * args.minutes * (PATIENCE if args.quick else 1)
        self.part_ends = self.ends
        self.program = find_program(args.program, work)
        self.environment = dict(os.environ, **libraries())

    def left(self):
        return max(1.0, min(self.ends, self.part_ends) - time.monotonic())

    def run(self, *command, ok=(0,), environment=None):
        """Runs a command; gives its output, its seconds and its peak resident memory, MiB."""
        command = [str(word) for word in command]
        started = time.monotonic()
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=err,
            env={**self.environment, **(environment or {})},
            start_new_session=True,
        )
        timer = threading.Timer(self.left(), lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        late = not timer.is_alive()
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        text = []
        for stream in (out, err):
            stream.seek(0)
            text.append(stream.read().decode(errors="replace"))
        said = "\n".join(text)[-1500:]
        if late:
            raise Failed(f"{' '.join(command[:4])}: not finished within the part's time limit\n{said}")
        if process.returncode not in ok:
            raise Failed(f"{' '.join(command[:4])}: exit code {process.returncode}\n{said}")
        return {
            "out": text[0],
            "err": text[1],
            "seconds": time.monotonic() - started,
            "peak_mib": usage.ru_maxrss / 1024,
        }

    def neurosieve(self, *args, **options):
        return self.run(self.program, *args, **options)

    def measured(self, *args, **options):
        """What a command writes to its --json file."""
        file = self.work / "figures.json"
        file.unlink(missing_ok=True)
        self.neurosieve(*args, "--json", file, **options)
        return json.loads(file.read_text())

    def ask(self, tables_folder, sql, form="json"):
        asked = self.neurosieve("sql", "--tables", tables_folder, "--format", form, "-c", sql)["out"]
        return json.loads(asked or "[]") if form == "json" else asked


def find_program(given, work):
    """The program: the given one, or the packed one beside this file, unpacked."""
    if given:
        return Path(given).resolve()
    packed, program = HERE / "neurosieve.xz", work / "neurosieve"
    if not packed.exists():
        sys.exit(f"{packed} is missing: run `make bench-gpu` and carry the folder that it names, or give --program")
    with lzma.open(packed) as source, open(program, "wb") as target:
        shutil.copyfileobj(source, target)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def libraries():
    """Where the program finds libtorch: in this Python's PyTorch, without importing it. Empty where there is none."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return {}
    lib = Path(found.origin).parent / "lib"
    site = Path(found.origin).parent.parent
    nvidia = sorted({str(file.parent) for file in site.glob("nvidia/**/lib/*.so*")})
    path = ":".join([str(lib), *nvidia, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(":")
    return {"LD_LIBRARY_PATH": path, "NEUROSIEVE_LIBTORCH_CUDA": str(lib)}


def has_torch():
    return importlib.util.find_spec("torch") is not None


def nvidia(*fields):
    """Fields of the first GPU by nvidia-smi; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return dict(zip(fields, values, strict=False))


class GpuMemory(threading.Thread):
    """The largest memory in use on the GPU while this lives, MiB; 0 without a GPU."""

    def __init__(self, device):
        super().__init__(daemon=True)
        self.peak, self.over, self.on_gpu = 0.0, threading.Event(), device == "cuda"

    def run(self):
        while self.on_gpu and not self.over.wait(0.2):
            self.peak = max(self.peak, float(nvidia("memory.used").get("memory.used", 0)))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def heads(machine, count, copies=1):
    """A folder of `count` synthetic heads, each `copies` times under different names."""
    folder = machine.work / f"heads-{count}-{copies}"
    if folder.exists():
        return folder
    source = machine.work / "made"
    if not source.exists():
        machine.neurosieve("synth", source, "--subjects", 2 if machine.quick else 16, "--seed", 3)
    subjects = sorted(source.glob("sub-*"))
    folder.mkdir()
    for file in source.glob("*.json"):
        shutil.copy(file, folder)
    for number in range(count * copies):
        subject = subjects[number % min(count, len(subjects))]
        for scan in subject.rglob("*_T1w.nii.gz"):
            target = folder / f"sub-{number:04d}" / "anat" / f"sub-{number:04d}_T1w.nii.gz"
            target.parent.mkdir(parents=True)
            shutil.copy(scan, target)
    return folder


def screen(machine, cohort, name, device, *more, ok=(0,), **options):
    """Screens a cohort into tables of this name; gives their folder, the report, and the run's time and memory."""
    folder, report = machine.work / name, machine.work / f"{name}.json"
    where_to = ("--cohort", cohort, "--tables", folder, "--report", report)
    done = machine.neurosieve("run", PIPELINE, *where_to, "--device", device, *more, ok=ok, **options)
    return folder, json.loads(report.read_text()), done


ROWS = "SELECT scan_id, anomaly_score, anomaly_volume_ml, n_findings FROM scans ORDER BY scan_id"
MASKS = "SELECT scan_id, mask, score FROM masks ORDER BY scan_id"
TOKENS = "SELECT scan_id, z, y, x, code, p_anomalous, nll, residual FROM tokens ORDER BY scan_id, z, y, x"


def content(machine, folder):
    """Every number that a screening gave: scan rows, masks by scan, and a digest of them all with the tokens."""
    rows = machine.ask(folder, ROWS)
    masks = {row["scan_id"]: row for row in machine.ask(folder, MASKS)}
    digest = hashlib.sha256(json.dumps([rows, sorted(masks.items())]).encode())
    digest.update(machine.ask(folder, TOKENS, "csv").encode())
    return rows, masks, digest.hexdigest()


def dice(a, b):
    """Of two bit-packed masks in hexadecimal; 1 where both are empty."""
    a, b = int(a or "0", 16), int(b or "0", 16)
    both = a.bit_count() + b.bit_count()
    return 2 * (a & b).bit_count() / both if both else 1.0


def agreement(a, b):
    """How far two screenings of the same heads differ."""
    (rows_a, masks_a, digest_a), (rows_b, masks_b, digest_b) = a, b
    if [row["scan_id"] for row in rows_a] != [row["scan_id"] for row in rows_b] or not rows_a:
        raise Failed(f"{len(rows_a)} and {len(rows_b)} scans, not the same ones")
    overlaps = [dice(masks_a[scan]["mask"], masks_b[scan]["mask"]) for scan in masks_a]
    pairs = list(zip(rows_a, rows_b, strict=True))
    return {
        "scans": len(pairs),
        "mask_dice_mean": sum(overlaps) / len(overlaps),
        "mask_dice_worst": min(overlaps),
        "anomaly_score_largest_difference": max(abs(x["anomaly_score"] - y["anomaly_score"]) for x, y in pairs),
        "bit_for_bit": digest_a == digest_b,
    }


def works(machine):
    doctor = machine.neurosieve("doctor", "--device", machine.device)["out"]
    gpu = next((line for line in doctor.splitlines() if line.split()[1:2] == ["GPU"]), "")
    device = machine.device
    cohort = heads(machine, 2 if machine.quick else 16)

    def by(name, on, *more, environment=None):
        folder, _, _ = screen(machine, cohort, name, on, *more, environment=environment)
        seen = content(machine, folder)
        shutil.rmtree(folder)
        return seen

    def together(scans):
        return "--set", f"score.scans_at_once={scans}"

    on_cpu, first = by("cpu", "cpu"), by("first", device)
    figures = {
        "doctor": gpu.strip(),
        "cpu_and_device": agreement(on_cpu, first),
        "device_twice": agreement(first, by("second", device)),
    }
    if machine.quick:
        figures["one_and_eight_at_once"] = agreement(first, by("eight", device, *together(8)))
        return figures
    # Alone, a scan's batches have other shapes than shared ones, which may move last digits; shared ones are alike.
    eight = by("eight", device, *together(8))
    figures["one_and_eight_at_once"] = agreement(by("one", device, *together(1)), eight)
    figures["two_and_eight_at_once"] = agreement(by("two", device, *together(2)), eight)
    figures["bf16_and_f32"] = agreement(first, by("bf16", device, "--set", "score.precision=bf16"))
    if device == "cuda":
        # cuDNN rounds the inputs of f32 convolutions to TF32 unless this forbids it.
        exact = by("exact", device, environment={"NVIDIA_TF32_OVERRIDE": "0"})
        figures["cpu_and_device_without_tf32"] = agreement(on_cpu, exact)
    return figures


def end_to_end(machine):
    count, copies = (2, 2) if machine.quick else (16, 13)
    cohort = heads(machine, count, copies)
    with GpuMemory(machine.device) as memory:
        folder, report, done = screen(machine, cohort, "many", machine.device)
    shutil.rmtree(folder)
    figures = {
        "scans": report["done"],
        "scans_per_second": report["done"] / report["elapsed_s"],
        "seconds_with_start": done["seconds"],
        "busy": {place["place"]: place["busy"] for place in report["places"] if place["busy"] is not None},
        "bottleneck": report["bottleneck"],
        "peak_host_mib": done["peak_mib"],
        "peak_device_mib": memory.peak,
    }
    figures["prepared"] = {}
    for precision in ("f32",) if machine.quick else ("f32", "bf16"):
        for together in (1,) if machine.quick else (1, 8, 32):
            with GpuMemory(machine.device) as memory:
                speed = machine.measured(
                    *("bench", "volumes", "--cohort", cohort, "--device", machine.device),
                    *("--volumes", 2 if machine.quick else 200, "--distinct", count),
                    *("--set", f"score.precision={precision}", "--set", f"score.scans_at_once={together}"),
                )
            speed["peak_device_mib"] = memory.peak
            figures["prepared"][f"{precision}, {together} at once"] = speed
    return figures


def networks(machine):
    if machine.quick:
        wanted = {"preset tiny": ("--preset", "tiny", "--batch", 4)}
    else:
        wanted = {"built-in bundle": (), "preset paper": ("--preset", "paper")}
    figures = {
        name: machine.measured("bench", "device", "--device", machine.device, "--bf16", *more)
        for name, more in wanted.items()
    }
    slices = 8 if machine.quick else 100
    for precision in ("f32", "bf16"):
        preset = "tiny" if machine.quick else "paper"
        speed = machine.measured(
            *("bench", "volumes", "--preset", preset, "--slices", slices, "--device", machine.device),
            *("--volumes", 2 if machine.quick else 20, "--distinct", 2, "--set", f"score.precision={precision}"),
        )
        figures[f"volume, {precision}"] = speed
    return figures


def rivals(machine):
    ways = {
        "mim": ("score.method=mim",),
        "mim, one drawn restoration": ("score.method=mim", "score.restorations=1"),
        "ar with cache": ("score.method=ar", "score.restorations=1", "score.ar_cached=true"),
        "ar with full passes": ("score.method=ar", "score.restorations=1", "score.ar_cached=false"),
    }
    figures = {}
    for name, settings in ways.items():
        if machine.quick:
            scans = ("--preset", "tiny", "--slices", 4, "--volumes", 1, "--distinct", 1)
        else:
            scans = ("--cohort", heads(machine, 16), "--distinct", 2, "--volumes", 2 if "full" in name else 8)
        chosen = [word for setting in settings for word in ("--set", setting)]
        figures[name] = machine.measured("bench", "volumes", *scans, "--device", machine.device, *chosen)
    fastest = figures["mim"]["volumes_per_second"]
    for speed in figures.values():
        speed["times_as_long_as_mim"] = fastest / speed["volumes_per_second"]
    return figures


def pytorch(machine):
    if not has_torch():
        raise Failed("this Python has no PyTorch to compare with")
    twin, bundle = HERE / "twin.py", HERE / "bundle"
    if not twin.exists():
        twin, bundle = HERE.parent / "twin" / "twin.py", HERE.parents[1] / "models" / "t1w-2mm"
    given, bench, figures = (machine.work / name for name in ("twin.safetensors", "bench.json", "twin.json"))
    machine.neurosieve("twin", "--out", given)
    batch = 4 if machine.quick else 96
    machine.neurosieve("bench", "device", "--device", machine.device, "--bf16", "--batch", batch, "--json", bench)
    command = [sys.executable, twin, bundle, given, "--bench", bench, "--device", machine.device, "--json", figures]
    machine.run(*command, ok=(0, 1))
    return json.loads(figures.read_text())


BALLAST = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(max(0, free - (int(sys.argv[1]) << 20)), dtype=torch.uint8, device="cuda")
print("held", flush=True)
time.sleep(600)
"""


def memory(machine):
    """A batch of all slices at once, while another process holds nearly all of the GPU's memory. On the processor, where
    want of memory would end the process, the large batch alone."""
    # Scans that share batches fill each up to its full size, whatever their number.
    large, shared = ("--set", "score.batch_slices=8192"), ("--set", "score.scans_at_once=64")
    if machine.device == "cpu":
        speed = machine.measured(
            *("bench", "volumes", "--preset", "tiny", "--device", "cpu", "--slices", 8, "--volumes", 2, *large)
        )
        return {"scans": speed["volumes"], "failed": 0, "halved": 0, "provoked": False}
    if not has_torch():
        raise Failed("this Python has no PyTorch, which would hold the GPU's memory")
    cohort = heads(machine, 16, 4)
    ballast = subprocess.Popen([sys.executable, "-c", BALLAST, str(ROOM_MIB)], stdout=subprocess.PIPE, text=True)
    try:
        if ballast.stdout.readline().strip() != "held":
            raise Failed("the GPU's memory could not be taken by another process")
        environment = {"NEUROSIEVE_LOG": "warn"}
        _, report, done = screen(machine, cohort, "memory", "cuda", *large, *shared, ok=(0, 3), environment=environment)
    finally:
        ballast.kill()
    halved = done["err"].count("half as many slices")
    if not halved or report["failed"]:
        raise Failed(f"halved {halved} times, {report['failed']} scans failed: a batch that is too large must be halved")
    return {"scans": report["done"], "failed": 0, "halved": halved, "provoked": True}


def where(machine):
    figures = {}
    for precision in ("f32", "bf16"):
        scans = ("--preset", "tiny", "--slices", 8) if machine.quick else ("--cohort", heads(machine, 16))
        figures[precision] = machine.measured(
            *("bench", "volumes", *scans, "--device", machine.device, "--volumes", 2 if machine.quick else 64),
            *("--distinct", 2 if machine.quick else 8, "--set", f"score.precision={precision}"),
        )
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="every part in its smallest form")
    parser.add_argument("--out", type=Path, default=HERE, help="where gpu.json and gpu.md go")
    parser.add_argument("--program", help="the program, where it is not packed beside this file")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--parts", default=",".join(LIMITS), help="only these, separated by commas")
    args = parser.parse_args()
    wanted = args.parts.split(",")
    unknown = set(wanted) - set(LIMITS)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="neurosieve-gpu-") as folder:
        started = time.monotonic()
        machine = Machine(args, Path(folder))
        gpu = nvidia("name", "memory.total", "driver_version") if args.device == "cuda" else {}
        result = {
            "device": gpu.get("name", "processor only"),
            "gpu": gpu,
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "program": machine.neurosieve("--version")["out"].strip(),
            "quick": args.quick,
            "parts": {},
        }
        for name, part in (
            *(("works", works), ("end_to_end", end_to_end), ("networks", networks), ("rivals", rivals)),
            *(("pytorch", pytorch), ("memory", memory), ("where", where)),
        ):
            if name not in wanted:
                continue
            began = time.monotonic()
            machine.part_ends = began + LIMITS[name] * (PATIENCE if args.quick else 1)
            try:
                entry = {"figures": part(machine)}
            except Failed as error:
                entry = {"error": str(error)}
            except Exception as error:  # noqa: BLE001 - the other parts run even if one fails
                entry = {"error": f"{type(error).__name__}: {error}"}
            entry["seconds"] = time.monotonic() - began
            result["parts"][name] = entry
            print(f"{name}: {entry.get('error', 'done')} ({entry['seconds']:.0f} s)", file=sys.stderr, flush=True)
            result["seconds"] = time.monotonic() - started
            # Written after every part: what stops the machine costs the parts to come, not those that are done.
            (args.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
            (args.out / "gpu.md").write_text(tables.markdown(result))
    sys.exit(1 if any("error" in entry for entry in result["parts"].values()) else 0)


if __name__ == "__main__":
    main()
