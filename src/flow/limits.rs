//! Two settings of `[run]` that are written as text: the limit of failures and the part of the cohort.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// During a run a percentage applies once this many scans have ended: before, a single failure could exceed it. At the end of
/// the run it applies in any case.
const LEAST_ENDED: u64 = 20;

/// How many scans may fail before a run ends early: a number (`25`), or a percentage of the scans that ended (`5%`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Given", into = "String")]
pub enum FailureLimit {
    /// A number of scans.
    Scans(u64),
    /// A percentage of the scans that ended, once 20 have ended.
    Percent(f64),
}

/// The forms that a TOML file may hold: `25` or `"5%"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Number(u64),
    Text(String),
}

impl FailureLimit {
    /// Whether an ended run with these numbers of finished and failed scans exceeded the limit, however few they were.
    pub fn was_passed(self, done: u64, failed: u64) -> bool {
        match self {
            Self::Scans(_) => self.is_passed(done, failed),
            Self::Percent(most) => failed as f64 > most / 100. * (done + failed) as f64,
        }
    }

    /// Whether a run with these numbers of finished and failed scans exceeds the limit.
    pub fn is_passed(self, done: u64, failed: u64) -> bool {
        match self {
            Self::Scans(most) => failed > most,
            Self::Percent(most) => {
                let ended = done + failed;
                ended >= LEAST_ENDED && failed as f64 > most / 100. * ended as f64
            }
        }
    }
}

impl FromStr for FailureLimit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let percent = |number: &str| number.trim().parse::<f64>().ok().filter(|p| (0. ..=100.).contains(p));
        let parsed = match text.trim().strip_suffix('%') {
            Some(number) => percent(number).map(Self::Percent),
            None => text.trim().parse().ok().map(Self::Scans),
        };
        parsed.ok_or_else(|| {
            Error::Config(format!(
                "`{text}` is not a limit of failures: give a number of scans (25) or a percentage (5%)"
            ))
        })
    }
}

impl TryFrom<Given> for FailureLimit {
    type Error = Error;

    fn try_from(given: Given) -> Result<Self> {
        match given {
            Given::Number(most) => Ok(Self::Scans(most)),
            Given::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for FailureLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scans(most) => write!(f, "{most}"),
            Self::Percent(most) => write!(f, "{most}%"),
        }
    }
}

impl From<FailureLimit> for String {
    fn from(limit: FailureLimit) -> Self {
        limit.to_string()
    }
}

/// One of several parts of a cohort, counted from 1: `2/8` is the second of eight. A scan's part depends on its id alone, so
/// it does not change when the cohort grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    number: u64,
    of: u64,
}

impl Shard {
    /// Whether a scan belongs to this part.
    pub fn holds(self, scan_id: &str) -> bool {
        let digest = Sha256::digest(scan_id);
        let hash = digest.iter().take(8).fold(0u64, |hash, &byte| hash << 8 | u64::from(byte));
        hash % self.of == self.number - 1
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err(Error::Config(format!(
                "`{text}` is not a part of a cohort: give 1/8 for the first of eight parts, up to 8/8"
            ))),
        }
    }
}

impl TryFrom<String> for Shard {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_a_share_of_enough_scans() {
        let limit = |text: &str| text.parse::<FailureLimit>().unwrap();
        assert!(!limit("2").is_passed(0, 2) && limit("2").is_passed(1000, 3) && limit("0").is_passed(0, 1));
        assert!(!limit("10%").is_passed(0, 19), "too few have ended");
        assert!(limit("10%").was_passed(0, 19) && !limit("10%").was_passed(18, 2) && limit("2").was_passed(0, 3));
        assert!(!limit("10%").is_passed(18, 2) && limit("10%").is_passed(17, 3));
        for wrong in ["", "many", "-1", "101%", "5 per cent"] {
            assert!(wrong.parse::<FailureLimit>().unwrap_err().to_string().contains("5%"), "{wrong}");
        }
        #[derive(Deserialize)]
        struct Run {
            most: FailureLimit,
        }
        let read = |text: &str| toml::from_str::<Run>(text).map(|run| run.most.to_string());
        assert_eq!((read("most = 25").unwrap(), read("most = '5%'").unwrap()), ("25".into(), "5%".into()));
    }

    #[test]
    fn every_scan_is_in_one_part_and_parts_are_alike_in_size() {
        let shards: Vec<Shard> = (1..=4).map(|i| format!("{i}/4").parse().unwrap()).collect();
        let mut sizes = [0; 4];
        for scan in 0..4000 {
            let holders: Vec<usize> = (0..4).filter(|&i| shards[i].holds(&format!("study/sub-{scan}_T1w"))).collect();
            assert_eq!(holders.len(), 1);
            sizes[holders[0]] += 1;
        }
        assert!(sizes.iter().all(|n| (900..1100).contains(n)), "{sizes:?}");
        assert!("1/1".parse::<Shard>().unwrap().holds("any"));
        for wrong in ["0/4", "5/4", "1", "a/b", "1/0"] {
            assert!(wrong.parse::<Shard>().unwrap_err().to_string().contains("8/8"), "{wrong}");
        }
    }
}
