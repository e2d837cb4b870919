//! Child processes that a test talks to: what they print, signals, and how they end.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Longer than anything takes that a test waits for, also where other tests use the same cores.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A running process, and the lines of both its outputs, interleaved in any order. Dropping it kills it; where the test
/// failed, what it printed is printed.
pub struct Process {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Every line so far.
    said: Vec<String>,
    /// How many of them [`Process::prints`] has passed.
    passed: usize,
    code: Option<Option<i32>>,
}

impl Process {
    pub fn spawn(name: &str, mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let sender = sender.clone();
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
            });
        }
        Self { name: name.to_owned(), child, lines, said: Vec::new(), passed: 0, code: None }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line with these words, after those that earlier calls found.
    pub fn prints(&mut self, words: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.said[self.passed..].iter().position(|line| line.contains(words)) {
                self.passed += at + 1;
                return self.said[self.passed - 1].clone();
            }
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("{} did not print `{words}` in {PATIENCE:?}", self.name),
                Err(RecvTimeoutError::Disconnected) => panic!("{} ended before it printed `{words}`", self.name),
            }
        }
    }

    /// All that it has printed so far.
    pub fn said(&mut self) -> String {
        self.said.extend(self.lines.try_iter());
        self.said.join("\n")
    }

    /// Sends a signal: `KILL`, `STOP`, `CONT`, `INT`, `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status().unwrap();
        assert!(sent.success(), "{} got no SIG{name}", self.name);
    }

    /// Ends it by SIGKILL, and waits until it has ended.
    pub fn kill(&mut self) {
        if self.code.is_none() {
            self.child.kill().unwrap();
            self.code = Some(self.child.wait().unwrap().code());
        }
    }

    /// The exit code where it has ended, which is none where a signal ended it.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        if self.code.is_none() {
            self.code = self.child.try_wait().unwrap().map(|status| status.code());
        }
        self.code
    }

    /// Waits for its end; gives the exit code and all that it printed.
    pub fn ends(&mut self) -> (Option<i32>, String) {
        self.ends_within(PATIENCE)
    }

    /// As [`Process::ends`], with another limit.
    pub fn ends_within(&mut self, limit: Duration) -> (Option<i32>, String) {
        let until = Instant::now() + limit;
        let code = loop {
            if let Some(code) = self.ended() {
                break code;
            }
            assert!(Instant::now() < until, "{} did not end within {limit:?}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        };
        // The threads that read its outputs see their ends a moment later. Processes that it started may hold them open.
        let until = Instant::now() + Duration::from_secs(2);
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.said.push(line);
        }
        (code, self.said.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = self.said();
            println!("--- {} (process {}) ---\n{said}", self.name, self.id());
        }
    }
}

/// Asks until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
