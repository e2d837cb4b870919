//! The stages of a scan's way. Operator metrics, progress, reports and the table `failures` all name them by this one enum.
//!
//! | stage | the scan | metric of `ScreenExec` | in `failures` |
//! |---|---|---|---|
//! | `memory` | waits for its share of the memory budget, before its fetch and again before it is decoded | `memory_wait_time` | `decode` |
//! | `fetch` | is read from the store | `fetch_time` | `fetch` |
//! | `decode` | waits for a core, then becomes voxels | `decode_time` | `decode` |
//! | `preprocess` | is brought onto the model's grid | `preprocess_time` | `preprocess` |
//! | `queue` | waits for the device | `device_wait_time` | `score` |
//! | `device` | is in the networks | `device_time` | `score` |
//! | `assess` | waits for a core, then gets its maps and rows | `assess_time` | `score` |
//! | `commit` | waits, as rows, for its commit | none: the driver commits | `score` |

use std::fmt;

use serde::Serialize;

/// A stage of a scan; the variants are in the order in which a scan passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It waits for its share of the memory budget, before its fetch and again before it is decoded.
    Memory,
    /// It is read from the store.
    Fetch,
    /// It waits for a core, or is decoded.
    Decode,
    /// It is preprocessed.
    Preprocess,
    /// It waits for the device.
    Queue,
    /// The device computes on it.
    Device,
    /// It waits for a core, or its maps and rows are made.
    Assess,
    /// Its rows wait for their commit.
    Commit,
}

impl Stage {
    /// All stages, in the order of a scan's way.
    pub const ALL: [Self; 8] = [
        Self::Memory,
        Self::Fetch,
        Self::Decode,
        Self::Preprocess,
        Self::Queue,
        Self::Device,
        Self::Assess,
        Self::Commit,
    ];

    /// The name in the progress line, in reports and in figures for a monitor.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
            Self::Preprocess => "preprocess",
            Self::Queue => "queue",
            Self::Device => "device",
            Self::Assess => "assess",
            Self::Commit => "commit",
        }
    }

    /// The name in the table `failures`, which has four stages: `fetch`, `decode`, `preprocess` and `score`.
    pub fn recorded(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            // A scan that waits for memory has been fetched: before its fetch nothing of it can fail.
            Self::Memory | Self::Decode => "decode",
            Self::Preprocess => "preprocess",
            Self::Queue | Self::Device | Self::Assess | Self::Commit => "score",
        }
    }

    /// The timer of `ScreenExec` that EXPLAIN ANALYZE shows; none where the operator has no part in the stage.
    pub(super) fn metric(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory_wait_time"),
            Self::Fetch => Some("fetch_time"),
            Self::Decode => Some("decode_time"),
            Self::Preprocess => Some("preprocess_time"),
            Self::Queue => Some("device_wait_time"),
            Self::Device => Some("device_time"),
            Self::Assess => Some("assess_time"),
            Self::Commit => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_recorded_in_one_of_four_stages_and_json_has_the_name() {
        let recorded = Stage::ALL.map(Stage::recorded);
        assert_eq!(recorded, ["decode", "fetch", "decode", "preprocess", "score", "score", "score", "score"]);
        for (position, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!((stage as usize, serde_json::to_value(stage).unwrap()), (position, stage.name().into()));
        }
    }
}
