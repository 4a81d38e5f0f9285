//! What threads of this process have used so far, by what their names begin with.

use std::fs;
use std::time::Duration;

use crate::process::{BenchError, io_error};

/// Processor time.
pub(crate) fn time(names: &[&str]) -> Result<Duration, BenchError> {
    // schedstat: nanoseconds on a processor come first.
    let first = |text: &str| text.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok());
    sum(names, "schedstat", |text| first(text).unwrap_or(0)).map(Duration::from_nanos)
}

/// System calls that read or write.
pub(crate) fn calls(names: &[&str]) -> Result<u64, BenchError> {
    let number = |line: &str| line.strip_prefix("syscr: ").or(line.strip_prefix("syscw: "))?.parse::<u64>().ok();
    sum(names, "io", |text| text.lines().filter_map(number).sum())
}

fn sum(names: &[&str], file: &str, number: impl Fn(&str) -> u64) -> Result<u64, BenchError> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").map_err(io_error("own threads"))?.flatten() {
        // One that ends meanwhile has no files any more.
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if names.iter().any(|wanted| name.starts_with(wanted)) {
            sum += number(&fs::read_to_string(task.path().join(file)).unwrap_or_default());
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_by_its_name() {
        let work = || {
            let before = (time(&["threads-te"]).unwrap(), calls(&["threads-te"]).unwrap());
            while time(&["threads-te"]).unwrap() == before.0 {}
            assert!(calls(&["threads-te"]).unwrap() > before.1);
            assert_eq!(calls(&["no such thread"]).unwrap(), 0);
        };
        std::thread::Builder::new().name("threads-test".into()).spawn(work).unwrap().join().unwrap();
    }
}
