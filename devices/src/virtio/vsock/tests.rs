use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::virtio::testing::{Driver, FAILED, NEEDS_RESET, Part, RUNNING};

const CID: u64 = 42;

/// A guest's socket layer, as simple as it can be.
struct Guest {
    driver: Driver,
    dir: tempfile::TempDir,
    /// Bytes of its receive buffers.
    buffer: u32,
}

fn op(op: u16, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

impl Guest {
    fn new(buffers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::bind(dir.path().join("s")).unwrap();
        let driver = Driver::start(Box::new(Vsock::new(CID, endpoint).unwrap()));
        let mut guest = Guest { driver, dir, buffer: 4096 };
        guest.post(buffers);
        guest
    }

    fn path(&self, port: Option<u32>) -> PathBuf {
        self.dir.path().join(port.map_or("s".into(), |port| format!("s_{port}")))
    }

    fn post(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.add(RX, &[Part::Write(self.buffer)]).unwrap();
        }
        self.driver.kick(RX);
        self.driver.settle();
    }

    fn send(&mut self, mut header: Header, data: &[u8]) {
        header.len = data.len() as u32;
        self.send_raw(header, data);
    }

    fn send_raw(&mut self, header: Header, data: &[u8]) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(data);
        self.driver.add(TX, &[Part::Read(&bytes)]).unwrap();
        self.driver.kick(TX);
        self.driver.settle();
        while self.driver.used(TX).is_some() {}
    }

    /// The next packet, if one comes without anything else happening; its buffer is posted again.
    fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        self.driver.settle();
        let done = self.driver.used(RX)?;
        let bytes = done.data.clone();
        let cid = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let header = Header {
            src_cid: cid(0),
            dst_cid: cid(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: word(28) as u16,
            op: (word(28) >> 16) as u16,
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        };
        assert_eq!(done.written, HEADER_LEN as u32 + header.len);
        assert_eq!(header.to_bytes(), bytes[..HEADER_LEN]);
        let data = bytes[HEADER_LEN..][..header.len as usize].to_vec();
        self.post(1);
        Some((header, data))
    }

    fn recv(&mut self) -> (Header, Vec<u8>) {
        let mut got = None;
        for _ in 0..1000 {
            got = self.poll();
            if got.is_some() {
                break;
            }
            self.driver.wait_a_moment();
        }
        got.expect("a packet")
    }

    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.recv();
        assert_eq!((header.op, header.dst_cid), (op, CID), "{header:?}");
        (header, data)
    }

    /// The guest connects to a host program; both ends.
    fn connected(&mut self, guest_port: u32, host_port: u32) -> UnixStream {
        let listener = UnixListener::bind(self.path(Some(host_port))).unwrap();
        self.send(op(OP_REQUEST, guest_port, host_port), &[]);
        self.expect(OP_RESPONSE);
        let stream = listener.accept().unwrap().0;
        std::fs::remove_file(self.path(Some(host_port))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn a_host_program_connects_and_both_talk() {
    let mut guest = Guest::new(16);
    let mut host = UnixStream::connect(guest.path(None)).unwrap();
    host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    host.write_all(b"CONN").unwrap();
    guest.driver.settle();
    host.write_all(b"ECT 1234\nearly bird").unwrap();
    let (request, _) = guest.expect(OP_REQUEST);
    assert_eq!((request.dst_port, request.src_cid), (1234, HOST_CID));
    guest.send(op(OP_RESPONSE, 1234, request.src_port), &[]);
    let expect = format!("OK {}\n", request.src_port);
    let mut line = vec![0; expect.len()];
    host.read_exact(&mut line).unwrap();
    assert_eq!(line, expect.as_bytes());
    assert_eq!(guest.expect(OP_RW).1, b"early bird");
    guest.send(op(OP_RW, 1234, request.src_port), b"hello");
    let mut five = [0; 5];
    host.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"hello");
    drop(host);
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    guest.send(op(OP_RST, 1234, request.src_port), &[]);
    assert!(guest.poll().is_none(), "a reset is not answered");
}

#[test]
fn bad_greetings_and_refusals_end_the_host_programs_stream() {
    let mut guest = Guest::new(4);
    for greeting in ["GET / HTTP/1.1\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT -1\n", &"C".repeat(64)] {
        let mut host = UnixStream::connect(guest.path(None)).unwrap();
        host.write_all(greeting.as_bytes()).unwrap();
        guest.driver.settle();
        // Closed with input unread is a reset for the program; either way it is over.
        assert!(!matches!(host.read(&mut [0]), Ok(1..)), "{greeting}");
    }
    let mut host = UnixStream::connect(guest.path(None)).unwrap();
    host.write_all(b"CONNECT 5\n").unwrap();
    let (request, _) = guest.expect(OP_REQUEST);
    guest.send(op(OP_RST, 5, request.src_port), &[]);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn twenty_megabytes_each_way_arrive_byte_for_byte() {
    let data = pattern(20 << 20);
    let mut guest = Guest::new(64);
    let host = guest.connected(7, 1024);
    // Host to guest, then its end.
    let (mut writer, bytes) = (host.try_clone().unwrap(), data.clone());
    let writer = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    loop {
        let (header, data) = guest.recv();
        match header.op {
            OP_RW => received.extend(data),
            OP_CREDIT_REQUEST => {}
            OP_SHUTDOWN => break assert_eq!(header.flags, SHUTDOWN_SEND),
            other => panic!("op {other}"),
        }
        if header.op == OP_CREDIT_REQUEST {
            let sent = received.len() as u32;
            assert_eq!(sent % (1 << 20), 0, "credit is asked for only when there is none");
            guest.send(Header { fwd_cnt: sent, ..op(OP_CREDIT_UPDATE, 7, 1024) }, &[]);
        }
    }
    assert!(received == data);
    writer.join().unwrap();
    // Guest to host: the guest keeps to its credit.
    let mut reader = host;
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    let (mut sent, mut forwarded) = (0u32, 0u32);
    while (sent as usize) < data.len() {
        while let Some((header, _)) = guest.poll() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
            forwarded = header.fwd_cnt;
        }
        let len = (credit::MOST - (sent - forwarded)).min(60_000).min(data.len() as u32 - sent);
        if len == 0 {
            guest.driver.wait_a_moment();
            continue;
        }
        guest.send(op(OP_RW, 7, 1024), &data[sent as usize..][..len as usize]);
        sent += len;
    }
    guest.send(Header { flags: SHUTDOWN_BOTH, ..op(OP_SHUTDOWN, 7, 1024) }, &[]);
    while !reader.is_finished() {
        guest.driver.wait_a_moment();
    }
    assert!(reader.join().unwrap() == data, "all of it before the end");
    loop {
        match guest.recv().0.op {
            OP_RST => break,
            other => assert_eq!(other, OP_CREDIT_UPDATE),
        }
    }
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(9, 1024);
    guest.send(op(OP_RW, 9, 1024), b"last words");
    guest.send(Header { flags: SHUTDOWN_SEND, ..op(OP_SHUTDOWN, 9, 1024) }, &[]);
    let mut all = String::new();
    host.read_to_string(&mut all).unwrap();
    assert_eq!(all, "last words");
    host.write_all(b"and an answer").unwrap();
    assert_eq!(guest.expect(OP_RW).1, b"and an answer");
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags & SHUTDOWN_SEND, SHUTDOWN_SEND);
    // A guest that will not receive is felt by the program that writes.
    let mut host = guest.connected(10, 1024);
    guest.send(Header { flags: SHUTDOWN_RECEIVE, ..op(OP_SHUTDOWN, 10, 1024) }, &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send(op(OP_RW, 10, 1024), b"still talking");
    let mut bytes = [0; 13];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still talking");
}

#[test]
fn a_guest_that_overruns_its_credit_is_cut_off_and_one_that_keeps_to_it_is_not() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(9, 1024);
    // Nobody reads: the socket takes some, the backlog the rest.
    let chunk = vec![1; 32 << 10];
    let mut sent = 0;
    let reset = (0..100).find_map(|_| {
        guest.send(op(OP_RW, 9, 1024), &chunk);
        sent += chunk.len();
        std::iter::from_fn(|| guest.poll()).find(|(header, _)| header.op == OP_RST)
    });
    assert!(reset.is_some(), "took {sent} bytes");
    assert!(sent < 2 << 20, "took {sent} bytes");
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 1));
    assert_eq!(guest.driver.status(), RUNNING);
}

#[test]
fn the_guests_credit_is_never_overrun() {
    let mut guest = Guest::new(8);
    let listener = UnixListener::bind(guest.path(Some(1024))).unwrap();
    guest.send(Header { buf_alloc: 100, ..op(OP_REQUEST, 9, 1024) }, &[]);
    guest.expect(OP_RESPONSE);
    let mut host = listener.accept().unwrap().0;
    host.write_all(&[5; 250]).unwrap();
    assert_eq!(guest.expect(OP_RW).1.len(), 100);
    guest.expect(OP_CREDIT_REQUEST);
    assert!(guest.poll().is_none(), "asked once");
    guest.send(Header { buf_alloc: 100, fwd_cnt: 60, ..op(OP_CREDIT_UPDATE, 9, 1024) }, &[]);
    assert_eq!(guest.expect(OP_RW).1.len(), 60);
    // Numbers that make no sense are no credit.
    guest.expect(OP_CREDIT_REQUEST);
    guest.send(Header { buf_alloc: 100, fwd_cnt: 5000, ..op(OP_CREDIT_UPDATE, 9, 1024) }, &[]);
    assert!(guest.poll().is_none());
    guest.send(Header { buf_alloc: 1000, fwd_cnt: 160, ..op(OP_CREDIT_UPDATE, 9, 1024) }, &[]);
    assert_eq!(guest.expect(OP_RW).1.len(), 90);
}

#[test]
fn a_guest_that_says_it_is_full_is_left_alone_until_it_has_room_or_long_enough() {
    let mut guest = Guest::new(8);
    let listener = UnixListener::bind(guest.path(Some(1024))).unwrap();
    let says = |op_, fwd_cnt| Header { buf_alloc: 1000, fwd_cnt, ..op(op_, 9, 1024) };
    guest.send(says(OP_REQUEST, 0), &[]);
    guest.expect(OP_RESPONSE);
    let mut host = listener.accept().unwrap().0;
    host.write_all(&[5; 5000]).unwrap();
    assert_eq!(guest.expect(OP_RW).1.len(), 1000);
    guest.expect(OP_CREDIT_REQUEST);
    // Its reader is slow. What it has room for is used, and nothing asked.
    let mut forwarded = 0;
    for more in [0, 0, 100, 0, 250, 0] {
        forwarded += more;
        guest.send(says(OP_CREDIT_UPDATE, forwarded), &[]);
        if more > 0 {
            assert_eq!(guest.expect(OP_RW).1.len(), more as usize);
        }
        assert!(guest.poll().is_none(), "after {forwarded}");
    }
    // It says so itself when it has room.
    guest.send(says(OP_CREDIT_UPDATE, forwarded + 500), &[]);
    assert_eq!(guest.expect(OP_RW).1.len(), 500);
    guest.expect(OP_CREDIT_REQUEST);
    guest.send(says(OP_CREDIT_UPDATE, forwarded + 500), &[]);
    assert!(guest.poll().is_none());
    // One that says nothing by itself is asked after a while.
    guest.expect(OP_CREDIT_REQUEST);
    guest.send(says(OP_CREDIT_UPDATE, forwarded + 1500), &[]);
    assert_eq!(guest.expect(OP_RW).1.len(), 1000);
}

#[test]
fn without_receive_buffers_nothing_is_lost_and_nothing_spins() {
    let mut guest = Guest::new(1);
    let mut host = guest.connected(9, 1024);
    let data = pattern(100_000);
    host.set_nonblocking(true).unwrap();
    host.write_all(&data).unwrap();
    // The one buffer is used; until it is posted again, the loop is at rest.
    assert!(guest.driver.settle());
    let mut received = Vec::new();
    while received.len() < data.len() {
        let (header, bytes) = guest.recv();
        assert_eq!(header.op, OP_RW);
        assert_eq!(bytes.len(), (guest.buffer as usize - HEADER_LEN).min(data.len() - received.len()), "full packets");
        received.extend(bytes);
    }
    assert!(received == data);
}

#[test]
fn packets_of_nobody_are_reset_and_resets_are_not() {
    let mut guest = Guest::new(8);
    let _host = guest.connected(9, 1024);
    let foreign = |change: fn(&mut Header)| {
        let mut header = op(OP_RW, 9, 1024);
        change(&mut header);
        header
    };
    let answered = [
        op(OP_REQUEST, 9, 77),
        op(OP_RW, 1, 2),
        op(OP_SHUTDOWN, 1, 2),
        op(OP_RESPONSE, 1, 2),
        op(OP_CREDIT_REQUEST, 1, 2),
        op(99, 1, 2),
        foreign(|header| header.dst_cid = 1),
        foreign(|header| header.dst_cid = u64::MAX),
        foreign(|header| header.kind = 2),
    ];
    for header in answered {
        guest.send(header, &[]);
        let (reset, _) = guest.recv();
        assert_eq!(reset, header.reset(), "{header:?}");
        assert!(guest.poll().is_none());
    }
    for header in [op(OP_RST, 1, 2), foreign(|header| header.src_cid = 3), foreign(|header| header.src_cid = 2)] {
        guest.send(header, &[]);
        assert!(guest.poll().is_none(), "{header:?}");
    }
    let metrics = guest.driver.lock().metrics();
    // All but the reset.
    assert_eq!(metrics.read().queues[TX].errors, 9 + 2);
    // The real connection lives; an unknown op on it ends it.
    guest.send(op(OP_RW, 9, 1024), b"alive");
    guest.send(op(0, 9, 1024), &[]);
    guest.expect(OP_RST);
}

#[test]
fn lying_lengths_end_the_connection_or_the_device() {
    let mut guest = Guest::new(8);
    let _host = guest.connected(9, 1024);
    guest.send_raw(Header { len: 100, ..op(OP_RW, 9, 1024) }, &[0; 99]);
    guest.expect(OP_RST);
    guest.send_raw(Header { len: u32::MAX, ..op(OP_RW, 9, 1024) }, &[0; 99]);
    guest.expect(OP_RST);
    guest.driver.add(TX, &[Part::Read(&[0; HEADER_LEN - 1])]).unwrap();
    guest.driver.kick(TX);
    guest.driver.settle();
    assert_eq!(guest.driver.status(), RUNNING | NEEDS_RESET);
}

#[test]
fn a_reset_storm_waits_for_the_guest_and_ends() {
    let mut guest = Guest::new(0);
    let mut sent = 0u32;
    // Without receive buffers the device takes no more than it can remember.
    while guest.driver.add(TX, &[Part::Read(&op(OP_RW, sent, 2).to_bytes())]).is_some() {
        sent += 1;
        guest.driver.kick(TX);
        guest.driver.settle();
        while guest.driver.used(TX).is_some() {}
        assert!(sent < 10_000, "resets pile up without bound");
    }
    assert!(guest.driver.settle());
    guest.post(8);
    for port in 0..sent {
        assert_eq!(guest.expect(OP_RST).0.dst_port, port);
    }
    assert!(guest.poll().is_none());
}

#[test]
fn connections_are_limited_and_the_rest_still_works() {
    // Each connection takes a descriptor on both sides of this process.
    let room = raise_descriptor_limit();
    let mut guest = Guest::new(32);
    let listener = UnixListener::bind(guest.path(Some(1))).unwrap();
    let mut hosts = Vec::new();
    let mut refused = 0;
    for port in 0..CONNECTIONS as u32 + 50 {
        guest.send(op(OP_REQUEST, port, 1), &[]);
        let (header, _) = guest.recv();
        if header.op == OP_RESPONSE {
            hosts.push(listener.accept().unwrap().0);
        } else {
            refused += 1;
        }
    }
    assert!(refused >= 50 && (refused == 50 || !room), "{refused} refused");
    drop(hosts.split_off(10));
    guest.driver.settle();
    while let Some((header, _)) = guest.poll() {
        assert_eq!(header.op, OP_SHUTDOWN);
        guest.send(op(OP_RST, header.dst_port, header.src_port), &[]);
    }
    guest.send(op(OP_REQUEST, 99_999, 1), &[]);
    guest.expect(OP_RESPONSE);
    hosts[3].write_all(b"me").unwrap();
    assert_eq!(guest.expect(OP_RW).0.dst_port, 3);
}

#[test]
fn hundreds_of_connections_share_what_may_wait_and_none_holds_another() {
    const MANY: u32 = 300;
    const BYTES: usize = 2 << 20;
    let many = if raise_descriptor_limit() { MANY } else { 100 };
    let mut guest = Guest::new(32);
    let listener = UnixListener::bind(guest.path(Some(1))).unwrap();
    let mut hosts = Vec::new();
    let mut granted = u32::MAX;
    for port in 0..many {
        guest.send(op(OP_REQUEST, port, 1), &[]);
        let now = guest.expect(OP_RESPONSE).0.buf_alloc;
        assert!(now <= granted);
        granted = now;
        hosts.push(listener.accept().unwrap().0);
    }
    let share = credit::share(many as usize);
    assert_eq!(granted, share, "as many as there are");
    // Nobody reads: each but the last has its share waiting, and more than a socket takes.
    let waiting = vec![9; share as usize];
    for port in 0..many - 1 {
        for part in waiting.chunks(60_000) {
            guest.send(op(OP_RW, port, 1), part);
        }
        while let Some((header, _)) = guest.poll() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
        }
    }
    // The last one's data moves on all the same, both ways.
    let (data, port) = (pattern(BYTES), many - 1);
    let mut host = hosts.pop().unwrap();
    let mut writer = host.try_clone().unwrap();
    let expected = data.clone();
    let both = [
        std::thread::spawn(move || {
            let mut all = vec![0; BYTES];
            host.read_exact(&mut all).unwrap();
            assert!(all == expected);
        }),
        std::thread::spawn({
            let data = data.clone();
            move || writer.write_all(&data).unwrap()
        }),
    ];
    let (mut sent, mut end, mut received) = (0usize, share as usize, Vec::new());
    while sent < BYTES || received.len() < BYTES {
        while let Some((header, bytes)) = guest.poll() {
            assert_eq!(header.dst_port, port);
            received.extend(bytes);
            end = (header.fwd_cnt + header.buf_alloc) as usize;
            if header.op == OP_CREDIT_REQUEST {
                guest.send(Header { fwd_cnt: received.len() as u32, ..op(OP_CREDIT_UPDATE, port, 1) }, &[]);
            }
        }
        assert!(end <= sent + share as usize, "no more than its share");
        let len = (end - sent).min(50_000).min(BYTES - sent);
        if len == 0 {
            guest.driver.wait_a_moment();
            continue;
        }
        guest.send(op(OP_RW, port, 1), &data[sent..][..len]);
        sent += len;
    }
    for thread in both {
        // The device may have more than the socket took.
        while !thread.is_finished() {
            guest.driver.wait_a_moment();
        }
        thread.join().unwrap();
    }
    assert!(received == data);
    // What waited is there.
    for host in &mut hosts {
        host.set_nonblocking(true).unwrap();
        let mut all = Vec::new();
        while all.len() < share as usize {
            let mut bytes = [0; 64 << 10];
            match host.read(&mut bytes) {
                Ok(count) => all.extend_from_slice(&bytes[..count]),
                Err(_) => guest.driver.wait_a_moment(),
            }
        }
        assert!(all == waiting);
    }
}

fn raise_descriptor_limit() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain calls on a local struct.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(8192);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    limit.rlim_cur >= 4096
}

#[test]
fn a_reset_ends_every_stream_and_new_ones_work() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(9, 1024);
    let mut greeting = UnixStream::connect(guest.path(None)).unwrap();
    guest.driver.settle();
    guest.driver.reset();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(greeting.read(&mut [0]).unwrap(), 0);
    guest.driver.bring_up(u64::MAX);
    guest.post(8);
    let _host = guest.connected(9, 1024);
}

#[test]
fn host_programs_hear_of_a_device_that_waits_for_a_reset() {
    let breaks: [fn(&mut Guest); 2] = [
        |guest| assert!(guest.driver.add(TX, &[Part::Read(b"no header")]).is_some()),
        |guest| guest.driver.set(0x70, RUNNING | FAILED),
    ];
    for (brk, status) in breaks.into_iter().zip([RUNNING | NEEDS_RESET, RUNNING | FAILED]) {
        let mut guest = Guest::new(8);
        let mut host = guest.connected(9, 1024);
        let mut greeting = UnixStream::connect(guest.path(None)).unwrap();
        guest.driver.settle();
        brk(&mut guest);
        guest.driver.kick(TX);
        guest.driver.settle();
        assert_eq!(guest.driver.status(), status);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        assert_eq!(greeting.read(&mut [0]).unwrap(), 0);
        // More than the listener's queue takes.
        for _ in 0..300 {
            let mut late = UnixStream::connect(guest.path(None)).unwrap();
            late.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            guest.driver.settle();
            assert_eq!(late.read(&mut [0]).unwrap(), 0);
        }
        guest.driver.reset();
        guest.driver.bring_up(u64::MAX);
        guest.post(8);
        let _host = guest.connected(9, 1024);
    }
}

#[test]
fn host_programs_hear_of_it_from_a_machine_that_was_saved_so_too() {
    let mut guest = Guest::new(8);
    guest.driver.set(0x70, RUNNING | FAILED);
    let state = guest.driver.lock().save().unwrap();
    guest.driver.reset();
    let mut host = UnixStream::connect(guest.path(None)).unwrap();
    host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    guest.driver.lock().load(&state).unwrap();
    guest.driver.settle();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_guest_restored_elsewhere_hears_that_its_connections_are_gone() {
    let mut guest = Guest::new(2);
    let state = guest.driver.lock().save().unwrap();
    let other = Guest::new(0);
    let mem = guest.driver.mem.clone();
    let endpoint = Endpoint::bind(other.path(Some(0))).unwrap();
    struct Deaf;
    impl crate::InterruptLine for Deaf {
        fn trigger(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let device = Box::new(Vsock::new(CID, endpoint).unwrap());
    let mut restored = crate::virtio::MmioTransport::new(mem, device, std::sync::Arc::new(Deaf)).unwrap();
    restored.load(&state).unwrap();
    guest.driver.add(EVENT, &[Part::Write(4)]).unwrap();
    restored.kick_for_test(EVENT);
    let done = guest.driver.used(EVENT).unwrap();
    assert_eq!((done.written, done.data), (4, vec![0; 4]));
}

#[test]
fn what_a_guest_sent_before_it_closed_arrives_at_a_slow_reader() {
    for abrupt in [false, true] {
        let mut guest = Guest::new(8);
        let mut host = guest.connected(9, 1024);
        // Until the socket is full and so is the backlog.
        let (mut sent, mut forwarded) = (Vec::new(), 0);
        loop {
            while let Some((header, _)) = guest.poll() {
                forwarded = header.fwd_cnt;
            }
            let len = (credit::MOST - (sent.len() as u32 - forwarded)).min(50_000);
            if len == 0 {
                break;
            }
            let chunk = pattern(len as usize);
            guest.send(op(OP_RW, 9, 1024), &chunk);
            sent.extend(chunk);
        }
        if abrupt {
            guest.send(op(OP_RST, 9, 1024), &[]);
        } else {
            guest.send(Header { flags: SHUTDOWN_BOTH, ..op(OP_SHUTDOWN, 9, 1024) }, &[]);
            guest.expect(OP_RST);
        }
        // The port is free at once.
        let _again = guest.connected(9, 1024);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            host.read_to_end(&mut all).unwrap();
            all
        });
        while !reader.is_finished() {
            guest.driver.wait_a_moment();
        }
        assert!(reader.join().unwrap() == sent, "abrupt {abrupt}");
    }
}
