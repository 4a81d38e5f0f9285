//! One image's command as a bare process, in containers and in microVMs: the same files, the same words, in turns, on this host.
//!
//! | module | what it does |
//! |---|---|
//! | `arm` | what is compared, seen alike |
//! | `bare`, `oci`, `engine`, `vm`, `pool`, `monitors` | the arms |
//! | `running` | processes timed from outside |
//! | `tree` | processes of an instance, memory, files |
//! | `rows` | what is measured of each arm |
//! | `moving`, `wire` | what disks and networks give, and a network for those who have none |
//! | `fleet` | how many there can be |
//! | `order` | which arm has its turn when |
//! | `notes` | what follows from what was measured |
//! | [`audit`] | what a workload can reach in them |
//!
//! An arm that cannot be used is named with the reason. What is measured when it is told to stop is kept. Nothing of an arm stays: not
//! the instances, which are killed, and not the files, which are in a directory that goes.

mod arm;
pub mod audit;
mod bare;
pub mod bundle;
pub mod conformance;
mod engine;
mod fleet;
mod idle;
pub mod monitors;
mod moving;
mod notes;
mod oci;
mod order;
mod pool;
mod rows;
mod running;
mod tree;
mod vm;
mod wire;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::report::metric::{ARMS, Kind, VARIANTS};
use crate::report::objective::Objective;
use crate::report::{self, Document};
use arm::{Made, Making};
use rows::Session;
use running::Patience;

/// What the names of instances and of prepared images begin with; then comes the id of the process that made them.
const PREFIX: &str = "bulkhead-bench-";

/// The image's process, but for what it runs.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

/// Which arms, and how much is measured of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scope {
    /// Containers and microVMs: all rows.
    Arms,
    /// MicroVMs with one thing switched at a time: times and memory.
    Variants,
    /// Containers and microVMs: how many there can be at a time.
    Fleets(Fleet),
}

/// Until when idle instances are added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fleet {
    /// What their starts are to stay within.
    pub objective: Objective,
    /// No more than these.
    pub most: usize,
}

impl Scope {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Scope::Arms | Scope::Fleets(_) => &ARMS,
            Scope::Variants => &VARIANTS,
        }
    }
}

/// What to compare, and how.
pub struct What<'a> {
    /// Which arms.
    pub scope: Scope,
    /// The program `bulkhead`.
    pub bulkhead: &'a Path,
    /// Its version.
    pub version: &'a str,
    /// Its store.
    pub store: &'a Path,
    /// The image, as `bulkhead run` takes it.
    pub image: &'a str,
    /// What it takes on disk as layers, KiB.
    pub image_kib: u64,
    /// Writes its files into an empty directory, or says why that cannot be.
    pub unpack: &'a dyn Fn(&Path) -> Result<(), String>,
    /// How its process is to run.
    pub process: Process,
    /// What its process is for the times: it says something, and ends by itself with 0.
    pub command: &'a [String],
    /// Names of arms; none: all of the scope, but for other monitors.
    pub arms: &'a [&'static str],
    /// Other monitors, by the names of their arms: where they are.
    pub monitors: &'a [(&'static str, PathBuf)],
    /// What bare microVMs are made of, or why there are none.
    pub machine: &'a dyn Fn() -> Result<monitors::Machine, String>,
    /// Names of groups of rows; none: all of them.
    pub rows: &'a [&'static str],
    /// Samples of the times of each arm.
    pub samples: usize,
    /// How long those of one arm may take: a slower arm has fewer.
    pub budget: Duration,
    /// Instances at a time for the memory.
    pub instances: usize,
    /// What one instance may take to do its work.
    pub timeout: Duration,
    /// Of the order and the intervals.
    pub seed: u64,
    /// Memory to calculate the density for, and that a fleet may have, MiB.
    pub memory_mib: u64,
    /// When it begins: UTC, RFC 3339.
    pub began: String,
    /// Readable: stop, and tell what has been measured.
    pub stop: BorrowedFd<'a>,
    /// Is told what happens.
    pub say: &'a dyn Fn(&str),
}

impl What<'_> {
    /// Whether an arm is to be there.
    fn wants(&self, kind: &Kind) -> bool {
        let given = kind.monitor && self.monitors.iter().any(|(name, _)| *name == kind.name);
        // Bulkhead's own is there beside others.
        let beside = kind.name == "vm-boot" && !self.monitors.is_empty();
        given || beside || self.arms.contains(&kind.name) || self.arms.is_empty() && !kind.monitor
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Whether there is a process of that id; what is no id is left alone.
fn is_alive(pid: &str) -> bool {
    pid.parse::<u32>().map_or(true, |pid| Path::new("/proc").join(pid.to_string()).exists())
}

/// Measures. If it is told to stop, what there is comes back, marked as interrupted.
///
/// # Errors
/// The image cannot be unpacked, or there is nothing to compare.
pub fn run(what: &What<'_>) -> Result<Document, BenchError> {
    if what.samples == 0 || what.instances == 0 {
        return Err(BenchError::NoRuns);
    }
    let began = Instant::now();
    let mut document = Document::new(Host::here());
    document.began.clone_from(&what.began);
    document.image = what.image.to_owned();
    document.command = what.command.to_vec();
    (document.asked, document.budget_s) = (what.samples, what.budget.as_secs());
    (document.instances, document.seed, document.memory_mib) = (what.instances, what.seed, what.memory_mib);
    match measure(what, &mut document) {
        Err(BenchError::Interrupted) => document.interrupted = true,
        other => other?,
    }
    if what.scope == Scope::Arms {
        notes::compute(&mut document);
    }
    document.host.done();
    notes::note(&mut document, what.scope);
    document.took_s = began.elapsed().as_secs_f64();
    Ok(document)
}

fn measure(what: &What<'_>, document: &mut Document) -> Result<(), BenchError> {
    let patience = Patience { limit: what.timeout, stop: what.stop };
    let place = Place::new()?;
    let root = place.path().join("root");
    std::fs::create_dir(&root).map_err(io_error("temporary directory"))?;
    if what.scope != Scope::Variants {
        (what.say)("unpacking the image");
        (what.unpack)(&root).map_err(BenchError::Container)?;
    }
    vm::sweep(what, patience)?;
    let making = Making { what, place: &place, root: &root, patience };
    let mut session = Session::new(what, patience, document);
    for kind in what.scope.kinds().iter().filter(|kind| what.wants(kind)) {
        (what.say)(&format!("preparing {}", kind.name));
        let made = make(kind, &making);
        session.check_stop()?;
        session.admit(kind, made)?;
    }
    if session.is_empty() {
        let reasons =
            session.document.arms.iter().filter_map(|arm| Some(format!("{}: {}", arm.name, arm.problem.as_ref()?)));
        return Err(BenchError::Container(format!("no arm can be used: {}", reasons.collect::<Vec<_>>().join("; "))));
    }
    session.all()
}

fn make(kind: &Kind, making: &Making<'_>) -> Result<Made, String> {
    match kind.name {
        "process" => bare::make(making),
        "runc" | "crun" => oci::make(kind.name, making),
        "podman" | "docker" => engine::make(kind.name, making),
        _ if kind.monitor => monitors::make(kind.name, making),
        _ => vm::make(kind.name, making),
    }
}

/// For the document.
fn described(kind: &Kind, version: Option<String>, problem: Option<String>) -> report::Arm {
    report::Arm { name: kind.name.into(), what: kind.what.into(), version, problem }
}
