//! Acquisition metadata of a scan: scanner, field strength and date.
//!
//! ```text
//! JSON sidecars, nearest first ─► Manufacturer, ManufacturersModelName, MagneticFieldStrength, AcquisitionDateTime
//! *_scans.tsv, *_sessions.tsv  ─► acq_time                            the date: scans.tsv, else JSON, else sessions.tsv
//! ```
//! Takes a scan of a listing; reads the files; gives [`Acquisition`]. A value that is missing, `n/a` or of another form is
//! none. A file that cannot be parsed says nothing, and is counted. Under pseudonyms no date is read: with it, a person can be
//! found in the lists of a hospital.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::bids::without_extension;
use super::dataset::{Small, read_small};
use super::manifest::ScanEntry;
use super::sidecar::{SCANS_TSV, SESSIONS_TSV};
use super::tsv;
use crate::error::Result;
use crate::store::Location;

/// Larger files say nothing of one image.
const MAX_BYTES: u64 = 1 << 20;

/// A longer text is no name of a scanner.
const MAX_CHARS: usize = 200;

/// Tesla; scanners for people reach 11.7. A larger number is in another unit.
const MAX_TESLA: f32 = 30.;

/// Acquisition metadata of a scan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Acquisition {
    /// Manufacturer of the scanner.
    pub manufacturer: Option<String>,
    /// Its model.
    pub scanner_model: Option<String>,
    /// Its field strength in tesla.
    pub field_strength_t: Option<f32>,
    /// When the scan was acquired. A time without a zone is taken as UTC.
    pub acquired_at: Option<DateTime<Utc>>,
    /// Files that could not be parsed, or are too large.
    pub n_broken: usize,
}

/// Reads a scan's acquisition metadata.
///
/// # Errors
/// [`Error::Storage`](crate::Error::Storage) where a file is there and cannot be read. It does not name the file.
pub async fn read_acquisition(location: &Location, scan: &ScanEntry) -> Result<Acquisition> {
    let read = read_files(location, scan).await;
    // The store's text has the path, which may name a person.
    read.map_err(|error| match &scan.origin {
        Some(origin) => origin.hide(error, scan),
        None => error,
    })
}

async fn read_files(location: &Location, scan: &ScanEntry) -> Result<Acquisition> {
    let mut found = Acquisition::default();
    let with_dates = scan.origin.is_none();
    let mut in_json = None;
    let ends_with = |uri: &str, end| without_extension(uri, end).is_some();
    for uri in &scan.described_by.0 {
        let is_json = ends_with(uri, ".json");
        if is_json && found.has_scanner() || !is_json && (!with_dates || found.acquired_at.is_some()) {
            continue;
        }
        // The date in a sidecar is nearer to the scan than that of its session.
        if ends_with(uri, SESSIONS_TSV) && in_json.is_some() {
            continue;
        }
        let bytes = match read_small(location, uri, MAX_BYTES).await? {
            Small::Bytes(bytes) => bytes,
            Small::Absent => continue,
            Small::TooLarge(_) => {
                found.n_broken += 1;
                continue;
            }
        };
        let understood = if is_json {
            found.take_json(&bytes).map(|date| in_json = in_json.or(date))
        } else {
            let row_of = |row: &str| match ends_with(uri, SCANS_TSV) {
                true => names_image(uri, row, scan.address()),
                false => scan.session.as_deref() == Some(row.strip_prefix("ses-").unwrap_or(row)),
            };
            let key = if ends_with(uri, SCANS_TSV) { "filename" } else { "session_id" };
            date_in_table(&bytes, key, row_of).map(|date| found.acquired_at = date)
        };
        found.n_broken += usize::from(understood.is_none());
    }
    found.acquired_at = found.acquired_at.or(in_json).filter(|_| with_dates);
    Ok(found)
}

impl Acquisition {
    fn has_scanner(&self) -> bool {
        self.manufacturer.is_some() && self.scanner_model.is_some() && self.field_strength_t.is_some()
    }

    /// Takes what a sidecar says and nearer ones do not; gives its date. `None` where it is no JSON object.
    fn take_json(&mut self, bytes: &[u8]) -> Option<Option<DateTime<Utc>>> {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        // A list would be taken for the values of the keys.
        bytes.trim_ascii_start().starts_with(b"{").then_some(())?;
        let says: Sidecar = serde_json::from_slice(bytes).ok()?;
        self.manufacturer = self.manufacturer.take().or_else(|| text(&says.manufacturer));
        self.scanner_model = self.scanner_model.take().or_else(|| text(&says.manufacturers_model_name));
        self.field_strength_t = self.field_strength_t.or_else(|| tesla(&says.magnetic_field_strength));
        Some(says.acquisition_date_time.as_str().and_then(date))
    }
}

/// The keys of a sidecar that are taken; the others are not held.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Sidecar {
    manufacturer: Value,
    manufacturers_model_name: Value,
    magnetic_field_strength: Value,
    acquisition_date_time: Value,
}

/// A short text with a meaning.
fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    let is_one = !text.is_empty()
        && !text.eq_ignore_ascii_case("n/a")
        && text.chars().count() <= MAX_CHARS
        && !text.chars().any(char::is_control);
    is_one.then(|| text.to_owned())
}

/// A field strength; some programs write it as a text, `3T`.
fn tesla(value: &Value) -> Option<f32> {
    let number = match value {
        Value::Number(number) => number.as_f64()? as f32,
        Value::String(text) => text.trim().trim_end_matches(['T', 't']).trim_end().parse().ok()?,
        _ => return None,
    };
    (number > 0. && number <= MAX_TESLA).then_some(number)
}

/// A date and time as BIDS and dcm2niix write them. One without a zone is taken as UTC, and a date alone as its first moment.
fn date(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(with_zone) = DateTime::parse_from_rfc3339(text) {
        return Some(with_zone.to_utc());
    }
    let forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    let time = forms.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
    let day = || Some(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_time(NaiveTime::MIN));
    time.or_else(day).map(|time| time.and_utc())
}

/// The column `acq_time` of the row whose cell `key` is the scan's; `None` where the table cannot be read.
fn date_in_table(bytes: &[u8], key: &str, is_row: impl Fn(&str) -> bool) -> Option<Option<DateTime<Utc>>> {
    let mut reader = tsv::Reader::default();
    reader.push(bytes).ok()?;
    let Some(header) = reader.next_row(true).ok()? else { return Some(None) };
    let at = |name: &str| header.cells.iter().position(|cell| cell == name);
    let (Some(key), Some(time)) = (at(key), at("acq_time")) else { return Some(None) };
    while let Some(row) = reader.next_row(true).ok()? {
        if row.cells.get(key).is_some_and(|cell| is_row(cell)) {
            return Some(row.cells.get(time).and_then(|cell| date(cell)));
        }
    }
    Some(None)
}

/// Whether a cell of a `*_scans.tsv` names the image: paths there are relative to the table's folder.
fn names_image(table: &str, cell: &str, image: &str) -> bool {
    let folder = table.rsplit_once('/').map_or("", |(folder, _)| folder);
    let below =
        if folder.is_empty() { Some(image) } else { image.strip_prefix(folder).and_then(|i| i.strip_prefix('/')) };
    below == Some(cell.strip_prefix("./").unwrap_or(cell))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::manifest::{DescribedBy, Origin};
    use super::*;
    use crate::store;

    fn scan(described_by: &[&str]) -> ScanEntry {
        let described_by = DescribedBy(described_by.iter().map(|&uri| uri.to_owned()).collect());
        let uri = "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz".to_owned();
        ScanEntry { uri, session: Some("a".into()), described_by, ..ScanEntry::sample("study/sub-01_ses-a_T1w") }
    }

    async fn found(folder: &Path, files: &[(&str, &str)], hidden: bool) -> Acquisition {
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let mut entry = scan(&files.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        entry.origin = hidden.then(|| Origin { uri: entry.uri.clone(), voxels_uri: None, subject: None });
        read_acquisition(&store::open(folder.to_str().unwrap()).unwrap(), &entry).await.unwrap()
    }

    const SCANNER: &str =
        r#"{"Manufacturer": "GE", "MagneticFieldStrength": "1.5T", "AcquisitionDateTime": "2001-02-03T04:05:06.5"}"#;
    const SCANS: &str = "filename\tacq_time\nses-a/anat/sub-01_ses-a_T1w.nii.gz\t2002-02-03T04:05:06\n";
    const SESSIONS: &str = "session_id\tacq_time\nses-b\t2004-01-01\nses-a\t2003-01-02T00:00:00Z\n";

    #[tokio::test]
    async fn the_nearest_file_that_says_it_wins() {
        let folder = tempfile::tempdir().unwrap();
        let above = r#"{"Manufacturer": "Siemens", "ManufacturersModelName": "Prisma", "MagneticFieldStrength": 3}"#;
        let files = [("a.json", SCANNER), ("b.json", above), ("a_scans.tsv", SCANS), ("a_sessions.tsv", SESSIONS)];
        let year = |found: &Acquisition| found.acquired_at.map(|at| at.format("%Y-%m-%d").to_string());
        std::fs::create_dir_all(folder.path().join("sub-01")).unwrap();
        let files_below: Vec<(String, &str)> =
            files.iter().map(|(name, text)| (format!("sub-01/{name}"), *text)).collect();
        let files: Vec<(&str, &str)> = files_below.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let all = found(folder.path(), &files, false).await;
        assert_eq!(all.manufacturer.as_deref(), Some("GE"));
        assert_eq!((all.scanner_model.as_deref(), all.field_strength_t), (Some("Prisma"), Some(1.5)));
        assert_eq!((year(&all).as_deref(), all.n_broken), (Some("2002-02-03"), 0));
        let without_scans = [files[0], files[3]];
        assert_eq!(year(&found(folder.path(), &without_scans, false).await).as_deref(), Some("2001-02-03"));
        assert_eq!(year(&found(folder.path(), &files[3..], false).await).as_deref(), Some("2003-01-02"));
        let hidden = found(folder.path(), &files, true).await;
        assert_eq!((hidden.acquired_at, hidden.manufacturer.as_deref()), (None, Some("GE")));
    }

    #[tokio::test]
    async fn what_is_broken_says_nothing_and_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let files = [("a.json", "{\"Manufacturer\": "), ("b.json", "[1]"), ("a_scans.tsv", "\u{0}\u{0}")];
        let found = found(folder.path(), &files, false).await;
        assert_eq!(found, Acquisition { n_broken: 3, ..Acquisition::default() });
    }

    #[test]
    fn values_of_another_form_are_none() {
        let number = |text: &str| tesla(&serde_json::from_str(text).unwrap());
        assert_eq!(
            (number("3"), number("\"2.89 T\""), number("15000"), number("\"n/a\"")),
            (Some(3.), Some(2.89), None, None)
        );
        assert_eq!((text(&"n/a".into()), text(&" Philips ".into())), (None, Some("Philips".into())));
        assert!(date("n/a").is_none() && date("20180711").is_none());
        assert_eq!(date("2020-01-02T01:00:00+01:00"), date("2020-01-02"));
        assert!(names_image("a_scans.tsv", "anat/x.nii", "anat/x.nii"));
        assert!(!names_image("sub-01/a_scans.tsv", "anat/x.nii", "sub-012/anat/x.nii"));
    }
}
