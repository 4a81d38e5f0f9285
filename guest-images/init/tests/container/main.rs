//! The guest's life on this machine's kernel: in namespaces of its own, with this machine's root as its one layer and unix
//! sockets for vsock. Needs root; says so and passes if it is not there.

mod alone;
mod exec;
mod frozen;
mod helper;
mod pods;

use guest_init::guest::{self, Machine};
use guest_protocol::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, fcntl_setfl, makedev, mknodat, openat, setxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, move_mount, open_tree};
use rustix::process::{Resource, chdir, fchdir, getrlimit};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the player of the guest finds the directory with the host's sockets.
const SOCKETS: &str = "TEST_GUEST_SOCKETS";
/// Where it finds its place among this machine's cgroups, if there is one.
const CGROUPS: &str = "TEST_GUEST_CGROUPS";
/// It has an interface.
const INTERFACE: &str = "TEST_GUEST_INTERFACE";

/// A guest without a virtual machine. Once its root is another, it cannot find anything by its path any more.
struct Namespaces {
    sockets: OwnedFd,
    cgroups: rustix::io::Result<OwnedFd>,
    /// This machine's root; of a member, a mount of it that is still to be put somewhere.
    root: OwnedFd,
    place: Option<u8>,
    interface: bool,
}

fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Machine for Namespaces {
    fn connect(&self, port: u32) -> rustix::io::Result<OwnedFd> {
        let back = open_directory(".")?;
        fchdir(&self.sockets)?;
        let port = self.place.map_or(port, |place| port_at(place, port));
        let connected = UnixStream::connect(format!("vsock_{port}"));
        fchdir(back)?;
        connected.map(Into::into).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn begin_connect(&self, port: u32) -> rustix::io::Result<OwnedFd> {
        let connection = self.connect(port)?;
        fcntl_setfl(&connection, OFlags::NONBLOCK)?;
        Ok(connection)
    }

    fn mount_layer(&self, index: usize, _: usize, layer: &Layer, target: &str) -> rustix::io::Result<()> {
        if index == 0 && self.place.is_some() {
            return move_mount(&self.root, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
        }
        if index == 0 {
            return mount_bind("/", target);
        }
        mount("tmpfs", target, "tmpfs", MountFlags::empty(), None)?;
        std::fs::write(format!("{target}/layer"), format!("{index}\n")).unwrap();
        // Which of the layers below it is travels in a place that this machine has no use for.
        if let Some(at) = layer.start_sector.checked_sub(1) {
            ETC_LAYERS[at as usize].0(&format!("{target}/etc"));
        }
        Ok(())
    }

    fn mount_upper(&self, target: &str) -> rustix::io::Result<()> {
        // What an earlier life of the container has left.
        mount("tmpfs", target, "tmpfs", MountFlags::empty(), None)?;
        std::fs::create_dir_all(format!("{target}/u/kept")).unwrap();
        std::fs::write(format!("{target}/u/kept/file"), "of before\n").unwrap();
        Ok(())
    }

    fn mount_volumes(&self, target: &str) -> rustix::io::Result<()> {
        mount("tmpfs", target, "tmpfs", MountFlags::NODEV, None)?;
        std::fs::create_dir(format!("{target}/dir")).unwrap();
        std::fs::write(format!("{target}/dir/inside"), "of the host\n").unwrap();
        std::fs::create_dir(format!("{target}/one")).unwrap();
        std::fs::write(format!("{target}/one/file"), "a file\n").unwrap();
        Ok(())
    }

    fn shows_interface(&self) -> bool {
        self.interface
    }

    fn cgroups(&self) -> rustix::io::Result<OwnedFd> {
        self.cgroups.as_ref().map_err(|&error| error).and_then(|cgroups| rustix::io::fcntl_dupfd_cloexec(cgroups, 3))
    }

    fn kernel_log(&self) -> Vec<u8> {
        b"<3>[    9.9] Out of memory: Killed process 7 (hog) total-vm:8kB\n".to_vec()
    }

    fn place(&self) -> Option<u8> {
        self.place
    }

    fn member(&self, place: u8) -> Option<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let root = open_tree(&self.root, "", flags).ok()?;
        let sockets = rustix::io::fcntl_dupfd_cloexec(&self.sockets, 3).ok()?;
        (place < MAX_PLACES).then(|| Self {
            sockets,
            cgroups: self.cgroups(),
            root,
            place: Some(place),
            interface: false,
        })
    }

    fn forget_init(&self) -> rustix::io::Result<()> {
        // Its sockets and its root are descriptors.
        Ok(())
    }

    fn enter(&self) -> rustix::io::Result<()> {
        let _ = std::fs::create_dir("/m");
        mount("tmpfs", "/m", "tmpfs", MountFlags::empty(), None)?;
        chdir("/m")
    }
}

/// A cgroup for one guest. Goes with all that is in it.
struct Cgroup(PathBuf);

impl Cgroup {
    /// None if this machine has no cgroup2 that we may use.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let root = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })?;
        let name = format!("bulkhead-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir(root.join(&name)).ok()?;
        Some(Self(root.join(name)))
    }

    /// Where the guest puts the container.
    fn container(&self) -> PathBuf {
        self.0.join("container")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let children = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        for child in children.filter(|path| path.is_dir()) {
            // Whoever is left there belongs to a test that has failed.
            let _ = std::fs::write(child.join("cgroup.kill"), "1");
            if let Ok(events) = std::fs::File::open(child.join("cgroup.events")) {
                let mut text = [0; 64];
                while rustix::io::pread(&events, &mut text[..], 0).is_ok_and(|_| text.starts_with(b"populated 1")) {
                    let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], None);
                }
            }
            let _ = std::fs::remove_dir(child);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Not a test: the program that the tests below start in namespaces.
#[test]
#[ignore = "played by the other tests in a process of its own"]
fn guest() {
    let sockets = open_directory(&std::env::var(SOCKETS).expect("started by a test")).unwrap();
    let cgroups = std::env::var(CGROUPS).map_err(|_| Errno::NODEV).and_then(|path| open_directory(&path));
    let interface = std::env::var_os(INTERFACE).is_some();
    let machine = Namespaces { sockets, cgroups, root: open_directory("/").unwrap(), place: None, interface };
    let control = machine.connect(guest::PORT).unwrap();
    std::process::exit(i32::from(guest::run(&machine, control, 7) != End::PowerOff));
}

/// The host's side of one guest.
struct Host {
    guest: Child,
    listener: UnixListener,
    control: UnixStream,
    received: FrameBuffer,
    /// What came with something before it, and has not been asked for yet.
    word: Option<GuestMessage>,
    streams: UnixListener,
    cgroup: Option<Cgroup>,
    _directory: tempfile::TempDir,
}

impl Host {
    /// Starts a guest; none if this machine does not let us.
    fn new() -> Option<Self> {
        Self::with(None, false)
    }

    /// Starts a guest that has an interface, `eth0`.
    fn with_interface() -> Option<Self> {
        Self::with(None, true)
    }

    /// Starts a guest whose container can be frozen.
    fn freezable() -> Option<Self> {
        let cgroup = Cgroup::new();
        if cgroup.is_none() {
            eprintln!("SKIP: no cgroup2 to freeze anything in");
        }
        Self::with(Some(cgroup?), false)
    }

    fn with(cgroup: Option<Cgroup>, interface: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: namespaces and mounts need root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join("vsock");
        let listen = |port| UnixListener::bind(format!("{}_{port}", sockets.display())).unwrap();
        let (listener, streams) = (listen(CONTROL_PORT), listen(STREAM_PORT));
        let scratch = directory.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        // What whoever runs the tests has left open is not the guest's.
        let close = r#"for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval "exec $fd>&-"; done; exec "$@""#;
        // Nor are the signals that they ignore, as a background job of a shell does: PID 1 of a machine ignores none.
        let guest = Command::new("bash")
            .args([
                "-c",
                close,
                "bash",
                "env",
                "--default-signal",
                "unshare",
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--propagation",
                "private",
            ])
            // Its end is the end of all it has started, as a machine's is.
            .args(["--pid", "--fork", "--kill-child", "sh", "-c"])
            .arg(if interface { "ip link add eth0 type veth peer name other; exec \"$@\"" } else { "exec \"$@\"" })
            .arg("sh")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "guest", "--ignored", "--nocapture"])
            .env(SOCKETS, directory.path())
            .envs(cgroup.as_ref().map(|cgroup| (CGROUPS, &cgroup.0)))
            .envs(interface.then_some((INTERFACE, "")))
            .current_dir(&scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (control, _) = listener.accept().unwrap();
        let received = FrameBuffer::new(MAX_GUEST_FRAME);
        let mut host = Self { guest, listener, control, received, word: None, streams, cgroup, _directory: directory };
        let hello = host.next();
        assert!(matches!(hello, Some(GuestMessage::Hello { version: VERSION, phase: Phase::Booted, init_ns: 7, .. })));
        host.send(&HostMessage::Hello { version: VERSION });
        Some(host)
    }

    /// Has the guest prepare, then breaks the connection as a machine does that its memory was copied into.
    fn clone_of_prepared() -> Option<Self> {
        let mut host = Self::new()?;
        host.prepare_and_clone(None);
        Some(host)
    }

    fn prepare_and_clone(&mut self, network: Option<Network>) {
        self.send(&HostMessage::Prepare(network));
        assert!(matches!(self.next(), Some(GuestMessage::Ready { .. })));
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Accepts a clone.
    fn accept_again(&mut self) {
        self.accept_clone(Phase::Prepared);
    }

    fn accept_clone(&mut self, expected: Phase) {
        self.control = self.listener.accept().unwrap().0;
        self.received = FrameBuffer::new(MAX_GUEST_FRAME);
        let hello = self.next();
        assert!(
            matches!(hello, Some(GuestMessage::Hello { version: VERSION, phase, .. }) if phase == expected),
            "{hello:?}"
        );
        self.send(&HostMessage::Hello { version: VERSION });
    }

    fn send(&mut self, message: &HostMessage) {
        self.control.write_all(&encode(message, MAX_HOST_FRAME).unwrap()).unwrap();
    }

    fn next(&mut self) -> Option<GuestMessage> {
        if self.word.is_some() {
            return self.word.take();
        }
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

    /// The next stream the guest opens must be this one.
    fn stream(&mut self, kind: StreamKind) -> UnixStream {
        let (found, stream) = self.next_stream();
        assert_eq!(found, kind);
        stream
    }

    /// The next stream of the main process.
    fn next_stream(&mut self) -> (StreamKind, UnixStream) {
        let (mut stream, _) = self.streams.accept().unwrap();
        // Nothing here takes long: what does not come is missed.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // It is used, or the guest says why not.
        let mut fds = [PollFd::new(&stream, PollFlags::IN), PollFd::new(&self.control, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        if fds[0].revents().is_empty() {
            panic!("{:?} instead of a stream", self.next());
        }
        let mut header = [0; StreamHeader::LEN];
        stream.read_exact(&mut header).unwrap();
        let StreamHeader { process, kind } = StreamHeader::from_bytes(header).unwrap();
        assert_eq!(process, MAIN_PROCESS);
        (kind, stream)
    }

    /// The next stream of the main process, or none if the guest has something to say first: there is no stream of which nothing
    /// comes.
    fn next_stream_before_word(&mut self) -> Option<(StreamKind, UnixStream)> {
        // Two words can come at once: then nothing more is to be read for the second.
        self.word = self.word.take().or_else(|| self.received.take().unwrap());
        let patience = self.word.is_some().then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
        let mut fds = [PollFd::new(&self.streams, PollFlags::IN), PollFd::new(&self.control, PollFlags::IN)];
        poll(&mut fds, patience.as_ref()).unwrap();
        let comes = !fds[0].revents().is_empty();
        comes.then(|| self.next_stream())
    }

    fn signal(&mut self, signal: u8) {
        self.send(&HostMessage::Signal { process: MAIN_PROCESS, signal });
    }

    fn started(&mut self) {
        match self.next() {
            Some(GuestMessage::Started { process: MAIN_PROCESS, root_ns, now_ns }) => assert!(root_ns <= now_ns),
            other => panic!("{other:?} instead of Started"),
        }
    }

    /// The process's end, and the guest's.
    fn exit_status(mut self) -> ExitStatus {
        // What the machine's kernel has killed is told exactly when there is something to explain.
        let mut killed = None;
        let status = loop {
            match self.next() {
                Some(GuestMessage::Exited { process: MAIN_PROCESS, status, .. }) => break status,
                Some(GuestMessage::OutOfMemory { detail }) if killed.is_none() => killed = Some(detail),
                other => panic!("{other:?} instead of Exited"),
            }
        };
        let wanted = (status != ExitStatus::Code(0)).then(|| "7 (hog) total-vm:8kB".to_owned());
        assert_eq!(killed, wanted, "{status:?}");
        self.end();
        status
    }

    /// Lets go of the guest, which ends at that.
    fn end(self) {
        let Self { mut guest, listener, control, streams, cgroup: _cgroup, .. } = self;
        drop((listener, control, streams));
        assert!(guest.wait().unwrap().success());
    }
}

fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(ToString::to_string).collect(),
        env: vec!["A=1 2".into()],
        cwd: "/".into(),
        user: String::new(),
        terminal: None,
        stdin: false,
        found: Found::default(),
    }
}

fn start(process: Process) -> Start {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Start {
        seed: Seed([3; 32]),
        machine_id: *b"0123456789abcdef",
        hostname: "box".into(),
        // The clock is the machine's, and it is right: the guest leaves it alone.
        wall_clock_ns: now.as_nanos() as u64,
        root: Root {
            layers: vec![Layer { start_sector: 0, sectors: 8, fs: LayerFs::Erofs }],
            upper: Upper::Memory { bytes: Some(16 << 20) },
            read_only: false,
        },
        network: None,
        volumes: vec![],
        names: Names { hosts: vec!["10.1.2.3 db".into()], resolv_conf: Some("nameserver 10.9.9.9\n".into()) },
        settings: Settings::default(),
        end: End::PowerOff,
        process,
        helper: None,
        changes: false,
    }
}

fn shell(script: &str) -> Process {
    process(&["sh", "-c", script])
}

/// What a process without input wrote and how it ended.
fn run(start: Start) -> Option<(String, String, ExitStatus)> {
    Host::new().map(|host| run_on(host, start))
}

fn run_on(mut host: Host, start: Start) -> (String, String, ExitStatus) {
    host.send(&HostMessage::Start(Box::new(start)));
    host.started();
    let (mut stdout, mut stderr) = (None, None);
    while let Some((kind, mut stream)) = host.next_stream_before_word() {
        let read = thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        });
        let slot = if kind == StreamKind::Stdout { &mut stdout } else { &mut stderr };
        assert!(slot.replace(read).is_none(), "{kind:?} twice");
    }
    let [stdout, stderr] =
        [stdout, stderr].map(|read| read.map(|read| read.join().unwrap()).inspect(|text| assert_ne!(text, "")));
    (stdout.unwrap_or_default(), stderr.unwrap_or_default(), host.exit_status())
}

fn volume(name: &str, target: &str, read_only: bool) -> Volume {
    let source = if name == "dir" { VolumeSource::Directory(name.into()) } else { VolumeSource::File(name.into()) };
    Volume { source, target: target.into(), read_only }
}

#[test]
fn volumes_are_where_they_belong() {
    let mut order = start(shell(
        "cat /made/for/it/inside /made/file; echo new >/made/for/it/new && cat /tmp/ro/new; echo no >/tmp/ro/new",
    ));
    order.volumes =
        vec![volume("dir", "/made/for/it/", false), volume("one", "/made/file", false), volume("dir", "/tmp/ro", true)];
    let Some((stdout, stderr, status)) = run(order) else { return };
    assert_eq!(stdout, "of the host\na file\nnew\n", "{stderr}");
    assert!(stderr.contains("ead-only") && status != ExitStatus::Code(0), "{stderr}");
}

#[test]
fn volumes_that_cannot_be_are_told() {
    for (volume, kind, word) in [
        (volume("none", "/data", false), FailureKind::Root, "volume /data: no such file"),
        (volume("..", "data", false), FailureKind::BadRequest, "absolute path"),
        (volume("dir/inside", "/data", false), FailureKind::BadRequest, "dir/inside"),
        (volume("dir", "/dev/null/x", false), FailureKind::Root, "volume /dev/null/x: not a directory"),
    ] {
        let Some(mut host) = Host::new() else { return };
        host.send(&HostMessage::Start(Box::new(Start { volumes: vec![volume], ..start(shell("true")) })));
        match host.next() {
            Some(GuestMessage::StartFailed { kind: found, detail, .. }) => {
                assert!(found == kind && detail.contains(word), "{found:?} {detail}");
            }
            other => panic!("{other:?} instead of StartFailed"),
        }
        host.end();
    }
}

#[test]
fn a_clone_introduces_itself_and_becomes_what_it_is_told() {
    let Some(mut host) = Host::clone_of_prepared() else { return };
    host.accept_again();
    // A clone of a clone.
    host.control.shutdown(std::net::Shutdown::Both).unwrap();
    host.accept_again();
    let mut order = start(shell("hostname; ls /dev/null /dev/pts/ptmx /sys/class"));
    order.hostname = "clone".into();
    let (stdout, stderr, status) = run_on(host, order);
    assert!(stdout.starts_with("clone\n") && status == ExitStatus::Code(0), "{stdout} {stderr}");
}

#[test]
fn a_prepared_guest_whose_host_is_gone_ends() {
    // Each ends with a reset, as it was never told how else.
    let Some(Host { mut guest, listener, .. }) = Host::clone_of_prepared() else { return };
    drop(listener);
    guest.wait().unwrap();
    // One that was not asked to prepare does not try again.
    let Some(Host { mut guest, listener, control, .. }) = Host::new() else { return };
    drop(control);
    guest.wait().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

fn directory(path: &str, mode: u32) {
    std::fs::create_dir(path).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn layer_with_machine_id(etc: &str, content: &str) {
    directory(etc, 0o755);
    std::fs::write(format!("{etc}/machine-id"), content).unwrap();
}

fn whiteout(path: &str) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
}

const OWN_ID: &str = "30313233343536373839616263646566";

/// Makes a layer's /etc; then what its container finds: machine id, mode and owner of /etc, whether the lower
/// layer's passwd is seen.
type EtcLayer = (fn(&str), [&'static str; 3]);

const ETC_LAYERS: [EtcLayer; 8] = [
    (|etc| layer_with_machine_id(etc, ""), [OWN_ID, "755 0:0", "yes"]),
    (|etc| layer_with_machine_id(etc, "uninitialized\n"), [OWN_ID, "755 0:0", "yes"]),
    (|etc| layer_with_machine_id(etc, "fixed\n"), ["fixed", "755 0:0", "yes"]),
    (
        |etc| {
            directory(etc, 0o755);
            whiteout(&format!("{etc}/machine-id"));
        },
        ["none", "755 0:0", "yes"],
    ),
    (
        |etc| {
            layer_with_machine_id(etc, "fixed\n");
            std::os::unix::fs::chown(etc, Some(12), Some(34)).unwrap();
            std::fs::set_permissions(etc, std::os::unix::fs::PermissionsExt::from_mode(0o2711)).unwrap();
        },
        ["fixed", "2711 12:34", "yes"],
    ),
    (whiteout, ["none", "755 0:0", "no"]),
    (
        |etc| {
            layer_with_machine_id(etc, "");
            setxattr(etc, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        },
        [OWN_ID, "755 0:0", "no"],
    ),
    (
        |etc| {
            layer_with_machine_id(&etc.replace("etc", "else"), "");
            std::os::unix::fs::symlink("/else", etc).unwrap();
        },
        [OWN_ID, "777 0:0", "no"],
    ),
];

#[test]
fn the_files_in_etc_are_the_containers_own_whatever_etc_is() {
    let script = "cat /etc/machine-id 2>/dev/null || echo none; stat -c '%a %u:%g' /etc; \
        [ -e /etc/passwd ] && echo yes || echo no; cat /etc/hostname /etc/resolv.conf; grep db /etc/hosts; \
        stat -c %a /etc/hosts";
    for (at, (_, expected)) in ETC_LAYERS.into_iter().enumerate() {
        let mut order = start(shell(script));
        let layer = order.root.layers[0];
        order.root.layers = vec![layer, Layer { start_sector: at as u64 + 1, ..layer }];
        let Some((stdout, stderr, _)) = run(order) else { return };
        let lines: Vec<&str> = stdout.lines().collect();
        let [id, owner, passwd] = expected;
        let all = [id, owner, passwd, "box", "nameserver 10.9.9.9", "10.1.2.3 db", "644"];
        assert_eq!(lines, all, "layer {at}: {stderr}");
    }
}

#[test]
fn a_container_is_what_its_users_know() {
    let script = r#"
        echo pid $$; hostname; pwd; echo "$A|$HOME|$HOSTNAME|${TERM-none}|$PATH"; umask; ulimit -Sn; ulimit -Hn
        id -u; id -g; grep -E '^(CapBnd|CapEff|CapInh|CapAmb|NoNewPrivs)' /proc/self/status | tr -d '\t'
        cat /etc/hostname /etc/resolv.conf; grep -c 'localhost$\|box$\|db$' /etc/hosts
        awk '$2 ~ "^(/|/proc|/dev|/dev/pts|/dev/shm|/sys)$" {print $2, $3}' /proc/mounts | sort
        ls /dev | tr '\n' ' '; echo; readlink /dev/fd /dev/stdout; stat -c '%t:%T %a' /dev/null /dev/tty
        ls /proc | grep -c '^[0-9]'; cat /sys/class/net/lo/operstate; cat <&0; touch /new && echo writable
        for fd in /proc/self/fd/*; do echo "${fd##*/}"; done | tr '\n' ' '
        echo err >&2; echo again > /dev/stdout; exit 7"#;
    let mut process = shell(script);
    process.cwd = "/tmp/new directory/deep".into();
    let Some((stdout, stderr, status)) = run(start(process)) else { return };
    let lines: Vec<&str> = stdout.lines().collect();
    // Without CAP_SYS_RESOURCE this test's own limits cannot be raised, and stay.
    let own = getrlimit(Resource::Nofile);
    let show = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let own = [show(own.current), show(own.maximum)];
    let limits = if lines.get(5..7) == Some(&["1024", "524288"]) { ["1024", "524288"] } else { [&*own[0], &*own[1]] };
    let expected = [
        "pid 1",
        "box",
        "/tmp/new directory/deep",
        "1 2|/root|box|none|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "0022",
        limits[0],
        limits[1],
        "0",
        "0",
        "CapInh:0000000000000000",
        "CapEff:00000000a80425fb",
        "CapBnd:00000000a80425fb",
        "CapAmb:0000000000000000",
        "NoNewPrivs:0",
        "box",
        "nameserver 10.9.9.9",
        "3",
        "/ overlay",
        "/dev tmpfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/proc proc",
        "/sys sysfs",
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
        "/proc/self/fd",
        "/proc/self/fd/1",
        "1:3 666",
        "5:0 666",
        // The shell, and the two ends of its pipe.
        "3",
        "unknown",
        "writable",
        "0 1 2 3 again",
    ];
    assert_eq!(lines, expected, "{stderr}");
    assert_eq!((stderr.as_str(), status), ("err\n", ExitStatus::Code(7)));
}

#[test]
fn input_arrives_byte_for_byte_and_ends() {
    let Some(mut host) = Host::new() else { return };
    let process = Process { stdin: true, ..process(&["cat"]) };
    host.send(&HostMessage::Start(Box::new(start(process))));
    let mut stdin = host.stream(StreamKind::Stdin);
    host.started();
    let sent: Vec<u8> = (0..5_000_000u32).map(|at| (at * 31 % 251) as u8).collect();
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        stdin.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    host.stream(StreamKind::Stdout).read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == expected);
    assert_eq!(host.exit_status(), ExitStatus::Code(0));
}

#[test]
fn what_does_not_start_says_why() {
    let script = PathBuf::from("/tmp").join(format!("no-shebang-{}", std::process::id()));
    std::fs::write(&script, "echo hello\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let name = script.to_str().unwrap();
    let with = |change: fn(&mut Process)| {
        let mut process = process(&["true"]);
        change(&mut process);
        process
    };
    for (process, kind, text) in [
        (process(&["nope"]), FailureKind::NotFound, "exec: \"nope\": executable file not found in $PATH"),
        (process(&["/no/pe"]), FailureKind::NotFound, "exec: \"/no/pe\": no such file or directory"),
        (process(&[]), FailureKind::NotFound, "exec: \"\": the command is empty"),
        (process(&["/etc"]), FailureKind::NotExecutable, "exec: \"/etc\": is a directory"),
        (process(&["/etc/passwd"]), FailureKind::NotExecutable, "exec: \"/etc/passwd\": permission denied"),
        (process(&[name]), FailureKind::NotExecutable, &format!("exec: {name:?}: exec format error")),
        (
            with(|process| process.user = "nobody-here".into()),
            FailureKind::UnknownUser,
            "user \"nobody-here\" is not in the image's /etc/passwd",
        ),
        (
            with(|process| process.user = "0:nogroup-here".into()),
            FailureKind::UnknownGroup,
            "group \"nogroup-here\" is not in the image's /etc/group",
        ),
        (
            with(|process| process.cwd = "/etc/passwd".into()),
            FailureKind::BadWorkingDir,
            "working directory \"/etc/passwd\": not a directory",
        ),
        (
            with(|process| process.cwd = "tmp".into()),
            FailureKind::BadWorkingDir,
            "working directory \"tmp\": not an absolute path",
        ),
        (
            with(|process| process.env.push("A=\0".into())),
            FailureKind::BadRequest,
            "\"A=\\0\" has a NUL character in it",
        ),
    ] {
        let Some(mut host) = Host::new() else { break };
        host.send(&HostMessage::Start(Box::new(start(process))));
        let failure = host.next();
        let detail = text.to_string();
        assert_eq!(failure, Some(GuestMessage::StartFailed { process: MAIN_PROCESS, kind, detail }));
        host.end();
    }
    std::fs::remove_file(script).unwrap();
}

/// A process that has written "ready" after `script` began, and its guest.
fn ready(script: &str) -> Option<(Host, UnixStream)> {
    let mut host = Host::new()?;
    host.send(&HostMessage::Start(Box::new(start(shell(script)))));
    host.started();
    let mut stdout = host.stream(StreamKind::Stdout);
    let mut line = [0; 6];
    stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    Some((host, stdout))
}

#[test]
fn signals_end_the_process_or_reach_its_handler() {
    for signal in [15, 9, 1, 10] {
        let Some(mut host) = Host::new() else { return };
        host.send(&HostMessage::Start(Box::new(start(process(&["sleep", "1000"])))));
        host.started();
        host.signal(signal);
        assert_eq!(host.exit_status(), ExitStatus::Signal(signal));
    }
    let Some((mut host, _stdout)) = ready("trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done") else {
        return;
    };
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Code(3));
    // Ignored, and harmless by default: it goes on.
    let Some((mut host, _stdout)) = ready("trap '' HUP; trap 'exit 4' USR1; echo ready; while :; do sleep 0.1; done")
    else {
        return;
    };
    for signal in [1, 28, 18, 0, 64, 255, 10] {
        host.signal(signal);
    }
    assert_eq!(host.exit_status(), ExitStatus::Code(4));
}

/// Blocks a signal until it is pending, then for a moment no longer than a look at it, then not at all.
const BLOCKING: &str = "use POSIX; $| = 1; my ($set, $old) = map { POSIX::SigSet->new } 1..2; $set->addset($ARGV[0]); \
    sigprocmask(SIG_BLOCK, $set); print qq(ready\\n); \
    do { select undef, undef, undef, 0.01; sigpending($old) } until $old->ismember($ARGV[0]); \
    sigprocmask(SIG_UNBLOCK, $set); exec qw(sleep 1000)";

#[test]
fn a_signal_that_is_blocked_for_a_moment_ends_the_process_all_the_same() {
    let Some(mut host) = Host::new() else { return };
    host.send(&HostMessage::Start(Box::new(start(process(&["perl", "-e", BLOCKING, "15"])))));
    host.started();
    let mut stdout = host.stream(StreamKind::Stdout);
    expect(&mut stdout, "ready");
    host.signal(15);
    assert_eq!(host.exit_status(), ExitStatus::Signal(15));

    let Some((host, mut stream)) = on_terminal(&["perl", "-e", BLOCKING, "2"]) else { return };
    expect(&mut stream, "ready");
    stream.write_all(b"\x03").unwrap();
    assert_eq!(host.exit_status(), ExitStatus::Signal(2));
}

#[test]
fn the_end_of_the_process_is_the_end_of_all() {
    // What it left running holds the streams; they end nevertheless, with what was written.
    let Some((stdout, _, status)) = run(start(shell("sleep 1000 & setsid sleep 1000 & echo done"))) else { return };
    assert_eq!((stdout.as_str(), status), ("done\n", ExitStatus::Code(0)));
}

#[test]
fn a_closed_output_reaches_the_process() {
    let Some((host, stdout)) = ready("echo ready; while echo more; do :; done; exit 5") else { return };
    drop(stdout);
    assert_eq!(host.exit_status(), ExitStatus::Code(5));
}

#[test]
fn without_its_host_a_guest_ends() {
    let Some((host, _stdout)) = ready("echo ready; exec sleep 1000") else { return };
    host.end();
}

#[test]
fn another_user_has_its_groups_and_streams_and_a_read_only_root_stays_as_it_is() {
    let script = "id -u; id -g; id -G; echo \"$HOME\"; grep CapEff /proc/self/status | tr -d '\\t'; echo via > /dev/stdout; \
        touch /tmp/x 2>/dev/null || echo read-only; touch /dev/shm/x && echo shm; pwd";
    let mut order = start(Process { user: "1234:5678".into(), cwd: "/made/for/it".into(), ..shell(script) });
    order.root.read_only = true;
    let Some((stdout, stderr, status)) = run(order) else { return };
    let lines: Vec<&str> = stdout.lines().collect();
    let expected = ["1234", "5678", "5678", "/", "CapEff:0000000000000000", "via", "read-only", "shm", "/made/for/it"];
    assert_eq!(lines, expected, "{stderr}");
    assert_eq!(status, ExitStatus::Code(0));
}

#[test]
fn a_writable_layer_on_disk_has_what_it_had_and_who_the_container_is_now() {
    let script = "cat /kept/file /etc/hostname; grep -c box /etc/hosts; cat /etc/resolv.conf; echo new > /kept/new && \
        ls /kept";
    let mut order = start(shell(script));
    order.root.upper = Upper::Disk;
    let Some((stdout, stderr, status)) = run(order) else { return };
    let expected = "of before\nbox\n1\nnameserver 10.9.9.9\nfile\nnew\n";
    assert_eq!((stdout.as_str(), status), (expected, ExitStatus::Code(0)), "{stderr}");
}

#[test]
fn what_the_host_has_found_is_not_looked_for() {
    let found = |program: &str| Found {
        account: Some(Account { uid: 12, gid: 34, groups: vec![34, 56], home: "/srv".into() }),
        program: Some(program.into()),
    };
    // The user is not asked for by that name, nor is the command in PATH under its own.
    let order =
        Process { found: found("/bin/sh"), ..process(&["no-such-command", "-c", "id -u; id -G; echo $HOME $0"]) };
    let Some((stdout, stderr, _)) = run(start(order)) else { return };
    assert_eq!(stdout, "12\n34 56\n/srv no-such-command\n", "{stderr}");
    // What is not there after all is looked for.
    let order = Process { found: found("/nowhere/sh"), ..shell("echo here") };
    let Some((stdout, stderr, _)) = run(start(order)) else { return };
    assert_eq!(stdout, "here\n", "{stderr}");
}

#[test]
fn the_topmost_layer_is_seen() {
    let mut order = start(shell("cat /layer"));
    let layer = order.root.layers[0];
    order.root.layers = vec![layer; 12];
    let Some((stdout, stderr, _)) = run(order) else { return };
    assert_eq!((stdout.as_str(), stderr.as_str()), ("11\n", ""));
}

#[test]
fn a_full_upper_layer_is_the_containers_problem() {
    let script = "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null || echo full";
    let Some((stdout, _, status)) = run(start(shell(script))) else { return };
    assert_eq!((stdout.as_str(), status), ("full\n", ExitStatus::Code(0)));
}

/// Starts a process on a terminal of 30 by 100.
fn on_terminal(args: &[&str]) -> Option<(Host, UnixStream)> {
    let mut host = Host::new()?;
    let terminal = Some(WindowSize { rows: 30, columns: 100 });
    let process = Process { terminal, stdin: true, ..process(args) };
    host.send(&HostMessage::Start(Box::new(start(process))));
    let stream = host.stream(StreamKind::Terminal);
    host.started();
    Some((host, stream))
}

/// Reads from a terminal until `text` has come.
fn expect(stream: &mut UnixStream, text: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|_| panic!("end after {:?}", String::from_utf8_lossy(&seen)));
        seen.push(byte[0]);
    }
}

#[test]
fn a_terminal_has_size_and_job_control() {
    let script = "stty size; tty; echo $TERM; [ -t 2 ] && ls -l /dev/console | cut -c1; \
        while [ \"$(stty size)\" = '30 100' ]; do sleep 0.02; done; stty size; read line; echo got $line; exit 9";
    let Some((mut host, mut stream)) = on_terminal(&["sh", "-c", script]) else { return };
    expect(&mut stream, "30 100\r\n/dev/pts/0\r\nxterm\r\nc\r\n");
    host.send(&HostMessage::Resize { process: MAIN_PROCESS, size: WindowSize { rows: 40, columns: 120 } });
    expect(&mut stream, "40 120\r\n");
    stream.write_all(b"hello\r").unwrap();
    expect(&mut stream, "hello\r\n");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got hello\r\n");
    assert_eq!(host.exit_status(), ExitStatus::Code(9));
}

#[test]
fn interrupt_on_a_terminal_ends_the_process_as_it_would_any() {
    // Sleeping from the start: no handler that may be about to go.
    for (key, signal) in [(b"\x03", 2), (b"\x1c", 3)] {
        let Some((host, mut stream)) = on_terminal(&["sleep", "1000"]) else { return };
        stream.write_all(key).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(host.exit_status(), ExitStatus::Signal(signal));
    }
    for (script, expected) in [
        ("trap 'exit 6' INT; echo ready; while :; do sleep 0.1; done", 6),
        // Not a signal while the terminal is raw: the process reads it.
        ("stty raw; echo ready; head -c1 >/dev/null; exit 8", 8),
    ] {
        let Some((host, mut stream)) = on_terminal(&["sh", "-c", script]) else { return };
        expect(&mut stream, "ready");
        stream.write_all(b"\x03").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(host.exit_status(), ExitStatus::Code(expected), "{script}");
    }
}
