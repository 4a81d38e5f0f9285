//! Containers that are stopped where they are, and their clones: the same guest, whose connections are broken as a machine does
//! that its memory was copied into.

use super::*;
use std::io::ErrorKind;

const SIZE: WindowSize = WindowSize { rows: 50, columns: 132 };

pub(super) fn identity(stdin: bool) -> Box<Identity> {
    let start = start(shell(""));
    Box::new(Identity {
        seed: Seed([9; 32]),
        machine_id: *b"fedcba9876543210",
        hostname: "clone".into(),
        wall_clock_ns: start.wall_clock_ns,
        network: None,
        resolv_conf: None,
        size: SIZE,
        stdin,
    })
}

/// What has arrived by now.
fn arrived(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.set_nonblocking(true).unwrap();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    stream.set_nonblocking(false).unwrap();
    bytes
}

fn read_until(stream: &mut UnixStream, bytes: &mut Vec<u8>, enough: impl Fn(&[u8]) -> bool) {
    while !enough(bytes) {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "end after {} bytes", bytes.len());
        bytes.extend(&chunk[..count]);
    }
}

impl Host {
    /// Has a process started; the streams that come at once.
    fn start(&mut self, order: Start) -> Vec<UnixStream> {
        let kind = first_stream(&order.process);
        self.send(&HostMessage::Start(Box::new(order)));
        let streams = kind.into_iter().map(|kind| self.stream(kind)).collect();
        self.started();
        streams
    }

    /// Has a process started that says something. Its streams, but for those of errors.
    fn run(&mut self, order: Start) -> Vec<UnixStream> {
        let terminal = order.process.terminal.is_some();
        let mut streams = self.start(order);
        if !terminal {
            streams.push(self.stream(StreamKind::Stdout));
        }
        streams
    }

    pub(super) fn freeze(&mut self) {
        self.send(&HostMessage::Freeze);
        match self.next() {
            Some(GuestMessage::Frozen { .. }) => {}
            other => panic!("{other:?} instead of Frozen"),
        }
        let events = std::fs::read_to_string(self.cgroup.as_ref().unwrap().container().join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1\n"), "{events}");
    }

    /// Breaks the connections of a frozen guest, and makes it another one. The streams that come at once.
    pub(super) fn become_clone(&mut self, process: &Process, identity: Box<Identity>) -> Vec<UnixStream> {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        self.accept_clone(Phase::Frozen { terminal: process.terminal.is_some() });
        let process = Process { stdin: identity.stdin && process.stdin, ..process.clone() };
        self.send(&HostMessage::Thaw(Some(identity)));
        let streams = first_stream(&process).into_iter().map(|kind| self.stream(kind)).collect();
        self.started();
        streams
    }
}

/// The stream that comes with the process, and not once there is something to be said.
fn first_stream(process: &Process) -> Option<StreamKind> {
    match process.terminal {
        Some(_) => Some(StreamKind::Terminal),
        None => process.stdin.then_some(StreamKind::Stdin),
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    String::from_utf8_lossy(bytes).lines().map(|line| line.parse().unwrap()).collect()
}

/// Counts, in several processes.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i | cat; done";

#[test]
fn a_frozen_container_stands_still_and_goes_on_where_it_was() {
    let Some(mut host) = Host::freezable() else { return };
    let mut streams = host.run(start(shell(COUNT)));
    let mut seen = Vec::new();
    for round in 1..4u32 {
        let enough = 50 * round as usize;
        read_until(&mut streams[0], &mut seen, |seen| seen.iter().filter(|&&byte| byte == b'\n').count() >= enough);
        host.freeze();
        // All it wrote was handed over before; nothing comes after.
        seen.extend(arrived(&mut streams[0]));
        assert!(seen.ends_with(b"\n"));
        assert_eq!(arrived(&mut streams[0]), b"");
        // Once frozen, a second one is the same.
        host.send(&HostMessage::Freeze);
        host.send(&HostMessage::Thaw(None));
    }
    // One that means nothing.
    host.send(&HostMessage::Thaw(None));
    host.signal(9);
    streams[0].read_to_end(&mut seen).unwrap();
    let seen = numbers(&seen);
    assert!(seen.len() >= 150 && seen.iter().copied().eq(1..=seen.len() as u32), "{seen:?}");
    assert_eq!(host.exit_status(), ExitStatus::Signal(9));
}

#[test]
fn what_nobody_has_taken_is_passed_on_once_by_the_original_and_by_a_clone() {
    const LAST: u32 = 300_000;
    let process = shell(&format!("seq 1 {LAST}"));
    for clone in [false, true] {
        let Some(mut host) = Host::freezable() else { return };
        let mut streams = host.run(start(process.clone()));
        // It waits for its reader, which takes one byte of a lot.
        let mut seen = vec![0];
        streams[0].read_exact(&mut seen).unwrap();
        host.freeze();
        if clone {
            assert!(host.become_clone(&process, identity(false)).is_empty());
            let new = host.stream(StreamKind::Stdout);
            std::mem::replace(&mut streams[0], new).read_to_end(&mut seen).unwrap();
        } else {
            host.send(&HostMessage::Thaw(None));
        }
        let mut rest = Vec::new();
        streams[0].read_to_end(&mut rest).unwrap();
        assert!(!rest.is_empty());
        seen.extend(rest);
        assert!(numbers(&seen).into_iter().eq(1..=LAST), "clone: {clone}");
        assert_eq!(host.exit_status(), ExitStatus::Code(0));
    }
}

#[test]
fn a_clone_is_told_who_it_is_before_its_process_goes_on() {
    let facts = "read go; hostname; cat /etc/hostname /etc/machine-id; grep -o 'box\\|clone' /etc/hosts";
    for (script, read_only, expected) in [
        (facts, false, ["clone", "clone", "66656463626139383736353433323130", "clone"]),
        (facts, true, ["clone", "clone", "66656463626139383736353433323130", "clone"]),
        // What the container has made of the files is its own, links included.
        (
            "cd /etc; echo mine > hostname; rm machine-id hosts; ln -s hostname machine-id; echo box > hosts; read go; \
             hostname; cat hostname machine-id hosts",
            false,
            ["clone", "mine", "mine", "box"],
        ),
    ] {
        let Some(mut host) = Host::freezable() else { return };
        let process = Process { stdin: true, ..shell(&script.replace("read go", "echo ready; read go")) };
        let mut order = start(process.clone());
        // An image that wants a machine id.
        let layer = order.root.layers[0];
        order.root.layers = vec![layer, Layer { start_sector: 1, ..layer }];
        order.root.read_only = read_only;
        let mut old = host.run(order);
        read_until(&mut old[1], &mut Vec::new(), |seen| seen == b"ready\n");
        host.freeze();
        let mut streams = host.become_clone(&process, identity(true));
        streams[0].write_all(b"go\n").unwrap();
        let mut text = String::new();
        host.stream(StreamKind::Stdout).read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        assert_eq!(host.exit_status(), ExitStatus::Code(0));
    }
}

/// Connections to itself: over the loopback interface, and by an address that others know. After each line of input it says what has
/// become of either, who it is on the network, and whether it can still be connected to there.
const CONNECTIONS: &str = r#"
    use IO::Socket::INET; $| = 1;
    sub to { IO::Socket::INET->new(PeerAddr => "$_[0]:7777") or die "$_[0]: $!" }
    sub ip { IO::Socket::INET->new(Proto => "udp", PeerAddr => "203.0.113.1:9")->sockhost }
    my $listener = IO::Socket::INET->new(Listen => 9, LocalPort => 7777) or die $!;
    my @ends = map { my $end = to($_); [$end, $listener->accept] } ("127.0.0.1", ip());
    print "ready
";
    while (<STDIN>) {
        for (@ends) {
            my ($near, $far) = @$_;
            print syswrite($far, "x") && sysread($near, my $byte, 1) ? "on" : "gone: " . ($!{ECONNRESET} || $!{EPIPE} || $!{ENOTCONN} ? "reset" : $!), "
";
        }
        open(my $mac, "/sys/class/net/eth0/address"); print <$mac>, ip(), "
";
        to(ip()); $listener->accept; print "connected
";
        open(my $conf, "/etc/resolv.conf"); print <$conf>, "end
";
    }
"#;

#[test]
fn a_clone_is_somebody_else_on_its_network() {
    let Some(mut host) = Host::freezable() else { return };
    let ip = |words: &[&str]| {
        let netns = format!("/proc/{}/ns/net", host.guest.id());
        let net = format!("--net={netns}");
        Command::new("nsenter").arg(net).arg("ip").args(words).output().is_ok_and(|done| done.status.success())
    };
    if !ip(&["link", "add", "eth0", "type", "dummy"]) {
        eprintln!("SKIP: no dummy interface can be made here");
        return;
    }
    let process = Process { stdin: true, ..process(&["perl", "-e", CONNECTIONS]) };
    let network = |last: u8| {
        let address = Address { ip: [10, 8, last, 2], prefix_len: 24, gateway: Some([10, 8, last, 1]) };
        Some(Network { mac: [2, 0, 0, 0, 0, last], mtu: Some(1400), address: Some(address) })
    };
    let mut order = start(process.clone());
    order.network = network(1);
    let mut streams = host.run(order);
    let mut seen = Vec::new();
    read_until(&mut streams[1], &mut seen, |seen| seen.ends_with(b"ready\n"));
    let ask = |host: &mut Host, streams: &mut Vec<UnixStream>| {
        streams[0].write_all(b"\n").unwrap();
        if streams.len() == 1 {
            streams.push(host.stream(StreamKind::Stdout));
        }
        let mut seen = Vec::new();
        read_until(&mut streams[1], &mut seen, |seen| seen.ends_with(b"end\n"));
        String::from_utf8(seen).unwrap()
    };
    let original = "on\non\n02:00:00:00:00:01\n10.8.1.2\nconnected\nnameserver 10.9.9.9\nend\n";
    assert_eq!(ask(&mut host, &mut streams), original);
    host.freeze();
    host.send(&HostMessage::Thaw(None));
    assert_eq!(ask(&mut host, &mut streams), original);
    host.freeze();
    let resolv_conf = Some("nameserver 10.9.9.1\n".into());
    let mut streams =
        host.become_clone(&process, Box::new(Identity { network: network(7), resolv_conf, ..*identity(true) }));
    let clone = "on\ngone: reset\n02:00:00:00:00:07\n10.8.7.2\nconnected\nnameserver 10.9.9.1\nend\n";
    assert_eq!(ask(&mut host, &mut streams), clone);
    drop(streams.remove(0));
    assert_eq!(host.exit_status(), ExitStatus::Code(0));
}

#[test]
fn a_clone_without_input_finds_its_end() {
    let Some(mut host) = Host::freezable() else { return };
    let process = Process { stdin: true, ..shell("echo ready; cat; echo end") };
    let mut old = host.run(start(process.clone()));
    read_until(&mut old[1], &mut Vec::new(), |seen| seen == b"ready\n");
    host.freeze();
    host.become_clone(&process, identity(false));
    let mut text = String::new();
    host.stream(StreamKind::Stdout).read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), host.exit_status()), ("end\n", ExitStatus::Code(0)));
}

#[test]
fn a_clone_of_a_clone_has_the_terminal() {
    let Some(mut host) = Host::freezable() else { return };
    let script = "echo ready; while :; do read line && echo $line at $(stty size); done";
    let terminal = Some(WindowSize { rows: 30, columns: 100 });
    let process = Process { terminal, stdin: true, ..process(&["bash", "-c", script]) };
    let mut streams = host.run(start(process.clone()));
    expect(&mut streams[0], "ready\r\n");
    for stdin in [true, false, true] {
        host.freeze();
        streams = host.become_clone(&process, identity(stdin));
        if stdin {
            streams[0].write_all(b"x\r").unwrap();
            expect(&mut streams[0], "x at 50 132\r\n");
        }
    }
    host.send(&HostMessage::Resize { process: MAIN_PROCESS, size: WindowSize { rows: 60, columns: 90 } });
    // It and what is typed are on two connections.
    let mut seen = Vec::new();
    while !seen.ends_with(b"y at 60 90\r\n") {
        streams[0].write_all(b"y\r").unwrap();
        seen.clear();
        read_until(&mut streams[0], &mut seen, |seen| {
            seen.windows(5).any(|part| part == b"y at ") && seen.ends_with(b"\r\n")
        });
    }
    host.signal(9);
    assert_eq!(host.exit_status(), ExitStatus::Signal(9));
}

#[test]
fn a_freeze_that_cannot_be_says_why() {
    // A kernel without cgroups.
    let Some(mut host) = Host::new() else { return };
    host.start(start(shell("sleep 1000")));
    host.send(&HostMessage::Freeze);
    let detail = "its kernel has no cgroup v2".to_string();
    assert_eq!(host.next(), Some(GuestMessage::NotFrozen { detail }));
    host.signal(9);
    assert_eq!(host.exit_status(), ExitStatus::Signal(9));

    // A process that is about to end: one or the other, and all its output in any case.
    let Some(mut host) = Host::freezable() else { return };
    let mut streams = host.run(start(process(&["seq", "1", "100000"])));
    let mut seen = vec![0; 588_895 - 100_000];
    streams[0].read_exact(&mut seen).unwrap();
    host.send(&HostMessage::Freeze);
    host.send(&HostMessage::Thaw(None));
    let rest = thread::spawn(move || (streams[0].read_to_end(&mut seen).unwrap(), seen).1);
    let answer = host.next();
    assert!(numbers(&rest.join().unwrap()).into_iter().eq(1..=100_000));
    match answer {
        Some(GuestMessage::Exited { status: ExitStatus::Code(0), .. }) => host.end(),
        Some(GuestMessage::Frozen { .. } | GuestMessage::NotFrozen { .. }) => {
            assert_eq!(host.exit_status(), ExitStatus::Code(0));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_goes_on_as_somebody_else() {
    // The original is told that it is a clone; a clone that it is none; a clone is told to start.
    for (lost, message) in [(false, HostMessage::Thaw(Some(identity(false)))), (true, HostMessage::Thaw(None))] {
        let Some(mut host) = Host::freezable() else { return };
        let mut streams = host.run(start(shell("echo ready; sleep 1000; echo wrong")));
        read_until(&mut streams[0], &mut Vec::new(), |seen| seen == b"ready\n");
        host.freeze();
        if lost {
            host.control.shutdown(std::net::Shutdown::Both).unwrap();
            host.accept_clone(Phase::Frozen { terminal: false });
        }
        host.send(&message);
        assert_eq!(host.next(), None);
        host.end();
        assert_eq!(arrived(&mut streams[0]), b"");
    }
    // A frozen guest whose host is gone ends.
    let Some(mut host) = Host::freezable() else { return };
    host.start(start(shell("sleep 1000")));
    host.freeze();
    host.end();
}
