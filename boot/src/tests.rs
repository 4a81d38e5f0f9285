//! The whole recipe, on small kernels made here.

mod build;
mod bzimage;
mod elf;
mod files;
mod initrd;
mod layout;
mod mptable;
mod mutations;
mod structures;

use vm_memory::GuestAddress;

use crate::{BootError, CpuState, Image, Platform, Protocol, layout::ram_regions, load_images};

type Memory = vm_memory::GuestMemoryMmap<()>;

const MIB: u64 = 1 << 20;
const PLATFORM: Platform = Platform { cpus: 2, ioapic: 0xfec0_0000, lapic: 0xfee0_0000, irq_pins: 24 };

fn memory(bytes: u64) -> Memory {
    let regions: Vec<(GuestAddress, usize)> =
        ram_regions(bytes).unwrap().into_iter().map(|(start, len)| (start, len as usize)).collect();
    Memory::from_ranges(&regions).unwrap()
}

/// Loads a kernel called `k` into fresh memory.
fn boot(kernel: &[u8], protocol: Protocol, mib: u64) -> Result<(Memory, CpuState), BootError> {
    let mem = memory(mib * MIB);
    let image = Image::from_bytes("k", kernel).unwrap();
    let state = load_images(&mem, &image, None, "console=ttyS0", protocol, &PLATFORM)?;
    Ok((mem, state))
}

/// The error of a kernel that must not load.
fn refusal(kernel: &[u8], protocol: Protocol) -> String {
    match boot(kernel, protocol, 64) {
        Ok((_, state)) => panic!("it loaded: {state:x?}"),
        Err(error) => error.to_string(),
    }
}
