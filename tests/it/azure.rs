//! A cohort and its tables in a container: the real program against Azurite, Microsoft's emulator of the blob service.

use std::path::Path;
use std::process::{Command, Stdio};

use object_store::azure::MicrosoftAzureBuilder;
use object_store::{ObjectStoreExt as _, path::Path as Key};

use super::support::cohorts::{scan, scan_id};
use super::support::program::{printed, quick_run, text};
use super::support::server::{Server, script};

const CONTAINER: &str = "study";
const ACCOUNT: &str = "devstoreaccount1";
/// The published key of the emulator.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const TABLES: &str = "az://study/tables";
const RUN: [&str; 11] = quick_run("az://study/cohort", TABLES);

/// Azurite with one container; none where it is not installed. It prints a token for each of `permissions`.
pub fn azurite(permissions: &[&str]) -> Option<Server> {
    let Some(folder) = std::env::var_os("NEUROSIEVE_AZURITE").filter(|folder| !folder.is_empty()) else {
        println!("skipped: NEUROSIEVE_AZURITE is not set (make test sets it where node and npm are)");
        return None;
    };
    let mut command = Command::new("node");
    command.arg(script("azure_server.mjs")).arg(folder).arg(CONTAINER).args(permissions);
    Some(Server::start(command, |address| {
        // The client must know that this is the emulator, which cannot list from a name on, as Delta's log asks.
        vec![
            ("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()),
            ("AZURITE_BLOB_STORAGE_URL", address.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
        ]
    }))
}

/// Puts a file into the cohort in the container.
pub async fn put(service: &Server, from: &Path, to: &str) {
    let store = MicrosoftAzureBuilder::new()
        .with_container_name(CONTAINER)
        .with_endpoint(format!("{}/{ACCOUNT}", service.address))
        .with_allow_http(true)
        .with_account(ACCOUNT)
        .with_access_key(KEY)
        .build()
        .unwrap();
    let bytes = std::fs::read(from).unwrap();
    store.put(&Key::from(format!("cohort/{to}")), bytes.into()).await.unwrap();
}

/// Two runs at once commit to the same tables by conditional writes; a scan that changes is screened again; no output
/// shows the key.
#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_screen_a_container_and_a_later_run_screens_what_changed() {
    let Some(service) = azurite(&[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("cohort");
    let made =
        ["synth", local.to_str().unwrap(), "--subjects", "4", "--spacing", "4", "--lesions", "0", "--corrupt", "1"];
    let made = service.program(&made);
    assert!(made.status.success(), "{}", text(&made.stderr));
    put(&service, &local.join("dataset_description.json"), "dataset_description.json").await;
    for n in 1..=4 {
        put(&service, &local.join(scan(n)), &scan(n)).await;
    }

    let both = [0, 1].map(|_| service.command(&RUN).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    for process in both {
        let output = process.wait_with_output().unwrap();
        let printed = printed(&output);
        // The later of the two may find everything done.
        assert!([Some(0), Some(3)].contains(&output.status.code()), "{printed}");
        assert!(!printed.contains(&KEY[..12]), "{printed}");
    }
    let ended = service
        .rows(TABLES, "SELECT scan_id FROM raw.scans UNION ALL SELECT DISTINCT scan_id FROM raw.failures ORDER BY 1");
    let ids: Vec<&str> = ended.iter().map(|row| row["scan_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3, 4].map(|n| scan_id("cohort", n)), "none lost, none doubled");
    assert!(text(&service.program(&RUN).stdout).contains("Nothing to do"));

    // Another content under a name that is there already.
    put(&service, &local.join(scan(2)), &scan(1)).await;
    let more = service.program(&RUN);
    // The damaged scan is still without a result.
    assert!(
        more.status.code() == Some(3) && text(&more.stdout).contains("1 scans done, 0 failed"),
        "{}",
        text(&more.stdout)
    );
    assert_eq!(
        service.rows(TABLES, "SELECT 1 FROM raw.scans WHERE scan_id = 'cohort/sub-synth001_T1w'").len(),
        2,
        "history"
    );

    let missing = service.program(&["cohort", "az://no-such-container/cohort"]);
    let said = text(&missing.stderr);
    assert!(!missing.status.success() && said.contains("container"), "{said}");
    assert!(!said.contains(&KEY[..12]), "{said}");
}
