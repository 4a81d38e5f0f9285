//! Guest memory as the library sees it.
//!
//! The library takes a descriptor chain of a queue, of other versions of the crates than the rest of the devices. Each thread has
//! a queue of its own for that, in memory that no guest can touch: the chain in it is made of what the checked chain of
//! the guest has come to, so that no descriptor of the guest is read again. Its addresses are those of this process.

use std::io;
use std::mem::size_of;
use std::sync::atomic::Ordering;

use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use library_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};
use library_queue::desc::RawDescriptor;
use library_queue::desc::split::Descriptor;
use library_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion as _};

use crate::GuestRam;
use crate::virtio::chain::{Buffers, Chain};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Entries of the private queue: as many as a chain can have.
const SIZE: u16 = super::QUEUE_SIZE;
/// Where it is; nothing of this process ever lies there (vm.mmap_min_addr, and pages are mapped far above).
const BASE: u64 = 0x1000;
const AVAILABLE: u64 = BASE + SIZE as u64 * size_of::<Descriptor>() as u64;
const USED: u64 = AVAILABLE + 0x1000;
const LENGTH: usize = 0x4000;

/// A chain's memory: addresses in this process and lengths.
pub struct Spans {
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

impl Spans {
    /// Those of a chain that has been checked. They are good for as long as guest memory is mapped.
    pub fn of(chain: &Chain) -> Self {
        let list = |buffers: Buffers| {
            let span = |slice: vm_memory::VolatileSlice| (slice.ptr_guard().as_ptr() as u64, slice.len() as u32);
            buffers.slices().map(span).collect()
        };
        Spans { readable: list(chain.readable()), writable: list(chain.writable()) }
    }
}

/// Where a thread puts a request for the library to take.
pub struct Mailbox {
    memory: GuestMemoryMmap,
    queue: Queue,
    /// Requests so far.
    count: u16,
    /// What `memory` is a view of.
    _ram: GuestRam,
}

impl Mailbox {
    /// One for requests in `ram`.
    pub fn new(ram: &GuestRam) -> io::Result<Self> {
        let mut regions = vec![region(MmapRegion::new(LENGTH).map_err(io::Error::other)?, BASE)?];
        for part in ram.iter() {
            let start = ram.get_host_address(part.start_addr()).map_err(io::Error::other)?;
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_NORESERVE | libc::MAP_PRIVATE);
            // SAFETY: the region is mapped for reading and writing for as long as the clone of `ram` in the mailbox lives;
            // the view does not unmap it.
            let view = unsafe { MmapRegion::build_raw(start, part.len() as usize, protection, flags) };
            regions.push(region(view.map_err(io::Error::other)?, start as u64)?);
        }
        regions.sort_by_key(|region| region.start_addr());
        let memory = GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)?;
        let mut queue = Queue::new(SIZE).map_err(io::Error::other)?;
        queue.set_desc_table_address(Some(BASE as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        Ok(Mailbox { memory, queue, count: 0, _ram: ram.clone() })
    }

    /// The two ends of a request.
    pub fn open(&mut self, spans: &Spans) -> io::Result<(Reader<'_>, Writer<'_>)> {
        let spans = || {
            let readable = spans.readable.iter().map(|span| (span, 0));
            readable.chain(spans.writable.iter().map(|span| (span, WRITE)))
        };
        let count = spans().count();
        for (index, (&(address, len), flags)) in spans().enumerate() {
            let flags = flags | if index + 1 < count { NEXT } else { 0 };
            let entry = RawDescriptor::from(Descriptor::new(address, len, flags, index as u16 + 1));
            let at = BASE + (index * size_of::<Descriptor>()) as u64;
            self.memory.write_obj(entry, GuestAddress(at)).map_err(io::Error::other)?;
        }
        // The ring has head 0 everywhere.
        self.count = self.count.wrapping_add(1);
        self.memory
            .store(self.count.to_le(), GuestAddress(AVAILABLE + 2), Ordering::Release)
            .map_err(io::Error::other)?;
        let chain = self.queue.iter(&self.memory).map_err(io::Error::other)?.next();
        let chain = chain.ok_or(io::ErrorKind::InvalidInput)?;
        let reader = Reader::from_descriptor_chain(&self.memory, chain.clone()).map_err(io::Error::other)?;
        let writer = VirtioFsWriter::new(&self.memory, chain).map_err(io::Error::other)?;
        Ok((reader, Writer::VirtioFs(writer)))
    }
}

fn region(mapping: MmapRegion, base: u64) -> io::Result<GuestRegionMmap> {
    GuestRegionMmap::new(mapping, GuestAddress(base)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
