//! What a cluster answers to what it cannot do: each refusal says what is wrong and what to do next.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::s3::{BUCKET, TABLES, ask, moto, put};
use super::support::cluster::{Cluster, certificates, committed, ended, in_a_namespace, shell_line};
use super::support::cohorts::{scan, synth};
use super::support::contents::{HEADS, WHOLE, assert_same, contents, heads, heads_screened_here};
use super::support::process::Process;
use super::support::program::{WITHOUT_NETWORKS, command, rows};
use super::support::shared::path;

/// A driver of a scheduler that a test did not start with [`Cluster`], or with other options.
fn driver(url: &str, tables: &Path) -> Command {
    let mut command = command(&["run", "pipelines/demo.toml", "--cohort", heads(), "--tables", path(tables)]);
    command.args(["--cluster", url]).args(WITHOUT_NETWORKS);
    command
}

#[test]
fn where_no_scheduler_answers_commands_end_within_ten_seconds_and_name_the_address() {
    let folder = tempfile::tempdir().unwrap();
    // One port at which nobody listens, and one at which nobody answers.
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (closed, silent) = (listener().local_addr().unwrap(), listener());
    let started = Instant::now();
    let mut asking: Vec<(String, Process)> = Vec::new();
    for (n, address) in [closed, silent.local_addr().unwrap()].into_iter().enumerate() {
        let url = format!("http://{address}");
        let status = command(&["cluster", "status", "--cluster", &url]);
        let run = driver(&url, &folder.path().join(format!("tables-{n}")));
        for (name, command) in [("status", status), ("driver", run)] {
            asking.push((address.to_string(), Process::spawn(name, command)));
        }
    }
    for (address, mut process) in asking {
        let (code, said) = process.ends_within(Duration::from_secs(60));
        // Ten seconds, and as long as a program needs that shares two cores with others.
        assert!(started.elapsed() < Duration::from_secs(16), "{:?}: {said}", started.elapsed());
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&address), "{said}");
        assert!(said.contains("neurosieve scheduler"), "the next step is said: {said}");
    }
}

#[test]
fn a_driver_without_executors_says_so_after_a_minute_and_goes_on_once_there_is_one() {
    let mut cluster = Cluster::scheduler(None);
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut driver = Process::spawn("driver", cluster.run(heads(), path(folder.path()), &["--limit", "2"]));
    let line = driver.prints("no executor");
    assert!((50..75).contains(&started.elapsed().as_secs()), "{:?}: {line}", started.elapsed());
    assert!(driver.said().contains("neurosieve executor"), "the next step is said: {}", driver.said());
    assert_eq!(driver.ended(), None);
    cluster.join(1);
    let (code, said) = driver.ends();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(committed(path(folder.path())), 2);
}

/// The executor sees another folder in the place of the tables.
#[test]
fn an_executor_that_does_not_share_the_folder_of_the_tables_reads_no_scan() {
    let mut cluster = Cluster::scheduler(None);
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    std::fs::create_dir(&tables).unwrap();
    let executor = shell_line(&cluster.executor(1));
    let script = format!("mount -t tmpfs none {} && exec {executor}", tables.display());
    let Some(elsewhere) = in_a_namespace(&script) else { return };
    let elsewhere = cluster.start(elsewhere);
    let mut driver = Process::spawn("driver", cluster.run(heads(), path(&tables), &["--chunk-scans", "2"]));
    let (code, said) = driver.ends();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a store that all its machines share"), "{said}");
    assert_eq!(committed(path(&tables)), 0, "a scan was read");
    let station = cluster.station(&cluster.executors[elsewhere].id).unwrap();
    assert_eq!((&station["done"], &station["failed"]), (&0.into(), &0.into()), "{station}");

    // It is of use to runs whose folders it shares.
    let shared = folder.path().join("shared");
    let (code, said) = ended(cluster.run(heads(), path(&shared), &["--limit", "2"]));
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_without_permission_for_the_bucket_ends_and_says_so() {
    let Some(mut server) = moto() else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("cohort");
    synth(path(&local), &["--subjects", "2", "--lesions", "0", "--spacing", "4"]);
    put(&server, &local, "dataset_description.json", "dataset_description.json").await;
    for n in 1..=2 {
        put(&server, &local, &scan(n), &scan(n)).await;
    }
    // The executor's key is allowed nothing.
    let policy = folder.path().join("policy.json");
    std::fs::write(&policy, r#"{"Version": "2012-10-17", "Statement": []}"#).unwrap();
    ask(&mut server, &format!("policy stranger {}", path(&policy)));
    let variables = |command: &mut Command, key: &str| {
        command.env("AWS_ENDPOINT_URL", &server.address).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", "sekret-of-tests");
    };

    let mut cluster = Cluster::scheduler(None);
    let mut stranger = cluster.executor(1);
    variables(&mut stranger, "stranger");
    let stranger = cluster.start(stranger);
    let run = |cluster: &Cluster| {
        let mut run = cluster.run(&format!("s3://{BUCKET}/cohort"), TABLES, &["--set", "run.outage_s=5"]);
        variables(&mut run, "test");
        run
    };
    let (code, said) = ended(run(&cluster));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("permission") || said.contains("403"), "{said}");
    let (code, of_executor) = cluster.executors[stranger].process.ends();
    assert_eq!(code, Some(1), "{of_executor}");
    assert!(of_executor.contains("permission") || of_executor.contains("403"), "{of_executor}");

    // Credentials are the executor's own: none travels, and none is in a log.
    let mut permitted = cluster.executor(1);
    variables(&mut permitted, "test");
    permitted.env("NEUROSIEVE_LOG", "info");
    let permitted = cluster.start(permitted);
    let (code, said) = ended(run(&cluster));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(server.rows(TABLES, "SELECT 1 FROM raw.scans").len(), 2);
    for place in [said, cluster.executors[permitted].process.said(), cluster.scheduler.said()] {
        assert!(!place.contains("sekret-of-tests"), "{place}");
    }
}

#[test]
fn options_that_do_not_go_together_are_refused_with_what_to_say_instead() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tables");
    // The device belongs to executors. Nothing is asked of the cluster, which does not exist.
    let mut device = driver("http://127.0.0.1:1", &tables);
    device.args(["--device", "cpu"]);
    let (code, said) = ended(device);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--device") && said.contains("neurosieve executor"), "{said}");
    assert!(!tables.exists());

    // Whoever reaches a server without TLS has its credentials.
    let work = path(folder.path());
    let executor = ["executor", "--scheduler", "http://127.0.0.1:1", "--listen", "0.0.0.0:0", "--work-dir", work];
    for open in [&["scheduler", "--listen", "0.0.0.0:0"][..], &executor] {
        let mut process = Process::spawn(open[0], command(open));
        let (code, said) = process.ends_within(Duration::from_secs(20));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("--tls") && said.contains("--open-network"), "{said}");
    }
    let mut open = Process::spawn("scheduler", command(&["scheduler", "--listen", "0.0.0.0:0", "--open-network"]));
    open.prints("scheduler listening on");

    let absent = folder.path().join("absent");
    let (code, said) = ended(command(&["scheduler", "--listen", "127.0.0.1:0", "--tls", path(&absent)]));
    assert!([Some(1), Some(2)].contains(&code), "{said}");
    assert!(said.contains(path(&absent)) && said.contains("ca.pem"), "{said}");
}

#[test]
fn certificates_of_another_authority_and_none_are_refused_and_both_sides_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let Some([ours]) = certificates(&folder.path().join("ours"), ["cluster"]) else { return };
    let [strangers] = certificates(&folder.path().join("others"), ["cluster"]).unwrap();
    // One that knows our authority, and whose own certificate is of another one.
    let forged = folder.path().join("forged");
    std::fs::create_dir(&forged).unwrap();
    for (file, from) in [("ca.pem", &ours), ("cert.pem", &strangers), ("key.pem", &strangers)] {
        std::fs::copy(from.join(file), forged.join(file)).unwrap();
    }
    let mut cluster = Cluster::scheduler(Some(&ours));
    let plain = cluster.url.replace("https://", "http://");
    let tables = folder.path().join("tables");
    let tries = [
        ("another authority", &cluster.url, Some(&strangers)),
        ("a certificate of another authority", &cluster.url, Some(&forged)),
        ("no TLS", &plain, None),
    ];
    let started = Instant::now();
    let refused = tries.map(|(what, url, tls)| {
        let run = driver(url, &tables);
        let executor = command(&["executor", "--scheduler", url, "--device", "cpu"]);
        let with = |mut command: Command| {
            command.args(tls.into_iter().flat_map(|tls| ["--tls", path(tls)]));
            Process::spawn(what, command)
        };
        (what, with(run), with(executor))
    });
    for (what, mut driver, mut executor) in refused {
        let (code, said) = driver.ends();
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: {:?}", started.elapsed());
        let about = said.to_lowercase();
        assert!(about.contains("certificate") || about.contains("tls"), "{what}: {said}");
        // It ends, or tries again: it has not joined.
        assert_ne!(executor.ended(), Some(Some(0)), "{what}: {}", executor.said());
        assert_eq!(cluster.stations().len(), 0, "{what}");
    }
    let said = cluster.scheduler.said().to_lowercase();
    assert!(said.contains("certificate") || said.contains("tls") || said.contains("handshake"), "{said}");
    assert_eq!(cluster.scheduler.ended(), None);
}

#[test]
fn more_failures_than_allowed_are_counted_by_the_driver_and_end_the_run() {
    let cluster = Cluster::of(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let tables = path(folder.path());
    let more = ["--chunk-scans", "1", "--max-failures", "1", "--set", "tables.commit_scans=1"];
    let (code, said) = ended(cluster.run(heads(), tables, &more));
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("max_failures"), "{said}");
    assert_eq!(rows(tables, "SELECT status FROM runs")[0]["status"], "gave_up");
    // The largest scans are first, and those that fail last. Two chunks of one scan are in flight.
    let failed = rows(tables, "SELECT 1 FROM raw.failures").len();
    assert!((2..=5).contains(&failed), "{failed} of {} failed", HEADS - WHOLE);
    // Without the limit, the same command screens the rest.
    let (code, said) = ended(cluster.run(heads(), tables, &[]));
    assert_eq!(code, Some(3), "{said}");
    assert_same(&contents(folder.path()), heads_screened_here(), "given up and run again");
}
