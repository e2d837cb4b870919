//! The page on many machines, and the examples for clusters: what they say is what the scripts, the program and other tools
//! accept.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::support::program::{printed, program, python, text};
use super::support::root;

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The blocks of shell commands of a page, continued lines joined.
fn shell_blocks(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(|block| block.replace("\\\n", " ")).collect()
}

/// The program knows every option of a command: with `--help` behind them it says so, and does nothing.
fn assert_known(arguments: &[&str]) {
    let arguments = [arguments, &["--help"]].concat();
    let output = program(&arguments);
    assert!(output.status.success(), "{arguments:?}: {}", printed(&output));
}

/// Stands for a program: a shell script in the folder's `bin`, which comes first in the PATH.
fn pretend(folder: &Path, name: &str, script: &str) {
    let file = folder.join("bin").join(name);
    std::fs::create_dir_all(folder.join("bin")).unwrap();
    std::fs::write(&file, format!("#!/bin/bash\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a script in a folder, which is its home, with what is in `bin` there first in the PATH.
fn run(folder: &Path, script: &str, arguments: &[&str]) -> Output {
    let path = format!("{}/bin:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg(root().join("examples").join(script)).args(arguments).current_dir(folder);
    bash.env("PATH", path).env("HOME", folder).env("SLURM_JOB_ID", "7").env("NEUROSIEVE_TLS", "/tls");
    bash.env("NEUROSIEVE_HOST", "here.example.org").output().unwrap()
}

/// A program that prints its words as one line, and as scheduler or executor stays until it is told to end, a minute at most.
const PROGRAM: &str = r#"echo "neurosieve $*" | tee -a "$HOME/commands"
[[ $1 == scheduler || $1 == executor ]] || exit 0
[[ $1 == executor ]] || echo "scheduler listening on 0.0.0.0:40123"
trap 'exit 0' TERM
for _ in {1..600}; do sleep 0.1; done"#;

/// Commands that were given to [`PROGRAM`]; the program knows all their options.
fn commands(folder: &Path) -> Vec<String> {
    let commands = std::fs::read_to_string(folder.join("commands")).unwrap();
    for command in commands.lines() {
        assert_known(&command.split_whitespace().skip(1).collect::<Vec<_>>());
    }
    commands.lines().map(str::to_owned).collect()
}

#[test]
fn the_tables_of_the_page_are_those_of_the_model() {
    let mut model = Command::new("python3");
    model.arg("scripts/scaling_model.py").args(["--check", "docs/scaling.md"]).current_dir(root());
    let output = model.output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn another_figure_or_another_word_on_a_page_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let figures = read("scripts/scaling_figures.toml");
    let changed = figures.replace("value = 1.017", "value = 2.034").replace("| 1.017 |", "| 2.034 |");
    std::fs::write(folder.path().join("figures.toml"), changed).unwrap();
    let mut model = Command::new("python3");
    model.arg("scripts/scaling_model.py").args(["--check", "docs/scaling.md", "--figures"]).current_dir(root());
    let output = model.arg(folder.path().join("figures.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    let found = text(&output.stderr);
    assert!(found.contains("[preprocess_1mm_s]: docs/preprocessing.md no longer says"), "{found}");
    assert!(found.contains("the tables differ from what the model gives"), "{found}");
}

#[test]
fn the_commands_of_the_page_have_known_options() {
    let blocks = shell_blocks(&read("docs/scaling.md"));
    let mut known = 0;
    for line in blocks.iter().flat_map(|block| block.lines()) {
        let line = line.split(" # ").next().unwrap_or_default();
        // What follows `-c` is one word of SQL, the last.
        let (line, sql) = line.split_once(" -c ").map_or((line, None), |(line, sql)| (line, Some(["-c", sql])));
        let mut words = line.split_whitespace();
        if words.next() != Some("neurosieve") {
            continue;
        }
        assert_known(&words.chain(sql.into_iter().flatten()).collect::<Vec<_>>());
        known += 1;
    }
    assert!(known >= 8, "only {known} commands were found");
}

#[test]
fn the_certificates_of_the_page_can_be_made_as_it_says() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: openssl is not installed");
        return;
    }
    let blocks = shell_blocks(&read("docs/scaling.md"));
    let making = blocks.iter().find(|block| block.contains("openssl req")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("bash").args(["-euc", making]).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success() && text(&output.stdout).contains("tls/cert.pem: OK"), "{}", printed(&output));
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        assert!(folder.path().join("tls").join(file).exists(), "{file}");
    }
}

#[test]
fn the_kubernetes_cluster_is_yaml_and_its_commands_are_known() {
    let Some(python) = python() else { return };
    // One line for each container: the name of its object, and its words.
    let containers = "import sys, yaml\n\
        for item in yaml.safe_load_all(open(sys.argv[1])):\n    \
            spec = item['spec'].get('jobTemplate', item)['spec'].get('template', {}).get('spec', {})\n    \
            for c in spec.get('containers', []):\n        \
                print('\\t'.join([item['metadata']['name'], *c['args']]))";
    let file = root().join("examples/kubernetes/cluster.yaml");
    let output = Command::new(python).args(["-c", containers]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let printed = text(&output.stdout);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split('\t').collect()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(names, ["neurosieve-scheduler", "neurosieve-executor", "neurosieve-driver"]);
    for line in &lines {
        assert_known(&line[1..]);
    }
    // Executors and driver look for the scheduler where its service is.
    for line in &lines[1..] {
        assert!(line.contains(&"https://neurosieve-scheduler:50050"), "{line:?}");
    }
}

#[test]
fn the_slurm_driver_starts_its_executors_and_ends_them() {
    let folder = tempfile::tempdir().unwrap();
    pretend(folder.path(), "neurosieve", PROGRAM);
    pretend(folder.path(), "srun", "exec \"$@\"");
    pretend(folder.path(), "sbatch", "echo \"$*\" >submitted; echo 77");
    pretend(folder.path(), "scancel", "echo \"$*\" >cancelled");
    let output = run(folder.path(), "slurm/driver.sbatch", &[]);
    assert!(output.status.success(), "{}", printed(&output));
    let submitted = std::fs::read_to_string(folder.path().join("submitted")).unwrap();
    assert!(submitted.contains("--array=1-8") && submitted.contains("executors.sbatch https://"), "{submitted}");
    assert!(submitted.trim().ends_with(":40123"), "{submitted}");
    assert_eq!(std::fs::read_to_string(folder.path().join("cancelled")).unwrap().trim(), "77");
    let driver = commands(folder.path()).pop().unwrap();
    assert!(driver.starts_with("neurosieve run screen.toml ") && driver.contains(":40123 --tls /tls"), "{driver}");

    pretend(folder.path(), "neurosieve", "echo \"neurosieve $*\" >>\"$HOME/commands\"");
    let output = run(folder.path(), "slurm/executors.sbatch", &["https://scheduler:40123"]);
    assert!(output.status.success(), "{}", printed(&output));
    let executor = commands(folder.path()).pop().unwrap();
    assert!(executor.starts_with("neurosieve executor --scheduler https://scheduler:40123 "), "{executor}");
}

#[test]
fn the_slurm_driver_ends_where_its_scheduler_does() {
    let folder = tempfile::tempdir().unwrap();
    pretend(folder.path(), "neurosieve", "exit 2");
    let output = run(folder.path(), "slurm/driver.sbatch", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert!(text(&output.stderr).contains("the scheduler has ended"), "{}", printed(&output));
}

#[test]
fn the_ssh_script_starts_one_executor_per_gpu_and_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    std::fs::create_dir(home.join("neurosieve")).unwrap();
    std::fs::write(home.join("hosts"), "gpu1.example.org 2  # two\n\nme@cpu1.example.org\n").unwrap();
    pretend(home, "neurosieve", PROGRAM);
    // Takes the options and the machine away, and runs the rest here.
    pretend(home, "ssh", "while [[ $1 == -* ]]; do shift 2; done; shift; exec \"$@\"");
    let started = run(home, "ssh/cluster.sh", &["start", "hosts"]);
    assert!(started.status.success(), "{}", printed(&started));
    assert_eq!(text(&started.stdout).lines().last(), Some("https://here.example.org:50050"));
    let again = run(home, "ssh/cluster.sh", &["start", "hosts"]);
    assert!(text(&again.stdout).contains("executor-1 runs already"), "{}", printed(&again));
    assert!(run(home, "ssh/cluster.sh", &["stop", "hosts"]).status.success());
    let commands = commands(home);
    assert_eq!(commands.len(), 4, "{commands:?}");
    for words in ["--advertise gpu1.example.org", "--advertise cpu1.example.org", "--work-dir work-1", "--device cpu"] {
        assert!(commands.iter().any(|command| command.contains(words)), "no `{words}` in {commands:?}");
    }
    // A machine's name is a name, and no words for a shell.
    std::fs::write(home.join("hosts"), "gpu1;reboot 2\n").unwrap();
    let refused = run(home, "ssh/cluster.sh", &["start", "hosts"]);
    assert!(text(&refused.stderr).contains("is not a machine and a number of GPUs"), "{}", printed(&refused));
}
