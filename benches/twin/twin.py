#!/usr/bin/env python3
"""The networks of a bundle in plain eager PyTorch: compares their outputs and gradients, and times them.

    neurosieve twin --bundle models/t1w-2mm --out twin.safetensors
    twin.py models/t1w-2mm twin.safetensors [--bench bench.json] [--threads 1] [--device cpu] [--json FILE]

Written from the papers and from the description in bundle.toml, not from the Rust code. Reads the weights of the bundle
(f16; if the folder holds bundle.toml alone, the weights in the second file) and the results of `neurosieve twin` for
made-up inputs. Exits with 1 if an output differs by more than 1e-4 of its largest value, or a gradient by more than 1e-3
of its largest; both are compared on the CPU. --bench takes the result of `neurosieve bench device --bf16 --json
bench.json` and times the same batches on --device, in five ways:

    f32           all tokens of the grid, air hidden from the attention by a mask
    f32 packed    only tokens that hold brain, sequences padded to the longest of the batch
    autocast      as f32, under torch.autocast in bfloat16
    bf16          as f32, weights and activations in bfloat16, convolutions channels-last
    bf16 packed   both
"""

import argparse
import copy
import json
import math
import struct
import sys
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

OUTPUT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
WAVES = 6
AIR = -20.0


class Height(nn.Linear):
    """A slice's height in millimetres as sines and cosines of wavelengths from 400 mm down, mapped to features."""

    def __init__(self, width):
        super().__init__(2 * WAVES, width)

    def forward(self, z_mm):
        phase = z_mm[:, None] * 2.0 ** torch.arange(WAVES, device=z_mm.device) * math.pi / 200
        return super().forward(torch.cat([phase.sin(), phase.cos()], 1).to(self.weight.dtype))


class ResBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm1 = nn.GroupNorm(max(1, channels // 8), channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(max(1, channels // 8), channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Level(nn.Module):
    def __init__(self, conv, channels, blocks):
        super().__init__()
        self.conv = conv
        self.block = nn.Sequential(*[ResBlock(channels) for _ in range(blocks)])


class Fsq(nn.Module):
    """Finite scalar quantization (arXiv 2309.15505)."""

    def __init__(self, levels):
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.width = len(levels)

    def forward(self, latent):
        n = self.levels.view(1, -1, 1, 1)
        half = (n - 1) * (1 + 1e-3) / 2
        offset = torch.where(n % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(latent + torch.atanh(offset / half)) * half - offset
        return (bounded + (bounded.round() - bounded).detach()) / (n // 2)


class Vq(nn.Module):
    """The nearest of a list of vectors, with a straight-through gradient (arXiv 1711.00937)."""

    def __init__(self, codes, width):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(codes, width))
        self.width = width

    def forward(self, latent):
        flat = latent.detach().permute(0, 2, 3, 1)
        nearest = torch.cdist(flat.flatten(0, 2), self.vectors.float()).argmin(-1)
        nearest = self.vectors[nearest].view_as(flat).permute(0, 3, 1, 2)
        return latent + (nearest - latent).detach()


class Tokenizer(nn.Module):
    """VQ-GAN generator (arXiv 2012.09841) around a codebook; both halves get the height of the slice."""

    LAST = 16

    def __init__(self, channels, blocks, levels=None, vq=None):
        super().__init__()
        self.codebook = Fsq(levels) if levels else Vq(**vq)
        n = len(channels)
        finer = [None, *channels[:-1]]
        count = [1] * (n - 1) + [blocks]
        self.down = nn.ModuleList(
            Level(nn.Conv2d(finer[i] or 1, channels[i], 4, 2, 1), channels[i], count[i]) for i in range(n)
        )
        self.encoder_height = Height(channels[-1])
        self.to_code = nn.Conv2d(channels[-1], self.codebook.width, 1)
        self.from_code = nn.Conv2d(self.codebook.width, channels[-1], 3, padding=1)
        self.decoder_height = Height(channels[-1])
        self.up = nn.ModuleList(
            Level(nn.Conv2d(channels[i], 4 * (finer[i] or self.LAST), 3, padding=1), channels[i], count[i])
            for i in range(n)
        )
        self.smooth = nn.Conv2d(self.LAST, 1, 3, padding=1)

    def encode(self, image, z_mm):
        h = 2 * image - 1
        for i, level in enumerate(self.down):
            h = level.conv(h)
            if i == len(self.down) - 1:
                h = h + self.encoder_height(z_mm)[:, :, None, None]
            h = F.silu(level.block(h))
        return self.codebook(self.to_code(h).float())

    def decode(self, seen, z_mm):
        h = self.from_code(seen) + self.decoder_height(z_mm)[:, :, None, None]
        for level in reversed(self.up):
            h = F.pixel_shuffle(level.conv(F.silu(level.block(h))), 2)
        return self.smooth(F.silu(h))

    def forward(self, image, z_mm):
        return self.decode(self.encode(image, z_mm), z_mm)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, visible):
        b, n, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, w))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))


class Trunk(nn.Module):
    def __init__(self, sizes, inputs, tokens):
        super().__init__()
        width = sizes["width"]
        self.code = nn.Linear(inputs, width)
        self.row, self.column = Table(tokens[0], width), Table(tokens[1], width)
        self.height = Height(width)
        self.block = nn.ModuleList([Block(width, sizes["heads"]) for _ in range(sizes["layers"])])
        self.norm = nn.LayerNorm(width)

    def embed(self, codes, levels):
        """Codes [B, N] of each slice to features: looked up where a code is one digit, else a map of one-hot digits."""
        if len(levels) == 1:
            tables = self.code.weight.t().split(levels[0] + 1)
            return sum(F.embedding(c, table) for c, table in zip(codes, tables)) + self.code.bias
        seen = torch.cat([one_hot(c, levels) for c in codes], -1)
        return self.code(seen.to(self.code.weight.dtype))

    def forward(self, codes, levels, places, z_mm, visible):
        """`codes` [B, N] of each slice, at `places` [B, N]; `visible` [B, 1, 1 or N, N]: which token attends to which."""
        place = (self.row.weight[:, None] + self.column.weight[None]).flatten(0, 1)
        x = self.embed(codes, levels) + place[places] + self.height(z_mm)[:, None]
        for block in self.block:
            x = block(x, visible)
        return self.norm(x)


def one_hot(codes, levels):
    """Codes of any shape, `prod(levels)` for a masked one, to one-hot digits and a last place for "masked"."""
    masked = codes == math.prod(levels)
    parts, rest = [], codes
    for n in levels:
        parts.append(F.one_hot(rest % n, n) * ~masked[..., None])
        rest = rest // n
    return torch.cat([*parts, masked[..., None]], -1).float()


class Head(nn.Module):
    """A trunk with a linear head: detector (a logit per pixel), inpainter and prior (one per code)."""

    def __init__(self, kind, sizes, levels, tokens, cell):
        super().__init__()
        self.kind, self.levels, self.cell = kind, levels, cell
        inputs = (sum(levels) + 1) * (3 if kind == "detector" else 1)
        self.trunk = Trunk(sizes, inputs, tokens)
        self.head = nn.Linear(sizes["width"], cell * cell if kind == "detector" else math.prod(levels))

    def forward(self, codes, inside, z_mm, mask=None, packed=False):
        """Detector: codes [B, 3, h, w] to logits [B, H, W]. Inpainter: codes [B, h, w] to logits [M, codes] of the
        tokens in `mask`. Prior: codes [B, h, w] to negative log-likelihoods [B, h, w] of the tokens inside, else 0."""
        b, n = len(codes), inside[0].numel()
        there = inside.flatten(1)
        places = torch.arange(n, device=codes.device).expand(b, n)
        if packed:
            longest = int(there.sum(1).max())
            places = torch.argsort((~there).long(), stable=True, dim=1)[:, :longest]
            there = there.gather(1, places)

        def take(plane):
            return plane.flatten(1).gather(1, places)

        # A token of air attends to itself, so that its softmax is defined; no other token attends to it.
        itself = torch.eye(places.shape[1], dtype=torch.bool, device=codes.device)
        if self.kind == "detector":
            seen = [take(codes[:, i]) for i in range(3)]
            visible = there[:, None, None]
        elif self.kind == "inpainter":
            seen = [take(codes.masked_fill(mask, math.prod(self.levels)))]
            visible = there[:, None, None]
        else:
            # The brain token before each one: the last brain place below its own.
            own = take(codes)
            order = torch.where(there, torch.arange(places.shape[1]), -1).cummax(1).values
            before = F.pad(order[:, :-1], (1, 0), value=-1)
            previous = torch.where(before < 0, math.prod(self.levels), own.gather(1, before.clamp_min(0)))
            seen = [previous]
            visible = (there[:, None] & torch.ones_like(itself).tril() | itself)[:, None]
        features = self.trunk(seen, self.levels, places, z_mm, visible)
        if self.kind == "inpainter":
            return self.head(features[take(mask) & there]).float()
        out = self.head(features).float()
        if self.kind == "detector":
            planes = torch.full((b, n, out.shape[-1]), AIR)
            planes.scatter_(1, places[..., None].expand_as(out), out.masked_fill(~there[..., None], AIR))
            planes = planes.transpose(1, 2).unflatten(2, inside.shape[1:])
            return F.pixel_shuffle(planes, self.cell).squeeze(1)
        nll = F.cross_entropy(out.flatten(0, 1), own.flatten(), reduction="none").view_as(own)
        plane = torch.zeros(b, n).scatter(1, places, nll.masked_fill(~there, 0))
        return plane.view(inside.shape)


DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}


def load_file(path):
    """The tensors of a safetensors file. Read here, so that a machine with PyTorch alone is enough."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    start, tensors = 8 + length, {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            count = math.prod(shape)
            values = torch.frombuffer(data, dtype=DTYPES[entry["dtype"]], count=count, offset=start + begin)
            assert values.nbytes == end - begin, f"{path}: {name}"
            tensors[name] = values.clone().view(shape)
    return tensors


def networks(bundle, given):
    info = tomllib.loads((bundle / "bundle.toml").read_text())
    sizes, tokens = info["tokenizer"], info["tokens"]
    levels = sizes.get("levels") or [sizes["vq"]["codes"]]
    cell = 2 ** len(sizes["channels"])
    made = {"tokenizer": Tokenizer(**sizes)}
    for kind in ("detector", "inpainter", "prior"):
        if kind in info:
            made[kind] = Head(kind, info[kind], levels, tokens, cell)
    for name, network in made.items():
        file, prefix = bundle / f"{name}.safetensors", f"{name}.weight."
        if file.exists():
            weights = load_file(file)
        else:
            weights = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    return made, levels, cell


def compare(made, given):
    middle, inside, mask, z_mm = given["codes"][:, 1], given["inside"].bool(), given["mask"].bool(), given["z_mm"]
    inputs = {
        "tokenizer": (given["image"], z_mm),
        "detector": (given["codes"], inside, z_mm),
        "inpainter": (middle, inside, z_mm, mask),
        "prior": (middle, inside, z_mm),
    }
    wrong = 0
    print(f"{'network':<11}{'output, of its largest':>24}{'gradients, of their largest':>30}")
    for name, network in made.items():
        theirs = given[f"{name}.out"]
        ways = [{}] if name == "tokenizer" else [{"packed": True}, {}]
        output = 0.0
        for way in ways:
            out = network(*inputs[name], **way)
            output = max(output, ((out - theirs).abs().max() / theirs.abs().max()).item())
        out.square().mean().backward()
        gradient, worst = 0.0, ""
        for key, weight in network.named_parameters():
            ours = given[f"{name}.grad.{key}"]
            off = ((weight.grad - ours).abs().max() / ours.abs().max().clamp_min(1e-12)).item()
            if not off <= gradient:
                gradient, worst = off, key
        ok = output <= OUTPUT_TOLERANCE and gradient <= GRADIENT_TOLERANCE
        wrong += not ok
        print(f"{name:<11}{output:>24.1e}{gradient:>22.1e} {worst}{'' if ok else '   DIFFERS'}")
    return wrong


def wait():
    """Until the GPU has finished its queue; nothing on a machine that computes on the processor."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def timed(action, rounds=15):
    """Seconds of the fastest of several runs: other work on the machine can only slow them down."""
    action()
    wait()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def brain(batch, tokens):
    """Heights and brain tokens of the batch that `neurosieve bench device` makes: slices of an ellipsoid."""
    up = (torch.arange(batch) + 0.5) / batch
    y, x = [((torch.arange(n) + 0.5) / n * 2 - 1) / half for n, half in zip(tokens, (0.97, 0.95), strict=True)]
    return 67 * up, y.square()[:, None] + x.square() + up.square()[:, None, None] < 1


def actions(made, levels, cell, report, dtype):
    """What is timed: from name to a function that takes whether to pack."""
    tokens, batch = report["tokens"], report["batch"]
    torch.manual_seed(1)
    z_mm, inside = brain(batch, tokens)
    if abs(inside.sum().item() / batch - report["brain_tokens"]) > 1:
        sys.exit(f"{inside.sum().item() / batch} brain tokens per slice here, {report['brain_tokens']} in the report")
    image = torch.rand(batch, 1, *[n * cell for n in tokens]).to(dtype)
    codes = torch.randint(math.prod(levels), (batch, 3, *tokens))
    mask = inside & (torch.rand(inside.shape) < 0.1)
    tokenizer = made["tokenizer"]
    if dtype == torch.bfloat16:
        image = image.contiguous(memory_format=torch.channels_last)
    seen = tokenizer.encode(image, z_mm).to(dtype)
    return {
        "encode": lambda _: tokenizer.encode(image, z_mm),
        "decode": lambda _: tokenizer.decode(seen, z_mm),
        "detector": lambda packed: made["detector"](codes, inside, z_mm, packed=packed),
        "inpainter": lambda packed: made["inpainter"](codes[:, 1], inside, z_mm, mask, packed=packed),
    }


def bench(made, levels, cell, report, device):
    torch.set_default_device(device)
    made = {name: network.to(device) for name, network in made.items()}
    half = {
        name: copy.deepcopy(network).to(torch.bfloat16, memory_format=torch.channels_last)
        for name, network in made.items()
    }
    for network in [*made.values(), *half.values()]:
        network.requires_grad_(False)
    single = actions(made, levels, cell, report, torch.float32)
    double = actions(half, levels, cell, report, torch.bfloat16)
    ours = [{n["name"]: n["ms_per_slice"] for n in kind["networks"]} for kind in report["kinds"]]
    batch = report["batch"]

    def ms(action, packed=False):
        return 1000 * timed(lambda: action(packed)) / batch

    print(f"\nPyTorch {torch.__version__}, {torch.get_num_threads()} thread(s), {batch} slices at once, ms/slice")
    now = [ceiling(dtype) for dtype in (torch.float32, torch.bfloat16)]
    then = [kind["ceiling_gflops"] for kind in report["kinds"]]
    print("large matrix products reach " + spelt(now) + " GFLOP/s now, " + spelt(then) + " when ours were timed")
    print("(comparable where these agree)\n")
    columns = ["f32", "f32 packed", "autocast", "bf16", "bf16 packed"]
    figures = {"torch": torch.__version__, "batch": batch, "ceiling_gflops": now, "networks": {}}
    kinds = [kind["kind"] for kind in report["kinds"]]
    print("| network | " + " | ".join([*columns, *(f"ours {k}" for k in kinds), "f32 / ours f32"]), end=" |\n")
    print("|---" * (2 + len(columns) + len(kinds)) + "|")
    with torch.no_grad():
        sums = [0.0] * (len(columns) + len(kinds))
        for name, action in single.items():
            packs = name not in ("encode", "decode")
            f32, bf16 = ms(action), ms(double[name])
            with torch.autocast(device, dtype=torch.bfloat16):
                cast = ms(action)
            packed = [ms(way[name], True) if packs else plain for way, plain in ((single, f32), (double, bf16))]
            row = [f32, packed[0], cast, bf16, packed[1], *(kind[name] for kind in ours)]
            sums = [a + b for a, b in zip(sums, row, strict=True)]
            figures["networks"][name] = dict(zip([*columns, *(f"ours {k}" for k in kinds)], row, strict=True))
            print_row(name, row, len(columns))
        print_row("all four", sums, len(columns))
        figures["networks"]["all four"] = dict(zip([*columns, *(f"ours {k}" for k in kinds)], sums, strict=True))
    return figures


def ceiling(dtype):
    """GFLOP/s of large matrix products, measured as in `neurosieve bench device`."""
    n = 8192 if torch.get_default_device().type == "cuda" else 2048
    a, b = torch.rand(2, n, n).to(dtype)
    return 2 * n**3 / timed(lambda: a @ b) / 1e9


def spelt(values):
    return " and ".join(f"{value:.0f}" for value in values)


def print_row(name, row, columns):
    figures = " | ".join(f"{value:.2f}" for value in row)
    print(f"| {name} | {figures} | {row[0] / row[columns]:.2f} x |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("given", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = load_file(args.given)
    made, levels, cell = networks(args.bundle, given)
    wrong = compare(made, given)
    if args.bench:
        figures = bench(made, levels, cell, json.loads(args.bench.read_text()), args.device)
        if args.json:
            args.json.write_text(json.dumps({"agrees": not wrong, **figures}, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
