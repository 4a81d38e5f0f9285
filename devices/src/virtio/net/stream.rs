//! Ethernet frames over a unix stream socket, each behind its length (32 bits, big-endian): what passt speaks.
//!
//! Both ends are trusted with the format, not with the speed: a frame that the other end has taken a part of waits here, and
//! the guest's next ones in their queue.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use switch::handshake::{Came, Handshakes};
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::F_GUEST_CSUM;
use super::backend::{Backend, HEADER, MOST, Packet};
use super::checksum;

/// Bytes of a frame's length.
const PREFIX: usize = 4;
/// Most bytes of a frame.
const FRAME: usize = MOST - HEADER;
/// Bytes that are read at a time: several small frames, or one of any size.
const INPUT: usize = 4 * (PREFIX + FRAME);
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum is right.
const DATA_VALID: u8 = 2;

/// The socket, and what is on its way through it.
pub struct Stream {
    socket: UnixStream,
    /// Bytes of `input` that are not frames of the guest's yet: from, to.
    have: (usize, usize),
    input: Box<[u8]>,
    /// Bytes of `output` that the other end has not taken: from, to.
    owed: (usize, usize),
    /// A packet's header, of which the end becomes the frame's length, and the frame.
    output: Box<[u8]>,
    /// What passt leaves out of them, if that is at the other end.
    handshakes: Option<Handshakes>,
    /// The driver takes our word for checksums.
    vouch: bool,
    /// The other end is gone, and who receives has been told that.
    over: bool,
    told: bool,
    /// Dropping it waits for the other end's.
    patient: bool,
}

/// How long the process at the other end may take to end.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

impl Stream {
    /// Frames over `socket`.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Stream {
            socket,
            have: (0, 0),
            input: vec![0; INPUT].into_boxed_slice(),
            owed: (0, 0),
            output: vec![0; MOST].into_boxed_slice(),
            handshakes: None,
            vouch: false,
            over: false,
            told: false,
            patient: false,
        })
    }

    /// The same, to a process that ends when this does. Dropping it waits for that for a second at most: what the process had of
    /// the host, its ports, is free then for another.
    pub fn to_process(socket: UnixStream) -> io::Result<Self> {
        let mut stream = Self::new(socket)?;
        stream.patient = true;
        Ok(stream)
    }

    /// The same, to passt.
    pub fn to_passt(socket: UnixStream) -> io::Result<Self> {
        let mut stream = Self::to_process(socket)?;
        stream.handshakes = Some(Handshakes::default());
        Ok(stream)
    }

    /// The next frame's place in `input`, if all of it is there.
    fn next(&self) -> io::Result<Option<(usize, usize)>> {
        let (from, to) = self.have;
        let Some(prefix) = self.input[from..to].first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > FRAME {
            let why = format!("a frame of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let start = from + PREFIX;
        Ok((start + len <= to).then_some((start, start + len)))
    }

    /// Reads more; false: there is nothing now.
    fn read(&mut self) -> io::Result<bool> {
        let (from, to) = self.have;
        // Room for a whole frame, after what is there of one.
        if INPUT - from < PREFIX + FRAME {
            self.input.copy_within(from..to, 0);
            self.have = (0, to - from);
        }
        match self.socket.read(&mut self.input[self.have.1..]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.have.1 += count;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn next_frame(&mut self) -> io::Result<Option<(usize, usize)>> {
        loop {
            if let Some(place) = self.next()? {
                self.have.0 = place.1;
                return Ok(Some(place));
            }
            if self.have.0 == self.have.1 {
                self.have = (0, 0);
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Has a small frame follow what is owed, if there is room.
    fn add(&mut self, frame: &[u8]) {
        let (start, end) = (self.owed.1 + PREFIX, self.owed.1 + PREFIX + frame.len());
        if end <= self.output.len() {
            self.output[self.owed.1..start].copy_from_slice(&(frame.len() as u32).to_be_bytes());
            self.output[start..end].copy_from_slice(frame);
            self.owed.1 = end;
        }
    }

    /// Sends what is owed, as much as the other end takes.
    fn flush(&mut self) -> io::Result<()> {
        while self.owed.0 < self.owed.1 {
            match send(&self.socket, &self.output[self.owed.0..self.owed.1], SendFlags::NOSIGNAL) {
                Ok(count) => self.owed.0 += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(e) => {
                    self.over = true;
                    return Err(e.into());
                }
            }
        }
        Ok(())
    }
}

impl Backend for Stream {
    fn fds(&self) -> Vec<RawFd> {
        vec![self.socket.as_raw_fd()]
    }

    fn interest(&self) -> EventSet {
        EventSet::OUT
    }

    fn accept(&mut self, features: u64) -> io::Result<()> {
        self.vouch = features & F_GUEST_CSUM != 0;
        Ok(())
    }

    fn receive(&mut self, pair: usize, room: &[VolatileSlice]) -> io::Result<Option<usize>> {
        if pair > 0 || self.told {
            return Ok(None);
        }
        if self.over {
            self.told = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        loop {
            let Some((start, end)) = self.next_frame().inspect_err(|_| (self.over, self.told) = (true, true))? else {
                return Ok(None);
            };
            let frame = &self.input[start..end];
            return match self.handshakes.as_mut().map_or(Came::Frame, |handshakes| handshakes.came(frame)) {
                Came::Frame => put(frame, self.vouch, room).map(Some),
                Came::Due(frame) => put(&frame, self.vouch, room).map(Some),
                Came::Nothing => continue,
            };
        }
    }

    fn ready(&mut self) -> bool {
        // Where nobody takes packets any more, they are dropped.
        self.over || self.flush().is_err() || self.owed.0 == self.owed.1
    }

    fn send(&mut self, _: usize, packet: Packet) -> io::Result<()> {
        if self.over {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let end = packet.read(&mut self.output);
        let Some((header, frame)) = self.output[..end].split_first_chunk_mut::<HEADER>() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if !checksum::complete(header, frame) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its checksum is outside of it"));
        }
        let question = self.handshakes.as_mut().and_then(|handshakes| handshakes.sent(frame));
        let len = frame.len() as u32;
        header[HEADER - PREFIX..].copy_from_slice(&len.to_be_bytes());
        self.owed = (HEADER - PREFIX, end);
        if let Some(question) = question {
            self.add(&question);
        }
        self.flush()
    }
}

/// Puts a packet with this frame into `room`; returns its length.
fn put(frame: &[u8], vouch: bool, room: &[VolatileSlice]) -> io::Result<usize> {
    let mut header = [0; HEADER];
    header[0] = if vouch { DATA_VALID } else { 0 };
    let mut parts = [&header[..], frame];
    for slice in room {
        let mut filled = 0;
        for part in &mut parts {
            let (now, later) = part.split_at(part.len().min(slice.len() - filled));
            slice.offset(filled).map_err(io::Error::other)?.copy_from(now);
            filled += now.len();
            *part = later;
        }
    }
    Ok(HEADER + frame.len())
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.patient && self.socket.shutdown(std::net::Shutdown::Write).is_ok() {
            // That the other end is closed is reported whether asked for or not.
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::empty())], Some(&PATIENCE));
        }
    }
}
