//! Bytes of a control connection and of files, as either side receives them: in pieces, until the buffer refuses them.
#![no_main]

use guest_protocol::files::{FileMessage, MAX_FILE_FRAME};
use guest_protocol::{FrameBuffer, GuestMessage, HostMessage, MAX_GUEST_FRAME, MAX_HOST_FRAME, StreamHeader};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;

fuzz_target!(|input: (u16, &[u8])| {
    let (piece, bytes) = input;
    receive::<HostMessage>(bytes, usize::from(piece) + 1, MAX_HOST_FRAME);
    receive::<GuestMessage>(bytes, usize::from(piece) + 1, MAX_GUEST_FRAME);
    receive::<FileMessage>(bytes, usize::from(piece) + 1, MAX_FILE_FRAME);
    if let Some(header) = bytes.first_chunk().copied().and_then(StreamHeader::from_bytes) {
        assert_eq!(header.to_bytes(), bytes[..StreamHeader::LEN]);
    }
});

/// Every message is taken, and encodes to something that is read back as the same.
fn receive<T: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(
    mut bytes: &[u8],
    piece: usize,
    limit: usize,
) {
    let mut buffer = FrameBuffer::new(limit);
    while !bytes.is_empty() {
        let space = buffer.space();
        assert!(!space.is_empty() && space.len() <= limit + 4);
        let count = piece.min(space.len()).min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        buffer.received(count);
        bytes = &bytes[count..];
        loop {
            match buffer.take::<T>() {
                Ok(Some(message)) => {
                    let frame = guest_protocol::encode(&message, limit).expect("no longer than what it came from");
                    let again = postcard::from_bytes::<T>(&frame[4..]).expect("our own encoding");
                    assert_eq!(again, message);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
