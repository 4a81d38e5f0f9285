//! A container that is on no network, in a guest that has an interface all the same: all guests go on from one template, and most have a
//! use for it. So such a container is in a network namespace that has a loopback interface and nothing else, and its /sys shows that one.
//!
//! An emulated kernel takes its time to make a network namespace, and to take one apart. So [`Alone::make`] does the former once for all
//! clones of a guest, and who is on a network [leaves](Alone::leave) it as it is.

use crate::network;
use crate::stage::{Mounts, make_sys};
use crate::sys::{Interface, enter_network, own_network_namespace};
use rustix::fd::{AsFd, IntoRawFd, OwnedFd};
use rustix::io;

/// Where its /sys waits.
const SYS: &str = "a";

/// A network namespace without a network.
#[derive(Debug)]
pub struct Alone {
    /// Where the guest's interface is.
    home: OwnedFd,
    namespace: OwnedFd,
    /// Not with every kernel.
    sys: Option<OwnedFd>,
}

impl Alone {
    /// Makes one, and comes back from there. In the empty root that the guest began with.
    ///
    /// # Errors
    /// As unshare(2), setns(2) and socket(2): the kernel has no network namespaces, or no networks at all.
    pub fn make() -> io::Result<Self> {
        let home = Interface::named("lo")?.namespace()?;
        own_network_namespace()?;
        let made = Self::here();
        enter_network(home.as_fd())?;
        made.map(|(namespace, sys)| Self { home, namespace, sys })
    }

    fn here() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let lo = Interface::named("lo")?;
        lo.up()?;
        Ok((lo.namespace()?, make_sys(SYS, true)))
    }

    /// Has it stay there to the end of the guest, with nobody in it.
    pub fn leave(self) {
        let _ = self.namespace.into_raw_fd();
    }

    fn enter(&mut self, mounts: &mut Mounts) -> io::Result<()> {
        enter_network(self.namespace.as_fd())?;
        mounts.show(self.sys.take());
        Ok(())
    }

    /// Does something where the guest's interface is, in a container that is not there.
    ///
    /// # Errors
    /// As what it does, and setns(2).
    pub fn outside(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        enter_network(self.home.as_fd())?;
        let done = act();
        enter_network(self.namespace.as_fd())?;
        done
    }
}

/// Has this process, and all that it starts, be on no network from now on: in the namespace that has been `prepared` for that, or in one
/// that is made now, and returned. A kernel that has none shows its interface, which leads nowhere and is down.
pub fn be_alone(prepared: Option<Alone>, mounts: &mut Mounts) -> Option<Alone> {
    let alone = prepared.map_or_else(Alone::make, Ok);
    let alone = alone.and_then(|mut alone| alone.enter(mounts).map(|()| alone));
    if alone.is_err() {
        network::leave();
    }
    alone.ok()
}
