//! The network device (virtio 1.3, 5.1): one pair of queues, and a backend that takes packets and has some.
//!
//! - [`config`]: the section and flag, and how they become a device;
//! - [`backend`]: what a backend is; [`tap`]: a tap interface of the host; [`stream`]: frames over a unix socket;
//!   [`passt`]: the program at the other end of that, for networking without privileges;
//! - [`checksum`]: what is left to do of a packet whose sender relies on the device;
//! - this file: the device.
//!
//! Every backend takes what the device offers, so that a device can get another one: tap leaves checksums and segmentation
//! to the host's kernel; the stream finishes checksums, and passes large segments on as they are.
//!
//! The backend's descriptor is watched edge-triggered through an inner epoll set: that there is something to read is
//! remembered until the guest has room, and one packet waits here. Packets for which the guest never has room, and those of the guest that the
//! backend refuses, are dropped, as on any network.

mod backend;
mod checksum;
mod config;
pub mod passt;
mod stream;
mod tap;

use std::io;
use std::os::fd::AsRawFd;

use serde_json::Value;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use backend::{Backend, HEADER, MOST};
pub use config::KIND;
pub use stream::Stream;

use super::chain::Chain;
use super::limit::Direction;
use super::table::check_state_version;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};

const STATE_VERSION: u32 = 1;
const RX: usize = 0;
const TX: usize = 1;
/// Most receive buffers of one packet: fewer than an event may take.
const BUFFERS: usize = 64;
/// Where `num_buffers` is in the header (5.1.6.1).
const NUM_BUFFERS: usize = 10;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const FEATURES: u64 = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6 | F_MRG_RXBUF;

/// The device.
pub struct Net {
    features: u64,
    /// The MAC address; zeros if it offers none.
    config: [u8; 6],
    /// None: nothing is at the other end of the cable.
    backend: Option<Box<dyn Backend>>,
    epoll: Epoll,
    /// The backend may have packets.
    readable: bool,
    /// The driver takes packets in several buffers.
    mergeable: bool,
    /// A packet from the backend that the guest has no room for yet, header first.
    packet: Box<[u8]>,
    /// Bytes of it; 0: there is none.
    len: usize,
    /// Chains of the packet, or of the batch, at hand. Empty between calls.
    used: Vec<(u16, u32)>,
}

/// What became of a packet for the guest.
enum Delivery {
    Done,
    /// Until the guest gives buffers, or the next event.
    Waits,
}

impl Net {
    /// A device with the address `mac`, if it is to offer one, in front of `backend`.
    pub fn new(mac: Option<[u8; 6]>, backend: Option<Box<dyn Backend>>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        if let Some(backend) = &backend {
            let event = EpollEvent::new(EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED, 0);
            epoll.ctl(ControlOperation::Add, backend.fd(), event)?;
        }
        Ok(Net {
            features: FEATURES | mac.map_or(0, |_| F_MAC),
            config: mac.unwrap_or_default(),
            backend,
            epoll,
            readable: true,
            mergeable: false,
            packet: vec![0; MOST].into_boxed_slice(),
            len: 0,
            used: Vec::with_capacity(128),
        })
    }

    /// Passes packets to the guest until there are no more, or no room.
    fn receive(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        let Some(backend) = &mut self.backend else { return Ok(()) };
        loop {
            if self.len == 0 {
                if !self.readable {
                    return Ok(());
                }
                match backend.receive(&mut self.packet) {
                    Ok(Some(len)) => self.len = len,
                    Ok(None) => self.readable = false,
                    Err(e) => {
                        tracing::warn!("net: nothing more is received: {e}");
                        self.readable = false;
                    }
                }
                continue;
            }
            if !io.admits(RX, Direction::ToGuest) {
                return Ok(());
            }
            let packet = &mut self.packet[..self.len];
            match deliver(packet, self.mergeable, &mut self.used, io)? {
                Delivery::Done => {
                    io.spend(Direction::ToGuest, self.len.saturating_sub(HEADER) as u64);
                    self.len = 0;
                }
                Delivery::Waits => return Ok(()),
            }
        }
    }

    /// Takes the guest's packets, as long as the backend does.
    fn transmit(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        self.used.clear();
        let taken = self.take(io);
        let given_back = io.queues[TX].push_together(io.mem, &self.used);
        taken?;
        Ok(given_back?)
    }

    fn take(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        loop {
            if let Some(backend) = &mut self.backend
                && !backend.ready()
            {
                return Ok(());
            }
            let Some(chain) = io.queues[TX].pop(io.mem)? else { return Ok(()) };
            if !io.admits(TX, Direction::FromGuest) {
                io.queues[TX].undo_pop(chain.head());
                return Ok(());
            }
            io.spend(Direction::FromGuest, u64::from(chain.readable_len()).saturating_sub(HEADER as u64));
            if let Err(e) = self.send(&chain) {
                tracing::debug!(len = chain.readable_len(), "net: packet dropped: {e}");
                io.queues[TX].count_error();
            }
            self.used.push((chain.head(), 0));
        }
    }

    fn send(&mut self, chain: &Chain) -> io::Result<()> {
        if !(HEADER + 1..=MOST).contains(&(chain.readable_len() as usize)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.backend.as_mut().map_or(Ok(()), |backend| backend.send(chain.readable()))
    }
}

/// Puts a packet into the guest's buffers: all of it at once, or nothing.
fn deliver(
    packet: &mut [u8],
    mergeable: bool,
    used: &mut Vec<(u16, u32)>,
    io: &mut Io,
) -> Result<Delivery, DeviceFault> {
    let queue = &mut io.queues[RX];
    let mut first: Option<Chain> = None;
    let mut done = 0;
    used.clear();
    while done < packet.len() {
        let next = queue.pop(io.mem)?;
        let came = next.is_some();
        if let Some(chain) = next {
            let written = chain.writable().write(&packet[done..]);
            used.push((chain.head(), written as u32));
            done += written;
            first.get_or_insert(chain);
        }
        if done == packet.len() {
            break;
        }
        let most = if mergeable { BUFFERS.min(queue.size().into()) } else { 1 };
        if came && used.len() < most {
            continue;
        }
        // What was written into them is nobody's; they wait for the next packet.
        let never = used.len() >= most && most > 0;
        for (head, _) in used.drain(..).rev() {
            queue.undo_pop(head);
        }
        if never {
            queue.count_error();
        }
        return Ok(if never { Delivery::Done } else { Delivery::Waits });
    }
    // 1 also without the feature (5.1.6.4.1).
    let count = (used.len() as u16).to_le_bytes();
    if let Some(chain) = &first {
        chain.writable().split_at(NUM_BUFFERS).1.write(&count);
    }
    queue.push_together(io.mem, used)?;
    Ok(Delivery::Done)
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "net", id: 1, features: self.features, queue_sizes: &[256, 256], prompt: false }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.epoll.as_raw_fd(), token: 0 }]
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        self.mergeable = features & F_MRG_RXBUF != 0;
        self.readable = true;
        self.backend.as_mut().map_or(Ok(()), |backend| {
            backend.accept(features).map_err(|source| DeviceFault::Host { what: "offloads", source })
        })
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        if index == RX { self.receive(io) } else { self.transmit(io) }
    }

    fn process_fd(&mut self, _: u16, io: &mut Io) -> Result<(), DeviceFault> {
        let mut event = [EpollEvent::default()];
        match self.epoll.wait(0, &mut event) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(source) => return Err(DeviceFault::Host { what: "epoll_wait", source }),
        }
        self.readable = true;
        self.receive(io)?;
        self.transmit(io)
    }

    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        // Also before a snapshot: a network may lose a packet, and a clone is not to get one of the original's.
        self.len = 0;
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(serde_json::json!({ "version": STATE_VERSION }))
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version("net", state, STATE_VERSION)
    }
}

#[cfg(test)]
mod tests;
