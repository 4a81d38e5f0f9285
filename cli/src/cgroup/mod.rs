//! A control group for the process of each microVM, and for what that starts: so that a guest, or a microVM's process that has gone wrong, takes
//! no more of the host than it was given (docs/sandbox.md).
//!
//! ```text
//! plan ─► listed beside the run directory ─► made ─► limits ─► the process is put into it ─► ends ─► removed
//!                         └── whoever finds the run directory without its holder removes it, too ─┘
//! ```
//!
//! Moving a process costs the host's kernel a grace period (8 ms where that was measured), which nobody waits for: it is done beside the
//! process's start, and before anything of an image runs. A quota is set right before that: until then the guest's own boot is what
//! runs, and nobody who takes half of a processor wants to wait twice as long for it. The process itself cannot change its group: it has
//! no path to it, nor to the list.
//!
//! - this file: one microVM's group;
//! - [`places`]: where it can be.

mod places;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use places::{ALL, Place, words};
pub use places::{Cgroups, Controller, Plan, Version};

use crate::rundir;
use crate::size::{Cpus, MIB};

/// Microseconds of the period in which a group has its processor time, the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// What a group may have beside its guest's RAM, MiB: the process's own memory, the kernel's for it (page tables, KVM's shadows of the
/// guest's), and page cache, which the kernel takes back before it refuses anything. An eighth of the RAM comes to that, for
/// tables grow with it.
const OVERHEAD_MIB: u64 = 128;
/// Most processes and threads: far more than devices' workers and the kernel's for io_uring, which are tens.
const MOST_TASKS: u64 = 512;
/// Shares (v1) and weight (v2) of one vCPU: those of one process that is in no group.
const SHARES: u64 = 1024;
const WEIGHT: u64 = 100;
/// The kernel's bounds for them.
const MOST_SHARES: u64 = 262_144;
const MOST_WEIGHT: u64 = 10_000;
/// How long a process that was killed may take to end: longer only where the host's kernel holds it.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// How often a group is tried to be made in one that others remove, or removed while processes end.
const TRIES: usize = 16;

/// What a microVM may take of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Number of its vCPUs.
    pub vcpus: u8,
    /// Its memory.
    pub memory_mib: u64,
    /// Processor time, if that is less than its vCPUs could take.
    pub quota: Option<Cpus>,
}

impl Limits {
    fn memory_bytes(self) -> u64 {
        let mib = self.memory_mib.saturating_add(self.memory_mib / 8 + OVERHEAD_MIB);
        // A snapshot's record may say anything.
        mib.saturating_mul(MIB).min(i64::MAX as u64)
    }
}

/// A quota that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "--cpus {cpus}: this host gives no CPU quota ({reason}), and a part of a CPU needs one; use a whole number, or see `bulkhead doctor` (cgroup)"
)]
pub struct NoQuota {
    cpus: Cpus,
    reason: String,
}

/// The group of one microVM's process: one for each hierarchy. Removing it is its owner's business.
#[derive(Debug, Default)]
pub struct Group {
    parts: Vec<Place>,
    /// What it lacks, and why.
    lacking: Vec<(Controller, String)>,
}

impl Group {
    /// Makes the group of process `pid`, which lives in the run directory `run`, and puts the process into it; its quota it gets by
    /// [`Group::hold_to`]. What the host does not give is missing then.
    pub fn make(run: &Path, pid: u32, limits: Limits) -> Self {
        Self::make_by(&Cgroups::here().plan(), run, pid, limits)
    }

    fn make_by(plan: &Plan, run: &Path, pid: u32, limits: Limits) -> Self {
        let name = format!("{}.{pid}", run.file_name().unwrap_or_default().to_string_lossy());
        let mut group = Group { parts: Vec::new(), lacking: plan.lacking.clone() };
        let parts: Vec<_> =
            plan.places.iter().map(|place| Place { dir: place.group(&name), ..place.clone() }).collect();
        let dirs: Vec<_> = parts.iter().map(|part| part.dir.clone()).collect();
        let make_all = || plan.places.iter().zip(&dirs).map(|(place, dir)| make(place, dir)).collect::<Vec<_>>();
        match rundir::with_groups(run, &dirs, make_all) {
            Ok(made) => parts.into_iter().zip(made).for_each(|(part, made)| group.furnish(part, made, pid, limits)),
            Err(error) => parts.iter().for_each(|part| group.lacks_all_of(part, &error)),
        }
        group
    }

    /// Limits a part of it that has been made, if it has, and puts the process there.
    fn furnish(&mut self, part: Place, made: io::Result<()>, pid: u32, limits: Limits) {
        if let Err(error) = made {
            return self.lacks_all_of(&part, &error);
        }
        for controller in &part.controllers {
            if let Err(error) = limit(part.version, *controller, &part.dir, limits) {
                self.lacking.push((*controller, format!("{}: {error}", part.dir.display())));
            }
        }
        match fs::write(part.dir.join("cgroup.procs"), pid.to_string()) {
            // One that has ended needs no limits.
            Err(error) if Errno::from_io_error(&error) != Some(Errno::SRCH) => self.lacks_all_of(&part, &error),
            _ => {}
        }
        self.parts.push(part);
    }

    fn lacks_all_of(&mut self, part: &Place, error: &dyn std::error::Error) {
        let reason = format!("{}: {error}", part.dir.display());
        self.lacking.extend(part.controllers.iter().map(|controller| (*controller, reason.clone())));
    }

    /// What the host did not give, one line for people. None: it gave all.
    pub fn missing(&self) -> Option<String> {
        missing(&self.lacking)
    }

    /// From now on it has this quota, if that is one.
    ///
    /// # Errors
    /// It cannot have it.
    pub fn hold_to(&self, quota: Option<Cpus>) -> Result<(), NoQuota> {
        check_quota(&self.lacking, quota)?;
        let Some(cpus) = quota else { return Ok(()) };
        set_quota(&self.parts, quota).map_err(|error| NoQuota { cpus, reason: error.to_string() })
    }

    /// Ends what is left in it, and removes it.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self) -> io::Result<()> {
        self.parts.iter().try_for_each(|part| remove(&part.dir))
    }
}

/// A group that a process is put into by a thread of its own.
#[derive(Debug)]
pub enum Grouping {
    /// It is put into it.
    UnderWay(JoinHandle<Group>),
    /// It is in it.
    Done(Group),
}

impl Default for Grouping {
    fn default() -> Self {
        Grouping::Done(Group::default())
    }
}

impl Grouping {
    /// Begins with that: see [`Group::make`].
    ///
    /// # Errors
    /// There is no thread.
    pub fn begin(run: PathBuf, pid: u32, limits: Limits) -> io::Result<Self> {
        let thread = thread::Builder::new().name("cgroup".into()).spawn(move || Group::make(&run, pid, limits))?;
        Ok(Grouping::UnderWay(thread))
    }

    /// The group, which the process is in by then.
    pub fn wait(&mut self) -> &Group {
        *self = match std::mem::take(self) {
            // It does not panic.
            Grouping::UnderWay(thread) => Grouping::Done(thread.join().unwrap_or_default()),
            done @ Grouping::Done(_) => done,
        };
        match self {
            Grouping::Done(group) => group,
            Grouping::UnderWay(_) => unreachable!("it has been waited for"),
        }
    }
}

/// That a microVM with this quota can be had here.
///
/// # Errors
/// It cannot.
pub fn check(quota: Option<Cpus>) -> Result<(), NoQuota> {
    if quota.is_none() { Ok(()) } else { check_quota(&Cgroups::here().plan().lacking, quota) }
}

fn check_quota(lacking: &[(Controller, String)], quota: Option<Cpus>) -> Result<(), NoQuota> {
    let Some(cpus) = quota else { return Ok(()) };
    match lacking.iter().find(|(controller, _)| *controller == Controller::Cpu) {
        Some((_, reason)) => Err(NoQuota { cpus, reason: reason.clone() }),
        None => Ok(()),
    }
}

/// What a group lacks, in one line.
pub fn missing(lacking: &[(Controller, String)]) -> Option<String> {
    let names: Vec<_> = lacking.iter().map(|(controller, _)| controller.name()).collect();
    let (_, reason) = lacking.first()?;
    Some(format!("a control group that limits {}: {reason}", names.join(", ")))
}

/// What the group of a microVM's process that runs lacks, in one line.
pub fn missing_of(pid: u32) -> Option<String> {
    let cgroups = Cgroups::here();
    let places = cgroups.groups_of(pid);
    let is_there = |controller: &Controller| places.iter().any(|place| place.controllers.contains(controller));
    let reasons = cgroups.plan().lacking;
    let lacking = Controller::WANTED.into_iter().filter(|one| !is_there(one)).map(|one| {
        let reason = reasons.iter().find(|(controller, _)| *controller == one);
        (one, reason.map_or_else(|| "it is in none".to_owned(), |(_, reason)| reason.clone()))
    });
    missing(&lacking.collect::<Vec<_>>())
}

/// Gives the process of a microVM that runs this quota instead of the one that it has, or none.
///
/// # Errors
/// It is in no group for that, or the kernel's answer.
pub fn change_quota(pid: u32, quota: Option<Cpus>) -> io::Result<()> {
    let parts = Cgroups::here().groups_of(pid);
    // Where nothing limits it, there is nothing to lift.
    if quota.is_none() && parts.iter().all(|part| !part.controllers.contains(&Controller::Cpu)) {
        return Ok(());
    }
    set_quota(&parts, quota)
}

fn set_quota(parts: &[Place], quota: Option<Cpus>) -> io::Result<()> {
    let part = parts.iter().find(|part| part.controllers.contains(&Controller::Cpu));
    let part = part.ok_or_else(|| {
        io::Error::other("its process is in no control group that limits cpu; see `bulkhead doctor` (cgroup)")
    })?;
    let us = quota.map(|cpus| u64::from(cpus.thousandths()) * PERIOD_US / 1000);
    match part.version {
        Version::V1 => set(&part.dir, "cpu.cfs_quota_us", us.map_or("-1".into(), |us| us.to_string())),
        Version::V2 => {
            set(&part.dir, "cpu.max", format!("{} {PERIOD_US}", us.map_or("max".into(), |us| us.to_string())))
        }
    }
}

/// Makes one group.
fn make(place: &Place, dir: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        if place.version == Version::V2 {
            distribute(place)?;
        }
        match fs::create_dir(dir) {
            // One that was killed may have left it, and its number is another's now.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_dir(dir)?,
            // Who has removed the last one of all has removed the group of all.
            Err(error) if error.kind() == io::ErrorKind::NotFound && place.version == Version::V2 => {}
            result => return result,
        }
    }
    Err(Errno::BUSY.into())
}

/// Has the groups below that of all microVMs get their controllers, as far as they can. What they do not get is told when a limit
/// cannot be set.
fn distribute(place: &Place) -> io::Result<()> {
    let all = place.dir.join(ALL);
    enable(place, &place.dir);
    match fs::create_dir(&all) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    let processors = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let _ = set(&all, "cpu.weight", (WEIGHT * processors).min(MOST_WEIGHT));
    enable(place, &all);
    Ok(())
}

fn enable(place: &Place, dir: &Path) {
    const FILE: &str = "cgroup.subtree_control";
    let has = words(dir, FILE);
    let wanted = place.controllers.iter().map(|one| one.name()).filter(|name| !has.iter().any(|has| has == name));
    let wanted: Vec<_> = wanted.map(|name| format!("+{name}")).collect();
    if !wanted.is_empty() && set(dir, FILE, wanted.join(" ")).is_err() {
        // All or nothing is the kernel's way.
        wanted.iter().for_each(|one| drop(set(dir, FILE, one)));
    }
}

/// Limits what one controller does, but for a quota.
fn limit(version: Version, controller: Controller, dir: &Path, limits: Limits) -> io::Result<()> {
    let vcpus = u64::from(limits.vcpus.max(1));
    match (version, controller) {
        (Version::V1, Controller::Cpu) => set(dir, "cpu.shares", (SHARES * vcpus).min(MOST_SHARES)),
        (Version::V2, Controller::Cpu) => set(dir, "cpu.weight", (WEIGHT * vcpus).min(MOST_WEIGHT)),
        (Version::V1, Controller::Memory) => set(dir, "memory.limit_in_bytes", limits.memory_bytes()),
        (Version::V2, Controller::Memory) => set(dir, "memory.max", limits.memory_bytes()),
        (_, Controller::Pids) => set(dir, "pids.max", MOST_TASKS),
        (version, Controller::Io) => {
            share_disks(version, dir, vcpus);
            Ok(())
        }
    }
}

/// The group's weight with schedulers of disks that know one: BFQ has another name and other bounds for it than io.cost. The others take
/// requests of all as they come, whatever stands here.
fn share_disks(version: Version, dir: &Path, vcpus: u64) {
    const MOST_BFQ: u64 = 1000;
    let weight = WEIGHT * vcpus;
    let files: &[(&str, u64)] = match version {
        Version::V1 => &[("blkio.bfq.weight", MOST_BFQ)],
        Version::V2 => &[("io.weight", MOST_WEIGHT), ("io.bfq.weight", MOST_BFQ)],
    };
    for (file, most) in files {
        let _ = set(dir, file, weight.min(*most));
    }
}

fn set(dir: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let path = dir.join(file);
    let value = value.to_string();
    fs::write(&path, &value).map_err(|error| io::Error::new(error.kind(), format!("{file} = {value}: {error}")))
}

/// Removes a group that a microVM's process was in, whoever made it, and kills what is still in it: nobody else puts anything there, but for
/// KVM, whose thread for a machine ends with that.
///
/// # Errors
/// It is still there, `ResourceBusy` if with a process that does not end.
pub fn remove(dir: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        match fs::remove_dir(dir) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => end_all(dir)?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return forget_all(dir),
        }
    }
    Err(busy(dir))
}

/// The group of all microVMs goes with the last one.
fn forget_all(dir: &Path) -> io::Result<()> {
    if let Some(all) = dir.parent().filter(|parent| parent.ends_with(ALL)) {
        // Others may have theirs in it.
        let _ = fs::remove_dir(all);
    }
    Ok(())
}

fn busy(dir: &Path) -> io::Error {
    let text = format!("{}: there is a process in this control group that does not end", dir.display());
    io::Error::new(io::ErrorKind::ResourceBusy, text)
}

/// Kills what is in a group, and waits for its end.
fn end_all(dir: &Path) -> io::Result<()> {
    const PROCESSES: &str = "cgroup.procs";
    for word in words(dir, PROCESSES) {
        let pid = word.parse().ok().and_then(Pid::from_raw);
        let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        // The number may have become another's before it was opened, but not since.
        if !words(dir, PROCESSES).contains(&word) {
            continue;
        }
        let _ = pidfd_send_signal(&process, Signal::KILL);
        loop {
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE)) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err(busy(dir)),
                _ => break,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
