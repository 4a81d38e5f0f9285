//! A console (virtio 1.3, 5.3): one port, whose size can change.
//!
//! - [`config`]: the section and flag;
//! - [`host`]: what is at its other end;
//! - this file: the device.
//!
//! Nothing grows. What is typed is read only into room that the guest has given. What the guest writes stays in its queue until
//! the buffer of [`Output`](crate::output::Output) takes it: a reader that is slow holds the guest's console, and nothing else. A size comes to the guest
//! by a device that takes this one's place ([`DeviceKind::swappable`](super::DeviceKind)). `MULTIPORT` and
//! `EMERG_WRITE` are not offered: one console needs no control queue, and for words before its driver there is the serial port.

mod config;
mod host;

use std::os::fd::AsRawFd;

use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

pub use config::KIND;
use host::{Host, Typed};

use super::chain::Chain;
use super::table::check_state_version;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};

const NAME: &str = "console";
const STATE_VERSION: u32 = 1;

const RX: usize = 0;
const TX: usize = 1;
/// VIRTIO_CONSOLE_F_SIZE.
const F_SIZE: u64 = 1 << 0;
/// Bytes that are copied at a time.
const PIECE: usize = 1024;

/// Tokens of the descriptors.
const TYPED: u16 = 0;
const ROOM: u16 = 1;

/// The device.
struct Console {
    host: Host,
    /// Columns, rows, how many ports there are, and the emergency write (5.3.4).
    config: [u8; 12],
    /// Bytes of the first chain of the transmit queue that are on their way already.
    taken: u32,
}

impl Console {
    fn new(host: Host, columns: u16, rows: u16) -> Self {
        let mut config = [0; 12];
        config[..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        config[4] = 1;
        Console { host, config, taken: 0 }
    }

    /// What is typed, as long as the guest has room.
    fn fill(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[RX].pop(io.mem)? {
            let room = chain.writable();
            let typed = if room.is_empty() { Typed::Bytes(0) } else { self.host.input.read(room) };
            let written = match typed {
                Typed::Bytes(count) => count,
                Typed::Nothing => {
                    io.queues[RX].undo_pop(chain.head());
                    self.host.input.wait(true);
                    return Ok(());
                }
            };
            io.queues[RX].push(io.mem, chain.head(), written)?;
        }
        // No room, or no more time: there will be an event for both.
        self.host.input.wait(false);
        Ok(())
    }

    /// What the guest writes, as long as the host takes it.
    fn drain(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[TX].pop(io.mem)? {
            if !self.take(&chain) {
                io.queues[TX].undo_pop(chain.head());
                return Ok(());
            }
            io.queues[TX].push(io.mem, chain.head(), 0)?;
        }
        Ok(())
    }

    /// Passes a chain on, from where it was left; false if there is some left again.
    fn take(&mut self, chain: &Chain) -> bool {
        let (_, mut rest) = chain.readable().split_at(self.taken as usize);
        while !rest.is_empty() {
            let mut piece = [0; PIECE];
            let (first, after) = rest.split_at(PIECE);
            let len = first.read(&mut piece);
            let taken = self.host.output.offer(&piece[..len]);
            self.taken += taken as u32;
            if taken < len {
                return false;
            }
            rest = after;
        }
        self.taken = 0;
        true
    }
}

impl VirtioDevice for Console {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: NAME, id: 3, features: F_SIZE, queue_sizes: &[64, 64], prompt: false }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn fds(&self) -> Vec<DeviceFd> {
        let room = self.host.output.room().map(|room| DeviceFd { fd: room.as_raw_fd(), token: ROOM });
        [DeviceFd { fd: self.host.input.fd(), token: TYPED }].into_iter().chain(room).collect()
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        if index == RX { self.fill(io) } else { self.drain(io) }
    }

    fn process_fd(&mut self, token: u16, io: &mut Io) -> Result<(), DeviceFault> {
        if token == TYPED {
            return self.fill(io);
        }
        // Nothing to read: another device has, which has this one's place.
        let _ = self.host.output.room().map(EventFd::read);
        self.drain(io)
    }

    fn quiesce(&mut self, _: &mut Io, forget: bool) -> Result<(), DeviceFault> {
        if forget {
            self.taken = 0;
            self.host.input.wait(false);
        }
        Ok(())
    }

    /// What was taken from the guest is on its way to the host, and what was typed is in the guest.
    fn save(&self) -> Result<Value, StateError> {
        Ok(serde_json::json!({ "version": STATE_VERSION, "taken": self.taken }))
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version(NAME, state, STATE_VERSION)?;
        let taken = state.get("taken").and_then(Value::as_u64).and_then(|taken| taken.try_into().ok());
        self.taken = taken.ok_or_else(|| StateError { device: NAME, reason: "'taken' is no length".into() })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
