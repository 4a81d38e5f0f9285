//! How the kernel enters the program, and how it leaves when it cannot go on.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};
use core::fmt::Write;
use core::panic::PanicInfo;
use guest_init::sys::{self, complain};

// The System V ABI's process entry: rsp is 16-byte aligned and points at the argument count; there is no return address. The
// environment is not used.
global_asm!(
    ".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym enter
);

/// At `arguments`: how many there are, and a pointer to each.
extern "C" fn enter(arguments: *const usize) -> ! {
    // SAFETY: the kernel has put them there (execve(2)): a count, and as many pointers to terminated strings, which stay.
    let argument = |at: usize| unsafe {
        (at < arguments.read()).then(|| CStr::from_ptr(arguments.add(1 + at).read() as *const c_char))
    };
    super::main(argument(1), argument(2))
}

/// A line that is cut off when it is full: there may be no memory to be had.
struct Line {
    text: [u8; 256],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for (slot, byte) in self.text.iter_mut().skip(self.length).zip(text.bytes()) {
            *slot = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// A defect, or no memory left. The end of the virtual machine is how the host learns of it; the console says why.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut line = Line { text: [0; 256], length: 0 };
    let _ = writeln!(line, "init: {info}");
    let text = line.text.get(..line.length).and_then(|text| core::str::from_utf8(text).ok());
    complain(text.unwrap_or("init: defect\n"));
    // A helper's defect is its own.
    if sys::is_helper() {
        sys::exit(101);
    }
    super::stop(guest_protocol::End::Reset)
}

// The toolchain's own libraries come compiled for unwinding and name these two. Nothing unwinds here: a panic ends the program.

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    super::stop(guest_protocol::End::Reset)
}
