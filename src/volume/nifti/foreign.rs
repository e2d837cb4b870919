//! What lies in a scan's place: recognises other formats, pointers to content that was not fetched, and error pages, by
//! their first bytes, so that the error message can name the right next step.

use crate::volume::error::Error;

/// First bytes, what they begin, and what to do.
const MAGICS: [(&[u8], &str, &str); 22] = [
    (b"PK\x03\x04", "a ZIP archive", "unpack it and give the scans inside"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2, or compress it with gzip instead"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with unxz, or compress it with gzip instead"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd, or compress it with gzip instead"),
    (b"\x1f\x9d", "compressed with compress(1)", "unpack it with uncompress, or compress it with gzip instead"),
    (b"\x1f\x8b", "compressed twice", "unpack it once with gunzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it and give the scans inside"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it and give the scans inside"),
    (b"\0\0\0\x01\0\0", "a FreeSurfer volume (.mgh, .mgz)", "convert it with `mri_convert in.mgz out.nii.gz`"),
    (b"NRRD000", "an NRRD image", "convert it to NIfTI, for example with 3D Slicer or SimpleITK"),
    (b"ObjectType", "a MetaImage (.mha)", "convert it to NIfTI, for example with SimpleITK or c3d"),
    (b"NDims", "a MetaImage (.mha)", "convert it to NIfTI, for example with SimpleITK or c3d"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (MINC 2, MATLAB, …)",
        "convert MINC with mnc2nii; write others as NIfTI with nibabel",
    ),
    (b"CDF\x01", "a NetCDF file (MINC 1)", "convert it with mnc2nii"),
    (b"MATLAB 5.0", "a MATLAB file", "write it as NIfTI, for example with niftiwrite"),
    (b"\x93NUMPY", "a NumPy array", "write it as NIfTI with its affine, with nibabel"),
    (b"PAR1", "a Parquet file", "give a NIfTI image"),
    (b"%PDF", "a PDF document", "give a NIfTI image"),
    (b"\x89PNG", "a PNG picture", "give the scan itself as NIfTI"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the scan itself as NIfTI"),
    (b"II*\0", "a TIFF picture", "give the scan itself as NIfTI"),
    (b"MM\0*", "a TIFF picture", "give the scan itself as NIfTI"),
];

/// Where DICOM's magic stands, and where tar's does.
const DICOM: (usize, &[u8]) = (128, b"DICM");
const TAR: (usize, &[u8]) = (257, b"ustar");

/// The longest text that takes the place of a file's content: a link of git-annex, a pointer of Git LFS.
const LONGEST_POINTER: usize = 32 << 10;

/// The error for bytes without a NIfTI header.
pub(super) fn refusal(bytes: &[u8]) -> Error {
    if let Some(message) = pointer(bytes) {
        return Error::new("pointer", message);
    }
    let (what, advice) = recognise(bytes)
        .unwrap_or(("no NIfTI file (no such header)", "convert it, for example with dcm2niix from its DICOM files"));
    Error::new("not_nifti", format!("this is {what}; {advice}"))
}

/// For a text that stands for content elsewhere, as git-annex (DataLad) and Git LFS write it: what it is and how the
/// content is fetched. `None` for anything else.
pub fn pointer(bytes: &[u8]) -> Option<&'static str> {
    if bytes.len() > LONGEST_POINTER {
        return None;
    }
    let first = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    let text = std::str::from_utf8(first).ok()?;
    // The second form is a symbolic link that was checked out as a text, as on a disk without links.
    if text.starts_with("/annex/objects/") || text.contains(".git/annex/objects/") {
        return Some(
            "this is a pointer of git-annex, its content was not fetched; run `datalad get` (or `git annex get`) on the file",
        );
    }
    (text.starts_with("version https://git-lfs.github.com/spec/")
        || text.starts_with("version https://hawser.github.com/"))
    .then_some("this is a pointer of Git LFS, its content was not fetched; run `git lfs pull` in the dataset")
}

/// What the file is, and the next step.
fn recognise(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    if bytes.is_empty() {
        return Some(("an empty file", "copy it again from its source"));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(("a file of zeros", "its copy was not completed: copy it again from its source"));
    }
    let stands_at = |(at, magic): (usize, &[u8])| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if stands_at(DICOM) || is_bare_dicom(bytes) {
        return Some(("a DICOM file", "convert its series with dcm2niix"));
    }
    if stands_at(TAR) {
        return Some(("a tar archive", "unpack it and give the scans inside"));
    }
    let magic = MAGICS.iter().find(|(magic, ..)| bytes.starts_with(magic));
    magic.map(|&(_, what, advice)| (what, advice)).or_else(|| text(bytes))
}

/// A DICOM file without preamble: it starts with group 2 or 8, in little endian, with an explicit type or a short length.
fn is_bare_dicom(bytes: &[u8]) -> bool {
    let Some(&[group, 0, element, 0, a, b, ..]) = bytes.first_chunk::<8>() else { return false };
    let is_type = a.is_ascii_uppercase() && b.is_ascii_uppercase();
    let is_length = bytes[6..8] == [0, 0] && a != 0;
    matches!(group, 2 | 8) && matches!(element, 0 | 1 | 5 | 8) && (is_type || (is_length && element != 0) || a == 4)
}

/// What a text is: most often the answer of a server that was saved in place of the file.
fn text(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let end = bytes.len().min(512);
    let text =
        String::from_utf8_lossy(&bytes[..end]).trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_lowercase();
    let starts = |with: &[&str]| with.iter().any(|with| text.starts_with(with));
    let again = "the download failed: check the address and the login, then download the file again";
    if starts(&["<!doctype html", "<html", "<head", "<body"]) || (starts(&["<!--", "<?xml"]) && text.contains("<html"))
    {
        return Some(("an HTML page, as a server sends it for an error or a login", again));
    }
    if starts(&["<?xml", "<error"]) {
        return Some(("an XML text, as a store sends it for an error", again));
    }
    if starts(&["{", "["]) {
        return Some(("a JSON text, as a server sends it for an error", again));
    }
    let is_text = bytes[..end].iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    is_text.then_some(("a text, not an image", "copy the scan again from its source"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_scans_place_is_named_with_the_next_step() {
        let dicom = [vec![0; 128], b"DICM\x02\0\0\0UL".to_vec()].concat();
        let tar = [b"sub-01/".to_vec(), vec![0; 250], b"ustar\0".to_vec()].concat();
        let mgh = [0_u8, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0];
        let cases: &[(&[u8], &str, &str, &str)] = &[
            (b"/annex/objects/MD5E-s74--0f1d.nii.gz\n", "pointer", "git-annex", "datalad get"),
            (b"../../.git/annex/objects/aa/bb/K/K.nii.gz", "pointer", "git-annex", "datalad get"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "pointer", "Git LFS", "git lfs pull"),
            (b"<!DOCTYPE html><html><body>403</body></html>", "not_nifti", "HTML page", "download the file again"),
            (b"\n <HTML>\n", "not_nifti", "HTML page", "download the file again"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "not_nifti", "XML", "download"),
            (b"{\"message\": \"Not Found\"}", "not_nifti", "JSON", "download the file again"),
            (b"Not Found", "not_nifti", "a text", "copy the scan again"),
            (b"", "not_nifti", "empty file", "copy it again"),
            (&[0; 400], "not_nifti", "file of zeros", "copy it again"),
            (&dicom, "not_nifti", "DICOM", "dcm2niix"),
            (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "not_nifti", "DICOM", "dcm2niix"),
            (b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", "not_nifti", "DICOM", "dcm2niix"),
            (&tar, "not_nifti", "tar", "unpack"),
            (&mgh, "not_nifti", "FreeSurfer", "mri_convert"),
            (b"PK\x03\x04\x14\0", "not_nifti", "ZIP", "unpack"),
            (b"\x1f\x8b\x08\0", "not_nifti", "compressed twice", "gunzip"),
            (b"NRRD0004\n", "not_nifti", "NRRD", "convert"),
            (b"\x90\x01\x05\xfe\x11", "not_nifti", "no NIfTI file", "dcm2niix"),
        ];
        for (bytes, kind, what, advice) in cases {
            let error = refusal(bytes);
            assert_eq!(error.kind, *kind, "{}", error.message);
            assert!(error.message.contains(what) && error.message.contains(advice), "{}", error.message);
        }
        assert_eq!(pointer(b"voxels"), None);
    }
}
