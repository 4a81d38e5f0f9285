//! The network device (virtio 1.3, 5.1): pairs of queues, and a backend that takes packets and has some.
//!
//! - [`config`]: the section and flag, and how they become a device;
//! - [`backend`]: what a backend is; [`tap`]: a tap interface of the host; [`stream`]: frames over a unix socket;
//!   [`passt`]: the program at the other end of that, for networking without privileges; [`switch`]: another, which connects microVMs;
//! - [`pair`]: packets through two queues; [`control`]: the commands of the control queue;
//! - [`link`]: the same backends without a device, for a container of the host's own kernel;
//! - [`egress`]: which of the guest's packets may leave;
//! - [`checksum`]: what is left to do of a packet whose sender relies on the device;
//! - this file: the device.
//!
//! Every backend takes what the device offers, so that a device can get another one: tap leaves checksums and segmentation
//! to the host's kernel; the stream finishes checksums, and passes large segments on as they are.
//!
//! The backend's descriptors are watched edge-triggered through an inner epoll set: that there is something to read is
//! remembered until the guest has room. Packets for which the guest never has room, and those of the guest that may not leave or the
//! backend refuses, are dropped, as on any network.

mod backend;
mod checksum;
mod config;
mod control;
pub mod egress;
mod link;
mod pair;
pub mod passt;
mod stream;
mod switch;
pub mod tap;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use backend::{Backend, Packet};
pub use config::{KIND, Opened, descriptors};
use control::Command;
use egress::Egress;
pub use link::{Link, Rates as LinkRates};
use pair::{Pair, Work};
pub use stream::Stream;

use super::table::check_state_version;
use super::{DeviceError, DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};

const STATE_VERSION: u32 = 2;
/// Most pairs of queues.
pub const MOST_PAIRS: usize = 8;
/// Queues of as many pairs, and the control queue.
static QUEUES: [u16; 2 * MOST_PAIRS + 1] = [256; 2 * MOST_PAIRS + 1];

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;
const FEATURES: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_MRG_RXBUF
    | F_CTRL_VQ
    | F_CTRL_MAC_ADDR;

/// What the driver is to find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offer {
    /// The MAC address, if the driver is not to make one up.
    pub mac: Option<[u8; 6]>,
    /// Most bytes of an IP packet, if the driver is told.
    pub mtu: Option<u16>,
    /// Pairs of queues, up to [`MOST_PAIRS`]; 0 is 1.
    pub pairs: u16,
}

impl Offer {
    fn features(&self) -> u64 {
        let offered = |feature, there| if there { feature } else { 0 };
        FEATURES
            | offered(F_MAC, self.mac.is_some())
            | offered(F_MTU, self.mtu.is_some())
            | offered(F_MQ, self.pairs > 1)
    }

    /// The configuration space (5.1.4); a field that is not offered is 0.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.unwrap_or_default());
        if self.pairs > 1 {
            config[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        }
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }
}

/// The device.
pub struct Net {
    offer: Offer,
    config: [u8; 12],
    /// The address that the driver has set.
    mac: Option<[u8; 6]>,
    pairs: Vec<Pair>,
    /// Pairs that the driver uses: packets come in by these.
    active: usize,
    /// None: nothing is at the other end of the cable.
    backend: Option<Box<dyn Backend>>,
    egress: Option<Egress>,
    epoll: Epoll,
    /// What the driver has accepted.
    accepted: u64,
}

/// What of it is saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    /// Pairs in use.
    pairs: usize,
    /// The address, if the driver has set one.
    mac: Option<[u8; 6]>,
}

impl Net {
    /// A device in front of `backend`, whose guest may reach what `egress` says.
    pub fn new(offer: Offer, backend: Option<Box<dyn Backend>>, egress: Option<Egress>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let pairs = usize::from(offer.pairs).clamp(1, MOST_PAIRS);
        if let Some(backend) = &backend {
            let interest = EventSet::IN | EventSet::EDGE_TRIGGERED | backend.interest();
            for (pair, fd) in backend.fds().into_iter().take(pairs).enumerate() {
                epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(interest, pair as u64))?;
            }
        }
        Ok(Net {
            config: offer.config(),
            offer,
            mac: None,
            pairs: (0..pairs).map(Pair::new).collect(),
            active: 1,
            backend,
            egress,
            epoll,
            accepted: 0,
        })
    }

    /// Index of the control queue: behind the pairs that the driver knows of (5.1.2).
    fn control_queue(&self) -> usize {
        if self.accepted & F_MQ == 0 { 2 } else { 2 * self.pairs.len() }
    }

    /// Has a pair work, if there is something at the other end of the cable.
    fn work(
        &mut self,
        pair: usize,
        io: &mut Io,
        what: fn(&mut Pair, &mut Work) -> Result<(), DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let mut nobody = Unplugged;
        let backend = self.backend.as_deref_mut().unwrap_or(&mut nobody);
        let mergeable = self.accepted & F_MRG_RXBUF != 0;
        let mut work = Work { backend, egress: self.egress.as_mut(), mergeable, io };
        self.pairs.get_mut(pair).map_or(Ok(()), |pair| what(pair, &mut work))
    }

    /// Answers the driver's commands.
    fn obey(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            let answer = match Command::of(&chain) {
                Some(Command::Mac(mac)) => {
                    self.set_mac(Some(mac));
                    control::OK
                }
                Some(Command::Pairs(pairs)) if self.accepted & F_MQ != 0 => self.use_pairs(pairs.into()),
                _ => control::ERR,
            };
            let written = chain.writable().write(&[answer]);
            if answer != control::OK || written == 0 {
                io.queues[index].count_error();
            }
            io.queues[index].push(io.mem, chain.head(), written as u32)?;
        }
        Ok(())
    }

    /// The driver's address, or the one that it was offered.
    fn set_mac(&mut self, mac: Option<[u8; 6]>) {
        self.mac = mac;
        self.config = self.offer.config();
        if let Some(mac) = mac {
            self.config[..6].copy_from_slice(&mac);
        }
    }

    fn use_pairs(&mut self, pairs: usize) -> u8 {
        if !(1..=self.pairs.len()).contains(&pairs) {
            return control::ERR;
        }
        match self.backend.as_mut().map_or(Ok(()), |backend| backend.use_pairs(pairs)) {
            Ok(()) => {
                self.active = pairs;
                control::OK
            }
            Err(e) => {
                tracing::warn!(pairs, "net: pairs of queues: {e}");
                control::ERR
            }
        }
    }
}

/// Behind an interface that leads nowhere.
struct Unplugged;

impl Backend for Unplugged {
    fn fds(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn interest(&self) -> EventSet {
        EventSet::empty()
    }

    fn accept(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _: usize, _: &[VolatileSlice]) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn ready(&mut self) -> bool {
        true
    }

    fn send(&mut self, _: usize, _: Packet) -> io::Result<()> {
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        let queue_sizes = &QUEUES[..2 * self.pairs.len() + 1];
        DeviceInfo { name: "net", id: 1, features: self.offer.features(), queue_sizes, prompt: false }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn adjust(&mut self, config: &Value) -> Result<(), DeviceError> {
        match (config::egress(config)?, &mut self.egress) {
            (Some(rules), Some(egress)) => egress.set_rules(rules),
            (rules, egress) => *egress = rules.map(Egress::new),
        }
        Ok(())
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.epoll.as_raw_fd(), token: 0 }]
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        self.accepted = features;
        self.pairs.iter_mut().for_each(|pair| pair.readable = true);
        let Some(backend) = &mut self.backend else { return Ok(()) };
        if let Err(e) = backend.use_pairs(self.active) {
            // What comes in by others is lost.
            tracing::warn!(pairs = self.active, "net: pairs of queues: {e}");
        }
        backend.accept(features).map_err(|source| DeviceFault::Host { what: "offloads", source })
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        match index {
            _ if index == self.control_queue() => self.obey(index, io),
            _ if index % 2 == 0 && index / 2 >= self.active => Ok(()),
            _ if index % 2 == 0 => self.work(index / 2, io, Pair::receive),
            _ => self.work(index / 2, io, Pair::transmit),
        }
    }

    fn process_fd(&mut self, _: u16, io: &mut Io) -> Result<(), DeviceFault> {
        let mut events = [EpollEvent::default(); MOST_PAIRS];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(source) => return Err(DeviceFault::Host { what: "epoll_wait", source }),
        };
        for event in &events[..count] {
            let pair = event.data() as usize;
            if let Some(pair) = self.pairs.get_mut(pair) {
                pair.readable = true;
            }
            // A second pair's queues are no pair's if the driver knows of one alone.
            if pair < self.active {
                self.work(pair, io, Pair::receive)?;
            }
            if event.event_set().contains(EventSet::OUT) {
                for pair in 0..if self.accepted & F_MQ == 0 { 1 } else { self.pairs.len() } {
                    self.work(pair, io, Pair::transmit)?;
                }
            }
        }
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Io, forget: bool) -> Result<(), DeviceFault> {
        // Also before a snapshot: a network may lose a packet, and a clone is not to get one of the original's.
        self.pairs.iter_mut().for_each(Pair::forget);
        if forget {
            self.active = 1;
            self.set_mac(None);
        }
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        let saved = Saved { version: STATE_VERSION, pairs: self.active, mac: self.mac };
        serde_json::to_value(saved).map_err(|e| StateError { device: "net", reason: e.to_string() })
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version("net", state, STATE_VERSION)?;
        let wrong = |reason: String| StateError { device: "net", reason };
        let saved: Saved = serde_json::from_value(state.clone()).map_err(|e| wrong(e.to_string()))?;
        if !(1..=self.pairs.len()).contains(&saved.pairs) {
            return Err(wrong(format!("{} pairs of queues of {}", saved.pairs, self.pairs.len())));
        }
        self.active = saved.pairs;
        self.set_mac(saved.mac);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
