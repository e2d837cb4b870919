//! Refuses results that are not finite: a NaN lies above no threshold, so that its voxels would count as healthy.

use super::infer::Inference;
use crate::error::{Error, Result};

impl Inference {
    /// Refuses results with a number that is NaN or infinite. Later steps would hide it: a NaN is above no threshold, and the
    /// smaller or larger of NaN and a number is the number.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub(super) fn refuse_not_finite(&self) -> Result<()> {
        let parts = [
            ("token probability", &self.p_anomalous),
            ("pixel probability", &self.p_pixel),
            ("restored intensity", &self.restored),
            ("residual", &self.residual),
        ];
        for (what, values) in parts {
            refuse_not_finite(what, values)?;
        }
        // Tokens that were not in-painted have no likelihood.
        if self.nll.iter().filter(|nll| nll.is_finite()).count() < self.n_inpainted {
            return Err(not_finite("token likelihood"));
        }
        Ok(())
    }
}

/// Refuses values of which one is NaN or infinite.
///
/// # Errors
/// [`Error::NotFinite`].
pub(super) fn refuse_not_finite(what: &str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(not_finite(what)) }
}

fn not_finite(what: &str) -> Error {
    Error::NotFinite(format!(
        "scoring gave a {what} that is not a finite number, so that the scan has no result: run `neurosieve doctor` to check \
         the device, and try score.precision = \"f32\" or another bundle"
    ))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::config::ScoreConfig;
    use super::super::settings::Settings;
    use super::super::{Scan, infer};
    use crate::model::{Network, Preset, device};
    use crate::preprocess::model_grid;
    use crate::volume::Volume;

    #[test]
    fn networks_that_give_a_number_that_is_not_finite_give_an_error_and_no_result() {
        device::on_calling_thread();
        let grid = model_grid();
        let [nx, ny, _] = grid.shape;
        // A square of noise in two slices.
        let inside = |i: usize| (40..42).contains(&(i / (nx * ny))) && i % nx > 20 && i % nx < 50 && i / nx % ny > 40;
        let data = |value: &dyn Fn(usize) -> f32| (0..nx * ny * grid.shape[2]).map(value).collect::<Vec<f32>>();
        let image = Volume { grid, data: data(&|i| if inside(i) { (i * 7919 % 101) as f32 / 100. } else { 0. }) };
        let brain = Volume { grid, data: (0..image.data.len()).map(|i| u8::from(inside(i))).collect() };
        let scan = Scan { scan_id: "a", image: &image, brain: &brain };
        let network = [Network::Tokenizer, Network::Detector, Network::Inpainter];
        for (network, restorations) in network.into_iter().flat_map(|network| [(network, 0), (network, 1)]) {
            let (networks, stores) = Preset::Tiny.sizes().build(Device::Cpu, |_| {});
            for (name, mut weight) in stores.get(network).unwrap().variables() {
                // Of the tokenizer the decoder's last layer alone: the encoder rounds.
                if network != Network::Tokenizer || name.starts_with("smooth") {
                    let _ = tch::no_grad(|| weight.fill_(f64::NAN));
                }
            }
            let settings = Settings {
                config: ScoreConfig { restorations, ..ScoreConfig::default() },
                token_threshold: 0.,
                mask_threshold: 0.5,
                ar_limit_nats: 5.,
                healthy: None,
            };
            let refused = infer(&networks, std::slice::from_ref(&scan), &settings).unwrap_err();
            assert_eq!(refused.kind(), "not_finite", "{network} {restorations}: {refused}");
        }
    }
}
