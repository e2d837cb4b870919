//! A listing as text for people ([`describe`]) or as JSON for programs ([`to_json`]).
//!
//! Takes a [`Listing`]; gives its totals, its scans, and the skipped images by reason. Opens nothing and refuses nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::listing::{Listing, Skipped};
use super::manifest::ScanEntry;
use super::select::Reason;

/// Shown as the suffix of names that follow no BIDS rule.
const NO_SUFFIX: &str = "(none)";

/// The listing as text: totals, kinds of image, the first `rows` scans, and each reason with an example.
pub fn describe(listing: &Listing, rows: usize) -> String {
    let Listing { address, cohort, bids, selected, skipped, n_other, n_hidden } = listing;
    let tree = if *bids { "BIDS" } else { "not BIDS: every image is a scan" };
    let mut totals = vec![format!("{} selected", counted(selected.len(), "scan"))];
    for (n, what) in [(n_subjects(selected), "subject"), (n_sessions(selected), "session")] {
        if n > 0 {
            totals.push(counted(n, what));
        }
    }
    totals.push(bytes(total_bytes(selected)));
    let mut text = format!("cohort {cohort} at {address} ({tree})\n{}\n", totals.join(", "));

    let kinds = by_suffix(listing);
    if kinds.keys().any(|kind| *kind != NO_SUFFIX) {
        let row = |(kind, (taken, images)): (&str, (usize, usize))| {
            vec![kind.to_owned(), taken.to_string(), images.to_string()]
        };
        text += &table(&["suffix", "selected", "images"], kinds.into_iter().map(row));
    }
    if !selected.is_empty() {
        let row = |s: &ScanEntry| vec![s.scan_id.clone(), bytes(s.size_bytes), s.uri.clone()];
        text += &table(&["scan_id", "size", "uri"], selected.iter().take(rows).map(row));
        if selected.len() > rows {
            text += &format!("and {} more (--rows shows more, --json all)\n", selected.len() - rows);
        }
    }
    let mut left: Vec<Vec<String>> = by_reason(skipped)
        .into_iter()
        .map(|(reason, (n, example))| vec![reason.to_string(), n.to_string(), example.to_owned()])
        .collect();
    for (n, what) in [(n_other, "not a NIfTI image"), (n_hidden, "hidden (name starts with a dot)")] {
        if *n > 0 {
            left.push(vec![what.to_owned(), n.to_string(), String::new()]);
        }
    }
    if !left.is_empty() {
        text += &table(&["not selected", "files", "for example"], left.into_iter());
    }
    if selected.is_empty() {
        text += "\n";
        text += match (skipped.is_empty(), n_other + n_hidden) {
            (false, _) => "Nothing is selected: the reasons above say which option to change.\n",
            (true, 0) => "Nothing is here: check the spelling of the path below the bucket or folder.\n",
            (true, _) => {
                "There is no NIfTI image here. Convert DICOM with dcm2niix first. Run `datalad get` in a DataLad \
                 dataset, because links to absent files are not listed.\n"
            }
        };
    }
    text
}

/// The listing as JSON: the totals of [`describe`], every scan and every image that is not selected.
pub fn to_json(listing: &Listing) -> Value {
    let Listing { address, cohort, bids, selected, skipped, n_other, n_hidden } = listing;
    let scan = |s: &ScanEntry| {
        json!({
            "scan_id": s.scan_id, "uri": s.uri, "content_id": s.content_id, "size_bytes": s.size_bytes,
            "etag": s.etag, "last_modified": s.last_modified.to_rfc3339(), "cohort": s.cohort,
            "subject": s.subject, "session": s.session, "acquisition": s.acquisition, "run": s.run,
            "suffix": s.suffix, "sidecar_uri": s.sidecar_uri, "voxels_uri": s.voxels_uri, "voxels_etag": s.voxels_etag,
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
    for image in &listing.skipped {
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
