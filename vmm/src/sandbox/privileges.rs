//! Capabilities and other rights of a thread that go, and do not come back.

use std::io;

use devices::worker::Work;
use rustix::process::{DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::user;
use crate::process::Lineage;

/// What a thread keeps of the capabilities that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// Those to act on files for their owners, as a guest's root does in what it shares with the host.
    Files,
}

impl Keep {
    /// What a worker needs.
    pub fn for_work(work: &Work) -> Self {
        if work.for_users { Keep::Files } else { Keep::Nothing }
    }
}

/// Acting for any user on files.
const FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Whose rights go.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// The calling thread's, and those of threads that it starts.
    Thread,
    /// The process's first thread's, with what is the process's as a whole: after those of threads that are there already. With who started
    /// the process, if it changes its user.
    Process(Option<&'a Lineage>),
}

/// What of [`close`] may be done at any time: no program that the calling thread could start would have more rights than it has, and no core
/// dump of the process holds a guest's memory. If it is to have another user, no program has any capability any more.
pub fn narrow(changes_user: bool) -> io::Result<()> {
    set_no_new_privs(true)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    if changes_user {
        // With the old user goes what it takes.
        empty_bounding_set(capabilities(None)?);
    }
    Ok(())
}

/// Nobody but root may look into the process, which has been [narrowed](narrow). It is `user`'s, if it says, as long as who started the
/// process lives. Capabilities go but for those in `keep`.
pub fn close(who: Who<'_>, keep: Keep, user: Option<u32>) -> io::Result<()> {
    match (user, who) {
        (Some(user), Who::Process(Some(lineage))) => user::become_one_as_process(user, lineage)?,
        (Some(user), _) => user::become_one(user)?,
        (None, Who::Process(_)) if geteuid().is_root() => set_dumpable_behavior(DumpableBehavior::NotDumpable)?,
        // /proc/self would be root's then, and with it what a snapshot is made from.
        (None, _) => {}
    }
    give_up(keep)
}

/// What a program could have at most that one starts. Only who has SETPCAP can make it smaller; without it, there is nothing to gain from it.
fn empty_bounding_set(has: CapabilitySets) {
    if has.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            // A kernel that does not know it has nothing to take away.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
}

/// Gives up the calling thread's capabilities but for those in `keep`, and those that it starts get no others.
pub fn give_up(keep: Keep) -> io::Result<()> {
    let has = capabilities(None)?;
    let kept = match keep {
        Keep::Nothing => CapabilitySet::empty(),
        Keep::Files => has.permitted & FILES,
    };
    if has.permitted == kept && has.effective == kept && has.inheritable.is_empty() {
        return Ok(());
    }
    empty_bounding_set(has);
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?;
    Ok(())
}
