//! What disks and networks give: the program of [`mover`](crate::mover) in an instance of each arm, which has
//!
//! - files of its own on a disk, as an instance has that stays: an overlay's upper directory, or a microVM's second disk;
//! - a volume, which is a directory of the host: a bind mount, or a share;
//! - a network, as its users get it, by which it reaches this host.
//!
//! An arm that cannot have the network has the rest without.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::arm::{Arm, Instance};
use super::order::turns;
use super::rows::{Entry, Session};
use super::running::{Input, Patience, Running};
use super::{PREFIX, Process};
use crate::mover::{Order, Peer, parse};
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::report::estimate::ENOUGH;
use crate::report::metric::{Kind, metric};

/// Where the volume is in an instance, with the program in it.
pub(super) const VOLUME: &str = "/bulkhead-bench";
/// The program's name there.
const PROGRAM: &str = "bulkhead";
/// What the rows of it all begin with.
const ROWS: [&str; 3] = ["disk-", "volume-", "net-"];
/// Bytes of a sample of speed, to files and through the network. The few are for where guests' kernels are emulated, which makes a second or two
/// of them, and for who wants too few samples to tell anything.
const BYTES: [u64; 2] = [16 << 20, 16 << 20];
const FEW_BYTES: [u64; 2] = [1 << 20, 256 << 10];
/// Instances of an arm, at most; each gives one sample of each kind. How many times as long as a run one takes, about, and the part of an
/// arm's time for all of them.
const INSTANCES: usize = 12;
const RUNS: u32 = 4;
const PART: u32 = 2;

/// What an instance is to do, and with what.
pub(super) struct Errand<'a> {
    /// The volume, on the host.
    pub volume: &'a Path,
    /// An empty directory of the host, for this instance alone.
    pub own: &'a Path,
    /// It has a network.
    pub network: bool,
    pub patience: Patience<'a>,
    order: Order,
}

impl Errand<'_> {
    /// The words that do it where the volume is at `volume`, and files of its own are below `own`.
    pub fn words(&self, volume: &Path, own: &Path) -> Vec<String> {
        let files = vec![("disk".into(), own.to_owned()), ("volume".into(), volume.to_owned())];
        let order = Order { files, ..self.order.clone() };
        // Paths that are no UTF-8 are none of ours.
        let order = serde_json::to_string(&order).unwrap_or_default();
        let program = volume.join(PROGRAM).display().to_string();
        vec![program, "bench".into(), "move".into(), order]
    }
}

/// How the program runs everywhere: whoever an image's user is, it can write where it is to.
pub(super) fn process() -> Process {
    Process { cwd: "/".into(), ..Process::default() }
}

/// What all instances have in common.
struct Ground {
    place: Place,
    peer: Option<(Peer, std::net::SocketAddr)>,
    order: Order,
}

impl Ground {
    fn new(program: &Path, [bytes, net_bytes]: [u64; 2]) -> Result<Self, BenchError> {
        let place = Place::new()?;
        let volume = place.path().join("volume");
        let copy = || {
            fs::create_dir(&volume)?;
            fs::copy(program, volume.join(PROGRAM))?;
            fs::set_permissions(volume.join(PROGRAM), Permissions::from_mode(0o755))
        };
        copy().map_err(io_error("volume"))?;
        // Without a way out there is no network for anybody.
        let peer = Peer::listen().and_then(|peer| Ok((peer.address()?, peer)));
        let peer = peer.ok().map(|(address, peer)| (peer, address));
        let order = Order { files: Vec::new(), name: String::new(), peer: None, bytes, net_bytes };
        Ok(Ground { place, peer, order })
    }

    fn order(&self, id: &str, network: bool) -> Order {
        let peer = self.peer.as_ref().filter(|_| network).map(|(peer, address)| (*address, peer.number()));
        Order { name: format!("{id}.data"), peer, ..self.order.clone() }
    }
}

impl Session<'_> {
    /// Disks and networks, of the arms that have some of their own.
    pub(super) fn moves(&mut self) -> Result<(), BenchError> {
        let emulated = self.document.host.emulates_guest_kernels();
        let few = emulated || self.what.samples < ENOUGH;
        let bytes = if few { FEW_BYTES } else { BYTES };
        let ground = match Ground::new(self.what.bulkhead, bytes) {
            Ok(ground) => ground,
            Err(error) => {
                self.document.notes.push(format!("no rows for disks and networks: {error}"));
                return Ok(());
            }
        };
        self.note_moves(&ground, bytes);
        let mut networks = vec![ground.peer.is_some(); self.entries.len()];
        let most = self.what.samples.min(INSTANCES);
        for turn in turns(&self.shares(most, RUNS, self.what.budget / PART), &mut self.random) {
            let Entry { kind, arm, .. } = &self.entries[turn];
            let kind = *kind;
            (self.what.say)(&format!("disks and networks: {}", kind.name));
            let mut done = self.errand(&**arm, &ground, networks[turn]);
            if let Err(error) = done {
                if !networks[turn] || matches!(error, BenchError::Interrupted) {
                    self.judge(kind, "disks", error)?;
                    continue;
                }
                self.judge(kind, "network", error)?;
                networks[turn] = false;
                let Entry { arm, .. } = &self.entries[turn];
                done = self.errand(&**arm, &ground, false);
            }
            match done {
                Ok(said) => self.take(kind, &said)?,
                Err(error) => self.judge(kind, "disks", error)?,
            }
        }
        Ok(())
    }

    /// One instance, and what its program says; nothing of an arm without disks of its own.
    fn errand(&self, arm: &dyn Arm, ground: &Ground, network: bool) -> Result<String, BenchError> {
        let id = format!("{PREFIX}{}-{}", std::process::id(), self.next());
        let own = ground.place.path().join(&id);
        fs::create_dir(&own).map_err(io_error("directory"))?;
        let (volume, order) = (ground.place.path().join("volume"), ground.order(&id, network));
        let errand = Errand { volume: &volume, own: &own, network, patience: self.patience, order };
        let Some(command) = arm.errand(&id, &errand)? else { return Ok(String::new()) };
        let said = run(command, id, arm, self.patience);
        // What cannot be removed now goes with all of it.
        let _ = fs::remove_dir_all(&own);
        said
    }

    fn take(&mut self, kind: &'static Kind, said: &str) -> Result<(), BenchError> {
        for line in said.lines() {
            let parsed = parse(line).and_then(|(row, sample)| {
                let known = metric(row).filter(|_| ROWS.iter().any(|begin| row.starts_with(begin)));
                Ok((known.ok_or_else(|| format!("there is no row '{row}'"))?, sample))
            });
            match parsed {
                Ok((row, sample)) => self.document.add(kind.name, row.key, &[sample]),
                Err(problem) => self.judge(kind, "disks and networks", BenchError::Container(problem))?,
            }
        }
        Ok(())
    }

    fn note_moves(&mut self, ground: &Ground, bytes: [u64; 2]) {
        let mut notes = vec![format!(
            "a sample of disk-* and volume-* is of {} KiB, of net-* {} KiB, by a program of ours within; vm-warm then is without --rm: its files are on a disk, not in memory",
            bytes[0] >> 10,
            bytes[1] >> 10
        )];
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        if device(ground.place.path()) != device(self.what.store) {
            notes.push(
                "temporary files and Bulkhead's store are on different file systems: so are the arms' disks".into(),
            );
        }
        if ground.peer.is_none() {
            notes.push("no rows for networks: this host has no way out, and so has nobody here".into());
        }
        self.document.notes.append(&mut notes);
    }
}

fn run(command: Command, id: String, arm: &dyn Arm, patience: Patience<'_>) -> Result<String, BenchError> {
    let mut instance = Instance { running: Some(Running::start(command, Input::Nothing)?), id, arm };
    let Some(running) = instance.running.take() else { return Err(BenchError::NoRuns) };
    let ended = running.end(patience);
    arm.clear(&instance.id);
    let ended = ended?.good("the program that moves data")?;
    Ok(String::from_utf8_lossy(&ended.seen.stdout).into_owned())
}

/// For an overlay over nothing below `own`: its options for mount(8).
pub(super) fn overlay(own: &Path) -> Result<Vec<String>, BenchError> {
    let part = |name: &str| -> Result<String, BenchError> {
        let dir: PathBuf = own.join(name);
        fs::create_dir(&dir).map_err(io_error("directory"))?;
        Ok(dir.display().to_string())
    };
    let (lower, upper, work) = (part("lower")?, part("upper")?, part("work")?);
    Ok(vec![format!("lowerdir={lower}"), format!("upperdir={upper}"), format!("workdir={work}")])
}
