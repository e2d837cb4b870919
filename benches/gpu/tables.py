"""Makes gpu.md from gpu.json: the tables of docs/performance.md."""


def markdown(result):
    """The whole page. A part without figures is one line with its reason."""
    sections = {
        "works": ("It works", works),
        "end_to_end": ("End to end", end_to_end),
        "networks": ("Networks", networks),
        "rivals": ("Rivals", rivals),
        "pytorch": ("Beside plain PyTorch", pytorch),
        "memory": ("Out of memory", memory),
        "where": ("Where the device's time goes", where),
    }
    gpu = result["gpu"]
    about = f"{result['device']}"
    if gpu:
        about += f" ({gpu.get('memory.total', '?')} MiB, driver {gpu.get('driver_version', '?')})"
    lines = [
        f"### {result['device']}",
        "",
        f"{about}; {result['processor']}, {result['cores']} cores; {result['program']};"
        f" everything in {result['seconds']:.0f} s{', smallest form' if result['quick'] else ''}.",
    ]
    for name, entry in result["parts"].items():
        title, section = sections[name]
        lines += ["", f"#### {title}", ""]
        if "error" in entry:
            lines.append(f"No figures: {entry['error'].splitlines()[0]}")
        else:
            lines += section(entry["figures"])
    return "\n".join(lines) + "\n"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def percent(share):
    return "n/a" if share is None else f"{100 * share:.0f} %"


def works(figures):
    names = {
        "cpu_and_device": "processor and device",
        "cpu_and_device_without_tf32": "processor and device, TF32 forbidden",
        "device_twice": "device, twice",
        "one_and_eight_at_once": "one scan and eight at once",
        "two_and_eight_at_once": "two scans and eight at once",
        "bf16_and_f32": "bf16 and f32",
    }
    yield f"`doctor`: {figures['doctor']}"
    yield ""
    head = ["compared", "scans", "mask Dice, mean", "worst", "largest difference of anomaly_score", "bit for bit"]
    rows = []
    for key, name in names.items():
        if key in figures:
            f = figures[key]
            overlap = (f"{f['mask_dice_mean']:.4f}", f"{f['mask_dice_worst']:.4f}")
            difference = f"{f['anomaly_score_largest_difference']:.2g}"
            rows.append((name, f["scans"], *overlap, difference, "yes" if f["bit_for_bit"] else "no"))
    yield from table(head, rows)


def end_to_end(figures):
    yield (
        f"A screening of {figures['scans']} heads: {figures['scans_per_second']:.2f} scans/s, bottleneck"
        f" {figures['bottleneck']}, at most {figures['peak_host_mib']:.0f} MiB of the host's memory and"
        f" {figures['peak_device_mib']:.0f} MiB of the device's."
    )
    yield ""
    yield from table(["stage", "busy"], [(place, percent(busy)) for place, busy in figures["busy"].items()])
    yield ""
    yield "The same heads, preprocessed and held in memory; only the networks are timed:"
    yield ""
    head = ["numbers, scans together", "scans/s", "batch, slices", "device memory, MiB"]
    rows = [
        (name, f"{f['volumes_per_second']:.2f}", f["batch_slices_fitting"], f"{f['peak_device_mib']:.0f}")
        for name, f in figures["prepared"].items()
    ]
    yield from table(head, rows)


def networks(figures):
    for name, f in figures.items():
        if "kinds" not in f:
            continue
        tried = ", ".join(f"{batch}: {speed:.0f}" for batch, speed in f["tried"])
        ceilings = " and ".join(f"{kind['ceiling_gflops'] / 1e3:.3g} TFLOP/s in {kind['kind']}" for kind in f["kinds"])
        yield f"{name[0].upper() + name[1:]}, batches of {f['batch']} slices; large matrix products reach {ceilings}."
        if tried:
            yield f"Slices/s by batch size: {tried}."
        yield ""
        kinds = [kind["kind"] for kind in f["kinds"]]
        columns = ("ms/slice", "TFLOP/s", "of the ceiling", "launch, ms/slice")
        head = ["network"] + [f"{kind}: {column}" for kind in kinds for column in columns]
        rows = []
        for i, network in enumerate(f["kinds"][0]["networks"]):
            cells = [network["name"]]
            for kind in f["kinds"]:
                n = kind["networks"][i]
                launch = n["launch_ms_per_slice"]
                cells += [f"{n['ms_per_slice']:.4g}", f"{n['gflops'] / 1e3:.3g}", percent(n["share_of_ceiling"])]
                cells.append("n/a" if launch is None else f"{launch:.4g}")
            rows.append(cells)
        yield from table(head, rows)
        yield ""
    rows = [
        (name.removeprefix("volume, "), f["model"], f"{f['slices']:.0f}", f"{f['seconds'] / f['volumes']:.3g}")
        for name, f in figures.items()
        if "kinds" not in f
    ]
    yield from table(["a whole volume", "sizes", "slices", "seconds"], rows)


def rivals(figures):
    head = ["method", "s/scan", "times as long as mim"]
    rows = [
        (name, f"{1 / f['volumes_per_second']:.3g}", f"{f['times_as_long_as_mim']:.1f} x")
        for name, f in figures.items()
    ]
    yield from table(head, rows)


def pytorch(figures):
    yield (
        f"PyTorch {figures['torch']}, batches of {figures['batch']} slices, ms/slice; outputs and gradients"
        f" {'agree' if figures['agrees'] else 'DIFFER'}."
    )
    yield ""
    rows = []
    for name, f in figures["networks"].items():
        ratios = (f"{f['f32'] / f['ours f32']:.2f} x", f"{f['bf16'] / f['ours bf16']:.2f} x")
        rows.append((name, *(f"{value:.4g}" for value in f.values()), *ratios))
    columns = list(next(iter(figures["networks"].values())))
    yield from table(["network", *columns, "f32 / ours f32", "bf16 / ours bf16"], rows)


def memory(figures):
    if figures["provoked"]:
        done = f"{figures['scans']} scans done, {figures['failed']} failed"
        yield f"Batches that did not fit into 3 GB were halved {figures['halved']} time(s); {done}."
    else:
        yield "Not provoked: on the processor, want of memory would end the process. A batch of all slices passed."


def where(figures):
    head = ["numbers", "ms/scan", "networks", "of it launches", "copies to", "copies back", "other"]
    rows = []
    for name, f in figures.items():
        parts = f["breakdown"]
        total = parts["total_ms"]

        def share(key, parts=parts, total=total):
            return "n/a" if parts[key] is None else percent(parts[key] / total)

        shares = [share(key) for key in ("networks_ms", "launch_ms", "to_device_ms", "from_device_ms", "other_ms")]
        rows.append((name, f"{total:.2f}", *shares))
    yield from table(head, rows)
