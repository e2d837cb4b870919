//! Sets where the built programs look for libtorch at run time.
//!
//! Two places, in this order: `../lib/neurosieve` relative to the program's folder, where a package puts the library, and
//! the folder that this build used. Programs, tests, benches and examples then start without `LD_LIBRARY_PATH`. The
//! libraries that libtorch itself needs are found through `$ORIGIN` in libtorch's own run path.

use std::env;
use std::path::PathBuf;
use std::process::exit;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!(
            "cargo::error=LIBTORCH is not set. Run scripts/libtorch.sh once: it fetches libtorch and sets up cargo."
        );
        exit(1);
    };
    let lib = libtorch.join("lib");
    if !lib.join("libtorch_cpu.so").exists() {
        let lib = lib.display();
        println!("cargo::error=LIBTORCH is set, but {lib} has no libtorch_cpu.so. Run scripts/libtorch.sh.");
        exit(1);
    }
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/neurosieve");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // Our definition replaces libtorch's (`model::mkl`). No Rust code refers to it, so the linker must keep it.
    println!("cargo::rustc-link-arg=-Wl,--undefined=mkl_serv_intel_cpu_true");
}
