//! Pseudonyms: what is shown of a scan instead of its names, where `cohort.pseudonyms` is set.
//!
//! Takes a [`Listing`] and a key; gives the same listing with other names. Subject, session, path and scan id become digits
//! of a keyed hash (HMAC-SHA256): the same key gives the same pseudonym in every run, and without the key no name can be
//! tried. A scan keeps the address that it is read from apart ([`Origin`]), which no output shows.
//!
//! | shown | made of |
//! |---|---|
//! | subject, session | the label |
//! | scan id `study/sub-P_ses-S_scan-N_T1w` | subject, session, and N: the scan's id without the cohort's name |
//! | path `sub-P/ses-S/sub-P_ses-S_scan-N_T1w.nii.gz` | the same, with the extension of the file |
//!
//! The suffix is kept where it is a known contrast, and the run where it is a number. The name of the cohort, its address,
//! `acq-`, sizes and times are not hidden.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::bids;
use super::config::CohortConfig;
use super::listing::{Listing, Skipped};
use super::manifest::{Origin, ScanEntry};
use crate::error::{Error, Result};
use crate::hex::hexadecimal;
use crate::store::Location;

/// The environment variable that holds the key.
pub const KEY: &str = "NEUROSIEVE_PSEUDONYM_KEY";

/// A shorter key could be tried out.
const MIN_KEY_BYTES: usize = 16;

/// Bytes of the hash that a pseudonym keeps: with a million names, the chance that any two share one is below one in a
/// trillion.
const BYTES: usize = 10;

/// Makes pseudonyms with a key. The key is in no output, nor in what `Debug` prints.
#[derive(Clone)]
pub struct Pseudonyms(Hmac<Sha256>);

impl fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonyms(..)")
    }
}

impl Pseudonyms {
    /// With the key in `NEUROSIEVE_PSEUDONYM_KEY`, without white space around it.
    ///
    /// # Errors
    /// [`Error::Config`] where it is missing or has fewer than 16 bytes.
    pub fn from_environment() -> Result<Self> {
        let key = std::env::var_os(KEY).unwrap_or_default().into_vec();
        Self::new(key.trim_ascii())
    }

    fn new(key: &[u8]) -> Result<Self> {
        let refuse = |what: &str| {
            Err(Error::Config(format!(
                "cohort.pseudonyms needs a secret key, and {what}: set {KEY} to at least {MIN_KEY_BYTES} random bytes, such as \
                 those of `openssl rand -hex 32`. Keep the key: without it the same scans get other names"
            )))
        };
        match key.len() {
            0 => return refuse(&format!("{KEY} is not set")),
            n if n < MIN_KEY_BYTES => return refuse(&format!("{KEY} is too short")),
            _ => {}
        }
        match Hmac::new_from_slice(key) {
            Ok(keyed) => Ok(Self(keyed)),
            Err(_) => refuse("this one cannot be used"),
        }
    }

    /// Distinguishes keys without revealing them: a hash with the key, of a text that is no name.
    pub fn fingerprint(&self) -> String {
        self.hash("key", "fingerprint")
    }

    /// The pseudonym of a subject's label, without `sub-`.
    pub fn subject(&self, label: &str) -> String {
        self.hash("subject", label.strip_prefix("sub-").unwrap_or(label))
    }

    /// The pseudonym of a session's label, without `ses-`.
    pub fn session(&self, label: &str) -> String {
        self.hash("session", label.strip_prefix("ses-").unwrap_or(label))
    }

    /// The kind is part of the hash, so a subject and a session with the same label have different pseudonyms.
    fn hash(&self, kind: &str, name: &str) -> String {
        let keyed = self.0.clone().chain_update(kind).chain_update([0]).chain_update(name);
        hexadecimal(&keyed.finalize().into_bytes()[..BYTES])
    }

    /// The listing under pseudonyms. Its order is that of the pseudonyms: that of the names would tell their ranks.
    #[must_use]
    pub fn hide(&self, mut listing: Listing) -> Listing {
        listing.selected = listing.selected.into_iter().map(|scan| self.scan(scan)).collect();
        listing.skipped = listing.skipped.into_iter().map(|image| self.skipped(image)).collect();
        listing.selected.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
        listing.skipped.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
        listing
    }

    /// A scan under its pseudonym, which keeps its address.
    fn scan(&self, scan: ScanEntry) -> ScanEntry {
        let subject = scan.subject.as_deref().map(|label| self.subject(label));
        let session = scan.session.as_deref().map(|label| self.session(label));
        let suffix = scan.suffix.clone().filter(|suffix| bids::is_contrast(suffix));
        let name = scan.scan_id.strip_prefix(&format!("{}/", scan.cohort)).unwrap_or(&scan.scan_id);
        let shown = Shown { subject, session, name: self.hash("scan", name), suffix };
        ScanEntry {
            scan_id: format!("{}/{}", scan.cohort, shown.file()),
            uri: shown.path(extension(&scan.uri)),
            voxels_uri: scan.voxels_uri.as_deref().map(|uri| shown.path(extension(uri))),
            run: scan.run.filter(|run| run.bytes().all(|byte| byte.is_ascii_digit())),
            origin: Some(Origin { uri: scan.uri, voxels_uri: scan.voxels_uri, subject: scan.subject }),
            subject: shown.subject,
            session: shown.session,
            suffix: shown.suffix,
            ..scan
        }
    }

    fn skipped(&self, image: Skipped) -> Skipped {
        let entities = bids::entities(&image.uri);
        let suffix = image.suffix.filter(|suffix| bids::is_contrast(suffix));
        let shown = Shown {
            subject: entities.subject.map(|label| self.subject(&label)),
            session: entities.session.map(|label| self.session(&label)),
            name: self.hash("path", &image.uri),
            suffix: suffix.clone(),
        };
        Skipped { uri: shown.path(extension(&image.uri)), suffix, ..image }
    }

    /// The names that a selection gives, which are real ones, as pseudonyms: for a record of what was selected.
    fn record(&self, config: &CohortConfig) -> CohortConfig {
        let mut config = config.clone();
        let select = &mut config.select;
        select.subjects.iter_mut().for_each(|label| *label = self.subject(label));
        select.sessions.iter_mut().for_each(|label| *label = self.session(label));
        for glob in select.include.iter_mut().chain(&mut select.exclude) {
            *glob = self.hash("glob", glob);
        }
        // A column may hold names.
        let hidden = |values: &Vec<String>| values.iter().map(|value| self.hash("value", value)).collect();
        let hidden: BTreeMap<_, _> =
            select.participants.iter().map(|(column, values)| (column.clone(), hidden(values))).collect();
        select.participants = hidden;
        config
    }

    /// A table of the pseudonyms of a listing with the names behind them, tab-separated.
    pub fn mapping(&self, listing: &Listing) -> String {
        let row = |scan: &ScanEntry| {
            let shown = self.scan(scan.clone());
            let cells = [
                Some(&shown.scan_id),
                shown.subject.as_ref(),
                shown.session.as_ref(),
                Some(&scan.scan_id),
                scan.subject.as_ref(),
                scan.session.as_ref(),
                Some(&scan.uri),
            ];
            cells.map(|cell| cell.map_or("n/a", String::as_str)).join("\t") + "\n"
        };
        let head = "pseudonym\tsubject_pseudonym\tsession_pseudonym\tscan_id\tsubject\tsession\turi\n";
        head.to_owned() + &listing.selected.iter().map(row).collect::<String>()
    }
}

/// What is shown of a scan.
struct Shown {
    subject: Option<String>,
    session: Option<String>,
    name: String,
    suffix: Option<String>,
}

impl Shown {
    fn file(&self) -> String {
        let part = |key: &str, label: &Option<String>| label.as_ref().map(|label| format!("{key}-{label}"));
        let parts = [part("sub", &self.subject), part("ses", &self.session), Some(format!("scan-{}", self.name))];
        parts.into_iter().chain([self.suffix.clone()]).flatten().collect::<Vec<_>>().join("_")
    }

    fn path(&self, extension: &str) -> String {
        let folder = |key: &str, label: &Option<String>| label.as_ref().map(|label| format!("{key}-{label}/"));
        let folders = [folder("sub", &self.subject), folder("ses", &self.session)];
        folders.into_iter().flatten().collect::<String>() + &self.file() + extension
    }
}

/// The extension of an image; that of another file may be part of a name.
fn extension(uri: &str) -> &str {
    if bids::image_part(uri).is_some() { &uri[bids::stem(uri).len()..] } else { "" }
}

impl CohortConfig {
    /// Makes the pseudonyms of this cohort, if it has any.
    ///
    /// # Errors
    /// As [`Pseudonyms::from_environment`].
    pub fn pseudonyms(&self) -> Result<Option<Pseudonyms>> {
        self.pseudonyms.then(Pseudonyms::from_environment).transpose()
    }

    /// Lists the cohort at `location` and selects its scans, under pseudonyms where these settings say so.
    ///
    /// # Errors
    /// Those of [`list`](super::list()), without names of the cohort where pseudonyms are set; [`Error::Config`] for a key that is
    /// missing, and for an address that names a subject.
    pub async fn list(&self, location: &Location) -> Result<Listing> {
        let name = self.name_at(location);
        let Some(pseudonyms) = self.pseudonyms()? else { return super::list(location, name, &self.select).await };
        if name.starts_with("sub-") || location.root.parts().any(|part| part.as_ref().starts_with("sub-")) {
            return Err(Error::Config(
                "the cohort's name or address names a subject, which cohort.pseudonyms does not hide: give the folder above, \
                 and select the subject (cohort.select.subjects)"
                    .into(),
            ));
        }
        let listed = super::list(location, name, &self.select).await;
        listed.map(|listing| pseudonyms.hide(listing)).map_err(|error| without_names(error, |_| None))
    }

    /// These settings as they may be recorded: names that the selection gives are pseudonyms where they are set.
    ///
    /// # Errors
    /// As [`Pseudonyms::from_environment`].
    pub fn recorded(&self) -> Result<Self> {
        Ok(self.pseudonyms()?.map_or_else(|| self.clone(), |pseudonyms| pseudonyms.record(self)))
    }
}

impl Origin {
    /// An error of reading this scan as others may see it: with the pseudonym of `shown` for the real path.
    pub(super) fn hide(&self, error: Error, shown: &ScanEntry) -> Error {
        without_names(error, |text| {
            let mut text = text.replace(&self.uri, &shown.uri);
            if let (Some(voxels), Some(shown)) = (&self.voxels_uri, &shown.voxels_uri) {
                text = text.replace(voxels, shown);
            }
            let stem = self.uri.rsplit('/').next().map(bids::stem);
            let subject = self.subject.as_deref().map(|subject| format!("sub-{subject}"));
            let names_it = |name: &str| !name.is_empty() && text.contains(name);
            let names = stem.is_some_and(names_it) || subject.as_deref().is_some_and(names_it);
            (!names).then_some(text)
        })
    }
}

/// Stands for a message that names scans.
const LEFT_OUT: &str = "the reason names scans, which cohort.pseudonyms hides; `neurosieve cohort` with the same address and \
                        selection shows it";

/// An error without names. `hide` gives a text without them, or none where it cannot.
pub(super) fn without_names(error: Error, hide: impl Fn(&str) -> Option<String>) -> Error {
    let said = |text: &str| hide(text).unwrap_or_else(|| LEFT_OUT.to_owned());
    match error {
        Error::Input { kind, message } => Error::Input { kind, message: said(&message) },
        Error::Storage { context, source } => Error::Storage { context: said(&context), source: bare(source) },
        Error::Io { context, source } => Error::Io { context: said(&context), source: source.kind().into() },
        Error::Config(message) => Error::Config(said(&message)),
        Error::NothingSelected(message) => Error::NothingSelected(said(&message)),
        other => other,
    }
}

/// A store's error without the paths and the texts of servers that it holds: its kind, and the HTTP status.
fn bare(error: object_store::Error) -> object_store::Error {
    use object_store::Error as S;
    let path = || "(hidden)".to_owned();
    match error {
        S::NotFound { .. } => S::NotFound { path: path(), source: "it is not there".into() },
        S::AlreadyExists { .. } => S::AlreadyExists { path: path(), source: "it exists already".into() },
        S::Precondition { .. } => S::Precondition { path: path(), source: "it has changed".into() },
        S::NotModified { .. } => S::NotModified { path: path(), source: "it has not changed".into() },
        S::PermissionDenied { .. } => S::PermissionDenied { path: path(), source: "the store refuses it".into() },
        S::Unauthenticated { .. } => S::Unauthenticated { path: path(), source: "the store wants credentials".into() },
        S::InvalidPath { .. } => S::NotSupported { source: "the store cannot have such a name".into() },
        S::Generic { store: "body", source } => S::Generic { store: "body", source },
        S::Generic { store, source } => S::Generic { store, source: cause(&source.to_string()).into() },
        _ => S::Generic { store: "store", source: "the store failed".into() },
    }
}

/// What a store's message says without names.
fn cause(message: &str) -> String {
    let status = ["status code: ", "status: ", "status "].iter().find_map(|before| {
        let code = message.split_once(before)?.1.get(..3)?;
        code.bytes().all(|byte| byte.is_ascii_digit()).then_some(code)
    });
    match status {
        Some(code) => format!("status code: {code}"),
        None if message.contains("timed out") || message.contains("timeout") => "timed out".to_owned(),
        None if message.contains("onnect") => "the connection failed".to_owned(),
        None => "the store failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::DescribedBy;
    use super::super::select::Reason;
    use super::*;

    fn pseudonyms() -> Pseudonyms {
        Pseudonyms::new(b"a key of the tests, 32 bytes long").unwrap()
    }

    fn scan(uri: &str, voxels_uri: Option<&str>) -> ScanEntry {
        let entities = bids::entities(uri);
        let content_id = "v1".to_owned();
        ScanEntry {
            scan_id: format!("c/{}", bids::stem(uri)),
            uri: uri.to_owned(),
            content_id,
            size_bytes: 1,
            etag: None,
            last_modified: chrono::DateTime::UNIX_EPOCH,
            cohort: "c".to_owned(),
            subject: entities.subject,
            session: entities.session,
            acquisition: None,
            run: entities.run,
            suffix: entities.suffix,
            described_by: DescribedBy(vec!["sub-anna/sub-anna_T1w.json".to_owned()]),
            voxels_uri: voxels_uri.map(str::to_owned),
            voxels_etag: None,
            origin: None,
            attempts: 0,
            apart: false,
        }
    }

    /// From Python: `hmac.digest(key, b"subject\0anna", "sha256").hex()[:20]`. A change would give every scan another id.
    #[test]
    fn a_pseudonym_is_an_hmac_of_kind_and_label() {
        let by_hand = "7d18dfa905fa52bbcc0a";
        assert_eq!((pseudonyms().subject("anna"), pseudonyms().subject("sub-anna")), (by_hand.into(), by_hand.into()));
        assert_ne!(pseudonyms().session("anna"), by_hand);
        let other = Pseudonyms::new(b"another key of these tests").unwrap();
        assert_ne!(other.subject("anna"), by_hand);
        assert_ne!(other.fingerprint(), pseudonyms().fingerprint());
        assert_eq!(format!("{:?}", pseudonyms()), "Pseudonyms(..)");
    }

    #[test]
    fn a_scan_shows_no_name_and_keeps_its_address() {
        for (uri, voxels) in [
            ("sub-anna/ses-x1/anat/sub-anna_ses-x1_T1w.nii.gz", None),
            ("anna/brain of anna.hdr", Some("anna/brain of anna.img.gz")),
            ("sub-anna/anat/sub-anna_run-anna_anna.nii", None),
        ] {
            let shown = pseudonyms().scan(scan(uri, voxels));
            let said = format!("{shown:?}");
            assert!(!said.contains("anna") && !said.contains("x1"), "{said}");
            assert_eq!((shown.address(), shown.voxels_address()), (uri, voxels));
            assert_eq!(extension(&shown.uri), extension(uri));
            assert_eq!(shown.subject, bids::entities(&shown.uri).subject);
            assert_eq!(shown.session, bids::entities(&shown.uri).session);
            let again = pseudonyms().scan(scan(uri, voxels));
            assert_eq!((shown.scan_id, shown.uri), (again.scan_id, again.uri));
        }
        let left = Skipped { uri: "sub-anna/anna.txt".into(), suffix: Some("anna".into()), reason: Reason::Absent };
        assert!(!format!("{:?}", pseudonyms().skipped(left)).contains("anna"));
    }

    #[test]
    fn errors_of_a_scan_name_its_pseudonym() {
        let uri = "sub-anna/anat/sub-anna_T1w.nii.gz";
        let shown = pseudonyms().scan(scan(uri, None));
        let hidden = |error| shown.origin.as_ref().unwrap().hide(error, &shown);
        let too_large = hidden(Error::input("too_large", format!("{uri} has 9 bytes"))).to_string();
        assert_eq!(too_large, format!("{} has 9 bytes", shown.uri));
        let source = object_store::Error::Generic {
            store: "S3",
            source: "GET https://h/sub%2Danna/sub-anna_T1w.nii.gz: status code: 503, body anna".into(),
        };
        let failed = hidden(Error::storage(format!("cannot read {uri}"), source));
        let said = format!("{failed} {failed:?}");
        assert!(!said.contains("anna") && said.contains("503") && said.contains(&shown.uri), "{said}");
        let gone = object_store::Error::NotFound { path: uri.into(), source: uri.into() };
        let gone = hidden(Error::storage("cannot read", gone));
        assert_eq!(gone.kind(), "not_found");
        assert!(!format!("{gone:?}").contains("anna"));
        let other = hidden(Error::Config("sub-anna is there twice".into())).to_string();
        assert!(!other.contains("anna") && other.contains("neurosieve cohort"), "{other}");
    }

    #[test]
    fn a_record_of_the_selection_has_no_names_and_keys_must_be_long() {
        let config: CohortConfig = toml::from_str(
            "url = 'x'\npseudonyms = true\nselect.subjects = ['sub-anna']\nselect.exclude = ['anna/**']\n\
             select.participants.participant_id = ['anna']",
        )
        .unwrap();
        let said = format!("{:?}", pseudonyms().record(&config));
        assert!(!said.contains("anna") && said.contains(&pseudonyms().subject("anna")), "{said}");
        for short in ["", "s3same", "15 bytes of key"] {
            let said = Pseudonyms::new(short.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(KEY) && (short.is_empty() || !said.contains(short)), "{said}");
        }
    }
}
