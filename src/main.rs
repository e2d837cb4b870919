//! The `neurosieve` program: parses the command line and hands over to `cli/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    one_heap_per_core();
    neurosieve::cli::main()
}

/// glibc opens up to eight heaps per core, and each keeps what the largest scan that passed through it took. One per core
/// is as fast, and takes a sixth less memory. `MALLOC_ARENA_MAX` in the environment stands.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "glibc's settings have no safe interface")]
fn one_heap_per_core() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let cores = neurosieve::machine::cores();
        // SAFETY: mallopt may be called at any time; no other thread runs yet. Where it refuses, all stays as it was.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, cores as libc::c_int) };
    }
}
