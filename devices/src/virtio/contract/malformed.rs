//! Chains that no driver may offer.

use super::{DATA, TABLE};
use crate::virtio::testing::{INDIRECT, NEXT, WRITE};

/// A chain: its descriptors as (index, address, length, flags, next), and where they lie.
pub type Descriptors = &'static [(u16, u64, u32, u16, u16)];

/// Malformed chains; those of the second list lie in an indirect table of the length given.
pub const BAD: &[(&str, Descriptors)] = &[
    ("self-loop", &[(0, DATA, 16, NEXT, 0)]),
    ("loop of two", &[(0, DATA, 16, NEXT, 1), (1, DATA, 16, NEXT, 0)]),
    ("next outside the table", &[(0, DATA, 16, NEXT, 0xffff)]),
    ("readable after writable", &[(0, DATA, 16, NEXT | WRITE, 1), (1, DATA, 16, 0, 0)]),
    ("next and indirect", &[(0, TABLE, 16, NEXT | INDIRECT, 1), (1, DATA, 16, 0, 0)]),
    ("indirect length 0", &[(0, TABLE, 0, INDIRECT, 0)]),
    ("indirect length 17", &[(0, TABLE, 17, INDIRECT, 0)]),
    ("indirect length above the queue", &[(0, TABLE, 16 * 257, INDIRECT, 0)]),
    ("indirect length 4 GiB", &[(0, TABLE, 0xffff_fff0, INDIRECT, 0)]),
    ("indirect table outside", &[(0, 0x8000_0000, 16, INDIRECT, 0)]),
    ("indirect table wraps", &[(0, u64::MAX - 7, 16, INDIRECT, 0)]),
    ("buffer in the hole", &[(0, 0x8000_0000, 16, 0, 0)]),
    ("buffer across the end", &[(0, (16 << 20) - 8, 16, 0, 0)]),
    ("buffer after the last byte", &[(0, (1 << 32) + (1 << 20), 1, WRITE, 0)]),
    ("buffer wraps", &[(0, u64::MAX - 7, 16, 0, 0)]),
    ("buffer of 4 GiB", &[(0, 0, u32::MAX, WRITE, 0)]),
    ("total of 4 GiB", &[(0, DATA, 1 << 20, NEXT, 1), (1, 0, u32::MAX, 0, 0)]),
];

pub const BAD_INDIRECT: &[(&str, u32, Descriptors)] = &[
    ("indirect in indirect", 16, &[(0, TABLE, 16, INDIRECT, 0)]),
    ("next outside the indirect table", 32, &[(0, DATA, 16, NEXT, 2)]),
    ("loop in the indirect table", 32, &[(0, DATA, 16, NEXT, 1), (1, DATA, 16, NEXT, 0)]),
    ("order in the indirect table", 32, &[(0, DATA, 16, NEXT | WRITE, 1), (1, DATA, 16, 0, 0)]),
];
