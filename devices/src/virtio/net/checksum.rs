//! The checksum that a sender leaves to the device (virtio 1.3, 5.1.6.2): the sum over the packet from `csum_start` on, which the
//! sender has begun with that of the pseudo header.

use super::backend::HEADER;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;

/// Completes the checksum of `frame`, if `header` asks for one. False: the header points outside of the frame.
pub fn complete(header: &[u8; HEADER], frame: &mut [u8]) -> bool {
    if header[0] & NEEDS_CSUM == 0 {
        return true;
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (word(6), word(8));
    let field = start + offset;
    if field + 2 > frame.len() {
        return false;
    }
    let sum = match !fold(&frame[start..]) {
        // Means "none" in UDP, and is the same number as this one.
        0 => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The ones' complement sum of big-endian 16-bit words (RFC 1071).
fn fold(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let rest = words.remainder();
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
    let mut sum = sum + rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(start: u16, offset: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    }

    #[test]
    fn a_finished_packet_sums_up_to_all_ones() {
        for len in [20, 21, 1500, 65535] {
            let mut frame: Vec<u8> = (0..len).map(|at| (at * 7 + 3) as u8).collect();
            let head = frame[..4].to_vec();
            frame[4..6].copy_from_slice(&[0, 0]);
            assert!(complete(&header(4, 0), &mut frame));
            assert_eq!((fold(&frame[4..]), &frame[..4]), (0xffff, &head[..]));
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let mut frame = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0];
        assert!(complete(&header(0, 8), &mut frame));
        assert_eq!(frame[8..], (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn no_checksum_is_never_written_as_zero() {
        let mut frame = [0xff, 0xff, 0, 0];
        assert!(complete(&header(0, 2), &mut frame));
        assert_eq!(frame, [0xff; 4]);
    }

    #[test]
    fn a_header_that_points_outside_is_refused_and_one_that_asks_for_nothing_is_not() {
        let mut frame = [1; 64];
        for (start, offset) in [(63, 0), (0, 63), (64, 0), (0xffff, 0xffff), (60, 3)] {
            assert!(!complete(&header(start, offset), &mut frame), "{start} {offset}");
        }
        let mut quiet = header(0xffff, 0xffff);
        quiet[0] = 0;
        assert!(complete(&quiet, &mut frame));
        assert_eq!(frame, [1; 64]);
    }
}
