//! A guest that several containers share.

use super::exec::exec;
use super::*;
use guest_protocol::files::Helper;

/// Reads of another's file, processes, devices, sockets to the host, mounts, the kernel: each says what it came to.
const PROBES: &str = r#"
    tried() { "$@" >/dev/null 2>&1 && echo "$1 $2: done" || echo "$1 $2: no"; }
    tried cat /secret
    tried mount -t tmpfs none /mnt
    tried unshare -U true
    tried perl -e 'socket($s, 40, 1, 0) or exit 1'
    tried perl -e 'open($f, ">", "/proc/sys/kernel/core_pattern") or exit 1'
    mknod /tmp/zero c 1 5 && mknod /dev/other c 1 5 || echo "no devices can be made"
    tried head -c1 /tmp/zero
    tried head -c1 /dev/other
    head -c1 /dev/zero | wc -c
    set -- /proc/[0-9]*; echo $#; cat /proc/self/cgroup; hostname
"#;

impl Host {
    /// A guest whose init has nothing to do but for its members.
    fn pod() -> Option<Self> {
        let mut pod = Self::freezable()?;
        let mut order = start(shell(""));
        order.root.layers.clear();
        order.helper = Some(Helper::Wait);
        pod.send(&HostMessage::Start(Box::new(order)));
        pod.started();
        Some(pod)
    }

    /// Has it make a member. What the test is the host of has no machine of its own.
    fn member(&mut self, place: u8) -> Self {
        let sockets = self._directory.path().join("vsock");
        let listen = |port| UnixListener::bind(format!("{}_{}", sockets.display(), port_at(place, port))).unwrap();
        let (listener, streams) = (listen(CONTROL_PORT), listen(STREAM_PORT));
        let process = ProcessId::from(place) + 1;
        let member = Exec { helper: Some(Helper::Member { place }), attached: false, ..exec(process, &[]) };
        assert!(self.order(&member).unwrap().is_empty());
        let (control, _) = listener.accept().unwrap();
        let received = FrameBuffer::new(MAX_GUEST_FRAME);
        let (guest, directory) = (Command::new("true").spawn().unwrap(), tempfile::tempdir().unwrap());
        let mut member =
            Self { guest, listener, control, received, word: None, streams, cgroup: None, _directory: directory };
        assert!(matches!(member.next(), Some(GuestMessage::Hello { version: VERSION, phase: Phase::Booted, .. })));
        member.send(&HostMessage::Hello { version: VERSION });
        member
    }

    fn place_is_free(&mut self, place: u8) {
        match self.next() {
            Some(GuestMessage::Exited { process, status: ExitStatus::Code(0), .. }) => {
                assert_eq!(process, ProcessId::from(place) + 1);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The order of a container whose kernel is others' as well.
fn beside(script: &str) -> Start {
    let mut order = start(shell(script));
    order.settings.beside = Some(Beside::default());
    order
}

#[test]
fn members_of_a_pod_have_inits_of_their_own() {
    let Some(mut pod) = Host::pod() else { return };
    let mut first = pod.member(0);
    first.send(&HostMessage::Start(Box::new(beside("echo mine >/secret; echo ready; exec sleep 1000"))));
    first.started();
    let mut ready = [0; 6];
    first.stream(StreamKind::Stdout).read_exact(&mut ready).unwrap();
    let (stdout, stderr, status) = run_on(pod.member(1), beside(PROBES));
    let wanted =
        "cat /secret: no\nmount -t: no\nunshare -U: no\nperl -e: no\nperl -e: no\nhead -c1: no\nhead -c1: no\n1\n";
    let rest = stdout.strip_prefix(wanted).unwrap_or_else(|| panic!("{stdout} {stderr}"));
    let lines: Vec<&str> = rest.lines().collect();
    // Itself.
    assert_eq!((lines[0], *lines.last().unwrap(), status), ("1", "box", ExitStatus::Code(0)), "{stdout} {stderr}");
    assert!(lines.contains(&"0::/"), "{stdout}");
    pod.place_is_free(1);
    // A place is somebody else's afterwards, with nothing of who had it before.
    let sockets = pod._directory.path().join("vsock");
    for port in [CONTROL_PORT, STREAM_PORT] {
        std::fs::remove_file(format!("{}_{}", sockets.display(), port_at(1, port))).unwrap();
    }
    let (stdout, ..) = run_on(pod.member(1), beside("ls /tmp/zero 2>/dev/null || echo none"));
    assert_eq!(stdout, "none\n");
    pod.place_is_free(1);
    // Without its host a member ends, with all that it runs, and nobody else.
    drop(first.control);
    pod.place_is_free(0);
    pod.signal(9);
    assert_eq!(pod.exit_status(), ExitStatus::Signal(9));
}

#[test]
fn members_end_with_their_pod_and_need_a_place() {
    let Some(mut pod) = Host::pod() else { return };
    let nowhere = Exec { helper: Some(Helper::Member { place: MAX_PLACES }), attached: false, ..exec(9, &[]) };
    let refused = pod.order(&nowhere).unwrap_err();
    assert!(refused.0 == FailureKind::BadRequest && refused.1.contains("no place 7"), "{refused:?}");
    let mut member = pod.member(0);
    member.send(&HostMessage::Start(Box::new(beside("exec sleep 1000"))));
    member.started();
    pod.signal(9);
    assert_eq!(member.next(), None);
    assert!(matches!(pod.next(), Some(GuestMessage::Exited { process: 1, status: ExitStatus::Signal(9), .. })));
    assert_eq!(pod.exit_status(), ExitStatus::Signal(9));
}
