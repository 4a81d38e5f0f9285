//! What a process of a container can reach: it looks at itself, and makes attempts that would do harm if they went on, each stopped
//! before that ([`probes`]). What it says, and how, is in [`guest_protocol::audit`].
//!
//! This is not PID 1's work: the program is executed once more, with what the container gives its processes and no more. It needs
//! nothing of the image, and runs in other systems' containers as well.

mod probes;

use crate::failure::Reason;
use crate::helper::{link, names, read_full};
use crate::root::read_file;
use crate::sys::{self, complain};
use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;
use guest_protocol::audit::Outcome;
use rustix::fd::BorrowedFd;
use rustix::io;
use rustix::process::{Pid, chdir};

/// Longest file of /proc that is read.
const FILE: usize = 1 << 20;
/// Most file systems that are told: more are nobody's, and what is said is bounded.
const MOUNTS: usize = 1000;
const FAILED: u8 = 1;

/// Says all, then waits until its stdin ends; its exit code. `host` is a process of the host, to be looked for.
#[must_use]
pub fn run(host: Option<i32>) -> u8 {
    sys::be_helper();
    // So that what it tries by relative paths is nobody's.
    let _ = chdir("/");
    let (stdin, stdout) = sys::streams();
    let mut said = String::new();
    facts(&mut said);
    mounts(&mut said);
    let context = probes::Context { host: host.and_then(Pid::from_raw) };
    for probe in probes::PROBES {
        let (outcome, error) = probe.make(&context);
        let error = error.map_or_else(String::new, |error| format!("\t{}", error.raw_os_error()));
        let _ = writeln!(said, "probe\t{}\t{}\t{}{error}", probe.group, probe.what, Outcome::word(outcome));
    }
    said.push_str("end\n");
    if let Err(error) = say(stdout, said.as_bytes()) {
        complain(&format!("audit: {}\n", Reason(error)));
        return FAILED;
    }
    let mut rest = [0; 64];
    while read_full(stdin, &mut rest).is_ok_and(|count| count == rest.len()) {}
    0
}

fn say(stdout: BorrowedFd<'_>, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match io::write(stdout, text) {
            Ok(count) => text = text.get(count..).unwrap_or_default(),
            Err(io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The text of a file of /proc; none where it may not be read.
fn text(path: &str) -> String {
    let content = read_file(path, FILE).unwrap_or_default();
    String::from_utf8_lossy(&content).trim_end().replace('\t', " ")
}

fn facts(said: &mut String) {
    let mut fact = |key: &str, value: &str| {
        let _ = writeln!(said, "fact\t{key}\t{}", value.replace('\n', " "));
    };
    fact("kernel", &text("/proc/sys/kernel/osrelease"));
    fact("boot_id", &text("/proc/sys/kernel/random/boot_id"));
    let status = text("/proc/self/status");
    for key in ["Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let value = line.and_then(|line| line.split_ascii_whitespace().next());
        fact(key, value.unwrap_or_default());
    }
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let target = link(format!("/proc/self/ns/{name}").as_bytes()).unwrap_or_default().0;
        fact(&format!("ns_{name}"), &String::from_utf8_lossy(&target));
    }
    let count = |place: &[u8], is: fn(&[u8]) -> bool| {
        names(place).map_or(0, |names| names.iter().filter(|name| is(name)).count())
    };
    fact("processes", &format!("{}", count(b"/proc", |name| name.iter().all(u8::is_ascii_digit))));
    // But for the one by which they are read.
    fact("descriptors", &format!("{}", count(b"/proc/self/fd", |_| true).saturating_sub(1)));
    let mut devices: alloc::vec::Vec<_> = names(b"/dev").unwrap_or_default();
    devices.sort_unstable();
    let devices: alloc::vec::Vec<_> = devices.iter().map(|name| String::from_utf8_lossy(name)).collect();
    fact("devices", &devices.join(" "));
    fact("partitions", &partitions(&text("/proc/partitions")));
}

/// The names of the disks that the kernel tells of (proc_partitions(5)).
fn partitions(text: &str) -> String {
    let names = text.lines().skip(2).filter_map(|line| line.split_ascii_whitespace().nth(3));
    names.collect::<alloc::vec::Vec<_>>().join(" ")
}

/// What is mounted where (proc_pid_mountinfo(5)).
fn mounts(said: &mut String) {
    for line in text("/proc/self/mountinfo").lines().take(MOUNTS) {
        if let Some((place, kind)) = mount(line) {
            let _ = writeln!(said, "mount\t{place}\t{kind}");
        }
    }
}

fn mount(line: &str) -> Option<(&str, &str)> {
    let (before, behind) = line.split_once(" - ")?;
    Some((before.split(' ').nth(4)?, behind.split(' ').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_understood() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount(line), Some(("/mnt\\0402", "ext3")));
        assert_eq!((mount(""), mount("1 2 - x")), (None, None));
        let text = "major minor  #blocks  name\n\n 254        0     102400 vda\n 254 1 1 vda1";
        assert_eq!((partitions(text).as_str(), partitions("").as_str()), ("vda vda1", ""));
    }
}
