//! What a container takes of its host, seen from the host: processor time and memory of the processes that are its, as proc(5)
//! tells; what its devices have moved, as its control socket tells; what of its layers is in the page cache, as fincore(1) tells.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::control::Control;

/// Milliseconds of the tick in which processor time is told (USER_HZ is 100).
const TICK_MS: u64 = 10;
/// Bytes of the header before a block request's data, and of the status behind it (virtio 1.3, section 5.2.6).
const BLOCK_HEADER: u64 = 16;
const BLOCK_STATUS: u64 = 1;

/// Memory of a process that has a guest's, in bytes. Nothing is counted twice: their sum is the process's proportional set size,
/// but for the last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Guest RAM that is this guest's alone.
    pub guest: u64,
    /// Everything else that the process has for itself.
    pub monitor: u64,
    /// Its share of what it has together with others: the template's memory, programs.
    pub share: u64,
    /// All of what it has together with others.
    pub shared: u64,
}

impl Memory {
    /// Of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/smaps")).map(|maps| Self::parse(&maps))
    }

    /// Guest RAM is what is neither the kernel's own mapping nor to be dumped: `dd` of the flags, which come last of a mapping.
    fn parse(maps: &str) -> Self {
        let mut sum = Memory::default();
        let (mut private, mut proportional, mut shared, mut kernels) = (0, 0, 0, false);
        for line in maps.lines() {
            let mut words = line.split_ascii_whitespace();
            let (key, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let bytes = value.parse::<u64>().map_or(0, |kib| kib << 10);
            match key {
                "Pss:" => proportional = bytes,
                "Private_Clean:" | "Private_Dirty:" => private += bytes,
                "Shared_Clean:" | "Shared_Dirty:" => shared += bytes,
                "VmFlags:" => {
                    let guest = !kernels && line.split_ascii_whitespace().any(|flag| flag == "dd");
                    *(if guest { &mut sum.guest } else { &mut sum.monitor }) += private;
                    sum.share += u64::saturating_sub(proportional, private);
                    sum.shared += shared;
                    (private, proportional, shared) = (0, 0, 0);
                }
                _ if !key.ends_with(':') => kernels = line.ends_with(']'),
                _ => {}
            }
        }
        sum
    }

    /// Of two processes together. What they share with each other is in either's share once.
    pub fn and(self, other: Self) -> Self {
        Memory {
            guest: self.guest + other.guest,
            monitor: self.monitor + other.monitor,
            share: self.share + other.share,
            shared: self.shared.max(other.shared),
        }
    }
}

/// Processor time that a process has used, its guest's included, in milliseconds.
pub fn cpu_ms(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_cpu_ms(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// proc_pid_stat(5): the name before the other fields may have anything in it.
fn parse_cpu_ms(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) * TICK_MS)
}

/// The child that a container's owner has: the process of its microVM. None: there is none just now.
pub fn monitor(owner: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{owner}/task/{owner}/children")).ok()?;
    // passt and others are children as well.
    let mut pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
    let is_monitor = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next() == Some(b"bulkhead") && words.next() == Some(b"vmm")
    };
    pids.rfind(is_monitor)
}

/// Bytes that have come in by the interface of a process's network namespace, and gone out (proc_pid_net(5)).
pub fn interface(pid: u32) -> io::Result<[u64; 2]> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    Ok(parse_interface(&table).unwrap_or_default())
}

fn parse_interface(table: &str) -> Option<[u64; 2]> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"))?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let bytes = |at: usize| words.get(at)?.parse().ok();
    Some([bytes(0)?, bytes(8)?])
}

/// What a machine's devices have moved since it was built, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Packets to the guest, and from it.
    pub net: [u64; 2],
    /// Blocks that it has read, and written.
    pub block: [u64; 2],
}

impl Moved {
    /// Asks the machine.
    pub fn of(control: &Control) -> anyhow::Result<Self> {
        Ok(Self::parse(&control.call("GET", "/bulkhead/v1/metrics", &())?))
    }

    fn parse(metrics: &Value) -> Self {
        let mut sum = Moved::default();
        for device in metrics["devices"].as_array().into_iter().flatten() {
            for queue in device["queues"].as_array().into_iter().flatten() {
                let number = |name: &str| queue[name].as_u64().unwrap_or(0);
                let (to, from) = (number("bytes_to_guest"), number("bytes_from_guest"));
                let (place, headers) = match device["kind"].as_str() {
                    Some("net") => (&mut sum.net, [0, 0]),
                    Some("blk") => {
                        (&mut sum.block, [BLOCK_STATUS, BLOCK_HEADER].map(|bytes| bytes * number("operations")))
                    }
                    _ => continue,
                };
                place[0] += to.saturating_sub(headers[0]);
                place[1] += from.saturating_sub(headers[1]);
            }
        }
        sum
    }
}

/// The files of a machine's read-only disks, which others may have as well.
pub fn layer_files(control: &Control) -> anyhow::Result<Vec<PathBuf>> {
    let config = control.call("GET", "/vm/config", &())?;
    let drives = config["drives"].as_array().into_iter().flatten().filter(|drive| drive["is_read_only"] == true);
    let files = drives.flat_map(|drive| drive["extents"].as_array().into_iter().flatten());
    Ok(files.filter_map(Value::as_str).map(PathBuf::from).collect())
}

/// Bytes of files that are in the host's page cache. None: this host has no program that can tell.
pub fn cached(files: &[PathBuf]) -> Option<u64> {
    if files.is_empty() {
        return Some(0);
    }
    let mut command = Command::new("fincore");
    command.args(["--bytes", "--noheadings", "--output", "RES", "--"]).args(files);
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_its_line() {
        let table = "Inter-|   Receive\n face |bytes packets\n    lo: 1 2 0 0 0 0 0 0 3 4\n  eth0:  100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n";
        assert_eq!(parse_interface(table), Some([100, 300]));
        assert_eq!(parse_interface("  eth0: x"), None);
    }
    use serde_json::json;

    #[test]
    fn memory_is_told_apart_and_nothing_twice() {
        let ram = "7f00-7f10 rw-p 00000000 fe:00 1234     /store/templates/x/memory\nSize: 262144 kB\nPss: 150 kB\n\
            Shared_Clean: 100 kB\nPrivate_Clean: 20 kB\nPrivate_Dirty: 80 kB\nVmFlags: rd wr mr mw me nr dd \n";
        let heap =
            "55-56 rw-p 0 00:00 0 [heap]\nPss: 8 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty: 5 kB\nVmFlags: rd wr ac \n";
        let vvar =
            "7fff-8000 r--p 0 00:00 0       [vvar]\nPss: 1 kB\nPrivate_Clean: 1 kB\nVmFlags: rd mr pf io de dd \n";
        let got = Memory::parse(&[ram, heap, vvar].concat());
        let kib = |kib: u64| kib << 10;
        assert_eq!(got, Memory { guest: kib(100), monitor: kib(9), share: kib(50), shared: kib(100) });
        assert_eq!(got.and(got).monitor, kib(18));
        let own = Memory::of(std::process::id()).unwrap();
        assert!(own.monitor > 0 && own.guest == 0, "{own:?}");
    }

    #[test]
    fn processor_time_is_behind_any_name() {
        let line = "42 (a) b (c) S 7 42 42 34818 42 4194304 100 0 0 0 12 30 0 0 20 0 1 0 500";
        assert_eq!(parse_cpu_ms(line), Some(420));
        assert_eq!(parse_cpu_ms("42 (a) S 7"), None);
        cpu_ms(std::process::id()).unwrap();
    }

    #[test]
    fn what_devices_move_is_told_without_their_headers() {
        let queue = |to: u64, from: u64, operations: u64| json!({ "bytes_to_guest": to, "bytes_from_guest": from, "operations": operations });
        let metrics = json!({ "devices": [
            { "kind": "net", "queues": [queue(500, 0, 5), queue(0, 700, 7)] },
            { "kind": "blk", "id": "a", "queues": [queue(4097, 16, 1)] },
            { "kind": "blk", "id": "b", "queues": [queue(2, 4096 + 32, 2)] },
            { "kind": "vsock", "queues": [queue(9, 9, 9)] },
        ] });
        assert_eq!(Moved::parse(&metrics), Moved { net: [500, 700], block: [4096, 4096] });
        assert_eq!(Moved::parse(&Value::Null), Moved::default());
    }

    #[test]
    fn a_file_that_was_just_written_is_in_the_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![1; 64 << 10]).unwrap();
        let files = [file.path().to_owned()];
        // Not every host has the program.
        if let Some(bytes) = cached(&files) {
            assert!(bytes >= 64 << 10, "{bytes}");
        }
        assert_eq!(cached(&[]), Some(0));
    }
}
