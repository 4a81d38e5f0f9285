//! The block device (virtio 1.3, 5.2) on raw files.
//!
//! - [`config`]: the `drives` section, the `--disk` flag, opening files;
//! - [`backend`]: bytes at offsets: a raw file, or several read-only files one after the other;
//! - [`request`]: what a request asks for, as a pure function;
//! - this file: the device.
//!
//! Requests are worked on one after the other on the event loop. Read-only is the host's: the file is opened so.

mod backend;
mod config;
mod request;

use std::io;

use serde_json::Value;

pub use backend::Backend;
pub use config::KIND;
use request::{Header, Operation, Outcome, Request};

use super::chain::Chain;
use super::table::check_state_version;
use super::{DeviceFault, DeviceInfo, Io, StateError, VirtioDevice};
use crate::GuestRam;

/// Bytes of a sector in requests and capacity, whatever the block size (5.2.4).
pub const SECTOR: u64 = 512;
const STATE_VERSION: u32 = 1;
const QUEUE_SIZE: u16 = 256;
/// Bytes of the identity string (5.2.6).
const ID_LEN: usize = 20;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;

/// Bytes of the configuration space that have a meaning here: up to the topology (5.2.4).
const CONFIG_LEN: usize = 24;

/// A disk.
pub struct Blk {
    backend: Box<dyn Backend>,
    id: [u8; ID_LEN],
    read_only: bool,
    sectors: u64,
    config: [u8; CONFIG_LEN],
    /// The driver does not flush, so each write is flushed for it (5.2.6.2).
    write_through: bool,
}

impl Blk {
    /// A disk with the bytes of `backend`, down to whole sectors; `id` is what the guest can ask for, cut to 20 bytes.
    pub fn new(backend: Box<dyn Backend>, read_only: bool, id: &str) -> Self {
        let sectors = backend.bytes() / SECTOR;
        let mut config = [0; CONFIG_LEN];
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        // Of a chain, the header and the status are not data.
        config[12..16].copy_from_slice(&u32::from(QUEUE_SIZE - 2).to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        let mut padded = [0; ID_LEN];
        padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        Blk { backend, id: padded, read_only, sectors, config, write_through: true }
    }

    /// Carries a request out; returns the bytes written into the chain besides the status.
    fn execute(&mut self, request: &Request, chain: &Chain) -> io::Result<u32> {
        let (data, _) = chain.writable().split_at(request.length as usize);
        match request.operation {
            Operation::Read { offset } => {
                self.backend.read_at(data, offset)?;
                Ok(request.length)
            }
            Operation::Write { offset } => {
                let (_, data) = chain.readable().split_at(Header::LEN);
                self.backend.write_at(data, offset)?;
                if self.write_through {
                    self.backend.flush()?;
                }
                Ok(0)
            }
            Operation::Flush => {
                self.backend.flush()?;
                Ok(0)
            }
            Operation::GetId => Ok(data.write(&self.id) as u32),
        }
    }

    fn serve(&mut self, chain: &Chain) -> Result<u32, DeviceFault> {
        // The status is the last byte of the writable part, however it is cut into descriptors (2.7.4).
        let Some(data_len) = chain.writable_len().checked_sub(1) else {
            return Err(DeviceFault::Guest("block request without a status byte"));
        };
        let parsed = Request::parse(Header::read(chain), chain.readable_len(), data_len, self.sectors, self.read_only);
        let (outcome, written) = match parsed {
            Err(refused) => (refused, 0),
            Ok(request) => match self.execute(&request, chain) {
                Ok(written) => (Outcome::Ok, written),
                Err(e) => {
                    tracing::warn!("block request {:?}: host's fault: {e}", request.operation);
                    (Outcome::IoError, 0)
                }
            },
        };
        chain.writable().split_at(data_len as usize).1.write(&[outcome as u8]);
        Ok(written + 1)
    }

    fn drain(&mut self, index: usize, mem: &GuestRam, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[index].pop(mem)? {
            let written = self.serve(&chain)?;
            io.queues[index].push(mem, chain.head(), written)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Blk {
    fn info(&self) -> DeviceInfo {
        let read_only = if self.read_only { F_RO } else { 0 };
        let features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | read_only;
        DeviceInfo { name: "blk", id: 2, features, queue_sizes: &[QUEUE_SIZE], prompt: self.read_only }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        self.write_through = features & F_FLUSH == 0;
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        self.drain(index, io.mem, io)
    }

    /// No request outlives its event.
    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> Value {
        serde_json::json!({ "version": STATE_VERSION, "sectors": self.sectors, "read_only": self.read_only })
    }

    /// The disk itself is not state, but it must be the same size and as writable as it was.
    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version("blk", state, STATE_VERSION)?;
        let same = state.get("sectors") == Some(&self.sectors.into())
            && state.get("read_only") == Some(&self.read_only.into());
        if same { Ok(()) } else { Err(StateError { device: "blk", reason: "the disk is not the same".into() }) }
    }
}

#[cfg(test)]
mod tests;
