//! What a container asks for beside its files and its process: mounts in memory, limits, kernel parameters, capabilities.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Capabilities that a container's root has if nothing else is said, as container users know it: a bit each, numbered as in
/// capabilities(7). CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP.
pub const USUAL_CAPABILITIES: u64 = 0b1_1111_1011 | 1 << 10 | 1 << 13 | 1 << 18 | 1 << 27 | 1 << 29 | 1 << 31;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// File systems in memory, in the order in which they are to be mounted.
    pub tmpfs: Vec<Tmpfs>,
    /// Most bytes in /dev/shm; `None`: 64 MiB.
    pub shm_bytes: Option<u64>,
    /// Kernel parameters, set before the process starts.
    pub sysctls: Vec<Sysctl>,
    /// Limits of each process, in place of the usual ones.
    pub limits: Vec<Limit>,
    /// Capabilities that processes may have, a bit each.
    pub capabilities: u64,
    /// /sys can be written to: parameters of the kernel, drivers, devices.
    pub writable_sys: bool,
    /// Others run on the same kernel: what it may take of it, and what keeps it from them.
    pub beside: Option<Beside>,
}

/// What a container has whose kernel is others' as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Most bytes of memory; `None`: as much as there is.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU's time; `None`: as much as there is.
    pub cpu_thousandths: Option<u32>,
    /// Most processes and threads; `None`: as many as there can be.
    pub processes: Option<u32>,
    /// It may do with the kernel what its capabilities let it: no system call is refused, and all of /proc can be written to.
    pub privileged: bool,
}

impl Beside {
    /// Whether there is anything that it may have no more than so much of.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.memory_bytes.is_some() || self.cpu_thousandths.is_some() || self.processes.is_some()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tmpfs: Vec::new(),
            shm_bytes: None,
            sysctls: Vec::new(),
            limits: Vec::new(),
            capabilities: USUAL_CAPABILITIES,
            writable_sys: false,
            beside: None,
        }
    }
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where it goes, absolute; made if missing.
    pub target: String,
    /// Most bytes in it; `None`: half of the guest's memory.
    pub bytes: Option<u64>,
    /// Permissions of its root.
    pub mode: u16,
    /// Programs in it can be executed.
    pub exec: bool,
    /// It can be written to.
    pub writable: bool,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Its path below /proc/sys, without links and `..`.
    pub path: String,
    /// What to write there.
    pub value: String,
}

/// A limit of a process (getrlimit(2)); `None` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// What holds.
    pub soft: Option<u64>,
    /// How far the process may raise it.
    pub hard: Option<u64>,
}

/// What can be limited (getrlimit(2), RLIMIT_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs)]
pub enum Resource {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}
