//! The program `bulkhead-vmm`; all of it is in the library, of which the linker leaves out what only other verbs need.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead_cli::vmm_main()
}
