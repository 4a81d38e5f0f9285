//! Percentiles of a handful of samples.

use std::time::Duration;

use serde::Serialize;

/// What a series of times comes down to; microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many samples.
    pub samples: usize,
    /// Least.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile: the smallest sample that at least 99 % do not exceed.
    pub p99_us: f64,
    /// Greatest.
    pub max_us: f64,
}

/// Summarises `times`; `None` if there are none.
pub fn summarise(times: &[Duration]) -> Option<Summary> {
    let mut sorted: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
    let (&min_us, &max_us) = (sorted.first()?, sorted.last()?);
    Some(Summary { samples: sorted.len(), min_us, p50_us: at(50), p99_us: at(99), max_us })
}

/// The median, the smaller one of two; `None` if there is none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_micros).collect();
        let got = summarise(&times).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(got.min_us, 1.0) && near(got.p50_us, 100.0) && near(got.p99_us, 198.0) && near(got.max_us, 200.0));
        assert_eq!(summarise(&times[..1]).unwrap().samples, 1);
        assert!(summarise(&[]).is_none());
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(
            (median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 3.0, 2.0]), median(&[])),
            (Some(2.0), Some(2.0), None)
        );
    }
}
