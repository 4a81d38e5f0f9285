//! Clients that are at the container's own process: they hear what it writes from then on, and what they type is its input. They
//! come and go, and it goes on; but the one for whom it was started ([`First`]) takes it along, unless that one has said that it
//! leaves it.
//!
//! ```text
//! First ──────────────────── started ─► has its streams ─┐
//! client ─ order ─► has its streams ─────────────────────┴─ signals, window size ─► guest;  its end is told: Attached::end
//! ```

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use guest_protocol::{HostMessage, MAIN_PROCESS, StreamKind, WindowSize};
use serde_json::json;

use crate::attend::server::{Attendance, Waiting};
use crate::attend::talk::{Heard, Talking};
use crate::attend::{Attach, MAX_ORDER, Order, Size, Stream, Word};
use crate::failure::{Failure, one_line};
use crate::session::audience::Audience;
use crate::session::{Recorder, Wish};

/// Most clients at a time.
const MOST: usize = 64;

/// The client for whom a container is started, which is there before it is.
#[derive(Debug)]
pub struct First {
    /// Its connection.
    pub stream: UnixStream,
    /// What it wants.
    pub attach: Attach,
}

impl First {
    /// What has come over a connection whose other end is with whoever started this process.
    ///
    /// # Errors
    /// It is something else.
    pub fn take(stream: UnixStream) -> io::Result<Self> {
        let mut line = Vec::new();
        BufReader::new(&stream).take(MAX_ORDER as u64).read_until(b'\n', &mut line)?;
        stream.set_nonblocking(true)?;
        match Order::decode(&line) {
            Ok(Order::Attach(attach)) => Ok(First { stream, attach }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// All of them, and what they share.
#[derive(Debug)]
pub struct Attached {
    audience: Arc<Audience>,
    /// What is written here is the process's input.
    input: Option<OwnedFd>,
    /// The process has a terminal.
    terminal: bool,
    list: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    talking: Talking,
    attach: Attach,
    /// Without it there is no container, either.
    first: bool,
    /// It has its streams.
    served: bool,
}

impl Attached {
    /// Nobody so far, but for `first`. What the process writes is in the log as well; what it reads is `input`, if anything.
    pub fn new(log: Option<Arc<dyn Recorder>>, input: Option<OwnedFd>, terminal: bool, first: Option<First>) -> Self {
        let list = first.into_iter().map(|First { stream, attach }| {
            let talking = Talking::new(stream);
            Client { talking, attach, first: true, served: false }
        });
        Attached { audience: Audience::new(log), input, terminal, list: list.collect() }
    }

    /// Hears all that the process writes.
    pub fn recorder(&self) -> Arc<dyn Recorder> {
        self.audience.clone()
    }

    /// From now on what is said by the client that was there first is an event.
    pub fn listen(&self, attendance: &Attendance) -> io::Result<()> {
        self.list.iter().try_for_each(|client| attendance.adopt(&client.talking))
    }

    /// The process runs, and nothing of what it writes has been passed on yet.
    pub fn started(&mut self) {
        let waiting = std::mem::take(&mut self.list);
        self.list = waiting.into_iter().filter_map(|client| self.serve(client)).collect();
    }

    /// Takes an order: a client that is at the process from now on.
    pub fn order(&mut self, attach: Attach, client: Waiting, attendance: &Attendance) -> Option<Wish> {
        if self.list.len() >= MOST {
            client.refuse(&format!("{MOST} others are attached to the container; wait for one of them to leave"));
            return None;
        }
        match attendance.talk(client) {
            Ok(talking) => {
                let client = Client { talking, attach, first: false, served: false };
                let client = self.serve(client)?;
                let size = client.attach.terminal;
                self.list.push(client);
                size.and_then(|size| self.resize(size))
            }
            // It is as if it had gone before it asked.
            Err(error) => {
                tracing::warn!("a client of attach: {error}");
                None
            }
        }
    }

    /// Gives a client its streams. None: it is gone.
    fn serve(&self, mut client: Client) -> Option<Client> {
        if client.served {
            return Some(client);
        }
        let serve = |client: &Client| -> io::Result<()> {
            let outputs: &[(StreamKind, Stream)] = if self.terminal {
                &[(StreamKind::Terminal, Stream::Stdout)]
            } else {
                &[(StreamKind::Stdout, Stream::Stdout), (StreamKind::Stderr, Stream::Stderr)]
            };
            let join = |&(kind, name)| Ok((name, OwnedFd::from(self.audience.join(kind, client.first)?)));
            let outputs = outputs.iter().map(join).collect::<io::Result<Vec<_>>>()?;
            let input = self.input.iter().filter(|_| client.attach.stdin).map(|input| (Stream::Stdin, input.as_fd()));
            let streams = outputs.iter().map(|(name, stream)| (*name, stream.as_fd())).chain(input);
            client.talking.hand_over(&streams.collect::<Vec<_>>())
        };
        client.served = true;
        match serve(&client) {
            Ok(()) => Some(client),
            // That of the first one is found when it is listened to.
            Err(_) if client.first => Some(client),
            Err(error) => {
                tracing::warn!("a client of attach: {error}");
                None
            }
        }
    }

    /// What a client wants, if one does.
    pub fn wish(&mut self) -> Option<Wish> {
        let mut at = 0;
        while let Some(client) = self.list.get_mut(at) {
            match client.talking.hear() {
                Heard::Nothing => at += 1,
                Heard::Word(Word::Signal(signal)) => return Some(Wish::Signal(signal)),
                Heard::Word(Word::Resize(size)) => {
                    if let Some(wish) = self.resize(size) {
                        return Some(wish);
                    }
                }
                Heard::Word(Word::Detach) => drop(self.list.remove(at)),
                Heard::End => {
                    if self.list.remove(at).first {
                        return Some(Wish::End);
                    }
                }
            }
        }
        None
    }

    /// As docker: whoever has changed the size last is who it is right for.
    fn resize(&self, Size { rows, columns }: Size) -> Option<Wish> {
        let size = WindowSize { rows, columns };
        self.terminal.then_some(Wish::Tell(HostMessage::Resize { process: MAIN_PROCESS, size }))
    }

    /// The container has ended, and its record says so: tells everybody how, and then that no more comes.
    pub fn end(&mut self, outcome: Result<u8, &Failure>) {
        for client in self.list.drain(..) {
            client.talking.done(match outcome {
                Ok(code) => json!({ "exit_code": code }),
                Err(Failure { code, error }) => match error {
                    Some(error) => json!({ "exit_code": code, "failed": one_line(error) }),
                    None => json!({ "exit_code": code }),
                },
            });
        }
        self.audience.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::client::Asking;
    use crate::attend::{Answer, SOCKET};
    use std::fs::File;
    use std::io::Write;

    struct Owner {
        dir: tempfile::TempDir,
        attendance: Attendance,
    }

    fn owner() -> Owner {
        let dir = tempfile::tempdir().unwrap();
        let attendance = Attendance::listen(&dir.path().join(SOCKET)).unwrap();
        Owner { dir, attendance }
    }

    impl Owner {
        fn attach(&mut self, attached: &mut Attached, attach: Attach) -> (Asking, Option<Wish>) {
            let client = Asking::ask(self.dir.path(), "web", &Order::Attach(attach)).unwrap();
            loop {
                let Some((Order::Attach(attach), waiting)) = self.attendance.take() else { continue };
                return (client, attached.order(attach, waiting, &self.attendance));
            }
        }
    }

    /// The streams that a client gets.
    fn streams(client: &mut Asking, want: &[Stream]) -> Vec<UnixStream> {
        assert_eq!(client.next().unwrap(), Answer::Streams(want.to_vec()));
        client.descriptors().into_iter().map(UnixStream::from).collect()
    }

    fn heard(mut stream: &UnixStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn several_are_at_one_process_and_leave_it_as_it_is() {
        let mut owner = owner();
        let (input, ours) = rustix::pipe::pipe().unwrap();
        let mut attached = Attached::new(None, Some(ours), false, None);
        attached.started();
        let (mut one, wish) = owner.attach(&mut attached, Attach { stdin: true, ..Attach::default() });
        assert_eq!(wish, None);
        let (mut other, _) = owner.attach(&mut attached, Attach::default());
        let all = streams(&mut one, &[Stream::Stdout, Stream::Stderr, Stream::Stdin]);
        let others = streams(&mut other, &[Stream::Stdout, Stream::Stderr]);
        let process = attached.recorder();
        process.output(StreamKind::Stdout, b"out");
        process.output(StreamKind::Stderr, b"err");
        assert_eq!((heard(&all[0], 3), heard(&all[1], 3)), (b"out".to_vec(), b"err".to_vec()));
        assert_eq!((heard(&others[0], 3), heard(&others[1], 3)), (b"out".to_vec(), b"err".to_vec()));
        rustix::io::write(&all[2], b"in").unwrap();
        let mut typed = [0; 2];
        File::from(input).read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"in");
        one.say(Word::Signal(2));
        assert_eq!(attached.wish(), Some(Wish::Signal(2)));
        // One leaves, one is killed: neither is the container's end.
        one.say(Word::Detach);
        drop((other, others));
        assert_eq!(attached.wish(), None);
        assert!(attached.list.is_empty());
        process.output(StreamKind::Stdout, b"more");
    }

    #[test]
    fn everybody_is_told_the_end_before_the_streams_end() {
        let mut owner = owner();
        let mut attached = Attached::new(None, None, true, None);
        let size = Some(Size { rows: 3, columns: 4 });
        let (mut client, wish) = owner.attach(&mut attached, Attach { stdin: true, terminal: size });
        let tell = Wish::Tell(HostMessage::Resize { process: MAIN_PROCESS, size: WindowSize { rows: 3, columns: 4 } });
        assert_eq!(wish, Some(tell));
        let mut streams = streams(&mut client, &[Stream::Stdout]);
        attached.recorder().output(StreamKind::Terminal, b"bye");
        attached.end(Ok(3));
        let mut rest = String::new();
        streams[0].read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), client.next().unwrap()), ("bye", Answer::Done(json!({ "exit_code": 3 }))));
    }

    #[test]
    fn the_first_one_takes_it_along_unless_it_says_otherwise() {
        let owner = owner();
        for detached in [false, true] {
            let (mut client, stream) = UnixStream::pair().unwrap();
            let first = First { stream, attach: Attach::default() };
            let mut attached = Attached::new(None, None, true, Some(first));
            attached.listen(&owner.attendance).unwrap();
            assert_eq!(attached.wish(), None);
            attached.started();
            assert_eq!(attached.wish(), None);
            if detached {
                client.write_all(b"\"detach\"\n").unwrap();
            }
            drop(client);
            assert_eq!(attached.wish(), (!detached).then_some(Wish::End));
            assert!(attached.list.is_empty());
        }
    }
}
