//! The session against a guest played by a thread, over the sockets a monitor would connect.

mod freeze;
mod others;

use super::attend::NoAttendant;
use super::*;
use guest_protocol::*;
use rustix::process::{Pid, Signal, getpid, kill_process};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};
use std::thread;

/// Signals go to the whole process, so no two runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn start() -> Start {
    Start {
        seed: Seed([0; 32]),
        machine_id: [0; 16],
        hostname: "box".into(),
        wall_clock_ns: 1,
        root: Root { layers: vec![], upper: Upper::Memory { bytes: None }, read_only: false },
        network: None,
        volumes: vec![],
        names: Names::default(),
        settings: Settings::default(),
        end: End::PowerOff,
        process: Process {
            args: vec!["true".into()],
            env: vec![],
            cwd: "/".into(),
            user: String::new(),
            terminal: None,
            stdin: false,
            found: Found::default(),
        },
        helper: None,
        changes: false,
    }
}

/// The guest's half.
struct Guest {
    path: PathBuf,
    control: UnixStream,
    received: FrameBuffer,
}

impl Guest {
    fn connect(path: &Path) -> Self {
        let control = UnixStream::connect(format!("{}_1024", path.display())).unwrap();
        Self { path: path.into(), control, received: FrameBuffer::new(MAX_HOST_FRAME) }
    }

    /// Says hello and takes the order.
    fn begin(path: &Path) -> (Self, Start) {
        let mut guest = Self::connect(path);
        guest.hello(Phase::Booted);
        assert_eq!(guest.next(), Some(HostMessage::Hello { version: VERSION }));
        match guest.next() {
            Some(HostMessage::Start(start)) => (guest, *start),
            other => panic!("{other:?} instead of Start"),
        }
    }

    fn hello(&mut self, phase: Phase) {
        self.send(&GuestMessage::Hello { version: VERSION, phase, init_ns: 5, now_ns: 10 });
    }

    fn send(&mut self, message: &GuestMessage) {
        self.control.write_all(&encode(message, MAX_GUEST_FRAME).unwrap()).unwrap();
    }

    fn next(&mut self) -> Option<HostMessage> {
        loop {
            if let Some(message) = self.received.take().unwrap() {
                return Some(message);
            }
            match self.control.read(self.received.space()) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.received.received(count),
            }
        }
    }

    fn stream(&self, kind: StreamKind) -> UnixStream {
        let mut stream = UnixStream::connect(format!("{}_1025", self.path.display())).unwrap();
        stream.write_all(&StreamHeader { process: MAIN_PROCESS, kind }.to_bytes()).unwrap();
        stream
    }

    fn started(&mut self) {
        self.send(&GuestMessage::Started { process: MAIN_PROCESS, root_ns: 20, now_ns: 30 });
    }

    fn exited(&mut self, status: ExitStatus) {
        self.send(&GuestMessage::Exited { process: MAIN_PROCESS, status, exit_ns: 40, now_ns: 50 });
    }
}

/// What a run came to, and what the user saw of it.
struct Seen {
    result: Result<Outcome, SessionError>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a session against `guest`; `vm` of the guest is what keeps the VM alive.
fn run<G: FnOnce(&Path, UnixStream) + Send>(stdin: Option<OwnedFd>, guest: G) -> Seen {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let (vm, alive) = UnixStream::pair().unwrap();
    let (mut stdout, out) = UnixStream::pair().unwrap();
    let (mut stderr, err) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let path = &path;
        scope.spawn(move || guest(path, alive));
        let stdout = scope.spawn(move || read_all(&mut stdout));
        let stderr = scope.spawn(move || read_all(&mut stderr));
        let io = Io { stdin, stdout: out.into(), stderr: err.into(), terminal: false, size: None, recorder: None };
        let result = exited(session.begin(vm.as_fd()).and_then(|it| it.start(start(), io, &mut NoAttendant)));
        drop(session);
        Seen { result, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    })
}

/// The outcome of a conversation that nobody wanted to end otherwise.
fn exited(ended: Result<Ended, SessionError>) -> Result<Outcome, SessionError> {
    ended.map(|ended| match ended {
        Ended::Exited(outcome) => outcome,
        Ended::Left(_) => panic!("left"),
    })
}

fn one_at_a_time() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn send_self(signal: Signal) {
    let own: Pid = getpid();
    kill_process(own, signal).unwrap();
}

#[test]
fn streams_and_exit_code_arrive() {
    let (user, stdin) = UnixStream::pair().unwrap();
    let input: Vec<u8> = (0..2_000_000u32).map(|at| (at * 31 % 251) as u8).collect();
    let typed = input.clone();
    thread::spawn(move || {
        let mut user = user;
        user.write_all(&typed).unwrap();
    });
    let seen = run(Some(stdin.into()), |path, _alive| {
        let (mut guest, start) = Guest::begin(path);
        assert!(start.process.stdin && start.process.terminal.is_none());
        let mut stdin = guest.stream(StreamKind::Stdin);
        let mut stdout = guest.stream(StreamKind::Stdout);
        let mut stderr = guest.stream(StreamKind::Stderr);
        guest.started();
        stderr.write_all(b"err").unwrap();
        // `cat`: it ends when its input does.
        std::io::copy(&mut stdin, &mut stdout).unwrap();
        drop((stdout, stderr));
        guest.exited(ExitStatus::Code(7));
        // The host has all it needs, and lets go.
        assert_eq!(guest.next(), None);
    });
    let outcome = seen.result.unwrap();
    assert_eq!(outcome.exit_code, 7);
    assert!(seen.stdout == input);
    assert_eq!(seen.stderr, b"err");
    let times = outcome.times;
    let order = [times.kernel, times.init, times.connected, times.root, times.started, times.finished];
    assert!(order.is_sorted() && times.kernel > 0 && times.exited > 0, "{times:?}");
}

/// A template is made, its VM goes on, and a clone of it comes to the same session.
#[test]
fn a_guest_is_prepared_and_a_clone_started() {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let (vm, _alive) = UnixStream::pair().unwrap();
    let (clone_vm, _clone_alive) = UnixStream::pair().unwrap();
    let (_out, out) = UnixStream::pair().unwrap();
    let io = || Io {
        stdin: None,
        stdout: out.try_clone().unwrap().into(),
        stderr: out.try_clone().unwrap().into(),
        terminal: false,
        size: None,
        recorder: None,
    };
    let run = |guest: &mut Guest, code| {
        let order = match guest.next() {
            Some(HostMessage::Start(start)) => *start,
            other => panic!("{other:?} instead of Start"),
        };
        drop([StreamKind::Stdout, StreamKind::Stderr].map(|kind| guest.stream(kind)));
        guest.started();
        guest.exited(ExitStatus::Code(code));
        assert_eq!(guest.next(), None);
        order
    };
    let guest = |path: &Path| {
        let mut guest = Guest::connect(path);
        // What it is to do it hears at once, with the hello.
        assert_eq!(guest.next(), Some(HostMessage::Hello { version: VERSION }));
        assert_eq!(guest.next(), Some(HostMessage::Prepare(None)));
        guest.hello(Phase::Booted);
        guest.send(&GuestMessage::Ready { now_ns: 20 });
        let first = run(&mut guest, 3);
        let mut clone = Guest::connect(path);
        assert_eq!(clone.next(), Some(HostMessage::Hello { version: VERSION }));
        clone.hello(Phase::Prepared);
        [first, run(&mut clone, 4)]
    };
    let orders = thread::scope(|scope| {
        // Whatever fails here, the guest does not wait for it.
        let session = session;
        let guest = scope.spawn(|| guest(&path));
        let mut conversation = session.begin(vm.as_fd()).unwrap();
        conversation.prepare(None).unwrap();
        let outcome = exited(conversation.start(start(), io(), &mut NoAttendant)).unwrap();
        assert_eq!(outcome.exit_code, 3);
        assert!(outcome.times.kernel < outcome.times.init);
        let ended = session.begin(clone_vm.as_fd()).and_then(|it| it.start(start(), io(), &mut NoAttendant));
        let outcome = exited(ended).unwrap();
        assert_eq!(outcome.exit_code, 4);
        assert_eq!(outcome.times.kernel, outcome.times.init);
        guest.join().unwrap()
    });
    assert_ne!(orders[0].seed, orders[1].seed);
    assert!(orders.iter().all(|order| order.seed != Seed([0; 32]) && order.wall_clock_ns > 1_600_000_000_000_000_000));
}

#[test]
fn a_guest_that_cannot_prepare_says_why() {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let (vm, alive) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut guest = Guest::connect(&path);
            guest.hello(Phase::Booted);
            let detail = "no tmpfs".into();
            guest.send(&GuestMessage::StartFailed { process: MAIN_PROCESS, kind: FailureKind::Root, detail });
            while guest.next().is_some() {}
            drop(alive);
        });
        let session = session;
        let mut conversation = session.begin(vm.as_fd()).unwrap();
        assert_eq!(conversation.prepare(None).unwrap_err().to_string(), "no tmpfs");
        drop(conversation);
        // The VM is gone before the next guest said anything.
        let error = session.begin(vm.as_fd()).unwrap().prepare(None).unwrap_err();
        assert!(matches!(error, SessionError::VmEnded("its init reported")), "{error}");
    });
}

#[test]
fn output_that_comes_after_the_exit_is_waited_for() {
    let seen = run(None, |path, _alive| {
        let (mut guest, start) = Guest::begin(path);
        assert!(!start.process.stdin);
        guest.started();
        let mut stdout = guest.stream(StreamKind::Stdout);
        guest.exited(ExitStatus::Signal(15));
        // The other one never comes.
        stdout.write_all(b"late").unwrap();
        drop(stdout);
        assert_eq!(guest.next(), None);
    });
    assert_eq!(seen.result.unwrap().exit_code, 143);
    assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (&b"late"[..], &b""[..]));
}

#[test]
fn a_process_that_does_not_start_has_its_exit_code() {
    for (kind, code) in
        [(FailureKind::NotFound, 127), (FailureKind::NotExecutable, 126), (FailureKind::UnknownUser, 125)]
    {
        let seen = run(None, |path, _alive| {
            let (mut guest, _) = Guest::begin(path);
            let detail = "exec: \u{1b}[31mno\nmore".into();
            guest.send(&GuestMessage::StartFailed { process: MAIN_PROCESS, kind, detail });
            assert_eq!(guest.next(), None);
        });
        let error = seen.result.unwrap_err();
        assert_eq!(error.exit_code(), code);
        assert_eq!(error.to_string(), "exec: ?[31mno?more");
    }
}

/// Its kernel does that, on a busy host, and init connects once more.
#[test]
fn a_connection_that_the_guest_gave_up_is_not_its_last() {
    let seen = run(None, |path, _alive| {
        drop(Guest::connect(path));
        drop(Guest::connect(path));
        let (mut guest, _) = Guest::begin(path);
        guest.started();
        guest.exited(ExitStatus::Code(3));
        assert_eq!(guest.next(), None);
    });
    assert_eq!(seen.result.unwrap().exit_code, 3);
}

#[test]
fn the_end_of_the_vm_ends_the_run() {
    let seen = run(None, |_, alive| drop(alive));
    assert!(matches!(seen.result, Err(SessionError::VmEnded("its init reported"))));

    let seen = run(None, |path, alive| {
        let (guest, _) = Guest::begin(path);
        drop((alive, guest));
    });
    assert!(matches!(seen.result, Err(SessionError::VmEnded(_) | SessionError::GuestClosed)));

    let seen = run(None, |path, alive| {
        let (mut guest, _) = Guest::begin(path);
        let mut stdout = guest.stream(StreamKind::Stdout);
        guest.started();
        stdout.write_all(b"last words").unwrap();
        drop((alive, stdout, guest));
    });
    assert!(matches!(seen.result, Err(SessionError::VmEnded(_) | SessionError::GuestClosed)));
    assert_eq!(seen.stdout, b"last words");
    assert_eq!(seen.result.unwrap_err().exit_code(), 125);
}

#[test]
fn a_guest_that_breaks_the_protocol_is_named() {
    let refused = |guest: fn(&mut Guest)| {
        let seen = run(None, move |path, _alive| {
            let mut connected = Guest::connect(path);
            guest(&mut connected);
            while connected.next().is_some() {}
        });
        seen.result.unwrap_err().to_string()
    };
    let text =
        refused(|guest| guest.send(&GuestMessage::Hello { version: 1, phase: Phase::Booted, init_ns: 0, now_ns: 0 }));
    assert_eq!(text, format!("the guest speaks protocol version 1, this program {VERSION}"));
    let text = refused(|guest| guest.started());
    assert_eq!(text, "the guest broke the protocol: unexpected Started");
    let text = refused(|guest| guest.control.write_all(&[0xff; 8]).unwrap());
    assert!(text.contains("larger than the limit"), "{text}");
    let text = refused(|guest| guest.control.write_all(&[1, 0, 0, 0, 77]).unwrap());
    assert!(text.contains("not a message"), "{text}");
    let text = refused(|guest| {
        guest.send(&GuestMessage::Hello { version: VERSION, phase: Phase::Booted, init_ns: u64::MAX, now_ns: 0 });
        drop(guest.stream(StreamKind::Terminal));
    });
    // Whichever the host sees first.
    assert!(text.starts_with("the guest broke the protocol: unexpected"), "{text}");
}

#[test]
fn signals_go_to_the_process_and_the_third_ends_the_run() {
    let seen = run(None, |path, _alive| {
        let (mut guest, _) = Guest::begin(path);
        let _streams = (guest.stream(StreamKind::Stdout), guest.stream(StreamKind::Stderr));
        guest.started();
        // The host takes no signal for the process before it has read this; a message back would tell, but there is none:
        // SIGUSR1 has no effect on the host itself, so it is sent until it arrives.
        guest.control.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
        let first = loop {
            send_self(Signal::USR1);
            if let Some(message) = guest.next() {
                break message;
            }
        };
        assert_eq!(first, HostMessage::Signal { process: MAIN_PROCESS, signal: 10 });
        guest.control.set_read_timeout(None).unwrap();
        for _ in 0..2 {
            send_self(Signal::TERM);
            let message = loop {
                match guest.next() {
                    Some(HostMessage::Signal { signal: 10, .. }) => {}
                    other => break other,
                }
            };
            assert_eq!(message, Some(HostMessage::Signal { process: MAIN_PROCESS, signal: 15 }));
        }
        send_self(Signal::INT);
        assert_eq!(guest.next(), None);
    });
    let error = seen.result.unwrap_err();
    assert!(matches!(error, SessionError::Interrupted(2)), "{error}");
    assert_eq!(error.exit_code(), 130);
}

#[test]
fn a_signal_while_the_guest_boots_ends_the_run() {
    let seen = run(None, |path, _alive| {
        // The handlers are there when the session has said hello.
        let mut guest = Guest::connect(path);
        assert_eq!(guest.next(), Some(HostMessage::Hello { version: VERSION }));
        assert!(matches!(guest.next(), Some(HostMessage::Start(_))));
        send_self(Signal::TERM);
        assert_eq!(guest.next(), None);
    });
    assert_eq!(seen.result.unwrap_err().exit_code(), 143);
}

#[test]
fn a_closed_output_is_closed_for_the_process() {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let (vm, _alive) = UnixStream::pair().unwrap();
    let (closed, out) = UnixStream::pair().unwrap();
    let (_stderr, err) = UnixStream::pair().unwrap();
    drop(closed);
    thread::scope(|scope| {
        let path = &path;
        scope.spawn(move || {
            let (mut guest, _) = Guest::begin(path);
            let mut stdout = guest.stream(StreamKind::Stdout);
            drop(guest.stream(StreamKind::Stderr));
            guest.started();
            // `yes`: goes on until it cannot write.
            while stdout.write_all(&[b'y'; 4096]).is_ok() {}
            guest.exited(ExitStatus::Code(1));
            assert_eq!(guest.next(), None);
        });
        let io =
            Io { stdin: None, stdout: out.into(), stderr: err.into(), terminal: false, size: None, recorder: None };
        let ended = session.begin(vm.as_fd()).and_then(|it| it.start(start(), io, &mut NoAttendant));
        drop(session);
        assert_eq!(exited(ended).unwrap().exit_code, 1);
    });
}

#[test]
fn a_terminal_is_raw_while_the_process_runs() {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let (vm, _alive) = UnixStream::pair().unwrap();
    let (user, terminal) = terminal();
    let size = |rows, columns| Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&user, size(30, 100)).unwrap();
    let before = tcgetattr(&terminal).unwrap();
    assert!(before.local_modes.contains(LocalModes::ISIG));
    thread::scope(|scope| {
        let (path, terminal, user) = (&path, &terminal, &user);
        scope.spawn(move || {
            let (mut guest, start) = Guest::begin(path);
            assert_eq!(start.process.terminal, Some(WindowSize { rows: 30, columns: 100 }));
            assert!(start.process.stdin);
            let mut stream = guest.stream(StreamKind::Terminal);
            let resized = |rows, columns| {
                let size = WindowSize { rows, columns };
                Some(HostMessage::Resize { process: MAIN_PROCESS, size })
            };
            // Raw mode comes first, then news of a size that has changed while the guest booted.
            tcsetwinsize(user, size(31, 101)).unwrap();
            guest.started();
            assert_eq!(guest.next(), resized(31, 101));
            let modes = tcgetattr(terminal).unwrap().local_modes;
            assert!(!modes.intersects(LocalModes::ISIG | LocalModes::ECHO));
            rustix::io::write(user, b"\x03").unwrap();
            let mut key = [0];
            stream.read_exact(&mut key).unwrap();
            assert_eq!(key, [3]);
            stream.write_all(b"a\n").unwrap();
            let mut seen = [0; 2];
            rustix::io::read(user, &mut seen[..]).unwrap();
            assert_eq!(&seen, b"a\n");
            tcsetwinsize(user, size(32, 102)).unwrap();
            send_self(Signal::WINCH);
            assert_eq!(guest.next(), resized(32, 102));
            drop(stream);
            guest.exited(ExitStatus::Code(0));
            assert_eq!(guest.next(), None);
        });
        let io = Io {
            stdin: Some(terminal.try_clone().unwrap()),
            stdout: terminal.try_clone().unwrap(),
            stderr: terminal.try_clone().unwrap(),
            terminal: true,
            size: None,
            recorder: None,
        };
        let ended = session.begin(vm.as_fd()).and_then(|it| it.start(start(), io, &mut NoAttendant));
        drop(session);
        assert_eq!(exited(ended).unwrap().exit_code, 0);
    });
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, before.local_modes);
}

/// A new terminal: the user's side and the program's side.
fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let program = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (user, program)
}

#[test]
fn sockets_are_the_owners_and_go_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let socket = directory.path().join("vsock_1025");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Session::listen(&path), Err(SessionError::Listen { .. })));
    // The one that failed did not take the other's sockets away.
    assert!(socket.exists());
    drop(session);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
