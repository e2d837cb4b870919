//! An order: the instructions of a run for every process that screens for it.
//!
//! An order is plain data and can be sent as JSON. It defines which store the scans are read from, how they are screened, where
//! data files are written and how they are named. It holds no handle, no opened store and nothing specific to a machine; those
//! belong to the [`Station`](super::Station) of the process that executes the order. What differs from scan to scan is in the
//! manifest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::FailureLimit;
use crate::preprocess::PreprocessConfig;
use crate::score::ScoreConfig;

/// What a run asks for; the same for each of its scans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The run that writes the rows.
    pub run_id: String,
    /// Position of the run in the order of commits to the table `runs`.
    pub run_number: i64,
    /// Hash of everything that decides the numbers.
    pub recipe_id: String,
    /// Address of the cohort, without a password. For a local folder a `file://` URL.
    pub cohort: String,
    /// Paths of some scans of the cohort. Reading them shows whether its store answers.
    pub samples: Vec<String>,
    /// Address of the tables, without a password.
    pub tables: String,
    /// How scans are preprocessed.
    pub preprocess: PreprocessConfig,
    /// How scans are scored, before the bundle's calibration fills in missing values.
    pub score: ScoreConfig,
    /// Name and version of the bundle.
    pub bundle: String,
    /// Digest of the bundle.
    pub bundle_digest: String,
    /// Largest decompressed scan, bytes.
    pub max_scan_bytes: u64,
    /// How long a scan may take from its fetch to its rows, without waiting for memory; none: without limit.
    pub scan_timeout: Option<Duration>,
    /// Longest outage of a store that is waited for.
    pub longest_outage: Duration,
    /// How many scans may fail before the process that screens them ends the run; none: any number, or the driver counts.
    pub max_failures: Option<FailureLimit>,
    /// Version of the program that gave the order.
    pub version: String,
}

#[cfg(test)]
impl Order {
    /// An order for tests.
    pub(crate) fn sample() -> Self {
        Self {
            run_id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
            run_number: 7,
            recipe_id: "0123456789abcdef".into(),
            cohort: "s3://bucket/study".into(),
            samples: vec!["sub-01/anat/sub-01_T1w.nii.gz".into()],
            tables: "s3://bucket/results".into(),
            preprocess: PreprocessConfig { spacing_max_mm: 5.1, ..PreprocessConfig::default() },
            score: ScoreConfig {
                method: crate::score::Method::Ar,
                mask_threshold: Some(0.6123),
                scans_at_once: std::num::NonZeroUsize::new(4),
                ..ScoreConfig::default()
            },
            bundle: "t1w-2mm 0.6".into(),
            bundle_digest: "ab".repeat(32),
            max_scan_bytes: 2048 << 20,
            scan_timeout: Some(Duration::from_secs(3600)),
            longest_outage: Duration::from_secs(300),
            max_failures: Some("2.5%".parse().unwrap()),
            version: "0.1.0".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_json() {
        let order = Order::sample();
        let json = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&json).unwrap(), order);
        let unlimited = Order { scan_timeout: None, max_failures: None, ..order };
        let json = serde_json::to_string(&unlimited).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&json).unwrap(), unlimited);
    }
}
