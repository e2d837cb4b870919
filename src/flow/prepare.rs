//! Preparing a run: which scans of the cohort are still to be screened.
//!
//! ```text
//! list cohort ─► take the shard ─► skip scans done with this recipe (anti-join) ─► new scans first ─► limit ─► pending scans
//! ```
//! Wrong settings, a missing device or bundle, and an unreachable cohort or tables end a run here, before a scan is read.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::warn;

use super::audit;
use super::engine::Engine;
use super::journal::Journals;
use super::local::Local;
use super::pending::Pending;
use super::pipeline::Pipeline;
use super::progress::Progress;
use crate::cohort::{CohortConfig, Listing, Metadata, ScanEntry, report};
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::model::Bundle;
use crate::preprocess::PreprocessConfig;
use crate::score::recipe_id;
use crate::store::{self, Location, with_patience};
use crate::tables::Tables;

/// A run that knows which scans are pending. [`Run::execute`] screens them.
#[derive(Debug)]
pub struct Run {
    pub(super) pipeline: Pipeline,
    pub(super) cohort: Location,
    /// Identifies the cohort's address and the key of its pseudonyms in the table `runs`.
    pub(super) cohort_root: String,
    pub(super) tables: Tables,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) bundle: Arc<Bundle>,
    pub(super) preprocess: PreprocessConfig,
    pub(super) recipe_id: String,
    pub(super) listing: Listing,
    pub(super) pending: Pending,
    pub(super) progress: Arc<Progress>,
    /// Metadata of the subjects, from `participants.tsv`.
    pub(super) metadata: Option<Metadata>,
    in_other_shards: usize,
}

impl Run {
    /// Refuses what [`Run::prepare`] would refuse before it lists the cohort: missing or unusable addresses, a missing device, too
    /// little memory, an unusable bundle. Writes nothing.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub fn check(pipeline: &Pipeline, engine: Option<Arc<dyn Engine>>) -> Result<()> {
        refuse_without_addresses(pipeline)?;
        Resources::for_run(pipeline, engine)?;
        refuse_nested(&store::open(&pipeline.cohort.url)?, &store::open_new(&pipeline.tables.url)?)
    }

    /// Lists the cohort, opens the tables and skips scans that are done with this recipe. A failure becomes a row in `runs`,
    /// where the tables exist.
    ///
    /// # Errors
    /// [`Error::Config`] where the pipeline names no cohort or no tables, or a setting is wrong;
    /// [`Error::NothingSelected`] where no scan of the cohort is selected; [`Error::Device`] where the device is not there;
    /// storage, table and model errors.
    pub async fn prepare(pipeline: Pipeline) -> Result<Self> {
        Self::prepare_with_patience(pipeline, None, Duration::ZERO).await
    }

    /// As [`Run::prepare`]; `engine` screens in place of this process.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub async fn prepare_on(pipeline: Pipeline, engine: Option<Arc<dyn Engine>>) -> Result<Self> {
        Self::prepare_with_patience(pipeline, engine, Duration::ZERO).await
    }

    /// As [`Run::prepare`]; an outage of a store is waited for as long as `longest_outage`.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub(super) async fn prepare_with_patience(
        pipeline: Pipeline,
        engine: Option<Arc<dyn Engine>>,
        longest_outage: Duration,
    ) -> Result<Self> {
        refuse_without_addresses(&pipeline)?;
        let started = Utc::now();
        let cohort = || store::open(&pipeline.cohort.url);
        let tables = || store::open_new(&pipeline.tables.url);
        let preparing = || Self::prepare_with(pipeline.clone(), engine.clone(), cohort, tables);
        let prepared = with_patience(longest_outage, preparing).await;
        if let Err(error) = &prepared {
            record_failure(&pipeline, started, error).await;
        }
        prepared
    }

    /// As [`Run::prepare`], with stores that are already built.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub async fn prepare_at(pipeline: Pipeline, cohort: Location, tables: Location) -> Result<Self> {
        Self::prepare_with(pipeline, None, || Ok(cohort), || Ok(tables)).await
    }

    async fn prepare_with(
        mut pipeline: Pipeline,
        engine: Option<Arc<dyn Engine>>,
        open_cohort: impl FnOnce() -> Result<Location>,
        open_tables: impl FnOnce() -> Result<Location>,
    ) -> Result<Self> {
        let Resources { engine, bundle } = Resources::for_run(&pipeline, engine)?;
        let preprocess = pipeline.preprocess.clone().unwrap_or_else(|| bundle.info.preprocess.clone());
        let recipe_id = recipe_id(&preprocess, &pipeline.score, &bundle);

        let cohort = open_cohort()?;
        let tables = open_tables()?;
        refuse_nested(&cohort, &tables)?;
        let mut listing = pipeline.cohort.list(&cohort).await?;
        if !pipeline.model.any_contrast {
            listing.leave_out_other_contrasts(&bundle.info.modality);
        }
        if listing.selected.is_empty() && !pipeline.run.allow_empty {
            return Err(report::nothing_selected(&listing));
        }
        let tables = Tables::open_or_create_at(tables).await?;
        let root = Root::of(&cohort, &pipeline.cohort)?;
        root.refuse_another_cohort(&tables, &cohort, &listing.cohort, &pipeline.cohort).await?;
        let metadata = metadata_or_warning(&pipeline.cohort, &cohort, &listing).await;
        pipeline.cohort = pipeline.cohort.recorded()?;
        let done = tables.done(&recipe_id, &listing.cohort).await?;
        let journals = Journals::of_others(tables.location(), &root.id(), &recipe_id).await?;
        // Scans of other shards count, because a journal names those of its run.
        let is_settled = |entry: &&ScanEntry| {
            let outcome = done.outcome(&entry.scan_id, &entry.content_id);
            outcome.is_some_and(|outcome| outcome.finished || outcome.permanent || outcome.crashed)
        };
        journals.delete_settled(tables.location(), listing.selected.iter().filter(is_settled)).await;

        let selected = listing.selected.len();
        if let Some(shard) = pipeline.run.shard {
            listing.selected.retain(|entry| shard.holds(&entry.scan_id));
        }
        let in_other_shards = selected - listing.selected.len();
        let pending = Pending::new(&listing.selected, &done, &journals, &pipeline.run, engine.scan_bytes());
        let progress = engine.progress();
        Ok(Self {
            pipeline,
            cohort,
            cohort_root: root.id(),
            tables,
            engine,
            bundle,
            preprocess,
            recipe_id,
            listing,
            pending,
            progress,
            metadata,
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

    /// Metadata of the subjects of the selected scans, from `participants.tsv`.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
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

/// What a run needs before it looks at scans.
struct Resources {
    engine: Arc<dyn Engine>,
    bundle: Arc<Bundle>,
}

impl Resources {
    /// Checks the settings, and opens what a run needs. Without `engine` this process screens.
    fn for_run(pipeline: &Pipeline, engine: Option<Arc<dyn Engine>>) -> Result<Self> {
        pipeline.validate()?;
        pipeline.cohort.pseudonyms()?;
        // The device comes first: libtorch looks for CUDA once, and a missing device must not leave new tables behind.
        let engine = match engine {
            Some(engine) => engine,
            None => Arc::new(Local::new(&pipeline.run)?),
        };
        Ok(Self { engine, bundle: Arc::new(Bundle::open(&pipeline.model.bundle)?) })
    }
}

/// The subjects' metadata from `participants.tsv`. A file that cannot be used does not keep scans from being screened.
async fn metadata_or_warning(config: &CohortConfig, cohort: &Location, listing: &Listing) -> Option<Metadata> {
    config.metadata(cohort, listing).await.unwrap_or_else(|error| {
        warn!("no metadata of subjects is recorded, and the scans are screened all the same: {}", error.text());
        None
    })
}

/// Records a run that failed before its first scan, where the tables exist. That this fails as well is only logged.
async fn record_failure(pipeline: &Pipeline, started: DateTime<Utc>, error: &Error) {
    let cohort = store::open(&pipeline.cohort.url).ok();
    let recorded = async {
        let tables = store::open_new(&pipeline.tables.url)?;
        // Nothing may be written where the two are inside each other.
        cohort.as_ref().map_or(Ok(()), |cohort| refuse_nested(cohort, &tables))?;
        audit::record_failure(pipeline, cohort.as_ref(), tables, started, error).await
    };
    if let Err(unrecorded) = recorded.await {
        tracing::info!(reason = unrecorded.kind(), "the failed run cannot be recorded in the table runs");
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
pub(super) fn refuse_nested(cohort: &Location, tables: &Location) -> Result<()> {
    let below = cohort.relative(&tables.root).is_some_and(|path| path.split('/').any(|part| part == "derivatives"));
    if tables.contains(&cohort.url) || cohort.contains(&tables.url) && !below {
        return Err(Error::Config(format!(
            "the cohort at {cohort} and the tables at {tables} are inside each other: put the tables beside the cohort, or \
             into its derivatives/ folder"
        )));
    }
    Ok(())
}

/// What tells whether the tables know a cohort's scans by the same ids: its address, and the key of its pseudonyms.
pub(super) struct Root {
    place: String,
    names: Option<String>,
}

impl Root {
    pub(super) fn of(cohort: &Location, config: &CohortConfig) -> Result<Self> {
        let names = config.pseudonyms()?.map(|pseudonyms| pseudonyms.fingerprint());
        Ok(Self { place: cohort.root_id(), names })
    }

    /// As the table `runs` records it.
    pub(super) fn id(&self) -> String {
        self.names.as_ref().map_or_else(|| self.place.clone(), |names| format!("{}-{names}", self.place))
    }

    /// Refuses a cohort whose name the tables know from another address, because scans of two cohorts would share their ids and
    /// one would be taken for a new content of the other; and one whose scans they know under other names, because a scan would
    /// get two ids.
    pub(super) async fn refuse_another_cohort(
        &self,
        tables: &Tables,
        cohort: &Location,
        name: &str,
        config: &CohortConfig,
    ) -> Result<()> {
        let Some(last) = tables.last_root(name).await? else { return Ok(()) };
        let (place, names) = last.split_once('-').map_or((last.as_str(), None), |(place, names)| (place, Some(names)));
        if !config.moves && place != self.place {
            return Err(Error::Config(format!(
                "these tables hold a cohort named {name} from another address, and its scans would be mixed up with those at \
                 {cohort}. If this is another cohort, name it: `--set cohort.name=NAME`. If it is the same one at a new \
                 address: `--set cohort.moves=true`"
            )));
        }
        let known = match names {
            _ if config.new_names || names == self.names.as_deref() => return Ok(()),
            None => "their real names",
            Some(_) if self.names.is_none() => "pseudonyms, and cohort.pseudonyms is not set",
            Some(_) => "pseudonyms of another key than that in NEUROSIEVE_PSEUDONYM_KEY",
        };
        Err(Error::Config(format!(
            "these tables hold scans of the cohort {name} under {known}: each would get a second row under a new name, and the old \
             names would stay. Screen as before, or into new tables (`--tables`). If both names may stand here: `--set \
             cohort.new_names=true`"
        )))
    }
}
