//! A guest that several containers share. Its init has a process that only waits as its main one ([`Helper::Wait`](guest_protocol::files::Helper)); each
//! container is a process that has joined that one: a copy of init, and a copy of that in namespaces of its own, whose first process it
//! is there, and in which it lives [the life](crate::guest) of an init: only with other ports and disks.
//!
//! ```text
//! init ─┬─ waits (the end of the guest's PID namespace is the end of all)
//!       ├─ keeper ── init of a member ── its container's processes
//!       └─ keeper ── …                    (the end of a member's init is the end of all of its)
//! ```
//!
//! A keeper has nothing to do but to say, by its own end, that a place is free again: file systems are unmounted some time after the last
//! process that has them, and another disk must not be put behind one before.

use crate::failure::{Failure, Reason};
use crate::guest::{self, Machine, PORT};
use crate::helper::own_streams;
use crate::running::wait;
use crate::sys::{self, Child, Clock, PidNamespace, clock_ns, complain};
use alloc::format;
use guest_protocol::{ExitStatus, FailureKind};
use rustix::event::{Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::{self, Errno};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Between two looks at disks that are still used.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// How often that is looked at.
const LOOKS: usize = 3000;

/// Exit code of a keeper whose place is free.
const FREE: u8 = 0;
/// And of one whose place is not, and will not be.
const LOST: u8 = 1;

/// Starts the keeper of a member at `place`, on these descriptors.
///
/// # Errors
/// [`FailureKind::BadRequest`]: there is no such place. As clone3(2).
pub fn start<M: Machine>(
    machine: &M,
    place: u8,
    stdio: [BorrowedFd<'_>; 3],
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Child, Failure> {
    let Some(member) = machine.member(place) else {
        return Err(Failure::new(FailureKind::BadRequest, format!("there is no place {place} in this guest")));
    };
    let keeper = || match own_streams(stdio).and_then(|()| member.forget_init()).and_then(|()| keep(&member)) {
        Ok(()) => FREE,
        Err(error) => {
            complain(&format!("init: place {place}: {}\n", Reason(error)));
            LOST
        }
    };
    sys::fork(PidNamespace::Joined, cgroup, keeper)
        .map_err(|error| Failure::errno(FailureKind::Guest, "starting a member", error))
}

/// Has a member live, and waits until nothing is left of it.
fn keep<M: Machine>(member: &M) -> io::Result<()> {
    wait_until_free(member)?;
    let child = sys::fork_apart(|| u8::from(live(member).is_err()))?;
    let status = wait(&child);
    wait_until_free(member)?;
    // It was not even there.
    if status == ExitStatus::Code(0) { Ok(()) } else { Err(Errno::CHILD) }
}

fn wait_until_free<M: Machine>(member: &M) -> io::Result<()> {
    for _ in 0..LOOKS {
        if member.is_free() {
            return Ok(());
        }
        let _ = poll(&mut [], Some(&INTERVAL));
    }
    Err(Errno::BUSY)
}

fn live<M: Machine>(member: &M) -> io::Result<()> {
    // Without its keeper nobody would tell of it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let init_ns = clock_ns(Clock::Monotonic);
    member.enter()?;
    guest::run(member, member.connect(PORT)?, init_ns);
    Ok(())
}
