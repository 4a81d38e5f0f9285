//! The block device (virtio 1.3, 5.2) on raw files and qcow2 images.
//!
//! - [`config`]: the `drives` section, the `--disk` flag, opening files;
//! - [`disk`]: which bytes are in which file; [`qcow2`]: those of an image;
//! - [`request`]: what a request asks for, as a pure function;
//! - [`flight`]: requests under way, and [`engine`]: who carries them out;
//! - [`space`]: the configuration space;
//! - this file: the device.
//!
//! Requests go to an io_uring (or threads) and end in any order; the event loop does not wait for them. Where the driver
//! waits for its kick ([`Io::at_once`]), which only read-only disks answer so, they are read on the spot. Read-only is the
//! host's: the file is opened so.

mod config;
mod disk;
mod engine;
mod flight;
mod qcow2;
mod request;
mod space;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde_json::Value;
use smallvec::SmallVec;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use config::KIND;
use disk::{Disk, Place};
use engine::{Choice, Engine};
use flight::{Action, Flight, Order};
use request::{Header, Operation, Outcome, Request};
use space::CONFIG_LEN;

use super::chain::Chain;
use super::limit::Direction;
use super::table::check_state_version;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};

/// Bytes of a sector in requests and capacity, whatever the block size (5.2.4).
pub const SECTOR: u64 = 512;
const STATE_VERSION: u32 = 1;
const QUEUE_SIZE: u16 = 256;
/// As many as there can be.
static QUEUE_SIZES: [u16; 8] = [QUEUE_SIZE; 8];
/// Most requests that the driver is told of at a time: few, so that one that looks for them asks for more meanwhile.
const TOGETHER: usize = 4;
/// Bytes of the identity string (5.2.6).
const ID_LEN: usize = 20;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// How a disk is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    read_only: bool,
    /// The driver gets no cache to flush: each write is on stable storage before it ends.
    write_through: bool,
    /// Queues, of which there are 1 to 8.
    queues: u16,
    engine: Choice,
}

/// A disk.
struct Blk {
    disk: Disk,
    options: Options,
    id: [u8; ID_LEN],
    sectors: u64,
    config: [u8; CONFIG_LEN],
    /// The driver does not flush, so each write is flushed for it (5.2.6.2).
    write_through: bool,
    /// Who carries requests out, until there is the first one. Made with the disk, if that has files: a guest that runs has it made no
    /// ring.
    engine: Option<Box<dyn Engine>>,
    /// Made with the first request that needs it.
    flight: Option<Flight>,
    /// Something in flight is done.
    done: Arc<EventFd>,
    /// Queues have chains for which there was no room.
    starved: bool,
    /// Requests that the host failed.
    failures: u64,
    /// Why the file does not have all that finished requests have written.
    unsettled: Option<io::Error>,
}

/// What becomes of a chain.
enum Fate {
    /// It has been answered; so many bytes were written.
    Answered(u32),
    /// It is in flight.
    Taken,
    /// It stays in its queue, until the disk's limits let it go on.
    Waits,
}

impl Blk {
    /// A disk, down to whole sectors; `id` is what the guest can ask for, cut to 20 bytes. Fails only for lack of
    /// descriptors.
    fn new(disk: Disk, options: Options, id: &str) -> io::Result<Self> {
        let sectors = disk.bytes() / SECTOR;
        let mut padded = [0; ID_LEN];
        padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let done = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Blk {
            engine: (!disk.is_blank()).then(|| disk.engine(options.engine, done.clone())),
            config: space::config(sectors, &options),
            disk,
            options,
            id: padded,
            sectors,
            write_through: true,
            flight: None,
            done,
            starved: false,
            failures: 0,
            unsettled: None,
        })
    }

    /// Answers a chain, or takes it up.
    fn begin(&mut self, queue: usize, chain: &Chain, io: &mut Io) -> Result<Fate, DeviceFault> {
        // The status is the last byte of the writable part, however it is cut into descriptors (2.7.4).
        let Some(data_len) = chain.writable_len().checked_sub(1) else {
            return Err(DeviceFault::Guest("block request without a status byte"));
        };
        let (header, read_only) = (Header::read(chain), self.options.read_only);
        let parsed = Request::parse(header, chain.readable_len(), data_len, self.sectors, read_only);
        let (direction, bytes) = parsed.as_ref().map_or((Direction::FromGuest, 0), Request::traffic);
        if !io.admits(queue, direction) {
            return Ok(Fate::Waits);
        }
        io.spend(direction, bytes);
        let (outcome, written) = match parsed {
            Err(refused) => (refused, 0),
            Ok(request) => match self.in_flight(&request) {
                Some((action, place)) if !io.at_once => {
                    self.take_off(queue, chain, (action, place), &request, io);
                    return Ok(Fate::Taken);
                }
                _ => self.on_the_spot(&request, chain),
            },
        };
        chain.writable().split_at(data_len as usize).1.write(&[outcome as u8]);
        if outcome != Outcome::Ok {
            io.queues[queue].count_error();
        }
        Ok(Fate::Answered(written + 1))
    }

    /// What an engine would have to do for a request; none if there is nothing to wait for, or no one file has it all.
    fn in_flight(&self, request: &Request) -> Option<(Action, Place)> {
        let (action, offset, len) = match request.operation {
            Operation::Read { offset } => (Action::Read, offset, request.length.into()),
            Operation::Write { offset } => (Action::Write, offset, request.length.into()),
            Operation::Flush if self.options.read_only || self.disk.is_blank() => return None,
            Operation::Flush => return Some((Action::Sync, Place { file: 0, offset: 0 })),
            Operation::GetId => return None,
            Operation::Discard(segment) => (Action::Discard(segment.len), segment.offset, segment.len),
            Operation::WriteZeroes { segment: request::Segment { offset, len }, unmap } => {
                (Action::Zero { len, unmap }, offset, len)
            }
        };
        if len == 0 {
            return None;
        }
        self.disk.place(offset, len).map(|place| (action, place))
    }

    fn take_off(&mut self, queue: usize, chain: &Chain, (action, place): (Action, Place), request: &Request, io: &Io) {
        let (writable, status) = chain.writable().split_at(chain.writable_len() as usize - 1);
        let none = status.split_at(0).0;
        let data = match action {
            Action::Read => writable.split_at(request.length as usize).0,
            Action::Write => chain.readable().split_at(Header::LEN).1,
            Action::Sync | Action::Discard(_) | Action::Zero { .. } => none,
        };
        let changes = matches!(action, Action::Write | Action::Zero { .. });
        let order = Order { queue, chain, action, data, status, place, durable: changes && self.write_through };
        let flight = self.flight.get_or_insert_with(|| {
            let engine = self.engine.take();
            let engine = engine.unwrap_or_else(|| self.disk.engine(self.options.engine, self.done.clone()));
            Flight::new(engine, io.mem.clone())
        });
        flight.take(&order);
    }

    /// Carries out what needs no engine: reads where files meet, what moves nothing, and what is asked of a disk without files.
    fn on_the_spot(&mut self, request: &Request, chain: &Chain) -> (Outcome, u32) {
        let (data, _) = chain.writable().split_at(request.length as usize);
        match request.operation {
            Operation::Read { offset } => match self.disk.read_at(data, offset) {
                Ok(()) => (Outcome::Ok, request.length),
                Err(e) => {
                    self.failed(Action::Read, &e);
                    (Outcome::IoError, 0)
                }
            },
            Operation::GetId => (Outcome::Ok, data.write(&self.id) as u32),
            Operation::Write { .. } if request.length > 0 => {
                self.failed(Action::Write, &io::ErrorKind::StorageFull.into());
                (Outcome::IoError, 0)
            }
            // Of no bytes, or on a disk that nobody writes to; or zeros where nothing else is.
            _ => (Outcome::Ok, 0),
        }
    }

    /// A guest can have the host fail as often as it likes, so only some of it is said.
    fn failed(&mut self, action: Action, error: &io::Error) {
        self.failures += 1;
        if self.failures.is_power_of_two() {
            tracing::warn!("block request {action:?}: host's fault: {error} ({} such so far)", self.failures);
        }
    }

    /// Takes up what a queue has, as far as there is room; the driver is to kick for more only if it is not `quiet`.
    fn drain(&mut self, index: usize, quiet: bool, io: &mut Io) -> Result<(), DeviceFault> {
        while self.flight.as_ref().is_none_or(Flight::has_room) {
            let queue = &mut io.queues[index];
            let chain = if quiet { queue.pop_quietly(io.mem)? } else { queue.pop(io.mem)? };
            let Some(chain) = chain else { return Ok(()) };
            match self.begin(index, &chain, io)? {
                Fate::Answered(written) => io.queues[index].push(io.mem, chain.head(), written)?,
                Fate::Taken => {}
                Fate::Waits => {
                    io.queues[index].undo_pop(chain.head());
                    return Ok(());
                }
            }
        }
        self.starved = true;
        Ok(())
    }

    /// Gives back what is done, the requests of a queue together.
    fn give_back(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        let (mut result, mut queue) = (Ok(()), 0);
        let mut together: SmallVec<[(u16, u32); TOGETHER]> = SmallVec::new();
        while let Some(landed) = self.flight.as_mut().and_then(Flight::next) {
            if let Some((action, error)) = landed.error {
                self.failed(action, &error);
                if let Some(queue) = io.queues.get(landed.queue) {
                    queue.count_error();
                }
            }
            if landed.queue != queue || together.len() == TOGETHER {
                // The others are given back even if these cannot be.
                result = result.and(publish(io, queue, &together));
                together.clear();
                queue = landed.queue;
            }
            together.push((landed.head, landed.written));
        }
        result.and(publish(io, queue, &together))
    }

    /// Takes up what the queues have, submits it and gives back what is done, until nothing of this is left to do. A driver
    /// that looks for its requests' ends goes on meanwhile, without a kick; a budget has an end of that.
    fn go_on(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        for quiet in [true, false] {
            loop {
                self.starved = false;
                (0..io.queues.len()).try_for_each(|index| self.drain(index, quiet, io))?;
                let Some(flight) = self.flight.as_mut() else { break };
                let began = flight.is_waiting();
                flight.submit().map_err(|source| DeviceFault::Host { what: "disk I/O", source })?;
                // What is in the page cache is done by now.
                self.give_back(io)?;
                let Some(flight) = self.flight.as_ref() else { break };
                // Of what takes several jobs, the next waits; and there may be room again.
                let more = began || flight.is_waiting() || self.starved && flight.has_room();
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn publish(io: &mut Io, queue: usize, chains: &[(u16, u32)]) -> Result<(), DeviceFault> {
    let Some(queue) = io.queues.get_mut(queue) else { return Ok(()) };
    Ok(queue.push_together(io.mem, chains)?)
}

impl VirtioDevice for Blk {
    fn info(&self) -> DeviceInfo {
        let Options { read_only, write_through, queues, .. } = self.options;
        let mut features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
        features |= if read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        features |= if write_through { 0 } else { F_FLUSH };
        features |= if queues > 1 { F_MQ } else { 0 };
        let queue_sizes = QUEUE_SIZES.get(..usize::from(queues)).unwrap_or(&QUEUE_SIZES);
        DeviceInfo { name: "blk", id: 2, features, queue_sizes, prompt: read_only && self.disk.image().is_none() }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.done.as_raw_fd(), token: 0 }]
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        self.write_through = features & F_FLUSH == 0;
        Ok(())
    }

    fn process_queue(&mut self, _: usize, io: &mut Io) -> Result<(), DeviceFault> {
        if io.at_once && self.flight.as_ref().is_some_and(Flight::is_busy) {
            // From a time with limits, and for the event loop. Only a full counter fails.
            let _ = self.done.write(1);
            return Ok(());
        }
        self.go_on(io)
    }

    fn process_fd(&mut self, _: u16, io: &mut Io) -> Result<(), DeviceFault> {
        // Nothing to read: what it told has been given back already.
        let _ = self.done.read();
        self.go_on(io)
    }

    fn quiesce(&mut self, io: &mut Io, forget: bool) -> Result<(), DeviceFault> {
        let mut result = Ok(());
        while let Some(flight) = self.flight.as_mut().filter(|flight| flight.is_busy()) {
            flight.wait();
            result = result.and(self.give_back(io));
        }
        // For whoever copies the file now, or opens it again.
        self.unsettled = self.disk.image().and_then(|image| image.settle().err());
        self.starved &= !forget;
        if self.starved {
            // Nothing is in flight whose end would have the queues looked at again. Only a full counter fails.
            let _ = self.done.write(1);
        }
        result
    }

    fn save(&self) -> Result<Value, StateError> {
        if let Some(error) = &self.unsettled {
            let reason = format!("what has been written cannot be brought into the disk's file: {error}");
            return Err(StateError { device: "blk", reason });
        }
        Ok(
            serde_json::json!({ "version": STATE_VERSION, "sectors": self.sectors, "read_only": self.options.read_only }),
        )
    }

    /// The disk itself is not state, but it must be the same size and as writable as it was.
    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version("blk", state, STATE_VERSION)?;
        let same = state.get("sectors") == Some(&self.sectors.into())
            && state.get("read_only") == Some(&self.options.read_only.into());
        if same { Ok(()) } else { Err(StateError { device: "blk", reason: "the disk is not the same".into() }) }
    }
}

#[cfg(test)]
mod tests;
