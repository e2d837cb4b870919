//! Which of the selected scans a run screens, and in which order.
//!
//! A scan that has failed and may succeed is tried again by the next run, and after each further failure twice as many runs
//! later; after [`MOST_ATTEMPTS`] it is quarantined. New scans come first, so scans that always fail take no night from them.

use super::config::RunConfig;
use super::journal::Journals;
use crate::cohort::ScanEntry;
use crate::tables::{Done, Outcome};

/// Failed attempts at one content after which no run tries it again by itself.
const MOST_ATTEMPTS: i32 = 8;

/// The selected scans of a run by what earlier runs did with the same content and recipe.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Scans to screen, with their failed attempts: new ones in the order of the listing, then those that have failed, fewer
    /// attempts first, and last those that may have ended a process.
    pub(super) scans: Vec<ScanEntry>,
    /// Scans with a result.
    pub(super) already_done: usize,
    /// Scans whose content was found unusable, or failed too often.
    pub(super) quarantined: usize,
    /// Scans that have failed repeatedly and are tried again by a later run.
    pub(super) waiting: usize,
    /// Scans with a result and quarantined scans whose current outcome belongs to another content. The outcome of their present
    /// content becomes the current one.
    pub(super) reverted: Vec<ScanEntry>,
}

impl Pending {
    /// Plans the scans of `selected`. `memory_bytes` is the run's memory for scans.
    pub(super) fn new(
        selected: &[ScanEntry],
        done: &Done,
        journals: &Journals,
        config: &RunConfig,
        memory_bytes: u64,
    ) -> Self {
        let mut pending = Self::default();
        let scan_bytes = config.max_scan_bytes();
        let is_unusable =
            |outcome: &Outcome| outcome.is_unusable(scan_bytes, memory_bytes) || outcome.attempts >= MOST_ATTEMPTS;
        for entry in selected {
            match done.outcome(&entry.scan_id, &entry.content_id) {
                Some(outcome) if outcome.finished => pending.already_done += 1,
                Some(outcome) if !config.retry && is_unusable(outcome) => pending.quarantined += 1,
                Some(outcome) if !config.retry && done.runs_since(outcome) < runs_between(outcome.attempts) => {
                    pending.waiting += 1;
                }
                tried => {
                    let attempts = tried.map_or(0, |outcome| outcome.attempts);
                    let apart = journals.name(entry) || tried.is_some_and(|outcome| outcome.crashed);
                    pending.scans.push(ScanEntry { attempts, apart, ..entry.clone() });
                    continue;
                }
            }
            if !done.is_current(&entry.scan_id, &entry.content_id) {
                pending.reverted.push(entry.clone());
            }
        }
        pending.scans.sort_by_key(|entry| (entry.apart, entry.attempts));
        if config.limit > 0 {
            pending.scans.truncate(config.limit);
        }
        pending
    }
}

/// How many runs leave out a scan after its last failed attempt: 0, 1, 3, 7 and so on.
fn runs_between(attempts: i32) -> u64 {
    (1 << (attempts - 1).clamp(0, MOST_ATTEMPTS)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 30;

    fn planned(selected: &[ScanEntry], done: &Done, config: &RunConfig) -> Pending {
        Pending::new(selected, done, &Journals::default(), config, MEMORY)
    }

    fn ids(pending: &Pending) -> Vec<String> {
        pending.scans.iter().map(|entry| entry.scan_id.clone()).collect()
    }

    #[test]
    fn only_scans_without_a_result_are_pending() {
        let mut done = Done::default();
        done.finish(["done", "v1"], Some(1), 0);
        done.finish(["replaced", "v0"], Some(1), 0);
        done.fail(["damaged", "v1"], Some(1), 0, (1, true));
        done.fail(["unlucky", "v1"], Some(1), 0, (1, false));
        let selected = ["damaged", "done", "new", "replaced", "unlucky"].map(ScanEntry::sample);

        let pending = planned(&selected, &done, &RunConfig::default());
        assert_eq!(ids(&pending), ["new", "replaced", "unlucky"]);
        assert_eq!((pending.already_done, pending.quarantined, pending.waiting), (1, 1, 0));
        let attempts: Vec<i32> = pending.scans.iter().map(|scan| scan.attempts).collect();
        assert_eq!(attempts, [0, 0, 1]);

        let pending = planned(&selected, &done, &RunConfig { retry: true, limit: 2, ..RunConfig::default() });
        assert_eq!((ids(&pending), pending.quarantined), (vec!["new".to_owned(), "replaced".to_owned()], 0));
        let pending = planned(&selected, &done, &RunConfig { retry: true, ..RunConfig::default() });
        assert_eq!(ids(&pending), ["new", "replaced", "damaged", "unlucky"]);
        assert_eq!(pending.scans[2].attempts, 1);
    }

    #[test]
    fn scans_that_always_fail_take_no_run_from_new_ones_and_are_tried_less_and_less() {
        let new_after = |attempts: i32, runs_later: i64| {
            let mut done = Done::default();
            done.fail(["a", "v1"], Some(5), 0, (attempts, false));
            done.ran((1..=5 + runs_later).collect());
            let pending =
                planned(&["a", "b"].map(ScanEntry::sample), &done, &RunConfig { limit: 1, ..RunConfig::default() });
            assert_eq!(ids(&pending), ["b"], "the new scan comes first");
            let pending = planned(&["a", "b"].map(ScanEntry::sample), &done, &RunConfig::default());
            assert_eq!(pending.scans.len() + pending.waiting + pending.quarantined, 2);
            (pending.scans.len() == 2, pending.waiting, pending.quarantined)
        };
        let (tried, waits, given_up) = ((true, 0, 0), (false, 1, 0), (false, 0, 1));
        assert_eq!([new_after(1, 0), new_after(2, 0), new_after(2, 1)], [tried, waits, tried]);
        assert_eq!(
            [new_after(4, 6), new_after(4, 7), new_after(7, 62), new_after(7, 63)],
            [waits, tried, waits, tried]
        );
        assert_eq!(new_after(MOST_ATTEMPTS, 10_000), given_up);
    }

    #[test]
    fn a_scan_above_a_limit_is_tried_again_under_a_higher_one() {
        let mut done = Done::default();
        done.fail(["large", "v1"], Some(1), 0, (1, false)).needs_scan_bytes = Some((5 << 20) + 1);
        done.fail(["hungry", "v1"], Some(1), 0, (1, false)).needs_memory_bytes = Some(MEMORY as i64 + 1);
        let selected = ["hungry", "large"].map(ScanEntry::sample);
        let under = |max_scan_mib, memory| {
            let config = RunConfig { max_scan_mib, ..RunConfig::default() };
            ids(&Pending::new(&selected, &done, &Journals::default(), &config, memory))
        };
        assert_eq!(under(5, MEMORY), [""; 0]);
        assert_eq!((under(6, MEMORY), under(5, MEMORY + 1)), (vec!["large".to_owned()], vec!["hungry".to_owned()]));
    }

    #[test]
    fn a_content_that_comes_back_brings_its_outcome_back() {
        let mut done = Done::default();
        // Each scan had content v1, then v2, and has v1 again.
        done.finish(["good", "v1"], Some(1), 0);
        done.finish(["good", "v2"], Some(2), 0);
        done.finish(["mended", "v1"], Some(1), 0);
        done.fail(["mended", "v2"], Some(2), 0, (1, true));
        done.fail(["broken", "v1"], Some(1), 0, (1, true));
        done.finish(["broken", "v2"], Some(2), 0);
        done.fail(["retried", "v1"], Some(1), 0, (1, false));
        done.finish(["retried", "v1"], Some(2), 0);
        let selected = ["broken", "good", "mended", "retried"].map(ScanEntry::sample);
        let pending = planned(&selected, &done, &RunConfig::default());
        let reverted: Vec<&str> = pending.reverted.iter().map(|entry| entry.scan_id.as_str()).collect();
        assert_eq!(reverted, ["broken", "good", "mended"]);
        assert_eq!((pending.scans.len(), pending.already_done, pending.quarantined), (0, 3, 1));
        // With --retry the failure is tried again, and gives a new outcome.
        let pending = planned(&selected, &done, &RunConfig { retry: true, ..RunConfig::default() });
        assert_eq!((pending.scans.len(), pending.reverted.len()), (1, 2));
    }
}
