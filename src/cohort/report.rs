//! A listing as text for people ([`describe`], [`faults`], [`nothing_selected`]) or as JSON for programs ([`to_json`]).
//!
//! Takes a [`Listing`]; gives its totals, its scans, and the skipped images by reason. Opens nothing and refuses nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::listing::{Listing, Skipped};
use super::manifest::ScanEntry;
use super::select::Reason;
use crate::error::Error;
use crate::store::printable;

/// Shown as the suffix of names that follow no BIDS rule.
const NO_SUFFIX: &str = "(none)";

/// Names of entries with a fault that a run prints for each fault.
const NAMED: usize = 5;

/// Extensions that a message names.
const EXTENSIONS: usize = 5;

/// The listing as text: totals, kinds of image, the first `rows` scans, each reason with an example, and the first `rows`
/// entries that something is wrong with.
pub fn describe(listing: &Listing, rows: usize) -> String {
    let Listing { address, cohort, bids, selected, skipped, n_other, n_hidden, .. } = listing;
    let tree = if *bids { "BIDS" } else { "not BIDS: every image is a scan" };
    let mut totals = vec![format!("{} selected", counted(selected.len(), "scan"))];
    for (n, what) in [(n_subjects(selected), "subject"), (n_sessions(selected), "session")] {
        if n > 0 {
            totals.push(counted(n, what));
        }
    }
    totals.push(bytes(total_bytes(selected)));
    let n_faults = skipped.iter().filter(|image| image.reason.is_fault()).count();
    if n_faults > 0 {
        totals.push(format!("{n_faults} cannot be used"));
    }
    let mut text = format!("cohort {cohort} at {address} ({tree})\n{}\n", totals.join(", "));

    let kinds = by_suffix(listing);
    if kinds.keys().any(|kind| *kind != NO_SUFFIX) {
        let row = |(kind, (taken, images)): (&str, (usize, usize))| {
            vec![kind.to_owned(), taken.to_string(), images.to_string()]
        };
        text += &table(&["suffix", "selected", "images"], kinds.into_iter().map(row));
    }
    if !selected.is_empty() {
        let row = |s: &ScanEntry| vec![shown(&s.scan_id), bytes(s.size_bytes), shown(&s.uri)];
        text += &table(&["scan_id", "size", "uri"], selected.iter().take(rows).map(row));
        if selected.len() > rows {
            text += &format!("and {} more (--rows shows more, --json all)\n", selected.len() - rows);
        }
    }
    let mut left: Vec<Vec<String>> = by_reason(skipped)
        .into_iter()
        .map(|(reason, (n, example))| vec![reason.to_string(), n.to_string(), shown(example)])
        .collect();
    for (n, what) in [(n_other, "not a NIfTI image"), (n_hidden, "hidden (name starts with a dot)")] {
        if *n > 0 {
            left.push(vec![what.to_owned(), n.to_string(), String::new()]);
        }
    }
    if !left.is_empty() {
        text += &table(&["not selected", "files", "for example"], left.into_iter());
    }
    // One of them is already the example of its reason.
    if n_faults > by_reason(skipped).keys().filter(|reason| reason.is_fault()).count() {
        let faults = skipped.iter().filter(|image| image.reason.is_fault());
        let row = |s: &Skipped| vec![shown(&s.uri), s.reason.text().to_owned()];
        text += &table(&["cannot be used", "because"], faults.take(rows).map(row));
        if n_faults > rows {
            text += &format!("and {} more (--rows shows more, --json all)\n", n_faults - rows);
        }
    }
    if selected.is_empty() {
        text += &format!("\n{}\n", hint(listing));
    }
    text
}

/// A line for each fault of a listing: what cannot be used, how often, and the first names.
pub fn faults(listing: &Listing) -> Vec<String> {
    let reasons = by_reason(&listing.skipped);
    let line = |(reason, (n, _)): (&Reason, &(usize, &str))| {
        let of_reason = listing.skipped.iter().filter(|image| image.reason == *reason);
        let names: Vec<String> = of_reason.take(NAMED).map(|image| shown(&image.uri)).collect();
        let more = match n.saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more (`neurosieve cohort --json` names all)"),
        };
        format!("left out: {n} ({}): {}{more}", reason.text(), names.join(", "))
    };
    reasons.iter().filter(|(reason, _)| reason.is_fault()).map(line).collect()
}

/// The error of a run for a listing without a selected scan: what was found, and what to do.
pub fn nothing_selected(listing: &Listing) -> Error {
    let Listing { address, skipped, n_other, others, .. } = listing;
    let mut said = format!("nothing is selected in {address}");
    let kinds: Vec<String> = by_suffix(listing)
        .into_iter()
        .map(|(kind, (_, images))| format!("{images} {}", if kind == NO_SUFFIX { "without suffix" } else { kind }))
        .collect();
    if !kinds.is_empty() {
        said += &format!("\n  images by suffix: {}", kinds.join(", "));
    }
    for (reason, (n, example)) in by_reason(skipped) {
        let setting = reason.setting().map_or(String::new(), |(_, key)| format!(" (cohort.select.{key})"));
        said += &format!("\n  {n} left out: {}{setting}, for example {}", reason.text(), shown(example));
    }
    if *n_other > 0 {
        let mut kinds: Vec<(&String, &usize)> = others.iter().collect();
        kinds.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let name = |extension: &str| match extension {
            "" => "without extension".to_owned(),
            extension => format!(".{extension}"),
        };
        let kinds: Vec<String> = kinds.iter().take(EXTENSIONS).map(|(kind, n)| format!("{n} {}", name(kind))).collect();
        said += &format!("\n  {n_other} not NIfTI images: {}", kinds.join(", "));
    }
    Error::NothingSelected(format!("{said}\n{}", hint(listing)))
}

/// What to do where nothing is selected.
fn hint(listing: &Listing) -> String {
    let Listing { skipped, n_other, n_hidden, others, .. } = listing;
    let is_dicom = ["dcm", "ima", "dicom"].iter().any(|extension| others.contains_key(*extension));
    match (skipped.is_empty(), n_other + n_hidden) {
        (false, _) if skipped.iter().all(|image| image.reason == Reason::Absent) => {
            "Every image is a link to a file that is not here. Fetch them with `datalad get`.".into()
        }
        (false, _) => "Nothing is selected: the reasons above say which option to change.".into(),
        (true, 0) => "Nothing is here: check the spelling of the path below the bucket or folder.".into(),
        (true, _) if is_dicom => {
            "There are DICOM files and no NIfTI image here. Convert them with dcm2niix first.".into()
        }
        (true, _) => "There is no NIfTI image here. Convert DICOM with dcm2niix first. In a DataLad dataset run \
                      `datalad get`, which also installs datasets inside it."
            .into(),
    }
}

/// A name that is safe to print.
fn shown(name: &str) -> String {
    printable(name.as_bytes())
}

/// The listing as JSON: the totals of [`describe`], every scan and every image that is not selected.
pub fn to_json(listing: &Listing) -> Value {
    let Listing { address, cohort, bids, selected, skipped, n_other, n_hidden, .. } = listing;
    let scan = |s: &ScanEntry| {
        json!({
            "scan_id": s.scan_id, "uri": s.uri, "content_id": s.content_id, "size_bytes": s.size_bytes,
            "etag": s.etag, "last_modified": s.last_modified.to_rfc3339(), "cohort": s.cohort,
            "subject": s.subject, "session": s.session, "acquisition": s.acquisition, "run": s.run,
            "suffix": s.suffix, "sidecar_uri": s.sidecar(), "voxels_uri": s.voxels_uri, "voxels_etag": s.voxels_etag,
        })
    };
    let left = |s: &Skipped| json!({ "uri": s.uri, "suffix": s.suffix, "reason": s.reason });
    json!({
        "address": address, "cohort": cohort, "bids": bids,
        "n_selected": selected.len(), "n_subjects": n_subjects(selected), "n_sessions": n_sessions(selected),
        "size_bytes": total_bytes(selected), "n_skipped": skipped.len(), "n_other": n_other, "n_hidden": n_hidden,
        "selected": selected.iter().map(scan).collect::<Vec<_>>(),
        "skipped": skipped.iter().map(left).collect::<Vec<_>>(),
    })
}

fn n_subjects(scans: &[ScanEntry]) -> usize {
    scans.iter().filter_map(|s| s.subject.as_ref()).collect::<BTreeSet<_>>().len()
}

/// Sessions are counted per subject: `ses-1` of two subjects makes two.
fn n_sessions(scans: &[ScanEntry]) -> usize {
    scans.iter().filter_map(|s| Some((&s.subject, s.session.as_ref()?))).collect::<BTreeSet<_>>().len()
}

fn total_bytes(scans: &[ScanEntry]) -> i64 {
    scans.iter().map(|s| s.size_bytes).fold(0, i64::saturating_add)
}

/// By suffix: the number of selected images and of all images.
fn by_suffix(listing: &Listing) -> BTreeMap<&str, (usize, usize)> {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for scan in &listing.selected {
        let kind = kinds.entry(scan.suffix.as_deref().unwrap_or(NO_SUFFIX)).or_default();
        *kind = (kind.0 + 1, kind.1 + 1);
    }
    for image in listing.skipped.iter().filter(|image| image.reason.is_about_image()) {
        kinds.entry(image.suffix.as_deref().unwrap_or(NO_SUFFIX)).or_default().1 += 1;
    }
    kinds
}

/// By reason: the number of skipped images and the first of them.
fn by_reason(skipped: &[Skipped]) -> BTreeMap<Reason, (usize, &str)> {
    let mut reasons = BTreeMap::new();
    for Skipped { uri, reason, .. } in skipped {
        reasons.entry(*reason).or_insert((0, uri.as_str())).0 += 1;
    }
    reasons
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Bytes in decimal units, as cloud stores bill them.
fn bytes(n: i64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1e3;
    let mut unit = 0;
    // 999.95 would round to "1000.0".
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Aligned columns after a blank line, with underlined headings.
fn table(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = headings.iter().map(|&h| h.to_owned()).collect::<Vec<_>>();
    let rule = headings.iter().map(|h| "-".repeat(h.chars().count())).collect();
    let rows: Vec<Vec<String>> = [head, rule].into_iter().chain(rows).collect();
    let widths: Vec<usize> =
        (0..headings.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::from("\n");
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:<w$}")).collect();
        text += line.join("  ").trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_a_bill() {
        for (n, said) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")] {
            assert_eq!(bytes(n), said);
        }
        assert_eq!(bytes(2_500_000_000_000), "2.5 TB");
    }
}
