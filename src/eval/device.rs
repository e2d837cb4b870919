//! What a device does with a bundle: time per network, and how far that is from what the device can do.
//!
//! Takes a bundle, a device and a batch; every network runs on made-up inputs of the bundle's size until its time is
//! steady. The ceiling is the best of a few large matrix products in the same kind of number, measured in the same run.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use tch::{Cuda, Device, Kind, Tensor};

use crate::error::Result;
use crate::model::{Bundle, CONTEXT, DOWNSAMPLING, Decoding, device};

/// Runs of one thing; the median counts.
const ROUNDS: usize = 7;

/// One run takes at least this long; what is shorter is repeated within the run.
const LEAST: Duration = Duration::from_millis(50);

/// Slices of a brain at 2 mm that hold brain, for scans per second.
const SLICES_PER_SCAN: f64 = 80.;

/// Share of a restored slice's tokens that are masked.
const MASKED: f64 = 0.1;

/// One network.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkSpeed {
    /// Its name.
    pub name: &'static str,
    /// Milliseconds per slice.
    pub ms_per_slice: f64,
    /// Floating point operations per slice: products and sums of convolutions, linear maps and attention.
    pub flop_per_slice: f64,
    /// What was reached.
    pub gflops: f64,
    /// Of the ceiling.
    pub share_of_ceiling: f64,
}

/// A device with a bundle.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "each says what it is")]
pub struct DeviceSpeed {
    pub device: String,
    pub kind: String,
    pub threads: i64,
    pub bundle: String,
    pub batch: i64,
    pub tokens: [i64; 2],
    /// Large matrix products, GFLOP/s.
    pub ceiling_gflops: f64,
    pub networks: Vec<NetworkSpeed>,
    /// Restorations, steps and share of in-painted slices that `scans_per_second` is for.
    pub restorations: i64,
    pub steps: i64,
    pub open_share: f64,
    pub slices_per_second: f64,
    pub scans_per_second: f64,
}

/// What is measured.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each says what it is")]
pub struct DeviceSettings {
    pub device: device::DeviceChoice,
    pub bundle: String,
    pub batch: i64,
    pub bf16: bool,
    pub restorations: i64,
    pub steps: i64,
    /// Share of slices with something to in-paint.
    pub open_share: f64,
}

/// Measures a device.
///
/// # Errors
/// Where the device cannot be used or the bundle does not load.
pub fn measure(settings: &DeviceSettings) -> Result<DeviceSpeed> {
    let device = device::resolve(settings.device)?;
    let bundle = Bundle::open(&settings.bundle)?;
    let networks = bundle.networks(device)?;
    let kind = if settings.bf16 { Kind::BFloat16 } else { Kind::Float };
    let (batch, tokens @ [rows, columns]) = (settings.batch.max(1), bundle.info.tokens);
    let vocabulary = bundle.info.tokenizer.vocabulary();
    tch::manual_seed(1);
    let image = Tensor::rand([batch, 1, rows * DOWNSAMPLING, columns * DOWNSAMPLING], (kind, device));
    let codes =
        Tensor::randint(vocabulary.codes(), [batch, CONTEXT.len() as i64, rows, columns], (Kind::Int64, device));
    let middle = codes.select(1, 1).contiguous();
    let z_mm = Tensor::linspace(-50., 60., batch, (Kind::Float, device));
    let mask = Tensor::rand([batch, rows, columns], (Kind::Float, device)).lt(MASKED);
    let masked = i64::try_from(mask.sum(Kind::Int64))?;
    let noise = Tensor::rand([masked, vocabulary.codes()], (Kind::Float, device));
    let decoding = Decoding { steps: settings.steps, temperature: 1. };

    let ceiling = ceiling(device, kind);
    let per_slice = |name, flop_per_slice: f64, action: &dyn Fn()| {
        let seconds = tch::no_grad(|| seconds(device, action)) / batch as f64;
        let gflops = flop_per_slice / seconds / 1e9;
        NetworkSpeed { name, ms_per_slice: 1e3 * seconds, flop_per_slice, gflops, share_of_ceiling: gflops / ceiling }
    };
    let info = &bundle.info;
    let n = rows * columns;
    let [encode, decode] = networks.tokenizer.flop(tokens);
    let judge = info.detector.flop(n, vocabulary.width() * CONTEXT.len() as i64, 1);
    let guess = info.inpainter.flop(n, vocabulary.width(), vocabulary.codes());
    // A restoration needs the head for its masked tokens alone.
    let restore = settings.steps as f64 * info.inpainter.flop(n, vocabulary.width(), 0)
        + settings.steps as f64 * 2. * (info.inpainter.width * vocabulary.codes()) as f64 * masked as f64
            / batch as f64;
    let measured = vec![
        per_slice("encode", encode, &|| drop(networks.tokenizer.encode(&image))),
        per_slice("decode", decode, &|| drop(networks.tokenizer.decode(&middle, kind))),
        per_slice("detector", judge, &|| drop(networks.detector.forward(&codes, &z_mm, kind))),
        per_slice("inpainter", guess, &|| drop(networks.inpainter.forward(&middle, &z_mm, kind))),
        per_slice("restore", restore, &|| {
            drop(networks.inpainter.restore(&middle, &mask, &z_mm, &noise, decoding, kind));
        }),
    ];
    let ms = |name: &str| measured.iter().find(|network| network.name == name).map_or(0., |n| n.ms_per_slice);
    let draws = settings.open_share * settings.restorations as f64;
    let slice_ms = ms("encode") + ms("detector") + ms("decode") + draws * (ms("restore") + ms("decode"));
    Ok(DeviceSpeed {
        device: format!("{device:?}"),
        kind: format!("{kind:?}"),
        threads: i64::from(tch::get_num_threads()),
        bundle: bundle.label(),
        batch,
        tokens,
        ceiling_gflops: ceiling,
        networks: measured,
        restorations: settings.restorations,
        steps: settings.steps,
        open_share: settings.open_share,
        slices_per_second: 1e3 / slice_ms,
        scans_per_second: 1e3 / slice_ms / SLICES_PER_SCAN,
    })
}

/// GFLOP/s of the best of a few large square matrix products.
fn ceiling(device: Device, kind: Kind) -> f64 {
    let sizes: &[i64] = if device.is_cuda() { &[4096, 8192] } else { &[1024, 2048] };
    let product = |&n: &i64| {
        let (a, b) = (Tensor::rand([n, n], (kind, device)), Tensor::rand([n, n], (kind, device)));
        2. * (n as f64).powi(3) / seconds(device, &|| drop(a.matmul(&b))) / 1e9
    };
    sizes.iter().map(product).fold(0., f64::max)
}

/// Median seconds of `action`, the device's queue included.
fn seconds(device: Device, action: &dyn Fn()) -> f64 {
    let run = |times: usize| {
        let started = Instant::now();
        (0..times).for_each(|_| action());
        if let Device::Cuda(number) = device {
            Cuda::synchronize(number as i64);
        }
        started.elapsed()
    };
    // The first run loads kernels and chooses algorithms.
    run(1);
    let times = (LEAST.as_secs_f64() / run(1).as_secs_f64().max(1e-9)).ceil() as usize;
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| run(times).as_secs_f64() / times as f64).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

impl fmt::Display for DeviceSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} on {}, {}, {} thread(s), {} slices at once; large matrix products reach {:.0} GFLOP/s",
            self.bundle, self.device, self.kind, self.threads, self.batch, self.ceiling_gflops
        )?;
        writeln!(f, "\n{:<11}{:>10}{:>14}{:>10}{:>12}", "network", "ms/slice", "MFLOP/slice", "GFLOP/s", "of ceiling")?;
        for n in &self.networks {
            writeln!(
                f,
                "{:<11}{:>10.3}{:>14.0}{:>10.1}{:>11.0}%",
                n.name,
                n.ms_per_slice,
                n.flop_per_slice / 1e6,
                n.gflops,
                100. * n.share_of_ceiling
            )?;
        }
        writeln!(
            f,
            "\n{:.0} slices/s, {:.2} scans/s of {SLICES_PER_SCAN:.0} slices, with {} restoration(s) of {} steps in {:.0} % of them\n\
             (`restore`: {:.0} % of a slice's tokens in-painted)",
            self.slices_per_second,
            self.scans_per_second,
            self.restorations,
            self.steps,
            100. * self.open_share,
            100. * MASKED,
        )
    }
}
