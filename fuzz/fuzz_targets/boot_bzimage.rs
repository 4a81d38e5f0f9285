//! A bzImage with patches, and any bytes as one.
#![no_main]

mod boot_template;

use boot::Protocol;
use boot_template::{bzimage, check, patched};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(&patched(bzimage(), data), Protocol::Auto);
    check(data, Protocol::Auto);
});
