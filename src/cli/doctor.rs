//! `neurosieve doctor`: checks whether this machine can run a screening, and prints how to fix what it cannot do.
//!
//! Takes storage URLs to check. Prints one line per check: `ok`, `note` (a screening can run, with a limitation) or `miss`
//! (something required is missing), and ends with an error where anything is missing. The lines may hold paths of this
//! machine, because they go only to the terminal of the user who ran the command.

use std::env;
use std::fmt;
use std::time::Duration;

use futures::TryStreamExt;

use crate::error::{Error, Result};
use crate::machine::{self, Memory};
use crate::model::device::{self, Cuda, DeviceChoice, LIBTORCH_VERSION};
use crate::store::{self, Entry, printable};
use crate::terminal::outln;

/// Time limit for a store's first answer. The store's own retries take longer than a user at a terminal wants to wait.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// Less free memory or disk space than this is noted, in bytes: a run works, but may run short.
const LOW_SPACE: u64 = 2 << 30;

/// Check whether this machine and its storage are ready, and print how to fix what is not
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Storage to check, such as s3://bucket/cohort, gs://bucket, az://container or a folder
    #[arg(value_name = "URL")]
    addresses: Vec<String>,
    /// Device that must be usable: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

impl DoctorArgs {
    /// Runs all checks and prints their results.
    ///
    /// # Errors
    /// [`Error::Config`] where something required is missing.
    pub async fn run(self) -> Result<()> {
        let mut findings = vec![libtorch(), gpu(), chosen_device(self.device), processor(), memory(), disk()];
        for finding in &findings {
            outln!("{finding}");
        }
        for (index, address) in self.addresses.iter().enumerate() {
            let finding = storage(index + 1, address).await;
            outln!("{finding}");
            findings.push(finding);
        }
        match findings.iter().filter(|finding| finding.verdict == Verdict::Missing).count() {
            0 => Ok(()),
            missing => Err(Error::Config(format!(
                "{missing} of {} checks failed; the lines that begin with 'miss' say what to do",
                findings.len()
            ))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    Limited,
    Missing,
}

/// The result of one check.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    subject: String,
    text: String,
}

impl Finding {
    fn new(verdict: Verdict, subject: &str, text: impl Into<String>) -> Self {
        Self { verdict, subject: subject.to_owned(), text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Limited => "note",
            Verdict::Missing => "miss",
        };
        write!(f, "{word:<4}  {:<9}  {}", self.subject, self.text)
    }
}

fn libtorch() -> Finding {
    let found = |verdict, text: String| Finding::new(verdict, "libtorch", text);
    let Some(folder) = device::libtorch_folder() else {
        return found(Verdict::Limited, "loaded; the system does not report from which folder".to_owned());
    };
    match device::libtorch_version(&folder) {
        Some(version) if version.split('+').next() == Some(LIBTORCH_VERSION) => {
            found(Verdict::Fine, format!("{version}, {}", folder.display()))
        }
        Some(version) => found(
            Verdict::Missing,
            format!(
                "{version} was loaded from {}, but this program needs {LIBTORCH_VERSION}; check LD_LIBRARY_PATH",
                folder.display()
            ),
        ),
        None => found(Verdict::Fine, format!("version unknown, {}", folder.display())),
    }
}

fn gpu() -> Finding {
    let cuda = device::cuda();
    let verdict = if matches!(cuda, Cuda::Ready { .. }) { Verdict::Fine } else { Verdict::Limited };
    Finding::new(verdict, "GPU", cuda.to_string())
}

fn chosen_device(choice: DeviceChoice) -> Finding {
    match device::resolve(choice) {
        Ok(tch::Device::Cuda(number)) => Finding::new(Verdict::Fine, "device", format!("{choice}: GPU {number}")),
        Ok(_) => {
            Finding::new(Verdict::Fine, "device", format!("{choice}: processor, {} threads", tch::get_num_threads()))
        }
        Err(e) => Finding::new(Verdict::Missing, "device", e.to_string()),
    }
}

fn processor() -> Finding {
    let cores = machine::cores();
    let units = machine::vector_units();
    if units.contains(&"avx2") || !cfg!(target_arch = "x86_64") {
        return Finding::new(
            Verdict::Fine,
            "processor",
            format!("{cores} cores for this process; {}", units.join(" ")),
        );
    }
    let text = format!("{cores} cores for this process, without AVX2: libtorch uses its slow kernels");
    Finding::new(Verdict::Limited, "processor", text)
}

fn memory() -> Finding {
    let (here, machine) = (Memory::of_process(), Memory::of_machine());
    // The limit of a control group ends the process, even if the machine has more memory.
    let text = if here.total < machine.total {
        format!(" (the limit of the control group; the machine has {})", gib(machine.total))
    } else {
        String::new()
    };
    let text = format!("{} of {} available{text}", gib(here.free), gib(here.total));
    space("memory", here.free, text, "only a few scans can be in flight at a time")
}

fn disk() -> Finding {
    let Ok(folder) = env::current_dir() else {
        return Finding::new(Verdict::Limited, "disk", "the current folder cannot be read");
    };
    match machine::free_disk(&folder) {
        Some(free) => {
            let text = format!("{} available in {}", gib(free), folder.display());
            space("disk", free, text, "tables written here may not fit")
        }
        None => Finding::new(Verdict::Limited, "disk", format!("the free space in {} is unknown", folder.display())),
    }
}

/// A finding about available bytes. `when_low` is the consequence where they are few.
fn space(subject: &str, available: u64, text: String, when_low: &str) -> Finding {
    if available < LOW_SPACE {
        return Finding::new(Verdict::Limited, subject, format!("{text}: {when_low}"));
    }
    Finding::new(Verdict::Fine, subject, text)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Checks whether the store at the address answers. An address that cannot be opened is reported by its number, because it
/// may hold a password or a signature.
async fn storage(number: usize, address: &str) -> Finding {
    let found = |verdict, text: String| Finding::new(verdict, "storage", text);
    let location = match store::open(address) {
        Ok(location) => location,
        Err(e) => return found(Verdict::Missing, format!("address {number}: {e}")),
    };
    // An entry that cannot be read says that the store answers, too.
    let mut entries = location.list().map_ok(|entry| match entry {
        Entry::Object { uri, .. } => printable(uri.as_bytes()),
        Entry::Unusable(entry) => printable(&entry.name),
    });
    match tokio::time::timeout(STORE_TIMEOUT, entries.try_next()).await {
        Ok(Ok(Some(name))) => found(Verdict::Fine, format!("{location} answers; the first object listed is {name}")),
        Ok(Ok(None)) => found(Verdict::Limited, format!("{location} answers; there is no object below this address")),
        Ok(Err(e)) => found(Verdict::Missing, e.to_string()),
        Err(_) => found(
            Verdict::Missing,
            format!(
                "{location} gave no answer in {} s; check the network, the endpoint and the proxy",
                STORE_TIMEOUT.as_secs()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking_for(addresses: Vec<String>) -> DoctorArgs {
        DoctorArgs { addresses, device: DeviceChoice::Cpu }
    }

    #[tokio::test]
    async fn a_folder_with_a_scan_answers_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sub-01_T1w.nii.gz"), "x").unwrap();
        let address = folder.path().to_str().unwrap().to_owned();
        let finding = storage(1, &address).await;
        assert_eq!(finding.verdict, Verdict::Fine, "{finding}");
        assert!(finding.text.ends_with("answers; the first object listed is sub-01_T1w.nii.gz"), "{finding}");
        asking_for(vec![address]).run().await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_opened_fails_the_command_and_is_not_repeated() {
        let address = "s3://bucket/cohort?signature=secret".to_owned();
        let finding = storage(1, &address).await;
        assert_eq!(finding.verdict, Verdict::Missing);
        assert!(!finding.text.contains("secret"), "{finding}");
        let error = asking_for(vec![address]).run().await.unwrap_err();
        assert!(error.to_string().starts_with("1 of 7 checks failed"), "{error}");
    }

    #[test]
    fn a_gpu_that_no_machine_has_is_missing() {
        let finding = chosen_device(DeviceChoice::Cuda(4096));
        assert_eq!(finding.verdict, Verdict::Missing);
        assert!(finding.text.contains("cuda:4096 is not available"), "{finding}");
    }

    #[test]
    fn low_space_is_noted_with_its_consequence() {
        let finding = space("disk", 1 << 30, gib(1 << 30), "tables may not fit");
        assert_eq!(finding.to_string(), "note  disk       1.0 GiB: tables may not fit");
    }
}
