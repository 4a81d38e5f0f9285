//! Any bytes as the notes of a vmlinux.
#![no_main]

mod boot_template;

use boot::Protocol;
use boot_template::{check, elf};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| check(&elf(data), Protocol::Pvh));
