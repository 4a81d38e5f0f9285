//! What the control group of a container without a microVM tells: what it takes of this host, and whether it wanted more
//! (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow};

use super::disks::Disk;
use crate::cgroup::{Cgroups, Version};
use crate::rates::Rates;

/// The limits of a disk, as [`Rates::of_disks`] has them: a file of each with v1, a key of one file with v2.
const LIMITS: [(&str, &str); 4] = [
    ("blkio.throttle.read_bps_device", "rbps"),
    ("blkio.throttle.write_bps_device", "wbps"),
    ("blkio.throttle.read_iops_device", "riops"),
    ("blkio.throttle.write_iops_device", "wiops"),
];

/// The groups of a container, as far as there are some.
#[derive(Debug, Default)]
pub struct Group {
    memory: Option<(Version, PathBuf)>,
    cpu: Option<(Version, PathBuf)>,
    disks: Option<(Version, PathBuf)>,
}

impl Group {
    /// Those of a container's first process. What it has together with its `owner` tells nothing of it: then no group was made for it.
    pub fn of(pid: u32, owner: u32) -> Self {
        let cgroups = Cgroups::here();
        let group = |controller| {
            let found = cgroups.group_with(controller, pid)?;
            (cgroups.group_with(controller, owner).as_ref() != Some(&found)).then_some(found)
        };
        Group { memory: group("memory"), cpu: group("cpuacct").or_else(|| group("cpu")), disks: group("io") }
    }

    /// How many of its processes the kernel has killed for lack of memory.
    pub fn killed(&self) -> u64 {
        let text = read(self.memory.as_ref(), "memory.oom_control", "memory.events");
        text.and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    }

    /// Bytes of memory that it uses, but for files that it has read and does not use at the moment.
    pub fn memory(&self) -> Option<u64> {
        let used: u64 = read(self.memory.as_ref(), "memory.usage_in_bytes", "memory.current")?.trim().parse().ok()?;
        let stat = read(self.memory.as_ref(), "memory.stat", "memory.stat")?;
        let unused = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"))?;
        Some(used.saturating_sub(unused))
    }

    /// Most bytes that it may use. None: there is no limit.
    pub fn limit(&self) -> Option<u64> {
        read(self.memory.as_ref(), "memory.limit_in_bytes", "memory.max")?.trim().parse().ok()
    }

    /// Milliseconds of processor time that it has used.
    pub fn cpu_ms(&self) -> Option<u64> {
        let text = read(self.cpu.as_ref(), "cpuacct.usage", "cpu.stat")?;
        let ns = field(&text, "usage_usec").map(|us| us * 1000).or_else(|| text.trim().parse().ok());
        ns.map(|ns| ns / 1_000_000)
    }

    /// Bytes that it has read of disks, and written.
    pub fn moved(&self) -> Option<[u64; 2]> {
        read(self.disks.as_ref(), "blkio.throttle.io_service_bytes", "io.stat").map(|text| moved(&text))
    }

    /// Limits what it reads of each of these disks, and writes, as far as something is said of that.
    ///
    /// # Errors
    /// There is no group for that, or no disk; the kernel's answer.
    pub fn throttle(&self, rates: Rates, disks: &[Disk]) -> anyhow::Result<()> {
        let said = LIMITS.into_iter().zip(rates.of_disks()).filter_map(|(limit, rate)| Some((limit, rate?)));
        let said: Vec<_> = said.collect();
        // What is to be lifted is none where there can be none.
        if said.iter().all(|(_, rate)| *rate == 0) && (self.disks.is_none() || disks.is_empty()) {
            return Ok(());
        }
        let (version, dir) = self.disks.as_ref().ok_or_else(|| {
            anyhow!("rates of disks: this host gives the container no control group for them (io); leave them out, or run it as root")
        })?;
        if disks.is_empty() {
            return Err(anyhow!(
                "rates of disks: nothing of the container's is on a disk of this host; leave them out"
            ));
        }
        for disk in disks {
            for ((old, new), rate) in &said {
                let (file, line) = match version {
                    Version::V1 => (*old, format!("{disk} {rate}")),
                    Version::V2 if *rate == 0 => ("io.max", format!("{disk} {new}=max")),
                    Version::V2 => ("io.max", format!("{disk} {new}={rate}")),
                };
                let path = dir.join(file);
                fs::write(&path, line).with_context(|| format!("rates of disks: {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// A group's file, by its name with v1 and with v2.
fn read(group: Option<&(Version, PathBuf)>, v1: &str, v2: &str) -> Option<String> {
    let (version, dir) = group?;
    fs::read_to_string(dir.join(if *version == Version::V1 { v1 } else { v2 })).ok()
}

/// Of lines of a key and a value.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `8:0 Read 7` is v1's, `8:0 rbytes=7 wbytes=8` v2's.
fn moved(text: &str) -> [u64; 2] {
    let mut sum = [0; 2];
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        for (at, (old, new)) in [("Read", "rbytes="), ("Write", "wbytes=")].into_iter().enumerate() {
            let is_old = words.get(1) == Some(&old) && words.len() == 3;
            let value =
                if is_old { words.get(2).copied() } else { words.iter().find_map(|word| word.strip_prefix(new)) };
            sum[at] += value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let group = |version, files: &[(&str, &str)]| {
            let path = dir.path().join(format!("{version:?}"));
            fs::create_dir(&path).unwrap();
            files.iter().for_each(|(name, text)| fs::write(path.join(name), text).unwrap());
            let place = Some((version, path));
            Group { memory: place.clone(), cpu: place.clone(), disks: place }
        };
        let old = [
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory.usage_in_bytes", "5000\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n"),
            ("memory.limit_in_bytes", "9000\n"),
            ("cpuacct.usage", "3000000\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 7\n8:0 Write 8\n8:0 Total 15\n9:0 Read 1\nTotal 16\n"),
        ];
        let new = [
            ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ("memory.current", "5000\n"),
            ("memory.stat", "anon 1\ninactive_file 1000\n"),
            ("memory.max", "9000\n"),
            ("cpu.stat", "usage_usec 3000\nuser_usec 1\n"),
            ("io.stat", "8:0 rbytes=7 wbytes=8 rios=1\n9:0 rbytes=1 wbytes=0\n"),
        ];
        for group in [group(Version::V1, &old), group(Version::V2, &new)] {
            let told = (group.killed(), group.memory(), group.limit(), group.cpu_ms(), group.moved());
            assert_eq!(told, (2, Some(4000), Some(9000), Some(3), Some([8, 8])));
        }
        fs::write(dir.path().join("V2/memory.max"), "max\n").unwrap();
        let unlimited = Group { memory: Some((Version::V2, dir.path().join("V2"))), cpu: None, disks: None };
        assert_eq!((unlimited.limit(), unlimited.cpu_ms(), unlimited.moved()), (None, None, None));
    }

    #[test]
    fn each_disk_gets_what_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let group = |version| Group { memory: None, cpu: None, disks: Some((version, dir.path().to_owned())) };
        let rates = Rates { device_read_bps: Some(0), device_write_iops: Some(7), ..Rates::default() };
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        group(Version::V1).throttle(rates, &["8:0".into()]).unwrap();
        assert_eq!(read("blkio.throttle.read_bps_device"), "8:0 0");
        assert_eq!(read("blkio.throttle.write_iops_device"), "8:0 7");
        assert!(!dir.path().join("blkio.throttle.write_bps_device").exists());
        group(Version::V2).throttle(rates, &["8:0".into(), "8:16".into()]).unwrap();
        assert_eq!(read("io.max"), "8:16 wiops=7", "the last of what was written");
        let none = Group { memory: None, cpu: None, disks: None };
        assert!(none.throttle(Rates::default(), &[]).is_ok());
        assert!(none.throttle(Rates { device_read_bps: Some(0), ..Rates::default() }, &["8:0".into()]).is_ok());
        assert!(none.throttle(rates, &["8:0".into()]).unwrap_err().to_string().contains("no control group"));
        let error = group(Version::V1).throttle(rates, &[]).unwrap_err().to_string();
        assert!(error.contains("nothing of the container's"), "{error}");
    }

    #[test]
    fn a_group_that_is_its_owners_is_none_of_its_own() {
        let own = std::process::id();
        let group = Group::of(own, own);
        assert_eq!((group.memory(), group.cpu_ms(), group.moved(), group.killed()), (None, None, None, 0));
    }
}
