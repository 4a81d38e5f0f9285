//! Where the time of a run goes: moments on CLOCK_MONOTONIC in, a table of durations out.

use std::fmt::Write as _;

/// Consecutive phases: each ends where the next begins.
#[derive(Debug, Default)]
pub struct Phases {
    list: Vec<(&'static str, u64)>,
    began: u64,
}

impl Phases {
    /// The first phase begins at `began`, in nanoseconds.
    pub fn new(began: u64) -> Self {
        Phases { list: Vec::new(), began }
    }

    /// The phase `name` ends at `at`, and the next one begins. Moments in the guest are estimates: one that lies before
    /// its predecessor counts as the same moment.
    pub fn end(&mut self, name: &'static str, at: u64) {
        let last = self.list.last().map_or(self.began, |&(_, at)| at);
        self.list.push((name, at.max(last)));
    }

    /// Name and length in nanoseconds of each phase, in order.
    pub fn lengths(&self) -> Vec<(&'static str, u64)> {
        let mut last = self.began;
        let length = |&(name, at): &(&'static str, u64)| {
            let length = at - last;
            last = at;
            (name, length)
        };
        self.list.iter().map(length).collect()
    }

    /// The table for people: milliseconds, and the sum.
    pub fn table(&self) -> String {
        let lengths = self.lengths();
        let total: u64 = lengths.iter().map(|(_, length)| length).sum();
        let mut text = String::from("bulkhead: phases (ms)\n");
        for (name, length) in lengths.into_iter().chain([("total", total)]) {
            let _ = writeln!(text, "  {name:<10}{:>11.3}", length as f64 / 1e6);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole() {
        let mut phases = Phases::new(1_000);
        phases.end("image", 3_000);
        phases.end("kernel", 2_500);
        phases.end("init", 2_003_000);
        assert_eq!(phases.lengths(), [("image", 2_000), ("kernel", 0), ("init", 2_000_000)]);
        let table = phases.table();
        assert!(table.lines().last().unwrap().ends_with(" 2.002"), "{table}");
    }
}
