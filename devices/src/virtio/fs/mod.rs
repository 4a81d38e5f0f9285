//! The file system device (virtio 1.3, 5.11): directories and files of the host in the guest.
//!
//! - [`config`]: the `fs` section, the `--fs` flag, finding what is shared;
//! - [`guard`]: what a guest may do with it, whatever it asks for; [`operations`]: what it can ask for;
//! - [`server`]: FUSE, the library's business, on a file system of which each volume is an entry;
//! - [`memory`]: guest memory as the library sees it;
//! - [`pool`]: the threads that requests are carried out on;
//! - this file: the device.
//!
//! ```text
//! kick ─► chain, checked ─► Job ─► thread: FUSE ─► Vfs ─► Guard ─► the host's directory ─► Done ─► event ─► used ring
//! ```
//!
//! Without a volume there is nobody to ask, and the device refuses whatever it is asked, itself: no thread, and no file.
//!
//! What a guest has open and knows by number is in the server, and is not saved: the state of a device says only that the
//! guest has nothing open. A device that is not so cannot be saved, with the reason.

mod config;
mod guard;
mod memory;
mod operations;
mod pool;
mod server;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde_json::Value;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use config::KIND;
use config::Shared;
use memory::{Mailbox, Spans};
use pool::{Job, Pool};
use server::Server;

use super::table::check_state_version;
use super::{DeviceFault, DeviceFd, DeviceInfo, Io, StateError, VirtioDevice};

const NAME: &str = "fs";
const STATE_VERSION: u32 = 1;
/// Entries of a queue: 1 MiB of data in pages, and its headers.
const QUEUE_SIZE: u16 = 256;
/// Bytes of the tag in the configuration space (5.11.4).
const TAG_LEN: usize = 36;

/// Directories of the host.
pub struct Fs {
    config: [u8; TAG_LEN + 4],
    shared: Arc<Shared>,
    server: Arc<Server>,
    /// Something is done.
    event: Arc<EventFd>,
    /// From the first request on.
    pool: Option<Pool>,
}

impl Fs {
    fn new(tag: &str, shared: Shared) -> std::io::Result<Self> {
        let shared = Arc::new(shared);
        let mut config = [0; TAG_LEN + 4];
        config.iter_mut().zip(tag.bytes()).for_each(|(to, from)| *to = from);
        config[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());
        let server = Arc::new(Server::new(shared.clone()));
        Ok(Fs { config, shared, server, event: Arc::new(EventFd::new(EFD_NONBLOCK)?), pool: None })
    }

    /// Gives back what has been carried out.
    fn publish(&mut self, io: &mut Io) -> Result<(), DeviceFault> {
        for done in self.pool.iter().flat_map(Pool::done) {
            let broken = DeviceFault::Host { what: "file system", source: std::io::ErrorKind::Other.into() };
            let written = done.written.ok_or(broken)?;
            io.queues[done.queue].push(io.mem, done.head, written)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Fs {
    fn info(&self) -> DeviceInfo {
        // The first is for requests that nothing may hold up (5.11.2): the guest forgets by it.
        DeviceInfo { name: NAME, id: 26, features: 0, queue_sizes: &[QUEUE_SIZE; 2], prompt: false }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.event.as_raw_fd(), token: 0 }]
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            if self.shared.volumes.is_empty() {
                let (head, written) = (chain.head(), server::nothing_here(&chain));
                io.queues[index].push(io.mem, head, written)?;
                continue;
            }
            if self.pool.is_none() {
                let mem = io.mem.clone();
                let pool = Pool::start(self.event.clone(), || Mailbox::new(&mem));
                self.pool = Some(pool.map_err(|source| DeviceFault::Host { what: "threads", source })?);
            }
            let job = Job { queue: index, head: chain.head(), spans: Spans::of(&chain), server: self.server.clone() };
            if let Some(pool) = &self.pool {
                pool.add(job);
            }
        }
        Ok(())
    }

    fn process_fd(&mut self, _: u16, io: &mut Io) -> Result<(), DeviceFault> {
        self.publish(io)
    }

    fn quiesce(&mut self, io: &mut Io, forget: bool) -> Result<(), DeviceFault> {
        if let Some(pool) = &self.pool {
            pool.settle(forget);
        }
        if !forget {
            return self.publish(io);
        }
        // What was done belongs to queues that are no more, what is open to a driver that is no more.
        self.pool.iter().for_each(|pool| drop(pool.done()));
        self.server = Arc::new(Server::new(self.shared.clone()));
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        if self.server.in_use() {
            let reason = "the guest has the host's directories mounted, and what it has open there cannot be saved";
            return Err(StateError { device: NAME, reason: reason.into() });
        }
        Ok(serde_json::json!({ "version": STATE_VERSION }))
    }

    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version(NAME, state, STATE_VERSION)
    }
}

#[cfg(test)]
mod tests;
