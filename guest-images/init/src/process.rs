//! Starting the container's processes, the main one and those that join it: what they are given.

use crate::beside;
use crate::environment::{c_string, c_strings, candidates, complete, get, set};
use crate::failure::{Failure, Reason};
use crate::filter::Filter;
use crate::root;
use crate::running::{Running, wait};
use crate::sys::{self, Child, PidNamespace, StringList};
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_protocol::account::{self, Account, MAX_ACCOUNTS};
use guest_protocol::{Exec, FailureKind, Limit, Process, Settings};
use rustix::fd::BorrowedFd;
use rustix::fs::{Mode, fchown, stat};
use rustix::io::{self, Errno};
use rustix::process::{Resource, Rlimit, chdir, ioctl_tiocsctty, setrlimit, setsid, umask};
use rustix::thread::{
    CapabilitySet, Gid, Uid, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// One more than the highest capability there is room for; the kernel says where its own end.
const CAPABILITY_COUNT: u32 = 64;

/// Open files: the soft limit that `select` can stand, the hard one that servers raise it to.
const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// All that is prepared before the child is there: it shares our memory and only makes system calls.
struct Plan<'a> {
    stdio: [BorrowedFd<'a>; 3],
    terminal: bool,
    /// It is the first one, and mounts /proc.
    first: bool,
    /// Where to go, if it is not there already.
    cwd: Option<CString>,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    bounds: &'a Bounds,
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
    WorkingDirectory,
    Privileges,
    Exec,
}

/// What the main process was given, for those that join it.
#[derive(Debug, Default)]
pub struct Defaults {
    env: Vec<String>,
    cwd: String,
    user: String,
    bounds: Bounds,
}

/// What holds for each process of a container.
#[derive(Debug, Default)]
pub struct Bounds {
    limits: Vec<Limit>,
    /// System calls that it may not make, if there are any.
    filter: Option<Filter>,
    /// Whether others run on the same kernel, and it may be a danger to them.
    beside: Option<bool>,
}

impl Bounds {
    /// Those that a container has asked for, and has to have.
    #[must_use]
    pub fn of(settings: Settings) -> Self {
        let beside = settings.beside.map(|beside| beside.privileged);
        let filter = (beside == Some(false)).then(|| Filter::of(settings.capabilities));
        Self { limits: settings.limits, filter, beside }
    }
}

/// Starts the main process on these three descriptors; returns when its program has been executed.
///
/// Enters its working directory; the root must be complete but for /proc. `hostname` is for its environment. It is started in
/// `cgroup`, if there is one.
///
/// # Errors
/// Everything that the image or the user can have got wrong, by kind.
pub fn start(
    process: Process,
    bounds: Bounds,
    hostname: &str,
    stdio: [BorrowedFd<'_>; 3],
    read_only: bool,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Running, Defaults), Failure> {
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
    let own = env.len();
    complete(&mut env, hostname, &user.home, terminal);
    let mut paths = places(&process.args, &env)?;
    if let Some(program) = &process.found.program {
        paths.insert(0, c_string(program)?);
    }
    let given = Given { stdio, terminal, user: &user, args: &process.args, env: &env, bounds: &bounds };
    let child = given.start(Plan { first: true, ..given.plan(paths)? }, PidNamespace::New, cgroup)?;
    env.truncate(own);
    Ok((Running::new(child), Defaults { env, cwd: process.cwd, user: process.user, bounds }))
}

/// Starts a process beside the main one, whose PID namespace this process's children must be in by now; else as [`start`].
///
/// # Errors
/// As [`start`].
pub fn join(
    exec: Exec,
    defaults: &Defaults,
    hostname: &str,
    stdio: [BorrowedFd<'_>; 3],
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Child, Failure> {
    let terminal = exec.terminal.is_some();
    let user = find_user(exec.user.as_ref().unwrap_or(&defaults.user))?;
    let cwd = exec.cwd.as_ref().unwrap_or(&defaults.cwd);
    root::check_working_directory(cwd)?;
    let mut env = defaults.env.clone();
    exec.env.into_iter().for_each(|entry| set(&mut env, entry));
    complete(&mut env, hostname, &user.home, terminal);
    let paths = places(&exec.args, &env)?;
    let bounds = &defaults.bounds;
    let given = Given { stdio, terminal, user: &user, args: &exec.args, env: &env, bounds };
    let plan = Plan { cwd: Some(c_string(cwd)?), ..given.plan(paths)? };
    given.start(plan, PidNamespace::Joined, cgroup).map_err(|failure| match failure.kind {
        FailureKind::BadWorkingDir => {
            Failure::new(failure.kind, format!("working directory {cwd:?}: {}", failure.detail))
        }
        _ => failure,
    })
}

/// What a process is made of.
struct Given<'a> {
    stdio: [BorrowedFd<'a>; 3],
    terminal: bool,
    user: &'a Account,
    args: &'a [String],
    env: &'a [String],
    bounds: &'a Bounds,
}

impl<'a> Given<'a> {
    /// All that its child needs, whose program is at one of `paths`.
    fn plan(&self, paths: Vec<CString>) -> Result<Plan<'a>, Failure> {
        Ok(Plan {
            stdio: self.stdio,
            terminal: self.terminal,
            first: false,
            cwd: None,
            uid: Uid::from_raw(self.user.uid),
            gid: Gid::from_raw(self.user.gid),
            groups: self.user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect(),
            bounds: self.bounds,
            paths,
            args: StringList::new(c_strings(self.args)?),
            env: StringList::new(c_strings(self.env)?),
        })
    }

    fn start(&self, plan: Plan<'_>, namespace: PidNamespace, cgroup: Option<BorrowedFd<'_>>) -> Result<Child, Failure> {
        if self.user.uid != 0 {
            own(self.stdio, self.user.uid)?;
        }
        let mut failed = None;
        let child = sys::spawn(namespace, cgroup, || failed = Some(become_process(&plan)))
            .map_err(|error| Failure::errno(FailureKind::Guest, "starting a process", error))?;
        match failed {
            None => Ok(child),
            Some((step, error)) => {
                let _ = wait(&child);
                Err(explain(step, error, self.args.first().map_or("", String::as_str), &plan.paths))
            }
        }
    }
}

/// Where to look for a command's program.
fn places(args: &[String], env: &[String]) -> Result<Vec<CString>, Failure> {
    candidates(args.first().map_or("", String::as_str), get(env, "PATH").unwrap_or_default())
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
    if plan.first
        && let Err(error) = root::mount_proc().and_then(|()| plan.bounds.beside.map_or(Ok(()), beside::narrow))
    {
        return (Step::Proc, error);
    }
    if let Err(error) = session() {
        return (Step::Session, error);
    }
    if let Err(error) = streams() {
        return (Step::Streams, error);
    }
    // By a link to one of init's own, which /proc has names for, a path would lead out of the root.
    if let Err(error) = sys::close_all_but_streams() {
        return (Step::Streams, error);
    }
    if let Some(Err(error)) = plan.cwd.as_ref().map(|cwd| chdir(cwd.as_c_str())) {
        return (Step::WorkingDirectory, error);
    }
    if let Err(error) = set_privileges(plan) {
        return (Step::Privileges, error);
    }
    (Step::Exec, execute(plan))
}

/// Gives this process what all processes of the container inherit: no more open files than they may have.
///
/// # Errors
/// As setrlimit(2).
pub fn limit() -> io::Result<()> {
    match setrlimit(Resource::Nofile, OPEN_FILES) {
        // PID 1 of a machine may raise limits; where it may not, they stay.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Leaves what this process starts from now on these capabilities at most, a bit each. Its own stay; only a program that it
/// executed would have fewer.
///
/// # Errors
/// As prctl(2).
pub fn bound(capabilities: u64) -> io::Result<()> {
    for bit in 0..CAPABILITY_COUNT {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if capabilities & capability.bits() != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn resource(resource: guest_protocol::Resource) -> Resource {
    use guest_protocol::Resource as Of;
    match resource {
        Of::Core => Resource::Core,
        Of::Cpu => Resource::Cpu,
        Of::Data => Resource::Data,
        Of::Fsize => Resource::Fsize,
        Of::Locks => Resource::Locks,
        Of::Memlock => Resource::Memlock,
        Of::Msgqueue => Resource::Msgqueue,
        Of::Nice => Resource::Nice,
        Of::Nofile => Resource::Nofile,
        Of::Nproc => Resource::Nproc,
        Of::Rss => Resource::Rss,
        Of::Rtprio => Resource::Rtprio,
        Of::Rttime => Resource::Rttime,
        Of::Sigpending => Resource::Sigpending,
        Of::Stack => Resource::Stack,
    }
}

fn set_privileges(plan: &Plan<'_>) -> io::Result<()> {
    umask(Mode::from_raw_mode(0o022));
    if let Some(filter) = &plan.bounds.filter {
        // As long as it has all capabilities.
        sys::set_filter(filter)?;
    }
    for limit in &plan.bounds.limits {
        setrlimit(resource(limit.resource), Rlimit { current: limit.soft, maximum: limit.hard })?;
    }
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
        Step::WorkingDirectory => {
            return Failure::new(FailureKind::BadWorkingDir, format!("{}", Reason(error)));
        }
        Step::Session => "making a session of its own",
        Step::Streams => "connecting the standard streams",
        Step::Privileges => "setting limits, user and groups",
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
