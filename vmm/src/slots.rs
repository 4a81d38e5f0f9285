//! Guest RAM as KVM's memory slots.
//!
//! A KVM that shadows the guest's page tables allocates and clears 8 bytes for each page of a slot: 1.2 ms for 4 GiB, more than
//! all else that a restored machine waits for. There, a slot is given at first only to where the snapshot holds something,
//! and the rest comes while the guest runs ([`Rest`]). What the guest does with RAM that has no slot yet leaves KVM as an
//! MMIO exit, or as an instruction that KVM cannot emulate; the vCPU waits for the slots then, and goes on. Nothing of it is
//! seen by the guest: that RAM is all zeros, so it holds no code, and page tables in it lead nowhere.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use devices::GuestRam;
use devices::worker::Work;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{MemoryError, Ram};
use crate::snapshot::memory::{PAGE, Source, next_data};
use crate::waiting::{Running, Waiting};

/// RAM gets its first slots in pieces of this size, in bytes.
const CHUNK: u64 = 64 << 20;
/// What the thread does that registers slots: KVM_SET_USER_MEMORY_REGION.
pub static SLOTS: Work =
    Work { stack: 128 << 10, syscalls: &[libc::SYS_ioctl], ioctls: &[0x4020_ae46], ..Work::named("slots") };

/// A range of RAM: guest-physical start, address in this process, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: u64,
    host: u64,
    len: u64,
}

/// Gives all of `ram` to the VM, a slot a region, numbered from `first`.
///
/// `ram` must outlive the VM's vCPUs: [`crate::Machine`] keeps both and drops the vCPUs first.
pub fn register(vm: &VmFd, ram: &Ram, first: u32) -> Result<(), MemoryError> {
    regions(ram).zip(first..).try_for_each(|((piece, _), number)| set(vm, number, piece))
}

/// Gives the VM the parts of `ram` in which `sources`, which RAM's content comes from, hold something. The same must hold for
/// `ram` as in [`register`], and no second vCPU may run before [`Rest::start`] is through: what is done with RAM without a slot
/// is not atomic.
pub fn register_used(vm: &VmFd, ram: &Ram, first: u32, sources: &[Source]) -> Result<Rest, MemoryError> {
    let (mut used, mut rest) = (Vec::new(), Vec::new());
    // Where something is that has no slot yet: asked for once on the way there, not for each piece.
    let mut next = next_used(sources, 0);
    for (region, offset) in regions(ram) {
        let mut at = 0;
        while at < region.len {
            let len = CHUNK.min(region.len - at);
            let piece = Piece { start: region.start + at, host: region.host + at, len };
            if next < offset + at {
                next = next_used(sources, offset + at);
            }
            append(if next < offset + at + len { &mut used } else { &mut rest }, piece);
            at += len;
        }
    }
    (first..).zip(&used).try_for_each(|(number, piece)| set(vm, number, *piece))?;
    Ok(Rest {
        first: first + used.len() as u32,
        pieces: growing(&rest),
        ram: ram.guest().clone(),
        done: Arc::default(),
    })
}

/// The first place at or behind `offset` that some source holds something for; past all RAM if there is none.
fn next_used(sources: &[Source], offset: u64) -> u64 {
    // One that cannot be asked holds something.
    let places = sources.iter().filter_map(|source| next_data(source, offset).unwrap_or(Some(offset)));
    places.min().unwrap_or(u64::MAX)
}

/// The regions of RAM, with their places among all of it.
fn regions(ram: &Ram) -> impl Iterator<Item = (Piece, u64)> {
    let mut offset = 0;
    ram.guest().iter().map(move |region| {
        let piece = Piece { start: region.start_addr().0, host: region.as_ptr() as u64, len: region.len() };
        offset += piece.len;
        (piece, offset - piece.len)
    })
}

/// Cuts pieces into ones that grow from [`CHUNK`] on. While KVM makes a slot, a vCPU that enters the guest for the first time
/// waits: by then that should not take long.
fn growing(pieces: &[Piece]) -> Vec<Piece> {
    let (mut cut, mut most) = (Vec::new(), CHUNK);
    for &Piece { mut start, mut host, mut len } in pieces {
        while len > 0 {
            let part = len.min(most);
            cut.push(Piece { start, host, len: part });
            (start, host, len, most) = (start + part, host + part, len - part, most * 2);
        }
    }
    cut
}

/// Adds a piece, to the last one if it goes on from there.
fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.start + last.len == piece.start && last.host + last.len == piece.host => {
            last.len += piece.len
        }
        _ => pieces.push(piece),
    }
}

fn set(vm: &VmFd, slot: u32, piece: Piece) -> Result<(), MemoryError> {
    debug_assert!(piece.len % PAGE as u64 == 0);
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: piece.start,
        memory_size: piece.len,
        userspace_addr: piece.host,
    };
    // SAFETY: the range is part of a live mapping, owned by RAM, which the caller keeps alive for as long as a vCPU can run;
    // slots do not overlap because neither regions nor pieces do.
    unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot { start: piece.start, source })
}

/// RAM that has no slot yet.
pub struct Rest {
    /// Number of its first slot.
    first: u32,
    pieces: Vec<Piece>,
    ram: GuestRam,
    done: Arc<Done>,
}

/// Whether all RAM has its slots.
#[derive(Debug, Default)]
struct Done {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Rest {
    /// Whether there is anything to wait for.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// For a vCPU.
    pub fn late(&self) -> Late {
        Late { ram: self.ram.clone(), done: self.done.clone(), waited: false }
    }

    /// Gives the VM the rest, on the thread that waits for that. `failed` is told if that fails; the vCPU must not go on then.
    pub fn start(self, vm: Arc<VmFd>, waiting: Waiting, failed: impl FnOnce(MemoryError) + Send + 'static) -> Running {
        waiting.begin(move || {
            let mut numbered = (self.first..).zip(&self.pieces);
            if let Err(error) = numbered.try_for_each(|(number, piece)| set(&vm, number, *piece)) {
                failed(error);
            }
        })
    }
}

impl Drop for Rest {
    /// Whatever became of it, nobody has to wait any more.
    fn drop(&mut self) {
        *self.done.done.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.done.changed.notify_all();
    }
}

/// RAM whose slots come late, as the one vCPU that runs sees it.
#[derive(Debug, Clone)]
pub struct Late {
    ram: GuestRam,
    done: Arc<Done>,
    waited: bool,
}

impl Late {
    fn wait(&self) {
        let mut done = self.done.done.lock().unwrap_or_else(PoisonError::into_inner);
        while !*done {
            done = self.done.changed.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// KVM could not do an instruction: true, once all slots are there, if that may have been for want of one.
    pub fn may_be_why(&mut self) -> bool {
        self.wait();
        !std::mem::replace(&mut self.waited, true)
    }

    /// Does what an MMIO exit asks for, if it is RAM that it is about.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.is_ram(address, data.len()) && self.ram.read_slice(data, GuestAddress(address)).is_ok()
    }

    /// The same for a write.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.is_ram(address, data.len()) && self.ram.write_slice(data, GuestAddress(address)).is_ok()
    }

    fn is_ram(&self, address: u64, len: usize) -> bool {
        let is_ram = self.ram.check_range(GuestAddress(address), len);
        if is_ram {
            self.wait();
        }
        is_ram
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pieces_that_go_on_are_one() {
        let piece = |start, host, len| Piece { start, host, len };
        let mut pieces = Vec::new();
        for next in [piece(0, 100, 10), piece(10, 110, 10), piece(20, 500, 5), piece(30, 505, 5)] {
            append(&mut pieces, next);
        }
        assert_eq!(pieces, [piece(0, 100, 20), piece(20, 500, 5), piece(30, 505, 5)]);
    }

    #[test]
    fn what_holds_something_comes_first() {
        let Ok(kvm) = crate::host::open() else {
            println!("SKIP what_holds_something_comes_first: no /dev/kvm");
            return;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let (base, over) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        base.set_len((1 << 30) + PAGE as u64).unwrap();
        base.write_all_at(b"x", 5 * CHUNK + 17).unwrap();
        let extents = Some(vec![(0, 1), (9 * CHUNK / PAGE as u64 - 1, 1)]);
        let sources = [Source { file: base, extents: None }, Source { file: over, extents }];
        let ram = Ram::new(1024).unwrap();
        let rest = register_used(&vm, &ram, 1, &sources).unwrap();
        let starts: Vec<_> = rest.pieces.iter().map(|piece| (piece.start / CHUNK, piece.len / CHUNK)).collect();
        assert_eq!((rest.first, starts), (4, vec![(1, 1), (2, 2), (4, 1), (6, 2), (9, 7)]));
        let mut late = rest.late();
        let waiting = Waiting::start_worker(&SLOTS).unwrap();
        let coming = rest.start(vm.clone(), waiting, |error| panic!("{error}"));
        let mut word = [1; 4];
        assert!(late.write(1 << 20, &[7; 4]) && late.read(1 << 20, &mut word) && word == [7; 4]);
        assert!(!late.read(0xd000_0000, &mut word), "no RAM");
        assert!(late.may_be_why() && !late.may_be_why());
        drop(coming);
        // All of RAM has slots now: none is free for another.
        let piece = Piece { start: 15 * CHUNK, host: ram.guest().iter().next().unwrap().as_ptr() as u64, len: CHUNK };
        assert!(set(&vm, 99, piece).is_err());
    }
}
