//! Frames: a `u32` little-endian body length, then the message as postcard. Does no I/O.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length before the body.
const PREFIX: usize = 4;
/// What a buffer holds before it has to grow: every message but a large `Start`.
const INITIAL: usize = 4 << 10;

/// Why bytes are not a message, or a message not a frame. After one of these the connection is useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The body is larger than the receiver takes.
    TooLarge {
        /// Length of the body in bytes.
        length: usize,
        /// Most bytes it may have.
        limit: usize,
    },
    /// The body is not exactly one message.
    Malformed,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { length, limit } => {
                write!(f, "message of {length} bytes is larger than the limit of {limit}")
            }
            Self::Malformed => f.write_str("bytes are not a message of this protocol"),
        }
    }
}

impl core::error::Error for FrameError {}

/// The frame of a message.
///
/// # Errors
/// [`FrameError::TooLarge`] if the body has more than `limit` bytes.
pub fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let frame = postcard::to_extend(message, vec![0; PREFIX]).map_err(|_| FrameError::Malformed)?;
    let length = frame.len() - PREFIX;
    let prefix =
        u32::try_from(length).ok().filter(|_| length <= limit).ok_or(FrameError::TooLarge { length, limit })?;
    let mut frame = frame;
    for (byte, value) in frame.iter_mut().zip(prefix.to_le_bytes()) {
        *byte = value;
    }
    Ok(frame)
}

/// Collects received bytes and takes messages out of them. Never holds more than one frame's limit and a prefix.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    filled: usize,
    limit: usize,
}

impl FrameBuffer {
    /// An empty buffer that refuses bodies of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { bytes: vec![0; INITIAL.min(limit + PREFIX)], filled: 0, limit }
    }

    /// Where to put received bytes; never empty as long as [`Self::take`] is called until it returns `None`.
    pub fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }

    /// `count` bytes were put at the start of [`Self::space`].
    pub fn received(&mut self, count: usize) {
        self.filled = self.filled.saturating_add(count).min(self.bytes.len());
    }

    /// Whether part of a frame is waiting for its rest: at end of file, the sender broke off.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.filled != 0
    }

    /// Takes the next message out, if it is there in full; else makes room for it.
    ///
    /// # Errors
    /// The frame is too large or not a message of this type. The buffer is of no further use.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((prefix, rest)) = self.bytes.get(..self.filled).and_then(<[u8]>::split_first_chunk::<PREFIX>) else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > self.limit {
            return Err(FrameError::TooLarge { length, limit: self.limit });
        }
        let Some(body) = rest.get(..length) else {
            let needed = PREFIX + length;
            if needed > self.bytes.len() {
                self.bytes.resize(needed, 0);
            }
            return Ok(None);
        };
        let (message, left) = postcard::take_from_bytes(body).map_err(|_| FrameError::Malformed)?;
        if !left.is_empty() {
            return Err(FrameError::Malformed);
        }
        self.bytes.copy_within(PREFIX + length..self.filled, 0);
        self.filled -= PREFIX + length;
        Ok(Some(message))
    }
}
