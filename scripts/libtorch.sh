#!/usr/bin/env bash
# Fetches libtorch 2.11.0, which neurosieve is built and run with, into the cache folder, once.
#
# Takes   NEUROSIEVE_CACHE (default: neurosieve/ in the user's cache folder), LIBTORCH (an existing libtorch: it is
#         checked and used, and nothing is fetched), python3 with pip.
# Gives   <cache>/libtorch-2.11.0 with include/ and lib/, and .cargo/config.toml in this checkout, which points plain
#         `cargo build` there.
# Costs   540 MB of transfer, 0.6 GB of disk. Can be stopped and started again: fetched wheels are kept until all are
#         there, and the folder gets its name only when it is complete.
#
# The parts come from the Python wheels of PyTorch, because PyPI is reachable for everyone. libtorch_cpu.so of that
# build needs CUPTI and the CUDA runtime to load, even without a GPU. libtorch_cuda.so is not fetched: a machine with a
# GPU has its own (documentation of `model::device`).
set -euo pipefail

version=2.11.0
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${NEUROSIEVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/neurosieve}

fail() {
    echo "libtorch: $*" >&2
    exit 1
}

# Files that tch's build script and the linker need.
missing_in() {
    local part
    for part in include/torch/csrc/api/include/torch/torch.h lib/libtorch.so lib/libtorch_cpu.so lib/libc10.so; do
        [[ -e $1/$part ]] || echo "$part"
    done
}

# Points cargo at the folder. A file that already does so is kept: a newer one would trigger a rebuild.
write_cargo_config() {
    local config=$root/.cargo/config.toml text
    text=$(printf '[env]\nLIBTORCH = "%s"\n' "$1")
    [[ -f $config && $(<"$config") == "$text" ]] && return
    mkdir -p "$root/.cargo"
    printf '%s\n' "$text" >"$config.$$"
    mv "$config.$$" "$config"
    echo "libtorch: .cargo/config.toml points cargo at $1"
}

if [[ -n ${LIBTORCH:-} ]]; then
    [[ $LIBTORCH == /* ]] || fail "LIBTORCH is '$LIBTORCH'; give an absolute path"
    missing=$(missing_in "$LIBTORCH")
    [[ -z $missing ]] || fail "LIBTORCH is $LIBTORCH, which lacks" $missing "- unset LIBTORCH to fetch libtorch"
    if [[ -f $LIBTORCH/build-version ]]; then
        found=$(<"$LIBTORCH/build-version")
        [[ ${found%%+*} == "$version" ]] || fail "LIBTORCH has libtorch $found; neurosieve needs $version"
    fi
    write_cargo_config "$LIBTORCH"
    exit
fi

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
home=$cache/libtorch-$version
if [[ -d $home && -z $(missing_in "$home") ]]; then
    write_cargo_config "$home"
    exit
fi

[[ $(uname -sm) == "Linux x86_64" ]] ||
    fail "no libtorch can be fetched for $(uname -sm). Install libtorch $version (for instance with" \
        "'pip install torch==$version') and set LIBTORCH to the folder with its include/ and lib/"
command -v python3 >/dev/null || fail "python3 is needed to fetch libtorch; install it, or set LIBTORCH"
python3 -m pip --version >/dev/null 2>&1 ||
    fail "pip is needed to fetch libtorch; install it (Debian, Ubuntu: apt install python3-pip), or set LIBTORCH"

# Two checkouts may share one cache folder.
exec 9>"$cache/.libtorch.lock"
flock 9
if [[ -d $home && -z $(missing_in "$home") ]]; then
    write_cargo_config "$home"
    exit
fi

wheels=$cache/wheels
mkdir -p "$wheels"

# fetch <requirement> <file name> <SHA-256>. The platform is given so that every Python 3 fetches the same file.
fetch() {
    local wheel=$wheels/$2
    if [[ -f $wheel ]] && echo "$3  $wheel" | sha256sum --check --status; then
        return
    fi
    rm -f "$wheel"
    echo "libtorch: fetching $1"
    python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary=:all: \
        --implementation cp --python-version 3.11 --abi cp311 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux_2_17_x86_64 \
        --dest "$wheels" "$1" || fail "could not fetch $1; check the network and pip's settings, then run this again"
    [[ -f $wheel ]] || fail "pip fetched a file other than $2 for $1; see $wheels"
    echo "$3  $wheel" | sha256sum --check --status || {
        rm -f "$wheel"
        fail "$2 has a wrong checksum and was removed; run this again"
    }
}

torch=torch-$version-cp311-cp311-manylinux_2_28_x86_64.whl
cupti=nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl
cudart=nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl
fetch nvidia-cuda-runtime==13.0.96 "$cudart" 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
fetch nvidia-cuda-cupti==13.0.85 "$cupti" 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
fetch torch==$version "$torch" 7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a

echo "libtorch: unpacking"
rm -rf "$home".partial.* "$home"
partial=$home.partial.$$
python3 - "$partial" "$wheels/$torch" "$wheels/$cupti" "$wheels/$cudart" <<'PYTHON'
import pathlib, shutil, sys, zipfile

home, torch, cupti, cudart = sys.argv[1], *map(zipfile.ZipFile, sys.argv[2:])


def take(wheel, member, name):
    target = pathlib.Path(home, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


for member in torch.namelist():
    if member.startswith("torch/include/") and not member.endswith("/"):
        take(torch, member, member.removeprefix("torch/"))
for name in "libtorch_cpu.so", "libc10.so", "libgomp.so.1":
    take(torch, f"torch/lib/{name}", f"lib/{name}")
take(cupti, "nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")
take(cudart, "nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")
for wheel in torch, cupti, cudart:
    for member in wheel.namelist():
        if ".dist-info/licenses/" in member and not member.endswith("/"):
            take(wheel, member, "licenses/" + member.replace(".dist-info/licenses/", "/"))
PYTHON
# tch links with -ltorch. The real libtorch.so needs the CUDA libraries; this linker script names the CPU part alone.
echo 'INPUT(libtorch_cpu.so)' >"$partial/lib/libtorch.so"
# tch's build script compares this with the version that it supports.
echo "$version+cu130" >"$partial/build-version"
mv "$partial" "$home"
rm -rf "$wheels"
echo "libtorch: $home is ready"
write_cargo_config "$home"
