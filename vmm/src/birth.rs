//! How the process of a microVM begins: by who starts it, in a namespace of processes (pid_namespaces(7)) in which there is nobody else.
//!
//! A process cannot leave for such a namespace, it can only be born there, and the standard library's `Command` has no word for that. So
//! it is had from clone(2) in the way of posix_spawn(3): it shares the memory of the thread that starts it, which waits until it has
//! become the program (CLONE_VM, CLONE_VFORK).
//!
//! Who has no privilege for it takes a user namespace as well, in which there is this user alone. Who has some privileges, but not that
//! one, has them still in the process: it begins where this one is. So it does where the host does not let it be elsewhere, and then
//! says so itself ([`Missing`](crate::sandbox::Missing)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

use libc::c_int;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitOptions, getegid, geteuid, pidfd_send_signal, waitpid};
use rustix::thread::{CapabilitySet, capabilities};

use crate::page_cache;
use crate::sandbox::map_alone;

/// Bytes of the stack on which a process is until it is the program. Memory that is not touched takes none.
const STACK: usize = 256 << 10;
/// The last signal's number (signal(7)).
const SIGNALS: c_int = 64;

/// A process that this one has started, and must wait for.
#[derive(Debug)]
pub struct Born {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Option<ExitStatus>,
}

impl Born {
    /// Its number. It is nobody else's before [`Born::wait`].
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Becomes readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends it. One that has ended already is no error.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for its end, and says how it was; the second time the same.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.look(WaitOptions::empty())?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// As for [`Born::wait`].
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.look(WaitOptions::NOHANG)
    }

    fn look(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            let ended = retry_on_intr(|| waitpid(Some(self.pid), options))?;
            self.ended = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.ended)
    }
}

/// Why a process did not become what it was to be.
#[derive(Debug)]
enum Failed {
    /// The host does not let it have its namespaces.
    Namespaces(io::Error),
    /// There is no such program, or it cannot be run.
    Program(io::Error),
}

impl Failed {
    fn error(self) -> io::Error {
        let (Failed::Namespaces(error) | Failed::Program(error)) = self;
        error
    }
}

/// Starts a program, in a namespace of processes of its own if the host lets it. Each of its streams must be set, and none of them to
/// `Stdio::piped`: nobody would have the other end of that. What the command has to hand on is closed here.
///
/// # Errors
/// It cannot be started: there is no such program, above all.
pub fn spawn(mut command: Command) -> io::Result<Born> {
    // Whatever comes of that, the program is read as it is asked for.
    let program = Path::new(command.get_program());
    if program.is_absolute() {
        let open = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(program);
        let _ = open.and_then(|program| page_cache::fill(&program));
    }
    let mut begin = |namespaces: &Namespaces| {
        let mut become_it = || match namespaces.enter() {
            Ok(()) => Some(Failed::Program(command.exec())),
            Err(error) => Some(Failed::Namespaces(error)),
        };
        born(namespaces.flags, &mut become_it)
    };
    let born = match begin(&Namespaces::own()) {
        Err(Failed::Namespaces(error)) => {
            tracing::info!("no namespace of processes: {error}");
            begin(&Namespaces::NONE)
        }
        result => result,
    };
    born.map_err(Failed::error)
}

/// Whether [`spawn`] gives a process a namespace of its own: tried, with one that ends at once.
///
/// # Errors
/// The host's answer.
pub fn can_be_apart() -> io::Result<()> {
    let namespaces = Namespaces::own();
    if namespaces.flags == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut end = || namespaces.enter().err().map(Failed::Namespaces);
    born(namespaces.flags, &mut end).map_err(Failed::error)?.wait().map(drop)
}

/// Where a process is to begin.
struct Namespaces {
    /// For clone(2).
    flags: c_int,
    /// The user and the group that are alone in a user namespace.
    alone: Option<(u32, u32)>,
}

impl Namespaces {
    /// Those of who starts it.
    const NONE: Namespaces = Namespaces { flags: 0, alone: None };

    /// One of processes, with the privilege to have it.
    fn own() -> Self {
        match capabilities(None).map(|sets| sets.effective) {
            Ok(has) if has.contains(CapabilitySet::SYS_ADMIN) => Namespaces { flags: libc::CLONE_NEWPID, alone: None },
            Ok(has) if has.is_empty() => {
                let alone = Some((geteuid().as_raw(), getegid().as_raw()));
                Namespaces { flags: libc::CLONE_NEWPID | libc::CLONE_NEWUSER, alone }
            }
            _ => Self::NONE,
        }
    }

    /// For the process, which is in them already.
    fn enter(&self) -> io::Result<()> {
        self.alone.map_or(Ok(()), |(user, group)| map_alone(user, group))
    }
}

/// What a process that begins finds.
struct Beginning<'a> {
    begin: &'a mut dyn FnMut() -> Option<Failed>,
    /// Signals that the thread which starts it had blocked.
    mask: libc::sigset_t,
    failed: Option<Failed>,
}

/// A process that does `begin`, and ends with it if it is still this program. The calling thread waits for one or the other.
fn born(namespaces: c_int, begin: &mut dyn FnMut() -> Option<Failed>) -> Result<Born, Failed> {
    let flags = namespaces | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    // SAFETY: all zeros are a valid set, which the call below sets.
    let mut beginning = Beginning { begin, mask: unsafe { std::mem::zeroed() }, failed: None };
    let mut pidfd: c_int = -1;
    // A signal that came meanwhile would have a handler of this process run in the other one, in the same memory.
    // SAFETY: both sets live here. The stack and what is given are there until the child has ended or become another program, which is
    // when clone(2) returns; what it does until then with memory that it shares, `begins` says.
    let pid = unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut beginning.mask);
        let top = stack.as_mut_ptr_range().end;
        let (nothing, given) = (std::ptr::null_mut::<libc::c_void>(), (&raw mut beginning).cast());
        let pid = libc::clone(begins, top.cast(), flags, given, &raw mut pidfd, nothing, nothing);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const beginning.mask, std::ptr::null_mut());
        if pid < 0 { Err(error) } else { Ok(pid) }
    };
    let pid = pid.and_then(|pid| Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::NotFound.into()));
    let pid = pid.map_err(|error| if namespaces == 0 { Failed::Program(error) } else { Failed::Namespaces(error) })?;
    // SAFETY: clone(2) has made it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut born = Born { pid, pidfd, ended: None };
    match beginning.failed {
        Some(failed) => {
            let _ = born.wait();
            Err(failed)
        }
        None => Ok(born),
    }
}

/// A process's first steps, in the memory of the one that has started it, of which one thread waits for it: it is as that thread, but
/// with descriptors and signal handlers of its own. What it allocates and does not free, that process has lost: the words of a command;
/// and what it locks stays so: `exec` reads the environment, so nobody may ever change this process's (`set_var`), and nobody here does.
extern "C" fn begins(beginning: *mut libc::c_void) -> c_int {
    // SAFETY: `born` gives one, and looks at it when this process is done with it.
    let beginning = unsafe { &mut *beginning.cast::<Beginning<'_>>() };
    forget_handlers();
    // SAFETY: the set is a valid one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const beginning.mask, std::ptr::null_mut()) };
    beginning.failed = (beginning.begin)();
    // SAFETY: it ends this process, and runs nothing of the other one's.
    unsafe { libc::_exit(0) }
}

/// What signals do is the default again, where they had a handler.
fn forget_handlers() {
    for signal in 1..=SIGNALS {
        // SAFETY: all zeros are a valid value; the default takes none of our memory. What is no signal is an error, and nothing happens.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0;
            if known && action.sa_sigaction != libc::SIG_IGN && action.sa_sigaction != libc::SIG_DFL {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::process::Stdio;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// What a shell says and how it ends.
    fn shell(script: &str) -> (String, ExitStatus) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("GIVEN", "so").stdin(Stdio::null()).stdout(writer).stderr(Stdio::inherit());
        let mut born = spawn(command).unwrap();
        assert!(born.id() > 1);
        let mut said = String::new();
        File::from(reader).read_to_string(&mut said).unwrap();
        (said, born.wait().unwrap())
    }

    #[test]
    fn group_11_a_process_is_alone_in_its_namespace() {
        let (said, status) = shell("echo $$ $GIVEN; kill -0 2 2>/dev/null && echo another; exit 7");
        assert_eq!(status.code(), Some(7));
        match can_be_apart() {
            Ok(()) => assert_eq!(said, "1 so\n"),
            Err(error) => {
                println!("SKIP group_11_a_process_is_alone_in_its_namespace: {error}");
                assert!(said.ends_with(" so\n") && said != "1 so\n");
            }
        }
    }

    /// What is blocked while it begins is so no longer; handlers end with exec(3) in any case.
    #[test]
    fn a_process_begins_with_our_signals() {
        let (said, _) =
            shell("while read key value; do case $key in SigBlk:) echo $value;; esac; done </proc/self/status");
        assert_eq!(said, "0000000000000000\n");
    }

    #[test]
    fn what_cannot_be_started_is_an_error_and_no_process() {
        let mut command = Command::new("/nowhere/at/all");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert_eq!(spawn(command).unwrap_err().kind(), io::ErrorKind::NotFound);
        let children = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let children = children.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let left = children.collect::<String>();
        for pid in left.split_whitespace() {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            assert_ne!(comm, "vmm\n", "{pid}");
        }
    }

    #[test]
    fn a_process_is_ended_and_waited_for_once() {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut born = spawn(command).unwrap();
        assert_eq!(born.try_wait().unwrap(), None);
        born.kill();
        let status = born.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        born.kill();
        assert_eq!((born.wait().unwrap(), born.try_wait().unwrap()), (status, Some(status)));
    }
}
