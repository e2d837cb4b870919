//! The policies of `examples/policies`: what they allow is enough, and what they do not allow is refused with advice.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::{Command, Output};

use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as Key};

use super::azure::{azurite, put};
use super::support::cohorts::{scan, synth};
use super::support::program::{printed, python, quick_run, text};
use super::support::root;
use super::support::server::{Server, script};
use super::support::shared::path;

const COHORT: &str = "s3://scans/study";
const TABLES: &str = "s3://results/tables";

/// An S3 server with a bucket of scans and one of tables.
struct Cloud {
    server: Server,
    folder: tempfile::TempDir,
}

impl Cloud {
    /// None without the Python of the tests.
    fn start() -> Option<Self> {
        let mut command = Command::new(python()?);
        command.arg(script("s3_server.py")).args(["scans", "results"]);
        let server = Server::start(command, |address| {
            vec![
                ("AWS_ENDPOINT_URL", address.to_owned()),
                ("AWS_REGION", "us-east-1".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ]
        });
        Some(Self { server, folder: tempfile::tempdir().unwrap() })
    }

    /// Tells the server a line, and waits until it has done it.
    fn tell(&mut self, line: &str) {
        writeln!(self.server.process.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut done = String::new();
        self.server.printed.read_line(&mut done).unwrap();
        assert_eq!(done.trim(), line.split(' ').next().unwrap());
    }

    /// From now on the user with this access key has the policy of this file.
    fn grant(&mut self, key: &str, file: &str) {
        let policy = std::fs::read_to_string(root().join("examples/policies").join(file)).unwrap();
        let policy = policy.replace("SCANS_BUCKET/COHORT", "scans/study").replace("COHORT/*", "study/*");
        let policy = policy.replace("TABLES_BUCKET/TABLES", "results/tables");
        let policy = policy.replace("SCANS_BUCKET", "scans").replace("TABLES_BUCKET", "results");
        let to = self.folder.path().join(file);
        std::fs::write(&to, policy).unwrap();
        self.tell(&format!("policy {key} {}", path(&to)));
    }

    /// Runs the program with this access key.
    fn program(&self, key: &str, arguments: &[&str]) -> Output {
        self.server.command(arguments).env("AWS_ACCESS_KEY_ID", key).output().unwrap()
    }

    /// A bucket, for a user without restrictions.
    fn bucket(&self, name: &str) -> impl ObjectStore {
        AmazonS3Builder::new()
            .with_bucket_name(name)
            .with_region("us-east-1")
            .with_endpoint(&self.server.address)
            .with_allow_http(true)
            .with_access_key_id("owner")
            .with_secret_access_key("secret")
            .build()
            .unwrap()
    }

    async fn upload(&self, local: &Path, names: &[&str]) {
        for name in names {
            let bytes = std::fs::read(local.join(name)).unwrap();
            self.bucket("scans").put(&Key::from(format!("study/{name}")), bytes.into()).await.unwrap();
        }
    }
}

/// What was refused, and that the message says so.
fn refused(output: &Output, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}", printed(output));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_for_s3_allow_a_run_to_run_and_only_upkeep_to_delete() {
    let Some(mut cloud) = Cloud::start() else { return };
    let local = cloud.folder.path().join("study");
    synth(path(&local), &["--subjects", "2", "--spacing", "4", "--lesions", "0"]);
    let scans = [1, 2].map(scan);
    cloud.upload(&local, &["dataset_description.json", &scans[0]]).await;
    cloud.grant("night", "s3-run.json");
    cloud.grant("upkeep", "s3-upkeep.json");
    cloud.grant("analyst", "s3-read.json");
    let run = quick_run(COHORT, TABLES);

    let first = cloud.program("night", &run);
    assert!(first.status.success() && text(&first.stdout).contains("1 scans done"), "{}", printed(&first));
    cloud.upload(&local, &[&scans[1]]).await;
    let second = cloud.program("night", &run);
    assert!(second.status.success() && text(&second.stdout).contains("1 scans done"), "{}", printed(&second));
    let query = ["sql", "--tables", TABLES, "-c", "SELECT count(*) AS n FROM scans"];
    let count = cloud.program("analyst", &query);
    assert!(text(&count.stdout).contains("| 2 "), "{}", printed(&count));
    // Neither locks, probes nor journals are left behind.
    let bucket = cloud.bucket("results");
    let mut left = bucket.list_with_delimiter(Some(&Key::from("tables"))).await.unwrap().objects;
    left.extend(bucket.list_with_delimiter(Some(&Key::from("tables/_in_flight"))).await.unwrap().objects);
    assert!(left.is_empty(), "{left:?}");

    // The scans cannot be written, and are for nobody else.
    refused(&cloud.program("night", &quick_run(COHORT, "s3://scans/other")), &["cannot write", "the right to"]);
    refused(&cloud.program("night", &["cohort", "s3://scans/other"]), &["cannot list"]);
    refused(&cloud.program("upkeep", &["cohort", COHORT]), &["cannot list"]);
    refused(&cloud.program("analyst", &run), &["cannot list"]);

    // A file that a killed run left, older than a day.
    let orphan = "tables/tokens/part-01a22166-a0d4-735c-9b25-cf6ba4f34e84.zstd.parquet";
    cloud.bucket("results").put(&Key::from(orphan), "x".into()).await.unwrap();
    cloud.tell(&format!("age results {orphan}"));
    let vacuum = ["tables", "vacuum", "--tables", TABLES, "--keep-days", "1"];
    refused(
        &cloud.program("night", &vacuum),
        &["cannot delete an old data file", "the right to list, read, write and delete"],
    );
    // The vacuum that failed has given its lease back.
    let vacuumed = cloud.program("upkeep", &vacuum);
    assert!(text(&vacuumed.stdout).contains("tokens: 1 files deleted"), "{}", printed(&vacuumed));
    let optimized = cloud.program("upkeep", &["tables", "optimize", "--tables", TABLES]);
    assert!(text(&optimized.stdout).contains("scans: 2 files became 1"), "{}", printed(&optimized));
    assert!(text(&cloud.program("analyst", &query).stdout).contains("| 2 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sas_token_for_azure_needs_no_right_to_delete_for_a_run() {
    let Some(mut service) = azurite(&["rl", "rlcw", "rlcwd"]) else { return };
    let [read, add, all] = [(); 3].map(|()| {
        let mut token = String::new();
        service.printed.read_line(&mut token).unwrap();
        token.trim().to_owned()
    });
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("study");
    synth(path(&local), &["--subjects", "1", "--spacing", "4", "--lesions", "0"]);
    put(&service, &local.join("dataset_description.json"), "dataset_description.json").await;
    put(&service, &local.join(scan(1)), &scan(1)).await;
    let with = |token: &str, arguments: &[&str]| {
        let mut command = service.command(arguments);
        command.env_remove("AZURE_STORAGE_ACCOUNT_KEY").env("AZURE_STORAGE_SAS_KEY", token);
        let output = command.output().unwrap();
        let signature = token.rsplit_once("sig=").unwrap().1;
        assert!(!printed(&output).contains(signature), "{}", printed(&output));
        output
    };
    let (cohort, tables) = ("az://study/cohort", "az://study/tables");
    refused(&with(&read, &quick_run(cohort, tables)), &["cannot write", "the right to list, read, write and delete"]);
    let run = with(&add, &quick_run(cohort, tables));
    assert!(run.status.success() && text(&run.stdout).contains("1 scans done"), "{}", printed(&run));
    let count = with(&read, &["sql", "--tables", tables, "-c", "SELECT count(*) AS n FROM scans"]);
    assert!(text(&count.stdout).contains("| 1 "), "{}", printed(&count));
    let optimized = with(&all, &["tables", "optimize", "--tables", tables]);
    assert!(text(&optimized.stdout).contains("runs: 2 files became 1"), "{}", printed(&optimized));
}
