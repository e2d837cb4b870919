//! `neurosieve schedule`: the real program screens and maintains the tables at given times.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::support::cohorts::synth;
use super::support::program::{WITHOUT_NETWORKS, command, number, text};
use super::support::shared::{copy, path, sharded, study};

/// A running schedule, and the lines that it prints on both outputs. Its runs are due at new year by default.
pub struct Scheduled {
    process: Child,
    lines: mpsc::Receiver<String>,
    /// Lines that no test has waited for yet; those of the two outputs are interleaved in any order.
    pub unread: Vec<String>,
}

impl Scheduled {
    pub fn start(cohort: &str, tables: &str, more: &[&str]) -> Self {
        Self::spawn(Self::command(cohort, tables, more))
    }

    pub fn command(cohort: &str, tables: &str, more: &[&str]) -> Command {
        let mut command = command(&["schedule", "pipelines/nightly.toml", "--cohort", cohort, "--tables", tables]);
        command.args(["--set", "run.device=\"cpu\"", "--set", "schedule.run=\"0 0 1 1 *\""]);
        command.args(WITHOUT_NETWORKS).args(more);
        command
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        for output in outputs {
            let sender = sender.clone();
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
            });
        }
        Self { process, lines, unread: Vec::new() }
    }

    /// Waits for a line with these words.
    pub fn prints(&mut self, words: &str) -> String {
        loop {
            if let Some(at) = self.unread.iter().position(|line| line.contains(words)) {
                return self.unread.remove(at);
            }
            match self.lines.recv_timeout(Duration::from_secs(120)) {
                Ok(line) => self.unread.push(line),
                Err(error) => panic!("{error} while waiting for `{words}`: {:#?}", self.unread),
            }
        }
    }

    /// The exit code after SIGTERM.
    pub fn stop(mut self) -> Option<i32> {
        self.terminate();
        self.process.wait().unwrap().code()
    }

    /// Ends it by SIGTERM; gives the lines that no test has waited for.
    pub fn ends(mut self) -> String {
        self.terminate();
        self.process.wait().unwrap();
        self.unread.extend(self.lines.iter());
        self.unread.join("\n")
    }

    fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap().success());
    }
}

#[test]
fn a_schedule_screens_what_is_there_and_later_what_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    let (arrival, late) = (cohort.join("sub-synth003"), folder.path().join("late"));
    let (cohort, tables) = (path(&cohort), path(&tables));
    synth(cohort, &["--subjects", "3", "--lesions", "0", "--spacing", "4"]);
    std::fs::rename(&arrival, &late).unwrap();

    // At once, then not before new year; a monitor reads what was done.
    let more = ["--now", "--metrics", "127.0.0.1:0", "--set", "tables.commit_scans=1"];
    let mut first = Scheduled::start(cohort, tables, &more);
    let address = first.prints("metrics at").split_once("http://").unwrap().1.to_owned();
    first.prints("2 scans done, 0 failed");
    first.prints("next ");
    let mut stream = TcpStream::connect(address.trim_end_matches("/metrics")).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    assert!(metrics.contains("neurosieve_stage_scans_total{place=\"commit\"} 2"), "{metrics}");
    assert_eq!(first.stop(), Some(0));

    // A scan arrives: the next run takes it, and the one after has nothing to do.
    std::fs::rename(&late, &arrival).unwrap();
    let mut second = Scheduled::start(cohort, tables, &["--set", "schedule.run=\"* * * * * *\""]);
    second.prints("1 scans done, 0 failed");
    second.prints("Nothing to do");
    assert!([Some(0), Some(4)].contains(&second.stop()));
    assert_eq!(number(tables, "SELECT count(*) AS n FROM raw.scans"), 3);
}

#[test]
fn a_night_without_scans_is_reported_and_the_schedule_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (cohort, tables) = (folder.path().join("study"), folder.path().join("tables"));
    std::fs::create_dir(&cohort).unwrap();
    let every_second = ["--set", "schedule.run=\"* * * * * *\""];
    let mut schedule = Scheduled::start(path(&cohort), path(&tables), &every_second);
    schedule.prints("nothing is selected");
    schedule.prints("Nothing is here");
    synth(path(&cohort), &["--subjects", "1", "--lesions", "0", "--spacing", "4"]);
    schedule.prints("1 scans done, 0 failed");
    std::os::unix::fs::symlink("nowhere", cohort.join("sub-02_T1w.nii")).unwrap();
    schedule.prints("left out: 1 (absent");
    assert!([Some(0), Some(4)].contains(&schedule.stop()));
}

#[test]
fn a_schedule_puts_small_files_together_when_upkeep_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let tables: &str = &copy(sharded(), folder.path());
    let files = std::fs::read_dir(folder.path().join("scans")).unwrap();
    let many = files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet")).count();
    let mut schedule = Scheduled::start(path(study()), tables, &["--set", "schedule.upkeep=\"* * * * * *\""]);
    schedule.prints(&format!("scans: {many} files became 1, 0 deleted"));
    assert_eq!(schedule.stop(), Some(0));
    assert_eq!(number(tables, "SELECT count(*) AS n FROM scans"), 3);
}

#[test]
fn upkeep_before_the_first_run_is_skipped_and_the_schedule_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    let mut schedule = Scheduled::start(path(study()), path(&tables), &["--set", "schedule.upkeep=\"* * * * * *\""]);
    schedule.prints("upkeep is skipped: there are no tables yet");
    schedule.prints("upkeep is skipped: there are no tables yet");
    assert_eq!(schedule.stop(), Some(0));
}

#[test]
fn nothing_but_a_signal_ends_a_schedule_and_every_line_has_its_time() {
    let [folder, copied] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let tables: &str = &copy(sharded(), copied.path());
    // Another cohort of the same name: the tables refuse it every night, and the folder of the report goes away.
    let (other, reports) = (folder.path().join("other/study"), folder.path().join("reports"));
    synth(path(&other), &["--subjects", "1", "--lesions", "0", "--spacing", "4"]);
    std::fs::create_dir(&reports).unwrap();
    let file = reports.join("run.json");
    let more = ["--set", "schedule.run=\"* * * * * *\"", "--report", path(&file)];
    let mut schedule = Scheduled::start(path(&other), tables, &more);
    let line = schedule.prints("ERROR these tables hold a cohort named");
    schedule.prints("ERROR these tables hold a cohort named");
    let time = line.split(' ').next().unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok() && time.ends_with('Z'), "{line}");
    let report = || serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&file).unwrap()).unwrap();
    // Between two runs the report is that of the last, then for a moment `running`.
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while report()["outcome"] != "failed" {
        assert!(std::time::Instant::now() < until, "{}", report());
    }
    std::fs::rename(&reports, folder.path().join("away")).unwrap();
    schedule.prints("the report of the run: cannot write");
    std::fs::rename(folder.path().join("away"), &reports).unwrap();
    schedule.prints("ERROR these tables hold a cohort named");
    assert!(schedule.unread.iter().all(|line| line.starts_with("20")), "{:#?}", schedule.unread);
    // A run is due every second: the signal comes between two, or during one.
    let code = schedule.stop();
    assert!(matches!(code, Some(0 | 4)), "{code:?}");
}

#[test]
fn what_is_wrong_with_a_schedule_is_found_before_the_first_night() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    let with = |more: &[&str]| {
        let mut schedule = command(&["schedule", "pipelines/nightly.toml", "--set", "run.device=\"cpu\""]);
        let output = schedule.args(WITHOUT_NETWORKS).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", text(&output.stderr));
        assert!(!tables.exists());
        text(&output.stderr)
    };
    assert!(with(&["--cohort", path(study()), "--set", "tables.url=\"\""]).contains("--tables"));
    assert!(with(&["--tables", path(&tables), "--set", "cohort.url=\"\""]).contains("--cohort"));
    let addresses = ["--cohort", path(study()), "--tables", path(&tables)];
    for (setting, named) in [
        ("schedule.keep_days=0", "schedule.keep_days"),
        ("schedule.target_mib=0", "schedule.target_mib"),
        ("schedule.run=\"at night\"", "schedule.run"),
        ("schedule.upkeep=\"0 0 30 2 *\"", "schedule.upkeep"),
        ("run.memory_mib=100", "run.memory_mib"),
    ] {
        let said = with(&[&addresses[..], &["--set", setting]].concat());
        assert!(said.contains(named), "{setting}: {said}");
    }
    let inside = study().join("tables");
    assert!(with(&["--cohort", path(study()), "--tables", path(&inside)]).contains("inside each other"));
}
