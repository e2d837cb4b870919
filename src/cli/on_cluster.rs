//! Options of `neurosieve run` and `neurosieve schedule` for a run on a cluster.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::warn;

use crate::cluster::codec::Codec;
use crate::cluster::tls::Tls;
use crate::cluster::{Client, Cluster};
use crate::error::{Error, Result};
use crate::flow::{Engine, RunConfig};

/// Where the scans are screened, if not in this process.
#[derive(Debug, clap::Args)]
pub struct OnCluster {
    /// Screen on the executors of the scheduler at this address, such as https://host:50050. This process lists the cohort, gives
    /// out the scans in chunks and commits the results; cohort and tables must lie in a store that all executors reach with their
    /// own credentials
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,
    /// Folder with ca.pem, cert.pem and key.pem: mutual TLS with the scheduler and the executors
    #[arg(long, value_name = "FOLDER", requires = "cluster")]
    pub tls: Option<PathBuf>,
    /// Scans in a chunk; for tests and measurements
    #[arg(long, value_name = "N", requires = "cluster", hide = true)]
    pub chunk_scans: Option<usize>,
}

impl OnCluster {
    /// The cluster; none without `--cluster`.
    ///
    /// # Errors
    /// As [`Client::connect`] and [`Tls::open`].
    pub async fn engine(&self) -> Result<Option<Arc<dyn Engine>>> {
        let Some(url) = &self.cluster else { return Ok(None) };
        let tls = self.tls.as_deref().map(Tls::open).transpose()?;
        let client = Client::connect(url, tls.as_ref(), Arc::new(Codec::default())).await?;
        Ok(Some(Arc::new(Cluster::new(client, self.chunk_scans).await?)))
    }

    /// Says which settings of a pipeline have no meaning here.
    pub fn warn_of_unused(&self, config: &RunConfig) {
        let default = RunConfig::default();
        let unused = [
            ("run.device", config.device != default.device),
            ("run.memory_mib", config.memory_mib != default.memory_mib),
            ("run.scans_in_flight", config.scans_in_flight != default.scans_in_flight),
        ];
        for (key, _) in unused.iter().filter(|(_, is_set)| self.cluster.is_some() && *is_set) {
            warn!("{key} has no meaning with --cluster: each executor has an option for it");
        }
    }

    /// Refuses an option that says how this process computes.
    ///
    /// # Errors
    /// [`Error::Config`] where both are given.
    pub fn refuse_device(&self, device: Option<&str>) -> Result<()> {
        match (&self.cluster, device) {
            (Some(_), Some(device)) => Err(Error::Config(format!(
                "--device has no meaning with --cluster, where the executors compute: start each with its device, as in `neurosieve \
                 executor --device {device}`"
            ))),
            _ => Ok(()),
        }
    }
}
