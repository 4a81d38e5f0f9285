//! Register writes that vCPU threads leave to the event loop.
//!
//! A device that is started or stopped sets timers, closes sockets, waits for its disk: calls that a vCPU's thread has no other use for,
//! and may not make ([`sandbox`](crate::sandbox)). Such a write, which is rare, the thread puts here. The guest goes on when somebody
//! has carried it out; its thread can be paused, saved and stopped meanwhile.
//!
//! ```text
//!  vCPU thread: KVM_RUN ─► write that is work ─► leave() ── waits for its next order ─────────► KVM_RUN
//!                                                  │                              ▲
//!  event loop, or who takes a snapshot:            └─► carry_out() ─► Bus::write ─┘ paid()
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use devices::Bus;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vcpu::Control;

/// The writes that have been left: one a vCPU at most.
pub struct Chores {
    bus: Arc<Bus>,
    /// Held while they are carried out, so that whoever finds none knows that all have been. Taken before any transport's.
    left: Mutex<Vec<Chore>>,
    /// Tells the event loop.
    event: EventFd,
}

struct Chore {
    address: u64,
    data: Vec<u8>,
    /// Of the vCPU that waits.
    by: Arc<Control>,
}

impl Chores {
    /// None yet, for devices on `bus`. Fails only for lack of descriptors.
    pub fn new(bus: Arc<Bus>) -> io::Result<Self> {
        Ok(Chores { bus, left: Mutex::default(), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Leaves a write; the calling thread's next order to run the guest comes when it has been carried out.
    pub fn leave(&self, address: u64, data: &[u8], by: &Arc<Control>) {
        by.owe();
        let chore = Chore { address, data: data.to_vec(), by: by.clone() };
        self.left.lock().unwrap_or_else(PoisonError::into_inner).push(chore);
        // Only a full counter fails, and that wakes the loop as well.
        let _ = self.event.write(1);
    }

    /// Carries out what has been left. For the event loop, and for whoever has it wait and needs devices as vCPUs that are paused
    /// have set them.
    pub fn carry_out(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        for Chore { address, data, by } in left.drain(..) {
            self.bus.write(address, &data);
            by.paid();
        }
    }
}

/// [`Chores`] on the event loop.
pub struct Doing(pub Arc<Chores>);

impl MutEventSubscriber for Doing {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Nothing to read: what it told of has been carried out.
        let _ = self.0.event.read();
        self.0.carry_out();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new_raw(self.0.event.as_raw_fd(), EventSet::IN)) {
            tracing::error!("vCPUs' work for the event loop cannot be watched: {e:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::{BusDevice, Written};

    use super::*;
    use crate::vcpu::{Order, Target};

    /// Keeps the last write; all of them are work.
    #[derive(Default)]
    struct Worker(Vec<u8>);

    impl BusDevice for Worker {
        fn read(&mut self, _: u64, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: u64, _: u64, data: &[u8]) {
            self.0 = data.to_vec();
        }
        fn is_work(&self, _: u64, _: &[u8]) -> bool {
            true
        }
    }

    #[test]
    fn what_is_left_is_carried_out_once_and_then_its_vcpu_goes_on() {
        let (bus, device) = (Arc::new(Bus::default()), Arc::new(Mutex::new(Worker::default())));
        bus.insert(0x100, 4, device.clone()).unwrap();
        let chores = Chores::new(bus.clone()).unwrap();
        let control = Arc::new(Control::default());
        control.set(Target::Running);
        assert_eq!(bus.write_or_leave(0x102, &[1, 2]), Written::Left);
        chores.leave(0x102, &[1, 2], &control);
        assert_eq!(chores.event.read().unwrap(), 1);
        assert!(device.lock().unwrap().0.is_empty());
        chores.carry_out();
        assert!(matches!(control.wait_for_order(), Order::Run));
        assert_eq!(std::mem::take(&mut device.lock().unwrap().0), [1, 2]);
        chores.carry_out();
        assert!(device.lock().unwrap().0.is_empty());
    }
}
