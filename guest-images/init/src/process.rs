//! The container's process: what it is given, its start, signals from outside, its end.

use crate::environment::{c_string, c_strings, candidates, complete, get};
use crate::failure::{Failure, Reason};
use crate::root;
use crate::signals::{Disposition, Watch, disposition, ends_by_default};
use crate::sys::{self, Child, StringList};
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_protocol::account::{self, Account, MAX_ACCOUNTS};
use guest_protocol::{ExitStatus, FailureKind, Process};
use rustix::event::Timespec;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, fchown, stat};
use rustix::io::{self, Errno};
use rustix::process::{
    Resource, Rlimit, Signal, WaitId, WaitIdOptions, ioctl_tiocsctty, pidfd_send_signal, setrlimit, setsid, umask,
    waitid,
};
use rustix::thread::{
    CapabilitySet, Gid, Uid, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// What a container's root may do, as container users know it.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);
/// One more than the highest capability there is room for; the kernel says where its own end.
const CAPABILITY_COUNT: u32 = 64;

/// Open files: the soft limit that `select` can stand, the hard one that servers raise it to.
const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// A process that has started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The signal in whose name it was killed.
    killed_as: Option<u8>,
    watch: Watch,
}

/// All that is prepared before the child is there: it shares our memory and only makes system calls.
struct Plan<'a> {
    stdio: [BorrowedFd<'a>; 3],
    terminal: bool,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    paths: Vec<CString>,
    args: StringList,
    env: StringList,
}

/// Where a child got to before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Proc,
    Session,
    Streams,
    Privileges,
    Exec,
}

/// Starts `process` on these three descriptors; returns when its program has been executed.
///
/// Enters its working directory; the root must be complete but for /proc. `hostname` is for its environment. It is started in
/// `cgroup`, if there is one.
///
/// # Errors
/// Everything that the image or the user can have got wrong, by kind.
pub fn start(
    process: Process,
    hostname: &str,
    stdio: [BorrowedFd<'_>; 3],
    read_only: bool,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Running, Failure> {
    let terminal = process.terminal.is_some();
    let user = match process.found.account {
        Some(account) => account,
        None => find_user(&process.user)?,
    };
    root::enter_working_directory(&process.cwd)?;
    if read_only {
        root::set_read_only(true)?;
    }
    let mut env = process.env;
    complete(&mut env, hostname, &user.home, terminal);
    let command = process.args.first().map_or("", String::as_str);
    let mut paths = candidates(command, get(&env, "PATH").unwrap_or_default())?;
    if let Some(program) = &process.found.program {
        paths.insert(0, c_string(program)?);
    }
    if user.uid != 0 {
        own(stdio, user.uid)?;
    }
    let plan = Plan {
        stdio,
        terminal,
        uid: Uid::from_raw(user.uid),
        gid: Gid::from_raw(user.gid),
        groups: user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect(),
        paths,
        args: StringList::new(c_strings(&process.args)?),
        env: StringList::new(c_strings(&env)?),
    };
    let mut failed = None;
    let child = sys::spawn(cgroup, || failed = Some(become_process(&plan)))
        .map_err(|error| Failure::errno(FailureKind::Guest, "starting a process", error))?;
    match failed {
        None => Ok(Running { child, killed_as: None, watch: Watch::default() }),
        Some((step, error)) => {
            let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(explain(step, error, command, &plan.paths))
        }
    }
}

/// In the child: everything up to the new program. Returns only if something fails.
fn become_process(plan: &Plan<'_>) -> (Step, Errno) {
    let [stdin, stdout, stderr] = plan.stdio;
    let session = || {
        setsid()?;
        if plan.terminal { ioctl_tiocsctty(stdin) } else { Ok(()) }
    };
    let streams = || {
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)
    };
    if let Err(error) = root::mount_proc() {
        return (Step::Proc, error);
    }
    if let Err(error) = session() {
        return (Step::Session, error);
    }
    if let Err(error) = streams() {
        return (Step::Streams, error);
    }
    if let Err(error) = set_privileges(plan) {
        return (Step::Privileges, error);
    }
    (Step::Exec, execute(plan))
}

/// Gives this process what all processes of the container inherit: no more open files and no more capabilities than they may
/// have. Its own capabilities stay; only a program that it executed would have fewer.
///
/// # Errors
/// As prctl(2) and setrlimit(2).
pub fn limit() -> io::Result<()> {
    match setrlimit(Resource::Nofile, OPEN_FILES) {
        // PID 1 of a machine may raise limits; where it may not, they stay.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    for bit in 0..CAPABILITY_COUNT {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if CAPABILITIES.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn set_privileges(plan: &Plan<'_>) -> io::Result<()> {
    umask(Mode::from_raw_mode(0o022));
    // PID 1 is root without other groups already.
    if plan.gid != Gid::ROOT || plan.groups.len() > 1 {
        set_thread_groups(&plan.groups)?;
        set_thread_res_gid(plan.gid, plan.gid, plan.gid)?;
    }
    if plan.uid != Uid::ROOT {
        set_thread_res_uid(plan.uid, plan.uid, plan.uid)?;
    }
    Ok(())
}

/// Tries each path. Something that is there but cannot be executed is remembered over what is not there.
fn execute(plan: &Plan<'_>) -> Errno {
    let mut result = Errno::NOENT;
    for path in &plan.paths {
        match sys::execve(path, &plan.args, &plan.env) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => result = Errno::ACCESS,
            error => return error,
        }
    }
    result
}

/// The failure of a child in the user's words.
fn explain(step: Step, error: Errno, command: &str, paths: &[CString]) -> Failure {
    let what = match step {
        Step::Exec => return explain_exec(error, command, paths),
        Step::Proc => return Failure::errno(FailureKind::Root, "mounting proc on /proc", error),
        Step::Session => "making a session of its own",
        Step::Streams => "connecting the standard streams",
        Step::Privileges => "setting user and groups",
    };
    Failure::errno(FailureKind::Guest, what, error)
}

fn explain_exec(error: Errno, command: &str, paths: &[CString]) -> Failure {
    let is_directory = |path: &CString| {
        stat(path.as_c_str())
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
    };
    let (kind, error) = match error {
        Errno::NOENT if !command.contains('/') => {
            let detail = format!("exec: {command:?}: executable file not found in $PATH");
            return Failure::new(FailureKind::NotFound, detail);
        }
        Errno::NOENT => (FailureKind::NotFound, error),
        Errno::ACCESS if paths.iter().any(is_directory) => (FailureKind::NotExecutable, Errno::ISDIR),
        _ => (FailureKind::NotExecutable, error),
    };
    Failure::new(kind, format!("exec: {command:?}: {}", Reason(error)))
}

/// The user that `spec` means in the image that is our root.
fn find_user(spec: &str) -> Result<Account, Failure> {
    let read = |path, kind| root::read_file(path, MAX_ACCOUNTS).map_err(|error| Failure::errno(kind, path, error));
    let passwd = read("/etc/passwd", FailureKind::UnknownUser)?;
    let group = read("/etc/group", FailureKind::UnknownGroup)?;
    Ok(account::resolve(spec, &passwd, &group)?)
}

/// Gives the streams to the user, who may want to open them again by name.
fn own(stdio: [BorrowedFd<'_>; 3], uid: u32) -> Result<(), Failure> {
    for fd in stdio {
        match fchown(fd, Some(Uid::from_raw(uid)), None) {
            // /dev/null and whatever else belongs to everybody.
            Ok(()) | Err(Errno::ROFS | Errno::PERM) => {}
            Err(error) => {
                return Err(Failure::errno(FailureKind::Guest, "giving the streams to the user", error));
            }
        }
    }
    Ok(())
}

impl Running {
    /// Becomes readable when the process has ended.
    #[must_use]
    pub fn end_event(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Sends a signal from outside.
    ///
    /// To PID 1 of a PID namespace the kernel delivers only what it has a handler for. Any other process would have been ended
    /// by the signal, and that is what the sender wants: so it is ended, and its exit status says by which signal.
    /// One that blocks the signal for a moment, as shells do around each fork, is judged when it does no longer.
    /// One that has a handler and loses it to `execve` in that very moment does not notice; the sender can repeat it.
    pub fn signal(&mut self, signal: u8) {
        let Some(named) = Signal::from_named_raw(i32::from(signal)) else {
            return;
        };
        let ends = ends_by_default(named);
        match disposition(signal) {
            Disposition::Default if ends => return self.end_as(signal),
            Disposition::Blocked { .. } if ends => self.watch.add(signal),
            _ => {}
        }
        // It may have ended meanwhile: then there is nobody to tell.
        let _ = pidfd_send_signal(&self.child.pidfd, named);
    }

    /// The terminal has sent `signal` to its foreground group: sees to it that it has its effect on the process.
    pub fn signalled_by_terminal(&mut self, signal: u8, group: i32) {
        if group != self.child.pid.as_raw_nonzero().get() {
            return;
        }
        match disposition(signal) {
            Disposition::Default => self.end_as(signal),
            Disposition::Blocked { .. } => self.watch.expect(signal),
            Disposition::Other => {}
        }
    }

    /// When to call [`Self::look_again`], if at all.
    #[must_use]
    pub fn look_again_in(&self) -> Option<Timespec> {
        self.watch.delay()
    }

    /// Judges the signals that the process blocked when they were sent. The kernel has thrown away those that it blocks no
    /// longer and does not handle. Does nothing before it is time.
    pub fn look_again(&mut self) {
        if !self.watch.is_due() {
            return;
        }
        for signal in self.watch.signals() {
            match disposition(signal) {
                Disposition::Blocked { pending } if self.watch.is_open(signal, pending) => continue,
                Disposition::Default => self.end_as(signal),
                Disposition::Blocked { .. } | Disposition::Other => {}
            }
            self.watch.remove(signal);
        }
        self.watch.wait_longer();
    }

    /// Ends it, as `signal` would have ended any other process.
    fn end_as(&mut self, signal: u8) {
        self.killed_as.get_or_insert(signal);
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }

    /// How it ended; waits until it has.
    #[must_use]
    pub fn wait(&self) -> ExitStatus {
        let status = loop {
            match waitid(WaitId::PidFd(self.child.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                other => break other.ok().flatten(),
            }
        };
        let byte = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
        match status {
            Some(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(byte(code & 0xff)),
                (None, Some(signal)) => ExitStatus::Signal(match self.killed_as {
                    Some(name) if signal == Signal::KILL.as_raw() => name,
                    _ => byte(signal),
                }),
                (None, None) => ExitStatus::Code(u8::MAX),
            },
            None => ExitStatus::Code(u8::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_execute_have_the_kind_of_their_exit_code() {
        let directory = [CString::new("/tmp").unwrap()];
        for (error, command, paths, kind, text) in [
            (Errno::NOENT, "no", &[][..], FailureKind::NotFound, "exec: \"no\": executable file not found in $PATH"),
            (Errno::NOENT, "/no", &[], FailureKind::NotFound, "exec: \"/no\": no such file or directory"),
            (Errno::ACCESS, "/tmp", &directory, FailureKind::NotExecutable, "exec: \"/tmp\": is a directory"),
            (Errno::ACCESS, "/x", &[], FailureKind::NotExecutable, "exec: \"/x\": permission denied"),
            (Errno::NOEXEC, "/x", &[], FailureKind::NotExecutable, "exec: \"/x\": exec format error"),
        ] {
            let failure = explain(Step::Exec, error, command, paths);
            assert_eq!((failure.kind, failure.detail.as_str()), (kind, text));
        }
    }
}
