//! Time on a device: how long work takes, and how long the processor takes to launch it.

use std::time::{Duration, Instant};

use tch::{Cuda, Device, Kind, Tensor};

/// Repetitions of a measurement. The fastest counts, because other work on the machine only slows a run down.
const ROUNDS: usize = 15;

/// Shortest time of one repetition. Faster actions run several times in it.
const MIN_TIME: Duration = Duration::from_millis(20);

/// An action that takes longer than this is measured once.
const LONG: Duration = Duration::from_secs(5);

/// Waits until a GPU has finished its queue; does nothing on the processor.
pub(super) fn wait_for(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}

/// Seconds that `action` takes, the device's queue included.
pub(super) fn seconds(device: Device, action: &dyn Fn()) -> f64 {
    let run = |times: usize| {
        let started = Instant::now();
        (0..times).for_each(|_| action());
        wait_for(device);
        started.elapsed()
    };
    // The first run loads kernels and chooses algorithms.
    let first = run(1);
    if first > LONG {
        return first.as_secs_f64();
    }
    let times = (MIN_TIME.as_secs_f64() / run(1).as_secs_f64().max(1e-9)).ceil() as usize;
    (0..ROUNDS).map(|_| run(times).as_secs_f64() / times as f64).fold(f64::INFINITY, f64::min)
}

/// Seconds until all of `action`'s work is launched on a GPU; `None` on the processor. The time includes any wait of the
/// action for a result of the GPU.
pub(super) fn launch_seconds(device: Device, action: &dyn Fn()) -> Option<f64> {
    if device == Device::Cpu {
        return None;
    }
    let run = || {
        wait_for(device);
        let started = Instant::now();
        action();
        started.elapsed().as_secs_f64()
    };
    let fastest = (0..ROUNDS).map(|_| run()).fold(f64::INFINITY, f64::min);
    wait_for(device);
    Some(fastest)
}

/// GFLOP/s of the fastest of a few large square matrix products in `kind`.
pub(super) fn ceiling(device: Device, kind: Kind) -> f64 {
    let sizes: &[i64] = if device.is_cuda() { &[4096, 8192] } else { &[1024, 2048] };
    let product = |&n: &i64| {
        let (a, b) = (Tensor::rand([n, n], (kind, device)), Tensor::rand([n, n], (kind, device)));
        2. * (n as f64).powi(3) / seconds(device, &|| drop(a.matmul(&b))) / 1e9
    };
    sizes.iter().map(product).fold(0., f64::max)
}
