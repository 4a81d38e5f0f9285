//! What threads of this process have used so far, by what their names begin with.

use std::fs;
use std::path::PathBuf;
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

/// What the kernel calls them.
pub(crate) fn ids(names: &[&str]) -> Result<Vec<u32>, BenchError> {
    let id = |task: PathBuf| task.file_name()?.to_str()?.parse().ok();
    Ok(tasks(names)?.filter_map(id).collect())
}

fn sum(names: &[&str], file: &str, number: impl Fn(&str) -> u64) -> Result<u64, BenchError> {
    // One that ends meanwhile has no files any more.
    Ok(tasks(names)?.map(|task| number(&fs::read_to_string(task.join(file)).unwrap_or_default())).sum())
}

/// Their directories in /proc.
fn tasks(names: &[&str]) -> Result<impl Iterator<Item = PathBuf>, BenchError> {
    let tasks = fs::read_dir("/proc/self/task").map_err(io_error("own threads"))?.flatten().map(|task| task.path());
    let called = |task: &PathBuf| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        names.iter().any(|wanted| name.starts_with(wanted))
    };
    Ok(tasks.filter(called))
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
