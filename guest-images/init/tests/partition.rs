//! Partitions without a table, on a loop device of this machine. Needs root and a loop device; says so and passes without.

use guest_init::sys::add_partition;
use rustix::io::Errno;
use std::fs::{self, File};
use std::process::Command;

/// A loop device; detached when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &std::path::Path) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show", "--read-only", "--partscan"]).arg(file).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_string();
        output.status.success().then_some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_partition_is_where_it_was_put() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file_mut().set_len(1 << 20).unwrap();
    let Some(device) = Loop::new(file.path()) else {
        eprintln!("SKIP: no loop device to be had");
        return;
    };
    let disk = File::open(&device.0).unwrap();
    add_partition(&disk, 1, 8 << 10, 40 << 10).unwrap();
    let name = device.0.rsplit('/').next().unwrap();
    let read = |what| fs::read_to_string(format!("/sys/block/{name}/{name}p1/{what}")).unwrap().trim().to_string();
    assert_eq!((read("start"), read("size"), read("partition")), ("16".into(), "80".into(), "1".into()));
    assert_eq!(add_partition(&disk, 2, 8 << 10, 8 << 10), Err(Errno::BUSY), "overlaps the first");
    assert!(add_partition(&disk, 2, 1 << 20, 8 << 10).is_err(), "begins behind the end");
}
