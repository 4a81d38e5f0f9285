//! A pair of the device's queues: packets to the guest and from it.
//!
//! A packet for the guest goes right into its buffers, as many as the largest one needs, which are asked for ahead and kept
//! for the next packet. Where the guest has not that many, or somebody has to look at packets before the guest can change
//! them, one packet waits here until it has room.

use std::io;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use super::backend::{Backend, HEADER, MOST, Packet};
use super::egress::{Egress, HEAD};
use crate::virtio::chain::Chain;
use crate::virtio::iovec::MOST_SLICES;
use crate::virtio::limit::Direction;
use crate::virtio::{DeviceFault, Io};

/// Most receive buffers of one packet: fewer than an event may take.
const BUFFERS: usize = 64;
/// Where `num_buffers` is in the header (5.1.6.1).
const NUM_BUFFERS: usize = 10;
/// The driver is shown used chains when there are so many, or there is nothing more to do.
const SHOWN: usize = 32;

/// The device's side of two queues.
pub(super) struct Pair {
    /// Its way into the backend.
    way: usize,
    /// Its receive queue; the transmit queue is the next one.
    rx: usize,
    /// The backend may have packets.
    pub readable: bool,
    /// A packet from the backend that the guest has no room for yet, header first. Room for the largest one, from the first that is taken so:
    /// most guests that have an interface never need it.
    packet: Vec<u8>,
    /// Bytes of it; 0: there is none.
    len: usize,
    /// Chains to be given back. Empty between calls.
    used: Vec<(u16, u32)>,
}

/// Chains that were taken ahead of the packets for them; the first so many are used.
struct Ahead<'m> {
    chains: SmallVec<[Chain<'m>; 24]>,
    first: usize,
}

impl<'m> Ahead<'m> {
    fn unused(&self) -> &[Chain<'m>] {
        &self.chains[self.first..]
    }
}

/// How filling the guest's buffers ended.
enum Direct {
    /// There is nothing to be done until the next event.
    Rests,
    /// The guest's buffers may be too small for the next packet.
    NoRoom,
}

/// What became of a packet for the guest.
enum Delivery {
    Done,
    /// Until the guest gives buffers, or the next event.
    Waits,
}

/// What a pair works with.
pub(super) struct Work<'a, 'i> {
    pub backend: &'a mut dyn Backend,
    pub egress: Option<&'a mut Egress>,
    /// The driver takes packets in several buffers.
    pub mergeable: bool,
    pub io: &'a mut Io<'i>,
}

impl Pair {
    pub fn new(index: usize) -> Self {
        Pair { way: index, rx: 2 * index, readable: true, packet: Vec::new(), len: 0, used: Vec::with_capacity(256) }
    }

    /// Loses the packet that waits.
    pub fn forget(&mut self) {
        self.len = 0;
    }

    /// Passes packets to the guest until there are no more, or no room.
    pub fn receive(&mut self, work: &mut Work) -> Result<(), DeviceFault> {
        let direct = work.egress.is_none() && !work.io.limiter.is_limited();
        loop {
            if self.len == 0 {
                if !self.readable || (direct && matches!(self.receive_directly(work)?, Direct::Rests)) {
                    return Ok(());
                }
                self.packet.resize(MOST, 0);
                let room = [VolatileSlice::from(&mut self.packet[..])];
                let came = work.backend.receive(self.way, &room);
                match self.came(came) {
                    Some(len) => self.len = len,
                    None => return Ok(()),
                }
                if let Some(egress) = &mut work.egress {
                    egress.learn(&self.packet[..self.len]);
                }
            }
            if !work.io.admits(self.rx, Direction::ToGuest) {
                return Ok(());
            }
            match self.deliver(work)? {
                Delivery::Done => {
                    work.io.spend(Direction::ToGuest, self.len.saturating_sub(HEADER) as u64);
                    self.len = 0;
                }
                Delivery::Waits => return Ok(()),
            }
        }
    }

    fn came(&mut self, came: io::Result<Option<usize>>) -> Option<usize> {
        let came = came.unwrap_or_else(|e| {
            tracing::warn!("net: nothing more is received: {e}");
            None
        });
        self.readable = came.is_some();
        came
    }

    /// Has the backend put packets into the guest's buffers, while those there are would take the largest one.
    fn receive_directly(&mut self, work: &mut Work) -> Result<Direct, DeviceFault> {
        let mem = work.io.mem;
        let mut ahead = Ahead { chains: SmallVec::new(), first: 0 };
        self.used.clear();
        let outcome = self.fill(work, &mut ahead);
        let queue = &mut work.io.queues[self.rx];
        let given_back = queue.push_together(mem, &self.used);
        ahead.chains[ahead.first..].iter().rev().for_each(|chain| queue.undo_pop(chain.head()));
        let outcome = outcome?;
        given_back?;
        Ok(outcome)
    }

    fn fill<'m>(&mut self, work: &mut Work<'_, 'm>, ahead: &mut Ahead<'m>) -> Result<Direct, DeviceFault> {
        let (mem, queue) = (work.io.mem, &mut work.io.queues[self.rx]);
        let most = if work.mergeable { BUFFERS.min(queue.size().into()) } else { 1 };
        loop {
            let mut room: usize = ahead.unused().iter().map(|chain| chain.writable_len() as usize).sum();
            while room < MOST && ahead.unused().len() < most {
                let Some(chain) = queue.pop(mem)? else { break };
                room += chain.writable_len() as usize;
                ahead.chains.push(chain);
            }
            if room < MOST {
                // Another event follows if this one's share is used up.
                return Ok(if queue.exhausted() { Direct::Rests } else { Direct::NoRoom });
            }
            let slices: SmallVec<[VolatileSlice; MOST_SLICES]> =
                ahead.unused().iter().flat_map(|chain| chain.writable().slices()).take(MOST_SLICES + 1).collect();
            if slices.len() > MOST_SLICES {
                return Ok(Direct::NoRoom);
            }
            let Some(len) = self.came(work.backend.receive(self.way, &slices)) else { return Ok(Direct::Rests) };
            self.take_up(ahead, len);
            if self.used.len() >= SHOWN {
                queue.push_together(mem, &self.used)?;
                self.used.clear();
            }
        }
    }

    /// A packet of so many bytes is in the first chains.
    fn take_up(&mut self, ahead: &mut Ahead, len: usize) {
        let (mut left, mut count) = (len, 0u16);
        for chain in ahead.unused() {
            let written = left.min(chain.writable_len() as usize);
            self.used.push((chain.head(), written as u32));
            left -= written;
            count += 1;
            if left == 0 {
                break;
            }
        }
        // 1 also without the feature (5.1.6.4.1).
        if let Some(chain) = ahead.unused().first() {
            chain.writable().split_at(NUM_BUFFERS).1.write(&count.to_le_bytes());
        }
        ahead.first += usize::from(count);
        if ahead.first >= BUFFERS {
            ahead.chains.drain(..ahead.first);
            ahead.first = 0;
        }
    }

    /// Puts the packet that waits into the guest's buffers: all of it at once, or nothing.
    fn deliver(&mut self, work: &mut Work) -> Result<Delivery, DeviceFault> {
        let (mem, queue) = (work.io.mem, &mut work.io.queues[self.rx]);
        let packet = &self.packet[..self.len];
        let mut first: Option<Chain> = None;
        let mut done = 0;
        self.used.clear();
        while done < packet.len() {
            let next = queue.pop(mem)?;
            let came = next.is_some();
            if let Some(chain) = next {
                let written = chain.writable().write(&packet[done..]);
                self.used.push((chain.head(), written as u32));
                done += written;
                first.get_or_insert(chain);
            }
            if done == packet.len() {
                break;
            }
            let most = if work.mergeable { BUFFERS.min(queue.size().into()) } else { 1 };
            if came && self.used.len() < most {
                continue;
            }
            // What was written into them is nobody's; they wait for the next packet.
            let never = self.used.len() >= most && most > 0;
            for (head, _) in self.used.drain(..).rev() {
                queue.undo_pop(head);
            }
            if never {
                queue.count_error();
            }
            return Ok(if never { Delivery::Done } else { Delivery::Waits });
        }
        let count = (self.used.len() as u16).to_le_bytes();
        if let Some(chain) = &first {
            chain.writable().split_at(NUM_BUFFERS).1.write(&count);
        }
        queue.push_together(mem, &self.used)?;
        Ok(Delivery::Done)
    }

    /// Takes the guest's packets, as long as the backend does.
    pub fn transmit(&mut self, work: &mut Work) -> Result<(), DeviceFault> {
        self.used.clear();
        let taken = self.take(work);
        let given_back = work.io.queues[self.rx + 1].push_together(work.io.mem, &self.used);
        taken?;
        Ok(given_back?)
    }

    fn take(&mut self, work: &mut Work) -> Result<(), DeviceFault> {
        let (tx, mem) = (self.rx + 1, work.io.mem);
        while work.backend.ready() {
            let Some(chain) = work.io.queues[tx].pop(mem)? else { return Ok(()) };
            if !work.io.admits(tx, Direction::FromGuest) {
                work.io.queues[tx].undo_pop(chain.head());
                return Ok(());
            }
            work.io.spend(Direction::FromGuest, u64::from(chain.readable_len()).saturating_sub(HEADER as u64));
            let queue = &mut work.io.queues[tx];
            match send(work.backend, work.egress.as_deref(), self.way, &chain) {
                Ok(()) => {}
                Err(Dropped::Denied) => queue.count_denied(),
                Err(Dropped::Failed(e)) => {
                    tracing::debug!(len = chain.readable_len(), "net: packet dropped: {e}");
                    queue.count_error();
                }
            }
            self.used.push((chain.head(), 0));
            if self.used.len() >= SHOWN {
                queue.push_together(mem, &self.used)?;
                self.used.clear();
            }
        }
        Ok(())
    }
}

/// Why a packet of the guest's goes nowhere.
enum Dropped {
    /// It may not.
    Denied,
    /// The backend refused it.
    Failed(io::Error),
}

impl From<io::Error> for Dropped {
    fn from(error: io::Error) -> Self {
        Dropped::Failed(error)
    }
}

fn send(backend: &mut dyn Backend, egress: Option<&Egress>, way: usize, chain: &Chain) -> Result<(), Dropped> {
    let len = chain.readable_len() as usize;
    if !(HEADER + 1..=MOST).contains(&len) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    let mut head = [0; HEAD];
    let mut packet = Packet { head: &mut [], rest: chain.readable() };
    if let Some(egress) = egress {
        // Read once: what is sent is what was judged.
        let (first, rest) = chain.readable().split_at(HEAD);
        let there = first.read(&mut head);
        if !egress.allows(&head[..there], len) {
            return Err(Dropped::Denied);
        }
        packet = Packet { head: &mut head[..there], rest };
    }
    Ok(backend.send(way, packet)?)
}
