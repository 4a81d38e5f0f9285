//! The parsers of files that this crate keeps, for the fuzz targets: each takes any bytes, and at worst refuses them.

use crate::{cpuid_cache, pager};

/// A snapshot's `working-set`, with `signed` of a digest that is right.
pub fn working_set(bytes: &[u8], signed: bool) {
    pager::working_set::fuzz(bytes, signed);
}

/// KVM's CPUID leaves, with `signed` of this host and with a checksum that is right.
pub fn cpuid_cache(bytes: &[u8], signed: bool) {
    cpuid_cache::fuzz(bytes, signed);
}
