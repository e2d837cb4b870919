//! Where a NIfTI header places its voxels, and the quaternion that writes such a placement.
//!
//! Takes a header; gives the affine from voxel index to world mm (RAS+). The three methods and their order are the
//! standard's (nifti1.h, "3D IMAGE (VOLUME) ORIENTATION AND LOCATION IN SPACE"), with nibabel's reading of the doubtful
//! cases: the sform where its code is positive, else the qform where its code is, else voxel sizes alone. Unlike in
//! nibabel, a transform that has no inverse gives way to the next one. Refuses a file whose codes promise a transform of
//! which none is usable: voxel sizes alone would be a guess at left and right.

use super::header::{Header, Unit};
use crate::volume::Affine;
use crate::volume::error::{Error, Result};

/// The part of a header that places its voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AffineSource {
    /// The sform: a complete affine.
    Sform,
    /// The qform: a rotation, a position and voxel sizes.
    Qform,
    /// Voxel sizes alone: left and right follow a convention, not the file.
    VoxelSizes,
}

/// The placement of voxels, and how far it can be trusted.
pub(super) struct Placement {
    /// Voxel index to world mm (RAS+).
    pub affine: Affine,
    pub source: AffineSource,
    /// The sform was used, and a usable qform contradicts it.
    pub qform_disagrees: bool,
}

/// Largest distance between the places that two transforms give a corner of the image, in mm.
const AGREE_MM: f64 = 1.0;
/// Largest angle between the directions that two transforms give a voxel axis, in degrees.
const AGREE_DEGREES: f64 = 1.0;

/// The placement of the header's voxels.
pub(super) fn place(header: &Header) -> Result<Placement> {
    let sform = (header.sform_code > 0).then(|| usable(header.srow, header.unit.mm()));
    let qform = (header.qform_code > 0).then(|| qform(header).and_then(|rows| usable(rows, header.unit.mm())));
    let (affine, source, qform_disagrees) = match (sform, qform) {
        (Some(Ok(sform)), Some(Ok(qform))) => (sform, AffineSource::Sform, !agree(&sform, &qform, header.shape)),
        (Some(Ok(sform)), _) => (sform, AffineSource::Sform, false),
        (_, Some(Ok(qform))) => (qform, AffineSource::Qform, false),
        (Some(Err(e)), _) | (None, Some(Err(e))) => return Err(e),
        (None, None) => {
            let rows = centred(spacing(header)?, header.shape);
            (usable(rows, header.unit.mm())?, AffineSource::VoxelSizes, false)
        }
    };
    refuse_wrong_unit(&affine, header.unit)?;
    Ok(Placement { affine, source, qform_disagrees })
}

/// Voxel sizes in mm that an image of a head may have; far more than any scanner makes.
const PLAUSIBLE_MM: std::ops::RangeInclusive<f64> = 0.02..=50.0;

/// Refuses voxels of an implausible size where the same numbers in mm would be plausible: the unit is wrong, not the scan.
fn refuse_wrong_unit(affine: &Affine, unit: Unit) -> Result<()> {
    let spacing = affine.spacing();
    let as_mm = spacing.map(|s| s / unit.mm());
    let plausible = |sizes: &[f64; 3]| sizes.iter().all(|s| PLAUSIBLE_MM.contains(s));
    if unit == Unit::Millimetre || plausible(&spacing) || !plausible(&as_mm) {
        return Ok(());
    }
    let [x, y, z] = as_mm;
    Err(Error::new(
        "spacing",
        format!(
            "the header gives lengths in {}, so that voxels of {x} x {y} x {z} are {} x {} x {} mm; if they are millimetres, \
             correct the unit: in nibabel, image.header.set_xyzt_units('mm')",
            unit.name(),
            spacing[0],
            spacing[1],
            spacing[2]
        ),
    ))
}

/// Least volume of a voxel as a share of the product of its sides. Scanners shear voxels far less, and axes that nearly
/// coincide have no clear order.
const FLAT: f64 = 0.01;

/// The affine with these rows times `mm`, if it has an inverse and its axes do not nearly coincide.
fn usable(rows: [[f64; 4]; 3], mm: f64) -> Result<Affine> {
    let affine = Affine(rows.map(|row| row.map(|v| v * mm)));
    if affine.spacing().iter().any(|&s| !s.is_finite() || s <= 0.0) {
        return Err(bad_spacing(affine.spacing()));
    }
    if affine.inverse().is_none() {
        return Err(bad_affine("the affine is singular or not finite"));
    }
    if affine.determinant3().abs() < FLAT * affine.spacing().iter().product::<f64>() {
        return Err(bad_affine("the affine's axes nearly coincide"));
    }
    Ok(affine)
}

/// Whether two transforms agree on the place of the image's corners and the direction of its axes.
fn agree(a: &Affine, b: &Affine, shape: [usize; 3]) -> bool {
    let norm = |v: [f64; 3]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let corners_meet = (0..8).all(|corner| {
        let index = std::array::from_fn(|axis| if corner >> axis & 1 == 1 { shape[axis] as f64 - 1.0 } else { 0.0 });
        let (p, q) = (a.apply(index), b.apply(index));
        norm(std::array::from_fn(|i| p[i] - q[i])) <= AGREE_MM
    });
    let axes_align = (0..3).all(|axis| {
        let [u, v] = [a, b].map(|affine| affine.0.map(|row| row[axis]));
        let cosine = u.iter().zip(&v).map(|(x, y)| x * y).sum::<f64>() / (norm(u) * norm(v));
        cosine >= AGREE_DEGREES.to_radians().cos()
    });
    corners_meet && axes_align
}

/// Voxel sizes in the header's unit. The sign of a negative one, a habit of ANALYZE, is dropped, like nibabel does.
fn spacing(header: &Header) -> Result<[f64; 3]> {
    let spacing = [1, 2, 3].map(|i| header.pixdim[i].abs());
    if spacing.iter().all(|&s| s.is_finite() && s > 0.0) { Ok(spacing) } else { Err(bad_spacing(spacing)) }
}

/// Rotation by a unit quaternion, voxel sizes, and a mirrored third axis where `pixdim[0]` is -1.
fn qform(header: &Header) -> Result<[[f64; 4]; 3]> {
    let [sx, sy, sz] = spacing(header)?;
    let [b, c, d] = header.quaternion;
    let a_squared = 1.0 - (b * b + c * c + d * d);
    // Deviation of |b, c, d| from 1 that still means a half turn: nibabel's bounds.
    let half_turn = 3.0 * if header.version == 1 { f64::from(f32::EPSILON) } else { f64::EPSILON };
    let a = if a_squared.abs() < half_turn { 0.0 } else { a_squared.sqrt() };
    if !a.is_finite() {
        return Err(bad_affine("the qform's quaternion is longer than 1"));
    }
    let rotation = rotation([a, b, c, d]);
    let qfac = if header.pixdim[0] == -1.0 { -1.0 } else { 1.0 };
    let scale = [sx, sy, sz * qfac];
    Ok(std::array::from_fn(|r| {
        std::array::from_fn(|col| if col < 3 { rotation[r][col] * scale[col] } else { header.qoffset[r] })
    }))
}

/// The placement of a file without orientation: the world's origin in the middle and x mirrored. This is nibabel's
/// reading of the ANALYZE habit of storing images left-handed.
fn centred(spacing: [f64; 3], shape: [usize; 3]) -> [[f64; 4]; 3] {
    let mut rows = [[0.0; 4]; 3];
    for (axis, row) in rows.iter_mut().enumerate() {
        row[axis] = if axis == 0 { -spacing[axis] } else { spacing[axis] };
        row[3] = -row[axis] * (shape[axis] as f64 - 1.0) / 2.0;
    }
    rows
}

/// The rotation of a quaternion (a, b, c, d) of any length above 0.
fn rotation(q: [f64; 4]) -> [[f64; 3]; 3] {
    let s = 2.0 / q.iter().map(|v| v * v).sum::<f64>();
    let [a, b, c, d] = q;
    [
        [1.0 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
        [s * (b * c + a * d), 1.0 - s * (b * b + d * d), s * (c * d - a * b)],
        [s * (b * d - a * c), s * (c * d + a * b), 1.0 - s * (b * b + c * c)],
    ]
}

/// A quaternion's b, c, d and the sign of the third axis (`pixdim[0]`) for `affine`, or `None` where
/// its columns are not at right angles, which a qform cannot express.
pub(super) fn quaternion(affine: &Affine) -> Option<([f64; 3], f64)> {
    let spacing = affine.spacing();
    let qfac = if affine.determinant3() < 0.0 { -1.0 } else { 1.0 };
    let scale = [spacing[0], spacing[1], spacing[2] * qfac];
    let r: [[f64; 3]; 3] = affine.0.map(|row| std::array::from_fn(|c| row[c] / scale[c]));
    let dot = |i: usize, j: usize| r.iter().map(|row| row[i] * row[j]).sum::<f64>();
    // f32 rows, as files hold them, leave about 1e-7 per element. NaN fails the comparison.
    if ![dot(0, 1), dot(0, 2), dot(1, 2)].iter().all(|d| d.abs() < 1e-5) {
        return None;
    }
    // 4 q q^T in terms of the rotation; the row with the largest diagonal is the most stable
    // (Shepperd 1978).
    let products = [
        [1.0 + r[0][0] + r[1][1] + r[2][2], r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]],
        [r[2][1] - r[1][2], 1.0 + r[0][0] - r[1][1] - r[2][2], r[1][0] + r[0][1], r[0][2] + r[2][0]],
        [r[0][2] - r[2][0], r[1][0] + r[0][1], 1.0 - r[0][0] + r[1][1] - r[2][2], r[2][1] + r[1][2]],
        [r[1][0] - r[0][1], r[0][2] + r[2][0], r[2][1] + r[1][2], 1.0 - r[0][0] - r[1][1] + r[2][2]],
    ];
    let mut best = 0;
    for i in 1..4 {
        if products[i][i] > products[best][best] {
            best = i;
        }
    }
    let length = 2.0 * products[best][best].sqrt();
    let q = products[best].map(|v| v / length);
    // a is not stored; readers take it as positive.
    let sign = if q[0] < 0.0 { -1.0 } else { 1.0 };
    Some(([q[1], q[2], q[3]].map(|v| v * sign), qfac))
}

fn bad_spacing(spacing: [f64; 3]) -> Error {
    Error::new(
        "spacing",
        format!("the voxel size {spacing:?} is not three positive lengths; convert the scan again from its source"),
    )
}

fn bad_affine(why: &str) -> Error {
    Error::new("affine", format!("{why}, so the voxels have no place in space; convert the scan again from its source"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quaternions_survive_every_kind_of_turn() {
        // Identity, half turns about each axis (where a = 0), and a general rotation.
        let turns = [
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 1.0],
            [0.8, -0.3, 0.5, 0.14],
        ];
        for (turn, qfac) in turns.iter().flat_map(|t| [(*t, 1.0), (*t, -1.0)]) {
            let r = rotation(turn);
            let affine = Affine(r.map(|row| [row[0] * 2.0, row[1] * 3.0, row[2] * 4.0 * qfac, 5.0]));
            let ([b, c, d], got_qfac) = quaternion(&affine).expect("right angles");
            assert_eq!(got_qfac, qfac);
            let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
            let back = rotation([a, b, c, d]);
            let error = back.as_flattened().iter().zip(r.as_flattened()).map(|(x, y)| (x - y).abs());
            assert!(error.fold(0.0, f64::max) < 1e-7, "{turn:?}");
        }
    }

    /// Found by fuzzing: no permutation of such axes is RAS.
    #[test]
    fn axes_that_nearly_coincide_are_refused_and_a_tilted_gantry_is_not() {
        let sheared = |shear: f64| usable([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, shear, 0.0], [0.0, 0.0, 1.0, 0.0]], 1.0);
        assert_eq!(sheared(1e4).expect_err("refused").kind, "affine");
        assert!(sheared(30f64.to_radians().tan()).is_ok());
    }

    #[test]
    fn a_sheared_affine_has_no_quaternion() {
        let sheared = Affine([[1.0, 0.1, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
        assert!(quaternion(&sheared).is_none());
    }
}
