//! A layer of an image as a disk, and as memory that all machines share: what a guest pays for each.
//!
//! The guest is Linux with the layer as its root, and its first process the layer's shell, which does what a script on another disk
//! says: it tells that it is there, reads some programs of /usr/bin, and reads them once more. Pages that it reads from a disk it keeps in
//! its own memory; those of pmem it uses where the host has them, and keeps 64 bytes about each page of the layer instead.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use serde_json::json;
use vmm::Console;

use crate::machine::{failed, with_machine};
use crate::memory;
use crate::place::Place;
use crate::process::{BenchError, io_error};
use crate::stats::median;

/// RAM of a guest.
const MEMORY_MIB: u64 = 256;
/// A guest whose kernel mode is emulated takes tens of seconds for all of it.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of a sector, of which disks consist.
const SECTOR: usize = 512;
/// Marks for lines that the script says: the kernel may say something, too.
const MARK: &str = "layers:";
/// A line is awaited after each step.
const SCRIPT: &str = "PATH=/usr/bin:/bin\n\
    echo layers:there; read go\n\
    cat /usr/bin/[a-d]* >/dev/null; echo layers:read; read go\n\
    cat /usr/bin/[a-d]* >/dev/null; echo layers:again; read go\n";

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct What<'a> {
    /// The guest's kernel.
    pub kernel: &'a Path,
    /// The words that it needs on its command line.
    pub words: &'a str,
    /// A layer with a shell, as a file system of EROFS.
    pub layer: &'a Path,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Runs of each.
    pub runs: usize,
    /// Bytes of the layer.
    pub bytes: u64,
    /// As a disk, and as memory.
    pub rows: Vec<Row>,
}

/// Medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// How the guest has the layer.
    pub way: &'static str,
    /// From the machine's making to the shell's first words, ms.
    pub start_ms: f64,
    /// Memory that the guest has for itself by then, KiB.
    pub start_kib: f64,
    /// Reading those programs for the first time, ms.
    pub read_ms: f64,
    /// Memory that the guest has for itself by then, KiB.
    pub read_kib: f64,
    /// Reading them once more, ms.
    pub again_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Block,
    Pmem,
}

/// A run: times of the three steps, ms, and memory after the first two, KiB.
struct Sample {
    ms: [f64; 3],
    kib: [f64; 2],
}

/// Runs each `runs` times, in turns. The host has the layer in its page cache from the first on.
pub fn run(what: What<'_>, runs: usize) -> Result<Report, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns);
    }
    let place = Place::new()?;
    let script = place.path().join("script");
    let mut text = SCRIPT.as_bytes().to_vec();
    text.resize(text.len().next_multiple_of(SECTOR), b'\n');
    fs::write(&script, text).map_err(io_error("script for the guest"))?;
    let bytes = fs::metadata(what.layer).map_err(io_error("layer"))?.len();
    let mut samples = [(Way::Block, Vec::new()), (Way::Pmem, Vec::new())];
    for round in 0..=runs {
        for (way, samples) in &mut samples {
            let sample = sample(what, &script, *way)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let rows = samples.iter().map(|(way, samples)| row(*way, samples)).collect::<Option<_>>();
    Ok(Report { runs, bytes, rows: rows.ok_or(BenchError::NoRuns)? })
}

fn row(way: Way, samples: &[Sample]) -> Option<Row> {
    let of = |what: fn(&Sample) -> f64| median(&samples.iter().map(what).collect::<Vec<_>>());
    Some(Row {
        way: if way == Way::Block { "block" } else { "pmem" },
        start_ms: of(|sample| sample.ms[0])?,
        start_kib: of(|sample| sample.kib[0])?,
        read_ms: of(|sample| sample.ms[1])?,
        read_kib: of(|sample| sample.kib[1])?,
        again_ms: of(|sample| sample.ms[2])?,
    })
}

fn config(what: What<'_>, script: &Path, way: Way) -> serde_json::Value {
    let script_disk = json!({ "drive_id": "script", "path_on_host": script, "is_read_only": true });
    let (drives, pmem, words) = match way {
        Way::Block => {
            let root =
                json!({ "drive_id": "root", "path_on_host": what.layer, "is_read_only": true, "is_root_device": true });
            (json!([root, script_disk]), json!([]), "init=/bin/sh -- /dev/vdb")
        }
        Way::Pmem => {
            let root = json!({ "id": "root", "path_on_host": what.layer, "read_only": true, "root_device": true });
            (json!([script_disk]), json!([root]), "rootflags=dax=always init=/bin/sh -- /dev/vda")
        }
    };
    json!({
        "boot-source": { "kernel_image_path": what.kernel,
                         "boot_args": format!("console=ttyS0 {} rootfstype=erofs {words}", what.words) },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        "drives": drives, "pmem": pmem,
    })
}

fn sample(what: What<'_>, script: &Path, way: Way) -> Result<Sample, BenchError> {
    let (input, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| io_error("pipe")(error.into()))?;
    let (lines, output) = lines();
    let mut guest = Guest { told: told.into(), lines, began: Instant::now() };
    let console = Console { input: Some(input), output };
    with_machine(&config(what, script, way), console, |_| {
        let (start, start_kib) = (guest.step("there", false)?, own_kib()?);
        let (read, read_kib) = (guest.step("read", true)?, own_kib()?);
        let again = guest.step("again", true)?;
        Ok(Sample { ms: [start, read, again], kib: [start_kib, read_kib] })
    })
}

/// Memory that the one guest of this process has for itself.
fn own_kib() -> Result<f64, BenchError> {
    Ok(memory::of_process(std::process::id(), MEMORY_MIB, None)?.guest_kib as f64)
}

/// What is said to the guest, and what it says.
struct Guest {
    told: File,
    lines: Receiver<String>,
    began: Instant,
}

impl Guest {
    /// Has it go on, if it waits, and awaits its word for the next step; the time since then, or since its start, in ms.
    fn step(&mut self, word: &str, waits: bool) -> Result<f64, BenchError> {
        if waits {
            self.began = Instant::now();
            self.told.write_all(b"\n").map_err(io_error("input of the guest"))?;
        }
        loop {
            let line = self.lines.recv_timeout(PATIENCE).map_err(|_| failed("its guest does not go on"))?;
            if line.split_once(MARK).is_some_and(|(_, said)| said.trim() == word) {
                return Ok(self.began.elapsed().as_secs_f64() * 1e3);
            }
            if line.contains("Kernel panic") {
                return Err(failed(format!("the layer cannot be its guest's root with a shell: {}", line.trim())));
            }
        }
    }
}

/// Serial output, line by line.
struct Lines {
    begun: Vec<u8>,
    lines: Sender<String>,
}

/// Where they come out, and where they go in.
fn lines() -> (Receiver<String>, Box<dyn Write + Send>) {
    let (lines, receiver) = channel();
    (receiver, Box::new(Lines { begun: Vec::new(), lines }))
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                // Whoever waited has heard enough.
                let _ = self.lines.send(String::from_utf8_lossy(&self.begun).into_owned());
                self.begun.clear();
            } else {
                self.begun.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_runs_and_no_layer_are_errors() {
        let nowhere = Path::new("/nonexistent");
        let what = What { kernel: nowhere, words: "", layer: nowhere };
        assert!(matches!(run(what, 0), Err(BenchError::NoRuns)));
        assert!(matches!(run(what, 1), Err(BenchError::Io { .. })));
    }

    #[test]
    fn a_step_is_over_with_its_word_and_a_panic_is_told() {
        let (lines, mut output) = lines();
        let (_hears, told) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut guest = Guest { told: told.into(), lines, began: Instant::now() };
        output.write_all(b"[    0.1] up\nlayers:th").unwrap();
        output.write_all(b"ere\r\nlayers:again\n").unwrap();
        guest.step("there", false).unwrap();
        output.write_all(b"layers:read\n[    1.2] Kernel panic - not syncing: no init\n").unwrap();
        guest.step("read", true).unwrap();
        assert!(guest.step("again", true).unwrap_err().to_string().contains("not syncing"));
    }
}
