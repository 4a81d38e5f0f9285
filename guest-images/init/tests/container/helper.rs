//! What init does for the host beside the container's process: files in and out, changes, processes.

use super::exec::{IDLE, exec};
use super::*;
use guest_protocol::files::*;

/// What a helper has said, and how it ended.
struct Said {
    messages: Vec<FileMessage>,
    status: ExitStatus,
}

impl Said {
    /// Its entries by their paths, with the content of files. It said all, and left nothing out.
    fn entries(&self) -> Vec<(String, EntryKind, Vec<u8>)> {
        assert_eq!(
            (self.messages.last(), self.status),
            (Some(&FileMessage::End), ExitStatus::Code(0)),
            "{:?}",
            self.messages
        );
        let mut entries: Vec<(String, EntryKind, Vec<u8>)> = Vec::new();
        for message in &self.messages[..self.messages.len() - 1] {
            match message {
                FileMessage::Entry(entry) => {
                    let path = String::from_utf8(entry.path.0.clone()).unwrap();
                    entries.push((path, entry.kind.clone(), Vec::new()));
                }
                FileMessage::Data(data) => entries.last_mut().unwrap().2.extend(&data.0),
                other => panic!("{other:?}"),
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    fn failure(&self) -> &str {
        match (self.messages.last(), self.status) {
            (Some(FileMessage::Failed(why)), ExitStatus::Code(1)) => why,
            other => panic!("{other:?}"),
        }
    }
}

/// What comes, to the end of the stream or the message that is `last`.
fn heard(mut output: UnixStream, last: impl Fn(&FileMessage) -> bool) -> Vec<FileMessage> {
    let (mut buffer, mut messages) = (FrameBuffer::new(MAX_FILE_FRAME), Vec::new());
    loop {
        while let Some(message) = buffer.take().unwrap() {
            messages.push(message);
            if messages.last().is_some_and(&last) {
                return messages;
            }
        }
        match output.read(buffer.space()).unwrap() {
            0 => return messages,
            count => buffer.received(count),
        }
    }
}

impl Host {
    /// Has the guest do something, and tells it this.
    fn help(&mut self, helper: Helper, told: &[FileMessage]) -> Said {
        static IDS: AtomicU32 = AtomicU32::new(100);
        let process = IDS.fetch_add(1, Ordering::Relaxed);
        let stdin = !told.is_empty();
        let order = Exec { helper: Some(helper), stdin, ..exec(process, &[]) };
        let mut streams = self.order(&order).unwrap();
        let told: Vec<u8> = told.iter().flat_map(|message| encode(message, MAX_FILE_FRAME).unwrap()).collect();
        let output = streams.remove(usize::from(stdin));
        let reader = thread::spawn(move || heard(output, |_| false));
        if stdin {
            // One that has failed does not listen to the rest.
            let _ = streams[0].write_all(&told);
            let _ = streams[0].shutdown(std::net::Shutdown::Write);
        }
        let status = self.end_of(process);
        Said { messages: reader.join().unwrap(), status }
    }

    fn pack(&mut self, path: &str, follow: bool) -> Said {
        self.help(Helper::Pack { path: path.into(), follow }, &[])
    }

    /// What a command in the container writes.
    fn shell(&mut self, script: &str) -> String {
        static IDS: AtomicU32 = AtomicU32::new(10_000);
        let got = self.join(&exec(IDS.fetch_add(1, Ordering::Relaxed), &["sh", "-c", script]));
        got.stdout()
    }
}

/// The container, in whose /tmp there is what `script` makes.
fn container(script: &str) -> Option<(Host, UnixStream)> {
    Host::joinable(Host::new(), start(shell(&format!("mkdir /tmp/t; cd /tmp/t; {script}; {IDLE}"))))
}

fn file(size: u64) -> EntryKind {
    EntryKind::File { size }
}

fn directory() -> EntryKind {
    EntryKind::Directory { opaque: false }
}

fn entry(path: &str, kind: EntryKind, mode: u32, owner: (u32, u32)) -> FileMessage {
    let (uid, gid) = owner;
    FileMessage::Entry(Entry { path: path.as_bytes().into(), kind, mode, uid, gid, mtime: (1_000, 5), xattrs: vec![] })
}

#[test]
fn files_come_out_as_they_are() {
    let script = "mkdir d; head -c 100000 /dev/zero > d/big; echo hi > one; ln one two; ln -s one link; mkfifo pipe; \
                  chown 12:34 one; chmod 4750 one; : > 'a b'";
    let Some((mut host, _stdout)) = container(script) else { return };
    let said = host.pack("/tmp/t", false);
    let entries = said.entries();
    let names: Vec<_> = entries.iter().map(|(path, kind, _)| (path.as_str(), kind.clone())).collect();
    let twin = names.iter().find(|(path, _)| *path == "two").unwrap().1.clone();
    let (first, second) = match twin {
        EntryKind::Hardlink { .. } => (file(3), EntryKind::Hardlink { to: b"one"[..].into() }),
        _ => (EntryKind::Hardlink { to: b"two"[..].into() }, file(3)),
    };
    let wanted = [
        ("", directory()),
        ("a b", file(0)),
        ("d", directory()),
        ("d/big", file(100_000)),
        ("link", EntryKind::Symlink { target: b"one"[..].into() }),
        ("one", first),
        ("pipe", EntryKind::Fifo),
        ("two", second),
    ];
    assert_eq!(names, wanted);
    assert!(entries[3].2 == [0; 100_000]);
    let one = said.messages.iter().find_map(|message| match message {
        FileMessage::Entry(entry) if entry.path.0 == b"one" => Some((entry.mode, entry.uid, entry.gid)),
        _ => None,
    });
    assert_eq!(one, Some((0o4750, 12, 34)));
    // One file; a link, and what it leads to; and what is not there.
    assert_eq!(host.pack("/tmp/t/one", false).entries(), [("".into(), file(3), b"hi\n".to_vec())]);
    let link = EntryKind::Symlink { target: b"one"[..].into() };
    assert_eq!(host.pack("/tmp/t/link", false).entries(), [("".into(), link, vec![])]);
    assert_eq!(host.pack("/tmp/t/link", true).entries(), [("".into(), file(3), b"hi\n".to_vec())]);
    assert_eq!(host.pack("/tmp/t/none", false).failure(), "/tmp/t/none: no such file or directory");
    assert_eq!(host.pack("/tmp/t/one/x", false).failure(), "/tmp/t/one/x: not a directory");
    assert!(
        host.pack("/dev/null", false).entries().iter().all(|(_, kind, _)| matches!(kind, EntryKind::Character { .. }))
    );
}

#[test]
fn files_go_in_as_they_are_said_to_be() {
    let Some((mut host, _stdout)) = container("echo old > there; ln -s /tmp/t/there link; mkdir dir") else { return };
    let unpack = |path: &str, directory: bool| Helper::Unpack {
        path: path.into(),
        copied: Copied { name: "src".into(), directory, contents: false },
    };
    let data = |text: &str| FileMessage::Data(text.as_bytes().into());
    let one = [entry("", file(4), 0o2754, (7, 8)), data("new\n"), FileMessage::End];
    for path in ["/tmp/t/there", "/tmp/t/dir"] {
        assert!(host.help(unpack(path, false), &one).entries().is_empty());
    }
    let shown = host.shell("cd /tmp/t; cat there dir/src; stat -c '%a %u %g %Y' there dir/src");
    assert_eq!(shown, "new\nnew\n2754 7 8 1000\n2754 7 8 1000\n");
    let tree = [
        entry("", directory(), 0o751, (1, 2)),
        entry("deep", directory(), 0o500, (0, 0)),
        entry("deep/f", file(2), 0o600, (0, 0)),
        data("a"),
        data("b"),
        entry("h", EntryKind::Hardlink { to: b"deep/f"[..].into() }, 0, (0, 0)),
        entry("s", EntryKind::Symlink { target: b"nowhere"[..].into() }, 0o777, (5, 6)),
        entry("no/parents/yet", file(0), 0o640, (0, 0)),
        FileMessage::End,
    ];
    // A file is in the way.
    assert!(host.help(unpack("/tmp/t/dir", true), &tree).failure().ends_with("dir/src: not a directory"));
    host.shell("rm /tmp/t/dir/src");
    for _ in 0..2 {
        assert!(host.help(unpack("/tmp/t/dir", true), &tree).entries().is_empty());
        let shown = host.shell(
            "cd /tmp/t/dir/src; find . | sort | tr '\\n' ' '; cat deep/f; readlink s; stat -c '%a %u %g %h' . deep deep/f s no no/parents/yet",
        );
        let wanted = ". ./deep ./deep/f ./h ./no ./no/parents ./no/parents/yet ./s abnowhere\n\
                      751 1 2 4\n500 0 0 2\n600 0 0 2\n777 5 6 1\n755 0 0 3\n640 0 0 1\n";
        assert_eq!(shown, wanted);
    }
}

#[test]
fn what_cannot_be_made_is_told() {
    let Some((mut host, _stdout)) = container("mkdir dir; : > file") else { return };
    let unpack = |path: &str, directory: bool| Helper::Unpack {
        path: path.into(),
        copied: Copied { name: "src".into(), directory, contents: false },
    };
    let one = [entry("", file(1), 0o600, (0, 0)), FileMessage::Data(b"x"[..].into()), FileMessage::End];
    for (path, why) in [
        ("/tmp/none/x", "/tmp/none/x: no such file or directory"),
        ("/tmp/none/", "/tmp/none/: no such directory"),
        ("/tmp/t/file/", "/tmp/t/file/: not a directory"),
    ] {
        assert_eq!(host.help(unpack(path, false), &one).failure(), why);
    }
    let top = entry("", directory(), 0o700, (0, 0));
    assert!(
        host.help(unpack("/tmp/t/file", true), &[top.clone(), FileMessage::End]).failure().contains("where a file is")
    );
    for path in ["../x", "/x", "a/../../x"] {
        let messages = [top.clone(), entry(path, file(0), 0o600, (0, 0)), FileMessage::End];
        assert!(host.help(unpack("/tmp/t/new", true), &messages).failure().ends_with("invalid argument"), "{path}");
    }
    for messages in
        [&one[..1], &[one[1].clone()], &[one[0].clone(), FileMessage::End], &[FileMessage::Failed("no".into())]]
    {
        host.help(unpack("/tmp/t/dir", false), messages).failure();
    }
    assert_eq!(host.shell("ls /tmp/x /x /tmp/t/x 2>/dev/null | wc -l"), "0\n");
}

#[test]
fn changes_are_what_is_in_the_writable_layer() {
    let Some((mut host, _stdout)) =
        container("echo new > file; mkdir -m 711 sub; rm /etc/hostname /etc/os-release; : > /etc/mine")
    else {
        return;
    };
    let said = host.help(Helper::Changes { content: true }, &[]);
    let entries = said.entries();
    let of = |path: &str| {
        entries.iter().find(|(found, ..)| found == path).map(|(_, kind, data)| (kind.clone(), data.clone()))
    };
    assert_eq!(of("tmp/t/file"), Some((file(4), b"new\n".to_vec())), "{entries:?}");
    assert_eq!(of("tmp/t/sub"), Some((directory(), vec![])));
    assert_eq!(of("etc/os-release"), Some((EntryKind::Removed, vec![])));
    assert_eq!(of("etc/mine"), Some((file(0), vec![])));
    for own in ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        assert_eq!(of(own), None, "{own}");
    }
    let without = host.help(Helper::Changes { content: false }, &[]).entries();
    assert!(without.iter().zip(&entries).all(|(a, b)| (&a.0, &a.1) == (&b.0, &b.1) && a.2.is_empty()));
}

/// Volumes of the container's own: writable under a root that is not, and no changes, those of the container's last life included.
#[test]
fn what_is_in_the_containers_own_volumes_is_no_change() {
    let own = |target: &str| Volume { source: VolumeSource::Own, target: target.into(), read_only: false };
    let mut order = start(shell("echo x >/etc/x; mkdir /made/it/x; exec sleep 1000"));
    order.volumes = vec![own("/etc"), own("/made/it")];
    order.root.read_only = true;
    let Some(mut host) = Host::new() else { return };
    host.send(&HostMessage::Start(Box::new(order)));
    host.started();
    let seen = host.shell("until [ -e /made/it/x ]; do :; done; cat /etc/x; rm -r /made/it 2>/dev/null || ls -d /made/it; touch /x || echo no");
    assert!(seen.starts_with("x\n/made/it\n") && seen.ends_with("no\n"), "{seen}");
    let entries = host.help(Helper::Changes { content: true }, &[]).entries();
    assert_eq!(entries, ["made", "made/it"].map(|path| (path.into(), directory(), vec![])));
}

#[test]
fn usage_is_told() {
    let Some((mut host, _stdout)) = container(":") else { return };
    let said = host.help(Helper::Usage, &[]);
    let [FileMessage::Usage(usage), FileMessage::End] = said.messages[..] else { panic!("{:?}", said.messages) };
    assert!(usage.total >= usage.available && usage.available > 0 && usage.total > usage.free, "{usage:?}");
    assert!((1..20).contains(&usage.processes), "{usage:?}");
}

#[test]
fn what_a_process_has_changed_is_said_after_its_end_and_nothing_ends_before_it_is_heard() {
    // What it leaves running is gone by then, whether something else has joined it or not.
    let script = "echo new > /tmp/file; rm /etc/os-release; sh -c 'while :; do :; done' & echo ready; read line";
    for joined in [false, true] {
        let main = Start { changes: true, process: Process { stdin: true, ..shell(script) }, ..start(shell("")) };
        let Some(mut host) = Host::new() else { return };
        host.send(&HostMessage::Start(Box::new(main)));
        let mut stdin = host.stream(StreamKind::Stdin);
        host.started();
        let mut stdout = host.stream(StreamKind::Stdout);
        stdout.read_exact(&mut [0; 6]).unwrap();
        if joined {
            assert_eq!(host.shell("cat /tmp/file"), "new\n");
        }
        stdin.write_all(b"\n").unwrap();
        let streams = [(); 3].map(|()| host.streams.accept().unwrap().0);
        let [input, output, _errors] = streams.map(|mut stream| {
            let mut header = [0; StreamHeader::LEN];
            stream.read_exact(&mut header).unwrap();
            assert_eq!(StreamHeader::from_bytes(header).unwrap().process, CHANGES_PROCESS);
            stream
        });
        assert!(matches!(host.next(), Some(GuestMessage::Started { process: CHANGES_PROCESS, .. })));
        let messages = heard(output, |message| *message == FileMessage::End);
        host.control.set_nonblocking(true).unwrap();
        assert!(host.control.read(&mut [0]).is_err(), "it waits");
        host.control.set_nonblocking(false).unwrap();
        drop(input);
        let said = Said { messages, status: host.end_of(CHANGES_PROCESS) };
        let entries = said.entries();
        for wanted in [
            ("tmp/file".to_owned(), file(4), b"new\n".to_vec()),
            ("etc/os-release".to_owned(), EntryKind::Removed, vec![]),
        ] {
            assert!(entries.contains(&wanted), "{entries:?}");
        }
        assert_eq!(host.exit_status(), ExitStatus::Code(0));
    }
}

#[test]
fn what_a_process_has_changed_that_failed_is_nobodys_business() {
    let main = Start { changes: true, ..start(shell("echo new > /tmp/file; exit 3")) };
    let Some((_, _, status)) = run(main) else { return };
    assert_eq!(status, ExitStatus::Code(3));
}

#[test]
fn a_helper_can_be_all_that_runs() {
    let alone = |helper, told: &[FileMessage]| {
        let mut host = Host::new()?;
        let process = Process { stdin: !told.is_empty(), ..process(&[]) };
        host.send(&HostMessage::Start(Box::new(Start { helper: Some(helper), ..start(process) })));
        if !told.is_empty() {
            let mut stdin = host.stream(StreamKind::Stdin);
            told.iter().for_each(|message| stdin.write_all(&encode(message, MAX_FILE_FRAME).unwrap()).unwrap());
        }
        host.started();
        let output = host.stream(StreamKind::Stdout);
        let messages = heard(output, |_| false);
        Some(Said { messages, status: host.exit_status() })
    };
    let Some(said) = alone(Helper::Pack { path: "/etc/os-release".into(), follow: true }, &[]) else { return };
    assert_eq!(said.entries().len(), 1);
    let none = alone(Helper::Pack { path: "/tmp/none".into(), follow: false }, &[]).unwrap();
    assert_eq!(none.failure(), "/tmp/none: no such file or directory");
    let copied = Copied { name: "file".into(), directory: false, contents: false };
    let told = [entry("", file(2), 0o600, (0, 0)), FileMessage::Data(Bytes(b"hi".to_vec())), FileMessage::End];
    let taken = alone(Helper::Unpack { path: "/tmp/file".into(), copied }, &told).unwrap();
    assert_eq!(taken.entries(), []);
    // There is nothing but what init itself puts into every container.
    let changes = alone(Helper::Changes { content: false }, &[]).unwrap().entries();
    assert_eq!(changes, [], "{changes:?}");
}

#[test]
fn processes_are_those_of_the_container() {
    // Its program runs by the time it says so; what the container starts later may be anything between two programs.
    let script = "mkfifo up never; sh -c 'echo up >up; read line <never' & read line <up";
    let Some((mut host, _stdout)) = container(script) else { return };
    let said = host.help(Helper::Processes, &[]);
    let processes: Vec<&ProcessInfo> = said
        .messages
        .iter()
        .filter_map(|message| match message {
            FileMessage::Process(process) => Some(process),
            _ => None,
        })
        .collect();
    assert_eq!((said.messages.last(), said.status), (Some(&FileMessage::End), ExitStatus::Code(0)));
    assert_eq!(processes[0].pid, 1, "{processes:?}");
    assert!(processes[0].command.starts_with("sh -c ") && processes[0].resident > 0, "{processes:?}");
    let other = processes.iter().find(|process| process.command.starts_with("sh -c echo up")).unwrap();
    assert_eq!((other.ppid, other.uid), (1, 0));
    let known = |process: &&&ProcessInfo| process.command.starts_with("sh -c ") || process.command == "sleep 1000";
    assert_eq!(processes.iter().filter(known).count(), processes.len(), "and not the helper: {processes:?}");
}
