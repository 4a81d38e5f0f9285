//! The program `bulkhead-vmm`; all of it is in the library, of which the linker leaves out what only other verbs need.
#![no_main]
#![deny(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic;

/// Exit code of a program that panicked, as Rust's own entry gives it.
const PANICKED: u8 = 101;

/// Where the C library starts the program. Rust's own entry would have /proc/self/maps read for where the stack ends, and a
/// second stack made for telling of an overflow, for each thread: work that each microVM would wait for. An overflow ends
/// this program all the same, by SIGSEGV.
// SAFETY: the C library calls what has this name with these types, and nothing else in the program has it.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let word = |place| {
        // SAFETY: the C library gives `count` strings, which stay as they are.
        let word = unsafe { CStr::from_ptr(*words.add(place)) };
        OsStr::from_bytes(word.to_bytes()).to_owned()
    };
    let words: Vec<OsString> = (1..usize::try_from(count).unwrap_or(0)).map(word).collect();
    let code = panic::catch_unwind(|| bulkhead_cli::vmm_main(&words)).unwrap_or(PANICKED);
    std::process::exit(code.into())
}

// Where the kernel starts the program (`build.rs` says so to the linker), on the way to the C library's `_start`. That relocates
// the program, one word after the other, with a page fault for each of 40 pages; asked for in one call (MADV_POPULATE_WRITE) they
// cost half, and so does what is always used of the stack. Where a kernel does not know it, they come one by one. (All of the text
// would take longer, a third of a millisecond, than the fortieth of it that is used.)
//
// SAFETY: no memory changes but what the program's own pages of data cost, and registers are as the kernel, or a dynamic linker,
// has left them: a system call takes none but rax, rcx and r11, and RDX, which `_start` looks at, is given back.
#[allow(unsafe_code)]
mod start {
    /// Of x86-64 (asm/unistd_64.h).
    const SYS_MADVISE: i32 = 28;
    /// asm-generic/mman-common.h, Linux 5.14.
    const MADV_POPULATE_WRITE: i32 = 23;

    std::arch::global_asm!(
        ".globl bulkhead_start",
        "bulkhead_start:",
        "mov r9, rdx",
        "lea rdi, [rip + __init_array_start]",
        "and rdi, -{page}",
        "lea rsi, [rip + _end]",
        "sub rsi, rdi",
        "mov edx, {populate}",
        "mov eax, {madvise}",
        "syscall",
        "mov rdi, rsp",
        "and rdi, -{page}",
        "sub rdi, {stack}",
        "mov esi, {stack}",
        "mov eax, {madvise}",
        "syscall",
        "mov rdx, r9",
        "jmp _start",
        page = const 4096,
        stack = const 7 * 4096,
        populate = const MADV_POPULATE_WRITE,
        madvise = const SYS_MADVISE,
    );
}
