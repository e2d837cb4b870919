//! A cluster of real processes on this machine: a scheduler, executors and drivers, all on ports that the system chose.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, wait_for};
use super::program::{WITHOUT_NETWORKS, command, program, text};
use super::shared::path;

/// After how much silence the scheduler gives an executor's work to others, in seconds. The program's default is 30.
pub const DEAD_AFTER_S: u64 = 6;

/// What an executor may use, MiB.
pub const MEMORY_MIB: usize = 1600;

/// A scheduler, and executors on the processor that have joined it.
pub struct Cluster {
    pub scheduler: Process,
    /// As drivers and executors name the scheduler: `http://127.0.0.1:PORT`.
    pub url: String,
    pub executors: Vec<Executor>,
    tls: Option<PathBuf>,
    folder: TempDir,
    begun: usize,
}

/// An executor that listens.
pub struct Executor {
    pub process: Process,
    /// As it calls itself.
    pub id: String,
}

impl Cluster {
    /// A scheduler alone; with a folder of certificates where `tls` names one.
    pub fn scheduler(tls: Option<&Path>) -> Self {
        let (scheduler, address) = spawn_scheduler("127.0.0.1:0", tls);
        let scheme = if tls.is_some() { "https" } else { "http" };
        Self {
            scheduler,
            url: format!("{scheme}://{address}"),
            executors: Vec::new(),
            tls: tls.map(Path::to_owned),
            folder: tempfile::tempdir().unwrap(),
            begun: 0,
        }
    }

    /// A scheduler and executors of this many slots each.
    pub fn of(executors: usize, slots: usize) -> Self {
        let mut cluster = Self::scheduler(None);
        for _ in 0..executors {
            cluster.join(slots);
        }
        cluster
    }

    /// One more executor.
    pub fn join(&mut self, slots: usize) -> usize {
        let command = self.executor(slots);
        self.start(command)
    }

    /// The command of an executor, with a folder of its own to work in.
    pub fn executor(&mut self, slots: usize) -> Command {
        self.begun += 1;
        let work = self.folder.path().join(format!("executor-{}", self.begun));
        std::fs::create_dir(&work).unwrap();
        let mut command =
            command(&["executor", "--scheduler", &self.url, "--listen", "127.0.0.1:0", "--device", "cpu"]);
        command.args([
            "--slots",
            &slots.to_string(),
            "--memory-mib",
            &MEMORY_MIB.to_string(),
            "--work-dir",
            path(&work),
        ]);
        with_tls(command, self.tls.as_deref())
    }

    /// Starts an executor and waits until it has joined; gives its place in `executors`.
    pub fn start(&mut self, command: Command) -> usize {
        let at = self.listens(command);
        let id = self.executors[at].id.clone();
        wait_for("the executor to join", || self.station(&id).map(drop));
        at
    }

    /// As [`Cluster::start`], without waiting longer than until it listens: it may end before it reports anything.
    pub fn listens(&mut self, command: Command) -> usize {
        let mut process = Process::spawn(&format!("executor {}", self.begun), command);
        let line = process.prints("listening on");
        let id = line.strip_prefix("executor ").and_then(|rest| rest.split(' ').next());
        let id = id.unwrap_or_else(|| panic!("no id in `{line}`")).to_owned();
        self.executors.push(Executor { process, id });
        self.executors.len() - 1
    }

    /// A driver that screens a cohort without networks.
    pub fn run(&self, cohort: &str, tables: &str, more: &[&str]) -> Command {
        self.driver(cohort, tables, &[&WITHOUT_NETWORKS[..], more].concat())
    }

    /// A driver that screens a cohort.
    pub fn driver(&self, cohort: &str, tables: &str, more: &[&str]) -> Command {
        let mut command = command(&["run", "pipelines/demo.toml", "--cohort", cohort, "--tables", tables]);
        command.args(["--cluster", &self.url]).args(more);
        with_tls(command, self.tls.as_deref())
    }

    /// What the executors report of themselves.
    pub fn stations(&self) -> Vec<Value> {
        let mut status = command(&["cluster", "status", "--cluster", &self.url, "--format", "json"]);
        status = with_tls(status, self.tls.as_deref());
        let output = status.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut status: Value = serde_json::from_slice(&output.stdout).unwrap();
        serde_json::from_value(status["executors"].take()).unwrap()
    }

    /// What one of them reports.
    pub fn station(&self, id: &str) -> Option<Value> {
        self.stations().into_iter().find(|station| station["executor_id"] == id)
    }

    /// Waits until one of the executors at these places works on a scan; gives its place.
    pub fn working(&self, among: &[usize]) -> usize {
        wait_for("an executor that works on a scan", || {
            let stations = self.stations();
            let busy = |id: &str| stations.iter().any(|s| s["executor_id"] == id && s["in_flight"].as_u64() > Some(0));
            among.iter().copied().find(|&at| busy(&self.executors[at].id))
        })
    }

    /// Kills the scheduler.
    pub fn kill_scheduler(&mut self) {
        self.scheduler.kill();
    }

    /// Starts the scheduler again, on the same port.
    pub fn restart_scheduler(&mut self) {
        let address = self.url.split_once("://").unwrap().1.to_owned();
        (self.scheduler, _) = spawn_scheduler(&address, self.tls.as_deref());
    }
}

/// A scheduler, and the address at which it listens.
fn spawn_scheduler(listen: &str, tls: Option<&Path>) -> (Process, String) {
    let command = command(&["scheduler", "--listen", listen, "--dead-after", &DEAD_AFTER_S.to_string()]);
    let mut scheduler = Process::spawn("scheduler", with_tls(command, tls));
    let line = scheduler.prints("listening on");
    let address = line.strip_prefix("scheduler listening on ").unwrap_or_else(|| panic!("no address in `{line}`"));
    (scheduler, address.trim().to_owned())
}

fn with_tls(mut command: Command, tls: Option<&Path>) -> Command {
    if let Some(folder) = tls {
        command.arg("--tls").arg(folder);
    }
    command
}

/// The exit code of a command and its output.
pub fn ended(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// Makes folders for `--tls` that trust each other: an authority, and a certificate for this machine of each name. None, and
/// a line, without openssl.
pub fn certificates<const N: usize>(folder: &Path, names: [&str; N]) -> Option<[PathBuf; N]> {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
        match output {
            Ok(output) if output.status.success() => true,
            Ok(output) => panic!("openssl {arguments}: {}", text(&output.stderr)),
            Err(_) => false,
        }
    };
    let extensions = "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n\
                      extendedKeyUsage=serverAuth,clientAuth\nauthorityKeyIdentifier=keyid\n";
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("extensions"), extensions).unwrap();
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc";
    // openssl makes an authority by default.
    if !openssl(&format!("req -x509 {curve} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority")) {
        println!("skipped: no openssl");
        return None;
    }
    Some(names.map(|name| {
        std::fs::create_dir(folder.join(name)).unwrap();
        openssl(&format!("req {curve} -keyout {name}/key.pem -out request -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}/cert.pem"
        ));
        std::fs::copy(folder.join("ca.pem"), folder.join(name).join("ca.pem")).unwrap();
        folder.join(name)
    }))
}

/// Runs a script of the shell in a namespace in which it may mount. None, and a line, where the system allows no such.
pub fn in_a_namespace(script: &str) -> Option<Command> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]).current_dir(super::root());
        command
    };
    if !unshare("mount -t tmpfs none /tmp").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: this system does not allow mounts in a user namespace");
        return None;
    }
    Some(unshare(script))
}

/// A command as a line of the shell.
pub fn shell_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ")
}

/// The number in a column `n` of a query on tables that may not exist yet.
pub fn count(tables: &str, sql: &str) -> Option<u64> {
    let output = program(&["sql", "--tables", tables, "--format", "json", "-c", sql]);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
    rows.first()?["n"].as_u64()
}

/// How many scans have ended in tables that may not exist yet.
pub fn committed(tables: &str) -> u64 {
    let both = "SELECT (SELECT count(*) FROM raw.scans) + (SELECT count(*) FROM raw.failures) AS n";
    count(tables, both).unwrap_or(0)
}
