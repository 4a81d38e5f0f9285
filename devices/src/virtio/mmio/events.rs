//! The transport on the event loop: kicks, device descriptors, and the control event that adds and removes them.
//!
//! Device descriptors are watched only while the device is live, but for a few that are only while it waits for a reset
//! ([`VirtioDevice::fds_until_reset`]). It becomes live, is reset or fails by a register write; the control event then lets the
//! loop bring the set of watched descriptors up to date.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::*;

/// Event data: queues by index, then device tokens, then this.
const DEVICE_TOKEN: u32 = 1 << 16;
const CONTROL: u32 = u32::MAX;
const TIMER: u32 = CONTROL - 1;

impl MmioTransport {
    fn watch(&self, ops: &mut EventOps, fd: i32, data: u32) {
        if let Err(e) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
            tracing::error!(device = self.info.name, "event cannot be watched: {e:?}");
        }
    }

    /// The device's descriptors that are to be watched now.
    fn wanted(&self) -> &[DeviceFd] {
        match self.status {
            status if status.is_live() => &self.fds,
            status if status.is_dead() => &self.fds_until_reset,
            _ => &[],
        }
    }

    fn update_watched(&mut self, ops: &mut EventOps) {
        if let Some(timer) = self.throttle.timer().filter(|_| !self.throttle.watched) {
            self.watch(ops, timer.as_raw_fd(), TIMER);
            self.throttle.watched = true;
        }
        if self.wanted() == self.watched && self.retired.is_empty() {
            return;
        }
        for DeviceFd { fd, .. } in std::mem::take(&mut self.watched) {
            if let Err(e) = ops.remove(Events::empty_raw(fd)) {
                tracing::error!(device = self.info.name, "event cannot be removed: {e:?}");
            }
        }
        self.retired.clear();
        self.watched = self.wanted().to_vec();
        for DeviceFd { fd, token } in &self.watched {
            self.watch(ops, *fd, DEVICE_TOKEN | u32::from(*token));
        }
    }

    /// The driver's word that a queue has something, which came as a write to the register.
    pub(super) fn notified(&mut self, index: usize) {
        let Some(kick) = self.kicks.get_mut(index) else { return };
        // A device with limits may have to wait, which is nothing for a vCPU thread.
        if self.at_once && !self.throttle.limiter.is_limited() {
            kick.count(1);
            self.record_kick(index);
            self.kicked(index);
        } else {
            signal(kick.event());
        }
    }

    /// A device that waits for a reset, which may never come, has no driver any more: whoever has to do with that hears of its end
    /// now. Not where the fault is found, which may be on a vCPU thread.
    fn bury(&mut self) {
        if self.status.is_dead() && self.status.was_activated() {
            self.quiesce(true);
        }
    }

    /// A queue may have something.
    fn kicked(&mut self, index: usize) {
        if self.kicks.get_mut(index).is_some_and(|kick| kick.answer() > 0) {
            self.record_kick(index);
        }
        if self.status.is_live() && self.queues.get(index).is_some_and(VirtQueue::is_ready) {
            self.with_device(|device, io| device.process_queue(index, io));
        }
    }

    #[cfg(test)]
    pub(crate) fn kick_for_test(&mut self, queue: usize) {
        self.handle(queue as u32);
    }

    /// Answers one event by its data word.
    pub(super) fn handle(&mut self, data: u32) {
        match data {
            CONTROL => {
                drop(self.control.read());
                self.bury();
            }
            TIMER => self.alarm(),
            queue if queue < DEVICE_TOKEN => self.kicked(queue as usize),
            token if self.status.is_live() => {
                self.with_device(|device, io| device.process_fd(token as u16, io));
            }
            token if self.status.is_dead() => self.device.turn_away(token as u16),
            // An event that was on its way when the device was reset.
            _ => {}
        }
    }
}

impl MutEventSubscriber for MmioTransport {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.handle(events.data());
        // A fault above ends the watch as well.
        self.update_watched(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.watch(ops, self.control.as_raw_fd(), CONTROL);
        for (index, kick) in self.kicks.iter().enumerate() {
            self.watch(ops, kick.event().as_raw_fd(), index as u32);
        }
        self.update_watched(ops);
    }
}
