//! Statements of `neurosieve sql` stay within their time and memory, and end on Ctrl-C.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use super::support::process::Process;
use super::support::program::{command, program, text};
use super::support::shared::sharded;

/// 10^12 pairs of rows, of which no one fits: the join gives no batch that would let it yield.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000) a(i) \
                       JOIN generate_series(1, 1000000) b(j) ON a.i * 2 + b.j < 0";

/// What holds 20 million rows in memory.
const LARGE: &str =
    "SELECT count(*) FROM generate_series(1, 20000000) a(i) JOIN generate_series(1, 20000000) b(j) ON a.i = b.j";

/// Longer than a statement may take to end, with what the machine does beside the test.
const SOON: Duration = Duration::from_secs(5);

fn shell(options: &[&str], input: &str) -> Output {
    let mut shell = command(&[&["sql", "--tables", sharded()], options].concat());
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    shell.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_ends_a_nested_loop_join() {
    let statements = ["sql", "--tables", sharded(), "--format", "csv", "-c", "SELECT 'begun'", "-c", ENDLESS];
    let mut sql = Process::spawn("sql", command(&statements));
    sql.prints("begun");
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    sql.signal("INT");
    let (code, said) = sql.ends();
    assert_eq!(code, Some(130), "{said}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn a_statement_that_takes_too_long_ends_with_the_limit_and_the_next_is_answered() {
    let started = Instant::now();
    let output = program(&["sql", "--tables", sharded(), "--timeout", "1", "-c", ENDLESS]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("within 1 s") && said.contains("--timeout"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(1) + SOON, "{:?}", started.elapsed());

    let output = shell(&["--timeout", "1"], &format!("{ENDLESS};\nSELECT 'still here';\n"));
    assert!(text(&output.stdout).contains("still here"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--timeout"), "{}", text(&output.stderr));

    for wrong in ["0", "-1", "soon", "inf"] {
        let output = program(&["sql", "--tables", sharded(), &format!("--timeout={wrong}"), "-c", "SELECT 1"]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn a_statement_that_needs_too_much_memory_names_the_limit_and_the_next_is_answered() {
    let output = shell(&["--memory-mib", "64"], &format!("{LARGE};\nSELECT 'still here';\n"));
    let errors = text(&output.stderr);
    assert!(errors.contains("limit of 64 MiB") && errors.contains("--memory-mib"), "{errors}");
    assert!(text(&output.stdout).contains("still here"), "{errors}");

    // A sort writes what exceeds its share to temporary files. Each partition needs a share of its own.
    let sort = "SELECT sum(i * (n % 7)) AS s FROM (SELECT i, row_number() OVER (ORDER BY i * 7919 % 8000009) AS n \
                FROM generate_series(1, 8000000) a(i))";
    let two = "SET datafusion.execution.target_partitions = 2";
    let output =
        program(&["sql", "--tables", sharded(), "--memory-mib", "64", "--format", "csv", "-c", two, "-c", sort]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 2);

    let output = program(&["sql", "--tables", sharded(), "-c", "SET datafusion.runtime.memory_limit = '100G'"]);
    assert!(text(&output.stderr).contains("--memory-mib"), "{}", text(&output.stderr));
}
