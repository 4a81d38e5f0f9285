//! What a device has of the host while a trace is played: files, sockets, and who is at their other ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::net::{Shutdown, shutdown};
use serde_json::{Value, json};
use vmm::trace::replay::Kept;
use vmm::trace::{Part, Step, Trace};

use crate::process::{BenchError, io_error};

/// The traces that come with the benchmark, by device.
pub const TRACES: [(&str, &str); 8] = [
    ("rng", include_str!("../../traces/rng.trace")),
    ("vsock", include_str!("../../traces/vsock.trace")),
    ("blk", include_str!("../../traces/blk.trace")),
    ("net", include_str!("../../traces/net.trace")),
    ("fs", include_str!("../../traces/fs.trace")),
    ("balloon", include_str!("../../traces/balloon.trace")),
    ("console", include_str!("../../traces/console.trace")),
    ("pmem", include_str!("../../traces/pmem.trace")),
];

/// Most bytes of a disk: what the trace says of its size is a stranger's word.
const MOST_DISK: u64 = 1 << 30;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Most queues of a disk.
const MOST_DISK_QUEUES: u16 = 8;
/// Bytes of the file in the directory that is shared, and of the file that is shown as memory.
const FILE: usize = 2 << 20;
/// Bytes that an other end takes at a time.
const PIECE: usize = 256 << 10;
/// Queues of a vsock: received packets, sent ones, and events (virtio 1.3, 5.10.2).
const VSOCK_SENT: u16 = 1;

/// A device's surroundings. They are there as long as this is.
pub struct Stage {
    /// The device's section of a configuration.
    pub section: Value,
    /// Queues of which the device keeps chains until the host has something.
    pub keeps: Vec<Kept>,
    socket: Option<UnixStream>,
    /// Where others listen for the guest.
    listeners: Vec<UnixListener>,
}

impl Drop for Stage {
    /// Nobody listens any more.
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Linux has accept(2) fail then.
            let _ = shutdown(listener, Shutdown::Both);
        }
    }
}

impl Stage {
    /// What the device of a trace needs, in a directory.
    pub fn set(trace: &Trace, place: &Path) -> Result<Self, BenchError> {
        let plain = |section: Value, keeps: &[Kept]| Stage {
            section,
            keeps: keeps.to_vec(),
            socket: None,
            listeners: Vec::new(),
        };
        Ok(match trace.device.as_str() {
            "blk" => plain(json!([disk(trace, place)?]), &[]),
            "net" => return network(trace),
            "vsock" => return vsock(trace, place),
            "fs" => plain(share(place)?, &[]),
            // A driver has one chain for statistics, which stays with the device until somebody asks.
            "balloon" => plain(
                json!({ "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 3600, "free_page_reporting": true }),
                &[Kept { queue: 2, most: 1 }],
            ),
            "console" => plain(json!({ "mode": "off" }), &[Kept::full(0)]),
            "pmem" => plain(json!([{ "id": "replay", "path_on_host": file(place)?, "read_only": true }]), &[]),
            // Those that need nothing; and for others, what there is to say is the replay's business.
            _ => plain(json!({}), &[]),
        })
    }

    /// What the device is given instead of opening it.
    pub fn given(&self) -> Result<Vec<OwnedFd>, BenchError> {
        let socket = self.socket.as_ref().map(UnixStream::try_clone).transpose().map_err(io_error("socket"))?;
        Ok(socket.into_iter().map(OwnedFd::from).collect())
    }
}

/// How many queues the trace speaks of.
fn queues(trace: &Trace) -> u16 {
    let queue = |step: &Step| match step {
        Step::Kick(queue) | Step::Chain(queue, _) | Step::Back(queue, _) => *queue,
    };
    trace.steps.iter().map(queue).max().map_or(1, |last| last + 1)
}

/// The first eight bytes of the configuration space, as far as they are there.
fn first_number(trace: &Trace) -> u64 {
    trace.config.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A file of so many bytes that are not all alike, in the page cache.
fn filled(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let block: Vec<u8> = (0..PIECE).map(|at| (at / 512 + at) as u8).collect();
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(PIECE as u64);
        file.write_all(&block[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}

fn file(place: &Path) -> Result<PathBuf, BenchError> {
    let path = place.join("file");
    filled(&path, FILE as u64).map_err(io_error("file"))?;
    Ok(path)
}

/// As large as it was, within reason.
fn disk(trace: &Trace, place: &Path) -> Result<Value, BenchError> {
    let path = place.join("disk");
    let bytes = first_number(trace).saturating_mul(SECTOR).clamp(SECTOR, MOST_DISK);
    filled(&path, bytes).map_err(io_error("file for the disk"))?;
    let queues = queues(trace).min(MOST_DISK_QUEUES);
    Ok(json!({ "drive_id": "replay", "path_on_host": path, "num_queues": queues }))
}

/// A directory with a file in it.
fn share(place: &Path) -> Result<Value, BenchError> {
    let path = place.join("share");
    fs::create_dir(&path).map_err(io_error("directory to share"))?;
    filled(&path.join("data"), FILE as u64).map_err(io_error("file to share"))?;
    Ok(json!({ "volumes": [{ "name": "share", "path_on_host": path }] }))
}

/// A network whose other end sends each frame back.
fn network(trace: &Trace) -> Result<Stage, BenchError> {
    let (ours, theirs) = UnixStream::pair().map_err(io_error("socket"))?;
    let other = theirs.try_clone().map_err(io_error("socket"))?;
    at_the_other_end(move || echo(&theirs, &other))?;
    let pairs = (queues(trace) / 2).max(1);
    let mut interface = json!({ "iface_id": "replay", "user": {}, "num_queue_pairs": pairs });
    if let Some([a, b, c, d, e, f]) = trace.config.first_chunk() {
        interface["guest_mac"] = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}").into();
    }
    let keeps = (0..pairs).map(|pair| Kept::full(2 * pair)).collect();
    Ok(Stage { section: json!([interface]), keeps, socket: Some(ours), listeners: Vec::new() })
}

/// A socket with somebody who listens on each port that the guest has connected to, and takes all that it says.
fn vsock(trace: &Trace, place: &Path) -> Result<Stage, BenchError> {
    let mut listeners = Vec::new();
    for port in ports(trace) {
        let listener = UnixListener::bind(place.join(format!("vsock_{port}"))).map_err(io_error("socket"))?;
        listeners.push(listener.try_clone().map_err(io_error("socket"))?);
        at_the_other_end(move || {
            while let Ok((stream, _)) = listener.accept() {
                if at_the_other_end(move || take(&stream)).is_err() {
                    break;
                }
            }
        })?;
    }
    let cid = first_number(trace).clamp(3, u32::MAX.into());
    let section = json!({ "guest_cid": cid, "uds_path": place.join("vsock") });
    Ok(Stage { section, keeps: [0, 2].map(Kept::full).to_vec(), socket: None, listeners })
}

/// The ports that a guest's packets ask for a connection to (virtio 1.3, 5.10.6): as many as there are in a trace of usual size.
fn ports(trace: &Trace) -> BTreeSet<u32> {
    const MOST: usize = 64;
    const REQUEST: [u8; 2] = [1, 0];
    let wanted = trace.steps.iter().filter_map(|step| match step {
        Step::Chain(VSOCK_SENT, parts) => match parts.first() {
            Some(Part::Read { bytes, .. }) if bytes.get(30..32) == Some(&REQUEST) => bytes.get(20..24)?.try_into().ok(),
            _ => None,
        },
        _ => None,
    });
    wanted.map(u32::from_le_bytes).take(MOST).collect()
}

/// Does something on a thread of its own, which ends when what it has is closed.
fn at_the_other_end(work: impl FnOnce() + Send + 'static) -> Result<(), BenchError> {
    thread::Builder::new().name("other-end".into()).spawn(work).map(drop).map_err(io_error("thread"))
}

/// Until nobody sends any more.
fn echo(mut from: &UnixStream, mut to: &UnixStream) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
}

fn take(mut from: &UnixStream) {
    let mut piece = vec![0; PIECE];
    while let Ok(1..) = from.read(&mut piece) {}
}
