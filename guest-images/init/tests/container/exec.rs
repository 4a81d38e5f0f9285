//! Processes that join a container.

use super::*;
use std::collections::BTreeMap;

/// What a process that joined has come to: its streams, to their ends, and what the guest said.
pub struct Joined {
    stdout: String,
    stderr: String,
    status: ExitStatus,
}

impl Joined {
    /// What it wrote.
    pub fn stdout(self) -> String {
        self.stdout
    }

    fn code(&self) -> (&str, ExitStatus) {
        (&self.stdout, self.status)
    }
}

pub fn exec(process: ProcessId, args: &[&str]) -> Exec {
    Exec {
        process,
        args: args.iter().map(ToString::to_string).collect(),
        helper: None,
        env: vec![],
        cwd: None,
        user: None,
        terminal: None,
        stdin: false,
        attached: true,
    }
}

fn script(process: ProcessId, script: &str) -> Exec {
    exec(process, &["sh", "-c", script])
}

fn kinds(exec: &Exec) -> &'static [StreamKind] {
    match (exec.attached, exec.terminal, exec.stdin) {
        (false, ..) => &[],
        (true, Some(_), _) => &[StreamKind::Terminal],
        (true, None, true) => &[StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr],
        (true, None, false) => &[StreamKind::Stdout, StreamKind::Stderr],
    }
}

fn text(mut stream: UnixStream) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

impl Host {
    /// The container that others join: it has said "ready", and goes on until it is told otherwise.
    pub fn joinable(host: Option<Self>, main: Start) -> Option<(Self, UnixStream)> {
        let mut host = host?;
        host.send(&HostMessage::Start(Box::new(main)));
        host.started();
        let mut stdout = host.stream(StreamKind::Stdout);
        let mut line = [0; 6];
        stdout.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        Some((host, stdout))
    }

    /// Orders a process; its streams once it runs.
    pub fn order(&mut self, order: &Exec) -> Result<Vec<UnixStream>, (FailureKind, String)> {
        self.send(&HostMessage::Exec(Box::new(order.clone())));
        let streams: Vec<UnixStream> = kinds(order).iter().map(|_| self.streams.accept().unwrap().0).collect();
        match self.next() {
            Some(GuestMessage::Started { process, root_ns, now_ns }) => {
                assert!(process == order.process && root_ns <= now_ns);
            }
            Some(GuestMessage::StartFailed { process, kind, detail }) => {
                assert_eq!(process, order.process);
                return Err((kind, detail));
            }
            other => panic!("{other:?} instead of Started"),
        }
        for (mut stream, &kind) in streams.iter().zip(kinds(order)) {
            let mut header = [0; StreamHeader::LEN];
            stream.read_exact(&mut header).unwrap();
            assert_eq!(StreamHeader::from_bytes(header), Some(StreamHeader { process: order.process, kind }));
        }
        Ok(streams)
    }

    pub fn end_of(&mut self, process: ProcessId) -> ExitStatus {
        match self.next() {
            Some(GuestMessage::Exited { process: ended, status, .. }) if ended == process => status,
            other => panic!("{other:?} instead of the end of {process}"),
        }
    }

    pub fn join(&mut self, order: &Exec) -> Joined {
        let streams = self.order(order).unwrap();
        let [stdout, stderr] = <[UnixStream; 2]>::try_from(streams).unwrap().map(text);
        let status = self.end_of(order.process);
        Joined { stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), status }
    }
}

pub const IDLE: &str = "trap 'exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done";

fn container() -> Option<(Host, UnixStream)> {
    Host::joinable(Host::new(), start(shell(IDLE)))
}

#[test]
fn a_process_that_joins_is_like_the_main_one() {
    let mut main = start(shell(&format!("echo mine > /tmp/file; {IDLE}")));
    main.process.cwd = "/tmp/deep er".into();
    main.process.env = vec!["A=1".into(), "B=2".into()];
    let Some((mut host, _stdout)) = Host::joinable(Host::freezable().or_else(Host::new), main) else { return };
    let ask = "pwd; echo $A $B $C $HOSTNAME $HOME ${TERM-none}; cat /tmp/file; id -u; umask; [ $$ -gt 1 ] && ls -d /proc/1 /proc/$$ >/dev/null \
        && echo inside; grep -h CapEff /proc/self/status /proc/1/status | uniq | wc -l; readlink /proc/self/ns/pid /proc/self/ns/mnt > /tmp/ns; \
        [ \"$(readlink /proc/1/ns/pid /proc/1/ns/mnt)\" = \"$(cat /tmp/ns)\" ] && echo same; cat; echo err >&2; exit 7";
    let got = host.join(&Exec { env: vec!["B=3".into(), "C=x y".into()], ..script(1, ask) });
    let expected = "/tmp/deep er\n1 3 x y box /root none\nmine\n0\n0022\ninside\n1\nsame\n";
    assert_eq!((got.stdout.as_str(), got.stderr.as_str(), got.status), (expected, "err\n", ExitStatus::Code(7)));
    if let Some(cgroup) = &host.cgroup {
        let sleeper = host_sleeper(cgroup);
        assert!(sleeper >= 2, "the container's processes are in its cgroup: {sleeper}");
    }
    let other = Exec {
        user: Some("1234:5678".into()),
        cwd: Some("/dev".into()),
        ..script(2, "id -u; id -G; pwd; echo via > /dev/stdout")
    };
    assert_eq!(host.join(&other).code(), ("1234\n5678\n/dev\nvia\n", ExitStatus::Code(0)));
    assert_eq!(host.join(&script(3, "kill -9 $$")).status, ExitStatus::Signal(9));
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
}

/// How many processes are in the container's cgroup.
fn host_sleeper(cgroup: &Cgroup) -> usize {
    std::fs::read_to_string(cgroup.container().join("cgroup.procs")).unwrap().lines().count()
}

#[test]
fn one_that_does_not_start_says_why_and_disturbs_nobody() {
    let Some((mut host, _stdout)) = container() else { return };
    let with = |id, change: fn(&mut Exec)| {
        let mut exec = exec(id, &["true"]);
        change(&mut exec);
        exec
    };
    for (order, kind, text) in [
        (exec(1, &["nope"]), FailureKind::NotFound, "exec: \"nope\": executable file not found in $PATH"),
        (exec(1, &["/etc"]), FailureKind::NotExecutable, "exec: \"/etc\": is a directory"),
        (exec(1, &[]), FailureKind::NotFound, "exec: \"\": the command is empty"),
        (
            with(1, |exec| exec.user = Some("nobody-here".into())),
            FailureKind::UnknownUser,
            "user \"nobody-here\" is not in the image's /etc/passwd",
        ),
        (
            with(1, |exec| exec.cwd = Some("/not/there".into())),
            FailureKind::BadWorkingDir,
            "working directory \"/not/there\": no such file or directory",
        ),
        (
            with(1, |exec| exec.cwd = Some("tmp".into())),
            FailureKind::BadWorkingDir,
            "working directory \"tmp\": not an absolute path",
        ),
        (
            with(1, |exec| exec.env = vec!["A=\0".into()]),
            FailureKind::BadRequest,
            "\"A=\\0\" has a NUL character in it",
        ),
    ] {
        assert_eq!(host.order(&order).unwrap_err(), (kind, text.to_owned()));
    }
    assert_eq!(host.join(&script(1, "echo fine")).code(), ("fine\n", ExitStatus::Code(0)));
    // What the container did to its devices is its own problem.
    let broken = script(2, "rm /dev/null && mkfifo /dev/null");
    assert_eq!(host.join(&broken).status, ExitStatus::Code(0));
    let (kind, detail) = host.order(&exec(3, &["true"])).unwrap_err();
    assert!(kind == FailureKind::Guest && detail.contains("no such device"), "{detail}");
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
}

#[test]
fn input_arrives_byte_for_byte_and_many_do_not_mix() {
    let Some((mut host, _stdout)) = container() else { return };
    const COUNT: u32 = 10;
    let order = |id| Exec { stdin: true, env: vec![format!("EXIT={id}")], ..script(id, "cat; exit $EXIT") };
    let all: Vec<_> = (1..=COUNT).map(|id| (id, host.order(&order(id)).unwrap())).collect();
    let mut readers = BTreeMap::new();
    for (id, streams) in all {
        let [mut stdin, stdout, stderr] = <[UnixStream; 3]>::try_from(streams).unwrap();
        let writer = thread::spawn(move || {
            stdin.write_all(format!("{id}\n").repeat(100_000).as_bytes()).unwrap();
            stdin.shutdown(std::net::Shutdown::Write).unwrap();
        });
        readers.insert(id, (writer, text(stdout), text(stderr)));
    }
    for _ in 0..COUNT {
        let Some(GuestMessage::Exited { process, status, .. }) = host.next() else { panic!("no end") };
        let (writer, stdout, stderr) = readers.remove(&process).unwrap();
        writer.join().unwrap();
        assert!(stdout.join().unwrap() == format!("{process}\n").repeat(100_000), "{process}");
        assert_eq!((stderr.join().unwrap().as_str(), status), ("", ExitStatus::Code(process as u8)));
    }
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
}

#[test]
fn there_is_a_limit_and_what_has_ended_makes_room() {
    let Some((mut host, _stdout)) = container() else { return };
    let most = u32::try_from(MAX_EXECS).unwrap();
    let sleeper = |id| Exec { attached: false, ..exec(id, &["sleep", "1000"]) };
    for id in 1..=most {
        host.order(&sleeper(id)).unwrap();
    }
    let (kind, detail) = host.order(&sleeper(most + 1)).unwrap_err();
    assert!(kind == FailureKind::Guest && detail.contains("64"), "{detail}");
    for id in [1, 2] {
        host.send(&HostMessage::Signal { process: id, signal: 15 });
        assert_eq!(host.end_of(id), ExitStatus::Signal(15));
    }
    let (_, detail) = host.order(&sleeper(most)).unwrap_err();
    assert!(detail.contains("is there already"), "{detail}");
    host.order(&sleeper(1)).unwrap();
    host.signal(15);
    // They end before the main process does.
    let mut ended: Vec<ProcessId> = Vec::new();
    loop {
        match host.next() {
            Some(GuestMessage::Exited { process: MAIN_PROCESS, status, .. }) => {
                assert_eq!(status, ExitStatus::Code(3));
                break;
            }
            Some(GuestMessage::Exited { process, status: ExitStatus::Signal(9), .. }) => ended.push(process),
            Some(GuestMessage::OutOfMemory { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert!(ended.iter().copied().eq((1..=most).filter(|&id| id != 2)), "{ended:?}");
    host.end();
}

#[test]
fn a_terminal_of_its_own_has_size_and_signals_and_hangs_up() {
    let Some((mut host, _stdout)) = container() else { return };
    let on_terminal =
        |id, text: &str| Exec { terminal: Some(WindowSize { rows: 30, columns: 100 }), ..script(id, text) };
    let wait = "stty size; tty; echo $TERM; while [ \"$(stty size)\" = '30 100' ]; do sleep 0.02; done; stty size; \
        read line; echo got $line; exit 9";
    let mut stream = host.order(&on_terminal(1, wait)).unwrap().remove(0);
    expect(&mut stream, "30 100\r\n/dev/pts/0\r\nxterm\r\n");
    host.send(&HostMessage::Resize { process: 1, size: WindowSize { rows: 40, columns: 120 } });
    expect(&mut stream, "40 120\r\n");
    stream.write_all(b"hello\r").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "hello\r\ngot hello\r\n");
    assert_eq!(host.end_of(1), ExitStatus::Code(9));
    // It is not PID 1: what a key does is the kernel's business.
    let mut stream = host.order(&on_terminal(2, "echo ready; exec sleep 1000")).unwrap().remove(0);
    expect(&mut stream, "ready\r\n");
    stream.write_all(b"\x03").unwrap();
    assert_eq!(host.end_of(2), ExitStatus::Signal(2));
    // Whoever was at it is gone.
    let mut stream = host.order(&on_terminal(3, "echo ready; exec sleep 1000")).unwrap().remove(0);
    expect(&mut stream, "ready\r\n");
    drop(stream);
    assert_eq!(host.end_of(3), ExitStatus::Signal(1));
    // Nobody was ever.
    let order = Exec { attached: false, ..on_terminal(4, "[ -t 1 ] && seq 1 100000 && exit 5") };
    host.order(&order).unwrap();
    assert_eq!(host.end_of(4), ExitStatus::Code(5));
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
}

#[test]
fn one_whose_client_is_gone_goes_on_without_it() {
    let Some((mut host, _stdout)) = container() else { return };
    let order = Exec {
        stdin: true,
        ..script(1, "cat; echo quiet > /tmp/went-on; while echo lost; do sleep 0.01; done; exit 6")
    };
    drop(host.order(&order).unwrap());
    // Programs of Rust ignore SIGPIPE, and so does what this test has started.
    assert!(matches!(host.end_of(1), ExitStatus::Signal(13) | ExitStatus::Code(6)));
    assert_eq!(host.join(&script(2, "cat /tmp/went-on")).code(), ("quiet\n", ExitStatus::Code(0)));
    // What it leaves running may hold the streams: they end with it, with what was written.
    let got = host.join(&script(3, "sleep 1000 & seq 1 20000"));
    assert!(got.status == ExitStatus::Code(0) && got.stdout.ends_with("\n20000\n"), "{}", got.stdout.len());
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
}

#[test]
fn a_slow_reader_does_not_keep_the_container_from_ending() {
    let Some((mut host, _stdout)) = container() else { return };
    let streams = host.order(&script(1, "seq 1 1000000")).unwrap();
    host.signal(15);
    assert_eq!(host.end_of(1), ExitStatus::Signal(9));
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
    drop(streams);
}

#[test]
fn nobody_joins_while_all_stands_still_and_a_clone_forgets_who_did() {
    let Some((mut host, _stdout)) = Host::joinable(Host::freezable(), start(shell(IDLE))) else { return };
    let mut first = host.order(&Exec { stdin: true, ..script(1, "echo here; read line; exit 4") }).unwrap();
    expect(&mut first[1], "here\n");
    let mut before = host.order(&Exec { stdin: true, ..script(2, "echo here; cat; echo lost; exit 6") }).unwrap();
    expect(&mut before[1], "here\n");
    host.freeze();
    host.send(&HostMessage::Exec(Box::new(script(3, "echo thawed"))));
    host.send(&HostMessage::Thaw(None));
    first[0].write_all(b"line\n").unwrap();
    let mut ended = Vec::new();
    let mut later = Vec::new();
    for kind in [StreamKind::Stdout, StreamKind::Stderr] {
        let (mut stream, _) = host.streams.accept().unwrap();
        let mut header = [0; StreamHeader::LEN];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(StreamHeader::from_bytes(header), Some(StreamHeader { process: 3, kind }));
        later.push(stream);
    }
    while ended.len() < 2 {
        match host.next() {
            Some(GuestMessage::Started { process: 3, .. }) => {}
            Some(GuestMessage::Exited { process, status, .. }) => ended.push((process, status)),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_by_key(|&(process, _)| process);
    assert_eq!(ended, [(1, ExitStatus::Code(4)), (3, ExitStatus::Code(0))]);
    assert_eq!(text(later.remove(0)).join().unwrap(), "thawed\n");
    // The one whose input goes on is in the clone as well, where nobody is at it and its name is free.
    host.freeze();
    host.become_clone(&shell(""), frozen::identity(false));
    drop(before);
    assert_eq!(
        host.join(&script(2, "while pgrep -x cat; do sleep 0.02; done >/dev/null; echo gone")).code(),
        ("gone\n", ExitStatus::Code(0))
    );
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
}
