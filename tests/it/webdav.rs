//! A cohort on a web server that speaks WebDAV (WsgiDAV), which is read only.

use std::process::Command;

use super::support::cohorts::scan;
use super::support::program::{printed, python, quick_run, text};
use super::support::server::{Server, script};

#[test]
fn a_cohort_is_read_from_a_web_server_and_tables_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let Some(python) = python() else { return };
    let mut command = Command::new(python);
    command.arg(script("webdav_server.py")).arg(folder.path());
    let server = Server::start(command, |_| Vec::new());
    let made = ["synth", &at("study"), "--subjects", "3", "--spacing", "4", "--lesions", "0", "--corrupt", "1"];
    assert!(server.program(&made).status.success());
    // A name that no store can hold stops nothing.
    std::fs::write(folder.path().join("study/a\tb.txt"), "x").unwrap();
    let (cohort, tables) = (format!("{}/study", server.address), at("tables"));
    let run = |tables: &str| server.program(&quick_run(&cohort, tables));

    let first = run(&tables);
    assert_eq!(first.status.code(), Some(3), "{}", printed(&first));
    assert!(text(&first.stdout).contains("2 scans done, 1 failed"), "{}", printed(&first));
    assert!(text(&first.stderr).contains(r"rename it): a\tb.txt"), "{}", printed(&first));
    // The server's ETags name the content, so that it is known to be done.
    assert!(text(&run(&tables).stdout).contains("Nothing to do"));
    let scans = folder.path().join("study");
    std::fs::copy(scans.join(scan(2)), scans.join(scan(3))).unwrap();
    let more = run(&tables);
    assert!(more.status.success() && text(&more.stdout).contains("1 scans done, 0 failed"), "{}", text(&more.stdout));

    let refused = run(&format!("{}/tables", server.address));
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("put the tables into another store"), "{said}");
}
