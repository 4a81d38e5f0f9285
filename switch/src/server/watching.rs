//! What the loop listens to, and how it knows again what something has happened to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::link::Link;

/// What something has happened to, with its number in the bits above: a member's lease, its port, its uplink.
pub const LEASE: u64 = 0;
pub const PORT: u64 = 1;
pub const UPLINK: u64 = 2;
/// A connection that has not said what it is.
pub const PENDING: u64 = 3;
/// How many kinds there are, by which a number is multiplied.
pub const KINDS: u64 = 4;
/// The socket that takes connections, which is the only one.
pub const LISTENER: u64 = u64::MAX;

/// Has the loop listen to a socket.
pub fn watch(epoll: &OwnedFd, socket: &impl AsFd, key: u64, kind: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, socket, EventData::new_u64(key * KINDS + kind), EventFlags::IN)?)
}

/// Has the loop listen to a link for `wanted`, or not at all.
pub fn watch_link(epoll: &OwnedFd, link: &mut Link, key: u64, kind: u64, wanted: Option<EventFlags>) {
    // That it is listened to at all: hanging up is always told.
    const LISTENS: EventFlags = EventFlags::HUP;
    let now = wanted.map_or(EventFlags::empty(), |wanted| wanted | LISTENS);
    if now == link.watched {
        return;
    }
    let data = EventData::new_u64(key * KINDS + kind);
    let done = match (link.watched.is_empty(), wanted) {
        (_, None) => epoll::delete(epoll, &*link),
        (true, Some(wanted)) => epoll::add(epoll, &*link, data, wanted),
        (false, Some(wanted)) => epoll::modify(epoll, &*link, data, wanted),
    };
    if done.is_ok() {
        link.watched = now;
    }
}
