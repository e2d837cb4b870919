//! Products of matrices at full width on every x86-64 processor.
//!
//! libtorch multiplies f32 matrices with MKL, which takes AVX-512 on processors that call themselves Intel's alone, and
//! computes at less than half the speed on others that have it too (`neurosieve bench device` on an AMD EPYC: 122 and 270
//! GFLOP/s). It asks `mkl_serv_intel_cpu_true`, a function that libtorch_cpu.so exports; the dynamic linker finds this
//! program's first. Which instructions there are MKL still learns from the processor itself.

use std::ffi::c_int;

/// What MKL asks before it looks for wide instructions; 1: go on and look.
#[allow(unsafe_code, reason = "the name is one of MKL's: it takes the place of the function that libtorch brings")]
#[unsafe(no_mangle)]
extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    1
}
