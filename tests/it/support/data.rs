//! Real scans, where the machine has them.

use std::path::PathBuf;

use super::root;

/// The folder `data/<name>` of what `NEUROSIEVE_SHARED` names, `../shared` beside the checkout by default; prints a line
/// where there is none.
pub fn data(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("NEUROSIEVE_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let folder = shared.join("data").join(name);
    if !folder.is_dir() {
        println!("skipped: no data/{name} (NEUROSIEVE_SHARED names the folder above data/)");
        return None;
    }
    Some(folder)
}
