//! The updates of one network: batches drawn ahead on another thread, AdamW, checkpoints, figures and progress.

use std::time::{Duration, Instant};

use tch::Tensor;
use tch::nn::VarStore;

use super::adamw::{self, AdamW, AdamWConfig};
use super::context::Context;
use super::curve::{self, Curve};
use super::work;
use crate::error::Result;
use crate::terminal::errln;

/// Settings of the optimizer, the same for all networks.
const OPTIMIZER: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.98, weight_decay: 0.05, clip: 1., ema: 0.998 };

/// Batches that are drawn ahead of the updates.
const AHEAD: usize = 3;

/// Time between two lines of progress.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// Updates of the weights in `store`.
pub(super) struct Updates<'a> {
    context: &'a Context<'a>,
    name: &'a str,
    store: &'a VarStore,
    steps: i64,
    learning_rate: f64,
    also_saved: Vec<(String, Tensor)>,
}

/// The loss of a step, and figures by name for the curve and the progress line.
pub(super) type Loss = (Tensor, Vec<(&'static str, Tensor)>);

impl<'a> Updates<'a> {
    /// `steps` updates of the weights in `store`, with the peak learning rate `learning_rate`. `name` is that of the
    /// checkpoint and the curve, and appears in progress lines.
    pub(super) fn new(
        context: &'a Context<'a>,
        name: &'a str,
        store: &'a VarStore,
        steps: i64,
        learning_rate: f64,
    ) -> Self {
        Self { context, name, store, steps, learning_rate, also_saved: Vec::new() }
    }

    /// Keeps tensors in the checkpoint that the loss changes outside the store.
    pub(super) fn also_saving(self, tensors: impl Iterator<Item = (String, Tensor)>) -> Self {
        Self { also_saved: tensors.collect(), ..self }
    }

    /// Runs the updates that follow the checkpoint, or all where there is none. `draw` gives the batch of a step and
    /// runs on another thread, ahead of time; `loss` gives the loss of a step's batch. The weights are the moving
    /// average at the end.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) where the checkpoint is of another network,
    /// [`Error::Io`](crate::Error::Io) where it cannot be written, [`Error::Device`](crate::Error::Device) where
    /// libtorch fails.
    pub(super) fn run<B: Send>(
        self,
        draw: impl Fn(i64) -> B + Sync,
        mut loss: impl FnMut(i64, B) -> Loss,
    ) -> Result<()> {
        let Self { context, name, store, steps, learning_rate: peak, also_saved } = self;
        let checkpoint = work::checkpoint(context.config(), name);
        let mut optimizer = AdamW::new(store, OPTIMIZER);
        let mut state = optimizer.tensors();
        state.extend(also_saved);
        if checkpoint.exists() {
            adamw::load(&mut state, &checkpoint)?;
            errln!("{name}: continues after step {}", optimizer.step_count());
        }
        let first = optimizer.step_count();
        let mut curve = Curve::open(context.config(), name)?;
        curve.rewind(first);
        let save_every = Duration::from_secs(context.config().checkpoint_seconds);
        let mut progress = Progress::new(name, first, steps);
        let mut saved = Instant::now();
        std::thread::scope(|scope| {
            let (send, batches) = std::sync::mpsc::sync_channel(AHEAD);
            // This thread ends when the loop below drops the receiver.
            let draw = &draw;
            scope.spawn(move || (first..steps).map(draw).try_for_each(|batch| send.send(batch)));
            for (step, batch) in (first..steps).zip(batches) {
                let (value, figures) = loss(step, batch);
                optimizer.step(&value, learning_rate(step, steps, peak));
                if step % curve::EVERY == 0 {
                    for (figure, value) in &figures {
                        curve.push(step, figure, f64::try_from(value)?);
                    }
                }
                progress.report(step, &figures);
                if saved.elapsed() >= save_every {
                    curve.save()?;
                    adamw::save(&state, &checkpoint)?;
                    saved = Instant::now();
                }
            }
            curve.save()?;
            adamw::save(&state, &checkpoint)
        })?;
        optimizer.use_average();
        Ok(())
    }
}

/// Prints a line of progress to standard error now and then.
struct Progress<'a> {
    name: &'a str,
    first: i64,
    steps: i64,
    started: Instant,
    reported: Instant,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, first: i64, steps: i64) -> Self {
        Self { name, first, steps, started: Instant::now(), reported: Instant::now() }
    }

    fn report(&mut self, step: i64, figures: &[(&'static str, Tensor)]) {
        if self.reported.elapsed() <= REPORT_EVERY && step + 1 != self.steps {
            return;
        }
        self.reported = Instant::now();
        let rate = (step + 1 - self.first) as f64 / self.started.elapsed().as_secs_f64();
        let figures: Vec<String> =
            figures.iter().map(|(n, t)| format!("{n} {:.4}", f64::try_from(t).unwrap_or(f64::NAN))).collect();
        errln!(
            "{}: step {}/{}, {}, {rate:.2} steps/s, {:.0} min left",
            self.name,
            step + 1,
            self.steps,
            figures.join(", "),
            (self.steps - step - 1) as f64 / rate / 60.
        );
    }
}

/// Linear warm-up over 2 % of the steps, then a cosine down to a fiftieth of the peak.
pub(super) fn learning_rate(step: i64, steps: i64, peak: f64) -> f64 {
    let warm = (steps / 50).max(1);
    if step < warm {
        return peak * (step + 1) as f64 / warm as f64;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    peak * (0.02 + 0.98 * 0.5 * (1. + (std::f64::consts::PI * done).cos()))
}
