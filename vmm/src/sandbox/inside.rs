//! Where the threads of a confined process are: namespaces with a root directory of their own, a user of its own, what is reached of the
//! host's files. One thread makes that and is in it, with all that it starts from then on; another one joins it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use landlock::{RulesetCreated, RulesetStatus};
use rustix::process::{PidfdFlags, pidfd_open};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, gettid, move_into_link_name_space,
    move_into_thread_name_spaces, unshare_unsafe,
};

use super::privileges::{self, Keep, Who};
use super::reached::Reached;
use super::{Missing, SandboxError, host, jail, landlock as rules};

/// Namespaces of a thread that another one joins, and their names below /proc/thread-self/ns: of mounts if it has another root directory
/// there, of networks if it has left that of others.
const NAMESPACES: [(ThreadNameSpaceType, LinkNameSpaceType, &str); 4] = [
    (ThreadNameSpaceType::MOUNT, LinkNameSpaceType::Mount, "mnt"),
    (ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME, LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
    (ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION, LinkNameSpaceType::InterProcessCommunication, "ipc"),
    (ThreadNameSpaceType::NETWORK, LinkNameSpaceType::Network, "net"),
];

/// For pidfd_open(2), of a thread: Linux 6.9.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// See above.
pub struct Inside {
    /// For who joins.
    namespaces: Option<Namespaces>,
    user: Option<u32>,
    rules: Option<RulesetCreated>,
    /// What the host does not have for it, one line for each.
    pub missing: Missing,
}

impl Inside {
    /// Makes it, with what is `reached` of the host's files, or all of them, for `user`. Without a network, if a thread `connects` to
    /// sockets and nothing else keeps it from those of others. The calling thread is in its namespaces from now on, and has its
    /// privileges until it is [narrowed](Inside::narrow) and [closed](Inside::close).
    ///
    /// # Errors
    /// [`SandboxError`]. What the host does not let be made is none: that is missing.
    pub fn make(reached: Option<&Reached>, user: Option<u32>, connects: bool) -> Result<Self, SandboxError> {
        let mut inside = Self { namespaces: None, user, rules: None, missing: Missing::new() };
        // Rules name files of the host, which have other places in the new root, or none.
        let rules = reached.map(|reached| rules::rules(reached).map_err(io::Error::other));
        inside.rules = rules.transpose().map_err(host("Landlock"))?;
        let left = jail::leave();
        let leaves = connects && (inside.rules.is_none() || !rules::scopes_sockets());
        let has_left = leaves && inside.tell("a network namespace", jail::leave_network());
        if left.is_ok() {
            // While there is /proc.
            let own = Namespaces::own(has_left).map(|own| inside.namespaces = Some(own));
            inside.tell("namespaces that its first thread could join", own);
        }
        let change_root = |()| reached.map(|reached| jail::change_root(&reached.by_path(), user)).transpose();
        let made = match left.and_then(change_root) {
            Ok(Some(owned)) => inside.tell("a user of its own", owned),
            not => {
                // Its root directory would be that of the namespace, which need not be the one that the process was started in.
                inside.namespaces.iter_mut().for_each(Namespaces::leave_out_mounts);
                inside.tell("a root directory, namespaces and a user of its own", not.map(drop))
            }
        };
        inside.user = user.filter(|_| made);
        Ok(inside)
    }

    /// Nothing but the threads' privileges and filters.
    pub fn nowhere_else() -> Self {
        Self { namespaces: None, user: None, rules: None, missing: Missing::new() }
    }

    /// Has the calling thread come to where the one is that made it. Tells what the host does not let it.
    pub fn join(&self) -> Missing {
        let Some(namespaces) = &self.namespaces else {
            return Missing::new();
        };
        let before = std::env::current_dir();
        // Threads that share their root directory cannot leave it; some of the kernel's share this one's, perhaps, and open no files. Where
        // it stays, what is mounted from now on is no business of the thread's.
        let goes = namespaces.has_mounts();
        // SAFETY: descriptors and memory stay shared.
        let alone = unsafe { unshare_unsafe(if goes { UnshareFlags::FS } else { UnshareFlags::NEWNS }) };
        let joined = alone.and_then(|()| namespaces.join());
        // Where that is there.
        let _ = before.map(std::env::set_current_dir);
        let lacks = |error| format!("the first thread's root directory and namespaces: {}", io::Error::from(error));
        joined.err().map(lacks).into_iter().collect()
    }

    /// Takes of the calling thread's privileges what may go at any time.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn narrow(&self) -> Result<(), SandboxError> {
        privileges::narrow(self.user.is_some()).map_err(host("give up privileges"))
    }

    /// Takes the others away as well but for those to `keep`, and leaves the thread, which has been [narrowed](Inside::narrow), with what is
    /// reached. Tells what the host does not have for that.
    ///
    /// # Errors
    /// [`SandboxError`]. That it cannot be the user is none.
    pub fn close(&self, who: Who<'_>, keep: Keep) -> Result<Missing, SandboxError> {
        let mut missing = Missing::new();
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

fn own_kinds(network: bool) -> impl Iterator<Item = &'static (ThreadNameSpaceType, LinkNameSpaceType, &'static str)> {
    NAMESPACES.iter().filter(move |(kind, ..)| network || *kind != ThreadNameSpaceType::NETWORK)
}

/// Namespaces that are to be joined, always with their kinds: without those, services are not let join any (systemd.exec(5),
/// RestrictNamespaces).
enum Namespaces {
    /// Those of a thread, as long as it is there.
    Of(OwnedFd, ThreadNameSpaceType),
    /// Before Linux 6.9: one by one.
    Each(Vec<(LinkNameSpaceType, OwnedFd)>),
}

impl Namespaces {
    /// The calling thread's, that of networks if it is its own.
    fn own(network: bool) -> io::Result<Self> {
        // A tenth of the time that it takes to look them up in /proc, where nobody has looked for this thread yet.
        Self::of_thread(network).or_else(|_| Self::one_by_one(network))
    }

    fn of_thread(network: bool) -> io::Result<Self> {
        let thread = pidfd_open(gettid(), PidfdFlags::from_bits_retain(PIDFD_THREAD))?;
        Ok(Self::Of(thread, own_kinds(network).map(|(kind, ..)| *kind).collect()))
    }

    fn one_by_one(network: bool) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/thread-self/ns/{name}")).map(OwnedFd::from);
        Ok(Self::Each(own_kinds(network).map(|(_, kind, name)| Ok((*kind, open(name)?))).collect::<io::Result<_>>()?))
    }

    fn leave_out_mounts(&mut self) {
        match self {
            Self::Of(_, kinds) => kinds.remove(ThreadNameSpaceType::MOUNT),
            Self::Each(all) => all.retain(|(kind, _)| *kind != LinkNameSpaceType::Mount),
        }
    }

    fn has_mounts(&self) -> bool {
        match self {
            Self::Of(_, kinds) => kinds.contains(ThreadNameSpaceType::MOUNT),
            Self::Each(all) => all.iter().any(|(kind, _)| *kind == LinkNameSpaceType::Mount),
        }
    }

    /// Has the calling thread come there.
    fn join(&self) -> rustix::io::Result<()> {
        match self {
            Self::Of(thread, kinds) => move_into_thread_name_spaces(thread.as_fd(), *kinds),
            Self::Each(all) => {
                all.iter().try_for_each(|(kind, one)| move_into_link_name_space(one.as_fd(), Some(*kind)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::sandbox::may_begin_early;

    /// What the calling thread is in, in the order of [`NAMESPACES`].
    fn places() -> Vec<std::path::PathBuf> {
        let place = |(_, _, name): &(_, _, _)| std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
        NAMESPACES.iter().map(place).collect()
    }

    /// A kernel without [`PIDFD_THREAD`].
    fn is_old() -> bool {
        let system = rustix::system::uname();
        let release = system.release().to_string_lossy();
        let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) < (Some(6), Some(9))
    }

    /// As one thread's namespaces are joined where there is [`PIDFD_THREAD`], and where there is not.
    #[test]
    fn group_11_a_thread_comes_to_where_another_is() {
        if !may_begin_early() {
            return println!("SKIP group_11_a_thread_comes_to_where_another_is: these privileges do not do for it");
        }
        let comes = |own: fn(bool) -> io::Result<Namespaces>, mounts: bool| {
            let ((tell, made), (done, is_done)) = (channel(), channel::<()>());
            let leaves = move || {
                let left = jail::leave().and_then(|()| jail::leave_network());
                tell.send(left.map(|()| own(true).map(|own| (own, places())))).unwrap();
                // It is there as long as somebody comes.
                let _ = is_done.recv();
            };
            let left = thread::spawn(leaves);
            let (mut namespaces, there) = match made.recv().unwrap() {
                Ok(Err(error)) if !is_old() => panic!("{error}"),
                Ok(Ok(made)) => made,
                Ok(Err(error)) | Err(error) => {
                    return println!("SKIP group_11_a_thread_comes_to_where_another_is: {error}");
                }
            };
            if !mounts {
                namespaces.leave_out_mounts();
            }
            let inside = Inside { namespaces: Some(namespaces), ..Inside::nowhere_else() };
            let (missing, here) = thread::spawn(move || (inside.join(), places())).join().unwrap();
            assert_eq!((missing, here[0] == there[0], &here[1..]), (Missing::new(), mounts, &there[1..]));
            drop(done);
            left.join().unwrap();
        };
        let before = places();
        for own in [Namespaces::of_thread, Namespaces::one_by_one] {
            comes(own, true);
            comes(own, false);
        }
        assert_eq!(places(), before);
    }
}
