#!/usr/bin/env python3
"""The networks of a bundle once more, in plain eager PyTorch: compares numbers, and times them.

    neurosieve twin --bundle models/t1w-2mm --out twin.safetensors
    twin.py models/t1w-2mm twin.safetensors [--bench bench.json] [--threads 1]

Written from the papers and from the description in bundle.toml, not from the Rust code. Reads the bundle's weights (f16)
and what `neurosieve twin` gave for made-up inputs; ends with exit code 1 where an output differs by more than 1e-4 of
its largest value, or a gradient by more than 1e-3 of its largest. --bench takes what
`neurosieve bench device --json bench.json` measured and times the same batches here.
"""

import argparse
import json
import math
import sys
import time
import tomllib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

DOWNSAMPLING = 4
OUTPUT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


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


class Tokenizer(nn.Module):
    """VQ-GAN generator around finite scalar quantization (arXiv 2309.15505)."""

    def __init__(self, levels, channels, blocks):
        super().__init__()
        half, quarter = channels
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.down1 = nn.Conv2d(1, half, 4, 2, 1)
        self.enc1 = ResBlock(half)
        self.down2 = nn.Conv2d(half, quarter, 4, 2, 1)
        self.enc2 = nn.Sequential(*[ResBlock(quarter) for _ in range(blocks)])
        self.to_code = nn.Conv2d(quarter, len(levels), 1)
        self.from_code = nn.Conv2d(len(levels), quarter, 3, padding=1)
        self.dec2 = nn.Sequential(*[ResBlock(quarter) for _ in range(blocks)])
        self.up2 = nn.Conv2d(quarter, 4 * half, 3, padding=1)
        self.dec1 = ResBlock(half)
        self.up1 = nn.Conv2d(half, 64, 3, padding=1)
        self.smooth = nn.Conv2d(16, 1, 3, padding=1)

    def quantize(self, image):
        h = self.enc1(self.down1(2 * image - 1))
        h = self.enc2(self.down2(F.silu(h)))
        latent = self.to_code(F.silu(h))
        n = self.levels.view(1, -1, 1, 1)
        half = (n - 1) * (1 + 1e-3) / 2
        offset = torch.where(n % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(latent + torch.atanh(offset / half)) * half - offset
        return bounded + (bounded.round() - bounded).detach()

    def decode(self, quantized):
        h = self.dec2(self.from_code(quantized / (self.levels // 2).view(1, -1, 1, 1)))
        h = self.dec1(F.pixel_shuffle(self.up2(F.silu(h)), 2))
        return self.smooth(F.silu(F.pixel_shuffle(self.up1(F.silu(h)), 2)))

    def forward(self, image):
        return self.decode(self.quantize(image))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, causal):
        b, n, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, w))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))


class Trunk(nn.Module):
    WAVES = 6

    def __init__(self, sizes, inputs, tokens):
        super().__init__()
        width = sizes["width"]
        self.code = nn.Linear(inputs, width)
        self.row, self.column = Table(tokens[0], width), Table(tokens[1], width)
        self.height = nn.Linear(2 * self.WAVES, width)
        self.block = nn.ModuleList([Block(width, sizes["heads"]) for _ in range(sizes["layers"])])
        self.norm = nn.LayerNorm(width)

    def forward(self, seen, z_mm, causal=False):
        phase = z_mm[:, None] * 2.0 ** torch.arange(self.WAVES, device=z_mm.device) * math.pi / 200
        height = self.height(torch.cat([phase.sin(), phase.cos()], 1).to(seen.dtype))
        place = (self.row.weight[:, None] + self.column.weight[None]).flatten(0, 1)
        x = self.code(seen.flatten(1, 2)) + place + height[:, None]
        for block in self.block:
            x = block(x, causal)
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
    """A trunk with a linear head: detector (1), inpainter and prior (one logit per code)."""

    def __init__(self, kind, sizes, levels, tokens):
        super().__init__()
        self.kind, self.levels = kind, levels
        inputs = (sum(levels) + 1) * (3 if kind == "detector" else 1)
        self.trunk = Trunk(sizes, inputs, tokens)
        self.head = nn.Linear(sizes["width"], 1 if kind == "detector" else math.prod(levels))

    def forward(self, codes, z_mm):
        if self.kind == "prior":
            flat = codes.flatten(1)
            first = torch.full_like(flat[:, :1], math.prod(self.levels))
            codes = torch.cat([first, flat[:, :-1]], 1).view_as(codes)
        seen = one_hot(codes, self.levels)
        if self.kind == "detector":
            seen = seen.permute(0, 2, 3, 1, 4).flatten(3)
        out = self.head(self.trunk(seen, z_mm, causal=self.kind == "prior"))
        return out.unflatten(1, codes.shape[-2:]).squeeze(-1) if self.kind == "detector" else out.unflatten(1, codes.shape[-2:])


def networks(bundle):
    info = tomllib.loads((bundle / "bundle.toml").read_text())
    levels, tokens = info["tokenizer"]["levels"], info["tokens"]
    made = {"tokenizer": Tokenizer(**info["tokenizer"])}
    for kind in ("detector", "inpainter", "prior"):
        if kind in info:
            made[kind] = Head(kind, info[kind], levels, tokens)
    for name, network in made.items():
        weights = {key: value.float() for key, value in load_file(bundle / f"{name}.safetensors").items()}
        network.load_state_dict(weights)
    return made, levels


def compare(made, levels, given):
    middle = given["codes"][:, 1]
    hidden = middle.masked_fill(given["mask"].bool(), math.prod(levels))
    inputs = {
        "tokenizer": (given["image"],),
        "detector": (given["codes"], given["z_mm"]),
        "inpainter": (hidden, given["z_mm"]),
        "prior": (middle, given["z_mm"]),
    }
    wrong = 0
    print(f"{'network':<11}{'output, of its largest':>24}{'gradients, of their largest':>30}")
    for name, network in made.items():
        out = network(*inputs[name])
        out.square().mean().backward()
        theirs = given[f"{name}.out"]
        output = ((out - theirs).abs().max() / theirs.abs().max()).item()
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


def timed(action, rounds=7):
    action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


def bench(made, levels, report):
    tokens = report["tokens"]
    batch = report["batch"]
    image = torch.rand(batch, 1, *[n * DOWNSAMPLING for n in tokens])
    codes = torch.randint(math.prod(levels), (batch, 3, *tokens))
    z_mm = torch.linspace(-50, 60, batch)
    ours = {network["name"]: network["ms_per_slice"] for network in report["networks"]}
    tokenizer = made["tokenizer"].requires_grad_(False)
    with torch.no_grad():
        quantized = tokenizer.quantize(image)
        actions = {
            "encode": lambda: tokenizer.quantize(image),
            "decode": lambda: tokenizer.decode(quantized),
            "detector": lambda: made["detector"](codes, z_mm),
            "inpainter": lambda: made["inpainter"](codes[:, 1], z_mm),
        }
        print(f"\n{'network':<11}{'PyTorch ms/slice':>18}{'ours':>10}{'PyTorch/ours':>15}")
        for name, action in actions.items():
            theirs = 1000 * timed(action) / batch
            print(f"{name:<11}{theirs:>18.2f}{ours[name]:>10.2f}{theirs / ours[name]:>14.2f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("given", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made, levels = networks(args.bundle)
    wrong = compare(made, levels, load_file(args.given))
    if args.bench:
        bench(made, levels, json.loads(args.bench.read_text()))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
