//! `neurosieve doctor`: tells whether this machine can do the work, and what to do where it cannot.
//!
//! Takes storage URLs to try. Prints one line per thing looked at: `ok`, `note` (the work can be done, with a limit) or
//! `miss` (something required is missing), and ends with an error where anything is missing. Paths of this machine are
//! printed: the output goes to the terminal of whoever asked.

use std::env;
use std::fmt;
use std::time::Duration;

use futures::TryStreamExt;

use crate::error::{Error, Result};
use crate::machine::{self, Memory};
use crate::model::device::{self, Cuda, DeviceChoice, LIBTORCH_VERSION};
use crate::store;

/// How long a store may take for its first answer. Its own retries go on for longer; a user who asks waits for less.
const STORE_PATIENCE: Duration = Duration::from_secs(30);

/// Below this, a run that works is still likely to be short of room.
const LITTLE_ROOM: u64 = 2 << 30;

/// Check whether this machine and its storage are ready, and say what to do where they are not
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Storage to try, such as s3://bucket/cohort, gs://bucket, az://container or a folder
    #[arg(value_name = "URL")]
    addresses: Vec<String>,
    /// Device that must be usable: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceChoice,
}

impl DoctorArgs {
    /// Looks at everything and prints what it found.
    ///
    /// # Errors
    /// [`Error::Config`] where something required is missing.
    pub async fn run(self) -> Result<()> {
        let mut findings = vec![libtorch(), gpu(), chosen_device(self.device), processor(), memory(), disk()];
        for finding in &findings {
            println!("{finding}");
        }
        for (index, address) in self.addresses.iter().enumerate() {
            let finding = storage(index + 1, address).await;
            println!("{finding}");
            findings.push(finding);
        }
        match findings.iter().filter(|finding| finding.verdict == Verdict::Missing).count() {
            0 => Ok(()),
            missing => Err(Error::Config(format!(
                "{missing} of {} things looked at are missing; the lines that begin with 'miss' say what to do",
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

/// One thing looked at.
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
        return found(Verdict::Limited, "loaded; this system does not tell from where".to_owned());
    };
    match device::libtorch_version(&folder) {
        Some(version) if version.split('+').next() == Some(LIBTORCH_VERSION) => {
            found(Verdict::Fine, format!("{version}, {}", folder.display()))
        }
        Some(version) => found(
            Verdict::Missing,
            format!(
                "{version} was loaded from {}, but this program needs {LIBTORCH_VERSION}; see LD_LIBRARY_PATH",
                folder.display()
            ),
        ),
        None => found(Verdict::Fine, format!("of unstated version, {}", folder.display())),
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
    // A container's own limit ends the process, however much the machine has.
    let text = if here.total < machine.total {
        format!(" (the limit of this container; the machine has {})", gib(machine.total))
    } else {
        String::new()
    };
    let text = format!("{} of {} available{text}", gib(here.free), gib(here.total));
    roomy("memory", here.free, text, "few scans will be in work at a time")
}

fn disk() -> Finding {
    let Ok(folder) = env::current_dir() else {
        return Finding::new(Verdict::Limited, "disk", "the current folder cannot be read");
    };
    match machine::free_disk(&folder) {
        Some(free) => {
            let text = format!("{} available in {}", gib(free), folder.display());
            roomy("disk", free, text, "tables written here may not fit")
        }
        None => Finding::new(Verdict::Limited, "disk", format!("no word of the room left in {}", folder.display())),
    }
}

/// A finding about room in bytes, with what follows where it is little.
fn roomy(subject: &str, available: u64, text: String, when_little: &str) -> Finding {
    if available < LITTLE_ROOM {
        return Finding::new(Verdict::Limited, subject, format!("{text}: {when_little}"));
    }
    Finding::new(Verdict::Fine, subject, text)
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Whether the store behind the address of this number answers. An address that cannot be opened is shown by its number:
/// it may hold a password or a signature.
async fn storage(number: usize, address: &str) -> Finding {
    let found = |verdict, text: String| Finding::new(verdict, "storage", text);
    let location = match store::open(address) {
        Ok(location) => location,
        Err(e) => return found(Verdict::Missing, format!("address {number}: {e}")),
    };
    let mut objects = location.store.list(Some(&location.root));
    match tokio::time::timeout(STORE_PATIENCE, objects.try_next()).await {
        Ok(Ok(Some(object))) => {
            let name = location.relative(&object.location).unwrap_or_default();
            found(Verdict::Fine, format!("{location} answers; the first object listed is {name}"))
        }
        Ok(Ok(None)) => found(Verdict::Limited, format!("{location} answers, and has nothing below this address")),
        Ok(Err(e)) => found(Verdict::Missing, location.explain("list", e).to_string()),
        Err(_) => found(
            Verdict::Missing,
            format!(
                "{location} gave no answer in {} s; check the network, the endpoint and the proxy",
                STORE_PATIENCE.as_secs()
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
        assert!(error.to_string().starts_with("1 of 7 things"), "{error}");
    }

    #[test]
    fn a_gpu_that_no_machine_has_is_missing() {
        let finding = chosen_device(DeviceChoice::Cuda(4096));
        assert_eq!(finding.verdict, Verdict::Missing);
        assert!(finding.text.contains("cuda:4096 is not available"), "{finding}");
    }

    #[test]
    fn little_room_is_noted_with_its_consequence() {
        let finding = roomy("disk", 1 << 30, gib(1 << 30), "tables may not fit");
        assert_eq!(finding.to_string(), "note  disk       1.0 GiB: tables may not fit");
    }
}
