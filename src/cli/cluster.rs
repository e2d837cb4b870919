//! `neurosieve cluster`: what a cluster consists of and how fast it is.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use crate::cluster::board::{self, StationReport};
use crate::cluster::connect::connect;
use crate::cluster::tls::Tls;
use crate::error::{Error, Result};
use crate::store::printable;
use crate::terminal::outln;

/// Show the executors of a cluster
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    Status(StatusArgs),
}

/// List the executors of a cluster with their devices, slots and rates
///
/// One line per executor: its id, device, slots (chunks at the same time), version, scans in flight, done and failed since its
/// start, scans per minute over the last minute, and its state: `idle`, `working`, `ending` (asked to stop, takes no more
/// chunks), or `unfit` with the reason. An executor that is silent leaves the list after the scheduler's --dead-after, an
/// unfit one ten minutes after it ended.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve cluster status --cluster http://127.0.0.1:50050
  neurosieve cluster status --cluster https://head:50050 --tls ./certificates/admin --format json

Exit codes: 0 listed, even where there is no executor, 1 no scheduler answers within 10 s, 2 wrong settings.")]
struct StatusArgs {
    /// The scheduler's address: http://host:port, or https://host:port with --tls
    #[arg(long, value_name = "URL")]
    cluster: String,
    /// Folder with ca.pem, cert.pem and key.pem, where the cluster uses TLS
    #[arg(long, value_name = "FOLDER")]
    tls: Option<PathBuf>,
    /// `text`, a table with totals, or `json`, one object
    #[arg(long, value_enum, default_value = "text")]
    format: StatusFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StatusFormat {
    Text,
    Json,
}

impl ClusterArgs {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// [`Error::Cluster`] where no scheduler answers; those of [`Tls::open`].
    pub async fn run(self) -> Result<()> {
        let ClusterCommand::Status(args) = self.command;
        let tls = args.tls.as_deref().map(Tls::open).transpose()?;
        let (channel, _) = connect("--cluster", &args.cluster, tls.as_ref()).await?;
        let reports = board::fetch(&channel).await?;
        match args.format {
            StatusFormat::Text => table(&reports).iter().for_each(|line| outln!("{line}")),
            StatusFormat::Json => {
                let text = serde_json::to_string_pretty(&json(&reports));
                outln!("{}", text.map_err(|e| Error::Bug(format!("cannot write the state as JSON: {e}")))?);
            }
        }
        Ok(())
    }
}

/// The state of an executor, in a word.
fn state(report: &StationReport) -> &'static str {
    match report {
        StationReport { unfit: Some(_), .. } => "unfit",
        StationReport { slots: 0, .. } => "ending",
        StationReport { in_flight: 1.., .. } => "working",
        _ => "idle",
    }
}

fn sum(reports: &[StationReport], of: impl Fn(&StationReport) -> u64) -> u64 {
    reports.iter().map(of).fold(0, u64::saturating_add)
}

fn json(reports: &[StationReport]) -> serde_json::Value {
    let executors = reports.iter().map(|report| {
        let mut fields = json!(report);
        fields["state"] = json!(state(report));
        fields
    });
    json!({
        "executors": executors.collect::<Vec<_>>(),
        "total": {
            "executors": reports.len(),
            "slots": sum(reports, |report| report.slots as u64),
            "in_flight": sum(reports, |report| report.in_flight),
            "done": sum(reports, |report| report.done),
            "failed": sum(reports, |report| report.failed),
            "scans_per_minute": reports.iter().map(|report| report.scans_per_minute).sum::<f64>(),
        },
    })
}

const COLUMNS: [&str; 9] =
    ["executor", "device", "slots", "version", "in flight", "done", "failed", "scans/min", "state"];

/// Columns that hold numbers.
const NUMBERS: [bool; 9] = [false, false, true, false, true, true, true, true, false];

/// The lines of a table with a title and totals.
fn table(reports: &[StationReport]) -> Vec<String> {
    if reports.is_empty() {
        return vec!["no executors; start some with `neurosieve executor --scheduler URL`".to_owned()];
    }
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(reports.iter().map(|report| {
        // Whatever reports itself may have written these texts.
        let safe = |text: &str| printable(text.as_bytes());
        let reason = report.unfit.as_deref().map(|reason| format!(": {}", safe(reason))).unwrap_or_default();
        [
            safe(&report.executor_id),
            safe(&report.device),
            report.slots.to_string(),
            safe(&report.version),
            report.in_flight.to_string(),
            report.done.to_string(),
            report.failed.to_string(),
            format!("{:.1}", report.scans_per_minute),
            format!("{}{reason}", state(report)),
        ]
    }));
    let total = |of: fn(&StationReport) -> u64| sum(reports, of).to_string();
    rows.push([
        format!("{} in total", reports.len()),
        String::new(),
        total(|report| report.slots as u64),
        String::new(),
        total(|report| report.in_flight),
        total(|report| report.done),
        total(|report| report.failed),
        format!("{:.1}", reports.iter().map(|report| report.scans_per_minute).sum::<f64>()),
        String::new(),
    ]);
    let widths: [usize; 9] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; 9]| {
        let cells = row.iter().zip(widths).zip(NUMBERS).map(|((cell, width), is_number)| match is_number {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(id: &str, in_flight: u64) -> StationReport {
        StationReport {
            executor_id: id.into(),
            device: "cuda:0".into(),
            slots: 2,
            version: "0.1.0".into(),
            done: 1200,
            failed: 3,
            in_flight,
            scans_per_minute: 61.25,
            unfit: None,
        }
    }

    #[test]
    fn the_table_adds_up_and_says_what_each_executor_does() {
        let unfit = StationReport { unfit: Some("disk full\u{1b}[2J".into()), slots: 0, ..report("c", 0) };
        let reports = [report("a", 8), report("b", 0), unfit, StationReport { slots: 0, ..report("d", 1) }];
        let lines = table(&reports);
        let expected = [
            "executor    device  slots  version  in flight  done  failed  scans/min  state",
            "a           cuda:0      2  0.1.0            8  1200       3       61.2  working",
            "b           cuda:0      2  0.1.0            0  1200       3       61.2  idle",
            "c           cuda:0      0  0.1.0            0  1200       3       61.2  unfit: disk full\\u{1b}[2J",
            "d           cuda:0      0  0.1.0            1  1200       3       61.2  ending",
            "4 in total              4                   9  4800      12      245.0",
        ];
        assert_eq!(lines, expected);
        let object = json(&reports);
        assert_eq!((&object["total"]["done"], &object["executors"][0]["state"]), (&json!(4800), &json!("working")));
    }

    #[test]
    fn a_cluster_without_executors_says_how_to_start_one() {
        assert!(table(&[])[0].contains("neurosieve executor"));
    }
}
