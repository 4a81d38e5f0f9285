//! Where the threads of a confined process are: namespaces with a root directory of their own, a user of its own, what is reached of the
//! host's files. One thread makes that and is in it, with all that it starts from then on; another one joins it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use landlock::{RulesetCreated, RulesetStatus};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::privileges::{self, Keep, Who};
use super::reached::Reached;
use super::{Missing, SandboxError, host, jail, landlock as rules};

/// Namespaces of a thread, below /proc/thread-self/ns, that another one joins: of mounts if it has another root directory there, of
/// networks if it has left that of others.
const NAMESPACES: [(&str, LinkNameSpaceType); 4] = [
    ("mnt", LinkNameSpaceType::Mount),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("net", LinkNameSpaceType::Network),
];

/// See above.
pub struct Inside {
    /// For who joins.
    namespaces: Vec<(LinkNameSpaceType, OwnedFd)>,
    user: Option<u32>,
    rules: Option<RulesetCreated>,
    /// What the host does not have for it, one line for each.
    pub missing: Missing,
}

impl Inside {
    /// Makes it, with what is `reached` of the host's files, or all of them, for `user`. Without a network, if a thread `connects` to
    /// sockets and nothing else keeps it from those of others. The calling thread is in its namespaces from now on, and has its
    /// privileges until it is [held](Inside::hold).
    ///
    /// # Errors
    /// [`SandboxError`]. What the host does not let be made is none: that is missing.
    pub fn make(reached: Option<&Reached>, user: Option<u32>, connects: bool) -> Result<Self, SandboxError> {
        let mut inside = Self { namespaces: Vec::new(), user, rules: None, missing: Missing::new() };
        // Rules name files of the host, which have other places in the new root, or none.
        let rules = reached.map(|reached| rules::rules(reached).map_err(io::Error::other));
        inside.rules = rules.transpose().map_err(host("Landlock"))?;
        let left = jail::leave();
        let leaves = connects && (inside.rules.is_none() || !rules::scopes_sockets());
        let has_left = leaves && inside.tell("a network namespace", jail::leave_network());
        if left.is_ok() {
            // While there is /proc.
            let own = own_namespaces(has_left).map(|own| inside.namespaces = own);
            inside.tell("namespaces that its first thread could join", own);
        }
        let change_root = |()| reached.map(|reached| jail::change_root(&reached.by_path(), user)).transpose();
        let made = match left.and_then(change_root) {
            Ok(Some(owned)) => inside.tell("a user of its own", owned),
            not => {
                // Its root directory would be that of the namespace, which need not be the one that the process was started in.
                inside.namespaces.retain(|(kind, _)| *kind != LinkNameSpaceType::Mount);
                inside.tell("a root directory, namespaces and a user of its own", not.map(drop))
            }
        };
        inside.user = user.filter(|_| made);
        Ok(inside)
    }

    /// Nothing but the threads' privileges and filters.
    pub fn nowhere_else() -> Self {
        Self { namespaces: Vec::new(), user: None, rules: None, missing: Missing::new() }
    }

    /// Has the calling thread come to where the one is that made it. Tells what the host does not let it.
    pub fn join(&self) -> Missing {
        if self.namespaces.is_empty() {
            return Missing::new();
        }
        let before = std::env::current_dir();
        // Threads that share their root directory cannot leave it; some of the kernel's share this one's, perhaps, and open no files. Where
        // it stays, what is mounted from now on is no business of the thread's.
        let goes = self.namespaces.iter().any(|(kind, _)| *kind == LinkNameSpaceType::Mount);
        // SAFETY: descriptors and memory stay shared.
        let alone = unsafe { unshare_unsafe(if goes { UnshareFlags::FS } else { UnshareFlags::NEWNS }) };
        // With its kind, without which services are not let join any (systemd.exec(5), RestrictNamespaces).
        let join = |(kind, one): &(LinkNameSpaceType, OwnedFd)| move_into_link_name_space(one.as_fd(), Some(*kind));
        let joined = alone.and_then(|()| self.namespaces.iter().try_for_each(join));
        // Where that is there.
        let _ = before.map(std::env::set_current_dir);
        let lacks = |error| format!("the first thread's root directory and namespaces: {}", io::Error::from(error));
        joined.err().map(lacks).into_iter().collect()
    }

    /// Takes the privileges of the calling thread away but for those to `keep`, and leaves it with what is reached. What does not concern the
    /// thread alone is done after `others`. Tells what the host does not have for that.
    ///
    /// # Errors
    /// [`SandboxError`], also that of `others`. That it cannot be the user is none.
    pub fn hold(
        &self,
        who: Who<'_>,
        keep: Keep,
        others: impl FnOnce() -> Result<(), SandboxError>,
    ) -> Result<Missing, SandboxError> {
        let mut missing = Missing::new();
        privileges::narrow(self.user.is_some()).map_err(host("give up privileges"))?;
        others()?;
        match privileges::close(who, keep, self.user) {
            // In a user namespace that does not have that user. Nothing that it reaches is that user's, or it would be there.
            Err(error) if self.user.is_some() && error.kind() == io::ErrorKind::InvalidInput => {
                missing.push(format!("a user of its own: {error}"));
                privileges::close(who, keep, None).map_err(host("give up privileges"))?;
            }
            result => result.map_err(host("give up privileges"))?,
        }
        if let Some(rules) = &self.rules {
            let rules = rules.try_clone().map_err(host("Landlock"))?;
            let status = rules.restrict_self().map_err(io::Error::other).map_err(host("Landlock"))?;
            match status.ruleset {
                RulesetStatus::FullyEnforced => {}
                RulesetStatus::PartiallyEnforced => {
                    missing.push("parts of Landlock, which this kernel does not know".into());
                }
                RulesetStatus::NotEnforced => missing.push("Landlock, which this kernel does not have".into()),
            }
        }
        Ok(missing)
    }

    /// Whether the host gave something; what it did not give is missing.
    fn tell(&mut self, what: &str, result: io::Result<()>) -> bool {
        result.map_err(|error| self.missing.push(format!("{what}: {error}"))).is_ok()
    }
}

/// The calling thread's, that of networks if it is its own.
fn own_namespaces(network: bool) -> io::Result<Vec<(LinkNameSpaceType, OwnedFd)>> {
    let all = NAMESPACES.into_iter().filter(|(_, kind)| network || *kind != LinkNameSpaceType::Network);
    all.map(|(name, kind)| Ok((kind, File::open(format!("/proc/thread-self/ns/{name}"))?.into()))).collect()
}
