//! What Rust's runtime does at the start of a program, for one with an entry of its own; and what a process does before a machine has
//! it start threads. And who it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::process::{Pid, getpid, getppid};

/// Descriptors to have room for before the first thread starts; more than a machine has without clients.
const FD_ROOM: libc::c_int = 255;

/// Closes every descriptor but the first three: whatever this process was started with beside them. To be called before it
/// opens any of its own.
pub fn close_inherited() {
    close_inherited_but([None, None]);
}

/// The same, but for these two.
pub fn close_inherited_but(mut kept: [Option<u32>; 2]) {
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept.into_iter().flatten().filter(|kept| *kept >= 3) {
        if first < kept {
            close(first, kept - 1);
        }
        first = kept.saturating_add(1);
    }
    close(first, libc::c_uint::MAX);
}

fn close(first: u32, last: u32) {
    // SAFETY: nothing in this process has any of them yet. A kernel that cannot (before 5.9) leaves them open.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Prepares this process: its first three descriptors are open, so that no other file comes to be where output goes, and
/// writing to a pipe that nobody reads is an error instead of the end. To be called before anything else.
pub fn prepare() -> io::Result<()> {
    for descriptor in 0..3 {
        // SAFETY: a plain descriptor call.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } >= 0 {
            continue;
        }
        // The lowest that is free: this one, since those below are open. It stays open as long as the process lives.
        // SAFETY: the path is a valid C string.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: no handler is installed, so none can be wrong.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What [`id`] says.
static ID: OnceLock<u32> = OnceLock::new();

/// This process's number where whoever started it is: in a namespace of processes of its own ([`birth`](crate::birth)) it has
/// another one. It is known from the first [`Lineage::open`] on, or asked for now.
pub fn id() -> u32 {
    if let Some(id) = ID.get() {
        return *id;
    }
    // Not as part of the initialisation, since it may set it.
    let id = Lineage::open().map_or_else(|_| std::process::id(), |lineage| lineage.process);
    *ID.get_or_init(|| id)
}

/// Who has started this process, from any namespace.
#[derive(Debug)]
pub struct Lineage {
    process: u32,
    /// That of the kernel which tells it, if getppid(2) cannot: it does not know processes outside of the namespace.
    stat: Option<File>,
}

impl Lineage {
    /// To be called while /proc can be reached.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn open() -> io::Result<Self> {
        if getpid() != Pid::INIT {
            return Ok(Lineage { process: std::process::id(), stat: None });
        }
        let stat = File::open("/proc/self/stat")?;
        let (process, _) = read_stat(&stat)?;
        // Said already, if it cannot be set.
        let _ = ID.set(process);
        Ok(Lineage { process, stat: Some(stat) })
    }

    /// The number of the process that has started this one, or of who has taken that one's place, since it has ended; 0 for one outside
    /// of /proc's own namespace.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn parent(&self) -> io::Result<u32> {
        match &self.stat {
            Some(stat) => Ok(read_stat(stat)?.1),
            None => Ok(getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())),
        }
    }
}

/// The numbers of the process and of its parent, as they are where the file system was mounted (proc_pid_stat(5)).
fn read_stat(stat: &File) -> io::Result<(u32, u32)> {
    let mut line = [0; 128];
    let length = stat.read_at(&mut line, 0)?;
    parse_stat(&line[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `PID (NAME) STATE PPID ...`; a name may have anything in it.
fn parse_stat(line: &[u8]) -> Option<(u32, u32)> {
    let line = String::from_utf8_lossy(line);
    let (before, after) = (line.split_once(" (")?, line.rsplit_once(") ")?);
    let parent = after.1.split(' ').nth(1)?;
    Some((before.0.parse().ok()?, parent.parse().ok()?))
}

/// What costs less as long as there is one thread, or comes too late when there are two. Again it costs nothing.
pub(crate) fn before_threads() {
    reserve_descriptors();
    one_heap();
}

/// Grows the descriptor table while there is one thread, which is free; later it waits for an RCU grace period.
fn reserve_descriptors() {
    // SAFETY: plain descriptor calls; a descriptor that comes back is ours alone, and is closed at once. A limit too
    // low for it only means that the table grows later.
    unsafe {
        let high = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, FD_ROOM);
        if high >= 0 {
            libc::close(high);
        }
    }
}

/// Has all threads allocate from one heap: the others would reserve 64 MiB each at their first allocation, and vCPU threads
/// hardly allocate.
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number; the allocator takes its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_process_knows_itself_and_its_parent() {
        let stat = File::open("/proc/self/stat").unwrap();
        let parent = getppid().unwrap().as_raw_nonzero().get().unsigned_abs();
        assert_eq!(read_stat(&stat).unwrap(), (std::process::id(), parent));
        let lineage = Lineage::open().unwrap();
        assert_eq!((id(), lineage.parent().unwrap()), (std::process::id(), parent));
    }

    /// In a process of its own, which is number 1 where it is, as that of a container may be.
    #[test]
    fn who_is_number_one_knows_itself() {
        const CHILD: &str = "BULKHEAD_TEST_NUMBER_ONE";
        if std::env::var_os(CHILD).is_some() {
            let id = id();
            return assert_eq!(
                Some(id),
                parse_stat(&std::fs::read("/proc/self/stat").unwrap()).map(|(process, _)| process)
            );
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "process::tests::who_is_number_one_knows_itself"]).env(CHILD, "1");
        again.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut born = crate::birth::spawn(again).unwrap();
        let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::from_borrowed_fd(born.pidfd(), PollFlags::IN)], Some(&minute)).unwrap();
        born.kill();
        assert!(ended == 1 && born.wait().unwrap().success());
    }

    #[test]
    fn a_name_does_not_mislead() {
        assert_eq!(parse_stat(b"12 (a) R 1 (b) S 34 5 6"), Some((12, 34)));
        for none in [&b""[..], b"12", b"12 (a", b"12 (a) S", b"x (a) S 1 2", b"12 (a) S x 2"] {
            assert_eq!(parse_stat(none), None, "{none:?}");
        }
    }
}
