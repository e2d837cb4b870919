//! `neurosieve executor`: screens chunks for the runs of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::pipeline::asked_to_stop;
use super::scheduler::SecurityArgs;
use crate::cluster::codec::Codec;
use crate::cluster::executor::{Executor, ExecutorSetup};
use crate::cluster::serve::listen;
use crate::cluster::work::WorkFolder;
use crate::error::Result;
use crate::flow::Station;
use crate::model::device::DeviceChoice;
use crate::terminal::{log_lines, outln};

/// Screen chunks of scans for the runs of a cluster, until stopped
///
/// The executor asks a scheduler for chunks, screens them on its device with its own credentials, and writes data files beside
/// the tables; the run that gave the chunk commits them. Cohort, tables and bundle must be at the same addresses for all
/// processes of a cluster. Start one executor per GPU, with CUDA_VISIBLE_DEVICES or --device, or one per machine without.
///
/// Ctrl-C or SIGTERM: it takes no more chunks, finishes those that it works on, keeps their results for 30 s and ends. A second
/// one ends it at once, and others screen its chunks. It waits through an outage of its scheduler. Where it cannot work any
/// more (its disk is full, its device is gone, it does not see the tables' folder), it says why and ends with exit code 1.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve executor --scheduler http://127.0.0.1:50050
  neurosieve executor --scheduler https://head:50050 --tls ./certificates/node-7 --listen 0.0.0.0:0 --advertise node-7
  CUDA_VISIBLE_DEVICES=1 neurosieve executor --scheduler http://127.0.0.1:50050 --device cuda --work-dir /scratch/neurosieve

NEUROSIEVE_LOG=error,neurosieve=info logs where chunks begin and end. `neurosieve cluster status` lists all executors.
Exit codes: 0 stopped, 1 error, or unfit for work, 2 wrong settings, 4 ended at once by a second Ctrl-C or SIGTERM.")]
pub struct ExecutorArgs {
    /// The scheduler's address: http://host:port, or https://host:port with --tls
    #[arg(long, value_name = "URL")]
    pub scheduler: String,
    /// Address and port at which runs and other executors fetch results; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Host name or address under which others reach this machine; default: the address of --listen. Needed with 0.0.0.0
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Chunks at the same time. With two, one begins while the other ends; SQL on the cluster is fastest with one per core
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub slots: usize,
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Memory for scans in flight and for SQL, MiB; 0: as `run.memory_mib`, most of what is free
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub memory_mib: u64,
    /// Scans at the same time, over all chunks; 0: as `run.scans_in_flight`, from cores and memory
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub scans_in_flight: usize,
    /// Folder for results, temporary files of SQL and bundles. Bundles stay there for the next executor, and several may share
    /// it. Default: a temporary folder, deleted at the end
    #[arg(long, value_name = "FOLDER")]
    pub work_dir: Option<PathBuf>,
}

impl ExecutorArgs {
    /// Runs the executor until the program is asked to stop or it is unfit.
    ///
    /// # Errors
    /// As [`listen`], [`Station::open`], [`WorkFolder::open`], [`Executor::connect`] and [`Executor::serve`].
    pub async fn run(self) -> Result<ExitCode> {
        log_lines(false);
        let tls = self.security.tls()?;
        let listener = listen(self.listen, tls.as_ref(), self.security.access()).await?;
        let work = WorkFolder::open(self.work_dir.as_deref())?;
        let station = Station::open(self.device, self.memory_mib, self.scans_in_flight, work.bundles())?;
        let stop = asked_to_stop("stopping: finishing the chunks in work, and keeping their results for 30 s")?;
        let setup = ExecutorSetup {
            scheduler: self.scheduler,
            advertise: self.advertise,
            slots: self.slots,
            results: work.results(),
            spill: work.spill(),
            tls,
            codec: Arc::new(Codec::default()),
        };
        let connecting = Executor::connect(listener, setup, Arc::clone(&station));
        let executor = tokio::select! {
            executor = connecting => executor?,
            () = stop.clone() => return Ok(ExitCode::SUCCESS),
        };
        let (id, address, device, slots) = (executor.id(), executor.address(), &station.device, self.slots);
        let noun = if slots == 1 { "slot" } else { "slots" };
        outln!("executor {id} listening on {address}, device {device}, {slots} {noun}");
        executor.serve(stop).await.map(|()| ExitCode::SUCCESS)
    }
}
