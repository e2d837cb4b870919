//! The recipe: everything that decides a scan's numbers, as one short id.
//!
//! The settings that are hashed are listed here by name. A new setting does not compile until it is listed, and a listed one
//! changes the id of every recipe, so that all scans are screened again. A setting that reproduces earlier numbers at its
//! default keeps the ids if it is an `Option` that is skipped at `None`.

use std::num::NonZeroUsize;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::config::{Evidence, Method, Pooling, Precision, ScoreConfig, Tail};
use crate::hex::hexadecimal;
use crate::model::Bundle;
use crate::preprocess::{
    self, BiasConfig, NormalizeConfig, NormalizeMethod, PreprocessConfig, QcConfig, RefuseConfig, RegisterConfig,
    SkullStripConfig, StrippedConfig,
};

/// Version of the scoring algorithms. Increase it whenever the same input would give other numbers.
pub const VERSION: u32 = 7;

/// Sixteen hex digits over the settings of preprocessing and scoring, the bundle's digest and the versions of the
/// algorithms. The same scan with the same recipe on the same type of device gives the same rows.
pub fn recipe_id(preprocess: &PreprocessConfig, score: &ScoreConfig, bundle: &Bundle) -> String {
    let recipe = Recipe {
        bundle: &bundle.digest,
        preprocess: preprocess.clone().into(),
        preprocess_version: preprocess::VERSION,
        score: score.clone().into(),
        score_version: VERSION,
    };
    // By way of a JSON value, which sorts the keys: the order of fields is not part of the recipe.
    let text = serde_json::json!(recipe).to_string();
    hexadecimal(&Sha256::digest(text)[..8])
}

/// What is hashed.
#[derive(Serialize)]
struct Recipe<'a> {
    /// SHA-256 of the bundle, hex.
    bundle: &'a str,
    preprocess: Preprocess,
    preprocess_version: u32,
    score: Score,
    score_version: u32,
}

/// Declares a struct of hashed settings and its conversion from the settings themselves. The conversion takes them apart
/// field by field: it does not compile while a setting is not listed.
macro_rules! hashed {
    ($hashed:ident from $config:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        #[derive(Serialize)]
        struct $hashed { $($(#[$attribute])* $field: $type),+ }

        impl From<$config> for $hashed {
            fn from($config { $($field),+ }: $config) -> Self {
                Self { $($field: $field.into()),+ }
            }
        }
    };
}

hashed!(Score from ScoreConfig {
    method: Method,
    evidence: Evidence,
    restorations: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_threshold: Option<f64>,
    steps: i64,
    temperature: f64,
    healthy_map: bool,
    intensity_weight: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ar_limit_nats: Option<f64>,
    ar_cached: bool,
    tail: Tail,
    #[serde(skip_serializing_if = "Option::is_none")]
    pooling: Option<Pooling>,
    smooth_mm: f64,
    min_finding_ml: f64,
    precision: Precision,
    batch_slices: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    scans_at_once: Option<NonZeroUsize>,
    seed: u64,
});

hashed!(Preprocess from PreprocessConfig {
    spacing_max_mm: f64,
    field_of_view_mm: [f64; 2],
    brain_volume_ml: [f64; 2],
    stripped: Stripped,
    skull_strip: SkullStrip,
    bias: Bias,
    register: Register,
    normalize: Normalize,
    qc: Qc,
    refuse: Refuse,
});

hashed!(Stripped from StrippedConfig {
    background_min: f64,
    cropped_background_min: f64,
    border_max: f64,
    tolerance: f32,
    one_piece_min: f64,
    volume_min_ml: f64,
    volume_max_ml: f64,
});

hashed!(SkullStrip from SkullStripConfig {
    head_height_mm: f32,
    coarse_iterations: usize,
    fine_iterations: usize,
    fractional_threshold: f32,
    threshold_gradient: f32,
    curvature_radius_min_mm: f32,
    curvature_radius_max_mm: f32,
    data_weight: f32,
    search_min_mm: f32,
    search_max_mm: f32,
    opening_mm: f32,
    leak_mm: f32,
    plausible_ml: [f64; 2],
});

hashed!(Bias from BiasConfig {
    sampling_mm: f64,
    coarse_mm: f64,
    levels: usize,
    iterations: usize,
    converged: f32,
    outlier: f32,
    range: [f64; 2],
    largest: f32,
});

hashed!(Register from RegisterConfig {
    start_turn_deg: f64,
    mask_weight: f64,
    strain_weight: f64,
    tails: f64,
    tolerance: f64,
    iterations: usize,
});

hashed!(Normalize from NormalizeConfig {
    method: NormalizeMethod,
    white_matter_percentile: f64,
    white_matter_level: f32,
    grey_matter_level: f32,
    fluid_percentile: f64,
    fluid_level: f32,
    white_stripe_gain: f32,
    nyul_scale: [f32; 11],
});

hashed!(Qc from QcConfig {
    brain_volume_ml: [f64; 2],
    snr_min: f32,
    cnr_min: f32,
    entropy_focus_max: f32,
    ghosting_max: f32,
    ncc_min: f32,
    sphericity_min: f32,
    symmetry_min: f32,
    mask_dice_min: f32,
    cropped_max: f32,
    edge_area_cm2: f64,
    slice_max_mm: f64,
});

hashed!(Refuse from RefuseConfig {
    ct_air_min: f64,
    coherence_min: f64,
    spread_min: f32,
    ncc_min: f32,
});

#[cfg(test)]
mod tests {
    use super::*;

    /// The id of the built-in bundle with all defaults, as tables written so far have it. It may change only together with
    /// the bundle or a version of an algorithm: with another id, every scan is screened again.
    #[test]
    fn the_default_recipe_has_the_id_that_tables_hold() {
        let bundle = Bundle::built_in().unwrap();
        let id = recipe_id(&bundle.info.preprocess, &ScoreConfig::default(), &bundle);
        assert_eq!(id, "1e6f33d08253ce4e");
    }

    #[test]
    fn optional_settings_count_only_where_they_are_set() {
        let text = |config: ScoreConfig| serde_json::json!(Score::from(config)).to_string();
        let plain = text(ScoreConfig::default());
        assert_eq!(
            plain,
            "{\"ar_cached\":true,\"batch_slices\":0,\"evidence\":\"combined\",\"healthy_map\":true,\
             \"intensity_weight\":8.0,\"method\":\"mim\",\"min_finding_ml\":0.2,\"precision\":\"f32\",\"restorations\":0,\
             \"seed\":0,\"smooth_mm\":4.0,\"steps\":6,\"tail\":\"dark\",\"temperature\":0.7}"
        );
        let limited = text(ScoreConfig { mask_threshold: Some(0.5), ..ScoreConfig::default() });
        assert_eq!(limited.replace("\"mask_threshold\":0.5,", ""), plain);
    }
}
