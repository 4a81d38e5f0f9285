//! A switch on a thread, with members that are these tests.

use std::io::{IoSlice, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, TYPE};
use tempfile::TempDir;

use super::*;
use crate::client::{self, ClientError, Lease};
use crate::protocol::{Join, PREFIX};

struct Running {
    _dir: TempDir,
    socket: PathBuf,
    ends: JoinHandle<io::Result<()>>,
    network: Network,
}

/// A member: its lease, its port, what is beyond.
struct Guest {
    lease: Lease,
    own: Own,
    port: UnixStream,
    uplink: UnixStream,
}

fn start(internal: bool) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let network = Network { name: "net".into(), gateway: [172, 28, 5, 1].into(), prefix_len: 24, internal };
    let its = network.clone();
    let ends = std::thread::spawn(move || serve(listener.into(), its, vec!["nothing".into()]));
    Running { _dir: dir, socket, ends, network }
}

fn join(name: &str, last: u8) -> Join {
    Join { version: VERSION, id: name.repeat(12), names: vec![name.into()], mac: [2, 0, 0, 0, 0, last], ip: None }
}

impl Running {
    fn join(&self, name: &str, last: u8) -> Guest {
        let join = join(name, last);
        let (lease, ip) = client::join(&self.socket, &join).unwrap();
        let (port, uplink) = self.attach(join.mac);
        Guest { lease, own: Own { mac: join.mac, ip }, port, uplink }
    }

    fn attach(&self, mac: [u8; 6]) -> (UnixStream, UnixStream) {
        let mut port = UnixStream::connect(&self.socket).unwrap();
        let (uplink, its) = UnixStream::pair().unwrap();
        let greeting = client::greeting(mac);
        let bytes = [&(greeting.len() as u32).to_be_bytes()[..], greeting.as_bytes()].concat();
        let descriptors = [its.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&port, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).unwrap();
        port.set_read_timeout(Some(PATIENCE)).unwrap();
        uplink.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(receive(&mut port), b"");
        (port, uplink)
    }
}

fn send_frame(socket: &mut UnixStream, frame: &[u8]) {
    socket.write_all(&[&(frame.len() as u32).to_be_bytes()[..], frame].concat()).unwrap();
}

fn receive(socket: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; PREFIX];
    socket.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    socket.read_exact(&mut frame).unwrap();
    frame
}

fn udp(from: Own, mac: [u8; 6], ip: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(from.mac, mac).ipv4(from.ip.octets(), ip.octets(), 64);
    builder.udp(1000, port).write(&mut frame, payload).unwrap();
    frame
}

fn query(name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(1);
    let question = Question::new(Name::new(name).unwrap(), QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false);
    packet.questions.push(question);
    packet.build_bytes_vec().unwrap()
}

#[test]
fn members_reach_each_other_and_what_is_beyond_and_the_last_one_ends_it() {
    let running = start(false);
    let (mut a, mut b) = (running.join("a", 1), running.join("b", 2));
    assert_eq!([a.own.ip.octets()[3], b.own.ip.octets()[3]], [2, 3]);
    let frame = udp(a.own, b.own.mac, b.own.ip, 80, b"hello");
    send_frame(&mut a.port, &frame);
    assert_eq!(receive(&mut b.port), frame);
    // Out, and back in the switch's name.
    let gateway = running.network.gateway_mac();
    let out = udp(a.own, gateway, [198, 51, 100, 7].into(), 80, b"out");
    send_frame(&mut a.port, &out);
    assert_eq!(receive(&mut a.uplink), out);
    let back = udp(Own { mac: [9; 6], ip: [198, 51, 100, 7].into() }, [0xff; 6], a.own.ip, 80, b"back");
    send_frame(&mut a.uplink, &back);
    let back = receive(&mut a.port);
    assert_eq!((&back[..6], &back[6..12], &back[42..]), (&a.own.mac[..], &gateway[..], &b"back"[..]));
    // What passt owes to a SYN,ACK comes from the switch, once passt has answered.
    let builder =
        etherparse::PacketBuilder::ethernet2(a.own.mac, gateway).ipv4(a.own.ip.octets(), [198, 51, 100, 7], 64);
    let mut segment = Vec::new();
    builder.tcp(80, 4000, 1, 1000).syn().ack(2).write(&mut segment, &[]).unwrap();
    send_frame(&mut a.port, &segment);
    assert_eq!(receive(&mut a.uplink), segment);
    let mut answer = receive(&mut a.uplink);
    answer[21] = 2;
    answer.copy_within(22..32, 32);
    send_frame(&mut a.uplink, &answer);
    let ack = receive(&mut a.port);
    assert_eq!((&ack[..6], &ack[6..12], ack[47]), (&a.own.mac[..], &gateway[..], 0x10));
    // Names that it does not know are asked of who is beyond.
    let known = udp(b.own, gateway, running.network.gateway, 53, &query("a.net"));
    send_frame(&mut b.port, &known);
    let answer = receive(&mut b.port);
    let packet = Packet::parse(&answer[42..]).unwrap();
    assert_eq!((packet.rcode(), packet.answers.len()), (RCODE::NoError, 1));
    let unknown = udp(b.own, gateway, running.network.gateway, 53, &query("example.org"));
    send_frame(&mut b.port, &unknown);
    assert_eq!(receive(&mut b.uplink), unknown);
    let listing = client::list(&running.socket).unwrap();
    assert_eq!((listing.members.len(), listing.missing), (2, vec!["nothing".into()]));
    // A microVM that ends has what is beyond end before it.
    drop(a.port);
    assert_eq!(a.uplink.read(&mut [0; 8]).unwrap(), 0);
    drop(a.uplink);
    // Another takes its place.
    let (mut port, _uplink) = running.attach(a.own.mac);
    send_frame(&mut b.port, &udp(b.own, a.own.mac, a.own.ip, 80, b"again"));
    assert!(receive(&mut port).ends_with(b"again"));
    drop(a.lease);
    assert_eq!(client::list(&running.socket).unwrap().members.len(), 1);
    drop(b.lease);
    running.ends.join().unwrap().unwrap();
    assert!(matches!(client::list(&running.socket), Err(ClientError::Io(_))));
}

#[test]
fn a_hostile_member_takes_nobodys_name() {
    let running = start(true);
    let (mut bad, mut good, mut other) = (running.join("bad", 1), running.join("good", 2), running.join("other", 3));
    let as_good = Own { mac: bad.own.mac, ip: good.own.ip };
    let mut lies = [
        udp(as_good, other.own.mac, other.own.ip, 80, b"lie"),
        udp(good.own, other.own.mac, other.own.ip, 80, b"lie"),
        frame::arp_answer(other.own, good.own.ip, bad.own.mac),
        frame::arp_answer(other.own, running.network.gateway, bad.own.mac),
    ];
    // Those have the switch as their sender, which its port is not.
    lies.iter_mut().skip(2).for_each(|lie| lie[6..12].copy_from_slice(&bad.own.mac));
    lies.iter().for_each(|lie| send_frame(&mut bad.port, lie));
    let truth = udp(bad.own, other.own.mac, other.own.ip, 80, b"truth");
    send_frame(&mut bad.port, &truth);
    assert_eq!(receive(&mut other.port), truth);
    // Whoever asks for the good one gets the good one.
    let packet = etherparse::ArpEthIpv4Packet {
        operation: etherparse::ArpOperation::REQUEST,
        sender_mac: other.own.mac,
        sender_ipv4: other.own.ip.octets(),
        target_mac: [0; 6],
        target_ipv4: good.own.ip.octets(),
    };
    let mut question = Vec::new();
    etherparse::PacketBuilder::ethernet2(other.own.mac, [0xff; 6]).arp(packet.into()).write(&mut question).unwrap();
    send_frame(&mut other.port, &question);
    assert_eq!(receive(&mut other.port), frame::arp_answer(other.own, good.own.ip, good.own.mac));
    // Nothing is beyond an internal network, for names either.
    let gateway = running.network.gateway_mac();
    send_frame(&mut good.port, &udp(good.own, gateway, running.network.gateway, 53, &query("example.org")));
    assert_eq!(Packet::parse(&receive(&mut good.port)[42..]).unwrap().rcode(), RCODE::NameError);
    let listing = client::list(&running.socket).unwrap();
    let counts: Vec<_> = listing.members.iter().map(|member| (member.sent, member.denied)).collect();
    assert_eq!(counts, [(5, 4), (1, 0), (1, 0)]);
    // What is no frame is the end of who says it, and of nobody else.
    bad.port.write_all(&[0xff; 8]).unwrap();
    assert_eq!(bad.uplink.read(&mut [0; 8]).unwrap(), 0);
    drop((bad, good.lease, other.lease));
    running.ends.join().unwrap().unwrap();
}

#[test]
fn one_that_does_not_read_keeps_nobody_waiting() {
    let running = start(true);
    let (mut a, deaf, mut c) = (running.join("a", 1), running.join("deaf", 2), running.join("c", 3));
    let large = udp(a.own, deaf.own.mac, deaf.own.ip, 80, &[7; 60_000]);
    for _ in 0..100 {
        send_frame(&mut a.port, &large);
    }
    let frame = udp(a.own, c.own.mac, c.own.ip, 80, b"still here");
    send_frame(&mut a.port, &frame);
    assert_eq!(receive(&mut c.port), frame);
    let lost = client::list(&running.socket).unwrap().members[1].lost;
    assert!((50..100).contains(&lost), "{lost}");
    drop((a, deaf, c));
    running.ends.join().unwrap().unwrap();
}

#[test]
fn who_says_nothing_sensible_is_no_member() {
    let running = start(true);
    let a = running.join("a", 1);
    let refused = client::join(&running.socket, &join("b", 1)).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(why) if why.contains("MAC")));
    for bytes in [&b"\0\0\0\x02{}"[..], b"\xff\xff\xff\xff", b"\0\0\0\x01xy", b""] {
        let mut stream = UnixStream::connect(&running.socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "{bytes:?}");
    }
    let mut stranger = UnixStream::connect(&running.socket).unwrap();
    let greeting = client::greeting([2, 0, 0, 0, 0, 9]);
    send_frame(&mut stranger, greeting.as_bytes());
    assert!(String::from_utf8(receive(&mut stranger)).unwrap().contains("lease"));
    drop(a);
    running.ends.join().unwrap().unwrap();
}

/// Frames through a switch, and the same through a pair of sockets: a batch, and an answer to it, so that none is lost.
/// `cargo test --release -p switch -- --ignored --nocapture how_fast`
#[test]
#[ignore = "a measurement, by hand"]
fn how_fast_frames_are() {
    const BATCH: usize = 12;
    fn measure(from: (UnixStream, Own), to: (UnixStream, Own), len: usize, batches: usize) -> f64 {
        let ((mut here, a), (mut there, b)) = (from, to);
        let frame = udp(a, b.mac, b.ip, 80, &vec![7; len]);
        let answer = udp(b, a.mac, a.ip, 80, b"go on");
        let began = Instant::now();
        let other = std::thread::spawn(move || {
            let mut bytes = vec![0; BATCH * (PREFIX + 42 + len)];
            for _ in 0..batches {
                there.read_exact(&mut bytes).unwrap();
                send_frame(&mut there, &answer);
            }
            there
        });
        let batch = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat().repeat(BATCH);
        for _ in 0..batches {
            here.write_all(&batch).unwrap();
            receive(&mut here);
        }
        let seconds = began.elapsed().as_secs_f64();
        drop(other.join().unwrap());
        (batches * BATCH * len) as f64 * 8.0 / seconds / 1e9
    }
    for (len, batches) in [(60_000, 4000), (1400, 20_000)] {
        let running = start(true);
        let (a, b) = (running.join("a", 1), running.join("b", 2));
        let (one, two) = UnixStream::pair().unwrap();
        let plain = measure((one, a.own), (two, b.own), len, batches);
        let through = measure((a.port, a.own), (b.port, b.own), len, batches);
        println!("{len} bytes: {through:.2} Gb/s, a pair of sockets {plain:.2} Gb/s, {:.2} of it", through / plain);
        drop((a.lease, b.lease));
        running.ends.join().unwrap().unwrap();
    }
}
