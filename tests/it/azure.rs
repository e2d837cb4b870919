//! A cohort and its tables in a container: the real program against Azurite, Microsoft's emulator of the blob service.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use object_store::azure::MicrosoftAzureBuilder;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as Key};
use serde_json::Value;

use super::server::{self, Server, scan, text};

const CONTAINER: &str = "study";
const ACCOUNT: &str = "devstoreaccount1";
/// The emulator's own, which everybody knows.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Azurite with one container.
struct Azurite(Server);

impl Azurite {
    /// None where the emulator is not there.
    fn start() -> Option<Self> {
        let Some(azurite) = std::env::var_os("NEUROSIEVE_AZURITE").filter(|folder| !folder.is_empty()) else {
            println!("skipped: NEUROSIEVE_AZURITE is not set (make test sets it where node and npm are)");
            return None;
        };
        let mut command = Command::new("node");
        command.arg(server::script("azure_server.mjs")).arg(azurite).arg(CONTAINER);
        Some(Self(Server::start(command)))
    }

    fn store(&self) -> impl ObjectStore {
        MicrosoftAzureBuilder::new()
            .with_container_name(CONTAINER)
            .with_endpoint(format!("{}/{ACCOUNT}", self.0.address))
            .with_allow_http(true)
            .with_account(ACCOUNT)
            .with_access_key(KEY)
            .build()
            .unwrap()
    }

    async fn put(&self, from: &Path, to: &str) {
        let bytes = std::fs::read(from).unwrap();
        self.store().put(&Key::from(format!("cohort/{to}")), bytes.into()).await.unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = server::program(arguments);
        // The client must know that it is the emulator: that one cannot list from a name on, which Delta's log asks for.
        command.env("AZURE_STORAGE_USE_EMULATOR", "true").env("AZURITE_BLOB_STORAGE_URL", &self.0.address);
        command.env("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT).env("AZURE_STORAGE_ACCOUNT_KEY", KEY);
        command
    }

    fn program(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn rows(&self, sql: &str) -> Vec<Value> {
        server::rows(|arguments| self.command(arguments), "az://study/tables", sql)
    }
}

/// Quick, and commits every scan.
const RUN: [&str; 11] = [
    "run",
    "pipelines/demo.toml",
    "--cohort",
    "az://study/cohort",
    "--tables",
    "az://study/tables",
    "--device",
    "cpu",
    "--set",
    "score.method=threshold",
    "--set=tables.commit_scans=1",
];

/// Two runs at once commit to the same tables by conditional writes; what changes is taken up, the key stays out of sight.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_screened_by_two_runs_at_once_and_followed() {
    let Some(service) = Azurite::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("cohort");
    let made =
        ["synth", local.to_str().unwrap(), "--subjects", "4", "--spacing", "4", "--lesions", "0", "--corrupt", "1"];
    let made = service.program(&made);
    assert!(made.status.success(), "{}", text(&made.stderr));
    service.put(&local.join("dataset_description.json"), "dataset_description.json").await;
    for n in 1..=4 {
        service.put(&local.join(scan(n)), &scan(n)).await;
    }

    let both = [0, 1].map(|_| service.command(&RUN).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    for process in both {
        let output = process.wait_with_output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        // Who comes late may find everything done.
        assert!([Some(0), Some(3)].contains(&output.status.code()), "{said}");
        assert!(!said.contains(&KEY[..12]), "{said}");
    }
    let ended =
        service.rows("SELECT scan_id FROM raw.scans UNION ALL SELECT DISTINCT scan_id FROM raw.failures ORDER BY 1");
    let ids: Vec<&str> = ended.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4].map(|n| format!("cohort/sub-synth00{n}_T1w")), "none lost, none doubled");
    assert!(text(&service.program(&RUN).stdout).contains("Nothing to do"));

    // Another content under a name that is there already.
    service.put(&local.join(scan(2)), &scan(1)).await;
    let more = service.program(&RUN);
    assert!(more.status.success() && text(&more.stdout).contains("1 scans done, 0 failed"), "{}", text(&more.stdout));
    assert_eq!(service.rows("SELECT 1 FROM raw.scans WHERE scan_id = 'cohort/sub-synth001_T1w'").len(), 2, "history");

    let missing = service.program(&["cohort", "az://no-such-container/cohort"]);
    let said = text(&missing.stderr);
    assert!(!missing.status.success() && said.contains("container"), "{said}");
    assert!(!said.contains(&KEY[..12]), "{said}");
}
