//! Machines in this process: booted to be saved, or to be measured while they run.

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vmm::api::{SnapshotKind, SnapshotReport, SnapshotRequest};
use vmm::{Console, Handle, Machine, VmConfig};

use crate::process::BenchError;

/// A guest of a few instructions that has not done them by then never will.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// For `map_err`: what a machine says of itself.
pub(crate) fn failed(error: impl std::fmt::Display) -> BenchError {
    BenchError::Machine(error.to_string())
}

/// Builds and runs the machine that `config` describes, as long as `work` takes.
pub(crate) fn with_machine<T>(
    config: &serde_json::Value,
    console: Console,
    work: impl FnOnce(&Handle) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let config = VmConfig::from_json(&config.to_string()).map_err(failed)?;
    let machine = Machine::build(&config, Some(console), &mut |_| {}).map_err(failed)?;
    let handle = machine.handle();
    std::thread::scope(|scope| {
        let runner = scope.spawn(move || machine.run(&mut |_| {}));
        let result = work(&handle);
        handle.stop();
        match runner.join() {
            Ok(Ok(_)) => result,
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed("it panicked")),
        }
    })
}

/// Takes a snapshot into a directory.
pub(crate) fn save(handle: &Handle, path: &Path, kind: SnapshotKind) -> Result<SnapshotReport, BenchError> {
    handle.snapshot(&SnapshotRequest { path: path.to_owned(), kind, base_of_next: false }).map_err(failed)
}

/// Serial output, of which only that there was some is of interest.
pub(crate) struct Bell(Receiver<()>);

impl Bell {
    /// A bell, and the output that rings it.
    pub(crate) fn new() -> (Self, Box<dyn Write + Send>) {
        let (sender, receiver) = channel();
        (Bell(receiver), Box::new(Tell(sender)))
    }

    /// Waits for the next byte of output.
    pub(crate) fn wait(&self) -> Result<(), BenchError> {
        self.0.recv_timeout(PATIENCE).map_err(|_| failed("its guest does not run"))
    }
}

struct Tell(Sender<()>);

impl Write for Tell {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for _ in bytes {
            // Whoever waited has heard enough.
            let _ = self.0.send(());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
