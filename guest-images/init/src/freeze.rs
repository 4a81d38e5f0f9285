//! Stops all of the container's processes where they are, and lets them go on: a cgroup of their own, frozen as a whole
//! (Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze").

use crate::failure::Failure;
use crate::sys::spawn_idle;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_protocol::{Beside, FailureKind};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{self, Errno};
use rustix::process::Pid;

/// The cgroup of the container's processes.
#[derive(Debug)]
pub struct Freezer {
    name: String,
    directory: OwnedFd,
    /// The process that does nothing.
    idle: Pid,
    /// `cgroup.events`, while a freeze is under way.
    events: Option<OwnedFd>,
}

impl Freezer {
    /// Makes the cgroup `name` in `parent`, a directory of cgroup2, where whoever calls this stays. One that an earlier container has left
    /// goes.
    ///
    /// It is never empty: a process that does nothing keeps it, so that the first one of the container does not have to set it up
    /// and the last one to clear it away. On an emulated kernel that takes 22,000 instructions, half as many as the process.
    ///
    /// # Errors
    /// As mkdir(2), open(2) and clone3(2).
    pub fn new(parent: impl AsFd, name: String) -> io::Result<Self> {
        let make = || mkdirat(&parent, name.as_str(), Mode::from_raw_mode(0o755));
        match make() {
            Err(Errno::EXIST) => unlinkat(&parent, name.as_str(), AtFlags::REMOVEDIR).and_then(|()| make())?,
            other => other?,
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&parent, name.as_str(), flags, Mode::empty())?;
        let idle = spawn_idle(directory.as_fd())?;
        Ok(Self { name, directory, idle, events: None })
    }

    /// What it is called in its parent.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the container have no more of the kernel's goods than this.
    ///
    /// # Errors
    /// [`FailureKind::Guest`]: the kernel cannot limit that.
    pub fn limit(&self, beside: &Beside) -> Result<(), Failure> {
        // Of a tenth of a second, in microseconds.
        let quota = beside.cpu_thousandths.map(|thousandths| format!("{} 100000", u64::from(thousandths) * 100));
        for (file, value) in [
            ("memory.max", beside.memory_bytes.map(|bytes| format!("{bytes}"))),
            ("cpu.max", quota),
            ("pids.max", beside.processes.map(|processes| format!("{processes}"))),
        ] {
            let Some(value) = value else { continue };
            let written = self.open(file, OFlags::WRONLY).and_then(|file| io::write(file, value.as_bytes()));
            written.map_err(|error| Failure::errno(FailureKind::Guest, &format!("{file} = {value}"), error))?;
        }
        Ok(())
    }

    /// Whether the kernel has killed a process in it for lack of memory.
    #[must_use]
    pub fn lacked_memory(&self) -> bool {
        let mut text = [0; 256];
        let read = self.open("memory.events", OFlags::RDONLY).and_then(|file| io::read(file, &mut text[..]));
        read.is_ok_and(|count| tells_killed(text.get(..count).unwrap_or_default()))
    }

    /// Where the container's first process is to be started, and with it all others.
    #[must_use]
    pub fn cgroup(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Begins a freeze. A system call that a process waits in is interrupted as by a stop signal (signal(7)).
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub fn freeze(&mut self) -> io::Result<()> {
        self.events = Some(self.open("cgroup.events", OFlags::RDONLY)?);
        self.order(b"1")
    }

    /// Whether a freeze has begun that is not known to be complete.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.events.is_some()
    }

    /// What tells that a freeze may be complete.
    #[must_use]
    pub fn interest(&self) -> Option<PollFd<'_>> {
        self.events.as_ref().map(|events| PollFd::new(events, PollFlags::PRI))
    }

    /// Whether all processes stand still; to be asked when [`Self::interest`] has something to tell. Once it is true the
    /// freeze is no longer under way.
    ///
    /// # Errors
    /// As read(2).
    pub fn is_complete(&mut self) -> io::Result<bool> {
        let Some(events) = &self.events else {
            return Ok(false);
        };
        let mut text = [0; 128];
        let count = io::pread(events, &mut text[..], 0)?;
        let complete = tells_frozen(text.get(..count).unwrap_or_default());
        if complete {
            self.events = None;
        }
        Ok(complete)
    }

    /// Lets them go on, or takes a freeze back.
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub fn thaw(&mut self) -> io::Result<()> {
        self.events = None;
        self.order(b"0")
    }

    /// The container's processes, by their ids here. It has no cgroups below its own: it sees them read-only.
    ///
    /// # Errors
    /// As open(2) and read(2).
    pub fn processes(&self) -> io::Result<Vec<Pid>> {
        let file = self.open("cgroup.procs", OFlags::RDONLY)?;
        let (mut text, mut chunk) = (Vec::new(), [0; 512]);
        loop {
            match io::read(&file, &mut chunk[..])? {
                0 => break,
                count => text.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            }
        }
        let id = |line: &[u8]| core::str::from_utf8(line).ok()?.parse().ok().and_then(Pid::from_raw);
        Ok(text.split(|&byte| byte == b'\n').filter_map(id).filter(|&pid| pid != self.idle).collect())
    }

    fn order(&self, text: &[u8]) -> io::Result<()> {
        io::write(self.open("cgroup.freeze", OFlags::WRONLY)?, text).map(drop)
    }

    fn open(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        openat(&self.directory, name, flags | OFlags::CLOEXEC, Mode::empty())
    }
}

/// What `cgroup.events` says: lines of key and value.
fn tells_frozen(events: &[u8]) -> bool {
    events.split(|&byte| byte == b'\n').any(|line| line == b"frozen 1")
}

/// What `memory.events` says: the same.
fn tells_killed(events: &[u8]) -> bool {
    let killed = events.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"oom_kill "));
    killed.is_some_and(|count| count != b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_whether_memory_was_lacking() {
        assert!(tells_killed(b"low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"));
        for text in [&b""[..], b"oom 3\noom_kill 0\noom_group_kill 2\n"] {
            assert!(!tells_killed(text));
        }
    }

    #[test]
    fn events_tell_whether_all_is_frozen() {
        assert!(tells_frozen(b"populated 1\nfrozen 1\n"));
        for text in [&b""[..], b"populated 1\nfrozen 0\n", b"frozen 10\n", b"unfrozen 1\n"] {
            assert!(!tells_frozen(text));
        }
    }
}
