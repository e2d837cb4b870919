//! What a device does with the networks: time of each, and how far that is from what the device can do.
//!
//! Takes a bundle or a preset's sizes with random weights, a device and a batch; every network runs on made-up inputs a
//! few times. A slice's tokens of brain are an ellipse's, as many as a real brain's slices have, and operations are counted
//! for those tokens. The ceiling is the best of a few large matrix products in the same kind of number, measured in the
//! same run.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use tch::{Cuda, Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::{
    Bundle, CONTEXT, Decoding, Masked, Networks, Preset, Resampling, Sizes, TokenSlices, TransformerConfig, device,
};

/// Runs of one thing; the fastest counts, since what else a machine does only slows them.
const ROUNDS: usize = 15;

/// One run takes at least this long; what is shorter is repeated within the run.
const LEAST: Duration = Duration::from_millis(20);

/// What takes this long runs once.
const LONG: Duration = Duration::from_secs(5);

/// Slices of a brain at 2 mm that hold brain, for scans per second.
const SLICES_PER_SCAN: f64 = 80.;

/// Share of a restored slice's tokens that are masked.
const MASKED: f64 = 0.1;

/// Half axes of the widest slice's brain, in halves of the slice's rows and columns.
const HALF_AXES: [f64; 2] = [0.97, 0.95];

/// Batches that are tried, in slices.
const BATCHES: [i64; 7] = [4, 8, 16, 32, 64, 128, 256];

/// The smallest batch is taken that comes this near to the fastest one: small ones take less memory.
const NEAR: f64 = 0.97;

/// Distance of the brain's uppermost slice from its widest, mm.
const HALF_HEIGHT: f64 = 67.;

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

/// All networks in one kind of number.
#[derive(Debug, Clone, Serialize)]
pub struct KindSpeed {
    /// `f32` or `bf16`.
    pub kind: &'static str,
    /// Large matrix products, GFLOP/s.
    pub ceiling_gflops: f64,
    /// Each network.
    pub networks: Vec<NetworkSpeed>,
    /// Encoded, judged and restored slices.
    pub slices_per_second: f64,
    /// Brains.
    pub scans_per_second: f64,
}

/// A device with a model.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "each says what it is")]
pub struct DeviceSpeed {
    pub device: String,
    pub threads: i64,
    pub model: String,
    pub batch: i64,
    /// Slices per second of the batches that were tried, where they were.
    pub tried: Vec<(i64, f64)>,
    /// Rows and columns of a slice.
    pub tokens: [i64; 2],
    /// Tokens of brain per slice, in the mean.
    pub brain_tokens: f64,
    /// Restorations, steps and share of in-painted slices that `scans_per_second` is for; 0 restorations: their mean.
    pub restorations: i64,
    pub steps: i64,
    pub open_share: f64,
    /// f32, and bf16 where it was asked for.
    pub kinds: Vec<KindSpeed>,
}

/// What is measured.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each says what it is")]
pub struct DeviceSettings {
    pub device: device::DeviceChoice,
    /// `built-in` or a bundle's folder; not looked at where there is a preset.
    pub bundle: String,
    /// Sizes with random weights, instead of a bundle.
    pub preset: Option<Preset>,
    /// Slices at once; left out, the fastest of those from 4 to 256 is looked for.
    pub batch: Option<i64>,
    /// bf16 as well as f32.
    pub bf16: bool,
    /// Restorations by the autoregressive prior as well.
    pub prior: bool,
    pub restorations: i64,
    pub steps: i64,
    /// Share of slices with something to in-paint.
    pub open_share: f64,
}

/// The networks that are measured.
enum Model {
    Bundle(Box<Bundle>),
    Preset(Preset),
}

impl Model {
    fn label(&self) -> String {
        match self {
            Self::Bundle(bundle) => bundle.label(),
            Self::Preset(preset) => format!("preset {preset}"),
        }
    }

    fn sizes(&self) -> Sizes {
        match self {
            Self::Bundle(bundle) => bundle.sizes(),
            Self::Preset(preset) => preset.sizes(),
        }
    }

    fn networks(&self, device: Device, kind: Kind) -> Result<Networks> {
        match self {
            Self::Bundle(bundle) => bundle.networks_in(device, kind),
            Self::Preset(preset) => Ok(preset.sizes().networks(device, kind, 1)),
        }
    }
}

/// Measures a device.
///
/// # Errors
/// Where the device cannot be used, the bundle does not load, or it lacks a prior that is asked for.
pub fn measure(settings: &DeviceSettings) -> Result<DeviceSpeed> {
    let device = device::resolve(settings.device)?;
    // Each of a screening's threads computes alone.
    device::on_calling_thread();
    let model = match settings.preset {
        Some(preset) => Model::Preset(preset),
        None => Model::Bundle(Box::new(Bundle::open(&settings.bundle)?)),
    };
    let sizes = model.sizes();
    if settings.prior && sizes.prior.is_none() {
        return Err(Error::Config(format!("{} has no prior to measure; a preset has one", model.label())));
    }
    let tried = match settings.batch {
        Some(_) => Vec::new(),
        None => {
            let kind = if settings.bf16 { Kind::BFloat16 } else { Kind::Float };
            let networks = model.networks(device, kind)?;
            BATCHES.iter().map_while(|&batch| Some((batch, throughput(&sizes, &networks, batch, kind)?))).collect()
        }
    };
    let batch = settings.batch.or_else(|| best(&tried)).unwrap_or(1).max(1);
    let inputs = Inputs::new(&sizes, batch, device);
    let mut kinds = vec![inputs.measure(&model, settings, Kind::Float)?];
    if settings.bf16 {
        kinds.push(inputs.measure(&model, settings, Kind::BFloat16)?);
    }
    Ok(DeviceSpeed {
        device: format!("{device:?}"),
        threads: i64::from(tch::get_num_threads()),
        model: model.label(),
        batch: inputs.batch,
        tried,
        tokens: sizes.tokens,
        brain_tokens: inputs.mean(|n| n as f64),
        restorations: settings.restorations,
        steps: settings.steps,
        open_share: settings.open_share,
        kinds,
    })
}

/// Slices per second of encoding, judging and restoring slices, so many at once; none where the device has not the memory.
fn throughput(sizes: &Sizes, networks: &Networks, batch: i64, kind: Kind) -> Option<f64> {
    let run = || {
        let Inputs { image, codes, middle, z_mm, inside, mask, .. } = Inputs::new(sizes, batch, networks.device);
        let slices = Masked { codes: &middle, inside: &inside, mask: &mask, z_mm: &z_mm, shared: false };
        let table = networks.tokenizer.table(networks.device);
        let all = || {
            drop(networks.tokenizer.encode(&image, &z_mm));
            drop(networks.detector.forward(&codes, &inside, &z_mm, kind));
            let (mean, _) = networks.inpainter.mean(&slices, &table, kind);
            drop(networks.tokenizer.decode_embedded(&mean, &z_mm, kind));
        };
        batch as f64 / tch::no_grad(|| seconds(networks.device, &all))
    };
    device::caught(|| Ok(run())).ok()
}

/// The smallest batch that is nearly as fast as the fastest.
fn best(tried: &[(i64, f64)]) -> Option<i64> {
    let fastest = tried.iter().map(|&(_, speed)| speed).fold(0., f64::max);
    tried.iter().find(|&&(_, speed)| speed >= NEAR * fastest).map(|&(batch, _)| batch)
}

/// A made-up batch.
struct Inputs<'a> {
    sizes: &'a Sizes,
    batch: i64,
    device: Device,
    image: Tensor,
    codes: Tensor,
    middle: Tensor,
    z_mm: Tensor,
    inside: Tensor,
    mask: Tensor,
    /// Tokens of brain of each slice.
    counts: Vec<i64>,
    /// Masked tokens of the batch.
    masked: i64,
}

impl<'a> Inputs<'a> {
    fn new(sizes: &'a Sizes, batch: i64, device: Device) -> Self {
        tch::manual_seed(1);
        let [rows, columns] = sizes.tokens;
        let cell = sizes.tokenizer.cell();
        let codes = sizes.tokenizer.codes();
        let codes = Tensor::randint(codes, [batch, CONTEXT.len() as i64, rows, columns], (Kind::Int64, device));
        let (z_mm, inside) = brain(batch, sizes.tokens, device);
        let mask = Tensor::rand([batch, rows, columns], (Kind::Float, device)).lt(MASKED).logical_and(&inside);
        let sums = inside.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64);
        Self {
            sizes,
            batch,
            device,
            image: Tensor::rand([batch, 1, rows * cell, columns * cell], (Kind::Float, device)),
            middle: codes.select(1, 1).contiguous(),
            codes,
            z_mm,
            counts: Vec::try_from(sums).unwrap_or_default(),
            masked: i64::try_from(mask.sum(Kind::Int64)).unwrap_or(0),
            inside,
            mask,
        }
    }

    /// Mean over the slices of a function of their tokens of brain.
    fn mean(&self, of: impl Fn(i64) -> f64) -> f64 {
        self.counts.iter().map(|&n| of(n)).sum::<f64>() / self.batch as f64
    }

    fn measure(&self, model: &Model, settings: &DeviceSettings, kind: Kind) -> Result<KindSpeed> {
        let Self { sizes, device, codes, middle, z_mm, inside, mask, .. } = self;
        let networks = model.networks(*device, kind)?;
        let n_codes = sizes.tokenizer.codes();
        let steps = settings.steps.max(1);
        let decoding = Decoding { steps, temperature: 1. };
        let slices = Masked { codes: middle, inside, mask, z_mm, shared: false };
        let image = self.image.to_kind(kind);
        let noise = Tensor::rand([self.masked, n_codes], (Kind::Float, *device));

        let ceiling = ceiling(*device, kind);
        let per_slice = |name, flop_per_slice: f64, action: &dyn Fn()| {
            let seconds = tch::no_grad(|| seconds(*device, action)) / self.batch as f64;
            let gflops = flop_per_slice / seconds / 1e9;
            NetworkSpeed {
                name,
                ms_per_slice: 1e3 * seconds,
                flop_per_slice,
                gflops,
                share_of_ceiling: gflops / ceiling,
            }
        };
        let [encode, decode] = networks.tokenizer.flop(sizes.tokens);
        let pixels = sizes.tokenizer.cell().pow(2);
        let judge = self.mean(|n| sizes.detector.flop(n, pixels));
        // Only masked tokens need the head.
        let head = |of: &TransformerConfig, n: f64| 2. * n * (of.width * n_codes) as f64;
        let guess =
            self.mean(|n| sizes.inpainter.flop(n, 0)) + head(&sizes.inpainter, self.masked as f64 / self.batch as f64);
        let mut measured = vec![
            per_slice("encode", encode, &|| drop(networks.tokenizer.encode(&image, z_mm))),
            per_slice("decode", decode, &|| drop(networks.tokenizer.decode(middle, z_mm, kind))),
            per_slice("detector", judge, &|| drop(networks.detector.forward(codes, inside, z_mm, kind))),
            per_slice("inpainter", guess, &|| drop(networks.inpainter.forward(&slices, kind))),
            per_slice("mean", guess, &|| {
                drop(networks.inpainter.mean(&slices, &networks.tokenizer.table(*device), kind));
            }),
            per_slice("restore", guess * steps as f64, &|| {
                drop(networks.inpainter.restore(&slices, &noise, decoding, kind));
            }),
        ];
        if let (true, Some(prior), Some(prior_sizes)) = (settings.prior, &networks.prior, &sizes.prior) {
            let longest = self.counts.iter().copied().max().unwrap_or(1).max(1);
            let noise = Tensor::rand([self.batch, longest, n_codes], (Kind::Float, *device));
            let restore = |cached| {
                let resampling = Resampling { limit_nats: 5., cached };
                let slices = TokenSlices { codes: middle, inside, z_mm };
                drop(prior.restore(slices, |n| noise.narrow(1, 0, n), resampling, kind));
            };
            // A pass over the whole slice for each of its tokens, of which the head is needed once.
            let once = |n: i64| prior_sizes.flop(n, 0) + head(prior_sizes, 1.);
            let full = self.mean(|n| n as f64 * once(n));
            let cached = self.mean(|n| prior_sizes.flop(n, n_codes));
            measured.push(per_slice("prior, full", full, &|| restore(false)));
            measured.push(per_slice("prior, cache", cached, &|| restore(true)));
        }
        let ms = |name: &str| measured.iter().find(|network| network.name == name).map_or(0., |n| n.ms_per_slice);
        let restoring = match settings.restorations {
            0 => ms("mean") + ms("decode"),
            n => n as f64 * (ms("restore") + ms("decode")),
        };
        let slice_ms = ms("encode") + ms("detector") + ms("decode") + settings.open_share * restoring;
        Ok(KindSpeed {
            kind: if kind == Kind::Float { "f32" } else { "bf16" },
            ceiling_gflops: ceiling,
            networks: measured,
            slices_per_second: 1e3 / slice_ms,
            scans_per_second: 1e3 / slice_ms / SLICES_PER_SCAN,
        })
    }
}

/// Heights `[B]` of a batch of slices from the widest to the uppermost of an ellipsoid, mm, and the tokens inside it
/// `[B, h, w]`: two thirds of those of the widest slice, in the mean of many.
fn brain(batch: i64, tokens: [i64; 2], device: Device) -> (Tensor, Tensor) {
    let options = (Kind::Float, device);
    let up = (Tensor::arange(batch, options) + 0.5) / batch as f64;
    let axis = |i: usize| ((Tensor::arange(tokens[i], options) + 0.5) / tokens[i] as f64 * 2. - 1.) / HALF_AXES[i];
    let [y, x] = [axis(0).square().unsqueeze(1), axis(1).square().unsqueeze(0)];
    let inside = (y + x).unsqueeze(0) + up.square().view([-1, 1, 1]);
    (up * HALF_HEIGHT, inside.lt(1.))
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

/// Seconds of `action`, the device's queue included.
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
    let first = run(1);
    if first > LONG {
        return first.as_secs_f64();
    }
    let times = (LEAST.as_secs_f64() / run(1).as_secs_f64().max(1e-9)).ceil() as usize;
    (0..ROUNDS).map(|_| run(times).as_secs_f64() / times as f64).fold(f64::INFINITY, f64::min)
}

impl DeviceSpeed {
    /// Time of a network in the kind of that number, ms per slice.
    fn ms(&self, kind: usize, name: &str) -> Option<f64> {
        self.kinds[kind].networks.iter().find(|network| network.name == name).map(|network| network.ms_per_slice)
    }
}

impl fmt::Display for DeviceSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ceilings: Vec<String> =
            self.kinds.iter().map(|kind| format!("{:.0} GFLOP/s in {}", kind.ceiling_gflops, kind.kind)).collect();
        writeln!(
            f,
            "{} on {}, {} thread(s), {} slices at once with {:.0} of {} tokens in the mean\n\
             large matrix products reach {}\n",
            self.model,
            self.device,
            self.threads,
            self.batch,
            self.brain_tokens,
            self.tokens[0] * self.tokens[1],
            ceilings.join(", ")
        )?;
        if !self.tried.is_empty() {
            let tried: Vec<String> = self.tried.iter().map(|(batch, speed)| format!("{batch}: {speed:.0}")).collect();
            writeln!(
                f,
                "slices/s by slices at once: {}\nfor this device, write `batch_slices = {}` into [score] and keep it: \
                 another batch may move the last digits\n",
                tried.join(", "),
                self.batch
            )?;
        }
        write!(f, "| network | MFLOP/slice |")?;
        for KindSpeed { kind, .. } in &self.kinds {
            write!(f, " {kind}: ms/slice | GFLOP/s | of the ceiling |")?;
        }
        writeln!(f, "\n|---|---|{}", "---|---|---|".repeat(self.kinds.len()))?;
        for (i, network) in self.kinds[0].networks.iter().enumerate() {
            write!(f, "| {} | {:.0} |", network.name, network.flop_per_slice / 1e6)?;
            for kind in &self.kinds {
                let n = &kind.networks[i];
                write!(f, " {:.2} | {:.0} | {:.0} % |", n.ms_per_slice, n.gflops, 100. * n.share_of_ceiling)?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for kind in &self.kinds {
            writeln!(
                f,
                "{}: {:.0} slices/s, {:.2} scans/s of {SLICES_PER_SCAN:.0} slices",
                kind.kind, kind.slices_per_second, kind.scans_per_second
            )?;
        }
        let drawn = match self.restorations {
            0 => "the mean restoration".to_owned(),
            n => format!("{n} restoration(s) of {} steps", self.steps),
        };
        writeln!(
            f,
            "with {drawn} of {:.0} % of them; {:.0} % of a restored slice's tokens are in-painted",
            100. * self.open_share,
            100. * MASKED
        )?;
        for (i, kind) in self.kinds.iter().enumerate() {
            let [Some(inpainter), Some(full), Some(cached)] =
                ["restore", "prior, full", "prior, cache"].map(|name| self.ms(i, name))
            else {
                continue;
            };
            let draws = self.restorations.max(1);
            writeln!(
                f,
                "{}, {draws} drawn restoration(s) of a slice: inpainter {} steps {:.0} ms; prior, full passes {:.0} ms \
                 ({:.1} x), cached {:.0} ms ({:.1} x)",
                kind.kind,
                self.steps,
                draws as f64 * inpainter,
                draws as f64 * full,
                full / inpainter,
                draws as f64 * cached,
                cached / inpainter,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_batch_that_is_nearly_the_fastest_is_taken() {
        assert_eq!(best(&[(4, 80.), (8, 98.), (16, 100.), (32, 60.)]), Some(8));
        assert_eq!(best(&[]), None, "not even the smallest one fits");
        let sizes = Preset::Tiny.sizes();
        let networks = sizes.networks(Device::Cpu, Kind::Float, 1);
        assert!(throughput(&sizes, &networks, 4, Kind::Float).unwrap() > 0.);
    }

    #[test]
    fn half_of_a_slice_is_brain_as_in_real_scans() {
        let (z_mm, inside) = brain(16, [24, 20], Device::Cpu);
        assert_eq!(z_mm.size(), [16]);
        let mean = i64::try_from(inside.sum(Kind::Int64)).unwrap() as f64 / 16.;
        // 220 to 240 of 480 in the heads that the built-in bundle learnt from.
        assert!((220. ..240.).contains(&mean), "{mean}");
    }
}
