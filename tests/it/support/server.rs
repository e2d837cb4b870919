//! A server in a process of its own, one of those in `tests/servers/`: it prints its port, and ends when its standard
//! input does.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use super::program::{self, text};
use super::root;

/// A running server. Dropping it stops the server.
pub struct Server {
    pub process: Child,
    /// What it prints after its port.
    pub printed: BufReader<ChildStdout>,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// Environment variables with the server's address and credentials for the program.
    environment: Vec<(&'static str, String)>,
}

impl Server {
    /// `environment` gets the address.
    pub fn start(mut command: Command, environment: impl FnOnce(&str) -> Vec<(&'static str, String)>) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut printed = BufReader::new(process.stdout.take().unwrap());
        let mut port = String::new();
        printed.read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().unwrap();
        let address = format!("http://127.0.0.1:{port}");
        let environment = environment(&address);
        Self { process, printed, address, environment }
    }

    /// The program, with the server's variables.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program::command(arguments);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    pub fn program(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The rows of a query of tables on the server.
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

/// The script of a server.
pub fn script(name: &str) -> PathBuf {
    root().join("tests/servers").join(name)
}
