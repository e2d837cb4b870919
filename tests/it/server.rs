//! A server of others in a process of its own, which prints its port and ends when its standard input does.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// A server that lives as long as this.
pub struct Server {
    pub process: Child,
    pub said: BufReader<ChildStdout>,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// Variables that let the program in.
    environment: Vec<(&'static str, String)>,
}

impl Server {
    /// `environment` gets the address.
    pub fn start(mut command: Command, environment: impl FnOnce(&str) -> Vec<(&'static str, String)>) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        let mut port = String::new();
        said.read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().unwrap();
        let address = format!("http://127.0.0.1:{port}");
        let environment = environment(&address);
        Self { process, said, address, environment }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(arguments);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    pub fn program(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a query of tables there answers.
    pub fn rows(&self, tables: &str, sql: &str) -> Vec<Value> {
        let output = self.program(&["sql", "--tables", tables, "--format", "json", "-c", sql]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A script of the repository.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// The Python of the tests; says where it is missing.
pub fn python() -> Option<OsString> {
    let python = std::env::var_os("NEUROSIEVE_PYTHON");
    if python.is_none() {
        println!("skipped: NEUROSIEVE_PYTHON is not set (make test sets it)");
    }
    python
}

/// The program, in the repository's root.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neurosieve"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where the generator puts a subject's scan.
pub fn scan(n: usize) -> String {
    format!("sub-synth00{n}/anat/sub-synth00{n}_T1w.nii.gz")
}

/// A run that is quick, and commits every scan.
pub const fn run(cohort: &'static str, tables: &'static str) -> [&'static str; 11] {
    [
        "run",
        "pipelines/demo.toml",
        "--cohort",
        cohort,
        "--tables",
        tables,
        "--device",
        "cpu",
        "--set",
        "score.method=threshold",
        "--set=tables.commit_scans=1",
    ]
}
