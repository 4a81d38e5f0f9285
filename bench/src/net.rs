//! A network's speed: TCP between this host and a guest in ring 3, without Linux in the guest, through a tap interface.
//!
//! The guest (package `bench-guest`) is a TCP of the least kind: segments of up to 64 KiB both ways, checksums left to the host.
//! So what is measured is the device and the host's kernel. Beside it the same TCP runs as a thread of this process that reads and
//! writes the packets of a tap interface itself, with nothing of a machine in between.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bench_guest::peer::{HEAD, Peer, SINK, SOURCE, Wire};
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;
use serde_json::json;
use vmm::Console;
use vmm::tap::{NewTap, Tap};

use crate::answer::wait;
use crate::guest;
use crate::machine::{Bell, PATIENCE, failed, with_machine};
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::stats::median;
use crate::threads;

/// Length of the prefix of the network that is needed.
pub const PREFIX: u8 = 30;
/// The guest's address on the wire.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What the thread is called that a device works on, and the one beside it.
const DEVICE: &[&str] = &["events"];
const FLOOR: &[&str] = &["bench-floor"];
/// Bytes of one read or write of the host's.
const CHUNK: usize = 1 << 20;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct What {
    /// A network of [`PREFIX`] that nothing of this host is in.
    pub network: Ipv4Addr,
    /// Bytes of a run.
    pub bytes: u64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Runs of each.
    pub runs: usize,
    /// Bytes of a run.
    pub bytes: u64,
    /// From the host to the guest, and the other way.
    pub rows: Vec<Row>,
}

/// Medians. Packets are those of both ways, acknowledgements too.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which way.
    pub way: &'static str,
    /// Gb/s, of the guest.
    pub guest: f64,
    /// Gb/s, without a machine.
    pub floor: f64,
    /// `guest` by `floor`.
    pub ratio: f64,
    /// Bytes of data by packet.
    pub packet: f64,
    /// Processor time of the monitor by packet, without the vCPU's, nanoseconds.
    pub monitor_ns: f64,
    /// The same of the thread beside it.
    pub floor_ns: f64,
    /// Kicks by packet, each of which takes the vCPU out of the guest.
    pub kicks: f64,
    /// Reading and writing system calls of the monitor by packet.
    pub calls: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    ToGuest,
    FromGuest,
}

/// One run.
#[derive(Debug, Clone, Copy)]
struct Sample {
    rate: f64,
    packet: f64,
    ns: f64,
    kicks: f64,
    calls: f64,
}

/// Runs each `runs` times, in turns.
pub fn run(what: What, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 || what.bytes == 0 {
        return Err(BenchError::NoRuns);
    }
    let place = Place::new()?;
    let kernel = place.path().join("guest");
    fs::write(&kernel, guest::ANSWER).map_err(io_error("guest"))?;
    let mut rows = Vec::new();
    for way in [Way::ToGuest, Way::FromGuest] {
        let (mut guests, mut floors) = (Vec::new(), Vec::new());
        // The first of each pays for cold caches, once.
        for round in 0..=runs {
            let pair = (machine(&kernel, what, way)?, floor(what, way)?);
            if round > 0 {
                guests.push(pair.0);
                floors.push(pair.1);
            }
        }
        rows.push(row(way, &guests, &floors).ok_or(BenchError::NoRuns)?);
    }
    Ok(Report { runs, bytes: what.bytes, rows })
}

fn row(way: Way, guests: &[Sample], floors: &[Sample]) -> Option<Row> {
    let of = |samples: &[Sample], what: fn(&Sample) -> f64| median(&samples.iter().map(what).collect::<Vec<_>>());
    let (guest, floor) = (of(guests, |s| s.rate)?, of(floors, |s| s.rate)?);
    Some(Row {
        way: if way == Way::ToGuest { "to the guest" } else { "from the guest" },
        guest,
        floor,
        ratio: guest / floor,
        packet: of(guests, |s| s.packet)?,
        monitor_ns: of(guests, |s| s.ns)?,
        floor_ns: of(floors, |s| s.ns)?,
        kicks: of(guests, |s| s.kicks)?,
        calls: of(guests, |s| s.calls)?,
    })
}

fn new_tap(what: What) -> NewTap {
    NewTap { host_ip: Some(nth(what, 1)), prefix_len: Some(PREFIX) }
}

fn nth(what: What, at: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(what.network) + at)
}

/// With a machine.
fn machine(kernel: &std::path::Path, what: What, way: Way) -> Result<Sample, BenchError> {
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let config = json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 16 },
        "network-interfaces": [{ "iface_id": "eth0", "guest_mac": mac, "new_tap": new_tap(what) }],
    });
    let (bell, output) = Bell::new();
    with_machine(&config, Console { input: None, output }, |handle| {
        bell.wait()?;
        let kicks = || handle.devices().iter().flat_map(|d| &d.reading.queues).map(|queue| queue.kicks).sum();
        transfer(what, way, DEVICE, kicks)
    })
}

/// Without one: a thread is at the other end of the tap interface.
fn floor(what: What, way: Way) -> Result<Sample, BenchError> {
    let tap = new_tap(what).make(1, None).and_then(|tap| tap.offload_all().map(|()| tap));
    let tap = tap.map_err(io_error("tap interface"))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = || {
            let mut peer = Peer::new(Bare { tap, packet: vec![0; 1 << 17] });
            while !over.load(Ordering::Relaxed) {
                if !peer.turn() {
                    let mut fds = [PollFd::new(&peer.wire().tap, PollFlags::IN)];
                    wait(&mut fds, Duration::from_millis(10))?;
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name(FLOOR[0].into());
        let thread = thread.spawn_scoped(scope, work).map_err(io_error("thread"))?;
        let sample = transfer(what, way, FLOOR, || 0);
        over.store(true, Ordering::Relaxed);
        thread.join().map_err(|_| failed("the floor panicked"))?.and(sample)
    })
}

/// A tap interface as a wire.
struct Bare {
    tap: Tap,
    packet: Vec<u8>,
}

impl Wire for Bare {
    fn mac(&self) -> [u8; 6] {
        MAC
    }

    fn receive(&mut self, head: &mut [u8; HEAD]) -> Option<usize> {
        // That it is gone shows in what is measured.
        let len = self.tap.read_packet(&mut self.packet).ok().flatten()?;
        head.copy_from_slice(&self.packet[..HEAD]);
        Some(len)
    }

    fn ready(&mut self) -> bool {
        true
    }

    fn send(&mut self, head: &[u8; HEAD], len: usize, data: usize) {
        self.packet[..len].copy_from_slice(&head[..len]);
        // One that is lost is sent again.
        let _ = self.tap.write_packet(&self.packet[..len + data]);
    }

    fn flush(&mut self) {}
}

/// Moves the bytes, and tells what it took.
fn transfer(what: What, way: Way, names: &[&str], kicks: impl Fn() -> u64) -> Result<Sample, BenchError> {
    let port = if way == Way::ToGuest { SINK } else { SOURCE };
    let address = SocketAddr::from((nth(what, 2), port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(io_error("connection to the guest"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io_error("connection"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io_error("connection"))?;
    let counted = || Ok::<_, BenchError>((threads::time(names)?, threads::calls(names)?, kicks(), packets(what)?));
    let (began, before) = (Instant::now(), counted()?);
    let moved = match way {
        Way::ToGuest => push(&mut stream, what.bytes),
        Way::FromGuest => pull(&mut stream, what.bytes),
    };
    moved.map_err(io_error("data"))?;
    let (took, after) = (began.elapsed(), counted()?);
    let packets = after.3.saturating_sub(before.3).max(1) as f64;
    Ok(Sample {
        rate: what.bytes as f64 * 8.0 / took.as_secs_f64() / 1e9,
        packet: what.bytes as f64 / packets,
        ns: after.0.saturating_sub(before.0).as_nanos() as f64 / packets,
        kicks: after.2.saturating_sub(before.2) as f64 / packets,
        calls: after.1.saturating_sub(before.1) as f64 / packets,
    })
}

fn push(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let chunk = vec![0x55; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(CHUNK as u64);
        stream.write_all(&chunk[..len as usize])?;
        left -= len;
    }
    Ok(())
}

fn pull(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(CHUNK as u64) as usize;
        match stream.read(&mut chunk[..len])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count as u64,
        }
    }
    Ok(())
}

/// Packets, large segments as one, through the interface that is in the network.
fn packets(what: What) -> Result<u64, BenchError> {
    let routes = fs::read_to_string("/proc/net/route").map_err(io_error("/proc/net/route"))?;
    let network = format!("{:08X}", u32::from(what.network).swap_bytes());
    let line = routes.lines().find(|line| line.split_ascii_whitespace().nth(1) == Some(&network));
    let name = line.and_then(|line| line.split_ascii_whitespace().next());
    let name = name.ok_or_else(|| failed("its tap interface is gone"))?;
    let interfaces = fs::read_to_string("/proc/net/dev").map_err(io_error("/proc/net/dev"))?;
    let numbers = interfaces.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    let numbers: Vec<&str> = numbers.unwrap_or_default().split_ascii_whitespace().collect();
    let number = |at: usize| numbers.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    Ok(number(1) + number(9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_is_an_error() {
        let what = What { network: Ipv4Addr::new(198, 18, 0, 0), bytes: 1 };
        assert!(matches!(run(what, 0), Err(BenchError::NoRuns)));
        assert!(matches!(run(What { bytes: 0, ..what }, 1), Err(BenchError::NoRuns)));
        assert!(packets(What { network: Ipv4Addr::new(198, 18, 9, 8), bytes: 1 }).is_err());
    }
}
