//! The queues: what the guest has for its connections and they for it, one packet a turn.

use super::*;

impl Vsock {
    /// Takes the guest's packets, as long as their resets have somewhere to wait.
    fn drain(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        let mem = io.mem;
        while self.resets.len() < RESETS
            && let Some(chain) = io.queues[TX].pop(mem)?
        {
            if !self.packet(&chain)? {
                io.queues[TX].count_error();
            }
            io.queues[TX].push(mem, chain.head(), 0)?;
        }
        Ok(())
    }

    /// Sends to the guest until it has no buffers or nobody has anything to say.
    fn fill(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        const SMALL: DeviceFault = DeviceFault::Guest("vsock receive buffer is too small");
        let mem = io.mem;
        while !self.resets.is_empty() || !self.ready.is_empty() {
            let queue = &mut io.queues[RX];
            let Some(chain) = queue.pop(mem)? else {
                return Ok(());
            };
            if let Some(header) = self.resets.pop_front() {
                if chain.writable().write(&header.to_bytes()) < HEADER_LEN {
                    return Err(SMALL);
                }
                queue.push(mem, chain.head(), HEADER_LEN as u32)?;
                continue;
            }
            let share = self.share();
            let produced = self.ready.pop_front().and_then(|id| {
                let connection = self.connections.get_mut(&id)?;
                connection.queued = false;
                connection.set_share(share);
                Some((id, connection.produce(self.guest_cid, chain.writable())))
            });
            match produced {
                Some((id, Produced::Packet(len))) => {
                    queue.push(mem, chain.head(), HEADER_LEN as u32 + len)?;
                    self.schedule(id);
                }
                Some((_, Produced::TooSmall)) => return Err(SMALL),
                Some((_, Produced::Nothing)) | None => queue.undo_pop(chain.head()),
            }
        }
        Ok(())
    }

    /// Everything that can be done now, both ways.
    pub(super) fn pump(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        loop {
            self.drain(io)?;
            let held = self.resets.len() >= RESETS;
            self.fill(io)?;
            if !held || self.resets.len() >= RESETS {
                return Ok(());
            }
        }
    }

    /// Tells the guest of a transport reset, once it has given a buffer for that.
    pub(super) fn send_event(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        if self.transport_reset
            && let Some(chain) = io.queues[EVENT].pop(io.mem)?
        {
            // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is 0.
            let written = chain.writable().write(&0u32.to_le_bytes());
            io.queues[EVENT].push(io.mem, chain.head(), written as u32)?;
            self.transport_reset = false;
        }
        Ok(())
    }
}
