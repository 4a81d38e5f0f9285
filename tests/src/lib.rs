//! What the tests that drive the built binary share.
//!
//! - [`boots`]: how often a guest's kernel is booted
//! - [`lab`]: where the binary, the kernels and the images are; a test's own run directory; what may not stay behind
//! - [`process`]: a program under test: its streams, its end within a time
//! - [`terminal`]: the same on a terminal
//! - [`control`]: a client of a microVM's control socket
//! - [`elf`]: kernels that are none
//! - [`evidence`]: what processes wait for that do not end
//! - [`cpio`]: an initramfs with one program
//!
//! The same test binary runs on the machine itself and on the emulated AMD-V host (docs/test-hosts.md). What a host cannot
//! do is skipped aloud: a line `SKIP <test>: <reason>`, which `tests/run` counts.
#![forbid(unsafe_code)]

pub mod boots;
pub mod control;
pub mod cpio;
pub mod elf;
pub mod evidence;
pub mod lab;
pub mod process;
pub mod terminal;

pub use lab::{Kvm, Lab};
pub use process::{Ended, Running};
