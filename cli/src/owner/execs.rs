//! Processes that have joined the container's main one, each for a client.
//!
//! ```text
//! client ─ order ─► guest: Exec ─► streams, Started ─► the client has the streams ─► Exited ─► answer
//!                                                      └ signals, window size ─► guest
//! ```
//!
//! The guest's own connections are what the client gets: no byte of a stream passes through here, and they end with the client,
//! whatever ends it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use guest_protocol::files::Helper;
use guest_protocol::{
    self as protocol, CHANGES_PROCESS, FailureKind, GuestMessage, HostMessage, MAIN_PROCESS, MAX_EXECS, MAX_HOST_FRAME,
    ProcessId, StreamHeader, StreamKind, WindowSize,
};
use serde_json::json;

use crate::attend::server::{Attendance, Waiting};
use crate::attend::talk::{Heard as Said, Talking};
use crate::attend::{Exec, Size, Stream, Word};
use crate::failure::sanitize;
use crate::session::{Heard, Wish};

/// All of them.
#[derive(Debug, Default)]
pub struct Execs {
    list: Vec<Joined>,
    /// The last one's id.
    last: ProcessId,
    /// Places of a pod that are nobody's any more.
    lost: Vec<u8>,
}

/// One of a pod's containers has left it.
#[derive(Debug)]
pub struct Left {
    /// Where it was, if that is free again.
    pub place: Option<u8>,
    client: Option<Talking>,
    code: u8,
}

impl Left {
    /// Whoever asked for the place hears of it.
    pub fn tell(self) {
        if let Some(client) = self.client {
            client.done(json!({ "exit_code": self.code }));
        }
    }
}

/// One of them, from the order to its end.
#[derive(Debug)]
struct Joined {
    id: ProcessId,
    /// None: it is gone, or has its answer.
    client: Option<Talking>,
    detached: bool,
    /// It is a container of a pod, at this place.
    place: Option<u8>,
    /// Its streams, until the client has them.
    streams: Vec<(StreamKind, Option<UnixStream>)>,
    started: bool,
    handed_over: bool,
    /// Its end, if that came before all of its streams.
    exit_code: Option<u8>,
}

impl Execs {
    /// Takes an order: the guest is to be told of it, or the client is refused.
    pub fn order(&mut self, exec: Exec, client: Waiting, attendance: &Attendance) -> Option<Wish> {
        if self.list.len() >= MAX_EXECS {
            client.refuse(&format!(
                "{MAX_EXECS} processes have joined the container and run; wait for one of them to end"
            ));
            return None;
        }
        let place = match exec.helper {
            Some(Helper::Member { place }) => Some(place),
            _ => None,
        };
        if place.is_some_and(|place| self.is_occupied(place)) {
            client.done(json!({ "occupied": true }));
            return None;
        }
        let id = self.free_id();
        let detached = exec.detached && place.is_none();
        let streams = kinds(&exec).iter().map(|&kind| (kind, None)).collect();
        let message = message(id, exec);
        if let Err(error) = protocol::encode(&message, MAX_HOST_FRAME) {
            client.refuse(&format!("the command with its environment: {error}"));
            return None;
        }
        match attendance.talk(client) {
            Ok(client) => {
                let client = Some(client);
                self.list.push(Joined {
                    id,
                    client,
                    detached,
                    place,
                    streams,
                    started: false,
                    handed_over: false,
                    exit_code: None,
                });
                Some(Wish::Tell(message))
            }
            // It is as if it had gone before it asked.
            Err(error) => {
                tracing::warn!("a client of exec: {error}");
                None
            }
        }
    }

    /// The guest tells what its main process has changed when that has succeeded: this client is to hear it.
    pub fn expect_changes(&mut self, client: Talking) {
        let exec = Exec { stdin: true, ..Exec::default() };
        let streams = kinds(&exec).iter().map(|&kind| (kind, None)).collect();
        self.list.push(Joined {
            id: CHANGES_PROCESS,
            client: Some(client),
            detached: false,
            place: None,
            streams,
            started: false,
            handed_over: false,
            exit_code: None,
        });
    }

    fn is_occupied(&self, place: u8) -> bool {
        self.lost.contains(&place) || self.list.iter().any(|joined| joined.place == Some(place))
    }

    /// Nobody has that place from now on.
    pub fn keep_from_use(&mut self, place: u8) {
        self.lost.push(place);
    }

    /// Whether no container is in the pod.
    pub fn has_no_members(&self) -> bool {
        self.list.iter().all(|joined| joined.place.is_none())
    }

    fn free_id(&mut self) -> ProcessId {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != MAIN_PROCESS && self.list.iter().all(|joined| joined.id != self.last) {
                return self.last;
            }
        }
    }

    /// What a client wants its process to be told, if one does. Clients that are gone are let go: their processes go on.
    pub fn wish(&mut self) -> Option<Wish> {
        for joined in &mut self.list {
            match joined.client.as_mut().map(Talking::hear) {
                Some(Said::Word(Word::Signal(signal))) if joined.started => {
                    return Some(Wish::Tell(HostMessage::Signal { process: joined.id, signal }));
                }
                Some(Said::Word(Word::Resize(size))) if joined.started => {
                    return Some(Wish::Tell(HostMessage::Resize { process: joined.id, size: window(size) }));
                }
                // A client that speaks before it is its turn is no better than one that is gone.
                Some(Said::End | Said::Word(_)) => joined.let_go(),
                Some(Said::Nothing) | None => {}
            }
        }
        None
    }

    /// Something has been heard of one of them. The guest is not trusted: what has no meaning has no effect. Says if a container has left a
    /// pod by that.
    pub fn heard(&mut self, heard: Heard) -> Option<Left> {
        let id = match &heard {
            Heard::Opened(StreamHeader { process, .. }, _)
            | Heard::Said(
                GuestMessage::Started { process, .. }
                | GuestMessage::StartFailed { process, .. }
                | GuestMessage::Exited { process, .. },
            ) => *process,
            Heard::Said(_) => return None,
        };
        let at = self.list.iter().position(|joined| joined.id == id)?;
        if !self.list.get_mut(at)?.heard(heard) {
            return None;
        }
        let over = self.list.swap_remove(at);
        let place = over.place?;
        let Some(code) = over.exit_code else {
            // It was never there.
            return Some(Left { place: None, client: None, code: 0 });
        };
        if code != 0 {
            self.lost.push(place);
        }
        Some(Left { place: (code == 0).then_some(place), client: over.client, code })
    }

    /// Nothing more will be heard of any of them.
    pub fn end(&mut self, why: &str) {
        for client in std::mem::take(&mut self.list).into_iter().filter_map(|joined| joined.client) {
            client.refuse(why);
        }
    }
}

impl Joined {
    /// True: that was the last of it.
    fn heard(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Opened(StreamHeader { kind, .. }, stream) => {
                let place = self.streams.iter_mut().find(|(wanted, stream)| *wanted == kind && stream.is_none());
                if let Some((_, place)) = place.filter(|_| self.client.is_some() && !self.handed_over) {
                    *place = Some(stream);
                }
            }
            Heard::Said(GuestMessage::Started { .. }) => self.started = true,
            Heard::Said(GuestMessage::StartFailed { kind, detail, .. }) => {
                if let Some(client) = self.client.take() {
                    client.done(json!({ "exit_code": code(kind), "failed": sanitize(&detail) }));
                }
                return true;
            }
            Heard::Said(GuestMessage::Exited { status, .. }) => self.exit_code = Some(status.code()),
            Heard::Said(_) => {}
        }
        if self.started && !self.handed_over && self.streams.iter().all(|(_, stream)| stream.is_some()) {
            self.hand_over();
        }
        match self.exit_code {
            Some(code) if self.handed_over || self.client.is_none() => {
                // What comes of a place is told when that is done.
                if let Some(client) = self.client.take_if(|_| self.place.is_none()) {
                    client.done(json!({ "exit_code": code }));
                }
                true
            }
            _ => false,
        }
    }

    /// It runs, and all of its streams are there.
    fn hand_over(&mut self) {
        self.handed_over = true;
        let streams = std::mem::take(&mut self.streams);
        let named: Vec<_> =
            streams.iter().filter_map(|(kind, stream)| Some((name(*kind), stream.as_ref()?.as_fd()))).collect();
        match self.client.take() {
            Some(client) if self.detached => client.done(json!({ "exit_code": 0 })),
            Some(client) if client.hand_over(&named).is_ok() => self.client = Some(client),
            _ => {}
        }
    }

    fn let_go(&mut self) {
        self.client = None;
        self.streams.clear();
    }
}

/// The streams that the guest is going to open for a process.
fn kinds(exec: &Exec) -> &'static [StreamKind] {
    match exec {
        Exec { detached: true, .. } => &[],
        Exec { terminal: Some(_), .. } => &[StreamKind::Terminal],
        Exec { stdin: true, .. } => &[StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr],
        _ => &[StreamKind::Stdout, StreamKind::Stderr],
    }
}

fn name(kind: StreamKind) -> Stream {
    match kind {
        StreamKind::Stdin => Stream::Stdin,
        StreamKind::Stdout => Stream::Stdout,
        StreamKind::Stderr => Stream::Stderr,
        StreamKind::Terminal => Stream::Terminal,
    }
}

fn message(process: ProcessId, exec: Exec) -> HostMessage {
    let Exec { args, helper, env, cwd, user, terminal, stdin, detached } = exec;
    let (stdin, attached, terminal) = (stdin && !detached, !detached, terminal.map(window));
    HostMessage::Exec(Box::new(protocol::Exec { process, args, helper, env, cwd, user, terminal, stdin, attached }))
}

fn window(Size { rows, columns }: Size) -> WindowSize {
    WindowSize { rows, columns }
}

/// The exit code for a process that did not start. Of one beside others docker tells less apart than of the first: what is not
/// Bulkhead's failure and not a missing program is 126.
fn code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::UnknownUser | FailureKind::UnknownGroup | FailureKind::BadWorkingDir => {
            FailureKind::NotExecutable.code()
        }
        other => other.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::client::Asking;
    use crate::attend::{Answer, Order, SOCKET};
    use guest_protocol::ExitStatus;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{Read, Write};

    struct Owner {
        dir: tempfile::TempDir,
        attendance: Attendance,
        execs: Execs,
    }

    fn owner() -> Owner {
        let dir = tempfile::tempdir().unwrap();
        let attendance = Attendance::listen(&dir.path().join(SOCKET)).unwrap();
        Owner { dir, attendance, execs: Execs::default() }
    }

    impl Owner {
        /// Asks for a process: the client, and what the guest is to be told.
        fn ask(&mut self, exec: Exec) -> (Asking, Option<protocol::Exec>) {
            let client = Asking::ask(self.dir.path(), "web", &Order::Exec(exec)).unwrap();
            loop {
                let Some((Order::Exec(exec), waiting)) = self.attendance.take() else { continue };
                return match self.execs.order(exec, waiting, &self.attendance) {
                    Some(Wish::Tell(HostMessage::Exec(exec))) => (client, Some(*exec)),
                    None => (client, None),
                    other => panic!("{other:?}"),
                };
            }
        }

        /// The guest opens a stream: its own end.
        fn opened(&mut self, process: ProcessId, kind: StreamKind) -> UnixStream {
            let (ours, guests) = UnixStream::pair().unwrap();
            self.execs.heard(Heard::Opened(StreamHeader { process, kind }, ours));
            guests
        }

        fn said(&mut self, message: GuestMessage) {
            self.execs.heard(Heard::Said(message));
        }

        fn is_quiet(&self) -> bool {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(&self.attendance, PollFlags::IN)], Some(&now)) == Ok(0)
        }
    }

    fn sh() -> Exec {
        Exec { args: vec!["sh".into()], ..Exec::default() }
    }

    fn started(process: ProcessId) -> GuestMessage {
        GuestMessage::Started { process, root_ns: 1, now_ns: 2 }
    }

    fn exited(process: ProcessId, code: u8) -> GuestMessage {
        GuestMessage::Exited { process, status: ExitStatus::Code(code), exit_ns: 1, now_ns: 2 }
    }

    #[test]
    fn a_place_is_somebodys_until_the_guest_says_that_it_is_free() {
        let mut owner = owner();
        let member = |place| Exec { helper: Some(Helper::Member { place }), detached: true, ..Exec::default() };
        let occupied = Answer::Done(json!({ "occupied": true }));
        let (mut client, exec) = owner.ask(member(0));
        let id = exec.filter(|exec| !exec.attached).unwrap().process;
        let (mut other, none) = owner.ask(member(0));
        assert_eq!((other.next().unwrap(), none), (occupied.clone(), None));
        owner.said(started(id));
        assert_eq!(client.next().unwrap(), Answer::Streams(Vec::new()));
        // Whoever has it is killed: it is not free by that.
        drop(client);
        assert_eq!(owner.execs.wish(), None);
        assert_eq!(owner.ask(member(0)).0.next().unwrap(), occupied);
        assert!(!owner.execs.has_no_members());
        let left = owner.execs.heard(Heard::Said(exited(id, 0))).unwrap();
        assert_eq!((left.place, owner.execs.has_no_members()), (Some(0), true));
        // One that the guest could not free is nobody's any more; one that never was is free.
        let (mut client, exec) = owner.ask(member(0));
        let id = exec.unwrap().process;
        owner.said(started(id));
        assert_eq!(client.next().unwrap(), Answer::Streams(Vec::new()));
        let left = owner.execs.heard(Heard::Said(exited(id, 1))).unwrap();
        assert_eq!(left.place, None);
        left.tell();
        assert_eq!(client.next().unwrap(), Answer::Done(json!({ "exit_code": 1 })));
        assert_eq!(owner.ask(member(0)).0.next().unwrap(), occupied);
        let (mut client, exec) = owner.ask(member(1));
        let failed =
            GuestMessage::StartFailed { process: exec.unwrap().process, kind: FailureKind::Guest, detail: "no".into() };
        assert_eq!(owner.execs.heard(Heard::Said(failed)).unwrap().place, None);
        assert!(matches!(client.next().unwrap(), Answer::Done(value) if value["failed"] == "no"));
        assert!(owner.ask(member(1)).1.is_some());
    }

    #[test]
    fn a_client_has_the_guests_own_streams_until_the_end() {
        let mut owner = owner();
        let (mut client, exec) = owner.ask(Exec { stdin: true, cwd: Some("/x".into()), ..sh() });
        let exec = exec.unwrap();
        assert!(exec.process != MAIN_PROCESS && exec.stdin && exec.attached && exec.cwd.as_deref() == Some("/x"));
        let id = exec.process;
        // In any order; and what nobody has asked for has no effect.
        let mut stderr = owner.opened(id, StreamKind::Stderr);
        owner.said(started(id));
        for (process, kind) in [(id, StreamKind::Stderr), (id, StreamKind::Terminal), (id + 1, StreamKind::Stdin)] {
            assert_eq!(owner.opened(process, kind).read(&mut [0]).unwrap(), 0);
        }
        owner.said(exited(id + 1, 3));
        let mut stdin = owner.opened(id, StreamKind::Stdin);
        let _stdout = owner.opened(id, StreamKind::Stdout);
        assert_eq!(client.next().unwrap(), Answer::Streams(vec![Stream::Stdin, Stream::Stdout, Stream::Stderr]));
        let streams: Vec<UnixStream> = client.descriptors().into_iter().map(UnixStream::from).collect();
        (&streams[0]).write_all(b"i").unwrap();
        stderr.write_all(b"e").unwrap();
        let mut byte = [0];
        stdin.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"i");
        (&streams[2]).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"e");
        assert!(owner.is_quiet());
        for word in [Word::Signal(15), Word::Resize(Size { rows: 1, columns: 2 })] {
            client.say(word);
        }
        assert_eq!(owner.execs.wish(), Some(Wish::Tell(HostMessage::Signal { process: id, signal: 15 })));
        assert!(!owner.is_quiet());
        let size = WindowSize { rows: 1, columns: 2 };
        assert_eq!(owner.execs.wish(), Some(Wish::Tell(HostMessage::Resize { process: id, size })));
        assert!(owner.execs.wish().is_none() && owner.is_quiet());
        owner.said(exited(id, 7));
        assert_eq!(client.next().unwrap(), Answer::Done(json!({ "exit_code": 7 })));
        assert!(owner.execs.list.is_empty());
        drop(streams);
        assert_eq!(stdin.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn one_that_does_not_start_or_is_left_alone_says_so() {
        let mut owner = owner();
        for (kind, code) in [(FailureKind::NotFound, 127), (FailureKind::UnknownUser, 126), (FailureKind::Guest, 125)] {
            let (mut client, exec) = owner.ask(sh());
            let process = exec.unwrap().process;
            owner.said(GuestMessage::StartFailed { process, kind, detail: "no\x1b!".into() });
            assert_eq!(client.next().unwrap(), Answer::Done(json!({ "exit_code": code, "failed": "no !" })));
        }
        let terminal = Some(Size { rows: 1, columns: 2 });
        let (mut client, exec) = owner.ask(Exec { detached: true, terminal, stdin: true, ..sh() });
        let exec = exec.unwrap();
        assert!(!exec.attached && !exec.stdin && exec.terminal.is_some());
        owner.said(started(exec.process));
        assert_eq!(client.next().unwrap(), Answer::Done(json!({ "exit_code": 0 })));
        // It has its name until its end.
        assert_eq!(owner.execs.list.len(), 1);
        owner.said(exited(exec.process, 1));
        assert!(owner.execs.list.is_empty());
        // What the guest could not be told is not asked for.
        let too_long = Order::Exec(Exec { env: vec!["A".repeat(MAX_HOST_FRAME)], ..sh() });
        let error = Asking::ask(owner.dir.path(), "web", &too_long).unwrap_err().to_string();
        assert!(error.contains("environment"), "{error}");
    }

    #[test]
    fn a_client_that_is_gone_lets_go_of_the_streams() {
        let mut owner = owner();
        let (client, exec) = owner.ask(sh());
        let id = exec.unwrap().process;
        let mut stdout = owner.opened(id, StreamKind::Stdout);
        drop(client);
        assert!(!owner.is_quiet() && owner.execs.wish().is_none() && owner.is_quiet());
        assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
        owner.said(started(id));
        assert_eq!(owner.opened(id, StreamKind::Stderr).read(&mut [0]).unwrap(), 0);
        owner.said(exited(id, 0));
        assert!(owner.execs.list.is_empty());
        // One that speaks out of turn is one of them.
        let (mut client, exec) = owner.ask(sh());
        client.say(Word::Signal(9));
        assert!(owner.execs.wish().is_none());
        assert!(client.next().is_err());
        owner.said(exited(exec.unwrap().process, 0));
    }

    #[test]
    fn what_has_changed_is_for_whoever_was_named_for_it() {
        let mut owner = owner();
        let (ours, theirs) = UnixStream::pair().unwrap();
        owner.execs.expect_changes(owner.attendance.admit(theirs).unwrap());
        let mut client = Asking::over(ours, "build");
        let mut stdin = owner.opened(CHANGES_PROCESS, StreamKind::Stdin);
        let mut stdout = owner.opened(CHANGES_PROCESS, StreamKind::Stdout);
        let _stderr = owner.opened(CHANGES_PROCESS, StreamKind::Stderr);
        owner.said(started(CHANGES_PROCESS));
        assert_eq!(client.next().unwrap(), Answer::Streams(vec![Stream::Stdin, Stream::Stdout, Stream::Stderr]));
        let mut streams = client.descriptors().into_iter().map(UnixStream::from);
        stdout.write_all(b"o").unwrap();
        let mut byte = [0];
        streams.nth(1).unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"o");
        drop(streams);
        assert_eq!(stdin.read(&mut byte).unwrap(), 0);
        // Nobody else gets its id.
        owner.execs.last = CHANGES_PROCESS - 1;
        assert!(owner.ask(sh()).1.unwrap().process != CHANGES_PROCESS);
        owner.said(exited(CHANGES_PROCESS, 0));
        assert_eq!(client.next().unwrap(), Answer::Done(json!({ "exit_code": 0 })));
        // A container that ends without a word of it says so.
        let (ours, theirs) = UnixStream::pair().unwrap();
        owner.execs.expect_changes(owner.attendance.admit(theirs).unwrap());
        owner.execs.end("it has ended");
        assert_eq!(Asking::over(ours, "build").next().unwrap(), Answer::Error("it has ended".into()));
    }

    #[test]
    fn there_is_a_limit_and_an_end() {
        let mut owner = owner();
        let mut clients: Vec<(Asking, ProcessId)> = Vec::new();
        for _ in 0..MAX_EXECS {
            let (client, exec) = owner.ask(sh());
            let id = exec.unwrap().process;
            assert!(clients.iter().all(|(_, other)| *other != id));
            clients.push((client, id));
        }
        let (mut refused, exec) = owner.ask(sh());
        assert!(exec.is_none() && matches!(refused.next().unwrap(), Answer::Error(text) if text.contains("64")));
        // An id is free again when its process has ended, and not before.
        let (gone, id) = clients.remove(3);
        drop(gone);
        owner.execs.wish();
        assert_eq!(owner.execs.list.len(), MAX_EXECS);
        owner.said(exited(id, 0));
        owner.execs.last = id.wrapping_sub(2);
        let (client, exec) = owner.ask(sh());
        assert_eq!(exec.unwrap().process, id);
        clients.push((client, id));
        owner.execs.end("it has ended");
        for (client, _) in &mut clients {
            assert_eq!(client.next().unwrap(), Answer::Error("it has ended".into()));
        }
    }
}
