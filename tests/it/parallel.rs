//! Runs side by side on the same tables: shards of a cohort, and two runs on all of it.

use std::process::Stdio;

use super::support::cohorts::scan_id;
use super::support::program::{WITHOUT_NETWORKS, rows, screening};
use super::support::shared::{path, sharded, study};

#[test]
fn two_shards_at_the_same_time_screen_every_scan_once() {
    let all = rows(sharded(), "SELECT scan_id FROM raw.scans UNION ALL SELECT scan_id FROM raw.failures ORDER BY 1");
    let ids: Vec<&str> = all.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6].map(|n| scan_id("study", n)));
}

#[test]
fn two_runs_on_the_whole_cohort_at_the_same_time_leave_one_result_of_each_scan() {
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let runs = [1, 2].map(|_| {
        let mut run = screening(path(study()), tables, &["--set", "tables.commit_scans=1"]);
        run.args(WITHOUT_NETWORKS).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    for mut run in runs {
        assert!([0, 3].contains(&run.wait().unwrap().code().unwrap()));
    }
    let scans = rows(tables, "SELECT scan_id, count(*) AS n FROM raw.scans GROUP BY 1");
    assert!(scans.len() == 3 && scans.iter().all(|scan| scan["n"] == 1), "{scans:?}");
}
