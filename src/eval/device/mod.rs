//! Speed of the networks on a device: the time of each network, and its share of the device's arithmetic speed.
//!
//! [`measure`] takes a bundle, or a preset's sizes with random weights, and a batch size. Every network runs on synthetic
//! batches. A slice has the average number of brain tokens of real scans, and operations are counted for those tokens.
//! The ceiling is the speed of the fastest of a few large matrix products in the same number format, measured in the same
//! run. [`score_volumes`] scores whole volumes that are held in memory, without storage, preprocessing and tables: the speed
//! of the device alone, and where its time is spent.

mod clock;
mod inputs;
mod report;
mod volumes;

use tch::{Device, Kind, Tensor};

pub use report::{DeviceSpeed, KindSpeed, NetworkSpeed};
pub use volumes::{Breakdown, VolumeSettings, VolumeSpeed, score_volumes};

use self::clock::{ceiling, launch_seconds, seconds};
use self::inputs::Batch;
use crate::error::{Error, Result};
use crate::model::{
    Bundle, Decoding, Masked, Networks, Preset, Resampling, Sizes, TokenSlices, TransformerConfig, device,
};

/// Slices with brain in a scan at 2 mm, to compute scans per second.
const SLICES_PER_SCAN: f64 = 80.;

/// Batch sizes to try, in slices. Only small batches fit the processor's caches; a GPU needs large ones to use all its
/// cores.
const BATCHES_CPU: [i64; 7] = [4, 8, 16, 32, 64, 128, 256];
const BATCHES_GPU: [i64; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Smallest ratio of speeds that counts as a gain. After two batch sizes without a gain, no larger one is tried.
const GAIN: f64 = 1.02;

/// The smallest batch whose speed reaches this share of the fastest one's is used, because it needs less memory.
const NEAR: f64 = 0.97;

/// Settings of [`measure`].
#[derive(Debug, Clone)]
pub struct DeviceSettings {
    /// Device to measure.
    pub device: device::DeviceChoice,
    /// The networks.
    pub model: ModelChoice,
    /// Slices per batch; `None`: the smallest batch that is nearly as fast as the fastest of those tried.
    pub batch: Option<i64>,
    /// Also measure in bf16.
    pub bf16: bool,
    /// Also measure restorations by the autoregressive prior.
    pub prior: bool,
    /// Restorations drawn per slice; 0: the mean restoration, in one pass.
    pub restorations: i64,
    /// Inpainter passes per drawn restoration.
    pub steps: i64,
    /// Share of slices with something to in-paint, 0 to 1.
    pub open_share: f64,
}

/// The networks to measure.
#[derive(Debug, Clone)]
pub enum ModelChoice {
    /// `built-in`, or the folder of a bundle.
    Bundle(String),
    /// A preset's sizes with random weights.
    Preset(Preset),
}

/// The opened networks.
enum Model {
    Bundle(Box<Bundle>),
    Preset(Preset),
}

impl Model {
    fn open(choice: &ModelChoice) -> Result<Self> {
        Ok(match choice {
            ModelChoice::Preset(preset) => Self::Preset(*preset),
            ModelChoice::Bundle(name) => Self::Bundle(Box::new(Bundle::open(name)?)),
        })
    }

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
/// Where the device cannot be used, the bundle cannot be loaded, or `prior` is set for a bundle without a prior.
pub fn measure(settings: &DeviceSettings) -> Result<DeviceSpeed> {
    let device = device::resolve(settings.device)?;
    // As in a screening, every thread computes alone.
    device::on_calling_thread();
    let model = Model::open(&settings.model)?;
    let sizes = model.sizes();
    if settings.prior && sizes.prior.is_none() {
        return Err(Error::Config(format!(
            "{} has no prior to measure; leave out --prior, or measure a preset",
            model.label()
        )));
    }
    let tried = match settings.batch {
        Some(_) => Vec::new(),
        None => {
            let kind = if settings.bf16 { Kind::BFloat16 } else { Kind::Float };
            let networks = model.networks(device, kind)?;
            let batches: &[i64] = if device.is_cuda() { &BATCHES_GPU } else { &BATCHES_CPU };
            try_batches(batches, |batch| throughput(&sizes, &networks, batch, kind))
        }
    };
    let batch = settings.batch.or_else(|| best(&tried)).unwrap_or(1).max(1);
    let inputs = Batch::new(&sizes, batch, device);
    let mut kinds = vec![inputs.measure(&model, settings, Kind::Float)?];
    if settings.bf16 {
        kinds.push(inputs.measure(&model, settings, Kind::BFloat16)?);
    }
    Ok(DeviceSpeed {
        device: format!("{device:?}"),
        threads: i64::from(tch::get_num_threads()),
        model: model.label(),
        batch: inputs.len,
        tried,
        tokens: sizes.tokens,
        brain_tokens: inputs.mean(|n| n as f64),
        restorations: settings.restorations,
        steps: settings.steps,
        open_share: settings.open_share,
        kinds,
    })
}

/// Speeds of ascending batch sizes. Stops after two without a gain, or at one that does not fit into memory (`None`).
fn try_batches(batches: &[i64], speed: impl Fn(i64) -> Option<f64>) -> Vec<(i64, f64)> {
    let (mut tried, mut fastest, mut without_gain) = (Vec::new(), 0f64, 0);
    for &batch in batches {
        let Some(speed) = speed(batch) else { break };
        tried.push((batch, speed));
        without_gain = if speed > GAIN * fastest { 0 } else { without_gain + 1 };
        fastest = fastest.max(speed);
        if without_gain == 2 {
            break;
        }
    }
    tried
}

/// Slices scored per second in batches of `batch`; `None` where a batch exceeds the device's memory.
fn throughput(sizes: &Sizes, networks: &Networks, batch: i64, kind: Kind) -> Option<f64> {
    let run = || {
        let Batch { image, codes, middle, z_mm, inside, mask, .. } = Batch::new(sizes, batch, networks.device);
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

/// The smallest batch size that is nearly as fast as the fastest.
fn best(tried: &[(i64, f64)]) -> Option<i64> {
    let fastest = tried.iter().map(|&(_, speed)| speed).fold(0., f64::max);
    tried.iter().find(|&&(_, speed)| speed >= NEAR * fastest).map(|&(batch, _)| batch)
}

impl Batch<'_> {
    /// Measures every network in one number format.
    fn measure(&self, model: &Model, settings: &DeviceSettings, kind: Kind) -> Result<KindSpeed> {
        let networks = model.networks(self.device, kind)?;
        let ceiling_gflops = ceiling(self.device, kind);
        let mut measured = self.networks(&networks, settings.steps.max(1), kind);
        if settings.prior {
            measured.extend(self.prior(&networks, kind));
        }
        measured.iter_mut().for_each(|network| network.share_of_ceiling = network.gflops / ceiling_gflops);
        let mut speed = KindSpeed {
            kind: if kind == Kind::Float { "f32" } else { "bf16" },
            ceiling_gflops,
            networks: measured,
            slices_per_second: 0.,
            scans_per_second: 0.,
        };
        let restoring = match settings.restorations {
            0 => speed.ms("mean") + speed.ms("decode"),
            n => n as f64 * (speed.ms("restore") + speed.ms("decode")),
        };
        // A slice with nothing to in-paint is only decoded.
        let (open, closed) = (settings.open_share, 1. - settings.open_share);
        let slice_ms = speed.ms("encode") + speed.ms("detector") + closed * speed.ms("decode") + open * restoring;
        speed.slices_per_second = 1e3 / slice_ms;
        speed.scans_per_second = speed.slices_per_second / SLICES_PER_SCAN;
        Ok(speed)
    }

    /// Measures one step. The share of the ceiling is filled in later.
    fn timed(&self, name: &'static str, flop_per_slice: f64, action: &dyn Fn()) -> NetworkSpeed {
        let per_slice = |seconds: f64| 1e3 * seconds / self.len as f64;
        let (ms_per_slice, launch) = tch::no_grad(|| {
            (per_slice(seconds(self.device, action)), launch_seconds(self.device, action).map(per_slice))
        });
        NetworkSpeed {
            name,
            ms_per_slice,
            launch_ms_per_slice: launch,
            flop_per_slice,
            gflops: flop_per_slice / ms_per_slice / 1e6,
            share_of_ceiling: 0.,
        }
    }

    /// Operations of a transformer's output head for `tokens` tokens.
    fn head_flop(&self, of: &TransformerConfig, tokens: f64) -> f64 {
        2. * tokens * (of.width * self.sizes.tokenizer.codes()) as f64
    }

    /// Measures the tokenizer, the detector and the inpainter.
    fn networks(&self, networks: &Networks, steps: i64, kind: Kind) -> Vec<NetworkSpeed> {
        let Self { sizes, device, codes, middle, z_mm, inside, mask, .. } = self;
        let decoding = Decoding { steps, temperature: 1. };
        let slices = Masked { codes: middle, inside, mask, z_mm, shared: false };
        let image = self.image.to_kind(kind);
        let noise = Tensor::rand([self.masked, sizes.tokenizer.codes()], (Kind::Float, *device));
        let [encode, decode] = networks.tokenizer.flop(sizes.tokens);
        let detect = self.mean(|n| sizes.detector.flop(n, sizes.tokenizer.cell().pow(2)));
        // The head is computed for masked tokens only.
        let head = self.head_flop(&sizes.inpainter, self.masked as f64 / self.len as f64);
        let inpaint = self.mean(|n| sizes.inpainter.flop(n, 0)) + head;
        vec![
            self.timed("encode", encode, &|| drop(networks.tokenizer.encode(&image, z_mm))),
            self.timed("decode", decode, &|| drop(networks.tokenizer.decode(middle, z_mm, kind))),
            self.timed("detector", detect, &|| drop(networks.detector.forward(codes, inside, z_mm, kind))),
            self.timed("inpainter", inpaint, &|| drop(networks.inpainter.forward(&slices, kind))),
            self.timed("mean", inpaint, &|| {
                drop(networks.inpainter.mean(&slices, &networks.tokenizer.table(*device), kind));
            }),
            self.timed("restore", inpaint * steps as f64, &|| {
                drop(networks.inpainter.restore(&slices, &noise, decoding, kind));
            }),
        ]
    }

    /// Measures restorations by the autoregressive prior, with full passes and with a cache; empty without a prior.
    fn prior(&self, networks: &Networks, kind: Kind) -> Vec<NetworkSpeed> {
        let Self { sizes, device, middle, z_mm, inside, .. } = self;
        let (Some(prior), Some(of)) = (&networks.prior, &sizes.prior) else { return Vec::new() };
        let n_codes = sizes.tokenizer.codes();
        let longest = self.counts.iter().copied().max().unwrap_or(1).max(1);
        let noise = Tensor::rand([self.len, longest, n_codes], (Kind::Float, *device));
        let restore = |cached| {
            let resampling = Resampling { limit_nats: 5., cached };
            let slices = TokenSlices { codes: middle, inside, z_mm };
            drop(prior.restore(slices, |n| noise.narrow(1, 0, n), resampling, kind));
        };
        // Each token takes a pass over the whole slice, with the head for that token only.
        let once = |n: i64| of.flop(n, 0) + self.head_flop(of, 1.);
        let full = self.mean(|n| n as f64 * once(n));
        let cached = self.mean(|n| of.flop(n, n_codes));
        vec![self.timed("prior, full", full, &|| restore(false)), self.timed("prior, cache", cached, &|| restore(true))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_batch_that_is_nearly_the_fastest_is_used() {
        assert_eq!(best(&[(4, 80.), (8, 98.), (16, 100.), (32, 60.)]), Some(8));
        assert_eq!(best(&[]), None, "not even the smallest one fits");
        let sizes = Preset::Tiny.sizes();
        let networks = sizes.networks(Device::Cpu, Kind::Float, 1);
        assert!(throughput(&sizes, &networks, 4, Kind::Float).unwrap() > 0.);
    }

    #[test]
    fn batches_are_tried_until_larger_ones_are_not_faster_or_do_not_fit() {
        let speeds = |batch: i64| Some(if batch < 128 { batch as f64 } else { 128. });
        let tried: Vec<i64> = try_batches(&BATCHES_GPU, speeds).iter().map(|&(batch, _)| batch).collect();
        assert_eq!(tried, [32, 64, 128, 256, 512]);
        assert_eq!(try_batches(&BATCHES_GPU, |batch| (batch < 100).then_some(batch as f64)).len(), 2);
    }
}
