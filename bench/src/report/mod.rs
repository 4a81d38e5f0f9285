//! What a comparison comes down to, as a document: raw samples, and what is needed to judge and to repeat them.
//!
//! Everything that is shown is calculated from the samples, so a saved document says all that the first report said.
//!
//! | module | what it does |
//! |---|---|
//! | [`metric`] | the rows and the arms |
//! | [`estimate`] | percentiles and their intervals |
//! | [`diff`] | two documents, row by row |
//! | [`objective`] | what starts are to stay within |
//! | [`assert`] | conditions on what was measured |
//! | [`page`] | all of it as one page of HTML |
//! | [`trace`] | the phases of each run, for viewers of traces |

pub mod assert;
pub mod diff;
pub mod estimate;
pub mod metric;
pub mod objective;
pub mod page;
pub mod trace;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::Host;
use estimate::{Estimate, estimate};
use metric::{ARMS, METRICS, Metric};

/// What a document calls itself.
const FORMAT: &str = "bulkhead-bench-compare";
/// The version that this program writes and reads.
const VERSION: u32 = 1;
/// No document is larger, bytes: 10,000 samples of each row and arm take a third of that.
const MOST: u64 = 64 << 20;
/// No row of an arm has more samples: more are nothing that was measured here, and would keep a processor busy for minutes.
const MOST_SAMPLES: usize = 100_000;

/// A comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Always "bulkhead-bench-compare".
    pub format: String,
    /// Of the format: 1.
    pub version: u32,
    /// When it began: UTC, RFC 3339.
    pub began: String,
    /// How long it took, seconds.
    pub took_s: f64,
    /// The image.
    pub image: String,
    /// What ran in it for the times.
    pub command: Vec<String>,
    /// Samples asked for.
    pub asked: usize,
    /// Seconds that one arm's samples of times may take; slower arms have fewer samples.
    pub budget_s: u64,
    /// Instances at a time for the memory.
    pub instances: usize,
    /// What the order of samples and the intervals were drawn with.
    pub seed: u64,
    /// Memory that `density` is calculated for, MiB.
    pub memory_mib: u64,
    /// It was broken off: what is here was measured until then.
    pub interrupted: bool,
    /// On what.
    pub host: Host,
    /// What was compared, and what could not be.
    pub arms: Vec<Arm>,
    /// What was measured.
    pub series: Vec<Series>,
    /// Where the time of a start goes.
    pub phases: Vec<Phase>,
    /// What is to be known beside.
    pub notes: Vec<String>,
}

/// An arm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: String,
    /// As its program says.
    pub version: Option<String>,
    /// Why there is nothing of it, or not all.
    pub problem: Option<String>,
}

/// The samples of one row of one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The arm's name.
    pub arm: String,
    /// The row's key.
    pub metric: String,
    /// In the row's unit, in the order in which they were taken.
    pub samples: Vec<f64>,
}

/// The samples of one phase of one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The arm's name.
    pub arm: String,
    /// The phase's name. Phases follow each other in the order in which they are listed.
    pub phase: String,
    /// Milliseconds.
    pub samples: Vec<f64>,
}

/// A document cannot be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It cannot be read.
    #[error("'{0}': {1}")]
    Read(String, #[source] std::io::Error),
    /// It is something else.
    #[error("'{0}' is no result of `bench compare --out`: {1}")]
    Other(String, String),
    /// It is of another version.
    #[error(
        "'{0}' has version {1} of the format, this program knows {VERSION}: measure again, or read it with the program that wrote it"
    )]
    Version(String, u32),
}

impl Document {
    /// An empty one.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Document {
            format: FORMAT.into(),
            version: VERSION,
            began: String::new(),
            took_s: 0.0,
            image: String::new(),
            command: Vec::new(),
            asked: 0,
            budget_s: 0,
            instances: 0,
            seed: 0,
            memory_mib: 0,
            interrupted: false,
            host,
            arms: Vec::new(),
            series: Vec::new(),
            phases: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Reads one that was saved.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn read(path: &Path) -> Result<Self, DocumentError> {
        let name = || path.display().to_string();
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MOST).read_to_string(&mut text));
        read.map_err(|error| DocumentError::Read(name(), error))?;
        let other = |error: serde_json::Error| DocumentError::Other(name(), error.to_string());
        let value: serde_json::Value = serde_json::from_str(&text).map_err(other)?;
        if value["format"] != FORMAT {
            return Err(DocumentError::Other(name(), format!("its \"format\" is not \"{FORMAT}\"")));
        }
        match value["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {
                let document: Document = serde_json::from_value(value).map_err(other)?;
                match document.series.iter().find(|series| series.samples.len() > MOST_SAMPLES) {
                    None => Ok(document),
                    Some(_) => Err(DocumentError::Other(name(), format!("more than {MOST_SAMPLES} samples in a row"))),
                }
            }
            version => Err(DocumentError::Version(name(), version.unwrap_or(0) as u32)),
        }
    }

    /// The document with what its samples come to, for others to read: `estimates` and `winners`, which [`Document::read`] calculates
    /// anew.
    ///
    /// # Errors
    /// None that is known: all of it is plain data.
    pub fn with_estimates(&self) -> serde_json::Result<serde_json::Value> {
        let estimate = |series: &Series| {
            let estimate = estimate(&series.samples, self.seed);
            serde_json::json!({ "arm": series.arm, "metric": series.metric, "unit": metric::metric(&series.metric).map(|m| m.unit), "estimate": estimate })
        };
        let winners = self.rows().filter_map(|row| Some((row.key.to_owned(), self.winner(row)?.into())));
        let mut value = serde_json::to_value(self)?;
        value["estimates"] = self.series.iter().map(estimate).collect();
        value["winners"] = winners.collect::<serde_json::Map<_, _>>().into();
        Ok(value)
    }

    /// Samples of a row of an arm; none if there are none.
    #[must_use]
    pub fn samples(&self, arm: &str, metric: &str) -> &[f64] {
        let series = self.series.iter().find(|series| series.arm == arm && series.metric == metric);
        series.map_or(&[], |series| &series.samples)
    }

    /// Adds samples.
    pub fn add(&mut self, arm: &str, metric: &'static str, samples: &[f64]) {
        match self.series.iter_mut().find(|series| series.arm == arm && series.metric == metric) {
            Some(series) => series.samples.extend(samples),
            None => {
                let (arm, metric, samples) = (arm.to_owned(), metric.to_owned(), samples.to_vec());
                self.series.push(Series { arm, metric, samples });
            }
        }
    }

    /// What the samples of a row of an arm come down to.
    #[must_use]
    pub fn estimate(&self, arm: &str, metric: &str) -> Option<Estimate> {
        estimate(self.samples(arm, metric), self.seed)
    }

    /// The rows that have samples, in order.
    pub fn rows(&self) -> impl Iterator<Item = &'static Metric> {
        METRICS.iter().filter(|metric| self.series.iter().any(|series| series.metric == metric.key))
    }

    /// The arms that have samples, in order.
    #[must_use]
    pub fn measured(&self) -> Vec<&str> {
        let measured = |arm: &&Arm| self.series.iter().any(|series| series.arm == arm.name);
        self.arms.iter().filter(measured).map(|arm| arm.name.as_str()).collect()
    }

    /// The arm whose median is the best of a row, if its interval has nothing in common with any other's. The bare process is the
    /// floor, and takes no part; nor does what has no interval.
    #[must_use]
    pub fn winner(&self, metric: &Metric) -> Option<&str> {
        let takes_part = |name: &&str| !ARMS.iter().any(|arm| arm.name == *name && arm.floor);
        let arms = self.measured().into_iter().filter(takes_part);
        let of = |arm| Some((arm, self.estimate(arm, metric.key)?.p50));
        let all: Vec<_> = arms.filter_map(of).collect();
        let better = |a: f64, b: f64| if metric.more_is_better { a > b } else { a < b };
        let (best, one) = *all.iter().reduce(|a, b| if better(b.1.value, a.1.value) { b } else { a })?;
        let beats = |(name, other): &(&str, estimate::Percentile)| {
            *name == best
                || one.interval.zip(other.interval).is_some_and(|(one, other)| match metric.more_is_better {
                    true => other.is_below(one),
                    false => one.is_below(other),
                })
        };
        (all.len() > 1 && all.iter().all(beats)).then_some(best)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fastrand::Rng;
    use metric::metric;

    /// A document with these samples.
    pub(crate) fn document(series: &[(&str, &'static str, Vec<f64>)]) -> Document {
        let mut document = Document::new(Host::default());
        for (name, metric, samples) in series {
            document.add(name, metric, samples);
        }
        document.arms = ARMS
            .iter()
            .map(|arm| Arm { name: arm.name.into(), what: arm.what.into(), version: None, problem: None })
            .collect();
        document
    }

    fn times(factor: f64, random: &mut Rng) -> Vec<f64> {
        (0..30).map(|_| factor * (40.0 - 4.0 * (1.0 - random.f64()).ln())).collect()
    }

    #[test]
    fn the_same_thing_twice_has_no_winner() {
        let mut random = Rng::with_seed(3);
        let start = metric("start").unwrap();
        let won = (0..60).filter(|seed| {
            let mut both =
                document(&[("runc", "start", times(1.0, &mut random)), ("crun", "start", times(1.0, &mut random))]);
            both.seed = *seed;
            both.winner(start).is_some()
        });
        assert!(won.count() <= 3);
    }

    #[test]
    fn the_one_that_is_surely_better_wins_and_the_floor_does_not() {
        let mut random = Rng::with_seed(5);
        let series = [
            ("process", "start", times(0.1, &mut random)),
            ("crun", "start", times(0.5, &mut random)),
            ("runc", "start", times(1.0, &mut random)),
        ];
        let mut all = document(&series);
        assert_eq!(all.winner(metric("start").unwrap()), Some("crun"));
        all.add("vm-warm", "start", &[1.0]);
        assert_eq!(all.winner(metric("start").unwrap()), None, "one sample is no proof");
        let rates = document(&[("runc", "rate", times(1.0, &mut random)), ("crun", "rate", times(2.0, &mut random))]);
        assert_eq!(rates.winner(metric("rate").unwrap()), Some("crun"), "more is better");
        assert_eq!(document(&[("runc", "start", times(1.0, &mut random))]).winner(metric("start").unwrap()), None);
    }

    #[test]
    fn what_was_saved_is_read_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let saved = document(&[("runc", "start", vec![1.5, 2.5])]);
        std::fs::write(&path, serde_json::to_string(&saved).unwrap()).unwrap();
        assert_eq!(Document::read(&path).unwrap(), saved);
        let many = document(&[("runc", "start", vec![1.0; MOST_SAMPLES + 1])]);
        let many = serde_json::to_string(&many).unwrap();
        let wrong = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Document::read(&path).unwrap_err().to_string()
        };
        assert!(wrong("{}").contains("no result"));
        assert!(wrong(&many).contains("more than 100000 samples"));
        assert!(wrong("[1,").contains("no result"));
        assert!(wrong("{\"format\":\"bulkhead-bench-compare\",\"version\":2}").contains("version 2"));
        assert!(wrong("{\"format\":\"bulkhead-bench-compare\",\"version\":1}").contains("missing field"));
        assert!(Document::read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
