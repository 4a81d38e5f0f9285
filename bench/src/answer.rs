//! The guest that answers: a process in ring 3 that was saved while it waited, and its host's side.
//!
//! A restored guest finds its connection gone and connects to where its monitor leads it; it is asked a number, and sends it back
//! inverted. So an answer proves that the clone's own process runs on, and its own device with it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bench_guest::{PORT, QUESTION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::Console;
use vmm::api::{SnapshotKind, SnapshotReport};

use crate::guest;
use crate::machine::{PATIENCE, failed, save, with_machine};
use crate::process::{BenchError, Monitor, io_error, start, words};

/// The snapshot of a guest with `memory_mib` of RAM that waits for questions, in the new directory `snapshot`.
pub fn prepare(dir: &Path, snapshot: &Path, memory_mib: u64) -> Result<SnapshotReport, BenchError> {
    let (kernel, uds) = (dir.join("answering"), dir.join("v"));
    fs::write(&kernel, guest::ANSWER).map_err(io_error("guest"))?;
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": memory_mib },
        "vsock": { "guest_cid": 3, "uds_path": uds },
    });
    let host = Host::bind(&uds)?;
    with_machine(&config, Console { input: None, output: Box::new(std::io::sink()) }, |handle| {
        let mut stream = host.accept(None)?;
        ask(&mut stream, 1)?;
        save(handle, snapshot, SnapshotKind::Full)
    })
}

/// Where a guest will connect.
pub struct Host {
    listener: UnixListener,
    path: PathBuf,
}

impl Host {
    /// Listens for the guest whose monitor has its socket at `uds`.
    pub fn bind(uds: &Path) -> Result<Self, BenchError> {
        let mut path = uds.as_os_str().to_owned();
        path.push(format!("_{PORT}"));
        let path = PathBuf::from(path);
        Ok(Host { listener: UnixListener::bind(&path).map_err(io_error("socket for the guest"))?, path })
    }

    /// The socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Waits for the guest, no longer than for its monitor, if that is given.
    pub fn accept(&self, monitor: Option<BorrowedFd<'_>>) -> Result<UnixStream, BenchError> {
        let fds = [Some(self.listener.as_fd()), monitor];
        let mut fds: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        wait(&mut fds, PATIENCE)?;
        if fds[0].revents().is_empty() {
            return Err(failed(if fds.len() > 1 && !fds[1].revents().is_empty() {
                "its process ended before its guest answered"
            } else {
                "its guest does not connect"
            }));
        }
        self.take()
    }

    /// The guest's connection, which is there.
    pub fn take(&self) -> Result<UnixStream, BenchError> {
        let (stream, _) = self.listener.accept().map_err(io_error("connection of the guest"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io_error("connection of the guest"))?;
        Ok(stream)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits for any of `fds`, no longer than `patience`.
pub(crate) fn wait(fds: &mut [PollFd<'_>], patience: Duration) -> Result<(), BenchError> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io_error("poll")(error.into())),
            Ok(_) => return Ok(()),
        }
    }
}

/// Sends a question.
pub fn question(stream: &mut UnixStream, number: u64) -> Result<(), BenchError> {
    stream.write_all(&number.to_le_bytes()).map_err(io_error("question to the guest"))
}

/// Reads the answer to it.
pub fn answer(stream: &mut UnixStream, number: u64) -> Result<(), BenchError> {
    let mut answer = [0; QUESTION];
    stream.read_exact(&mut answer).map_err(io_error("answer of the guest"))?;
    if answer == (!number).to_le_bytes() { Ok(()) } else { Err(failed(format!("its guest answered {answer:x?}"))) }
}

/// Asks, and waits for the answer.
pub fn ask(stream: &mut UnixStream, number: u64) -> Result<(), BenchError> {
    question(stream, number)?;
    answer(stream, number)
}

/// What a monitor is told that goes on from the snapshot, its sockets at `uds`.
pub fn config(snapshot: &Path, uds: &Path) -> String {
    serde_json::json!({ "snapshot": { "path": snapshot }, "vsock": { "guest_cid": 3, "uds_path": uds } }).to_string()
}

/// Process start to the answer of a guest that goes on from `snapshot`. The guest ends when its connection does.
pub fn sample(monitor: Monitor<'_>, snapshot: &Path, uds: &Path) -> Result<Duration, BenchError> {
    let (host, config) = (Host::bind(uds)?, config(snapshot, uds));
    let began = Instant::now();
    let child = start(monitor, &config)?;
    let asked = (|| {
        let mut stream = host.accept(Some(child.pidfd()))?;
        ask(&mut stream, 2)?;
        Ok(began.elapsed())
    })();
    if asked.is_err() {
        // It may have no end of its own.
        child.kill();
    }
    let output = child.wait_with_output().map_err(io_error("output of the monitor"))?;
    asked.map_err(|error| words(error, &output.stderr))
}
