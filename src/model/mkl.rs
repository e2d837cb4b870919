//! Makes MKL use AVX-512 on every x86-64 processor that has it.
//!
//! libtorch multiplies f32 matrices with MKL, which uses AVX-512 on Intel's processors alone and runs at less than half
//! the speed on others (`neurosieve bench device` on an AMD EPYC: 122 GFLOP/s, and 270 with this file). MKL asks
//! `mkl_serv_intel_cpu_true`, a function that libtorch_cpu.so exports; the dynamic linker resolves it to the one below.
//! MKL still asks the processor which instructions it has.

use std::ffi::c_int;

/// Whether MKL may look for wide instructions: 1 for yes.
#[allow(unsafe_code, reason = "the exported name replaces MKL's function of the same name")]
#[unsafe(no_mangle)]
extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    1
}
