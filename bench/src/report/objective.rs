//! What starts are to stay within: `p99<200ms`.

use super::estimate::estimate;

/// The last starts that are looked at, and the fewest of them.
pub const WINDOW: usize = 20;
/// With fewer starts nothing is said.
const FEWEST: usize = 5;

/// A statistic of the last starts, and its limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    statistic: Statistic,
    /// Milliseconds.
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statistic {
    P50,
    P90,
    P99,
    Max,
}

const STATISTICS: [(&str, Statistic); 4] =
    [("p50", Statistic::P50), ("p90", Statistic::P90), ("p99", Statistic::P99), ("max", Statistic::Max)];

impl std::str::FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no objective; write p50, p90, p99 or max, <, and a time: 'p99<200ms', 'p50<2s'");
        let (name, limit) = text.split_once('<').ok_or_else(wrong)?;
        let statistic = STATISTICS.iter().find(|(known, _)| *known == name.trim()).ok_or_else(wrong)?.1;
        let limit = limit.trim();
        let (number, factor) = match (limit.strip_suffix("ms"), limit.strip_suffix('s')) {
            (Some(number), _) => (number, 1.0),
            (_, Some(number)) => (number, 1000.0),
            _ => return Err(wrong()),
        };
        let limit = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
        if limit.is_finite() && limit > 0.0 { Ok(Objective { statistic, limit }) } else { Err(wrong()) }
    }
}

impl Objective {
    /// How the last of these starts (milliseconds) miss it, if they do.
    #[must_use]
    pub fn missed(&self, starts: &[f64]) -> Option<String> {
        let last = &starts[starts.len().saturating_sub(WINDOW)..];
        // The seed is for intervals, of which none is asked for.
        let all = estimate(last, 0).filter(|all| all.samples >= FEWEST)?;
        let value = match self.statistic {
            Statistic::P50 => all.p50.value,
            Statistic::P90 => all.p90.value,
            Statistic::P99 => all.p99.value,
            Statistic::Max => all.max,
        };
        let name = STATISTICS.iter().find(|(_, known)| *known == self.statistic).map_or("", |(name, _)| name);
        (value >= self.limit).then(|| {
            format!("{name} of the last {} starts is {value:.1} ms, not below {:.1} ms", last.len(), self.limit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read() {
        let limit = |text: &str| text.parse::<Objective>().map(|objective| objective.limit);
        assert_eq!((limit("p99<200ms"), limit(" max < 1.5 s ")), (Ok(200.0), Ok(1500.0)));
        for wrong in ["", "p99", "p99<", "p99<200", "p98<1s", "p99>1s", "p99<-1s", "p99<infs", "p99<nanms", "p99<0ms"] {
            assert!(limit(wrong).unwrap_err().contains("p99<200ms"), "{wrong}");
        }
    }

    #[test]
    fn the_last_starts_decide() {
        let objective: Objective = "p50<100ms".parse().unwrap();
        assert_eq!(objective.missed(&[500.0; 4]), None, "too few");
        let mut starts = vec![500.0; 10];
        starts.extend([50.0; 20]);
        assert_eq!(objective.missed(&starts), None, "the first are long ago");
        starts.extend([200.0; 11]);
        assert!(objective.missed(&starts).unwrap().contains("p50 of the last 20 starts is 200.0 ms"));
    }
}
