//! Processes beside the main one, against a played guest: what is passed on, and that the run does not mind.

use super::super::attend::{Attendant, FreezeError, Heard, Wish};
use super::*;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Sender, channel};

/// Wants what it was given, one for each byte on its socket; tells what it hears.
struct Asker {
    wishes: Vec<Wish>,
    event: UnixStream,
    told: Sender<String>,
    streams: Vec<UnixStream>,
}

impl Attendant for Asker {
    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn wish(&mut self) -> Option<Wish> {
        self.event.read_exact(&mut [0]).unwrap();
        Some(self.wishes.remove(0))
    }

    fn frozen(&mut self) {}

    fn over(&mut self, _: Result<(), FreezeError>) {}

    fn heard(&mut self, heard: Heard) {
        let told = match heard {
            Heard::Opened(header, stream) => {
                self.streams.push(stream);
                format!("{} {:?}", header.process, header.kind)
            }
            Heard::Said(message) => format!("{message:?}"),
        };
        self.told.send(told).unwrap();
    }

    fn ended(&mut self) {
        self.told.send("ended".into()).unwrap();
    }
}

fn exec(process: ProcessId) -> HostMessage {
    let (args, env) = (vec!["true".into()], vec![]);
    let exec =
        Exec { process, args, helper: None, env, cwd: None, user: None, terminal: None, stdin: false, attached: true };
    HostMessage::Exec(Box::new(exec))
}

#[test]
fn others_are_told_of_when_the_process_runs_and_heard_of_until_it_ends() {
    let _one = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let session = Session::listen(&path).unwrap();
    let pair = || UnixStream::pair().unwrap();
    let ((vm, _alive), (mut stdout, out), (mut wishes, event)) = (pair(), pair(), pair());
    let (tell, told) = channel();
    let signal = HostMessage::Signal { process: 5, signal: 15 };
    let orders = [exec(5), signal.clone(), exec(6)];
    let list = orders.into_iter().map(Wish::Tell).collect();
    let mut asker = Asker { wishes: list, event, told: tell, streams: Vec::new() };
    thread::scope(|scope| {
        let path = &path;
        scope.spawn(move || {
            // Before there is a process it waits.
            wishes.write_all(b".").unwrap();
            let (mut guest, _) = Guest::begin(path);
            let [mut stdout, stderr] = [StreamKind::Stdout, StreamKind::Stderr].map(|kind| guest.stream(kind));
            guest.started();
            assert_eq!(guest.next(), Some(exec(5)));
            let mut other = UnixStream::connect(format!("{}_1025", path.display())).unwrap();
            let header = StreamHeader { process: 5, kind: StreamKind::Stdout };
            other.write_all(&header.to_bytes()).unwrap();
            assert_eq!(told.recv().unwrap(), "5 Stdout");
            guest.send(&GuestMessage::Started { process: 5, root_ns: 1, now_ns: 2 });
            assert!(told.recv().unwrap().starts_with("Started { process: 5"));
            wishes.write_all(b".").unwrap();
            assert_eq!(guest.next(), Some(HostMessage::Signal { process: 5, signal: 15 }));
            let failed = (FailureKind::NotFound, "no".to_owned());
            guest.send(&GuestMessage::StartFailed { process: 77, kind: failed.0, detail: failed.1 });
            assert!(told.recv().unwrap().starts_with("StartFailed { process: 77"));
            stdout.write_all(b"the main one").unwrap();
            guest.send(&GuestMessage::Exited { process: 5, status: ExitStatus::Code(3), exit_ns: 1, now_ns: 2 });
            assert!(told.recv().unwrap().starts_with("Exited { process: 5"));
            guest.exited(ExitStatus::Code(4));
            // Too late.
            drop(stderr);
            wishes.write_all(b".").unwrap();
            assert!(told.recv().unwrap().starts_with("StartFailed { process: 6"));
            drop(stdout);
            assert_eq!(told.recv().unwrap(), "ended");
            assert_eq!(guest.next(), None);
        });
        let out_of = scope.spawn(move || read_all(&mut stdout));
        let io = Io {
            stdin: None,
            stderr: out.try_clone().unwrap().into(),
            stdout: out.into(),
            terminal: false,
            size: None,
            recorder: None,
        };
        let ended = exited(session.begin(vm.as_fd()).and_then(|it| it.start(start(), io, &mut asker)));
        drop(session);
        assert_eq!(ended.unwrap().exit_code, 4);
        assert_eq!(out_of.join().unwrap(), b"the main one");
    });
}
