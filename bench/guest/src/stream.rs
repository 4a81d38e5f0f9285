//! Load for a vsock (virtio 1.3, 5.10): so many bytes one way, in packets as large as they may be, looked for and not waited for.
//!
//! Which way and how many is on the kernel's command line: `stream=in:BYTES` or `stream=out:BYTES`.

use crate::device::{Device, register};
use crate::packet::{CREDIT_REQUEST, CREDIT_UPDATE, DATA, EVENT, HEADER, Header, REQUEST, RESPONSE, RX, TX, VSOCK};
use crate::queue::{self, Queue};

/// Entries of each queue: as many as the shortest has.
const SIZE: usize = 16;
/// Bytes of a packet's data.
const DATA_MOST: usize = 64 << 10;
const PACKET: usize = HEADER + DATA_MOST;
/// Bytes that the host may send ahead: what there are buffers for.
const CREDIT: u32 = (SIZE * DATA_MOST) as u32;
/// Least that is sent at a time, but for the end.
const LEAST: u32 = 16 << 10;
const EVENTS: usize = 16;

/// What the queues need.
#[repr(C, align(4096))]
pub struct Memory {
    receive: queue::Memory<SIZE, PACKET>,
    send: queue::Memory<SIZE, PACKET>,
    event: queue::Memory<SIZE, EVENTS>,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the host.
    In,
    /// To the host.
    Out,
}

/// How much to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Where to.
    pub way: Way,
    /// Bytes in all.
    pub bytes: u64,
}

impl Load {
    /// From a command line.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let word = crate::value(line, b"stream=")?;
        let (way, digits) = match word.strip_prefix(b"in:") {
            Some(digits) => (Way::In, digits),
            None => (Way::Out, word.strip_prefix(b"out:")?),
        };
        Some(Load { way, bytes: crate::decimal(digits)? })
    }
}

/// The driver of one stream.
pub struct Stream {
    device: Device,
    receive: Queue<SIZE, PACKET>,
    send: Queue<SIZE, PACKET>,
    cid: u64,
    peer: u32,
    /// Buffers to send from are free.
    free: [bool; SIZE],
    /// Bytes received, and told to the host as taken.
    received: u64,
    told: u64,
    /// Bytes sent, what the host has room for and has taken; they wrap.
    sent: u32,
    credit: u32,
    taken: u32,
    connected: bool,
}

const PORT: u32 = 1 << 16;

impl Stream {
    /// Brings the device up and asks the host for a connection to its `peer`. `None` if it is no vsock, or does not come up.
    ///
    /// # Safety
    /// `registers` are those of a virtio device that nobody else drives, and addresses here are physical ones.
    pub unsafe fn new(registers: *mut u32, memory: &'static mut Memory, peer: u32) -> Option<Self> {
        let (mut receive, mut send) = (Queue::new(&mut memory.receive), Queue::new(&mut memory.send));
        let mut event = Queue::new(&mut memory.event);
        // SAFETY: the caller's promise.
        let mut device = unsafe { Device::new(registers) };
        receive.poll();
        send.poll();
        event.poll();
        if !device.bring_up(VSOCK, 0, SIZE, &[receive.addresses(), send.addresses(), event.addresses()]) {
            return None;
        }
        let cid = device.config(0);
        let mut stream = Stream {
            device,
            receive,
            send,
            cid,
            peer,
            free: [true; SIZE],
            received: 0,
            told: 0,
            sent: 0,
            credit: 0,
            taken: 0,
            connected: false,
        };
        for buffer in 0..SIZE {
            stream.receive.give(buffer, None);
            event.give(buffer, None);
        }
        for queue in [RX, EVENT] {
            stream.device.set(register::QUEUE_NOTIFY, queue as u32);
        }
        stream.packet(REQUEST, 0);
        Some(stream)
    }

    /// Moves what `load` says. `None` if the host ends it before.
    pub fn run(&mut self, load: Load) -> Option<()> {
        while !self.connected {
            self.look()?;
        }
        let mut left = load.bytes;
        while left > 0 {
            self.look()?;
            match load.way {
                // Some may have come with the connection.
                Way::In => left = load.bytes.checked_sub(self.received)?,
                Way::Out => {
                    let room = self.credit.saturating_sub(self.sent.wrapping_sub(self.taken));
                    let len = left.min(DATA_MOST as u64).min(room.into()) as u32;
                    if len >= LEAST.min(left.min(LEAST.into()) as u32) && self.packet(DATA, len) {
                        self.sent = self.sent.wrapping_add(len);
                        left -= u64::from(len);
                    }
                }
            }
        }
        Some(())
    }

    /// Sends a packet with so many bytes of data, whatever they are; false if there is no buffer for it now.
    fn packet(&mut self, op: u16, len: u32) -> bool {
        while let Some((buffer, _)) = self.send.take() {
            self.free[buffer] = true;
        }
        let Some(buffer) = self.free.iter().position(|free| *free) else { return false };
        self.free[buffer] = false;
        self.told = self.received;
        let (cid, peer, taken) = (self.cid, self.peer, self.received as u32);
        let header = Header { cid, port: PORT, peer, len, op, credit: CREDIT, taken };
        self.send.write(buffer, 0, &header.to_bytes());
        if self.send.give(buffer, Some(HEADER + len as usize)) {
            self.device.set(register::QUEUE_NOTIFY, TX as u32);
        }
        true
    }

    /// Takes what has come. `None`: it was the end.
    fn look(&mut self) -> Option<()> {
        while let Some((buffer, _)) = self.receive.take() {
            let number = |at| u32::from_le_bytes(self.receive.read(buffer, at));
            let (len, op) = (number(24), u16::from_le_bytes(self.receive.read(buffer, 30)));
            (self.credit, self.taken) = (number(36), number(40));
            match op {
                RESPONSE => self.connected = true,
                DATA => self.received += u64::from(len),
                CREDIT_UPDATE => {}
                CREDIT_REQUEST => drop(self.packet(CREDIT_UPDATE, 0)),
                _ => return None,
            }
            if self.receive.give(buffer, None) {
                self.device.set(register::QUEUE_NOTIFY, RX as u32);
            }
        }
        if self.received - self.told >= u64::from(CREDIT / 2) {
            self.packet(CREDIT_UPDATE, 0);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_on_the_command_line() {
        assert_eq!(Load::parse(b"a=b stream=in:70000\0"), Some(Load { way: Way::In, bytes: 70_000 }));
        assert_eq!(Load::parse(b"stream=out:1"), Some(Load { way: Way::Out, bytes: 1 }));
        for none in
            [&b""[..], b"stream=", b"stream=in", b"stream=in:", b"stream=up:1", b"stream=in:1x", b"xstream=in:1"]
        {
            assert_eq!(Load::parse(none), None);
        }
    }
}
