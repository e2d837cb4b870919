//! `neurosieve scheduler`: the queue of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::pipeline::asked_to_stop;
use crate::cluster::codec::Codec;
use crate::cluster::scheduler::{SchedulerSetup, serve};
use crate::cluster::serve::{Access, listen};
use crate::cluster::tls::Tls;
use crate::error::{Error, Result};
use crate::terminal::{log_lines, outln};

/// Keep the queue of a cluster, until stopped
///
/// Executors poll the scheduler for chunks of scans, and runs give it theirs with --cluster. It reads no scan, writes no table
/// and needs neither device nor credentials. Its state is in memory: started again, it forgets its jobs, and the runs that wait
/// for them submit them again. One scheduler serves several runs at once. Ctrl-C or SIGTERM ends it.
///
/// It prints one line once it listens. `GET /healthz` answers while it runs, `GET /readyz` once it has an executor, and
/// `GET /stations` with what executors report of themselves, as JSON.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve scheduler
  neurosieve scheduler --listen 0.0.0.0:50050 --tls ./certificates/scheduler
  neurosieve executor --scheduler http://127.0.0.1:50050
  neurosieve run pipelines/screen.toml --cluster http://127.0.0.1:50050 --cohort s3://bucket/study --tables s3://bucket/results

Whoever reaches a scheduler can have its executors read and write all that their credentials open. So without --tls it listens
only where no other machine reaches it.
Exit codes: 0 stopped, 1 error, 2 wrong settings, 4 ended at once by a second Ctrl-C or SIGTERM.")]
pub struct SchedulerArgs {
    /// Address and port to listen at; port 0 takes a free one, which the printed line names
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50050")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Seconds of silence after which an executor counts as dead, and others get its chunks; at least 6. A process that is
    /// only slow, or stopped for longer, is not harmed: its chunks are screened twice and committed once
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub dead_after: u64,
}

/// Who may connect to a server of a cluster.
#[derive(Debug, clap::Args)]
pub struct SecurityArgs {
    /// Folder with ca.pem (the cluster's authority), cert.pem and key.pem (this process's certificate, which names its host):
    /// every connection is then encrypted, and only processes with a certificate of the same authority are let in
    #[arg(long, value_name = "FOLDER")]
    pub tls: Option<PathBuf>,
    /// Allow --listen with an address that other machines reach, without --tls: for networks that keep strangers out
    #[arg(long)]
    pub open_network: bool,
}

impl SecurityArgs {
    /// The certificates, where TLS is asked for.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub fn tls(&self) -> Result<Option<Tls>> {
        self.tls.as_deref().map(Tls::open).transpose()
    }

    /// Who may reach the server.
    pub fn access(&self) -> Access {
        if self.open_network { Access::Open } else { Access::Protected }
    }
}

impl SchedulerArgs {
    /// Runs the scheduler until the program is asked to stop.
    ///
    /// # Errors
    /// As [`Tls::open`], [`listen`] and [`serve`].
    pub async fn run(self) -> Result<ExitCode> {
        log_lines(false);
        let tls = self.security.tls()?;
        let listener = listen(self.listen, tls.as_ref(), self.security.access()).await?;
        let address = listener.local_addr().map_err(|e| Error::io("cannot read the address of the listener", e))?;
        let stop = asked_to_stop("stopping the scheduler")?;
        let codec = Arc::new(Codec::default());
        let setup = SchedulerSetup { dead_after: Duration::from_secs(self.dead_after), tls, codec };
        let listening = || outln!("scheduler listening on {address}");
        serve(listener, setup, listening, stop).await.map(|()| ExitCode::SUCCESS)
    }
}
