//! Taking a snapshot, beside a plain write(2) of the same bytes to a file on the same file system, both down to the disk.
//!
//! The guest writes to each page that is to be resident, and then waits; it runs when a snapshot is asked for, so that its pause is
//! measured, and is paused while plain bytes are written. Snapshots and writes take turns. For changes to a snapshot there is a
//! second machine, which writes to a part of those pages before each.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use vmm::api::SnapshotKind;
use vmm::{Console, Handle};

use crate::guest;
use crate::machine::{Bell, failed, save, with_machine};
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::stats::{Summary, summarise};

/// Bytes of a write(2).
const WRITE: usize = 1 << 20;
/// Of the resident pages, the part that is written to before a change is saved.
const CHANGED: u64 = 8;
/// RAM beyond the resident pages, MiB.
const REST_MIB: u64 = 64;
/// A change is a change to a change, and so on, but not for ever.
const MOST_CHANGES: usize = 32;
/// More would reach into the devices' addresses.
const MOST_MIB: u64 = 2048;
const PAGE: usize = 4096;

/// What to measure.
#[derive(Debug, Clone)]
pub struct What {
    /// Resident memory of the guests, MiB.
    pub resident_mib: Vec<u64>,
    /// Where snapshots and plain files are written.
    pub dir: PathBuf,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// For each size: all of its memory, and what has changed.
    pub rows: Vec<Row>,
}

/// Snapshots of one kind, of a guest of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Resident memory of the guest, MiB.
    pub resident_mib: u64,
    /// `full` or `diff`.
    pub kind: &'static str,
    /// Bytes of memory in a snapshot.
    pub bytes: u64,
    /// From asking for a snapshot to having it, on the disk and under its name.
    pub snapshot: Summary,
    /// How long the guest stood still for it.
    pub pause: Summary,
    /// As many bytes written to a file, and on the disk.
    pub write: Summary,
    /// The same, without waiting for the disk.
    pub write_unsynced: Summary,
    /// `snapshot.p50_us / write.p50_us`.
    pub ratio: f64,
}

/// Takes `runs` snapshots of each kind and size.
pub fn run(what: &What, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 || what.resident_mib.contains(&0) {
        return Err(BenchError::NoRuns);
    }
    if let Some(mib) = what.resident_mib.iter().find(|mib| **mib > MOST_MIB) {
        return Err(failed(format!("{mib} MiB are more than the {MOST_MIB} MiB that its guest can fill")));
    }
    let dir = Place::within(&what.dir)?;
    let mut rows = Vec::new();
    for &mib in &what.resident_mib {
        for (kind, name) in [(SnapshotKind::Full, "full"), (SnapshotKind::Diff, "diff")] {
            let place = dir.path().join(format!("{mib}-{name}"));
            fs::create_dir(&place).map_err(io_error("temporary directory"))?;
            let samples = series(&place, mib, kind, runs)?;
            let of = |part: fn(&Sample) -> Duration| {
                summarise(&samples.iter().map(part).collect::<Vec<_>>()).ok_or(BenchError::NoRuns)
            };
            let (snapshot, write) = (of(|sample| sample.snapshot)?, of(|sample| sample.write)?);
            rows.push(Row {
                resident_mib: mib,
                kind: name,
                bytes: samples.first().map_or(0, |sample| sample.bytes),
                snapshot,
                pause: of(|sample| sample.pause)?,
                write,
                write_unsynced: of(|sample| sample.write_unsynced)?,
                ratio: snapshot.p50_us / write.p50_us,
            });
            fs::remove_dir_all(&place).map_err(io_error("temporary directory"))?;
        }
    }
    Ok(Report { rows })
}

struct Sample {
    bytes: u64,
    snapshot: Duration,
    pause: Duration,
    write: Duration,
    write_unsynced: Duration,
}

fn series(dir: &Path, mib: u64, kind: SnapshotKind, runs: usize) -> Result<Vec<Sample>, BenchError> {
    let pages = u32::try_from((mib << 20) / PAGE as u64).map_err(|_| BenchError::NoRuns)?;
    let kernel = dir.join("guest");
    let code = guest::fill(pages, (pages / CHANGED as u32).max(1));
    fs::write(&kernel, guest::elf(&code)).map_err(io_error("guest"))?;
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": mib + REST_MIB,
                            "track_dirty_pages": kind == SnapshotKind::Diff },
    });
    let (bell, output) = Bell::new();
    let (input, trigger) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| io_error("console")(e.into()))?;
    let trigger = File::from(trigger);
    with_machine(&config, Console { input: Some(input), output }, |handle| {
        bell.wait()?;
        let mut machine = Guest { handle, bell, trigger, most: (mib + REST_MIB) << 20 };
        (0..runs).map(|run| machine.sample(dir, kind, run)).collect()
    })
}

/// A guest in which all is written that is to be.
struct Guest<'a> {
    handle: &'a Handle,
    bell: Bell,
    trigger: File,
    /// Most bytes of a snapshot.
    most: u64,
}

impl Guest<'_> {
    fn sample(&mut self, dir: &Path, kind: SnapshotKind, run: usize) -> Result<Sample, BenchError> {
        if kind == SnapshotKind::Diff {
            if run % MOST_CHANGES == 0 {
                save(self.handle, &dir.join(format!("base-{run}")), SnapshotKind::Full)?;
            }
            self.trigger.write_all(b"x").map_err(io_error("console"))?;
            self.bell.wait()?;
        }
        let target = dir.join(format!("snapshot-{run}"));
        settle(dir, self.most)?;
        let began = Instant::now();
        let report = save(self.handle, &target, kind)?;
        let snapshot = began.elapsed();
        // It waits by looking, which would take a processor from the write.
        self.handle.pause();
        let file = dir.join(format!("plain-{run}"));
        let memory = touched(report.bytes)?;
        settle(dir, self.most)?;
        let (write, write_unsynced) = plain(&file, &memory)?;
        self.handle.resume();
        // A change stays: it is the next one's parent.
        if kind == SnapshotKind::Full {
            fs::remove_dir_all(&target).map_err(io_error("snapshot"))?;
            fs::remove_file(&file).map_err(io_error("plain file"))?;
        }
        Ok(Sample {
            bytes: report.bytes,
            snapshot,
            pause: Duration::from_nanos(report.pause_ns),
            write,
            write_unsynced,
        })
    }
}

/// Readies the host for a file of `bytes`: what was written or removed before is the file system's no longer, and there is free
/// memory for the file's cache that has held a file's cache before. A virtual machine gets memory from its own host when it
/// first touches it, which takes longer than the write.
fn settle(dir: &Path, bytes: u64) -> Result<(), BenchError> {
    let failed = || io_error("file system");
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed())?;
    let path = dir.join("rehearsal");
    let mut file = File::create_new(&path).map_err(failed())?;
    let piece = touched(WRITE as u64)?;
    // In pieces as large as those of what comes: the file cache takes memory in pieces, too.
    for _ in 0..bytes.div_ceil(WRITE as u64) {
        file.write_all(&piece).map_err(failed())?;
    }
    fs::remove_file(&path).map_err(failed())
}

/// Resident memory, with something at the end of each page, as the guest has it.
fn touched(bytes: u64) -> Result<Vec<u8>, BenchError> {
    let mut memory = vec![0u8; usize::try_from(bytes).map_err(|_| BenchError::NoRuns)?];
    memory.chunks_mut(PAGE).filter_map(<[u8]>::last_mut).for_each(|byte| *byte = 1);
    Ok(memory)
}

/// Writes `memory` to a new file: with the disk, and without waiting for it.
fn plain(path: &Path, memory: &[u8]) -> Result<(Duration, Duration), BenchError> {
    let failed = || io_error("plain file");
    let began = Instant::now();
    let mut file = File::create_new(path).map_err(failed())?;
    for piece in memory.chunks(WRITE) {
        file.write_all(piece).map_err(failed())?;
    }
    let unsynced = began.elapsed();
    file.sync_all().map_err(failed())?;
    let synced = began.elapsed();
    Ok((synced, unsynced))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_do_is_an_error() {
        let what = |mib| What { resident_mib: vec![mib], dir: std::env::temp_dir() };
        assert!(matches!(run(&what(1), 0), Err(BenchError::NoRuns)));
        assert!(matches!(run(&what(0), 1), Err(BenchError::NoRuns)));
        assert!(run(&what(4096), 1).unwrap_err().to_string().contains("4096"));
    }

    #[test]
    fn a_plain_write_is_of_so_many_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let (synced, unsynced) = plain(&path, &touched(3 << 20).unwrap()).unwrap();
        assert!(synced >= unsynced && fs::metadata(path).unwrap().len() == 3 << 20);
    }
}
