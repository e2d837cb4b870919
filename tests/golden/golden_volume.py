#!/usr/bin/env python3
"""Records what nibabel and scipy say about small NIfTI files, for tests/it/nifti.rs and resample.rs.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 nibabel==5.4.2 scipy==1.17.1
    venv/bin/python tests/golden/golden_volume.py [--odd DIR]

Writes the files it makes (always the same voxels) and volume.json to tests/golden/volume/. With --odd,
the folder of real-world odd files that are too large for the repository, it also records their
shape, affine and a hash of their voxels in odd.json; without it odd.json is not changed.
"""

import argparse
import gzip
import hashlib
import io
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy.ndimage import map_coordinates

OUT = Path(__file__).resolve().parent / "volume"
SHAPE = (5, 4, 3)
LAS = np.array([[-2.0, 0, 0, 9], [0, 1.5, 0, -20], [0, 0, 3, 4.5], [0, 0, 0, 1]])


def oblique(degrees, zooms=(1.1, 0.9, 2.0), origin=(-31, 17, 5.5)):
    turn = euler2mat(*np.radians(degrees))
    return from_matvec(turn @ np.diag(zooms), origin)


def voxels(dtype, seed):
    """Random voxels that use much of the type's range."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(0, 1000, SHAPE).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, SHAPE, dtype=dtype, endpoint=True)


def save(name, data, affine=LAS, *, kind=nib.Nifti1Image, big=False, sform=2, qform=0, edit=None, **more):
    """One file, or two of a pair; `edit` changes the header's raw fields after nibabel has filled them.

    `offset` is where a pair's voxels start, `comment` goes into a header extension, `pack` makes gzip of bytes.
    """
    header = kind.header_class(endianness=">" if big else "<")
    header.set_data_dtype(data.dtype)
    header["vox_offset"] = more.get("offset", 0)
    image = kind(data, affine, header)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    if "comment" in more:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", more["comment"].encode()))
    parts = {part: io.BytesIO() for part, _ in kind.files_types}
    image.to_file_map(kind.make_file_map(parts))
    raw = {part: file.getvalue() for part, file in parts.items()}
    first = next(part for part in ("header", "image") if part in raw)
    if edit:
        size = header.sizeof_hdr
        fields = kind.header_class(raw[first][:size], check=False)
        for field, value in edit.items():
            fields[field] = value
        raw[first] = fields.binaryblock + raw[first][size:]
    pack = more.get("pack", lambda content: gzip.compress(content, mtime=0))
    for part, content in raw.items():
        path = OUT / (name.replace(".hdr", ".img") if part == "image" else name)
        path.write_bytes(pack(content) if name.endswith(".gz") else content)


def pack_in_members(content):
    """gzip in two members with zeros between and after them, as tools that work in blocks leave it."""
    head, tail = content[:400], content[400:]
    return gzip.compress(head, mtime=0) + bytes(7) + gzip.compress(tail, mtime=0) + bytes(512)


def make_files():
    real = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    for i, dtype in enumerate(real):
        save(f"{dtype}_little.nii.gz", voxels(dtype, i), sform=1)
        save(f"{dtype}_big.nii", voxels(dtype, 100 + i), big=True, sform=1)
    int16 = voxels("int16", 7)
    save("scaled.nii.gz", int16, edit={"scl_slope": 0.37, "scl_inter": -12.5})
    save("scaled_big.nii", int16, big=True, edit={"scl_slope": -3.0, "scl_inter": 1e4})
    save("slope_zero.nii.gz", int16, edit={"scl_slope": 0.0, "scl_inter": 55.0})
    save("slope_nan.nii.gz", int16, edit={"scl_slope": np.nan, "scl_inter": np.nan})
    save("one_volume_4d.nii.gz", int16[..., None])

    save("one_volume_5d.nii.gz", int16[..., None, None])
    save("overflow.nii.gz", voxels("int64", 10), edit={"scl_slope": 1e20, "scl_inter": 1.0})
    save("extended.nii", int16, comment="acquired on a Tuesday")
    save("members.nii.gz", int16, pack=pack_in_members)

    # The other containers.
    save("nifti2.nii.gz", int16, oblique((20, -25, 40)), kind=nib.Nifti2Image, qform=1)
    save("nifti2_big.nii", voxels("float64", 11), kind=nib.Nifti2Image, big=True, edit={"scl_slope": 0.1})
    save("nifti2_qform.nii", int16, oblique((15, 170, 8)), kind=nib.Nifti2Image, sform=0, qform=1, comment="no sform")
    save("pair.hdr", int16, kind=nib.Nifti1Pair)
    save("pair_big.hdr.gz", voxels("float32", 12), kind=nib.Nifti1Pair, big=True, offset=48)
    save("pair_nifti2.hdr", int16, kind=nib.Nifti2Pair, edit={"scl_slope": 2.5, "scl_inter": -7.0})

    nonfinite = voxels("float32", 8)
    nonfinite[0, 0, 0], nonfinite[1, 2, 1], nonfinite[4, 3, 2] = np.nan, np.inf, -np.inf
    save("nonfinite.nii.gz", nonfinite)

    # Where the voxels lie.
    save("lpi.nii.gz", int16, np.diag([-1.0, -1.0, -2.0, 1.0]))
    save("thick_slices.nii.gz", int16, oblique((12, -3, 1), zooms=(0.43, 0.43, 6.5)), qform=1)
    save("permuted.nii.gz", int16, np.array([[0, 0, 1.2, -8], [-0.9, 0, 0, 3], [0, -1.1, 0, 40], [0, 0, 0, 1.0]]))
    save("oblique.nii.gz", int16, oblique((20, -25, 40)))
    sheared = oblique((5, 10, -62))
    sheared[0, 1] += 0.3
    save("oblique_sheared.nii.gz", int16, sheared)
    save("qform_only.nii.gz", int16, oblique((-130, 12, 8)), sform=0, qform=1)
    save("qform_mirrored.nii.gz", int16, oblique((15, 170, 8)) @ np.diag([-1, 1, 1, 1]), sform=0, qform=1)
    save("qform_half_turn.nii.gz", int16, np.diag([-1.0, 1.0, -1.0, 1.0]), sform=0, qform=1)
    no_qfac = {"pixdim": [0, 1.1, 0.9, 2, 0, 0, 0, 0]}
    save("qform_qfac_zero.nii.gz", int16, oblique((15, 20, 8)), sform=0, qform=1, edit=no_qfac)
    lost = {"srow_y": np.zeros(4)}
    save("sform_singular.nii.gz", int16, oblique((-130, 12, 8)), qform=1, edit=lost)
    negative = {"pixdim": [1, -1.1, -0.9, 2, 0, 0, 0, 0]}
    save("qform_negative_sizes.nii.gz", int16, oblique((15, 20, 8)), sform=0, qform=1, edit=negative)
    half_millimetre = {"qoffset_x": -31.0 + 0.5}
    save("qform_close.nii.gz", int16, oblique((1, 2, 3)), qform=1, edit=half_millimetre)
    two_millimetres = {"qoffset_x": -31.0 + 2.0}
    save("qform_shifted.nii.gz", int16, oblique((1, 2, 3)), qform=1, edit=two_millimetres)
    turned = nib.Nifti1Header()
    turned.set_qform(oblique((1, 2, 4.5)))
    two_degrees = {field: turned[field] for field in ("quatern_b", "quatern_c", "quatern_d")}
    save("qform_turned.nii.gz", int16, oblique((1, 2, 3)), qform=1, edit=two_degrees)
    save("no_orientation.nii.gz", int16, LAS, sform=0, qform=0)
    save(
        "sform_and_qform_differ.nii.gz",
        int16,
        oblique((3, 4, 5)),
        sform=4,
        qform=1,
        edit={"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 0.6, "qoffset_x": 77.0},
    )
    # Written as `encode` writes: both transforms with code 2, mm, a description.
    mirrored = oblique((15, 170, 8)) @ np.diag([-1, 1, 1, 1])
    as_encode = {"xyzt_units": 2, "descrip": b"neurosieve test"}
    save("as_encode.nii.gz", voxels("float32", 9), mirrored, qform=2, edit=as_encode)
    save("metres.nii.gz", int16, LAS * [[1e-3], [1e-3], [1e-3], [1]], edit={"xyzt_units": 1})
    save("microns.nii.gz", int16, LAS * [[1e3], [1e3], [1e3], [1]], edit={"xyzt_units": 3})


def floats(array):
    return [float(v) for v in np.asarray(array).ravel(order="F")]


def usable(affine):
    return np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9


def source_of(image):
    """Which transform is taken: nibabel's order, but a singular sform gives way to the qform."""
    sform, qform = image.header.get_sform(coded=True)[0], image.header.get_qform(coded=True)[0]
    if sform is not None and usable(sform):
        return "Sform", sform
    return ("VoxelSizes", image.affine) if qform is None else ("Qform", qform)


def qform_disagrees(image):
    """The sform is taken and the qform puts a corner over 1 mm or an axis over 1 degree elsewhere."""
    qform, (source, affine) = image.header.get_qform(coded=True)[0], source_of(image)
    if source != "Sform" or qform is None:
        return False
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in image.shape[:3]], [1]))).T
    apart = np.linalg.norm(((affine - qform) @ corners)[:3], axis=0).max()
    a, q = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (affine, qform))
    turned = np.degrees(np.arccos(np.clip((a * q).sum(axis=0), -1, 1))).max()
    return bool(apart > 1 or turned > 1)


def read(path):
    """nibabel's float32 voxels, 3-D and finite, and the world in mm."""
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float64)
    data = data.reshape(data.shape[:3])
    mm = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
    affine = source_of(image)[1] * [[mm], [mm], [mm], [1]]
    with np.errstate(over="ignore"):
        data = data.astype(np.float32)
    finite = np.isfinite(data)
    return image, np.where(finite, data, np.float32(0)), affine, int((~finite).sum())


def describe(path):
    image, data, affine, n_nonfinite = read(path)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    return {
        "file": path.name,
        "shape": list(data.shape),
        "datatype": image.get_data_dtype().newbyteorder("=").name,
        "affine": affine[:3].ravel().tolist(),
        "orientation": "".join(nib.aff2axcodes(affine)),
        "affine_source": source_of(image)[0],
        "qform_disagrees": qform_disagrees(image),
        "n_nonfinite": n_nonfinite,
        "voxels": floats(data),
        "canonical": {
            "shape": list(canonical.shape),
            "affine": canonical.affine[:3].ravel().tolist(),
            "voxels": floats(np.asarray(canonical.dataobj)),
        },
    }


def resampled(path, order):
    """The file's voxels on another grid through a world-to-world affine, by scipy.

    The target covers more than the source, so a part is outside; `inside` marks positions clearly
    inside the box of voxel centres or clearly outside it, where rounding cannot decide.
    """
    _, data, affine, _ = read(path)
    shape = (7, 6, 5)
    target = oblique((-10, 35, 15), zooms=(0.8, 0.7, 1.3), origin=(0, 0, 0))
    centre = affine @ [2, 1.5, 1, 1]
    target[:3, 3] = (centre - target @ [3.1, 2.4, 2.2, 0])[:3]
    moved = from_matvec(euler2mat(0.05, -0.1, 0.02) * 1.04, (0.3, -0.2, 0.4))
    target = np.linalg.inv(moved) @ target
    index = np.linalg.inv(affine) @ moved @ target
    grid = np.indices(shape).reshape(3, -1, order="F")
    at = index[:3, :3] @ grid + index[:3, 3:]
    values = map_coordinates(data.astype(np.float64), at, order=order, mode="constant", cval=0.0)
    last = np.array(data.shape)[:, None] - 1
    clear = (np.minimum(np.abs(at), np.abs(at - last)) > 1e-3).all(axis=0)
    if order == 0:
        clear &= (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=0)
    return {
        "file": path.name,
        "shape": list(shape),
        "affine": target[:3].ravel().tolist(),
        "target_to_source": moved[:3].ravel().tolist(),
        "voxels": [float(v) for v in values],
        "clear": [bool(c) for c in clear],
    }


def describe_odd(root):
    """What nibabel reads from each odd file, or that it is no real 3-D image. A pair is named by its header."""
    rows = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".img" not in p.name):
        row = {"file": path.relative_to(root).as_posix()}
        try:
            image = nib.load(path)
            nifti = isinstance(image, nib.Nifti1Pair)
            real = image.get_data_dtype().kind in "iuf"
            if not (nifti and real and all(n == 1 for n in image.shape[3:]) and len(image.shape) >= 3):
                raise ValueError(f"shape {image.shape}, {image.get_data_dtype()}, {type(image).__name__}")
            _, data, affine, _ = read(path)
            if data.min() == data.max():
                raise ValueError("constant")
            row |= {
                "shape": list(data.shape),
                "affine": affine[:3].ravel().tolist(),
                "sum": float(data.astype(np.float64).sum()),
                "sha256": hashlib.sha256(data.astype("<f4").tobytes(order="F")).hexdigest(),
            }
        except Exception as error:  # whatever nibabel raises, the file is unusable
            row["refused"] = str(error).replace(str(root), "").strip()[:120]
        rows.append(row)
    return rows


def write(name, value):
    (OUT / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--odd", type=Path, help="folder of odd files to record in odd.json")
    odd = parser.parse_args().odd
    OUT.mkdir(parents=True, exist_ok=True)
    make_files()
    to_resample = [OUT / f for f in ("float32_little.nii.gz", "oblique.nii.gz", "permuted.nii.gz")]
    files = sorted(p for p in OUT.iterdir() if p.name.endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz")))
    write(
        "volume.json",
        {
            "made_with": {"nibabel": nib.__version__, "numpy": np.__version__},
            "files": [describe(p) for p in files],
            "trilinear": [resampled(p, 1) for p in to_resample],
            "nearest": [resampled(p, 0) for p in to_resample],
        },
    )
    if odd:
        write("odd.json", describe_odd(odd))


if __name__ == "__main__":
    main()
