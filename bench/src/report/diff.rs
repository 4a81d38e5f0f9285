//! Two documents, row by row: what has changed, and whether that is more than chance.

use serde::Serialize;

use super::estimate::{ENOUGH, Interval, change, estimate};
use super::metric::{METRICS, Unit};
use super::{Arm, Document, Series};

/// A row of an arm in both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The arm's name.
    pub arm: String,
    /// The row's key.
    pub metric: &'static str,
    /// Of both medians.
    pub unit: Unit,
    /// Median of the old samples.
    pub old: f64,
    /// Median of the new ones.
    pub new: f64,
    /// New by old.
    pub ratio: Option<f64>,
    /// Where that ratio lies, as those of all rows do in 99 of 100 cases; none if there are too few samples.
    pub interval: Option<Interval>,
    /// What it comes to.
    pub verdict: Verdict,
}

/// What a change comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is better by more than chance.
    Better,
    /// It is worse by more than chance.
    Worse,
    /// It may be chance.
    Same,
    /// There are too few samples to say.
    Unknown,
}

impl Verdict {
    /// As it is shown.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Same => "same",
            Verdict::Unknown => "too few samples",
        }
    }
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// What both have.
    pub rows: Vec<Row>,
    /// Why they may not be comparable: other hosts, images, commands, versions.
    pub differences: Vec<String>,
}

/// Compares two documents.
#[must_use]
pub fn diff(old: &Document, new: &Document) -> Diff {
    let mut rows = Vec::new();
    let among = compared(old, new);
    for arm in new.measured() {
        for metric in &METRICS {
            let (before, after) = (old.samples(arm, metric.key), new.samples(arm, metric.key));
            let (Some(was), Some(is)) = (estimate(before, new.seed), estimate(after, new.seed)) else { continue };
            let change = change(before, after, new.seed, among);
            let verdict = match change {
                None => Verdict::Unknown,
                Some((_, Interval { low, high })) if low > 1.0 || high < 1.0 => {
                    if (low > 1.0) == metric.more_is_better { Verdict::Better } else { Verdict::Worse }
                }
                Some(_) => Verdict::Same,
            };
            let ratio = is.p50.value / was.p50.value;
            rows.push(Row {
                arm: arm.to_owned(),
                metric: metric.key,
                unit: metric.unit,
                old: was.p50.value,
                new: is.p50.value,
                ratio: ratio.is_finite().then_some(ratio),
                interval: change.map(|(_, interval)| interval),
                verdict,
            });
        }
    }
    Diff { rows, differences: differences(old, new) }
}

/// How many rows of arms both have samples enough of.
fn compared(old: &Document, new: &Document) -> usize {
    let enough = |document: &Document, series: &Series| document.samples(&series.arm, &series.metric).len() >= ENOUGH;
    new.series.iter().filter(|series| enough(old, series) && enough(new, series)).count()
}

fn differences(old: &Document, new: &Document) -> Vec<String> {
    let mut found = Vec::new();
    let mut differs = |what: &str, old: &str, new: &str| {
        if old != new {
            found.push(format!("{what}: {old} / {new}"));
        }
    };
    differs("image", &old.image, &new.image);
    differs("command", &old.command.join(" "), &new.command.join(" "));
    for ((what, old), (_, new)) in old.host.fixed().into_iter().zip(new.host.fixed()) {
        differs(what, &old, &new);
    }
    let version = |arm: Option<&Arm>| arm.and_then(|arm| arm.version.clone()).unwrap_or_else(|| "-".into());
    for arm in &new.arms {
        let before = old.arms.iter().find(|other| other.name == arm.name);
        differs(&arm.name, &version(before), &version(Some(arm)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::document;
    use fastrand::Rng;

    fn times(factor: f64, random: &mut Rng) -> Vec<f64> {
        (0..30).map(|_| factor * (40.0 - 4.0 * (1.0 - random.f64()).ln())).collect()
    }

    #[test]
    fn a_slowdown_of_one_arm_is_found_in_it_alone() {
        let mut random = Rng::with_seed(23);
        let mut both = |crun| {
            let (runc, crun, rate) = (times(1.0, &mut random), times(crun, &mut random), times(crun, &mut random));
            document(&[("runc", "start", runc), ("crun", "start", crun), ("crun", "rate", rate)])
        };
        let (old, new) = (both(1.0), both(1.3));
        let verdicts = |diff: &Diff| diff.rows.iter().map(|row| row.verdict).collect::<Vec<_>>();
        let found = diff(&old, &new);
        assert_eq!(verdicts(&found), [Verdict::Same, Verdict::Worse, Verdict::Better], "{found:?}");
        assert!(found.rows[1].ratio.is_some_and(|ratio| (1.2..1.4).contains(&ratio)));
        assert_eq!(verdicts(&diff(&new, &old)), [Verdict::Same, Verdict::Better, Verdict::Worse]);
        assert_eq!(verdicts(&diff(&old, &old)), [Verdict::Same; 3]);
    }

    #[test]
    fn the_same_twice_is_the_same_in_nineteen_of_twenty_tries() {
        const ROWS: [&str; 3] = ["start", "run", "teardown"];
        let mut random = Rng::with_seed(29);
        let mut all = || {
            let mut series = Vec::new();
            for arm in ["runc", "vm-warm"] {
                series.extend(ROWS.map(|row| (arm, row, times(1.0, &mut random))));
            }
            document(&series)
        };
        let quiet =
            (0..20).filter(|_| diff(&all(), &all()).rows.iter().all(|row| row.verdict == Verdict::Same)).count();
        assert!(quiet >= 19, "{quiet} of 20");
    }

    #[test]
    fn few_samples_are_no_verdict_and_other_conditions_are_named() {
        let (old, mut new) = (document(&[("runc", "start", vec![1.0])]), document(&[("runc", "start", vec![9.0])]));
        new.image = "other".into();
        new.arms[1].version = Some("2".into());
        let found = diff(&old, &new);
        assert_eq!((found.rows.len(), found.rows[0].verdict), (1, Verdict::Unknown));
        assert_eq!(found.differences, ["image:  / other", "runc: - / 2"]);
    }
}
