//! The settings of skull stripping.

use serde::{Deserialize, Serialize};

use crate::config::{Section, Validate};
use crate::error::Result;

/// Parameters of skull stripping. The defaults were chosen on 40 heads of the IXI training split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkullStripConfig {
    /// Height in mm of the part of the head, from its top down, that is searched for the brain.
    pub head_height_mm: f32,
    /// Iterations of the coarse surface of 642 vertices.
    pub coarse_iterations: usize,
    /// Iterations of the fine surface of 2562 vertices, after the coarse ones.
    pub fine_iterations: usize,
    /// Position of the border between the local minimum and maximum (0..1); a larger value gives a smaller brain.
    pub fractional_threshold: f32,
    /// Fall of that threshold from the middle of the head to its top, and rise to its base.
    pub threshold_gradient: f32,
    /// Curvature radius in mm below which the surface is fully smoothed.
    pub curvature_radius_min_mm: f32,
    /// Curvature radius in mm above which the surface is hardly smoothed.
    pub curvature_radius_max_mm: f32,
    /// Weight of the intensity term per mean edge length.
    pub data_weight: f32,
    /// Depth in mm below the surface within which the local minimum is sought.
    pub search_min_mm: f32,
    /// Depth in mm below the surface within which the local maximum is sought.
    pub search_max_mm: f32,
    /// Radius in mm of the opening that cuts leaks at the base of the skull.
    pub opening_mm: f32,
    /// Distance in mm outside the template's brain beyond which the mask is a leak.
    pub leak_mm: f32,
    /// Smallest and largest volume in ml at which the surface's result is accepted.
    pub plausible_ml: [f64; 2],
}

impl Validate for SkullStripConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.skull_strip");
        section.within("head_height_mm", self.head_height_mm, 10. ..=1000.)?;
        let iterations = [("coarse_iterations", self.coarse_iterations), ("fine_iterations", self.fine_iterations)];
        section.all_within(&iterations, 0..=10_000)?;
        section.within("fractional_threshold", self.fractional_threshold, 0. ..=1.)?;
        section.within("threshold_gradient", self.threshold_gradient, -1. ..=1.)?;
        // Equal radii would divide by zero.
        section.within("curvature_radius_max_mm", self.curvature_radius_max_mm, 1. ..=1000.)?;
        let below = 0.99 * self.curvature_radius_max_mm;
        section.within("curvature_radius_min_mm", self.curvature_radius_min_mm, 0.1..=below)?;
        section.within("data_weight", self.data_weight, 0. ..=10.)?;
        let lengths = [
            ("search_min_mm", self.search_min_mm),
            ("search_max_mm", self.search_max_mm),
            ("opening_mm", self.opening_mm),
            ("leak_mm", self.leak_mm),
        ];
        section.all_within(&lengths, 0. ..=200.)?;
        section.bounds("plausible_ml", self.plausible_ml, 0. ..=10_000.)
    }
}

impl Default for SkullStripConfig {
    fn default() -> Self {
        Self {
            head_height_mm: 150.0,
            coarse_iterations: 300,
            fine_iterations: 100,
            fractional_threshold: 0.63,
            threshold_gradient: 0.2,
            curvature_radius_min_mm: 5.0,
            curvature_radius_max_mm: 14.0,
            data_weight: 0.05,
            search_min_mm: 20.0,
            search_max_mm: 10.0,
            opening_mm: 6.0,
            leak_mm: 6.0,
            plausible_ml: [700.0, 2200.0],
        }
    }
}
