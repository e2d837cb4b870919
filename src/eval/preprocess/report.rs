//! The result of an evaluation of preprocessing, as JSON and as the text that `neurosieve eval preprocess` prints.

use std::fmt;

use serde::Serialize;

use super::ScanFigures;
use super::intensity::Row;
use super::speed::Speed;
use super::targets::{Target, targets};
use crate::preprocess::NormalizeMethod;

/// All figures of preprocessing on one cohort.
#[derive(Debug, Clone, Serialize)]
pub struct PreprocessReport {
    /// The targets that the cohort has data for.
    #[serde(rename = "bars")]
    pub targets: Vec<Target>,
    /// Figures of each scan.
    pub scans: Vec<ScanFigures>,
    /// Two sites' intensities by method, where the cohort has two.
    pub cross_site: Option<Vec<Row>>,
    /// Speed.
    pub speed: Speed,
}

impl PreprocessReport {
    /// `method` is the normalization method whose row of `cross_site` has a target.
    pub(super) fn new(
        scans: Vec<ScanFigures>,
        cross_site: Option<Vec<Row>>,
        method: NormalizeMethod,
        speed: Speed,
    ) -> Self {
        let targets = targets(&scans, cross_site.as_deref(), &method.to_string(), &speed);
        Self { targets, scans, cross_site, speed }
    }

    /// Number of targets that were not reached.
    pub fn missed(&self) -> usize {
        self.targets.iter().filter(|target| !target.reached).count()
    }
}

impl fmt::Display for PreprocessReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.targets.iter().map(|target| target.what.len()).max().unwrap_or_default();
        for Target { what, found, asked, reached, n } in &self.targets {
            let verdict = if *reached { "ok  " } else { "MISS" };
            writeln!(f, "{verdict}  {what:<width$}  {asked:<28}  {found}  (n = {n})")?;
        }
        if let Some(rows) = &self.cross_site {
            writeln!(f, "\nIntensities of two sites, in percent of white matter's")?;
            writeln!(
                f,
                "{:<14} {:>9} {:>8} {:>12} {:>6} {:>6} {:>13}",
                "method", "distance", "closer", "within site", "grey", "white", "lesion shift"
            )?;
            for row in rows {
                let shift = row.lesion_shift_percent.map_or_else(String::new, |s| format!("{s:.2}"));
                writeln!(
                    f,
                    "{:<14} {:>9.2} {:>7.1}x {:>12.2} {:>6.2} {:>6.2} {:>13}",
                    row.method,
                    row.site_distance_percent,
                    row.times_closer,
                    row.within_site_percent,
                    row.grey_difference_percent,
                    row.white_difference_percent,
                    shift
                )?;
            }
        }
        for (name, measured) in [("2 mm head", &self.speed.head_2mm), ("1 mm head", &self.speed.head_1mm)] {
            if let Some(measured) = measured {
                let steps: Vec<String> = measured.steps_ms.iter().map(|(step, ms)| format!("{step} {ms:.0}")).collect();
                writeln!(f, "\n{name}, ms on one thread: {}", steps.join(", "))?;
            }
        }
        Ok(())
    }
}
