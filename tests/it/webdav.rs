//! A cohort on a web server that speaks WebDAV (WsgiDAV), which is read only.

use std::process::Command;

use super::server::{self, Server, scan, text};

#[test]
fn a_cohort_is_read_from_the_web_and_tables_are_not_written_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let Some(python) = server::python() else { return };
    let mut command = Command::new(python);
    command.arg(server::script("webdav_server.py")).arg(folder.path());
    let server = Server::start(command, |_| Vec::new());
    let made = ["synth", &at("study"), "--subjects", "3", "--spacing", "4", "--lesions", "0", "--corrupt", "1"];
    assert!(server.program(&made).status.success());
    let (cohort, tables) = (format!("{}/study", server.address), at("tables"));
    let run = |tables: &str| {
        let mut arguments = vec!["run", "pipelines/demo.toml", "--device", "cpu", "--set", "score.method=threshold"];
        arguments.extend(["--cohort", &cohort, "--tables", tables]);
        server.program(&arguments)
    };

    let first = run(&tables);
    let said = text(&first.stdout);
    assert!(first.status.code() == Some(3) && said.contains("2 scans done, 1 failed"), "{said}{}", text(&first.stderr));
    // The server names the content, so it is known again.
    assert!(text(&run(&tables).stdout).contains("Nothing to do"));
    let scans = folder.path().join("study");
    std::fs::copy(scans.join(scan(2)), scans.join(scan(3))).unwrap();
    let more = run(&tables);
    assert!(more.status.success() && text(&more.stdout).contains("1 scans done, 0 failed"), "{}", text(&more.stdout));

    let refused = run(&format!("{}/tables", server.address));
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("put the tables into another store"), "{said}");
}
