//! Preparing a run: which scans of the cohort are still to be screened.
//!
//! ```text
//! list cohort ─► take the shard ─► skip scans done with this recipe (anti-join) ─► limit ─► pending scans
//! ```
//! Wrong settings, a missing device or bundle, and an unreachable cohort or tables end a run here, before a scan is read.

use std::collections::HashMap;
use std::sync::Arc;

use super::budget::Budget;
use super::config::RunConfig;
use super::pipeline::Pipeline;
use super::progress::Progress;
use super::station::device_threads;
use crate::cohort::{self, Listing, ScanEntry};
use crate::error::{Error, Result};
use crate::machine::cores;
use crate::model::{Bundle, device};
use crate::preprocess::PreprocessConfig;
use crate::score::recipe_id;
use crate::store::{self, Location};
use crate::tables::{Done, Tables};

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
    /// Scans to screen, in the order of the listing.
    pub(super) scans: Vec<ScanEntry>,
    /// Failed attempts so far of those that have failed before, by scan id.
    pub(super) attempts: HashMap<String, i32>,
    /// Scans with a result.
    pub(super) already_done: usize,
    /// Scans whose content was found unusable.
    pub(super) quarantined: usize,
}

impl Pending {
    fn new(selected: &[ScanEntry], done: &Done, config: &RunConfig) -> Self {
        let mut pending = Self::default();
        for entry in selected {
            let key = (entry.scan_id.clone(), entry.content_id.clone());
            if done.finished.contains(&key) {
                pending.already_done += 1;
                continue;
            }
            match done.failed.get(&key) {
                Some((_, true)) if !config.retry => {
                    pending.quarantined += 1;
                    continue;
                }
                Some(&(attempts, _)) => drop(pending.attempts.insert(entry.scan_id.clone(), attempts)),
                None => {}
            }
            pending.scans.push(entry.clone());
        }
        if config.limit > 0 {
            pending.scans.truncate(config.limit);
        }
        pending
    }
}

impl Run {
    /// Lists the cohort, opens the tables and skips scans that are done with this recipe.
    ///
    /// # Errors
    /// [`Error::Config`] where the pipeline names no cohort or no tables, or a setting is wrong; [`Error::Device`] where the
    /// device is not there; storage, table and model errors.
    pub async fn prepare(pipeline: Pipeline) -> Result<Self> {
        for (url, what, option) in
            [(&pipeline.cohort.url, "cohort", "--cohort"), (&pipeline.tables.url, "place for the tables", "--tables")]
        {
            if url.is_empty() {
                return Err(Error::Config(format!(
                    "the pipeline names no {what}: add `{option} s3://bucket/folder` or `{option} FOLDER`"
                )));
            }
        }
        let (cohort, tables) = (pipeline.cohort.url.clone(), pipeline.tables.url.clone());
        Self::prepare_with(pipeline, || store::open(&cohort), || store::open_or_create(&tables)).await
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
        // The device comes first: libtorch looks for CUDA once, and a missing device must not leave new tables behind.
        let device = device::resolve(pipeline.run.device)?;
        let budget = Arc::new(Budget::new(pipeline.run.memory_mib, device_threads(device))?);
        let bundle = Arc::new(Bundle::open(&pipeline.model.bundle)?);
        let preprocess = pipeline.preprocess.clone().unwrap_or_else(|| bundle.info.preprocess.clone());
        let recipe_id = recipe_id(&preprocess, &pipeline.score, &bundle);

        let cohort = open_cohort()?;
        let mut listing = cohort::list(&cohort, pipeline.cohort.name_at(&cohort), &pipeline.cohort.select).await?;
        let selected = listing.selected.len();
        if let Some(shard) = pipeline.run.shard {
            listing.selected.retain(|entry| shard.holds(&entry.scan_id));
        }
        let in_other_shards = selected - listing.selected.len();

        let tables = Tables::open_or_create_at(open_tables()?).await?;
        let pending = Pending::new(&listing.selected, &tables.done(&recipe_id).await?, &pipeline.run);
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

    /// Scans whose content an earlier run found unusable; they are tried again when it changes.
    pub fn quarantined(&self) -> usize {
        self.pending.quarantined
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

    #[test]
    fn only_scans_without_a_result_are_pending() {
        let key = |scan_id: &str, content_id: &str| (scan_id.to_owned(), content_id.to_owned());
        let done = Done {
            finished: [key("done", "v1"), key("replaced", "v0")].into(),
            failed: [(key("damaged", "v1"), (1, true)), (key("unlucky", "v1"), (3, false))].into(),
        };
        let selected = ["damaged", "done", "new", "replaced", "unlucky"].map(entry);
        let ids = |pending: &Pending| pending.scans.iter().map(|entry| entry.scan_id.clone()).collect::<Vec<_>>();

        let pending = Pending::new(&selected, &done, &RunConfig::default());
        assert_eq!(ids(&pending), ["new", "replaced", "unlucky"]);
        assert_eq!((pending.already_done, pending.quarantined), (1, 1));
        assert_eq!(pending.attempts, [("unlucky".to_owned(), 3)].into());

        let pending = Pending::new(&selected, &done, &RunConfig { retry: true, limit: 2, ..RunConfig::default() });
        assert_eq!((ids(&pending), pending.quarantined), (vec!["damaged".to_owned(), "new".to_owned()], 0));
        assert_eq!(pending.attempts["damaged"], 1);
    }
}
