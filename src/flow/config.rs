//! Settings of runs and of their schedule: the sections `[run]` and `[schedule]` of a pipeline file.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::limits::{FailureLimit, Shard};
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::model::device::DeviceChoice;

/// How a run uses the machine, and which of the pending scans it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Device that runs the networks: `auto` (default), `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceChoice,
    /// Memory limit of the whole process, in MiB. 0 (default): three quarters of what the machine or its control group has
    /// free.
    pub memory_mib: u64,
    /// Scans processed at the same time, as far as memory allows. 0 (default): two per core, and two that are being
    /// fetched. At most 4096.
    pub scans_in_flight: usize,
    /// Most pending scans that are screened, in order of their names. 0 (default): all.
    pub limit: usize,
    /// The part of the cohort that is screened, for several processes side by side: `"2/8"` is the second of eight parts.
    /// Default: the whole cohort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Ends the run when more scans than this fail: a number of scans, or a percentage of the scans that ended (`"5%"`,
    /// once 20 have ended). Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<FailureLimit>,
    /// Also retries scans whose content failed permanently in an earlier run. Default: false.
    pub retry: bool,
    /// Time limit of a scan from its fetch to its rows, in seconds; waiting for memory does not count. 0: no limit.
    /// At most 30 days. Default: 3600.
    pub scan_timeout_s: u64,
    /// Longest outage of a store that a run waits for, in seconds: while it does not answer, or refuses the credentials, scans
    /// wait and none fails. Then the run ends with an error. At most 12 hours. Default: 300.
    pub outage_s: u64,
    /// Time that scans in flight have when the run is asked to stop, in seconds. What is not finished then is left to the next
    /// run. At most 30 days. Default: 25.
    pub stop_s: u64,
    /// Whether a cohort of which no scan is selected is no error. Default: false.
    pub allow_empty: bool,
    /// Largest decompressed size of a scan, in MiB, 1 to 1048576. Default: 2048.
    pub max_scan_mib: u64,
    /// Address that serves metrics in Prometheus' text format during a run, such as `"127.0.0.1:9184"`; port 0 picks a free
    /// one. Metrics are counts without names, and anyone who reaches the address can read them. Default: not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Label of the machine in the table `runs`. Default: none; the machine's own name is never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_label: Option<String>,
    /// Who is responsible for the run, in the table `runs`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The container image, in the table `runs`. Default: `NEUROSIEVE_IMAGE` of the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            device: DeviceChoice::default(),
            memory_mib: 0,
            scans_in_flight: 0,
            limit: 0,
            shard: None,
            max_failures: None,
            retry: false,
            scan_timeout_s: 3600,
            outage_s: 300,
            stop_s: 25,
            allow_empty: false,
            max_scan_mib: 2048,
            metrics: None,
            host_label: None,
            operator: None,
            image: None,
        }
    }
}

/// 12 hours: a run that is silent for a day counts as dead.
const LONGEST_OUTAGE_S: u64 = 12 * 3600;

impl RunConfig {
    /// [`max_scan_mib`](Self::max_scan_mib) in bytes.
    pub(super) fn max_scan_bytes(&self) -> u64 {
        self.max_scan_mib.saturating_mul(1 << 20)
    }
}

impl Validate for RunConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("run");
        section.within("memory_mib", self.memory_mib, 0..=1 << 30)?;
        section.within("scans_in_flight", self.scans_in_flight, 0..=4096)?;
        section.within("scan_timeout_s", self.scan_timeout_s, 0..=30 * 24 * 3600)?;
        section.within("stop_s", self.stop_s, 0..=30 * 24 * 3600)?;
        section.within("outage_s", self.outage_s, 0..=LONGEST_OUTAGE_S)?;
        section.within("max_scan_mib", self.max_scan_mib, 1..=MOST_MIB)
    }
}

/// 1 TiB for a scan or a file: far above any, and far below where bytes overflow.
const MOST_MIB: u64 = 1 << 20;

/// When `neurosieve schedule` works. Times are cron expressions in the machine's time zone: minute, hour, day, month,
/// weekday.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// When the cohort is screened. Default: `"0 1 * * *"`, every night at one.
    pub run: String,
    /// When the tables are maintained: small files are merged and unused ones deleted. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<String>,
    /// Target size of merged files, in MiB, 1 to 1048576. Default: 128.
    pub target_mib: u64,
    /// Runs at the start, where the last run of the cohort that `runs` records is earlier than the last time of `run`.
    /// Default: true.
    pub catch_up: bool,
    /// Address (http or https) that gets the JSON report of each run by POST. The address may be secret: it is not written to
    /// tables, reports or the log. Default: `NEUROSIEVE_NOTIFY` of the environment.
    #[serde(skip_serializing)]
    pub notify: Option<String>,
    /// How long files are kept that only older versions of a table refer to, in days. It must be longer than any run or
    /// query takes, at least one day. Default: 7.
    pub keep_days: u64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { run: "0 1 * * *".into(), upkeep: None, target_mib: 128, catch_up: true, notify: None, keep_days: 7 }
    }
}

impl Validate for ScheduleConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("schedule");
        section.within("target_mib", self.target_mib, 1..=MOST_MIB)?;
        section.within("keep_days", self.keep_days, 1..=36_500)
    }
}
