//! Smaller batches for a device that runs out of memory.

use crate::error::{Result, Retry};

/// Runs `work` with batches of `batch` slices, and with half of that, and so on, while it fails for lack of device
/// memory. Callers pass the same `batch` for every scan: its numbers must not depend on the scans before it.
///
/// # Errors
/// The error of `work`: any that a smaller batch cannot fix, or the lack of memory for a single slice.
pub(crate) fn within_memory<T>(batch: usize, work: impl Fn(usize) -> Result<T>) -> Result<T> {
    let mut batch = batch.max(1);
    loop {
        match work(batch) {
            Err(error) if error.retry() == Retry::Smaller && batch > 1 => {
                tracing::warn!(slices = batch, "out of device memory; retrying with half as many slices per batch");
                batch /= 2;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::error::Error;
    use crate::model::device;

    /// Allocates 2^40 numbers per slice, more than any machine has, to get libtorch's own error.
    fn needs(slices: usize) -> Result<i64> {
        device::caught(|| Ok(Tensor::zeros([slices as i64, 1 << 40], (Kind::Double, Device::Cpu)).size()[0]))
    }

    #[test]
    fn out_of_memory_is_retried_with_half_as_many_slices() {
        let tried = RefCell::new(Vec::new());
        let done = within_memory(16, |slices| {
            tried.borrow_mut().push(slices);
            if slices > 3 { needs(slices).map(|_| 0) } else { Ok(slices) }
        });
        assert_eq!((done.unwrap(), tried.into_inner()), (2, vec![16, 8, 4, 2]));
        let error = within_memory(2, needs).unwrap_err();
        assert_eq!(error.kind(), "out_of_device_memory", "{error}");
        // Other errors are not retried.
        let tried = RefCell::new(0);
        let failed = within_memory(16, |_| {
            *tried.borrow_mut() += 1;
            Err::<(), _>(Error::input("no_brain", "none"))
        });
        assert!(failed.is_err() && tried.into_inner() == 1);
    }
}
