//! The device that libtorch computes on: the processor, or one GPU.
//!
//! [`resolve`] turns a [`DeviceChoice`] from a pipeline file or the command line into a [`tch::Device`]. It refuses a
//! GPU that cannot be used; with `auto` it then takes the processor.
//!
//! # One program for both
//!
//! The program is linked with libtorch's processor part alone, so it starts on every machine. The CUDA part is one more
//! library, `libtorch_cuda.so`, which registers itself with libtorch when it is loaded. [`cuda`] loads it at run time
//! from the path in the variable `NEUROSIEVE_LIBTORCH_CUDA` (the file, or its folder), or else from the folder that
//! this process loaded `libtorch_cpu.so` from.
//!
//! A Python environment with the same PyTorch version provides it:
//! ```sh
//! pip install torch==2.11.0
//! export NEUROSIEVE_LIBTORCH_CUDA=$(python3 -c 'import torch; print(torch.__path__[0] + "/lib")')
//! ```
//! There `libtorch_cuda.so` finds cuDNN, cuBLAS and the other CUDA libraries by its run path. It also needs
//! `libtorch_cpu.so` and `libc10.so`; the dynamic linker identifies libraries by name, so it uses the copies already in
//! this process. Both parts must therefore be of the same version, which is checked.

use std::cell::Cell;
use std::env;
use std::fmt;
use std::fs;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The version of libtorch that this program is written for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

const CUDA_LIBRARY: &str = "libtorch_cuda.so";
const CUDA_VARIABLE: &str = "NEUROSIEVE_LIBTORCH_CUDA";

/// The device that the user wants. As text: `auto`, `cpu`, `cuda` (the first GPU) or `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU if one can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU with this number, counted from 0 among those that `CUDA_VISIBLE_DEVICES` leaves visible.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        number.map(Self::Cuda).ok_or_else(|| {
            Error::Config(format!(
                "unknown device '{text}'; write auto, cpu, cuda (the first GPU) or cuda:1 (the second, and so on)"
            ))
        })
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Makes libtorch compute on the calling thread alone; call this on every thread that uses libtorch. Several threads
/// would sum matrix products in another order, and a scan's last digits must not depend on the number of cores.
pub fn on_calling_thread() {
    tch::set_num_threads(1);
}

thread_local! {
    /// Whether this thread is within [`caught`].
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics that [`caught`] turns into errors from being printed as well. To be called once, by the program.
pub fn silence_caught_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !CAUGHT.get() {
            print(info);
        }
    }));
}

/// Runs `work` and turns a panic into a device error, since tch turns libtorch's exceptions into panics.
///
/// # Errors
/// The error of `work`; [`Error::Device`] where it panics.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let outer = CAUGHT.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(tch::TchError::Torch(text.to_owned()).into())
    })
}

/// Whether the device still computes. After some errors of CUDA no call succeeds until the process ends.
///
/// # Errors
/// [`Error::Device`] where it does not.
pub fn check(device: tch::Device) -> Result<()> {
    caught(|| {
        let sum = tch::Tensor::f_ones([8], (tch::Kind::Float, device))?.f_sum(tch::Kind::Float)?;
        let sum = f64::try_from(sum)?;
        let message = format!("the device computes 8 ones to {sum}: check it with `neurosieve doctor`");
        if sum == 8. { Ok(()) } else { Err(Error::Device { message, smaller: false }) }
    })
}

/// The device to compute on. Call this before any other use of libtorch: libtorch looks for its CUDA part once, at its
/// first use.
///
/// # Errors
/// [`Error::Device`] where `choice` names a GPU that cannot be used; the message says what is missing.
pub fn resolve(choice: DeviceChoice) -> Result<tch::Device> {
    choose(choice, cuda)
}

/// [`resolve`] with the state of CUDA from `cuda`, which is not called for the processor.
fn choose<'a>(choice: DeviceChoice, cuda: impl FnOnce() -> &'a Cuda) -> Result<tch::Device> {
    let missing = |message: String| Err(Error::Device { message, smaller: false });
    match choice {
        DeviceChoice::Cpu => Ok(tch::Device::Cpu),
        DeviceChoice::Auto => match cuda() {
            Cuda::Ready { .. } => Ok(tch::Device::Cuda(0)),
            absent => {
                // The text of `absent` may name folders of this machine, which a log must not.
                tracing::debug!(reason = absent.word(), "no usable GPU; computing on the processor");
                Ok(tch::Device::Cpu)
            }
        },
        DeviceChoice::Cuda(number) => match cuda() {
            Cuda::Ready { gpus, .. } if number < *gpus => Ok(tch::Device::Cuda(number)),
            Cuda::Ready { gpus, .. } => missing(format!(
                "{choice} is not available: the last GPU here is cuda:{}; see nvidia-smi and CUDA_VISIBLE_DEVICES",
                gpus - 1
            )),
            absent => missing(format!("{choice} is not available: {absent}")),
        },
    }
}

/// Whether this process can use CUDA. The text states what is missing and what to do. It holds paths, so it is for the
/// user's terminal and not for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuda {
    /// GPUs `cuda:0` to `cuda:{gpus - 1}` can be used.
    Ready {
        /// The library that was loaded.
        library: PathBuf,
        /// Number of GPUs, at least 1.
        gpus: usize,
    },
    /// There is no `libtorch_cuda.so` at its path.
    NoLibrary {
        /// The file that does not exist.
        looked_for: PathBuf,
    },
    /// The library exists but cannot be used: it has another version, or one of its own libraries is missing.
    Unusable {
        /// The library.
        library: PathBuf,
        /// The dynamic linker's message, or the version found.
        reason: String,
    },
    /// The library was loaded but finds no GPU.
    NoGpu {
        /// The library that was loaded.
        library: PathBuf,
    },
}

impl Cuda {
    /// A short stable identifier for logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::NoLibrary { .. } => "no_library",
            Self::Unusable { .. } => "unusable_library",
            Self::NoGpu { .. } => "no_gpu",
        }
    }
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { library, gpus } => write!(f, "{gpus} GPU(s) through {}", library.display()),
            Self::NoLibrary { looked_for } => write!(
                f,
                "{} does not exist. Set {CUDA_VARIABLE} to the lib folder of PyTorch {LIBTORCH_VERSION} with CUDA",
                looked_for.display()
            ),
            Self::Unusable { library, reason } => write!(
                f,
                "{} cannot be used: {reason}. Set {CUDA_VARIABLE} to the lib folder of PyTorch {LIBTORCH_VERSION} with CUDA",
                library.display()
            ),
            Self::NoGpu { .. } if !Path::new("/proc/driver/nvidia/version").exists() => {
                f.write_str("no NVIDIA driver was found: install it, or start the container with GPUs")
            }
            Self::NoGpu { .. } => {
                f.write_str("the NVIDIA driver shows no usable GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES")
            }
        }
    }
}

/// Loads libtorch's CUDA part at the first call and says whether it can be used; later calls give the same answer.
pub fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        let asked = env::var_os(CUDA_VARIABLE).map(PathBuf::from);
        load(cuda_library(asked, libtorch_folder()))
    })
}

/// The folder that this process loaded `libtorch_cpu.so` from; `None` where the system does not list it.
pub fn libtorch_folder() -> Option<PathBuf> {
    // Columns: address, permissions, offset, device, inode, path. Only the path has a slash.
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines()
        .filter_map(|line| Some(Path::new(&line[line.find('/')?..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))?
        .parent()
        .map(Path::to_path_buf)
}

/// The version of the libtorch or PyTorch around a `lib` folder, such as `2.11.0+cu130`, from its version file.
pub fn libtorch_version(lib: &Path) -> Option<String> {
    let home = lib.parent()?;
    if let Ok(version) = fs::read_to_string(home.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let python = fs::read_to_string(home.join("version.py")).ok()?;
    let version = python.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(version.trim_matches(['\'', '"']).to_owned())
}

/// Path of the CUDA part. `asked` is the user's choice and excludes the other folder.
fn cuda_library(asked: Option<PathBuf>, libtorch_folder: Option<PathBuf>) -> PathBuf {
    match asked {
        Some(file) if file.extension().is_some_and(|extension| extension == "so") => file,
        Some(folder) => folder.join(CUDA_LIBRARY),
        None => libtorch_folder.unwrap_or_default().join(CUDA_LIBRARY),
    }
}

fn load(library: PathBuf) -> Cuda {
    if !library.is_file() {
        return Cuda::NoLibrary { looked_for: library };
    }
    let version = library.parent().and_then(libtorch_version);
    if let Some(version) = version.filter(|v| v.split('+').next() != Some(LIBTORCH_VERSION)) {
        return Cuda::Unusable { library, reason: format!("it has version {version}") };
    }
    if let Err(e) = load_for_good(&library) {
        return Cuda::Unusable { library, reason: e.to_string() };
    }
    match usize::try_from(tch::Cuda::device_count()) {
        Ok(gpus) if gpus > 0 => Cuda::Ready { library, gpus },
        _ => Cuda::NoGpu { library },
    }
}

/// Loads a library and never unloads it, because libtorch keeps pointers into it. All its symbols are resolved now, so
/// that a library that does not fit is refused here and not in the middle of a run. The symbols are global, for the
/// linear algebra library that libtorch loads later.
#[allow(unsafe_code, reason = "the one place where libtorch's CUDA part is loaded at run time")]
fn load_for_good(library: &Path) -> Result<(), libloading::Error> {
    // SAFETY: loading runs the library's initialisers, which register its kernels with the libtorch in this process.
    // They are written for that, and the version check above excludes a library for another libtorch. The handle is
    // leaked, so no finaliser ever runs.
    let handle = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }?;
    let _ = handle.into_raw();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_as_it_is_written() {
        for (text, choice, shown) in [
            ("auto", DeviceChoice::Auto, "auto"),
            ("cpu", DeviceChoice::Cpu, "cpu"),
            ("cuda", DeviceChoice::Cuda(0), "cuda:0"),
            ("cuda:3", DeviceChoice::Cuda(3), "cuda:3"),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), shown);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<DeviceChoice>(&json).unwrap(), choice);
        }
    }

    #[test]
    fn an_error_about_a_choice_lists_the_valid_ones() {
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", ""] {
            let message = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.contains(&format!("'{text}'")) && message.contains("auto, cpu, cuda"), "{message}");
        }
    }

    #[test]
    fn auto_takes_the_first_gpu_or_the_processor() {
        let ready = Cuda::Ready { library: "l".into(), gpus: 2 };
        let absent = Cuda::NoLibrary { looked_for: "l".into() };
        assert_eq!(choose(DeviceChoice::Auto, || &ready).unwrap(), tch::Device::Cuda(0));
        assert_eq!(choose(DeviceChoice::Auto, || &absent).unwrap(), tch::Device::Cpu);
        assert_eq!(choose(DeviceChoice::Cpu, || panic!("CUDA must stay untouched")).unwrap(), tch::Device::Cpu);
    }

    #[test]
    fn a_gpu_by_number_is_that_one_or_an_error() {
        let ready = Cuda::Ready { library: "l".into(), gpus: 2 };
        assert_eq!(choose(DeviceChoice::Cuda(1), || &ready).unwrap(), tch::Device::Cuda(1));
        let message = choose(DeviceChoice::Cuda(2), || &ready).unwrap_err().to_string();
        assert!(message.contains("cuda:2 is not available: the last GPU here is cuda:1"), "{message}");
        let absent = Cuda::NoLibrary { looked_for: "here/libtorch_cuda.so".into() };
        let message = choose(DeviceChoice::Cuda(0), || &absent).unwrap_err().to_string();
        assert!(message.contains(CUDA_VARIABLE) && message.contains("here/libtorch_cuda.so"), "{message}");
    }

    #[test]
    fn the_variable_takes_precedence_over_the_folder_of_libtorch() {
        let place = |asked: Option<&str>| cuda_library(asked.map(PathBuf::from), Some("/lib".into()));
        assert_eq!(place(None), Path::new("/lib/libtorch_cuda.so"));
        assert_eq!(place(Some("/py/lib")), Path::new("/py/lib/libtorch_cuda.so"));
        assert_eq!(place(Some("/py/my_cuda.so")), Path::new("/py/my_cuda.so"));
    }

    #[test]
    fn libtorch_of_this_process_is_found() {
        let folder = libtorch_folder().expect("a folder");
        assert!(folder.join("libtorch_cpu.so").is_file());
    }

    #[test]
    fn a_library_of_another_version_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let lib = home.path().join("lib");
        fs::create_dir(&lib).unwrap();
        fs::write(lib.join(CUDA_LIBRARY), "never opened").unwrap();
        fs::write(home.path().join("version.py"), "__all__ = []\n__version__ = '2.4.1+cu121'\n").unwrap();
        let found = load(lib.join(CUDA_LIBRARY));
        assert!(found.to_string().contains("cannot be used: it has version 2.4.1+cu121"), "{found}");
    }

    #[test]
    fn a_file_that_is_not_a_library_is_refused_with_the_linkers_message() {
        let lib = tempfile::tempdir().unwrap();
        fs::write(lib.path().join(CUDA_LIBRARY), "not a library").unwrap();
        let found = load(lib.path().join(CUDA_LIBRARY));
        assert!(matches!(&found, Cuda::Unusable { reason, .. } if !reason.is_empty()), "{found}");
    }
}
