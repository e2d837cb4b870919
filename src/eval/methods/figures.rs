//! Figures of anomaly maps against truth masks, and their confidence intervals.
//!
//! Takes the scores of voxels (0 to 1) with their truth, pooled over scans as in the literature: one ranking of all voxels
//! of all scans. Gives average precision, the best Dice over all thresholds, the area under the ROC curve, and bootstrap
//! intervals. The bootstrap draws scans, not voxels, because the voxels of one brain are not independent.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of levels that scores are rounded to. They are finer towards 0, where most voxels are.
const LEVELS: usize = 1 << 12;

/// Rounds of the bootstrap.
const ROUNDS: usize = 1000;

/// Histogram of one scan's scores: voxels at each level.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    healthy: Vec<u32>,
    anomalous: Vec<u32>,
}

impl Counts {
    /// Counts voxels, given as score and truth. Scores are clamped to 0..1.
    pub fn of(voxels: impl Iterator<Item = (f32, bool)>) -> Self {
        let mut counts = Self { healthy: vec![0; LEVELS], anomalous: vec![0; LEVELS] };
        for (score, anomalous) in voxels {
            let level = (score.clamp(0., 1.).sqrt() * (LEVELS - 1) as f32).round() as usize;
            let side = if anomalous { &mut counts.anomalous } else { &mut counts.healthy };
            side[level] += 1;
        }
        counts
    }
}

/// Figures of several scans together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pooled {
    /// Average precision as in scikit-learn: precision at each level, weighted by the recall that the level adds.
    pub average_precision: f64,
    /// Best Dice over all thresholds.
    pub best_dice: f64,
    /// Share of anomalous voxels, which is the average precision of a random ranking.
    pub prevalence: f64,
}

/// Ranks all voxels of the scans together. NaN where no voxel is anomalous.
pub(super) fn pooled<'a>(scans: impl Iterator<Item = &'a Counts> + Clone) -> Pooled {
    let (mut healthy, mut anomalous) = (vec![0u64; LEVELS], vec![0u64; LEVELS]);
    for scan in scans {
        healthy.iter_mut().zip(&scan.healthy).for_each(|(sum, &n)| *sum += u64::from(n));
        anomalous.iter_mut().zip(&scan.anomalous).for_each(|(sum, &n)| *sum += u64::from(n));
    }
    let total = anomalous.iter().sum::<u64>() as f64;
    let all = total + healthy.iter().sum::<u64>() as f64;
    let (mut hits, mut called) = (0f64, 0f64);
    let (mut average_precision, mut best_dice) = (0f64, 0f64);
    for level in (0..LEVELS).rev() {
        let found = anomalous[level] as f64;
        hits += found;
        called += found + healthy[level] as f64;
        if called > 0. {
            average_precision += found / total * hits / called;
            best_dice = best_dice.max(2. * hits / (called + total));
        }
    }
    if total == 0. {
        return Pooled { average_precision: f64::NAN, best_dice: f64::NAN, prevalence: 0. };
    }
    Pooled { average_precision, best_dice, prevalence: total / all }
}

/// Area under the ROC curve (Mann-Whitney; ties count half). NaN where either group is empty.
pub(super) fn auroc(anomalous: &[f64], healthy: &[f64]) -> f64 {
    let wins: f64 = anomalous
        .iter()
        .flat_map(|a| healthy.iter().map(move |h| if a > h { 1. } else { f64::from(u8::from(a == h)) / 2. }))
        .sum();
    wins / (anomalous.len() * healthy.len()) as f64
}

/// Dice of two masks, from the number of shared voxels and of each mask's voxels; 1 where both are empty.
pub(super) fn dice(shared: u64, called: u64, truth: u64) -> f64 {
    if called + truth == 0 { 1. } else { 2. * shared as f64 / (called + truth) as f64 }
}

/// The `q`-quantile of the finite values, interpolated linearly; NaN without values.
pub(super) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = last as f64 * q;
    let low = place.floor() as usize;
    sorted[low] + (sorted[(low + 1).min(last)] - sorted[low]) * (place - low as f64)
}

/// The middle 95 % of a statistic over bootstrap samples of `n` scans. `statistic` gets the indices of the drawn scans. The
/// draws are the same in every call, so that two methods are compared on the same scans.
pub(super) fn interval(n: usize, statistic: impl Fn(&[usize]) -> f64) -> [f64; 2] {
    if n == 0 {
        return [f64::NAN; 2];
    }
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    let values: Vec<f64> =
        (0..ROUNDS).map(|_| statistic(&(0..n).map(|_| rng.random_range(0..n)).collect::<Vec<_>>())).collect();
    [quantile(&values, 0.025), quantile(&values, 0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooled_figures_agree_with_scikit_learn() {
        // sklearn.metrics.average_precision_score([1,0,1,0,1,0], [.9,.8,.7,.4,.3,.1]) = 0.7555..; best F1 at >= 0.3.
        let first = Counts::of([(0.9, true), (0.8, false), (0.7, true)].into_iter());
        let second = Counts::of([(0.4, false), (0.3, true), (0.1, false)].into_iter());
        let found = pooled([&first, &second].into_iter());
        assert!((found.average_precision - (1. + 2. / 3. + 3. / 5.) / 3.).abs() < 1e-12, "{found:?}");
        assert!((found.best_dice - 0.75).abs() < 1e-12, "{found:?}");
        assert_eq!(found.prevalence, 0.5);
    }

    #[test]
    fn ties_are_one_step_of_the_ranking() {
        let tied = Counts::of([(0.5, true), (0.5, false), (0.5, false), (0.5, true)].into_iter());
        assert_eq!(pooled([&tied].into_iter()).average_precision, 0.5);
        assert_eq!(auroc(&[0.5, 0.7], &[0.5, 0.1]), (0.5 + 1. + 1. + 1.) / 4.);
    }

    #[test]
    fn an_interval_holds_the_mean_and_repeats() {
        let values: Vec<f64> = (0..40).map(f64::from).collect();
        let mean = |draw: &[usize]| draw.iter().map(|&i| values[i]).sum::<f64>() / draw.len() as f64;
        let [low, high] = interval(values.len(), mean);
        // The mean is 19.5; its standard error is 11.5 / sqrt(40) = 1.8.
        assert!((14. ..17.5).contains(&low) && (21.5..25.).contains(&high), "{low} to {high}");
        assert_eq!(interval(values.len(), mean), [low, high]);
        assert_eq!((quantile(&values, 0.5), dice(0, 0, 0), dice(1, 2, 2)), (19.5, 1., 0.5));
    }
}
