//! The program: entries of both processors.
#![no_std]
#![no_main]

use core::arch::global_asm;

use adversary::{machine, second};

global_asm!(include_str!("../../../guest-images/ring3/entry.s"), include_str!("../../../guest-images/ring3/second.s"));

#[unsafe(no_mangle)]
extern "C" fn ring3() -> ! {
    machine::run()
}

#[unsafe(no_mangle)]
extern "C" fn second() -> ! {
    second::run()
}
