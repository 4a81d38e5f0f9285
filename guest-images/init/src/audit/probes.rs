//! The attempts. None of them does harm, whoever makes it: files are opened and closed, never written to; file systems are made and
//! mounted nowhere; what a process could change of itself, a child does that ends right after.

use crate::root::read_file;
use crate::sys::{self, Attempt, PidNamespace, attempt};
use alloc::format;
use alloc::string::String;
use guest_protocol::audit::Outcome;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, makedev, mknodat, openat, unlinkat};
use rustix::io::{self, Errno};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, socket_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, chroot, getpid, test_kill_process, waitid};

const NEW_USER: usize = 0x1000_0000;
const NEW_MOUNTS: usize = 0x2_0000;
const NEW_CGROUPS: usize = 0x200_0000;
/// Where a node could be made for a moment.
const PLACES: [&str; 4] = ["/dev/shm", "/tmp", "/run", "/"];
/// /dev/mem, /dev/kvm (Linux: Documentation/admin-guide/devices.txt).
const MEM: (u32, u32) = (1, 1);
const KVM: (u32, u32) = (10, 232);

/// What they are made with.
pub struct Context {
    /// A process of the host.
    pub host: Option<Pid>,
}

/// One of them.
pub struct Probe {
    /// With others like it.
    pub group: &'static str,
    /// What is tried, for people.
    pub what: &'static str,
    attempt: fn(&Context) -> io::Result<()>,
    /// Errors behind the question whether it may.
    behind: &'static [Errno],
}

const fn probe(group: &'static str, what: &'static str, attempt: fn(&Context) -> io::Result<()>) -> Probe {
    Probe { group, what, attempt, behind: &[] }
}

/// All of them.
pub const PROBES: &[Probe] = &[
    probe("devices", "open /dev/mem", |_| read("/dev/mem")),
    probe("devices", "open /dev/kvm", |_| read("/dev/kvm")),
    probe("devices", "make a node of the physical memory, open it", |_| node(FileType::CharacterDevice, MEM)),
    probe("devices", "make a node of KVM, open it", |_| node(FileType::CharacterDevice, KVM)),
    probe("devices", "make a node of the first disk, open it", |_| node(FileType::BlockDevice, first_disk()?)),
    probe("devices", "reach an I/O port", |_| attempt(Attempt::Ports)),
    probe("mounts", "make a tmpfs", |_| file_system("tmpfs")),
    probe("mounts", "make a proc", |_| file_system("proc")),
    probe("mounts", "make a cgroup2", |_| file_system("cgroup2")),
    probe("mounts", "have other mounts", |_| attempt(Attempt::Unshare(NEW_MOUNTS))),
    probe("mounts", "be root of a user namespace", |_| attempt(Attempt::Unshare(NEW_USER))),
    probe("mounts", "as that root, make a tmpfs", |_| {
        attempt(Attempt::Unshare(NEW_USER | NEW_MOUNTS)).and_then(|()| file_system("tmpfs"))
    }),
    probe("mounts", "change the root directory", |_| chroot("/")),
    probe("mounts", "open a file by its handle", |_| attempt(Attempt::OpenByHandle)),
    probe("proc", "write to /proc/sysrq-trigger", |_| write("/proc/sysrq-trigger")),
    probe("proc", "write to /proc/sys/kernel/core_pattern", |_| write("/proc/sys/kernel/core_pattern")),
    probe("proc", "write to /proc/sys/kernel/modprobe", |_| write("/proc/sys/kernel/modprobe")),
    probe("proc", "write to /proc/sys/vm/drop_caches", |_| write("/proc/sys/vm/drop_caches")),
    probe("proc", "read /proc/kcore", |_| read("/proc/kcore")),
    probe("proc", "read the kernel's log", |_| attempt(Attempt::KernelLog)),
    probe("sys", "write to /sys/kernel/uevent_helper", |_| write("/sys/kernel/uevent_helper")),
    probe("sys", "write to /sys/kernel/mm/transparent_hugepage/enabled", |_| {
        write("/sys/kernel/mm/transparent_hugepage/enabled")
    }),
    probe("cgroup", "write to /sys/fs/cgroup/cgroup.procs", |_| write("/sys/fs/cgroup/cgroup.procs")),
    probe("cgroup", "write to /sys/fs/cgroup/rdma/release_agent", |_| write("/sys/fs/cgroup/rdma/release_agent")),
    probe("cgroup", "write to /sys/fs/cgroup/memory/release_agent", |_| write("/sys/fs/cgroup/memory/release_agent")),
    probe("cgroup", "have another cgroup namespace", |_| attempt(Attempt::Unshare(NEW_CGROUPS))),
    probe("kernel", "load a module", |_| attempt(Attempt::LoadModule)).behind(&[Errno::NOEXEC, Errno::INVAL]),
    probe("kernel", "load another kernel", |_| attempt(Attempt::Kexec)).behind(&[Errno::INVAL]),
    probe("kernel", "restart", |_| attempt(Attempt::Reboot)).behind(&[Errno::INVAL]),
    probe("kernel", "make a BPF map", |_| attempt(Attempt::BpfMap)),
    probe("kernel", "count events of the kernel", |_| attempt(Attempt::KernelCounter)),
    probe("kernel", "set up an io_uring", |_| attempt(Attempt::IoUring)),
    probe("kernel", "use the session's keyring", |_| attempt(Attempt::Keyring)),
    probe("network", "raw IP packets", |_| raw(AddressFamily::INET, Some(ipproto::ICMP))),
    probe("network", "raw frames", |_| raw(AddressFamily::PACKET, None)),
    probe("processes", "trace the process that started it", |_| attempt(Attempt::Seize(parent()?))),
    probe("processes", "signal a process of the host", |context| test_kill_process(of_host(context)?)),
    probe("processes", "trace a process of the host", |context| attempt(Attempt::Seize(of_host(context)?))),
    probe("processes", "see the files of a process of the host", |context| {
        read(&format!("/proc/{}/root/.", of_host(context)?.as_raw_nonzero()))
    }),
];

impl Probe {
    const fn behind(mut self, behind: &'static [Errno]) -> Self {
        self.behind = behind;
        self
    }

    /// Makes it, in a child, of which nothing stays. The second is the kernel's answer, if that was an error.
    pub fn make(&self, context: &Context) -> (Outcome, Option<Errno>) {
        let main = || match (self.attempt)(context) {
            Ok(()) => 0,
            // All that there are on this architecture are below 134.
            Err(error) => u8::try_from(error.raw_os_error()).unwrap_or(u8::MAX),
        };
        let status = sys::fork(PidNamespace::Joined, None, main)
            .and_then(|child| waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED));
        match status.map(|status| status.and_then(|status| status.exit_status())) {
            Ok(Some(0)) => (Outcome::Allowed, None),
            Ok(Some(error)) => {
                let error = Errno::from_raw_os_error(error);
                (self.judge(error), Some(error))
            }
            // A filter has ended it.
            Ok(None) => (Outcome::Refused, None),
            Err(error) => (Outcome::Refused, Some(error)),
        }
    }

    fn judge(&self, error: Errno) -> Outcome {
        match error {
            error if self.behind.contains(&error) => Outcome::Allowed,
            Errno::NOENT | Errno::NOSYS | Errno::NODEV | Errno::NXIO | Errno::SRCH | Errno::AFNOSUPPORT => {
                Outcome::Absent
            }
            Errno::PROTONOSUPPORT | Errno::NOTDIR | Errno::OPNOTSUPP => Outcome::Absent,
            _ => Outcome::Refused,
        }
    }
}

fn read(path: &str) -> io::Result<()> {
    openat(CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

/// Nothing is written: what opens it could.
fn write(path: &str) -> io::Result<()> {
    openat(CWD, path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

fn node(kind: FileType, (major, minor): (u32, u32)) -> io::Result<()> {
    let device: Dev = makedev(major, minor);
    let mut result = Err(Errno::ROFS);
    for place in PLACES {
        let path = format!("{place}/.bulkhead-audit-{}", getpid().as_raw_nonzero());
        result = mknodat(CWD, path.as_str(), kind, Mode::from_raw_mode(0o600), device).and_then(|()| {
            let opened = read(&path);
            let _ = unlinkat(CWD, path.as_str(), AtFlags::empty());
            opened
        });
        // Where there are no nodes, or nothing can be made, another place may do.
        if !matches!(result, Err(Errno::ACCESS | Errno::ROFS | Errno::NOENT)) {
            break;
        }
    }
    result
}

fn first_disk() -> io::Result<(u32, u32)> {
    disk(&String::from_utf8_lossy(&read_file("/proc/partitions", 1 << 20)?)).ok_or(Errno::NOENT)
}

/// The numbers in the first line (proc_partitions(5)).
fn disk(text: &str) -> Option<(u32, u32)> {
    let mut words = text.lines().nth(2)?.split_ascii_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Made, and mounted nowhere.
fn file_system(kind: &str) -> io::Result<()> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
}

fn raw(family: AddressFamily, protocol: Option<Protocol>) -> io::Result<()> {
    socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).map(drop)
}

/// The one that this one was started by: it is not stopped, and let go when this one ends.
fn parent() -> io::Result<Pid> {
    rustix::process::getppid().ok_or(Errno::SRCH)
}

fn of_host(context: &Context) -> io::Result<Pid> {
    context.host.ok_or(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_where_the_kernel_stopped() {
        let module = PROBES.iter().find(|probe| probe.what == "load a module").unwrap();
        assert_eq!(module.judge(Errno::NOEXEC), Outcome::Allowed);
        assert_eq!((module.judge(Errno::PERM), module.judge(Errno::NOSYS)), (Outcome::Refused, Outcome::Absent));
        let open = &PROBES[0];
        assert_eq!((open.judge(Errno::NOENT), open.judge(Errno::ACCESS)), (Outcome::Absent, Outcome::Refused));
        assert_eq!(open.judge(Errno::NOEXEC), Outcome::Refused);
    }

    /// In a process of this host, with whatever that may: each comes back with an answer, and leaves nothing. It has one thread, as init
    /// has: of what the other threads of this one hold, the allocator's lock, a child would not be rid.
    #[test]
    fn each_is_made_and_leaves_nothing() {
        const CHILD: &str = "BULKHEAD_TEST_PROBES";
        if std::env::var_os(CHILD).is_none() {
            let test = "audit::probes::tests::each_is_made_and_leaves_nothing";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let ended = again.args(["--exact", test, "--test-threads=1"]).env(CHILD, "1").output().unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && said.contains("1 passed"), "{ended:?}");
            return;
        }
        let host = Context { host: Some(getpid()) };
        for probe in PROBES.iter().filter(|probe| !["devices", "kernel"].contains(&probe.group)) {
            let (outcome, error) = probe.make(&host);
            assert!(outcome == Outcome::Allowed || error.is_some(), "{}: {outcome:?}", probe.what);
        }
        let signal = PROBES.iter().find(|probe| probe.what == "signal a process of the host").unwrap();
        assert_eq!(signal.make(&host), (Outcome::Allowed, None));
        assert_eq!(signal.make(&Context { host: None }), (Outcome::Absent, Some(Errno::SRCH)));
        for place in PLACES {
            let names = std::fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let left: std::vec::Vec<_> =
                names.filter(|name| name.to_string_lossy().starts_with(".bulkhead-audit")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    #[test]
    fn the_first_disk_is_found() {
        assert_eq!(disk("major minor  #blocks  name\n\n 254        0     102400 vda\n"), Some((254, 0)));
        assert_eq!((disk(""), disk("a\n\nx y")), (None, None));
    }
}
