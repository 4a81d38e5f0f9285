//! The network of a container that has no microVM: an interface that init makes in the container's namespace and gives to this process, and what a
//! microVM's device would have behind it ([`vmm::NetworkLink`]), on a thread of its own.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::rundir::note_helper;
use anyhow::{Context, anyhow};
use guest_protocol::contained::LINK_PORT;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;
use vmm::{NetworkLink, NetworkRates};

/// It is pulled out when this is dropped.
pub struct Cable {
    stop: OwnedFd,
    rates: NetworkRates,
    thread: Option<JoinHandle<()>>,
}

impl Cable {
    /// Opens what is behind `interface`, one of a section of a machine's, and waits for the other end at the socket for it in `sockets`.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn lay(interface: &Value, sockets: &Path) -> anyhow::Result<Self> {
        let link = NetworkLink::open(interface)?;
        let rates = link.rates();
        if let (Some(pid), Some(directory)) = (link.helper(), sockets.parent()) {
            note_helper(directory, pid);
        }
        let path = sockets.join(format!("vsock_{LINK_PORT}"));
        let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
        listener.set_nonblocking(true)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let ours = stop.try_clone()?;
        let pass = move || {
            let passed = match meet(&listener, stop.as_fd()) {
                Ok(Some(tap)) => link.run(tap, stop.as_fd()).context("the container's interface"),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = passed {
                tracing::warn!("network: {error:#}");
            }
        };
        let thread = thread::Builder::new().name("network".into()).spawn(pass).context("cannot start a thread")?;
        Ok(Cable { stop: ours, rates, thread: Some(thread) })
    }

    /// How much may pass.
    pub fn rates(&self) -> NetworkRates {
        self.rates.clone()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        // What was behind it, ports of this host among it, is free then.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Waits for init, and the tap that it has made. None: it is not to be waited for any more.
fn meet(listener: &UnixListener, stop: BorrowedFd<'_>) -> anyhow::Result<Option<OwnedFd>> {
    if !ready(listener.as_fd(), stop)? {
        return Ok(None);
    }
    let (socket, _) = listener.accept().context("the way of the container's interface")?;
    if !ready(socket.as_fd(), stop)? {
        return Ok(None);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&socket, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    let mut given = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    given.next().map(Some).ok_or_else(|| anyhow!("init gave no interface"))
}

/// Waits until there is something to read. False: from `stop`.
fn ready(from: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(&from, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds[1].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
