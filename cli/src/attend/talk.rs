//! A client that goes on talking: it has asked for a process, gets its streams, and says what that is to be told. See
//! [`super::server`] for what it cannot do.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use super::server::say;
use super::{Answer, MAX_WORD, Stream, Word};

/// Most descriptors that go with a line.
pub const MOST_STREAMS: usize = 3;

/// Its connection.
#[derive(Debug)]
pub struct Talking {
    stream: UnixStream,
    /// The beginning of a line.
    line: Vec<u8>,
}

/// What came of listening to it.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing for now.
    Nothing,
    /// A word.
    Word(Word),
    /// It is gone, or says what is none.
    End,
}

impl Talking {
    /// Goes on with a client that has said what it wants.
    pub fn new(stream: UnixStream) -> Self {
        Talking { stream, line: Vec::new() }
    }

    /// Takes one line, if it is there: what comes behind it stays where it is, and an event.
    pub fn hear(&mut self) -> Heard {
        let mut chunk = [0; MAX_WORD];
        let end = match recv(&self.stream, &mut chunk[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Heard::End,
            Ok((_, count)) => chunk[..count].iter().position(|&byte| byte == b'\n').map_or(count, |end| end + 1),
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => return Heard::End,
        };
        match recv(&self.stream, &mut chunk[..end], RecvFlags::DONTWAIT) {
            Ok((_, count)) => self.line.extend_from_slice(&chunk[..count]),
            Err(_) => return Heard::Nothing,
        }
        if self.line.last() == Some(&b'\n') {
            let line = std::mem::take(&mut self.line);
            return serde_json::from_slice(&line).map_or(Heard::End, Heard::Word);
        }
        if self.line.len() >= MAX_WORD { Heard::End } else { Heard::Nothing }
    }

    /// The process runs: hands over its streams.
    ///
    /// # Errors
    /// As sendmsg(2): the client is gone, or does not read.
    pub fn hand_over(&self, streams: &[(Stream, BorrowedFd<'_>)]) -> io::Result<()> {
        let names = streams.iter().map(|(name, _)| *name).collect();
        let line = format!("{}\n", serde_json::to_string(&Answer::Streams(names))?);
        let descriptors: Vec<BorrowedFd<'_>> = streams.iter().map(|(_, fd)| *fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_STREAMS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(Errno::NOBUFS.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = sendmsg(&self.stream, &[IoSlice::new(line.as_bytes())], &mut ancillary, flags)?;
        // The descriptors are with the first byte; a line is that short that it goes whole or not at all.
        if sent == line.len() { Ok(()) } else { Err(Errno::NOBUFS.into()) }
    }

    /// It is done.
    pub fn done(self, value: serde_json::Value) {
        say(&self.stream, &Answer::Done(value));
    }

    /// It cannot be done.
    pub fn refuse(self, reason: &str) {
        say(&self.stream, &Answer::Error(reason.into()));
    }
}

impl AsFd for Talking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;
    use std::io::Write;

    #[test]
    fn words_are_taken_one_at_a_time_and_nonsense_ends_it() {
        let (mut client, owner) = UnixStream::pair().unwrap();
        let mut talking = Talking::new(owner);
        assert_eq!(talking.hear(), Heard::Nothing);
        client.write_all(b"{\"signal\":15}\n{\"resize\":{\"rows\":1,\"colu").unwrap();
        assert_eq!(talking.hear(), Heard::Word(Word::Signal(15)));
        assert_eq!(talking.hear(), Heard::Nothing);
        client.write_all(b"mns\":2}}\n").unwrap();
        assert_eq!(talking.hear(), Heard::Word(Word::Resize(Size { rows: 1, columns: 2 })));
        for nonsense in [&b"{\"signal\":1000}\n"[..], b"\n", b"\xff\xfe\n", &[b'x'; MAX_WORD]] {
            let (mut client, owner) = UnixStream::pair().unwrap();
            let mut talking = Talking::new(owner);
            client.write_all(nonsense).unwrap();
            assert_eq!(talking.hear(), Heard::End);
        }
        drop(client);
        assert_eq!(talking.hear(), Heard::End);
        assert!(talking.hand_over(&[]).is_err());
    }
}
