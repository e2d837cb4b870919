//! Cohorts and tables that take long to make. The first test that needs one makes it, and all tests share it. They are
//! read-only; a test that changes tables takes a [`copy`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;

use super::cohorts::{scan, synth};
use super::program::{WITHOUT_NETWORKS, number, printed, screen, screening};

/// A cohort of six heads at 2 mm: the first has lesions, the files of the last three are truncated.
pub fn study() -> &'static Path {
    static STUDY: OnceLock<PathBuf> = OnceLock::new();
    STUDY.get_or_init(|| {
        let folder = folder().join("study");
        synth(path(&folder), &["--subjects", "6", "--lesions", "1", "--corrupt", "3"]);
        folder
    })
}

/// A cohort of one healthy head at 2 mm.
pub fn head() -> &'static Path {
    static HEAD: OnceLock<PathBuf> = OnceLock::new();
    HEAD.get_or_init(|| {
        let folder = folder().join("head");
        synth(path(&folder), &["--subjects", "1", "--lesions", "0"]);
        folder
    })
}

/// The first four scans of the study, the third of which arrived after the first run, and the output of the runs.
pub struct Screened {
    pub cohort: String,
    pub tables: String,
    /// The first run: two good scans, and a truncated one. With `--explain`.
    pub first: Output,
    /// A second run, before anything arrived.
    pub idle: Output,
    /// Scans in the tables after it.
    pub scans_after_idle: u64,
    /// The run after the third scan arrived.
    pub later: Output,
}

/// Tables that were screened with the networks of the built-in bundle.
pub fn screened() -> &'static Screened {
    static SCREENED: OnceLock<Screened> = OnceLock::new();
    SCREENED.get_or_init(|| {
        let folder = folder().join("screened");
        let (cohort, tables) = (folder.join("study"), folder.join("tables"));
        let arrives = |n: usize| {
            let to = cohort.join(scan(n));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(study().join(scan(n)), to).unwrap();
        };
        fs::create_dir_all(&cohort).unwrap();
        fs::copy(study().join("dataset_description.json"), cohort.join("dataset_description.json")).unwrap();
        for n in [1, 2, 4] {
            arrives(n);
        }
        let (cohort, tables) = (path(&cohort), path(&tables));
        let first = screen(cohort, tables, &["--explain"]);
        let idle = screen(cohort, tables, &[]);
        let scans_after_idle = number(tables, "SELECT count(*) AS n FROM raw.scans");
        arrives(3);
        let later = screen(cohort, tables, &[]);
        Screened { cohort: cohort.to_owned(), tables: tables.to_owned(), first, idle, scans_after_idle, later }
    })
}

/// Tables of the whole study that two processes screened at the same time without networks, each its half.
pub fn sharded() -> &'static str {
    static SHARDED: OnceLock<String> = OnceLock::new();
    SHARDED.get_or_init(|| {
        let tables = folder().join("sharded").display().to_string();
        let shards = ["1/2", "2/2"].map(|shard| {
            let mut shard = screening(path(study()), &tables, &["--shard", shard]);
            shard.args(WITHOUT_NETWORKS).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        for shard in shards {
            let output = shard.wait_with_output().unwrap();
            assert!([Some(0), Some(3)].contains(&output.status.code()), "{}", printed(&output));
        }
        tables
    })
}

/// A copy of tables, for a test that changes them.
pub fn copy(from: &str, to: &Path) -> String {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    copy(Path::new(from), to);
    path(to).to_owned()
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The folder of what is shared, locked by this process. A static value is never dropped, so what earlier processes left
/// behind is deleted here.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<(PathBuf, File)> = OnceLock::new();
    let (folder, _) = FOLDER.get_or_init(|| {
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared");
        fs::create_dir_all(&all).unwrap();
        for earlier in fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().path()) {
            if File::open(earlier.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
                // Another process may delete it at the same time.
                let _ = fs::remove_dir_all(earlier);
            }
        }
        let folder = tempfile::Builder::new().prefix("").tempdir_in(all).unwrap().keep();
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        (folder, lock)
    });
    folder
}
