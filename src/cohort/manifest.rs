//! The manifest: the list of scans to screen as one Arrow record batch, the leaf of every screening plan.
//!
//! | column | type | meaning |
//! |---|---|---|
//! | `scan_id` | Utf8 | the scan's name in every table, unique in the cohort |
//! | `uri` | Utf8 | path below the cohort's root, `/` separated |
//! | `content_id` | Utf8 | changes when the object does: see [`content_id`] |
//! | `size_bytes` | Int64 | size of the object |
//! | `etag` | Utf8? | the store's ETag |
//! | `last_modified` | Timestamp(us, UTC) | when the object was last written |
//! | `cohort` | Utf8 | the cohort's name |
//! | `subject`, `session`, `acquisition`, `run`, `suffix` | Utf8? | BIDS entities, without their key |
//! | `described_by` | List(Utf8) | files that describe the image, by their real paths below the root: see [`DescribedBy`] |
//! | `voxels_uri`, `voxels_etag` | Utf8? | the `.img` whose header is `uri`, and its ETag |
//! | `origin_uri`, `origin_voxels_uri`, `origin_subject` | Utf8? | the real path and subject, where those above are pseudonyms |
//! | `attempts` | Int32 | earlier failed attempts at this content with the run's recipe |
//! | `apart` | Boolean | whether the scan may have ended a process, and is screened in one of its own |
//!
//! Refuses a batch that lacks a column, or has a column of another type or with a null that is not allowed.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, BooleanArray, Int32Array, Int64Array, ListArray, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, SubsecRound, Utc};
use object_store::ObjectMeta;
use sha2::{Digest, Sha256};

use super::bids;
use crate::error::{Error, Result};
use crate::hex::hexadecimal;

/// One scan of a cohort: one row of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanEntry {
    /// The scan's name in every table, unique in the cohort: `{cohort}/{file stem}` where the file is named by
    /// the BIDS rules, with entities of its folders where another image has that name, else
    /// `{cohort}/{path without extension}`.
    pub scan_id: String,
    /// Path below the cohort's root, `/` separated.
    pub uri: String,
    /// Changes when the object does: see [`content_id`].
    pub content_id: String,
    /// Size of the object in bytes; of a pair, both together.
    pub size_bytes: i64,
    /// The store's ETag.
    pub etag: Option<String>,
    /// When the object was last written, to the microsecond; of a pair, the later one.
    pub last_modified: DateTime<Utc>,
    /// The cohort's name.
    pub cohort: String,
    /// BIDS `sub-`.
    pub subject: Option<String>,
    /// BIDS `ses-`.
    pub session: Option<String>,
    /// BIDS `acq-`.
    pub acquisition: Option<String>,
    /// BIDS `run-`.
    pub run: Option<String>,
    /// BIDS suffix.
    pub suffix: Option<String>,
    /// The files that describe the image.
    pub described_by: DescribedBy,
    /// The `.img` whose header is `uri`, below the root. `None` for a whole file and for half a pair.
    pub voxels_uri: Option<String>,
    /// The store's ETag of the `.img`.
    pub voxels_etag: Option<String>,
    /// Where the scan really lies, if the paths above are pseudonyms. No table, log or message shows it.
    pub origin: Option<Origin>,
    /// Earlier failed attempts at this content with the recipe of a run; 0 in a listing.
    pub attempts: i32,
    /// Whether the scan may have ended a process: a run screens it in a process of its own. False in a listing.
    pub apart: bool,
}

/// The files that describe a scan, by their real paths below the cohort's root: JSON sidecars, the nearest first, then a
/// `*_scans.tsv` and a `*_sessions.tsv`. They may name a person: `Debug` does not print them, and nothing shows them where the
/// scan has a pseudonym.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DescribedBy(pub(super) Vec<String>);

impl fmt::Debug for DescribedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DescribedBy(..)")
    }
}

/// The real names of a scan that is shown under a pseudonym. `Debug` does not print them.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin {
    pub(super) uri: String,
    pub(super) voxels_uri: Option<String>,
    pub(super) subject: Option<String>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origin(..)")
    }
}

#[cfg(test)]
impl ScanEntry {
    /// A scan for tests of what is done with a listing.
    pub(crate) fn sample(scan_id: &str) -> Self {
        Self {
            scan_id: scan_id.to_owned(),
            uri: format!("{scan_id}.nii.gz"),
            content_id: "v1".to_owned(),
            size_bytes: 1,
            etag: None,
            last_modified: Utc::now(),
            cohort: "study".to_owned(),
            subject: None,
            session: None,
            acquisition: None,
            run: None,
            suffix: None,
            described_by: DescribedBy::default(),
            voxels_uri: None,
            voxels_etag: None,
            origin: None,
            attempts: 0,
            apart: false,
        }
    }
}

impl ScanEntry {
    /// The nearest JSON sidecar, where it may be shown.
    pub fn sidecar(&self) -> Option<&str> {
        let first = self.described_by.0.first().filter(|uri| bids::without_extension(uri, ".json").is_some());
        first.filter(|_| self.origin.is_none()).map(String::as_str)
    }

    /// The path that the scan is read from. It may name a person where `uri` does not: it is for requests to the store, and
    /// not to be shown.
    pub fn address(&self) -> &str {
        self.origin.as_ref().map_or(&self.uri, |origin| &origin.uri)
    }

    /// [`address`](ScanEntry::address) of the `.img` of a pair.
    pub fn voxels_address(&self) -> Option<&str> {
        self.origin.as_ref().map_or(&self.voxels_uri, |origin| &origin.voxels_uri).as_deref()
    }
}

/// The manifest's schema.
pub fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let maybe = |name: &str| Field::new(name, DataType::Utf8, true);
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        text("scan_id"),
        text("uri"),
        text("content_id"),
        Field::new("size_bytes", DataType::Int64, false),
        maybe("etag"),
        Field::new("last_modified", time, false),
        text("cohort"),
        maybe("subject"),
        maybe("session"),
        maybe("acquisition"),
        maybe("run"),
        maybe("suffix"),
        Field::new("described_by", DataType::List(path_item()), false),
        maybe("voxels_uri"),
        maybe("voxels_etag"),
        maybe("origin_uri"),
        maybe("origin_voxels_uri"),
        maybe("origin_subject"),
        Field::new("attempts", DataType::Int32, false),
        Field::new("apart", DataType::Boolean, false),
    ]))
}

fn path_item() -> FieldRef {
    Arc::new(Field::new("item", DataType::Utf8, false))
}

/// The paths of one scan.
fn paths(list: &ArrayRef) -> Vec<String> {
    list.as_string_opt::<i32>().into_iter().flatten().flatten().map(str::to_owned).collect()
}

/// Scans as a record batch of [`schema`], in the same order.
///
/// # Errors
/// [`Error::Bug`] where the columns do not fit the schema, which is a defect of this program.
pub fn to_batch(scans: &[ScanEntry]) -> Result<RecordBatch> {
    let text =
        |of: fn(&ScanEntry) -> &String| -> ArrayRef { Arc::new(StringArray::from_iter_values(scans.iter().map(of))) };
    let maybe = |of: fn(&ScanEntry) -> &Option<String>| -> ArrayRef {
        Arc::new(scans.iter().map(|scan| of(scan).as_deref()).collect::<StringArray>())
    };
    let origin = |of: fn(&Origin) -> Option<&String>| -> ArrayRef {
        Arc::new(scans.iter().map(|scan| scan.origin.as_ref().and_then(of)).collect::<StringArray>())
    };
    let times = TimestampMicrosecondArray::from_iter_values(scans.iter().map(|s| s.last_modified.timestamp_micros()));
    let mut described_by = ListBuilder::new(StringBuilder::new()).with_field(path_item());
    for scan in scans {
        scan.described_by.0.iter().for_each(|uri| described_by.values().append_value(uri));
        described_by.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        text(|s| &s.scan_id),
        text(|s| &s.uri),
        text(|s| &s.content_id),
        Arc::new(Int64Array::from_iter_values(scans.iter().map(|s| s.size_bytes))),
        maybe(|s| &s.etag),
        Arc::new(times.with_timezone("UTC")),
        text(|s| &s.cohort),
        maybe(|s| &s.subject),
        maybe(|s| &s.session),
        maybe(|s| &s.acquisition),
        maybe(|s| &s.run),
        maybe(|s| &s.suffix),
        Arc::new(described_by.finish()),
        maybe(|s| &s.voxels_uri),
        maybe(|s| &s.voxels_etag),
        origin(|o| Some(&o.uri)),
        origin(|o| o.voxels_uri.as_ref()),
        origin(|o| o.subject.as_ref()),
        Arc::new(Int32Array::from_iter_values(scans.iter().map(|s| s.attempts))),
        Arc::new(BooleanArray::from_iter(scans.iter().map(|s| Some(s.apart)))),
    ];
    RecordBatch::try_new(schema(), columns)
        .map_err(|e| Error::Bug(format!("the manifest does not fit its schema: {e}")))
}

/// Scans from a record batch with the columns of [`schema`], in any order.
///
/// # Errors
/// [`Error::Bug`] for a batch of another shape: the manifest is this program's own.
pub fn from_batch(batch: &RecordBatch) -> Result<Vec<ScanEntry>> {
    let (scan_id, uri, content_id) =
        (required(batch, "scan_id")?, required(batch, "uri")?, required(batch, "content_id")?);
    let size_bytes: &Int64Array = column(batch, "size_bytes", false)?;
    let last_modified: &TimestampMicrosecondArray = column(batch, "last_modified", false)?;
    let (etag, cohort) = (optional(batch, "etag")?, required(batch, "cohort")?);
    let (subject, session) = (optional(batch, "subject")?, optional(batch, "session")?);
    let (acquisition, run) = (optional(batch, "acquisition")?, optional(batch, "run")?);
    let (suffix, described_by): (_, &ListArray) = (optional(batch, "suffix")?, column(batch, "described_by", false)?);
    let (voxels_uri, voxels_etag) = (optional(batch, "voxels_uri")?, optional(batch, "voxels_etag")?);
    let (origin_uri, origin_voxels_uri) = (optional(batch, "origin_uri")?, optional(batch, "origin_voxels_uri")?);
    let origin_subject = optional(batch, "origin_subject")?;
    let (attempts, apart): (&Int32Array, &BooleanArray) =
        (column(batch, "attempts", false)?, column(batch, "apart", false)?);
    let maybe = |array: &StringArray, i: usize| array.is_valid(i).then(|| array.value(i).to_owned());
    let origin = |i| {
        let (voxels_uri, subject) = (maybe(origin_voxels_uri, i), maybe(origin_subject, i));
        maybe(origin_uri, i).map(|uri| Origin { uri, voxels_uri, subject })
    };
    (0..batch.num_rows())
        .map(|i| {
            Ok(ScanEntry {
                scan_id: scan_id.value(i).to_owned(),
                uri: uri.value(i).to_owned(),
                content_id: content_id.value(i).to_owned(),
                size_bytes: size_bytes.value(i),
                etag: maybe(etag, i),
                last_modified: DateTime::from_timestamp_micros(last_modified.value(i))
                    .ok_or_else(|| Error::Bug(format!("manifest row {i}: last_modified is not a date")))?,
                cohort: cohort.value(i).to_owned(),
                subject: maybe(subject, i),
                session: maybe(session, i),
                acquisition: maybe(acquisition, i),
                run: maybe(run, i),
                suffix: maybe(suffix, i),
                described_by: DescribedBy(paths(&described_by.value(i))),
                voxels_uri: maybe(voxels_uri, i),
                voxels_etag: maybe(voxels_etag, i),
                origin: origin(i),
                attempts: attempts.value(i),
                apart: apart.value(i),
            })
        })
        .collect()
}

/// Identifies the content of an object without reading it: the first 32 hexadecimal digits of the SHA-256 of
/// `etag NUL size`, or of `modified NUL size` (microseconds since 1970) where the store has no ETag.
pub fn content_id(etag: Option<&str>, last_modified: DateTime<Utc>, size_bytes: i64) -> String {
    digest(&version(etag, last_modified, size_bytes))
}

/// [`content_id`] of a pair: from both versions with a NUL between, so that it changes when either half does.
pub(super) fn pair_content_id(header: &ObjectMeta, voxels: &ObjectMeta) -> String {
    // The sign would change at 2^63 bytes, which no object has.
    let of = |meta: &ObjectMeta| version(meta.e_tag.as_deref(), to_micros(meta.last_modified), meta.size as i64);
    digest(&format!("{}\0{}", of(header), of(voxels)))
}

fn version(etag: Option<&str>, last_modified: DateTime<Utc>, size_bytes: i64) -> String {
    let version = etag.map_or_else(|| last_modified.timestamp_micros().to_string(), str::to_owned);
    format!("{version}\0{size_bytes}")
}

fn digest(version: &str) -> String {
    let digest = Sha256::digest(version);
    hexadecimal(&digest[..16])
}

/// Truncates a time to the microseconds that the manifest stores.
pub(super) fn to_micros(time: DateTime<Utc>) -> DateTime<Utc> {
    time.trunc_subsecs(6)
}

fn required<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    column(batch, name, false)
}

fn optional<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    column(batch, name, true)
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str, nullable: bool) -> Result<&'a A> {
    let array = batch.column_by_name(name).ok_or_else(|| Error::Bug(format!("the manifest has no column `{name}`")))?;
    if !nullable && array.null_count() > 0 {
        return Err(Error::Bug(format!("the manifest's column `{name}` has nulls")));
    }
    let kind = array.data_type();
    array.as_any().downcast_ref().ok_or_else(|| Error::Bug(format!("the manifest's column `{name}` has type {kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(uri: &str, session: Option<&str>) -> ScanEntry {
        let last_modified = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        ScanEntry {
            scan_id: format!("c/{uri}"),
            uri: uri.to_owned(),
            content_id: content_id(Some("\"abc\""), last_modified, 42),
            size_bytes: 42,
            etag: Some("\"abc\"".to_owned()),
            last_modified,
            cohort: "c".to_owned(),
            subject: Some("01".to_owned()),
            session: session.map(str::to_owned),
            acquisition: None,
            run: None,
            suffix: Some("T1w".to_owned()),
            described_by: DescribedBy::default(),
            voxels_uri: None,
            voxels_etag: None,
            origin: None,
            attempts: 0,
            apart: false,
        }
    }

    #[test]
    fn scans_survive_the_way_through_arrow() {
        let mut hidden = scan("p.nii", None);
        (hidden.attempts, hidden.apart) = (2, true);
        hidden.described_by = DescribedBy(vec!["c.json".into(), "sub-01_scans.tsv".into()]);
        hidden.origin = Some(Origin { uri: "c.nii".into(), voxels_uri: None, subject: Some("01".into()) });
        let scans = [scan("a.nii", None), scan("ü b.nii.gz", Some("02")), hidden];
        assert_eq!(from_batch(&to_batch(&scans).unwrap()).unwrap(), scans);
        assert_eq!(from_batch(&to_batch(&[]).unwrap()).unwrap(), []);
    }

    #[test]
    fn a_batch_of_another_shape_is_refused() {
        let batch = to_batch(&[scan("a.nii", None)]).unwrap();
        let names: Vec<usize> = (1..batch.num_columns()).collect();
        assert!(from_batch(&batch.project(&names).unwrap()).unwrap_err().to_string().contains("scan_id"));
        let wrong = RecordBatch::try_from_iter([("scan_id", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        assert!(from_batch(&wrong).unwrap_err().to_string().contains("Int64"));
    }

    /// Golden digests from `printf '"abc"\0%d' 42 | sha256sum` and `printf '1700000000123456\0%d' 42 | sha256sum`.
    #[test]
    fn content_ids_are_sha256_of_tag_and_size() {
        let time = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        assert_eq!(content_id(Some("\"abc\""), time, 42), "08948ef3df2aff17d682da646474edfc");
        assert_eq!(content_id(None, time, 42), "6a907f16c1506257f3648db0d1a11b77");
    }
}
