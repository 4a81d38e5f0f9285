//! Buffered output of whole blocks. Blocks of zeros are skipped over, so they take no space in a sparse image file.

use super::{BLOCK, ErofsError};
use std::io::{Seek, SeekFrom, Write};

const BUFFER: usize = 64 * BLOCK;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Appends file data to an image, from block 1 on; block 0 is the superblock's.
#[derive(Debug)]
pub struct BlockWriter<W> {
    out: W,
    buffer: Vec<u8>,
    /// Blocks before the buffer.
    flushed: u64,
    max_blocks: u64,
    limit: u64,
    /// The last thing done to `out` was to skip zeros.
    hole: bool,
}

impl<W: Write + Seek> BlockWriter<W> {
    /// Starts an image in `out` (empty, at position 0) of at most `limit` bytes.
    ///
    /// # Errors
    /// The first seek fails.
    pub fn new(mut out: W, limit: u64) -> Result<Self, ErofsError> {
        out.seek(SeekFrom::Start(BLOCK as u64)).map_err(ErofsError::Write)?;
        // Block numbers have 32 bits.
        let max_blocks = (limit / BLOCK as u64).min(u64::from(u32::MAX) - 1);
        Ok(BlockWriter { out, buffer: Vec::with_capacity(BUFFER), flushed: 1, max_blocks, limit, hole: false })
    }

    /// The block that the next byte goes to, when at a block's start.
    pub fn next_block(&self) -> u32 {
        // `reserve` keeps the count within 32 bits.
        (self.flushed + self.buffer.len().div_ceil(BLOCK) as u64) as u32
    }

    fn reserve(&self, bytes: u64) -> Result<(), ErofsError> {
        let used = self.flushed * BLOCK as u64 + self.buffer.len() as u64;
        let end = used.checked_add(bytes).ok_or(ErofsError::TooLarge(self.limit))?;
        if end.div_ceil(BLOCK as u64) > self.max_blocks { Err(ErofsError::TooLarge(self.limit)) } else { Ok(()) }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Writing fails, or the limit is reached.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), ErofsError> {
        self.reserve(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let take = bytes.len().min(BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends zeros, without writing the whole blocks among them.
    ///
    /// # Errors
    /// As [`BlockWriter::write`].
    pub fn zeros(&mut self, mut count: u64) -> Result<(), ErofsError> {
        self.reserve(count)?;
        let head = count.min((self.buffer.len().next_multiple_of(BLOCK) - self.buffer.len()) as u64);
        self.buffer.resize(self.buffer.len() + head as usize, 0);
        count -= head;
        let blocks = count / BLOCK as u64;
        if blocks > 0 || self.buffer.len() == BUFFER {
            self.flush()?;
            self.skip(blocks)?;
        }
        self.buffer.resize(self.buffer.len() + (count % BLOCK as u64) as usize, 0);
        Ok(())
    }

    /// Fills the block with zeros up to its end.
    ///
    /// # Errors
    /// As [`BlockWriter::write`].
    pub fn pad(&mut self) -> Result<(), ErofsError> {
        let end = self.buffer.len().next_multiple_of(BLOCK);
        self.zeros((end - self.buffer.len()) as u64)
    }

    fn skip(&mut self, blocks: u64) -> Result<(), ErofsError> {
        if blocks == 0 {
            return Ok(());
        }
        // The limit keeps this far below 2^63.
        self.out.seek(SeekFrom::Current((blocks * BLOCK as u64) as i64)).map_err(ErofsError::Write)?;
        self.flushed += blocks;
        self.hole = true;
        Ok(())
    }

    /// Writes out the buffer, which holds whole blocks, in runs of data and runs of zeros.
    fn flush(&mut self) -> Result<(), ErofsError> {
        debug_assert_eq!(self.buffer.len() % BLOCK, 0);
        let buffer = std::mem::take(&mut self.buffer);
        let is_zero = |block: &[u8]| block == &ZEROS[..block.len()];
        let mut rest = &buffer[..];
        while !rest.is_empty() {
            let zero = is_zero(&rest[..BLOCK]);
            let run = rest.chunks(BLOCK).take_while(|block| is_zero(block) == zero).count();
            if zero {
                self.skip(run as u64)?;
            } else {
                self.out.write_all(&rest[..run * BLOCK]).map_err(ErofsError::Write)?;
                self.flushed += run as u64;
                self.hole = false;
            }
            rest = &rest[run * BLOCK..];
        }
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the image: pads the last block, makes sure the file reaches to its end, writes `superblock` of the number of
    /// blocks to block 0 and gives the output back.
    ///
    /// # Errors
    /// As [`BlockWriter::write`].
    pub(super) fn finish(mut self, superblock: impl FnOnce(u32) -> [u8; BLOCK]) -> Result<(W, u64), ErofsError> {
        self.pad()?;
        self.flush()?;
        if self.hole {
            self.out.seek(SeekFrom::Current(-(BLOCK as i64))).map_err(ErofsError::Write)?;
            self.out.write_all(&ZEROS).map_err(ErofsError::Write)?;
        }
        let first = superblock(self.flushed as u32);
        self.out.seek(SeekFrom::Start(0)).map_err(ErofsError::Write)?;
        self.out.write_all(&first).map_err(ErofsError::Write)?;
        self.out.flush().map_err(ErofsError::Write)?;
        Ok((self.out, self.flushed * BLOCK as u64))
    }
}
