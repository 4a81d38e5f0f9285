//! Has the disk begin with a file while the rest of it is still being written.
//!
//! A file is on the disk when fsync(2) says so; this only has less left to do for it. A thread of its own asks, since whoever
//! asks waits where the disk's queue is full, and whoever writes does so while a machine stands still.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Bytes after which the disk is told: large enough for it to be given them in large pieces.
const PIECE: u64 = 8 << 20;
/// The thread does nothing but call the system.
const STACK: usize = 64 << 10;

/// From a first byte, so many.
type Piece = (u64, u64);

/// What has been written and not been told yet. The thread ends when this is dropped and the disk has been told.
#[derive(Debug)]
pub struct Behind {
    thread: Option<Sender<Piece>>,
    /// First byte, and the one behind the last.
    pending: (u64, u64),
    /// How many bytes were written there.
    bytes: u64,
}

impl Behind {
    /// For `file`. Where no thread can be had, the disk begins at the end.
    pub fn new(file: &File) -> Self {
        let start = |file: File| {
            let (told, pieces) = channel();
            thread::Builder::new().stack_size(STACK).spawn(move || begin(&file, &pieces)).ok().map(|_| told)
        };
        Self { thread: file.try_clone().ok().and_then(start), pending: (0, 0), bytes: 0 }
    }

    /// So many bytes have been written from `offset` on, behind all that were before.
    pub fn written(&mut self, offset: u64, bytes: u64) {
        if self.bytes == 0 {
            self.pending.0 = offset;
        }
        self.pending.1 = offset + bytes;
        self.bytes += bytes;
        if self.bytes >= PIECE {
            self.bytes = 0;
            let piece = (self.pending.0, self.pending.1 - self.pending.0);
            // Of a thread that is gone nothing is wanted.
            let _ = self.thread.as_ref().map(|thread| thread.send(piece));
        }
    }
}

fn begin(file: &File, pieces: &Receiver<Piece>) {
    for (offset, bytes) in pieces {
        let (Ok(offset), Ok(bytes)) = (offset.try_into(), bytes.try_into()) else { continue };
        // SAFETY: no memory is passed. What goes wrong, fsync(2) says.
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The disk is told of all that was written, but for less than a piece at the end.
    #[test]
    fn pieces_cover_what_was_written() {
        let (thread, pieces) = channel();
        let mut behind = Behind { thread: Some(thread), pending: (0, 0), bytes: 0 };
        for at in [0, 1, 2, 3, 40, 41, 50, 60, 61, 62] {
            behind.written(at * PIECE / 4, PIECE / 4);
        }
        drop(behind);
        let quarter = PIECE / 4;
        assert_eq!(pieces.iter().collect::<Vec<_>>(), [(0, PIECE), (40 * quarter, 21 * quarter)]);
    }

    #[test]
    fn a_thread_asks_and_ends() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * PIECE).unwrap();
        let mut behind = Behind::new(&file);
        (0..4).for_each(|at| behind.written(at * PIECE, PIECE));
        assert!(behind.thread.is_some());
    }
}
