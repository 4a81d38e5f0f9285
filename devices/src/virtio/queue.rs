//! A split virtqueue (virtio 1.3, 2.7) as a device uses it: [`VirtQueue::pop`] and [`VirtQueue::push`].
//!
//! Ring arithmetic and the used ring are `virtio-queue`'s. Added here: errors instead of silence, suppression of kicks
//! while a batch is worked on, a budget per event so that no queue starves the others, and knowledge of which heads are
//! in flight. Interrupts are the transport's.

mod setup;

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use self::setup::check_areas;
pub use self::setup::{Features, QueueSetup, RingError};
use super::chain::{Chain, DescriptorTable};
use super::metrics::{Meter, QueueMetrics};
use super::trace::tape::Tape;
use crate::GuestRam;

/// Chains that one event may take from a queue.
const CHAINS: u32 = 128;
/// Bytes of chains after which an event ends.
const BYTES: u64 = 8 << 20;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// A queue. Gives nothing before the driver made it ready.
pub struct VirtQueue {
    max: u16,
    /// Present when ready.
    inner: Option<Active>,
    budget: Budget,
    meter: Meter,
    /// Where what becomes of its chains is recorded, and which queue it is there.
    tape: Option<(u16, Tape)>,
}

struct Active {
    queue: Queue,
    table: DescriptorTable,
    /// One bit per head.
    in_flight: Vec<u64>,
    /// The driver was asked not to kick.
    kicks_off: bool,
    /// Chains used since the last interrupt decision.
    added: u16,
}

#[derive(Clone, Copy, Default)]
struct Budget {
    chains: u32,
    bytes: u64,
    /// `pop` said no although there may be more.
    exhausted: bool,
}

impl VirtQueue {
    /// A queue of at most `max` entries.
    pub fn new(max: u16) -> Self {
        VirtQueue { max, inner: None, budget: Budget::default(), meter: Meter::new(), tape: None }
    }

    /// Most entries.
    pub fn max_size(&self) -> u16 {
        self.max
    }

    /// What it has seen.
    pub fn metrics(&self) -> &Arc<QueueMetrics> {
        self.meter.metrics()
    }

    /// Records its chains, as queue `index`.
    pub(super) fn record(&mut self, index: u16, tape: Tape) {
        self.tape = Some((index, tape));
    }

    /// Counts a request that cannot be carried out.
    pub fn count_error(&self) {
        self.metrics().errors.add(1);
    }

    /// Counts a packet that may not leave.
    pub fn count_denied(&self) {
        self.metrics().denied.add(1);
    }

    /// Counts a request that has to wait for the device's limits.
    pub fn count_wait(&self) {
        self.metrics().throttled.add(1);
    }

    /// Entries as the driver set it up; 0 when not ready.
    pub fn size(&self) -> u16 {
        self.inner.as_ref().map_or(0, |active| active.table.size)
    }

    /// The driver made it ready.
    pub fn is_ready(&self) -> bool {
        self.inner.is_some()
    }

    /// Judges the set-up and makes the queue ready, at positions `(available, used)` of its rings.
    pub fn start(
        &mut self,
        mem: &GuestRam,
        setup: &QueueSetup,
        features: Features,
        (next_avail, next_used): (u16, u16),
    ) -> Result<(), RingError> {
        let size = u16::try_from(setup.size).ok().filter(|size| size.is_power_of_two() && *size <= self.max);
        let size = size.ok_or(RingError::Size(setup.size))?;
        check_areas(mem, setup, u64::from(size))?;
        let state = QueueState {
            max_size: self.max,
            next_avail,
            next_used,
            event_idx_enabled: features.event_idx,
            size,
            ready: true,
            desc_table: setup.descriptors,
            avail_ring: setup.available,
            used_ring: setup.used,
        };
        self.meter.start(size);
        self.inner = Some(Active {
            queue: Queue::try_from(state).map_err(|_| RingError::Address(setup.descriptors))?,
            table: DescriptorTable { address: setup.descriptors, size, indirect: features.indirect },
            in_flight: vec![0; usize::from(size).div_ceil(64)],
            kicks_off: false,
            added: 0,
        });
        Ok(())
    }

    /// Makes the queue unready: its rings are not touched again.
    pub fn stop(&mut self) {
        self.inner = None;
        self.budget = Budget::default();
    }

    /// Positions in the available and the used ring; zeros when not ready.
    pub fn position(&self) -> (u16, u16) {
        self.inner.as_ref().map_or((0, 0), |active| (active.queue.next_avail(), active.queue.next_used()))
    }

    /// Grants one event's worth of chains.
    pub fn refill(&mut self) {
        self.budget = Budget { chains: CHAINS, bytes: BYTES, exhausted: false };
        self.meter.look_again();
    }

    /// Whether `pop` ended for the budget: the queue wants another event.
    pub fn exhausted(&self) -> bool {
        self.budget.exhausted
    }

    /// The next chain. None when the queue is empty (the driver will kick then), unready, or this event's budget is
    /// spent (another event follows).
    pub fn pop<'m>(&mut self, mem: &'m GuestRam) -> Result<Option<Chain<'m>>, RingError> {
        self.take(mem, Active::next_head)
    }

    /// The same, but the driver need not kick for what comes after: [`pop`](Self::pop) must have said None before this
    /// event ends.
    pub fn pop_quietly<'m>(&mut self, mem: &'m GuestRam) -> Result<Option<Chain<'m>>, RingError> {
        self.take(mem, Active::next_head_quietly)
    }

    fn take<'m>(
        &mut self,
        mem: &'m GuestRam,
        next: fn(&mut Active, &GuestRam) -> Result<Next, RingError>,
    ) -> Result<Option<Chain<'m>>, RingError> {
        let Some(active) = &mut self.inner else {
            return Ok(None);
        };
        if self.budget.chains == 0 || self.budget.bytes == 0 {
            self.budget.exhausted = true;
            return Ok(None);
        }
        let head = match next(active, mem)? {
            Next::Head(head) => head,
            Next::Empty => {
                self.meter.look_again();
                return Ok(None);
            }
            Next::Unsteady => {
                self.budget.exhausted = true;
                return Ok(None);
            }
        };
        let chain = Chain::walk(mem, active.table, head)?;
        let bytes = u64::from(chain.readable_len()) + u64::from(chain.writable_len());
        self.budget.chains -= 1;
        self.budget.bytes = self.budget.bytes.saturating_sub(bytes);
        self.meter.taken(head, chain.readable_len());
        if let Some((index, tape)) = &self.tape {
            tape.taken(*index, &chain);
        }
        Ok(Some(chain))
    }

    /// Takes back the last `pop`, of `head`: nothing was done with the chain.
    pub fn undo_pop(&mut self, head: u16) {
        if let Some(active) = &mut self.inner
            && active.set_in_flight(head, false)
        {
            let next = active.queue.next_avail().wrapping_sub(1);
            active.queue.set_next_avail(next);
            if let Some((index, tape)) = &self.tape {
                tape.put_back(*index, head);
            }
        }
    }

    /// Gives the chain at `head` back, `written` bytes of it filled from the start of its writable part.
    pub fn push(&mut self, mem: &GuestRam, head: u16, written: u32) -> Result<(), RingError> {
        self.push_together(mem, &[(head, written)])
    }

    /// Gives chains back, each with the bytes written to it, in this order: the driver sees all of them at once.
    pub fn push_together(&mut self, mem: &GuestRam, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let Some(&(first, _)) = chains.first() else {
            return Ok(());
        };
        let Some(active) = &mut self.inner else {
            return Err(RingError::NotInFlight(first));
        };
        let ring = active.queue.used_ring();
        let mut next = active.queue.next_used();
        for &(head, written) in chains {
            if !active.set_in_flight(head, false) {
                return Err(RingError::NotInFlight(head));
            }
            let entry = GuestAddress(ring + 4 + 8 * u64::from(next % active.table.size));
            let used = [u32::from(head).to_le(), written.to_le()];
            mem.write_obj(used, entry).map_err(|_| RingError::Access(entry.0))?;
            next = next.wrapping_add(1);
            active.added = active.added.saturating_add(1);
        }
        active.queue.set_next_used(next);
        // The entries are there before the index says so (2.7.8.2).
        mem.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release).map_err(|_| RingError::Access(ring))?;
        self.meter.given_back(chains);
        if let Some((index, tape)) = &self.tape {
            tape.given_back(*index, chains.len());
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call (2.7.7, 2.7.10).
    pub fn wants_interrupt(&mut self, mem: &GuestRam) -> Result<bool, RingError> {
        let Some(active) = self.inner.as_mut().filter(|active| active.added > 0) else {
            return Ok(false);
        };
        let added = std::mem::take(&mut active.added);
        let ring = active.queue.avail_ring();
        let read = |address: u64| {
            let word: u16 =
                mem.load(GuestAddress(address), Ordering::Relaxed).map_err(|_| RingError::Access(address))?;
            Ok::<u16, RingError>(u16::from_le(word))
        };
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = if active.queue.event_idx_enabled() {
            let event = read(ring + 4 + 2 * u64::from(active.table.size))?;
            // The index the driver waits for is among those that were added.
            active.queue.next_used().wrapping_sub(event).wrapping_sub(1) < added
        } else {
            read(ring)? & NO_INTERRUPT == 0
        };
        self.metrics().interrupts.add(wanted.into());
        Ok(wanted)
    }
}

enum Next {
    Head(u16),
    Empty,
    /// The driver changes the index to and fro.
    Unsteady,
}

impl Active {
    fn set_in_flight(&mut self, head: u16, on: bool) -> bool {
        let Some(word) = self.in_flight.get_mut(usize::from(head / 64)) else {
            return false;
        };
        let bit = 1 << (head % 64);
        let changed = (*word & bit != 0) != on;
        if on {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        changed
    }

    /// Entries that are available and not yet taken.
    fn pending(&self, mem: &GuestRam) -> Result<u16, RingError> {
        let index =
            self.queue.avail_idx(mem, Ordering::Acquire).map_err(|_| RingError::Access(self.queue.avail_ring()))?;
        let ahead = (index - Wrapping(self.queue.next_avail())).0;
        let size = self.table.size;
        if ahead > size { Err(RingError::AvailableIndex { ahead, size }) } else { Ok(ahead) }
    }

    /// Takes the next head; kicks are off while there are some and on when there are none.
    fn next_head(&mut self, mem: &GuestRam) -> Result<Next, RingError> {
        let used_ring = self.queue.used_ring();
        let access = |_| RingError::Access(used_ring);
        if self.pending(mem)? == 0 {
            self.kicks_off = false;
            // Looks again after the driver was asked to kick, so that nothing is missed in between.
            let more = self.queue.enable_notification(mem).map_err(access)?;
            if !more {
                return Ok(Next::Empty);
            }
            if self.pending(mem)? == 0 {
                return Ok(Next::Unsteady);
            }
        }
        self.take_head(mem)
    }

    /// Takes the next head, and leaves kicks as they are where there is none.
    fn next_head_quietly(&mut self, mem: &GuestRam) -> Result<Next, RingError> {
        if self.pending(mem)? == 0 { Ok(Next::Empty) } else { self.take_head(mem) }
    }

    fn take_head(&mut self, mem: &GuestRam) -> Result<Next, RingError> {
        if !self.kicks_off {
            let used_ring = self.queue.used_ring();
            self.queue.disable_notification(mem).map_err(|_| RingError::Access(used_ring))?;
            self.kicks_off = true;
        }
        let (size, next) = (self.table.size, self.queue.next_avail());
        let entry = self.queue.avail_ring() + 4 + 2 * u64::from(next % size);
        let head: u16 = mem.load(GuestAddress(entry), Ordering::Relaxed).map_err(|_| RingError::Access(entry))?;
        let head = u16::from_le(head);
        if head >= size {
            return Err(RingError::Head { head, size });
        }
        if !self.set_in_flight(head, true) {
            return Err(RingError::InFlight(head));
        }
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Next::Head(head))
    }
}
