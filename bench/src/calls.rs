//! How many system calls threads of this process make, as perf(1) counts them, where that is installed and may.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::threads;

/// Each system call is one.
const EVENT: &str = "raw_syscalls:sys_enter";

/// A count that goes on. It costs each call some hundred nanoseconds.
pub(crate) struct Counting {
    perf: Child,
    control: File,
}

impl Counting {
    /// Begins with all threads whose names begin with one of these. None: there is no perf, or it may not.
    pub(crate) fn start(names: &[&str]) -> Option<Self> {
        let ids: Vec<String> = threads::ids(names).ok()?.iter().map(u32::to_string).collect();
        let [(its_control, control), (answers, its_answers)] = [pipe()?, pipe()?];
        let (control, mut answers) = (File::from(control), File::from(answers));
        fcntl_setfd(&its_control, FdFlags::empty()).and_then(|()| fcntl_setfd(&its_answers, FdFlags::empty())).ok()?;
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ",", "-e", EVENT, "-t", &ids.join(","), "-D", "-1", "--control"]);
        command.arg(format!("fd:{},{}", its_control.as_raw_fd(), its_answers.as_raw_fd()));
        let perf = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
        // Where it ends at once, so do its ends of these.
        drop((its_control, its_answers));
        let mut counting = Counting { perf, control };
        let enabled = enable(&mut counting.control, &mut answers);
        if enabled.is_none() {
            let _ = counting.perf.kill();
            let _ = counting.perf.wait();
        }
        enabled.map(|()| counting)
    }

    /// Ends, and tells how many there were.
    pub(crate) fn end(self) -> Option<u64> {
        let pid = i32::try_from(self.perf.id()).ok().and_then(Pid::from_raw)?;
        kill_process(pid, Signal::INT).ok()?;
        let output = self.perf.wait_with_output().ok()?;
        count(&String::from_utf8_lossy(&output.stderr))
    }
}

/// Nobody else's who is started meanwhile.
fn pipe() -> Option<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).ok()
}

fn enable(control: &mut File, answers: &mut File) -> Option<()> {
    control.write_all(b"enable\n").ok()?;
    answers.read_exact(&mut [0; "ack\n".len()]).ok()
}

/// From perf's table of values, separated by commas.
fn count(table: &str) -> Option<u64> {
    table.lines().find(|line| line.contains(EVENT))?.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_first_value() {
        assert_eq!(count("# started\n\n1234,,raw_syscalls:sys_enter,5,100.00,,\n"), Some(1234));
        assert_eq!(count("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
        assert_eq!(count("perf: not permitted\n"), None);
    }

    #[test]
    fn calls_of_a_thread_are_counted_where_perf_may() {
        let (asked, told) = std::sync::mpsc::channel();
        let work = move || {
            for _ in told {
                for _ in 0..100 {
                    let _ = rustix::process::getpid();
                }
            }
        };
        let thread = std::thread::Builder::new().name("calls-test".into()).spawn(work).unwrap();
        let Some(counting) = Counting::start(&["calls-test"]) else {
            println!("SKIP a part: no perf that may count system calls");
            return;
        };
        asked.send(()).unwrap();
        drop(asked);
        thread.join().unwrap();
        let calls = counting.end().unwrap();
        assert!((100..200).contains(&calls), "{calls}");
    }
}
