//! What this host's kernel has said of a process, if this user may read it (/dev/kmsg).

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

/// No record is longer (CONSOLE_EXT_LOG_MAX).
const MOST_RECORD: usize = 8 << 10;
/// Most records that are looked at: more than fit the largest log there is.
const MOST_RECORDS: usize = 1 << 20;

/// Whether it has killed the process of this number because there was no memory left.
pub fn out_of_memory(pid: u32) -> bool {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(mut log) = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open("/dev/kmsg") else {
        return false;
    };
    let mut record = [0; MOST_RECORD];
    let mut found = false;
    for _ in 0..MOST_RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(count) => found |= tells(&String::from_utf8_lossy(&record[..count]), pid),
            // What was overwritten meanwhile is passed over (EPIPE).
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    found
}

/// As the kernel words it, for all of the host and for a cgroup.
fn tells(record: &str, pid: u32) -> bool {
    record.contains("ut of memory") && record.contains(&format!("Killed process {pid} "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_end_counts() {
        let line = "3,903,1,-;Memory cgroup out of memory: Killed process 4711 (bulkhead-vmm) total-vm:1kB";
        assert!(tells(line, 4711) && tells(&line.replace("Memory cgroup o", "O"), 4711));
        assert!(!tells(line, 471) && !tells(&line.replace("memory", "luck"), 4711));
        assert!(!out_of_memory(std::process::id()));
    }
}
