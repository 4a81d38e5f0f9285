//! A vmlinux with patches, and any bytes as one: by the 64-bit entry and by PVH.
#![no_main]

mod boot_template;

use boot::Protocol;
use boot_template::{check, elf, patched};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let patched = patched(elf(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01"), data);
    for kernel in [patched.as_slice(), data] {
        check(kernel, Protocol::Linux64);
        check(kernel, Protocol::Pvh);
    }
});
