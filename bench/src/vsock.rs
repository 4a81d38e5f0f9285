//! A vsock's throughput: as many bytes each way by a guest in ring 3, beside the same bytes from one process to another.
//!
//! The guest (package `bench-guest`) sends and takes packets of 64 KiB and looks for them, so what is measured is the device. At its
//! other end a thread of this process reads or writes the unix socket. What the machine's threads but the vCPU's use of the
//! processor is the device's cost. The floor is dd, which writes to one end of a socket pair what this process reads from the other.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use vmm::{Console, Handle};

use crate::answer::Host;
use crate::guest;
use crate::machine::{Bell, with_machine};
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::stats::median;
use crate::threads;

/// What threads are called that do the device's work.
const THREADS: &[&str] = &["events"];
/// Bytes of a read or a write at the host's end.
const PIECE: usize = 256 << 10;

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Runs of each.
    pub runs: usize,
    /// Bytes of a run.
    pub bytes: u64,
    /// One for each direction.
    pub rows: Vec<Row>,
    /// From one process to another, Gbit/s.
    pub floor: f64,
}

/// Medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which way the bytes go.
    pub direction: &'static str,
    /// Gbit/s.
    pub gbits: f64,
    /// Processor time of the monitor for a KiB, without the vCPU's, nanoseconds.
    pub monitor_ns: f64,
    /// Bytes of data by packet, of those of both ways: credit, too, goes in packets.
    pub packet: f64,
    /// Kicks by packet, each of which takes the vCPU out of the guest.
    pub kicks: f64,
    /// `gbits` by the floor.
    pub ratio: f64,
}

/// Which way, its name, and what the guest calls it.
const DIRECTIONS: [(&str, &str); 2] = [("guest to host", "out"), ("host to guest", "in")];

/// Moves `mib` MiB each way and from process to process, each `runs` times, in turns.
pub fn run(mib: u64, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 || mib == 0 {
        return Err(BenchError::NoRuns);
    }
    let bytes = mib << 20;
    let place = Place::new()?;
    let kernel = place.path().join("guest");
    fs::write(&kernel, guest::ANSWER).map_err(io_error("guest"))?;
    let (mut floors, mut samples) = (Vec::new(), [Vec::new(), Vec::new()]);
    // The first of each pays for cold caches, once.
    for round in 0..=runs {
        let floor = floor(bytes)?;
        for ((_, way), samples) in DIRECTIONS.iter().zip(&mut samples) {
            let sample = sample(&kernel, &place.path().join("v"), way, bytes)?;
            if round > 0 {
                samples.push(sample);
            }
        }
        if round > 0 {
            floors.push(floor);
        }
    }
    let floor = median(&floors).ok_or(BenchError::NoRuns)?;
    let row = |((direction, _), samples): (&(&'static str, &str), &Vec<Sample>)| {
        let of = |what: fn(&Sample) -> f64| median(&samples.iter().map(what).collect::<Vec<_>>());
        let gbits = of(|sample| sample.gbits)?;
        Some(Row {
            direction,
            gbits,
            monitor_ns: of(|sample| sample.cost)?,
            packet: of(|sample| sample.packet)?,
            kicks: of(|sample| sample.kicks)?,
            ratio: gbits / floor,
        })
    };
    let rows = DIRECTIONS.iter().zip(&samples).map(row).collect::<Option<_>>().ok_or(BenchError::NoRuns)?;
    Ok(Report { runs, bytes, rows, floor })
}

/// One run.
struct Sample {
    gbits: f64,
    /// Processor time for a KiB, nanoseconds.
    cost: f64,
    packet: f64,
    kicks: f64,
}

/// Packets and kicks of the device so far.
fn counted(machine: &Handle) -> (u64, u64) {
    let devices = machine.devices();
    // The third queue has events.
    let queues =
        devices.iter().filter(|device| device.name.kind == "vsock").flat_map(|d| d.reading.queues.iter().take(2));
    queues.fold((0, 0), |sum, queue| (sum.0 + queue.operations, sum.1 + queue.kicks))
}

fn gbits(bytes: u64, began: Instant) -> f64 {
    bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
}

/// A run of a guest. The time of its vCPU is not counted.
fn sample(kernel: &Path, uds: &Path, way: &str, bytes: u64) -> Result<Sample, BenchError> {
    let config = json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": format!("stream={way}:{bytes}") },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 16 },
        "vsock": { "guest_cid": 3, "uds_path": uds },
    });
    let host = Host::bind(uds)?;
    let (bell, output) = Bell::new();
    with_machine(&config, Console { input: None, output }, |machine| {
        bell.wait()?;
        let mut stream = host.accept(None)?;
        let earlier = counted(machine);
        let (began, before) = (Instant::now(), threads::time(THREADS)?);
        if way == "out" {
            take(&mut stream, bytes)?;
        } else {
            let piece = vec![0; PIECE];
            let mut left = bytes;
            while left > 0 {
                let some = &piece[..piece.len().min(left as usize)];
                stream.write_all(some).map_err(io_error("bytes to the guest"))?;
                left -= some.len() as u64;
            }
        }
        // The guest has them all, or has got rid of them.
        bell.wait()?;
        let gbits = gbits(bytes, began);
        let used = threads::time(THREADS)?.saturating_sub(before);
        let later = counted(machine);
        let packets = later.0.saturating_sub(earlier.0).max(1) as f64;
        Ok(Sample {
            gbits,
            cost: used.as_nanos() as f64 / (bytes as f64 / 1024.0),
            packet: bytes as f64 / packets,
            kicks: later.1.saturating_sub(earlier.1) as f64 / packets,
        })
    })
}

fn take(from: &mut impl Read, bytes: u64) -> Result<(), BenchError> {
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        match from.read(&mut piece).map_err(io_error("bytes"))? {
            0 => return Err(io_error("bytes")(std::io::ErrorKind::UnexpectedEof.into())),
            count => left = left.saturating_sub(count as u64),
        }
    }
    Ok(())
}

/// The same bytes from another process, Gbit/s.
fn floor(bytes: u64) -> Result<f64, BenchError> {
    let (mut near, far) = UnixStream::pair().map_err(io_error("socket pair"))?;
    let mut command = Command::new("dd");
    command.args(["if=/dev/zero", "bs=64K", "status=none", "iflag=count_bytes"]).arg(format!("count={bytes}"));
    command.stdin(Stdio::null()).stdout(OwnedFd::from(far));
    let mut child = command.spawn().map_err(io_error("start of 'dd'"))?;
    // It has the other end now, and nobody else: if it fails, its end is seen.
    drop(command);
    let mut first = [0];
    near.read_exact(&mut first).map_err(io_error("bytes of 'dd'"))?;
    let began = Instant::now();
    let taken = take(&mut near, bytes - 1).map(|()| gbits(bytes, began));
    child.wait().map_err(io_error("end of 'dd'"))?;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_is_an_error() {
        assert!(matches!(run(0, 1), Err(BenchError::NoRuns)));
        assert!(matches!(run(1, 0), Err(BenchError::NoRuns)));
    }

    #[test]
    fn bytes_come_from_another_process() {
        assert!(floor(1 << 20).unwrap() > 0.0);
    }
}
