//! What samples tell, and how sure that is: percentiles with intervals from resampling (the percentile bootstrap).
//!
//! Random numbers come from a seed, so that the same samples always give the same intervals.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// How often samples are drawn anew.
const DRAWS: usize = 2000;
/// Many samples need not be drawn as often, and are not drawn more often than this in all.
const DRAWN: usize = 2_000_000;
/// With fewer samples than these there are no intervals: the extremes of five lie on both sides of the median in 94 of 100 cases only.
pub const ENOUGH: usize = 6;
/// Part of the draws that lies in an interval.
const CONFIDENCE: f64 = 0.95;
/// The same for what has changed: of all that is looked at, since each of it is a chance to be wrong.
const CONFIDENCE_OF_CHANGE: f64 = 0.99;
/// So many draws at least lie outside an interval, as long as that are not too many in all.
const OUTSIDE: f64 = 4.0;
/// So many times the distance of the quartiles beyond them lies an outlier (Tukey's fences).
const FENCE: f64 = 1.5;

/// Where the true value lies, in 95 of 100 cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether all of it is below all of `other`.
    #[must_use]
    pub fn is_below(self, other: Interval) -> bool {
        self.high < other.low
    }
}

/// A percentile, and its interval if there are samples enough for one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    /// By nearest rank: the smallest sample that at least so many do not exceed.
    pub value: f64,
    /// Its interval.
    pub interval: Option<Interval>,
}

/// What some samples come down to, in their unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// How many samples.
    pub samples: usize,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: Percentile,
    /// 90th percentile.
    pub p90: Percentile,
    /// 99th percentile: with fewer than 100 samples the greatest.
    pub p99: Percentile,
    /// Samples far from the others: they count like those.
    pub outliers: usize,
}

/// The sample of that rank; `sorted` is not empty.
fn ranked(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// How often so many samples are drawn.
fn draws(samples: usize) -> std::ops::Range<usize> {
    0..(DRAWN / samples.max(1)).clamp(DRAWS / 10, DRAWS)
}

/// As many of the samples, which are in order, drawn with replacement: in order again.
fn draw(sorted: &[f64], random: &mut Rng) -> Vec<f64> {
    let mut counts = vec![0; sorted.len()];
    (0..sorted.len()).for_each(|_| counts[random.usize(..sorted.len())] += 1);
    sorted.iter().zip(counts).flat_map(|(sample, count)| std::iter::repeat_n(*sample, count)).collect()
}

/// The median of as many of the samples, which are in order, drawn with replacement; `counts` is room for that.
fn drawn_median(sorted: &[f64], counts: &mut Vec<usize>, random: &mut Rng) -> f64 {
    counts.clear();
    counts.resize(sorted.len(), 0);
    sorted.iter().for_each(|_| counts[random.usize(..sorted.len())] += 1);
    let mut before = sorted.len().div_ceil(2);
    for (sample, count) in sorted.iter().zip(counts) {
        if *count >= before {
            return *sample;
        }
        before -= *count;
    }
    f64::NAN
}

fn interval(of: &[f64], confidence: f64) -> Interval {
    let sorted = sorted(of);
    let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part).round() as usize];
    let outside = (1.0 - confidence) / 2.0;
    Interval { low: at(outside), high: at(1.0 - outside) }
}

/// What `samples` come down to; `None` if there are none.
#[must_use]
pub fn estimate(samples: &[f64], seed: u64) -> Option<Estimate> {
    let sorted = sorted(samples);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let mut random = Rng::with_seed(seed);
    let draws: Vec<Vec<f64>> = match sorted.len() {
        ..ENOUGH => Vec::new(),
        count => draws(count).map(|_| draw(&sorted, &mut random)).collect(),
    };
    let percentile = |percent| Percentile {
        value: ranked(&sorted, percent),
        interval: (!draws.is_empty())
            .then(|| interval(&draws.iter().map(|draw| ranked(draw, percent)).collect::<Vec<_>>(), CONFIDENCE)),
    };
    let (q1, q3) = (ranked(&sorted, 25), ranked(&sorted, 75));
    let fences = q1 - FENCE * (q3 - q1)..=q3 + FENCE * (q3 - q1);
    Some(Estimate {
        samples: sorted.len(),
        min,
        max,
        mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
        p50: percentile(50),
        p90: percentile(90),
        p99: percentile(99),
        outliers: sorted.iter().filter(|sample| !fences.contains(sample)).count(),
    })
}

/// By how much the median of `new` differs from that of `old`, as a ratio with an interval. Of the intervals of so many ratios as are looked at
/// (`among`), all are right in 99 of 100 cases (Bonferroni). `None`: too few samples, or nothing to divide by.
#[must_use]
pub fn change(old: &[f64], new: &[f64], seed: u64, among: usize) -> Option<(f64, Interval)> {
    let confidence = 1.0 - (1.0 - CONFIDENCE_OF_CHANGE) / among.max(1) as f64;
    between(old, new, seed, confidence, |old, new| new / old)
}

/// The same as a difference, in the samples' unit, with an interval of 99 %.
#[must_use]
pub fn difference(old: &[f64], new: &[f64], seed: u64) -> Option<(f64, Interval)> {
    between(old, new, seed, CONFIDENCE_OF_CHANGE, |old, new| new - old)
}

fn between(old: &[f64], new: &[f64], seed: u64, confidence: f64, by: fn(f64, f64) -> f64) -> Option<(f64, Interval)> {
    if old.len() < ENOUGH || new.len() < ENOUGH {
        return None;
    }
    let mut random = Rng::with_seed(seed);
    let (old, new) = (sorted(old), sorted(new));
    let most = old.len().max(new.len());
    let fine = ((OUTSIDE / (1.0 - confidence)) as usize).min(DRAWN / most);
    let count = draws(most).len().max(fine);
    let mut counts = Vec::new();
    let mut median = |sorted| drawn_median(sorted, &mut counts, &mut random);
    let drawn: Vec<f64> = (0..count).map(|_| by(median(&old), median(&new))).collect();
    let all = by(ranked(&old, 50), ranked(&new, 50));
    (all.is_finite() && drawn.iter().all(|value| value.is_finite())).then(|| (all, interval(&drawn, confidence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times as they are measured: a floor, and a tail.
    fn times(count: usize, factor: f64, random: &mut Rng) -> Vec<f64> {
        (0..count).map(|_| factor * (40.0 - 4.0 * (1.0 - random.f64()).ln())).collect()
    }

    #[test]
    fn percentiles_are_ranks_and_outliers_stay() {
        let samples: Vec<f64> = (1..=100).map(f64::from).chain([1000.0]).collect();
        let got = estimate(&samples, 1).unwrap();
        assert_eq!((got.min, got.p50.value, got.p90.value, got.p99.value), (1.0, 51.0, 91.0, 100.0));
        assert_eq!((got.samples, got.max, got.outliers), (101, 1000.0, 1));
        let interval = got.p50.interval.unwrap();
        assert!(
            interval.low > 30.0 && interval.low < 51.0 && interval.high > 51.0 && interval.high < 72.0,
            "{interval:?}"
        );
        assert_eq!(estimate(&samples, 1), estimate(&samples, 1));
        assert_eq!(estimate(&[], 1), None);
    }

    #[test]
    fn few_samples_have_no_interval() {
        let few = estimate(&[1.0, 2.0, 3.0, 4.0, 5.0], 1).unwrap();
        assert_eq!((few.p50.value, few.p50.interval), (3.0, None));
        assert!(estimate(&[1.0; ENOUGH], 1).unwrap().p50.interval.is_some());
        assert_eq!(change(&[1.0; 5], &[2.0; 30], 1, 1), None);
        assert_eq!(change(&[0.0; 30], &[2.0; 30], 1, 1), None);
        assert_eq!(difference(&[0.0; 30], &[2.0; 30], 1), Some((2.0, Interval { low: 2.0, high: 2.0 })));
    }

    /// The interval has the true median in it about as often as it says.
    #[test]
    fn intervals_hold_what_they_promise() {
        let mut random = Rng::with_seed(7);
        let truth = 40.0 + 4.0 * 2f64.ln();
        let holds = |seed| {
            let interval = estimate(&times(30, 1.0, &mut random), seed).unwrap().p50.interval.unwrap();
            (interval.low..=interval.high).contains(&truth)
        };
        let held = (0..100).map(holds).filter(|held| *held).count();
        assert!((89..=100).contains(&held), "{held} of 100");
    }

    #[test]
    fn a_slowdown_is_found_and_none_is_made_up() {
        let mut random = Rng::with_seed(11);
        let mut found = |factor| {
            let tries = (0..60).filter(|seed| {
                let (old, new) = (times(30, 1.0, &mut random), times(30, factor, &mut random));
                let (_, interval) = change(&old, &new, *seed, 1).unwrap();
                interval.low > 1.0 || interval.high < 1.0
            });
            tries.count()
        };
        assert!(found(1.0) <= 3, "changes where there are none");
        assert!(found(1.15) >= 57, "a slowdown by 15 % is not found");
    }
}
