//! Descriptor tables of any kind: what is accepted lies in guest RAM and is as long as it says.

#![no_main]

mod device;

use std::cell::RefCell;

use device::Input;
use devices::GuestRam;
use devices::virtio::chain::{Chain, DescriptorTable};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const SIZE: u64 = 1 << 20;

thread_local! {
    static RAM: RefCell<GuestRam> =
        RefCell::new(GuestRam::from_ranges(&[(GuestAddress(0), SIZE as usize)]).expect("guest RAM"));
}

fuzz_target!(|data: &[u8]| {
    RAM.with_borrow(|mem| {
        let mut input = Input(data);
        let settings = input.byte();
        let size = 1 << (settings & 7);
        let head = input.byte().into();
        // Tables at two places; addresses mostly within reach.
        for at in 0..32u64 {
            let [address, len] = [input.u64(), input.u64()];
            let address = if address >> 60 == 0 { address & (SIZE - 1) } else { address };
            let descriptor = [address, len & 0xffff_0007_ffff_ffff];
            let base = if at < 16 { 0x1000 } else { 0x2000 - 16 * 16 };
            mem.write_obj(descriptor, GuestAddress(base + 16 * at)).expect("table");
        }
        let table = DescriptorTable { address: 0x1000, size, indirect: settings & 8 != 0 };
        let Ok(chain) = Chain::walk(mem, table, head) else {
            return;
        };
        for (part, len) in [(chain.readable(), chain.readable_len()), (chain.writable(), chain.writable_len())] {
            assert_eq!(part.slices().map(|slice| slice.len()).sum::<usize>(), len as usize);
            let (first, rest) = part.split_at(settings.into());
            assert_eq!(first.len() + rest.len(), part.len());
            assert_eq!(rest.slices().map(|slice| slice.len()).sum::<usize>(), rest.len());
            assert_eq!(first.read(&mut [0; 512]), first.len());
        }
        assert_eq!(chain.writable().write(&[1; 100]), 100.min(chain.writable_len() as usize));
    });
});
