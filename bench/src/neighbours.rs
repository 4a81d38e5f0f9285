//! What a microVM notices of its neighbours: one that answers questions, alone and beside others that take all they can get.
//!
//! ```text
//! the measured one:  question ──► (work) ──► answer        over and over, from the first round to the last
//! beside it:         nothing │ idle │ spin │ serial │ kicks │ disk       in turns, each kind started anew and ended
//!                    and processes that do the like                      what the same share is worth without microVMs
//! ```
//!
//! Each is a microVM's process as users have it, in a control group of its own, which whoever calls this makes. All are alike and have
//! one vCPU, so each is entitled to an equal share of the processors, and to no more than one: what wants a time t of a processor may take t
//! by that share. How much of a processor work has had is asked of the host's scheduler, since processors are slower when others are
//! busy, which is no matter of shares. The guests run in ring 3 (package `bench-guest`), so that no emulation of a kernel is measured.
//!
//! What is written durably goes by way of the host's own file system, which has no shares unless its scheduler knows groups: that
//! is measured, too, by a process of the host.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bench_guest::WORK_SHIFT;
use serde::Serialize;
use vmm::events::{Event, Phase};

use crate::answer::{Host, ask};
use crate::disturb::Way;
use crate::guest;
use crate::machine::failed;
use crate::place::Place;
use crate::process::{BenchError, Child, Monitor, io_error, start, words};
use crate::stats::{Summary, summarise};

/// What neighbours are.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// There are none.
    None,
    /// MicroVMs whose guests wait for what never comes.
    Idle,
    /// MicroVMs whose guests do what is called this.
    Flood(&'static str),
    /// Processes of the host that do this, in this program.
    Process(Way),
}

/// What neighbours do.
const KINDS: [(&str, Kind); 9] = [
    ("none", Kind::None),
    ("idle", Kind::Idle),
    ("computing", Kind::Flood("spin")),
    ("writing to the console", Kind::Flood("serial")),
    ("kicking a device", Kind::Flood("kicks")),
    ("writing to a disk", Kind::Flood("disk")),
    ("processes, computing", Kind::Process(Way::Compute)),
    ("processes, waking a thread", Kind::Process(Way::Wake)),
    ("processes, writing to a file", Kind::Process(Way::Write)),
];
/// Has a program end with this process, whatever becomes of that.
const WITH_PARENT: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];
/// Memory of each, MiB.
pub const MEMORY_MIB: u64 = 16;
/// Bytes of a neighbour's disk: more than a host's device takes while it is measured.
const DISK: u64 = 1 << 30;
/// How long the measured work takes alone: some time slices of a host's scheduler.
const WORK: Duration = Duration::from_millis(10);
/// The guest that waits for what never comes.
const IDLE: &str = "idle";
/// Of each round, and beside neighbours of each kind.
const QUESTIONS: usize = 100;
const WORKS: usize = 20;
const WRITES: usize = 20;
/// Bytes of a durable write.
const PAGE: usize = 4096;

/// What a microVM's process is held by: dropped, it is gone.
pub type Hold = Box<dyn std::any::Any>;

/// What to measure.
pub struct What<'a> {
    /// How many neighbours there are.
    pub neighbours: usize,
    /// Processors of the host.
    pub processors: usize,
    /// Where disks are, and what is written durably.
    pub dir: &'a Path,
    /// Puts a microVM's process into a control group of its own.
    pub group: &'a mut dyn FnMut(u32) -> Result<Hold, BenchError>,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Rounds.
    pub rounds: usize,
    /// Neighbours at a time.
    pub neighbours: usize,
    /// Processors of the host.
    pub processors: usize,
    /// The most that [`Row::ratio`] may be, by the measured one's share of the processors.
    pub share: f64,
    /// One for each kind of neighbours; the first is of none.
    pub rows: Vec<Row>,
}

/// Beside neighbours of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What they do.
    pub neighbours: &'static str,
    /// Question to answer, without work.
    pub answer: Summary,
    /// With work.
    pub work: Summary,
    /// A durable write by a process of the host.
    pub write: Summary,
    /// How many times as long all work took as a processor was at it. Of all, not the median: whoever shares a processor with one
    /// neighbour takes twice as long, and nothing longer while it has one for itself.
    pub ratio: f64,
}

/// Measures each kind of neighbours `rounds` times, in turns.
pub fn run(monitor: Monitor<'_>, what: What<'_>, rounds: usize) -> Result<Report, BenchError> {
    if rounds == 0 {
        return Err(BenchError::NoRuns);
    }
    let place = Place::within(what.dir)?;
    let kernel = place.path().join("guest");
    fs::write(&kernel, guest::ANSWER).map_err(io_error("guest"))?;
    fs::write(place.path().join(IDLE), guest::elf(guest::HALT)).map_err(io_error("guest"))?;
    let mut measured = Measured::start(monitor, &kernel, place.path(), what.group)?;
    let steps = measured.calibrate()?;
    let mut times: [Times; KINDS.len()] = Default::default();
    for _ in 0..rounds {
        for ((_, kind), times) in KINDS.iter().zip(&mut times) {
            let number = if matches!(kind, Kind::None) { 0 } else { what.neighbours };
            let start = |index| Neighbour::start(monitor, &kernel, place.path(), index, *kind, what.group);
            let neighbours = (0..number).map(start).collect::<Result<Vec<_>, _>>()?;
            measured.measure(steps, times)?;
            neighbours.into_iter().try_for_each(Neighbour::end)?;
        }
    }
    let rows = report(&times).ok_or(BenchError::NoRuns)?;
    let (neighbours, processors) = (what.neighbours, what.processors);
    Ok(Report { rounds, neighbours, processors, share: share(neighbours, processors), rows })
}

/// How many times as long as alone one of `1 + neighbours` may compute, which share so many processors evenly.
fn share(neighbours: usize, processors: usize) -> f64 {
    ((1 + neighbours) as f64 / processors.max(1) as f64).max(1.0)
}

#[derive(Default)]
struct Times {
    answers: Vec<Duration>,
    works: Vec<Duration>,
    /// How long a processor was at all of it.
    worked: Duration,
    writes: Vec<Duration>,
}

fn report(times: &[Times]) -> Option<Vec<Row>> {
    let row = |((neighbours, _), times): (&(&'static str, _), &Times)| {
        let work = summarise(&times.works)?;
        let (answer, write) = (summarise(&times.answers)?, summarise(&times.writes)?);
        let took: Duration = times.works.iter().sum();
        Some(Row { neighbours, answer, work, write, ratio: took.as_secs_f64() / times.worked.as_secs_f64().max(1e-9) })
    };
    KINDS.iter().zip(times).map(row).collect()
}

/// A process in its group. Dropped, it is killed.
struct Process {
    child: Child,
    _hold: Hold,
}

impl Process {
    fn start(
        monitor: Monitor<'_>,
        config: &serde_json::Value,
        group: &mut dyn FnMut(u32) -> Result<Hold, BenchError>,
    ) -> Result<Self, BenchError> {
        Self::hold(start(monitor, &config.to_string())?, group)
    }

    fn hold(mut child: Child, group: &mut dyn FnMut(u32) -> Result<Hold, BenchError>) -> Result<Self, BenchError> {
        match group(child.id()) {
            Ok(hold) => Ok(Process { child, _hold: hold }),
            Err(error) => {
                child.end();
                Err(error)
            }
        }
    }

    /// Waits until its guest runs.
    fn runs(&mut self) -> Result<(), BenchError> {
        let events = self.child.stdout.as_mut().map(BufReader::new);
        for line in events.into_iter().flat_map(BufRead::lines) {
            let line = line.map_err(io_error("events of the monitor"))?;
            if matches!(serde_json::from_str(&line), Ok(Event::Phase { phase: Phase::Run, .. })) {
                return Ok(());
            }
        }
        Err(self.last_words("its guest does not run"))
    }

    /// For a process that ends, or has.
    fn last_words(&mut self, otherwise: &str) -> BenchError {
        self.child.kill();
        let mut said = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = std::io::Read::read_to_end(stderr, &mut said);
        }
        words(failed(otherwise), &said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.end();
    }
}

/// The one that is measured.
struct Measured {
    stream: UnixStream,
    file: File,
    process: Process,
}

impl Measured {
    fn start(
        monitor: Monitor<'_>,
        kernel: &Path,
        dir: &Path,
        group: &mut dyn FnMut(u32) -> Result<Hold, BenchError>,
    ) -> Result<Self, BenchError> {
        let (uds, path) = (dir.join("v"), dir.join("written"));
        let file = File::create(path).map_err(io_error("file to write to"))?;
        let host = Host::bind(&uds)?;
        let config = serde_json::json!({
            "boot-source": { "kernel_image_path": kernel },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
            "vsock": { "guest_cid": 3, "uds_path": uds },
        });
        let process = Process::start(monitor, &config, group)?;
        let stream = host.accept(Some(process.child.pidfd()))?;
        Ok(Measured { stream, file, process })
    }

    /// How many steps take as long as [`WORK`].
    fn calibrate(&mut self) -> Result<u64, BenchError> {
        let mut steps = 1 << 16;
        loop {
            // The best of some: others may be at work.
            let times = (0..5).map(|_| self.work(steps)).collect::<Result<Vec<_>, _>>()?;
            let least = times.into_iter().min().unwrap_or(WORK).max(Duration::from_micros(1));
            if least >= WORK / 2 || steps >= u64::from(u32::MAX / 4) {
                return Ok((steps as f64 * WORK.as_secs_f64() / least.as_secs_f64()) as u64);
            }
            steps *= 2;
        }
    }

    fn work(&mut self, steps: u64) -> Result<Duration, BenchError> {
        let began = Instant::now();
        ask(&mut self.stream, steps.min(u32::MAX.into()) << WORK_SHIFT)?;
        Ok(began.elapsed())
    }

    /// How long its vCPU, which is the process's first thread, has had a processor.
    fn ran(&self) -> Result<Duration, BenchError> {
        let path = format!("/proc/{}/schedstat", self.process.child.id());
        let text = fs::read_to_string(path).map_err(io_error("processor time of a microVM"))?;
        let ns = text.split(' ').next().and_then(|word| word.parse().ok());
        ns.map(Duration::from_nanos).ok_or_else(|| failed("this host does not tell the processor time of threads"))
    }

    fn write(&self) -> Result<Duration, BenchError> {
        let began = Instant::now();
        self.file
            .write_all_at(&[1; PAGE], 0)
            .and_then(|()| self.file.sync_data())
            .map_err(io_error("durable write"))?;
        Ok(began.elapsed())
    }

    fn measure(&mut self, steps: u64, times: &mut Times) -> Result<(), BenchError> {
        for _ in 0..QUESTIONS {
            times.answers.push(self.work(0)?);
        }
        for _ in 0..WORKS {
            let before = self.ran()?;
            times.works.push(self.work(steps)?);
            times.worked += self.ran()?.saturating_sub(before);
        }
        for _ in 0..WRITES {
            times.writes.push(self.write()?);
        }
        Ok(())
    }
}

/// Starts a process that disturbs until it is killed.
fn disturber(way: Way, file: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(WITH_PARENT[0]);
    command.args(&WITH_PARENT[1..]).arg(std::env::current_exe()?).args(["bench", "disturb", way.name()]).arg(file);
    Child::start(command)
}

/// One beside it.
struct Neighbour {
    process: Process,
    files: [PathBuf; 2],
}

impl Neighbour {
    fn start(
        monitor: Monitor<'_>,
        kernel: &Path,
        dir: &Path,
        index: usize,
        kind: Kind,
        group: &mut dyn FnMut(u32) -> Result<Hold, BenchError>,
    ) -> Result<Self, BenchError> {
        let [disk, log] = ["disk", "log"].map(|name| dir.join(format!("{name}{index}")));
        File::create(&disk).and_then(|file| file.set_len(DISK)).map_err(io_error("disk"))?;
        let source = match kind {
            Kind::Flood(flood) => {
                serde_json::json!({ "kernel_image_path": kernel, "boot_args": format!("flood={flood}") })
            }
            Kind::None | Kind::Idle => serde_json::json!({ "kernel_image_path": dir.join(IDLE) }),
            Kind::Process(way) => {
                let child = disturber(way, &disk).map_err(io_error("a process"))?;
                return Ok(Neighbour { process: Process::hold(child, group)?, files: [disk, log] });
            }
        };
        let config = serde_json::json!({
            "boot-source": source,
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
            "serial": { "mode": "log", "path": log },
            "drives": [{ "drive_id": "disk", "path_on_host": disk, "is_root_device": false, "is_read_only": false }],
        });
        let mut neighbour = Neighbour { process: Process::start(monitor, &config, group)?, files: [disk, log] };
        neighbour.process.runs()?;
        Ok(neighbour)
    }

    /// Ends it, which must not have ended before.
    fn end(mut self) -> Result<(), BenchError> {
        let ended = self.process.child.has_ended().map_err(io_error("wait for a neighbour"))?;
        match ended {
            Some(status) => Err(self.process.last_words(&format!("a neighbour ended by itself ({status})"))),
            None => Ok(()),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // The next one's disk is another file: what this one has not written yet need not be.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_at_most_one_processor() {
        assert_eq!((share(0, 2), share(1, 2), share(2, 2), share(8, 2)), (1.0, 1.0, 1.5, 4.5));
    }

    #[test]
    fn there_is_a_row_for_each_kind() {
        let ms = Duration::from_millis;
        let times = |worked| Times {
            answers: vec![ms(1)],
            works: vec![ms(10), ms(20)],
            worked: ms(worked),
            writes: vec![ms(2)],
        };
        let all: Vec<_> = (0..KINDS.len() as u64).map(|kind| times(30 - 2 * kind)).collect();
        let rows = report(&all).unwrap();
        assert_eq!((rows[0].neighbours, rows[0].ratio, rows.len()), ("none", 1.0, KINDS.len()));
        assert_eq!((rows[5].ratio, rows[5].answer.p50_us), (1.5, 1000.0));
        assert!(report(&[Times::default()]).is_none());
    }
}
