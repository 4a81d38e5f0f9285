//! A stream socket with frames, each behind its length (32 bits, big-endian): what passt speaks, and the devices of microVMs do.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::protocol::PREFIX;

/// Most bytes of a frame: the largest IP packet, in an Ethernet frame with a VLAN tag.
pub const FRAME: usize = 18 + 65535;
/// Bytes that are read at a time: many small frames, or one of any size and a part of the next.
const INPUT: usize = 2 * (PREFIX + FRAME);
/// Bytes that wait for one that does not read: what TCP has on its way to one that does.
const OUTPUT: usize = 1 << 20;
/// An empty queue that has had more than this gives its memory back.
const KEPT: usize = 256 << 10;

/// The socket, and what is on its way through it.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    input: Box<[u8]>,
    /// Bytes of `input` that are not frames yet: from, to.
    have: (usize, usize),
    output: VecDeque<u8>,
    /// What the event loop listens for.
    pub watched: EventFlags,
}

impl Link {
    /// Frames over a socket. Nothing here blocks, whatever that does.
    pub fn new(socket: OwnedFd) -> Self {
        let input = vec![0; INPUT].into_boxed_slice();
        Link { socket, input, have: (0, 0), output: VecDeque::new(), watched: EventFlags::empty() }
    }

    /// Reads once; false: there is nothing now.
    ///
    /// # Errors
    /// Also at its end.
    pub fn read(&mut self) -> io::Result<bool> {
        let (from, to) = self.have;
        self.input.copy_within(from..to, 0);
        self.have = (0, to - from);
        match recv(&self.socket, &mut self.input[to - from..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, count)) => {
                self.have.1 += count;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the next frame is of what was read; none if it is not there as a whole.
    ///
    /// # Errors
    /// It says that it is longer than frames are.
    pub fn next(&mut self) -> io::Result<Option<Range<usize>>> {
        let (from, to) = self.have;
        let Some(prefix) = self.input[from..to].first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes")));
        }
        let start = from + PREFIX;
        if start + len > to {
            return Ok(None);
        }
        self.have.0 = start + len;
        Ok(Some(start..start + len))
    }

    /// A frame that [`next`](Self::next) has found, until the next [`read`](Self::read).
    pub fn frame(&mut self, place: Range<usize>) -> &mut [u8] {
        &mut self.input[place]
    }

    /// Whether there is room for a frame of any size.
    pub fn has_room(&self) -> bool {
        self.output.len() + PREFIX + FRAME <= OUTPUT
    }

    /// Has a frame wait for [`flush`](Self::flush); false: it is lost, since too many do.
    pub fn put(&mut self, frame: &[u8]) -> bool {
        let fits = self.output.len() + PREFIX + frame.len() <= OUTPUT && frame.len() <= FRAME;
        if fits {
            self.output.extend((frame.len() as u32).to_be_bytes());
            self.output.extend(frame);
        }
        fits
    }

    /// Sends what waits, as much as the other end takes.
    ///
    /// # Errors
    /// There is no other end.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let (first, _) = self.output.as_slices();
            match send(&self.socket, first, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        if self.output.capacity() > KEPT {
            self.output = VecDeque::new();
        }
        Ok(())
    }

    /// Whether something waits.
    pub fn owes(&self) -> bool {
        !self.output.is_empty()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Link::new(ours.into()), theirs)
    }

    fn frame(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[..], content].concat()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let (mut link, mut other) = pair();
        let frames: Vec<Vec<u8>> = [1, 60, 0, FRAME, 1500].iter().map(|len| vec![*len as u8; *len]).collect();
        let bytes = frames.iter().flat_map(|content| frame(content)).collect::<Vec<u8>>();
        let (mut got, mut sent) = (Vec::new(), 0);
        for cut in [1, 2, 3, 5, 60, 100, 7000, 60_000].into_iter().cycle() {
            let end = (sent + cut).min(bytes.len());
            other.write_all(&bytes[sent..end]).unwrap();
            sent = end;
            while link.read().unwrap() {
                while let Some(place) = link.next().unwrap() {
                    got.push(link.frame(place).to_vec());
                }
            }
            if sent == bytes.len() {
                break;
            }
        }
        assert_eq!(got, frames);
        drop(other);
        assert!(link.read().is_err());
    }

    #[test]
    fn a_frame_that_is_too_long_is_the_end() {
        let (mut link, mut other) = pair();
        other.write_all(&(FRAME as u32 + 1).to_be_bytes()).unwrap();
        assert!(link.read().unwrap() && link.next().is_err());
    }

    #[test]
    fn one_that_does_not_read_loses_frames_and_nothing_else_happens() {
        let (mut link, mut other) = pair();
        let content = vec![7; 60_000];
        let mut taken = 0;
        while link.put(&content) {
            taken += 1;
            link.flush().unwrap();
        }
        assert!(taken >= OUTPUT / 60_000 && !link.has_room() && link.owes());
        assert!(link.output.len() <= OUTPUT);
        let mut bytes = vec![0; taken * (PREFIX + content.len())];
        let reader = std::thread::spawn(move || other.read_exact(&mut bytes).map(|()| bytes));
        while link.owes() {
            link.flush().unwrap();
        }
        let bytes = reader.join().unwrap().unwrap();
        assert!(bytes.chunks(PREFIX + content.len()).all(|chunk| chunk == frame(&content)));
        assert!(link.output.capacity() <= KEPT);
    }
}
