//! Guests on a network: data from a server and back, byte for byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tests::control::Control;
use tests::{Kvm, Lab, Running, cpio};

use crate::ending::wait_for_the_orphan;
use crate::lab;
use crate::warm::was_warm;

/// Bytes that are sent each way: 100 MB, but where guests or their host are emulated what a test can wait for. All of it there, too,
/// with BULKHEAD_TEST_NET_BYTES=100000000.
fn bytes(lab: &Lab) -> u64 {
    let usual = match lab.kvm() {
        Kvm::SoftwareNested => 1_000_000,
        Kvm::Hardware if std::env::var_os("BULKHEAD_TEST_EMULATOR").is_some() => 8_000_000,
        Kvm::Hardware => 100_000_000,
    };
    std::env::var("BULKHEAD_TEST_NET_BYTES")
        .map_or(usual, |bytes| bytes.parse().expect("BULKHEAD_TEST_NET_BYTES is a number"))
}

/// A time within which guests on a network are through: each byte is made and looked at on both sides, twice.
fn patience(lab: &Lab) -> Duration {
    lab.patience(4) + Duration::from_micros(10 * bytes(lab))
}

/// As in the guest.
fn pattern(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16) ^ (at >> 24)) as u8
}

/// Sends `bytes` to the other end, and tells whether as much of the same came back, and nothing else.
fn exchange(mut other: TcpStream, bytes: u64) -> bool {
    const PIECE: usize = 1 << 20;
    let mut piece = vec![0; PIECE];
    for at in (0..bytes).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min((bytes - at) as usize)];
        piece.iter_mut().zip(at..).for_each(|(byte, at)| *byte = pattern(at));
        other.write_all(piece).unwrap();
    }
    let mut at = 0;
    loop {
        let count = other.read(&mut piece).unwrap();
        if count == 0 || !piece[..count].iter().zip(at..).all(|(byte, at)| *byte == pattern(at)) {
            return count == 0 && at == bytes;
        }
        at += count as u64;
    }
}

/// Does that with one client.
fn serve(listener: &TcpListener, bytes: u64) -> JoinHandle<bool> {
    let listener = listener.try_clone().unwrap();
    std::thread::spawn(move || exchange(listener.accept().unwrap().0, bytes))
}

/// Puts this thread, and what it starts, into a network of its own. False, and a line that says why, if it may not.
pub(crate) fn own_network(test: &str) -> bool {
    // SAFETY: no descriptors or memory are unshared.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
    if let Err(error) = unshared {
        tests::lab::skip(test, &format!("no network namespace of its own: {error}"));
        return false;
    }
    ip(&["link", "set", "lo", "up"]);
    true
}

pub(crate) fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().expect("ip");
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Has TCP of this thread's network send large packets also to a peer that seems slow: to one whose kernel is emulated each costs
/// the same, whatever is in it.
fn send_large_packets() {
    for (name, value) in [("tcp_congestion_control", "reno"), ("tcp_min_tso_segs", "44")] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
    }
}

/// Packets that have come in by an interface of this thread's network.
fn packets_from(interface: &str) -> u64 {
    let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let numbers = interfaces.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    numbers.unwrap().split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A tap interface that stays without anybody at it, with an address.
pub(crate) fn make_tap(name: &str, address: &str) {
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    request[16..18].copy_from_slice(&0x5002u16.to_le_bytes());
    // SAFETY: TUNSETIFF takes a struct ifreq, TUNSETPERSIST a number.
    unsafe {
        assert_eq!(libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&tun), 0x4004_54ca, request.as_mut_ptr()), 0);
        assert_eq!(libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&tun), 0x4004_54cb, 1), 0);
    }
    ip(&["addr", "add", address, "dev", name]);
    ip(&["link", "set", name, "up"]);
}

/// How many taps of microVMs' own there are in this thread's network.
fn own_taps() -> usize {
    let interfaces = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    interfaces.lines().filter(|line| line.trim_start().starts_with("bulkhead")).count()
}

/// `boot`, by its PVH note, of a guest with two vCPUs that fetches from `server` and powers off.
fn fetching(lab: &Lab, net: &str, address: &str, server: SocketAddr) -> Command {
    let initrd = lab.path("initrd");
    std::fs::write(&initrd, cpio::initramfs(&std::fs::read(lab.guest_program()).unwrap())).unwrap();
    let append = format!("PROBE_NET={address} PROBE_FETCH={server},{}", bytes(lab));
    let initrd = initrd.display().to_string();
    let words = ["boot", "--kernel", lab.kernel(), "--protocol", "pvh", "--cpus", "2", "-m", "96m"];
    lab.bulkhead([&words[..], &["--initrd", &initrd, "--net", net, "--append", &append]].concat())
}

/// Through a tap interface, with large segments and checksums left to the host, in a network of the test's own.
#[test]
fn a_guest_fetches_through_a_tap() {
    let lab = lab!("a_guest_fetches_through_a_tap", on hardware);
    let patience = patience(&lab);
    if !own_network("a_guest_fetches_through_a_tap") {
        return;
    }
    send_large_packets();
    make_tap("bh0", "192.0.2.1/24");
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let command = fetching(&lab, "tap=bh0", "192.0.2.2", address);
    let server = serve(&listener, bytes(&lab));
    let ended = Running::start(command).end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.text().contains(&format!("fetched {0}, sent {0}", bytes(&lab))), "{ended:?}");
    assert!(server.join().unwrap());

    // A container, which is told its address.
    let (server, before) = (serve(&listener, bytes(&lab)), packets_from("bh0"));
    let (address, count) = (address.to_string(), bytes(&lab).to_string());
    let words = ["run", "--network", "tap=bh0", &lab.probe_image(), "/probe", "fetch", &address, &count];
    let ended = Running::start(lab.bulkhead(words)).end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(server.join().unwrap());
    // Acknowledgements too. Two segments in each would be three times as many.
    let packets = packets_from("bh0") - before;
    assert!(lab.kvm() != Kvm::SoftwareNested || packets < 100 + bytes(&lab) / 10_000, "{packets} packets");

    let ended = lab.run(["boot", "--kernel", lab.kernel(), "--net", "tap=bh1"]);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.stderr.contains("tap 'bh1': there is no such interface"), "{ended:?}");
    lab.assert_clean();
}

/// At taps of their own, from where a container reaches what it may, and nothing else; of which nothing is left, also if it is killed.
#[test]
fn a_container_at_a_tap_of_its_own_reaches_what_it_may() {
    const TEST: &str = "a_container_at_a_tap_of_its_own_reaches_what_it_may";
    let lab = lab!(TEST, on the machine);
    let patience = patience(&lab);
    if !own_network(TEST) {
        return;
    }
    make_tap("bh0", "192.0.2.1/24");
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let server = serve(&listener, bytes(&lab));
    let (address, count) = (listener.local_addr().unwrap().to_string(), bytes(&lab).to_string());
    let run = |egress: &str, more: &[&str]| {
        let image = lab.probe_image();
        let words = ["run", "--network", "tap", "--egress", egress];
        lab.bulkhead([&words[..], more, &[&image, "/probe", "fetch", &address, &count]].concat())
    };
    // Where it may not go at first, and may later.
    let running = Running::start(run("192.0.2.1:9", &[]));
    let control = wait_for_denied(&lab, &running, patience);
    let change = json!({ "iface_id": "eth0", "egress": [&address] });
    control.done("PATCH", "/network-interfaces/eth0", change.clone());
    let now = control.get("/vm/config")["network-interfaces"][0]["egress"].clone();
    assert_eq!(now, change["egress"]);
    let ended = running.end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(server.join().unwrap());
    assert_eq!(own_taps(), 0);

    let running = Running::start(run("192.0.2.1:9", &["--name", "denied"]));
    wait_for_denied(&lab, &running, patience);
    let deadline = Instant::now() + patience;
    assert_eq!(own_taps(), 1);
    running.signal(Signal::KILL);
    while own_taps() > 0 {
        assert!(Instant::now() < deadline, "its tap is there after it");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running.end(patience).code, None);
    wait_for_the_orphan(&lab);
    // None of them got through, and the next command finds nothing else.
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(lab.run(["images", "-q"]).code, Some(0));
    lab.assert_clean();
}

/// The control socket of the one machine, once a packet of its guest's was not let out.
fn wait_for_denied(lab: &Lab, running: &Running, patience: Duration) -> Control {
    let control = Control::of(running, the_only_machine(lab, patience).join("api"), patience);
    let deadline = Instant::now() + patience;
    let denied = || {
        let metrics = control.get("/bulkhead/v1/metrics");
        let mut devices = metrics["devices"].as_array().into_iter().flatten();
        devices.find(|device| device["kind"] == "net").map_or(0, |net| net["queues"][1]["denied"].as_u64().unwrap())
    };
    while denied() == 0 {
        assert!(Instant::now() < deadline, "none of its packets was denied");
        std::thread::sleep(Duration::from_millis(10));
    }
    control
}

/// Out through passt, and in through a port of the host, also of one that is in a network with others.
#[test]
fn a_container_reaches_out_and_is_reached_through_passt() {
    const TEST: &str = "a_container_reaches_out_and_is_reached_through_passt";
    let lab = lab!(TEST);
    if Command::new("passt").arg("--version").output().is_err() {
        tests::lab::skip(TEST, "passt is not installed");
        return;
    }
    let patience = patience(&lab);
    if !own_network(TEST) {
        return;
    }
    // What the host has of the outside: an address, and a default route.
    make_tap("bh0", "192.0.2.1/24");
    ip(&["route", "add", "default", "via", "192.0.2.254"]);
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let published = taken.local_addr().unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // All of it comes to the last one, whatever that takes: once is enough.
    let (all, some) = (bytes(&lab), bytes(&lab).min(1_000_000));
    let port = format!("{}:80", published.port());
    let run = |network: &[&str], more: &[&str]| {
        let image = lab.probe_image();
        lab.bulkhead([&["run", "-p", &port], network, &[&image, "/probe"], more].concat())
    };
    drop(taken);
    // The other one in a network that was made, by way of its switch.
    let made = format!("out{}", std::process::id());
    assert_eq!(lab.run(["network", "create", &made]).code, Some(0));
    let contained = ["--isolation", "container"];
    let mut ways = vec![vec![], vec!["--network", made.as_str()]];
    if crate::isolation::has_runc() {
        // Without a microVM the same is behind the container's interface.
        ways.extend([contained.to_vec(), [&contained[..], &["--network", &made]].concat()]);
    }
    for network in &ways {
        let server = serve(&listener, some);
        let mut running = Running::start(run(network, &["meet", &address, &some.to_string(), "80"]));
        running.wait_for("listening", patience);
        // It is called before it has said anything itself.
        let mut called = TcpStream::connect(published).unwrap();
        called.set_read_timeout(Some(patience)).unwrap();
        let mut greeting = [0; 6];
        called.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"hello\n");
        assert!(exchange(called, some));
        assert!(server.join().unwrap());
        let ended = running.end(patience);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert_eq!(lab.run(["network", "rm", &made]).code, Some(0));
    // Its port is somebody else's, which is no fault of the template's.
    let taken = TcpListener::bind(published).unwrap();
    let ended = Running::start(run(&[], &["memory"])).end(patience);
    ended.assert_failed(125, &["passt", published.to_string().replace(':', "/").as_str()]);
    drop(taken);
    // One that nobody said anything of networks for is connected, too, as this host has all that it takes.
    let server = serve(&listener, all);
    let mut usual =
        lab.bulkhead(["run", "--verbose", &lab.probe_image(), "/probe", "fetch", &address, &all.to_string()]);
    usual.env_remove("BULKHEAD_NETWORK");
    let ended = Running::start(usual).end(patience);
    assert!(was_warm(&ended), "{ended:?}");
    assert!(server.join().unwrap());
}

/// The run directory of the one machine that there is, or is about to be.
pub fn the_only_machine(lab: &Lab, patience: Duration) -> std::path::PathBuf {
    let deadline = Instant::now() + patience;
    loop {
        let entries = std::fs::read_dir(lab.run_dir()).into_iter().flatten().flatten();
        let shown = |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
        match entries.filter(shown).map(|entry| entry.path()).find(|path| path.is_dir()) {
            Some(directory) => return directory,
            None => assert!(Instant::now() < deadline, "no run directory"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
