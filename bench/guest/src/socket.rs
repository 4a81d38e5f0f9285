//! One stream to the host (virtio 1.3, 5.10), one packet after the other.

use crate::QUESTION;
use crate::device::{Device, register};
use crate::packet::{
    CREDIT_REQUEST, CREDIT_UPDATE, DATA, EVENT, HEADER, Header, REQUEST, RESET, RESPONSE, RX, TX, VSOCK,
};
use crate::queue::{self, Queue};

/// Entries of a queue, and bytes of a buffer.
const SIZE: usize = 8;
const BUFFER: usize = 128;

/// Bytes that the host may send ahead.
const CREDIT: u32 = 64;

/// What the three queues need.
#[repr(C)]
pub struct Memory([queue::Memory<SIZE, BUFFER>; 3]);

impl Memory {
    /// All zeros.
    pub const fn new() -> Self {
        Memory([const { queue::Memory::new() }; 3])
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nothing: wait for an interrupt.
    None,
    /// The connection is gone, and so is the host it led to: this is another machine (5.10.6.7).
    Gone,
    /// The host has closed the connection, or not taken it.
    Closed,
    /// A question.
    Question(u64),
}

/// A stream to the host.
pub struct Socket {
    device: Device,
    queues: [Queue<SIZE, BUFFER>; 3],
    cid: u64,
    /// This side's port: another one for each connection.
    port: u32,
    peer: u32,
    /// Bytes received.
    received: u32,
    /// What has come of the next question.
    question: [u8; QUESTION],
    filled: usize,
    /// Buffers to send from are free.
    free: [bool; SIZE],
}

impl Socket {
    /// Brings the device up. `None` if it is none, or does not come up.
    ///
    /// # Safety
    /// `registers` are those of a virtio device that nobody else drives, and addresses here are physical ones.
    pub unsafe fn new(registers: *mut u32, memory: &'static mut Memory) -> Option<Self> {
        let queues = memory.0.each_mut().map(Queue::new);
        // SAFETY: the caller's promise.
        let mut device = unsafe { Device::new(registers) };
        if !device.bring_up(VSOCK, 0, SIZE, &queues.each_ref().map(Queue::addresses)) {
            return None;
        }
        let mut socket = Socket {
            device,
            queues,
            cid: 0,
            port: 1 << 16,
            peer: 0,
            received: 0,
            question: [0; QUESTION],
            filled: 0,
            free: [true; SIZE],
        };
        for index in [RX, EVENT] {
            (0..SIZE).for_each(|buffer| socket.give(index, buffer, None));
        }
        Some(socket)
    }

    fn give(&mut self, queue: usize, buffer: usize, len: Option<usize>) {
        if self.queues[queue].give(buffer, len) {
            self.device.set(register::QUEUE_NOTIFY, queue as u32);
        }
    }

    /// Asks the host for a connection to its `peer`.
    pub fn connect(&mut self, peer: u32) {
        // It may be another machine's by now.
        self.cid = self.device.config(0);
        self.port = self.port.wrapping_add(1);
        self.peer = peer;
        (self.received, self.filled) = (0, 0);
        self.packet(REQUEST, &[]);
    }

    /// Sends an answer.
    pub fn send(&mut self, answer: u64) {
        self.packet(DATA, &answer.to_le_bytes());
    }

    fn packet(&mut self, op: u16, data: &[u8]) {
        while let Some((buffer, _)) = self.queues[TX].take() {
            self.free[buffer] = true;
        }
        // One is sent for each that comes, and the device is through with it when it has been told: there is always one.
        let Some(buffer) = self.free.iter().position(|free| *free) else { return };
        self.free[buffer] = false;
        let queue = &mut self.queues[TX];
        let (cid, port, peer, taken) = (self.cid, self.port, self.peer, self.received);
        let header = Header { cid, port, peer, len: data.len() as u32, op, credit: CREDIT, taken };
        queue.write(buffer, 0, &header.to_bytes());
        queue.write(buffer, HEADER, data);
        self.give(TX, buffer, Some(HEADER + data.len()));
    }

    /// The next thing that has come.
    pub fn receive(&mut self) -> Event {
        let cause = self.device.get(register::INTERRUPT_STATUS);
        if cause != 0 {
            self.device.set(register::INTERRUPT_ACK, cause);
        }
        if let Some((buffer, _)) = self.queues[EVENT].take() {
            // There is one kind of event.
            self.give(EVENT, buffer, None);
            return Event::Gone;
        }
        while let Some((buffer, _)) = self.queues[RX].take() {
            let event = self.packet_from(buffer);
            self.give(RX, buffer, None);
            if event != Event::None {
                return event;
            }
        }
        Event::None
    }

    fn packet_from(&mut self, buffer: usize) -> Event {
        let queue = &self.queues[RX];
        let number = |at: usize| u32::from_le_bytes(queue.read(buffer, at));
        let (to, len, op) = (number(20), number(24) as usize, u16::from_le_bytes(queue.read(buffer, 30)));
        if to != self.port {
            // Of a connection before this one.
            return Event::None;
        }
        match op {
            DATA => self.data(buffer, len),
            CREDIT_REQUEST => {
                self.packet(CREDIT_UPDATE, &[]);
                Event::None
            }
            RESPONSE | CREDIT_UPDATE => Event::None,
            // A reset or a shutdown.
            _ => {
                if op != RESET {
                    self.packet(RESET, &[]);
                }
                Event::Closed
            }
        }
    }

    /// The host sends a question at a time, and waits for its answer; it may come in pieces.
    fn data(&mut self, buffer: usize, len: usize) -> Event {
        self.received = self.received.wrapping_add(len as u32);
        for at in 0..len {
            let [byte] = self.queues[RX].read(buffer, HEADER + at);
            self.question[self.filled % QUESTION] = byte;
            self.filled += 1;
        }
        if self.filled < QUESTION {
            return Event::None;
        }
        self.filled = 0;
        Event::Question(u64::from_le_bytes(self.question))
    }
}
