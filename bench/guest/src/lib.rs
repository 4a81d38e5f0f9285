//! The benchmark's guest, but for its entry: drivers for virtio-vsock, disks and networks that need no operating system.
//!
//! - [`device`]: a device's registers;
//! - [`queue`]: a virtqueue with a buffer for each descriptor;
//! - `packet`: packets of a vsock;
//! - [`socket`]: one stream to the host, on which questions are answered;
//! - [`stream`]: load for a stream;
//! - [`disk`]: load for a disk;
//! - [`flood`]: load for the host;
//! - [`net`]: packets through a network device; [`peer`]: the other end of a TCP connection, on that or on any wire.
//!
//! They are written for devices of one maker, Bulkhead's own, and trust them. They must run at any address that is its physical one.
#![no_std]

pub mod device;
pub mod disk;
pub mod flood;
pub mod net;
mod packet;
pub mod peer;
pub mod queue;
pub mod socket;
pub mod stream;

/// The host's port that it connects to.
pub const PORT: u32 = 1024;
/// Bytes of a question, and of its answer: the same, each bit inverted.
pub const QUESTION: usize = 8;
/// How many steps of work there are to do before the answer: a question's upper half.
pub const WORK_SHIFT: u32 = 32;

/// What stands behind `key` in a word of the kernel's command line.
pub fn value<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    // Nothing compares slices for a program without a C library.
    let begins = |word: &[u8]| word.len() >= key.len() && word.iter().zip(key).all(|(a, b)| a == b);
    line.split(|byte| *byte == b' ' || *byte == 0).find(|word| begins(word)).map(|word| &word[key.len()..])
}

/// A decimal number.
fn decimal(digits: &[u8]) -> Option<u64> {
    let number = digits.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(digit.into())
    });
    number.filter(|_| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_words_rest() {
        assert_eq!(value(b"quiet a=1\0b=2", b"b="), Some(&b"2"[..]));
        assert_eq!((value(b"xa=1 a", b"a="), value(b"a=", b"a=")), (None, Some(&b""[..])));
    }
}
