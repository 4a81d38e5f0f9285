//! Programs that have been started for a microVM or a container and are no children of anybody's (passt): noted beside its run directory, with which
//! they end. By themselves, as they do when nobody has the other end of their socket any more; and if one has gone wrong, by SIGKILL.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{RunDirError, beside_name, io_error, lock_root, remove_list, write_list};

/// How long one may take to end by itself, and how long the kernel may take to end it.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A process, and when it was started, which no other with its number was: clock ticks since the host's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Helper {
    pid: i32,
    started: u64,
}

/// Notes a process that goes with the run directory `dir`. What cannot be noted ends by itself, if it is well.
pub fn note_helper(dir: &Path, pid: u32) {
    if let Err(error) = note(dir, pid) {
        tracing::warn!("{error}");
    }
}

fn note(dir: &Path, pid: u32) -> Result<(), RunDirError> {
    let _guard = lock_root(dir.parent().unwrap_or(dir))?;
    dir.symlink_metadata().map_err(io_error(dir))?;
    // One that has ended already needs no note.
    let Some(helper) = i32::try_from(pid).ok().and_then(Helper::of) else { return Ok(()) };
    let list = list(dir);
    // A microVM that is replaced many times has had many.
    let there_were = noted(&list).map_err(io_error(&list))?;
    let there_are = there_were.into_iter().filter(|noted| Helper::of(noted.pid) == Some(*noted));
    let lines: String =
        there_are.chain([helper]).map(|helper| format!("{} {}\n", helper.pid, helper.started)).collect();
    write_list(&list, lines.as_bytes()).map_err(io_error(&list))
}

fn noted(list: &Path) -> io::Result<Vec<Helper>> {
    match fs::read_to_string(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text?.lines().filter_map(Helper::parse).collect()),
    }
}

fn list(dir: &Path) -> PathBuf {
    beside_name(dir, "helpers")
}

/// Ends those that go with a run directory, and removes their list.
pub(super) fn end_helpers(dir: &Path) -> io::Result<()> {
    let list = list(dir);
    noted(&list)?.into_iter().try_for_each(Helper::end)?;
    remove_list(&list)
}

impl Helper {
    /// A process that there is.
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the other fields may have anything in it (proc_pid_stat(5)).
        let started = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
        Some(Helper { pid, started })
    }

    fn parse(line: &str) -> Option<Self> {
        let (pid, started) = line.split_once(' ')?;
        Some(Helper { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    fn end(self) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // Whoever the descriptor is of has this number as long as it lives.
        if Helper::of(self.pid) != Some(self) || ended(&process)? {
            return Ok(());
        }
        tracing::warn!(pid = self.pid, "a program that was started for a microVM does not end by itself");
        let killed = pidfd_send_signal(&process, Signal::KILL).or_else(|error| match error {
            // It has ended just now.
            Errno::SRCH => Ok(()),
            other => Err(other),
        });
        match killed.is_ok() && ended(&process)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("process {} does not end", self.pid))),
        }
    }
}

/// Waits a while for its end.
fn ended(process: &impl std::os::fd::AsFd) -> io::Result<bool> {
    Ok(retry_on_intr(|| poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&PATIENCE)))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rundir::RunDir;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn one_that_does_not_end_is_ended_with_the_directory_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let (mut helper, mut other) = (sleeper(), sleeper());
        let directory = RunDir::create(root.path(), Some("vm")).unwrap();
        note(&directory.path(), helper.id()).unwrap();
        // Its number is another's by now; it is gone; and a line that was never whole.
        let list = list(&directory.path());
        let more = format!("{} 1\n{} 1\n12", other.id(), i32::MAX);
        fs::write(&list, fs::read_to_string(&list).unwrap() + &more).unwrap();
        drop(directory);
        assert!(!helper.wait().unwrap().success());
        assert_eq!(other.try_wait().unwrap(), None);
        assert!(!list.exists());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn without_a_directory_nothing_is_noted() {
        let root = tempfile::tempdir().unwrap();
        assert!(note(&root.path().join("vm"), std::process::id()).is_err());
        let directory = RunDir::create(root.path(), Some("vm")).unwrap();
        note(&directory.path(), u32::MAX).unwrap();
        assert!(!list(&directory.path()).exists());
    }
}
