//! The result of [`super::measure`], as JSON and as the tables that `neurosieve bench device` prints.

use std::fmt;

use serde::Serialize;

use super::SLICES_PER_SCAN;
use super::inputs::MASKED;

/// Speed of one network.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkSpeed {
    /// Name of the step.
    pub name: &'static str,
    /// Milliseconds per slice.
    pub ms_per_slice: f64,
    /// Milliseconds per slice until the work is launched on a GPU; `None` on the processor. If this is close to
    /// `ms_per_slice`, launches limit the speed, not arithmetic.
    pub launch_ms_per_slice: Option<f64>,
    /// Floating point operations per slice: multiplications and additions of convolutions, linear maps and attention.
    pub flop_per_slice: f64,
    /// Measured speed, GFLOP/s.
    pub gflops: f64,
    /// Measured speed as a share of the ceiling, 0 to 1.
    pub share_of_ceiling: f64,
}

/// Speed of all networks in one number format.
#[derive(Debug, Clone, Serialize)]
pub struct KindSpeed {
    /// `f32` or `bf16`.
    pub kind: &'static str,
    /// Speed of large matrix products, GFLOP/s.
    pub ceiling_gflops: f64,
    /// Each network.
    pub networks: Vec<NetworkSpeed>,
    /// Slices scored per second.
    pub slices_per_second: f64,
    /// Scans of 80 slices scored per second.
    pub scans_per_second: f64,
}

/// Speed of a model on a device.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceSpeed {
    /// libtorch's name of the device.
    pub device: String,
    /// Threads that libtorch computes with.
    pub threads: i64,
    /// Name and version of the bundle, or the preset.
    pub model: String,
    /// Slices per batch.
    pub batch: i64,
    /// Batch sizes that were tried, with slices per second; empty where the batch size was given.
    pub tried: Vec<(i64, f64)>,
    /// Rows and columns of a slice's tokens.
    pub tokens: [i64; 2],
    /// Mean number of brain tokens per slice.
    pub brain_tokens: f64,
    /// Restorations drawn per slice; 0: the mean restoration, in one pass.
    pub restorations: i64,
    /// Inpainter passes per drawn restoration.
    pub steps: i64,
    /// Share of slices with something to in-paint, 0 to 1.
    pub open_share: f64,
    /// f32, and bf16 where it was measured.
    pub kinds: Vec<KindSpeed>,
}

impl KindSpeed {
    /// Milliseconds per slice of a network; 0 where it was not measured.
    pub(super) fn ms(&self, name: &str) -> f64 {
        self.networks.iter().find(|network| network.name == name).map_or(0., |network| network.ms_per_slice)
    }
}

impl DeviceSpeed {
    fn write_head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ceilings: Vec<String> =
            self.kinds.iter().map(|kind| format!("{:.0} GFLOP/s in {}", kind.ceiling_gflops, kind.kind)).collect();
        writeln!(
            f,
            "{} on {}, {} thread(s), batches of {} slices with {:.0} of {} tokens on average\n\
             large matrix products reach {}\n",
            self.model,
            self.device,
            self.threads,
            self.batch,
            self.brain_tokens,
            self.tokens[0] * self.tokens[1],
            ceilings.join(", ")
        )?;
        if self.tried.is_empty() {
            return Ok(());
        }
        let tried: Vec<String> = self.tried.iter().map(|(batch, speed)| format!("{batch}: {speed:.0}")).collect();
        writeln!(
            f,
            "slices/s by batch size: {}\nfor this device, set `batch_slices = {}` in [score] and do not change it: \
             another batch size may change the last digits of the results\n",
            tried.join(", "),
            self.batch
        )
    }

    fn write_networks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| network | MFLOP/slice |")?;
        for KindSpeed { kind, .. } in &self.kinds {
            write!(f, " {kind}: ms/slice | GFLOP/s | of the ceiling |")?;
        }
        writeln!(f, "\n|---|---|{}", "---|---|---|".repeat(self.kinds.len()))?;
        for (i, network) in self.kinds.first().map_or(&[][..], |kind| &kind.networks).iter().enumerate() {
            write!(f, "| {} | {:.0} |", network.name, network.flop_per_slice / 1e6)?;
            for kind in &self.kinds {
                let n = &kind.networks[i];
                write!(f, " {:.2} | {:.0} | {:.0} % |", n.ms_per_slice, n.gflops, 100. * n.share_of_ceiling)?;
            }
            writeln!(f)?;
        }
        writeln!(f)
    }

    /// The times of drawn restorations by the inpainter and by the autoregressive prior, where both were measured.
    fn write_restorations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in &self.kinds {
            let [inpainter, full, cached] = ["restore", "prior, full", "prior, cache"].map(|name| kind.ms(name));
            if full == 0. {
                continue;
            }
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

impl fmt::Display for DeviceSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_head(f)?;
        self.write_networks(f)?;
        for kind in &self.kinds {
            writeln!(
                f,
                "{}: {:.0} slices/s, {:.2} scans/s of {SLICES_PER_SCAN:.0} slices",
                kind.kind, kind.slices_per_second, kind.scans_per_second
            )?;
        }
        let restored = match self.restorations {
            0 => "the mean restoration".to_owned(),
            n => format!("{n} restoration(s) of {} steps", self.steps),
        };
        writeln!(
            f,
            "with {restored} of {:.0} % of the slices; {:.0} % of a restored slice's tokens are in-painted",
            100. * self.open_share,
            100. * MASKED
        )?;
        self.write_restorations(f)
    }
}
