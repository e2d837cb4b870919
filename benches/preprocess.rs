//! The time of each preprocessing step on one core, and its memory.
//!
//! ```sh
//! cargo bench                      # everything
//! cargo bench -- skull_strip       # benches whose name contains this
//! ```
//! The scan is a synthetic whole head, at 2 mm and at 1 mm (about 256 x 256 x 180 voxels are 12 million; this one has
//! 11 million). `max alloc` is the largest amount of memory allocated at a time, without that of the bench itself.

use divan::{AllocProfiler, Bencher, black_box};
use neurosieve::preprocess::{self, PreprocessConfig, Steps};
use neurosieve::synth::{HeadTemplate, Subject};
use neurosieve::volume::{Affine, Volume, nifti};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const LIMIT_BYTES: u64 = 1 << 30;
const SPACINGS_MM: [f64; 2] = [2.0, 1.0];

fn main() {
    // One thread: a time is a core's time.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("no other pool was started");
    divan::main();
}

fn file(spacing_mm: f64) -> Vec<u8> {
    let template = HeadTemplate::embedded().expect("embedded template");
    nifti::encode(&Subject::draw(&template, 1, 0, spacing_mm, false).image, "bench")
}

fn head(spacing_mm: f64) -> Volume {
    nifti::decode(&file(spacing_mm), LIMIT_BYTES).expect("a scan").volume
}

fn steps() -> Steps {
    preprocess::steps(&head(2.0), &PreprocessConfig::default()).expect("a head")
}

#[divan::bench(args = SPACINGS_MM, sample_count = 10, sample_size = 1)]
fn decode(bencher: Bencher<'_, '_>, spacing_mm: f64) {
    let bytes = file(spacing_mm);
    bencher.bench(|| nifti::decode(black_box(&bytes), LIMIT_BYTES));
}

/// From the file's bytes to what the model sees: all steps.
#[divan::bench(args = SPACINGS_MM, sample_count = 5, sample_size = 1)]
fn decode_and_prepare(bencher: Bencher<'_, '_>, spacing_mm: f64) {
    let bytes = file(spacing_mm);
    bencher.bench(|| {
        let native = nifti::decode(black_box(&bytes), LIMIT_BYTES).expect("a scan").volume;
        preprocess::prepare(&native, &PreprocessConfig::default())
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn skull_strip(bencher: Bencher<'_, '_>) {
    let (steps, cfg) = (steps(), PreprocessConfig::default());
    bencher.bench(|| preprocess::skull_strip(black_box(&steps.working), &cfg.skull_strip));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn bias(bencher: Bencher<'_, '_>) {
    let (steps, cfg) = (steps(), PreprocessConfig::default());
    bencher.bench(|| preprocess::estimate_bias(black_box(&steps.working), &steps.first_mask, &cfg.bias));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn register(bencher: Bencher<'_, '_>) {
    let (steps, cfg) = (steps(), PreprocessConfig::default());
    bencher.bench(|| preprocess::register(black_box(&steps.corrected), &steps.first_mask, &cfg.register));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn mask_to_the_model_grid(bencher: Bencher<'_, '_>) {
    let steps = steps();
    let from_mni = steps.prepared.to_mni.inverse().expect("an invertible map");
    bencher.bench(|| preprocess::mask_to(black_box(&steps.brain.mask), &preprocess::model_grid(), &from_mni));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn normalize(bencher: Bencher<'_, '_>) {
    let (steps, cfg) = (steps(), PreprocessConfig::default());
    bencher.bench(|| preprocess::normalize(black_box(&steps.resampled), &steps.prepared.brain, &cfg.normalize));
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn bias_field_on_the_model_grid(bencher: Bencher<'_, '_>) {
    let steps = steps();
    let identity = Affine::identity();
    bencher.bench(|| steps.field.on(black_box(&steps.working.grid), &identity));
}
