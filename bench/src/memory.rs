//! What of a process's private memory is the monitor's own, and what its guest's; and what the host has left.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::process::{BenchError, io_error};

/// Private memory of a monitor's process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Private {
    /// Beyond the guest's RAM, KiB.
    pub monitor_kib: u64,
    /// Pages of the guest's RAM that this process has for itself, KiB.
    pub guest_kib: u64,
}

/// The memory of the monitor `pid` of a guest with `memory_mib` of RAM, which is a view of the file `memory`, if it is one.
pub fn of_process(pid: u32, memory_mib: u64, memory: Option<&Path>) -> Result<Private, BenchError> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).map_err(io_error("memory of the monitor"))?;
    Ok(private(&maps, memory_mib * 1024, memory))
}

/// Adds up the Private lines of `smaps`: those of mappings of `guest_kib` KiB or of the file `memory`, and all others.
fn private(smaps: &str, guest_kib: u64, memory: Option<&Path>) -> Private {
    let mut sum = Private::default();
    let (mut is_file, mut is_guest) = (false, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (key, value) = (words.next().unwrap_or(""), words.next().and_then(|v| v.parse::<u64>().ok()));
        match (key, value) {
            ("Size:", Some(size)) => is_guest = is_file || size == guest_kib,
            // A clean page of a file is the page cache's, even if nobody else has it mapped just now.
            ("Private_Clean:", Some(_)) if is_file => {}
            ("Private_Clean:" | "Private_Dirty:", Some(kib)) if is_guest => sum.guest_kib += kib,
            ("Private_Clean:" | "Private_Dirty:", Some(kib)) => sum.monitor_kib += kib,
            _ if !key.ends_with(':') => {
                // A new mapping: range, rights, offset, device, inode, path.
                is_file = memory.is_some_and(|path| line.splitn(6, ' ').nth(5).map(str::trim_start) == path.to_str());
            }
            _ => {}
        }
    }
    sum
}

/// What the host says it could give to processes, KiB.
pub fn available_kib() -> Result<u64, BenchError> {
    let text = fs::read_to_string("/proc/meminfo").map_err(io_error("/proc/meminfo"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = value.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| io_error("/proc/meminfo")(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: &str =
        "55-56 rw-p 0 00:00 0 [heap]\nSize: 300 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty: 5 kB\nShared_Clean: 7 kB\n";

    #[test]
    fn guest_ram_does_not_count_as_the_monitors() {
        let ram =
            "7f00-7f01 rw-p 0 00:00 0 \nSize: 131072 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 9000 kB\n".to_owned();
        let expected = Private { monitor_kib: 8, guest_kib: 9004 };
        assert_eq!(private(&(ram + HEAP), 131_072, None), expected);
    }

    #[test]
    fn of_a_snapshots_memory_only_what_was_written_is_the_guests() {
        let ram = "7f00-7f01 rw-p 00000000 fe:00 1234     /tmp/s/memory\nSize: 131072 kB\nPrivate_Clean: 40 kB\nPrivate_Dirty: 36 kB\n";
        let expected = Private { monitor_kib: 8, guest_kib: 36 };
        assert_eq!(private(&format!("{ram}{HEAP}"), 131_072, Some(Path::new("/tmp/s/memory"))), expected);
        assert!(available_kib().unwrap() > 0);
    }
}
