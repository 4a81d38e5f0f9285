//! Freezes, clones of frozen guests, and VMs that are taken away, against a played guest.

use super::*;
use rustix::event::{PollFd, PollFlags};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Wants what it reads from its socket, one byte each: `f`reeze, `g`ive up, `l`eave.
struct Asker {
    wishes: UnixStream,
    /// What it was told.
    told: Sender<String>,
    /// While all stands still.
    still: Box<dyn FnMut()>,
}

impl Attendant for Asker {
    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wishes.as_fd())
    }

    fn wish(&mut self) -> Option<Wish> {
        let mut byte = [0];
        self.wishes.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'f' => Some(Wish::Freeze),
            b'g' => Some(Wish::GiveUp),
            b'l' => Some(Wish::Leave),
            _ => None,
        }
    }

    fn frozen(&mut self) {
        self.told.send("frozen".into()).unwrap();
        (self.still)();
    }

    fn over(&mut self, result: Result<(), FreezeError>) {
        self.told.send(result.map_or_else(|error| error.to_string(), |()| "thawed".into())).unwrap();
    }
}

/// What a played guest has at hand besides its connections.
struct Outside {
    path: PathBuf,
    wishes: UnixStream,
    told: Receiver<String>,
    stdout: UnixStream,
    stdin: UnixStream,
    /// Ends the stillness.
    done: Sender<()>,
    _alive: UnixStream,
}

impl Outside {
    fn wish(&mut self, wish: u8) {
        self.wishes.write_all(&[wish]).unwrap();
    }

    fn told(&self) -> String {
        self.told.recv().unwrap()
    }

    /// A guest whose process runs, with its streams.
    fn running(&self) -> (Guest, [UnixStream; 3]) {
        let (mut guest, _) = Guest::begin(&self.path);
        let streams = [StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr].map(|kind| guest.stream(kind));
        guest.started();
        (guest, streams)
    }
}

/// What a conversation came to, with its user's side.
type Come = Result<Ended, SessionError>;

/// Runs `converse` against `guest`.
fn with_asker(
    converse: impl FnOnce(&Session, BorrowedFd<'_>, Io, &mut Asker) -> Come,
    guest: impl FnOnce(Outside) + Send,
) -> Come {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let pair = || UnixStream::pair().unwrap();
    let ((vm, alive), (stdout, out), (stdin, input), (wishes, asked)) = (pair(), pair(), pair(), pair());
    let (tell, told) = channel();
    let (done, wait) = channel::<()>();
    let mut asker = Asker { wishes: asked, told: tell, still: Box::new(move || wait.recv().unwrap()) };
    let outside = Outside { path, wishes, told, stdout, stdin, done, _alive: alive };
    let io = Io {
        stdin: Some(input.into()),
        stderr: out.try_clone().unwrap().into(),
        stdout: out.into(),
        terminal: false,
        size: None,
        recorder: None,
    };
    thread::scope(|scope| {
        let guest = scope.spawn(|| guest(outside));
        let session = session;
        let come = converse(&session, vm.as_fd(), io, &mut asker);
        drop((session, asker));
        guest.join().unwrap();
        come
    })
}

fn start_it(session: &Session, vm: BorrowedFd<'_>, io: Io, asker: &mut Asker) -> Come {
    session.begin(vm).and_then(|it| it.start(start(), io, asker))
}

fn identity() -> Identity {
    Identity {
        seed: Seed([0; 32]),
        machine_id: [1; 16],
        hostname: "clone".into(),
        wall_clock_ns: 0,
        network: None,
        resolv_conf: None,
        size: WindowSize { rows: 0, columns: 0 },
        stdin: false,
    }
}

#[test]
fn a_freeze_waits_for_the_process_and_holds_it_until_it_is_done() {
    let come = with_asker(start_it, |mut outside| {
        // Before there is anything to freeze.
        outside.wish(b'f');
        let (mut guest, mut streams) = outside.running();
        for round in 0..2 {
            if round > 0 {
                outside.wish(b'f');
            }
            assert_eq!(guest.next(), Some(HostMessage::Freeze));
            guest.send(&GuestMessage::Frozen { now_ns: 1 });
            assert_eq!(outside.told(), "frozen");
            // Output goes on to the user meanwhile.
            streams[1].write_all(b"meanwhile").unwrap();
            let mut seen = [0; 9];
            outside.stdout.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"meanwhile");
            outside.done.send(()).unwrap();
            assert_eq!(guest.next(), Some(HostMessage::Thaw(None)));
            assert_eq!(outside.told(), "thawed");
        }
        drop(streams);
        guest.exited(ExitStatus::Code(3));
        assert_eq!(guest.next(), None);
    });
    assert_eq!(exited(come).unwrap().exit_code, 3);
}

#[test]
fn a_freeze_that_does_not_come_about_says_why() {
    let come = with_asker(start_it, |mut outside| {
        let (mut guest, streams) = outside.running();
        outside.wish(b'f');
        assert_eq!(guest.next(), Some(HostMessage::Freeze));
        outside.wish(b'f');
        assert_eq!(outside.told(), "the container is being frozen already");
        guest.send(&GuestMessage::NotFrozen { detail: "no\n\x1bcgroup".into() });
        assert_eq!(outside.told(), "the guest cannot freeze the container: no??cgroup");
        // Given up, answered late, in either way; the third is another one.
        for _ in 0..2 {
            outside.wish(b'f');
            assert_eq!(guest.next(), Some(HostMessage::Freeze));
            outside.wish(b'g');
            assert_eq!(guest.next(), Some(HostMessage::Thaw(None)));
        }
        outside.wish(b'f');
        assert_eq!(guest.next(), Some(HostMessage::Freeze));
        guest.send(&GuestMessage::NotFrozen { detail: "late".into() });
        guest.send(&GuestMessage::Frozen { now_ns: 1 });
        guest.send(&GuestMessage::NotFrozen { detail: "this one".into() });
        assert_eq!(outside.told(), "the guest cannot freeze the container: this one");
        // The process ends instead of an answer; output is still under way.
        outside.wish(b'f');
        assert_eq!(guest.next(), Some(HostMessage::Freeze));
        guest.exited(ExitStatus::Code(0));
        assert_eq!(outside.told(), "the container's process has ended");
        outside.wish(b'f');
        assert_eq!(outside.told(), "the container's process has ended");
        drop(streams);
        assert_eq!(guest.next(), None);
    });
    assert_eq!(exited(come).unwrap().exit_code, 0);

    let come = with_asker(start_it, |mut outside| {
        let (mut guest, streams) = outside.running();
        outside.wish(b'f');
        assert_eq!(guest.next(), Some(HostMessage::Freeze));
        drop((guest, streams));
        assert_eq!(outside.told(), "the microVM is being ended");
    });
    assert!(matches!(come, Err(SessionError::GuestClosed)), "{come:?}");

    // An answer that nobody has asked for.
    let come = with_asker(start_it, |outside| {
        let (mut guest, _streams) = outside.running();
        guest.send(&GuestMessage::Frozen { now_ns: 1 });
        assert_eq!(guest.next(), None);
    });
    assert_eq!(come.unwrap_err().to_string(), "the guest broke the protocol: unexpected Frozen");
}

/// A guest that does not answer, and one whose process does not start, are waited for so long and no longer.
#[test]
fn a_freeze_is_late_at_some_time() {
    let impatient = |session: &Session, vm: BorrowedFd<'_>, io: Io, asker: &mut Asker| {
        let mut it = session.begin(vm)?;
        it.expect_freezes_within(std::time::Duration::from_millis(1));
        it.start(start(), io, asker)
    };
    let late = "did not come to a standstill within 0 s";
    let come = with_asker(impatient, |mut outside| {
        outside.wish(b'f');
        let said = outside.told();
        assert!(said.contains(late) && said.contains("not started"), "{said}");
        let (mut guest, streams) = outside.running();
        outside.wish(b'f');
        assert_eq!(guest.next(), Some(HostMessage::Freeze));
        assert_eq!(guest.next(), Some(HostMessage::Thaw(None)));
        let said = outside.told();
        assert!(said.contains(late) && said.contains("does not answer"), "{said}");
        // Its answer comes all the same, and means nothing any more.
        guest.send(&GuestMessage::Frozen { now_ns: 1 });
        drop(streams);
        guest.exited(ExitStatus::Code(4));
        assert_eq!(guest.next(), None);
    });
    assert_eq!(exited(come).unwrap().exit_code, 4);
}

#[test]
fn a_vm_is_left_and_another_ones_clone_takes_over() {
    let come = with_asker(
        |session, vm, io, asker| {
            let io = match start_it(session, vm, io, asker)? {
                Ended::Left(io) => io,
                other => panic!("{other:?}"),
            };
            // The other VM has a place of its own, and is there before the old one is left.
            let mut path = session.control.path.as_os_str().to_owned();
            path.push("-next");
            let mut arrival = Arrival::at(Session::listen(Path::new(&path)).unwrap());
            asker.told.send("left".into()).unwrap();
            asker.told.send(path.into_string().unwrap()).unwrap();
            while !arrival.step()? {
                rustix::event::poll(&mut [PollFd::from_borrowed_fd(arrival.event(), PollFlags::IN)], None).unwrap();
            }
            arrival.begin(vm)?.thaw(identity(), io, asker)
        },
        |mut outside| {
            let (mut old, mut streams) = outside.running();
            outside.stdin.write_all(b"one").unwrap();
            let mut typed = [0; 3];
            streams[0].read_exact(&mut typed).unwrap();
            streams[1].write_all(b"last words").unwrap();
            // Nobody has accepted it.
            let stale = Guest::connect(&outside.path);
            outside.wish(b'l');
            assert_eq!(outside.told(), "left");
            assert_eq!(old.next(), None);
            assert!(streams[1].write_all(b"too late").is_err());
            drop(stale);
            let next = outside.told();
            // Its kernel gives up what is not answered at once, and init connects anew.
            drop(Guest::connect(Path::new(&next)));
            let mut clone = Guest::connect(Path::new(&next));
            clone.hello(Phase::Frozen { terminal: false });
            assert_eq!(clone.next(), Some(HostMessage::Hello { version: VERSION }));
            match clone.next() {
                Some(HostMessage::Thaw(Some(told))) => {
                    assert!(told.stdin && told.hostname == "clone" && told.machine_id == [1; 16], "{told:?}");
                    assert!(told.seed != Seed([0; 32]) && told.wall_clock_ns > 1_600_000_000_000_000_000);
                }
                other => panic!("{other:?} instead of Thaw"),
            }
            let mut streams =
                [StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr].map(|kind| clone.stream(kind));
            clone.started();
            // What is typed now is for this one, all of it.
            outside.stdin.write_all(b"two").unwrap();
            streams[0].read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"two");
            streams[1].write_all(b", and new ones").unwrap();
            drop(streams);
            clone.exited(ExitStatus::Code(9));
            assert_eq!(clone.next(), None);
            let mut seen = vec![0; 24];
            outside.stdout.read_exact(&mut seen).unwrap();
            assert_eq!(seen, b"last words, and new ones");
        },
    );
    let outcome = exited(come).unwrap();
    assert_eq!(outcome.exit_code, 9);
    assert_eq!(outcome.times.kernel, outcome.times.init);
}

#[test]
fn a_vm_can_be_left_before_its_guest_says_anything() {
    let thaw = |session: &Session, vm: BorrowedFd<'_>, io: Io, asker: &mut Asker| {
        session.begin(vm).and_then(|it| it.thaw(identity(), io, asker))
    };
    for converse in [start_it, thaw as fn(&Session, BorrowedFd<'_>, Io, &mut Asker) -> Come] {
        let come = with_asker(converse, |mut outside| {
            outside.wish(b'f');
            outside.wish(b'l');
            assert_eq!(outside.told(), "the microVM is being ended");
        });
        assert!(matches!(come, Ok(Ended::Left(io)) if io.stdin.is_some()));
    }
}

/// Who comes to take another one's place, and is not what is needed, is told apart before it is let in.
#[test]
fn only_a_frozen_clone_arrives() {
    let _one = one_at_a_time();
    let come = |say: &dyn Fn(Guest)| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let mut arrival = Arrival::at(Session::listen(&path).unwrap());
        assert!(!arrival.step().unwrap());
        say(Guest::connect(&path));
        assert!(!arrival.step().unwrap());
        let result = arrival.step();
        let (vm, _alive) = UnixStream::pair().unwrap();
        assert_eq!(arrival.begin(vm.as_fd()).is_ok(), matches!(result, Ok(true)));
        result.map_err(|error| error.to_string())
    };
    let hello = |version, phase| {
        move |mut guest: Guest| {
            guest.send(&GuestMessage::Hello { version, phase, init_ns: 1, now_ns: 2 });
        }
    };
    assert_eq!(come(&hello(VERSION, Phase::Frozen { terminal: true })), Ok(true));
    for phase in [Phase::Booted, Phase::Prepared] {
        assert!(come(&hello(VERSION, phase)).unwrap_err().contains("no frozen clone"));
    }
    let frozen = Phase::Frozen { terminal: false };
    assert!(come(&hello(VERSION - 1, frozen)).unwrap_err().contains("protocol version"));
    // It may come again: what is gone is a connection.
    assert_eq!(come(&drop), Ok(false));
    assert!(
        come(&|mut guest| guest.control.write_all(&[0xff; 8]).unwrap()).unwrap_err().contains("broke the protocol")
    );
}

#[test]
fn a_guest_gets_what_it_can_be_and_nothing_else() {
    let thaw = |session: &Session, vm: BorrowedFd<'_>, io: Io, asker: &mut Asker| {
        session.begin(vm).and_then(|it| it.thaw(identity(), io, asker))
    };
    for phase in [Phase::Booted, Phase::Prepared] {
        let come = with_asker(thaw, |outside| {
            let mut guest = Guest::connect(&outside.path);
            guest.hello(phase);
            assert_eq!(guest.next(), Some(HostMessage::Hello { version: VERSION }));
            assert_eq!(guest.next(), None);
        });
        assert_eq!(
            come.unwrap_err().to_string(),
            "the guest broke the protocol: unexpected guest that is no frozen clone"
        );
    }
    let come = with_asker(start_it, |outside| {
        let mut guest = Guest::connect(&outside.path);
        guest.hello(Phase::Frozen { terminal: false });
        while guest.next().is_some() {}
    });
    let text = "the guest broke the protocol: unexpected clone of a guest whose process runs";
    assert_eq!(come.unwrap_err().to_string(), text);
    // A process with a terminal, a user without: its one stream goes both ways.
    let come = with_asker(thaw, |mut outside| {
        let mut guest = Guest::connect(&outside.path);
        guest.hello(Phase::Frozen { terminal: true });
        assert_eq!(guest.next(), Some(HostMessage::Hello { version: VERSION }));
        assert!(matches!(guest.next(), Some(HostMessage::Thaw(Some(told))) if told.size.rows > 0));
        let mut stream = guest.stream(StreamKind::Terminal);
        guest.started();
        outside.stdin.write_all(b"key").unwrap();
        let mut typed = [0; 3];
        stream.read_exact(&mut typed).unwrap();
        stream.write_all(b"out").unwrap();
        outside.stdout.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"out");
        drop(stream);
        guest.exited(ExitStatus::Code(0));
        assert_eq!(guest.next(), None);
    });
    assert_eq!(exited(come).unwrap().exit_code, 0);
}
