//! Preparing a run: which scans of the cohort are still to be screened.
//!
//! ```text
//! list cohort ─► take the shard ─► skip scans done with this recipe (anti-join) ─► new scans first ─► limit ─► pending scans
//! ```
//! A scan that has failed and may succeed is tried again by the next run, and after each further failure twice as many runs
//! later; after [`MOST_ATTEMPTS`] it is quarantined. So scans that always fail take no night from new ones.
//!
//! Wrong settings, a missing device or bundle, and an unreachable cohort or tables end a run here, before a scan is read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::budget::Budget;
use super::config::RunConfig;
use super::journal::Journals;
use super::pipeline::Pipeline;
use super::progress::Progress;
use super::station::device_threads;
use crate::cohort::{self, Listing, ScanEntry, report};
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::machine::cores;
use crate::model::{Bundle, device};
use crate::preprocess::PreprocessConfig;
use crate::score::recipe_id;
use crate::store::{self, Location, said_if_slow};
use crate::tables::{Done, Outcome, Tables};

/// Failed attempts at one content after which no run tries it again by itself.
const MOST_ATTEMPTS: i32 = 8;

/// A run that knows which scans are pending. [`Run::execute`] screens them.
#[derive(Debug)]
pub struct Run {
    pub(super) pipeline: Pipeline,
    pub(super) cohort: Location,
    pub(super) tables: Tables,
    pub(super) device: tch::Device,
    pub(super) budget: Arc<Budget>,
    pub(super) bundle: Arc<Bundle>,
    pub(super) preprocess: PreprocessConfig,
    pub(super) recipe_id: String,
    pub(super) listing: Listing,
    pub(super) pending: Pending,
    pub(super) in_flight: usize,
    pub(super) progress: Arc<Progress>,
    in_other_shards: usize,
}

/// The selected scans of a run by what earlier runs did with the same content and recipe.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Scans to screen: new ones in the order of the listing, then those that have failed, fewer attempts first, and last those
    /// that may have ended a process.
    pub(super) scans: Vec<ScanEntry>,
    /// Those that may have ended a process, by scan id.
    pub(super) apart: BTreeSet<String>,
    /// Failed attempts so far of those that have failed before, by scan id.
    pub(super) attempts: HashMap<String, i32>,
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
    fn new(selected: &[ScanEntry], done: &Done, journals: &Journals, config: &RunConfig, memory_bytes: u64) -> Self {
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
                    let attempts = tried.map(|outcome| (entry.scan_id.clone(), outcome.attempts));
                    pending.attempts.extend(attempts);
                    if journals.name(entry) || tried.is_some_and(|outcome| outcome.crashed) {
                        pending.apart.insert(entry.scan_id.clone());
                    }
                    pending.scans.push(entry.clone());
                    continue;
                }
            }
            if !done.is_current(&entry.scan_id, &entry.content_id) {
                pending.reverted.push(entry.clone());
            }
        }
        let (attempts, apart) = (&pending.attempts, &pending.apart);
        let order = |entry: &ScanEntry| {
            (apart.contains(&entry.scan_id), attempts.get(&entry.scan_id).copied().unwrap_or_default())
        };
        pending.scans.sort_by_key(order);
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

impl Run {
    /// Refuses what [`Run::prepare`] would refuse before it lists the cohort: missing or unusable addresses, a missing device, too
    /// little memory, an unusable bundle. Writes nothing.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub fn check(pipeline: &Pipeline) -> Result<()> {
        refuse_without_addresses(pipeline)?;
        Resources::for_run(pipeline)?;
        refuse_nested(&store::open(&pipeline.cohort.url)?, &store::open_new(&pipeline.tables.url)?)
    }

    /// Lists the cohort, opens the tables and skips scans that are done with this recipe.
    ///
    /// # Errors
    /// [`Error::Config`] where the pipeline names no cohort or no tables, or a setting is wrong;
    /// [`Error::NothingSelected`] where no scan of the cohort is selected; [`Error::Device`] where the device is not there;
    /// storage, table and model errors.
    pub async fn prepare(pipeline: Pipeline) -> Result<Self> {
        refuse_without_addresses(&pipeline)?;
        let (cohort, tables) = (pipeline.cohort.url.clone(), pipeline.tables.url.clone());
        Self::prepare_with(pipeline, || store::open(&cohort), || store::open_new(&tables)).await
    }

    /// As [`Run::prepare`], with stores that are already built.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub async fn prepare_at(pipeline: Pipeline, cohort: Location, tables: Location) -> Result<Self> {
        Self::prepare_with(pipeline, || Ok(cohort), || Ok(tables)).await
    }

    async fn prepare_with(
        pipeline: Pipeline,
        open_cohort: impl FnOnce() -> Result<Location>,
        open_tables: impl FnOnce() -> Result<Location>,
    ) -> Result<Self> {
        let Resources { device, budget, bundle } = Resources::for_run(&pipeline)?;
        let preprocess = pipeline.preprocess.clone().unwrap_or_else(|| bundle.info.preprocess.clone());
        let recipe_id = recipe_id(&preprocess, &pipeline.score, &bundle);

        let cohort = open_cohort()?;
        let tables = open_tables()?;
        refuse_nested(&cohort, &tables)?;
        let listing = cohort::list(&cohort, pipeline.cohort.name_at(&cohort), &pipeline.cohort.select);
        let mut listing = said_if_slow("listing the cohort", listing).await?;
        if !pipeline.model.any_contrast {
            listing.leave_out_other_contrasts(&bundle.info.modality);
        }
        if listing.selected.is_empty() && !pipeline.run.allow_empty {
            return Err(report::nothing_selected(&listing));
        }
        let tables = said_if_slow("opening the tables", Tables::open_or_create_at(tables)).await?;
        refuse_another_cohort(&tables, &cohort, &listing.cohort, pipeline.cohort.moves).await?;
        let done = tables.done(&recipe_id, &listing.cohort).await?;
        let journals = Journals::of_others(tables.location(), &recipe_id).await?;
        // Scans of other shards count, because a journal names those of its run.
        let is_open = |entry: &&ScanEntry| done.outcome(&entry.scan_id, &entry.content_id).is_none();
        journals.delete_unless_they_name(tables.location(), listing.selected.iter().filter(is_open)).await;

        let selected = listing.selected.len();
        if let Some(shard) = pipeline.run.shard {
            listing.selected.retain(|entry| shard.holds(&entry.scan_id));
        }
        let in_other_shards = selected - listing.selected.len();
        let pending = Pending::new(&listing.selected, &done, &journals, &pipeline.run, budget.scans_bytes());
        let in_flight = in_flight(&pipeline.run);
        let progress = Arc::new(Progress::new(in_flight, cores(), device_threads(device)));
        Ok(Self {
            pipeline,
            cohort,
            tables,
            device,
            budget,
            bundle,
            preprocess,
            recipe_id,
            listing,
            pending,
            in_flight,
            progress,
            in_other_shards,
        })
    }

    /// The listing of the cohort: selected scans, and skipped images with the reason.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Scans that [`Run::execute`] will screen.
    pub fn pending(&self) -> usize {
        self.pending.scans.len()
    }

    /// Scans that have a result with the same content and recipe.
    pub fn already_done(&self) -> usize {
        self.pending.already_done
    }

    /// Scans whose content an earlier run found unusable, or that failed too often; they are tried again when it changes.
    pub fn quarantined(&self) -> usize {
        self.pending.quarantined
    }

    /// Scans that have failed repeatedly and are tried again by a later run.
    pub fn waiting(&self) -> usize {
        self.pending.waiting
    }

    /// Selected scans that belong to other shards of the cohort.
    pub fn in_other_shards(&self) -> usize {
        self.in_other_shards
    }

    /// Hash of everything that decides the numbers.
    pub fn recipe_id(&self) -> &str {
        &self.recipe_id
    }

    /// Name and version of the bundle.
    pub fn bundle(&self) -> String {
        self.bundle.label()
    }

    /// Counters that change while [`Run::execute`] works.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

/// What a run needs of this machine.
struct Resources {
    device: tch::Device,
    budget: Arc<Budget>,
    bundle: Arc<Bundle>,
}

impl Resources {
    /// Checks the settings, and opens what a run needs of the machine.
    fn for_run(pipeline: &Pipeline) -> Result<Self> {
        pipeline.validate()?;
        // The device comes first: libtorch looks for CUDA once, and a missing device must not leave new tables behind.
        let device = device::resolve(pipeline.run.device)?;
        let budget = Arc::new(Budget::new(pipeline.run.memory_mib, device_threads(device))?);
        Ok(Self { device, budget, bundle: Arc::new(Bundle::open(&pipeline.model.bundle)?) })
    }
}

fn refuse_without_addresses(pipeline: &Pipeline) -> Result<()> {
    for (url, what, option) in
        [(&pipeline.cohort.url, "cohort", "--cohort"), (&pipeline.tables.url, "place for the tables", "--tables")]
    {
        if url.is_empty() {
            return Err(Error::Config(format!(
                "the pipeline names no {what}: add `{option} s3://bucket/folder` or `{option} FOLDER`"
            )));
        }
    }
    Ok(())
}

/// Refuses a cohort among the tables, and tables among the scans: each would take files of the other for its own. Tables
/// below the `derivatives/` of a BIDS data set are no part of it.
fn refuse_nested(cohort: &Location, tables: &Location) -> Result<()> {
    let below = cohort.relative(&tables.root).is_some_and(|path| path.split('/').any(|part| part == "derivatives"));
    if tables.contains(&cohort.url) || cohort.contains(&tables.url) && !below {
        return Err(Error::Config(format!(
            "the cohort at {cohort} and the tables at {tables} are inside each other: put the tables beside the cohort, or \
             into its derivatives/ folder"
        )));
    }
    Ok(())
}

/// Refuses a cohort whose name the tables know from another address: scans of two cohorts would share their ids, and one
/// would be taken for a new content of the other.
async fn refuse_another_cohort(tables: &Tables, cohort: &Location, name: &str, moves: bool) -> Result<()> {
    let last = tables.last_root(name).await?;
    if moves || last.is_none_or(|last| last == cohort.root_id()) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "these tables hold a cohort named {name} from another address, and its scans would be mixed up with those at \
         {cohort}. If this is another cohort, name it: `--set cohort.name=NAME`. If it is the same one at a new address: \
         `--set cohort.moves=true`"
    )))
}

fn in_flight(config: &RunConfig) -> usize {
    match config.scans_in_flight {
        // Per core one scan in the networks and one in preprocessing, and two that are fetched meanwhile.
        0 => 2 * cores() + 2,
        given => given,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    fn entry(scan_id: &str) -> ScanEntry {
        ScanEntry {
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
            sidecar_uri: None,
            voxels_uri: None,
            voxels_etag: None,
        }
    }

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
        done.fail(["unlucky", "v1"], Some(1), 0, (3, false));
        let selected = ["damaged", "done", "new", "replaced", "unlucky"].map(entry);

        let pending = planned(&selected, &done, &RunConfig::default());
        assert_eq!(ids(&pending), ["new", "replaced", "unlucky"]);
        assert_eq!((pending.already_done, pending.quarantined, pending.waiting), (1, 1, 0));
        assert_eq!(pending.attempts, [("unlucky".to_owned(), 3)].into());

        let pending = planned(&selected, &done, &RunConfig { retry: true, limit: 2, ..RunConfig::default() });
        assert_eq!((ids(&pending), pending.quarantined), (vec!["new".to_owned(), "replaced".to_owned()], 0));
        let pending = planned(&selected, &done, &RunConfig { retry: true, ..RunConfig::default() });
        assert_eq!(ids(&pending), ["new", "replaced", "damaged", "unlucky"]);
        assert_eq!(pending.attempts["damaged"], 1);
    }

    #[test]
    fn scans_that_always_fail_take_no_run_from_new_ones_and_are_tried_less_and_less() {
        let new_after = |attempts: i32, runs_later: i64| {
            let mut done = Done::default();
            done.fail(["a", "v1"], Some(5), 0, (attempts, false));
            done.ran((1..=5 + runs_later).collect());
            let pending = planned(&["a", "b"].map(entry), &done, &RunConfig { limit: 1, ..RunConfig::default() });
            assert_eq!(ids(&pending), ["b"], "the new scan comes first");
            let pending = planned(&["a", "b"].map(entry), &done, &RunConfig::default());
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
        let selected = ["hungry", "large"].map(entry);
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
        let selected = ["broken", "good", "mended", "retried"].map(entry);
        let pending = planned(&selected, &done, &RunConfig::default());
        let reverted: Vec<&str> = pending.reverted.iter().map(|entry| entry.scan_id.as_str()).collect();
        assert_eq!(reverted, ["broken", "good", "mended"]);
        assert_eq!((pending.scans.len(), pending.already_done, pending.quarantined), (0, 3, 1));
        // With --retry the failure is tried again, and gives a new outcome.
        let pending = planned(&selected, &done, &RunConfig { retry: true, ..RunConfig::default() });
        assert_eq!((pending.scans.len(), pending.reverted.len()), (1, 2));
    }
}
