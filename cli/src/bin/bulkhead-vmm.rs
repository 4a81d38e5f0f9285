//! The program `bulkhead-vmm`; all of it is in the library, of which the linker leaves out what only other verbs need.
#![no_main]
#![deny(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::panic;

/// Exit code of a program that panicked, as Rust's own entry gives it.
const PANICKED: u8 = 101;

/// Where the C library starts the program. Rust's own entry would have /proc/self/maps read for where the stack ends, and a
/// second stack made for telling of an overflow, for each thread: work that each microVM would wait for. An overflow ends
/// this program all the same, by SIGSEGV.
// SAFETY: the C library calls what has this name with these types, and nothing else in the program has it.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    let code = panic::catch_unwind(bulkhead_cli::vmm_main).unwrap_or(PANICKED);
    std::process::exit(code.into())
}
