//! Settings of runs and of their schedule: the sections `[run]` and `[schedule]` of a pipeline file.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::limits::{FailureLimit, Shard};
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
    /// fetched.
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
    /// Default: 3600.
    pub scan_timeout_s: u64,
    /// Largest decompressed size of a scan, in MiB. Default: 2048.
    pub max_scan_mib: u64,
    /// Address that serves metrics in Prometheus' text format during a run, such as `"127.0.0.1:9184"`; port 0 picks a free
    /// one. Metrics are counts without names, and anyone who reaches the address can read them. Default: not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
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
            max_scan_mib: 2048,
            metrics: None,
        }
    }
}

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
    /// Target size of merged files, in MiB. Default: 128.
    pub target_mib: u64,
    /// How long files are kept that only older versions of a table refer to, in days. It must be longer than any run or
    /// query takes. Default: 7.
    pub keep_days: u64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { run: "0 1 * * *".into(), upkeep: None, target_mib: 128, keep_days: 7 }
    }
}
