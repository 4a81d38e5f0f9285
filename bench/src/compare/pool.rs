//! A microVM of a pool: containers run and wait, and each command is given to one of them by `exec`, as hosts of functions do it.
//!
//! What it takes to fill the pool (`run -d`) is no part of the times, since that was before; nor is what it takes to be rid of the one
//! that was used (`rm -f`), since nobody waits for that. Both are part of the rate: who takes has to refill. A microVM serves one command, so
//! that commands are as much apart as in the other arms.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use super::arm::{Arm, Made, Making};
use super::running::{Patience, answer};
use super::tree;
use super::vm::Vm;
use crate::process::{BenchError, io_error};

/// What those that wait do, for an hour at most: if this process is killed, they do not stay for longer.
const WAIT: [&str; 2] = ["sleep", "3600"];

struct Pool {
    vm: Vm,
    /// How long it may take to have one more, and what breaks that off.
    limit: Duration,
    stop: OwnedFd,
}

/// The arm.
pub(super) fn make(vm: Vm, version: String, making: &Making<'_>) -> Result<Made, String> {
    let Patience { limit, stop } = making.patience;
    let stop = stop.try_clone_to_owned().map_err(|error| error.to_string())?;
    Ok(Made { version, arm: Box::new(Pool { vm, limit, stop }) })
}

impl Pool {
    /// Has one more of that name wait, which has answered once: nothing of its start is left to do.
    fn fill(&self, id: &str) -> Result<(), BenchError> {
        let patience = Patience { limit: self.limit, stop: self.stop.as_fd() };
        let mut run = self.vm.verb(&["run", "--detach", "--rm", "--name", id, "--entrypoint", "", self.vm.image()]);
        run.args(WAIT);
        let filled = answer(run, patience).and_then(|_| answer(self.vm.verb(&["exec", id, "true"]), patience));
        filled.map(drop).inspect_err(|_| self.vm.clear(id))
    }

    /// The processes of one that waits.
    fn waiting(&self, id: &str) -> Vec<u32> {
        let mut inspect = self.vm.verb(&["inspect", "--format", "{{.State.Pid}}", id]);
        let said = inspect.stdin(std::process::Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
        let keeper = String::from_utf8_lossy(&said).trim().parse().ok().filter(|pid| *pid > 1);
        keeper.map(tree::descendants).unwrap_or_default()
    }
}

impl Arm for Pool {
    /// The container is there when this returns: the clock has not begun.
    fn command(&self, id: &str, words: &[String]) -> Result<Command, BenchError> {
        self.fill(id)?;
        let mut exec = self.vm.verb(&["exec", "--interactive", id]);
        exec.args(words);
        Ok(exec)
    }

    fn clear(&self, id: &str) {
        self.vm.clear(id);
    }

    fn stays(&self) -> bool {
        true
    }

    fn processes(&self, child: u32, id: &str) -> Vec<u32> {
        let mut all = tree::descendants(child);
        all.extend(self.waiting(id));
        all
    }

    fn waiting_kib(&self, id: &str) -> Result<Option<u64>, BenchError> {
        self.fill(id)?;
        let sum = self.waiting(id).into_iter().filter_map(tree::pss_kib).sum();
        self.clear(id);
        // Without one of them there is nothing to tell.
        match sum {
            0 => Err(io_error("memory of a container that waits")(std::io::ErrorKind::NotFound.into())),
            sum => Ok(Some(sum)),
        }
    }

    fn image_disk(&self) -> Option<u64> {
        self.vm.image_disk()
    }

    fn instance_disk(&self, id: &str) -> Option<u64> {
        self.vm.instance_disk(id)
    }
}
