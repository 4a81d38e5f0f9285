//! What the control socket counts and times, and where it goes: one JSON object a line, with Firecracker's names where
//! the meaning is the same.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::bodies::MetricsBody;
use super::vm::{DeviceReport, SnapshotReport};

/// Operations that are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// `PATCH /vm`, Paused.
    Pause,
    /// `PATCH /vm`, Resumed.
    Resume,
    /// `PUT /snapshot/create`, Full.
    FullSnapshot,
    /// `PUT /snapshot/create`, Diff.
    DiffSnapshot,
    /// `PUT /snapshot/load`.
    Load,
}

/// Names of [`Timed`], in its order.
const TIMED: [&str; 5] = ["pause_vm", "resume_vm", "full_create_snapshot", "diff_create_snapshot", "load_snapshot"];

/// Metrics that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// They have a place already.
    #[error("metrics go to {0} already")]
    Twice(String),
    /// They have none.
    #[error("there is no file for metrics: set /metrics first")]
    Nowhere,
    /// The host refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Its answer.
        source: io::Error,
    },
}

/// Where the lines go.
struct Sink {
    body: MetricsBody,
    file: File,
    /// The end of a line of which the file has the beginning.
    owed: Vec<u8>,
}

/// The counters, and the file.
#[derive(Default)]
pub struct Metrics {
    sink: Option<Sink>,
    get: u64,
    put: u64,
    patch: u64,
    other: u64,
    failed: u64,
    /// The last of each kind.
    latencies: [Duration; TIMED.len()],
    /// The last one.
    snapshot: SnapshotReport,
}

impl Metrics {
    /// Opens the file, once.
    pub fn set(&mut self, body: MetricsBody) -> Result<(), MetricsError> {
        if let Some(sink) = &self.sink {
            return Err(MetricsError::Twice(sink.body.metrics_path.display().to_string()));
        }
        let file = open(&body).map_err(io_error(&body))?;
        self.sink = Some(Sink { body, file, owed: Vec::new() });
        Ok(())
    }

    /// Where they go.
    pub fn target(&self) -> Option<&MetricsBody> {
        self.sink.as_ref().map(|sink| &sink.body)
    }

    /// Counts a request and how it was answered.
    pub fn count(&mut self, method: &str, status: u16) {
        *match method {
            "GET" => &mut self.get,
            "PUT" => &mut self.put,
            "PATCH" => &mut self.patch,
            _ => &mut self.other,
        } += 1;
        self.failed += u64::from(status >= 400);
    }

    /// Remembers how long an operation took that began at `since`.
    pub fn time(&mut self, what: Timed, since: Instant) {
        self.latencies[what as usize] = since.elapsed();
    }

    /// Remembers what a snapshot came to.
    pub fn snapshot(&mut self, report: SnapshotReport) {
        self.snapshot = report;
    }

    /// Requests so far, by method.
    pub fn requests(&self) -> [(&'static str, u64); 4] {
        [("get", self.get), ("put", self.put), ("patch", self.patch), ("other", self.other)]
    }

    /// Requests that were refused.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// All of it, as it is now, and what the devices have done.
    pub fn tell(&self, devices: &[DeviceReport]) -> Value {
        let latencies = TIMED.iter().zip(&self.latencies).map(|(name, time)| ((*name).to_owned(), micros(*time)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "utc_timestamp_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            "api_requests": { "get": self.get, "put": self.put, "patch": self.patch, "other": self.other,
                              "failed": self.failed },
            "latencies_us": latencies.collect::<serde_json::Map<_, _>>(),
            "last_snapshot": { "bytes": self.snapshot.bytes, "pause_us": self.snapshot.pause_ns / 1000 },
            "devices": devices,
        })
    }

    /// Adds a line to the file. One that does not fit a pipe nobody reads is an error: nothing waits for a reader. What a
    /// pipe takes only a part of is kept, so that its reader gets whole lines.
    pub fn flush(&mut self, id: &str, devices: &[DeviceReport]) -> Result<(), MetricsError> {
        let mut line = self.tell(devices);
        let Some(Sink { body, file, owed }) = &mut self.sink else {
            return Err(MetricsError::Nowhere);
        };
        if body.emit_id {
            line["id"] = id.into();
        }
        if !body.properties.is_empty() {
            line["properties"] = json!(body.properties);
        }
        add(file, owed, format!("{line}\n").into_bytes()).map_err(io_error(body))
    }
}

/// Writes `line` behind what is owed, or nothing of it.
fn add(file: &mut File, owed: &mut Vec<u8>, line: Vec<u8>) -> io::Result<()> {
    let done = write_some(file, owed)?;
    owed.drain(..done);
    if !owed.is_empty() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let done = write_some(file, &line)?;
    *owed = line;
    owed.drain(..done);
    Ok(())
}

/// Writes as much as goes without waiting; an error only if that is nothing.
fn write_some(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn micros(time: Duration) -> Value {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).into()
}

fn io_error(body: &MetricsBody) -> impl FnOnce(io::Error) -> MetricsError + use<> {
    let path = body.metrics_path.display().to_string();
    move |source| MetricsError::Io { path, source }
}

/// Opens a regular file or a pipe without waiting for anyone. A pipe is opened for reading, too: then it has a reader from
/// the start, and writing to it is never an error for lack of one.
fn open(body: &MetricsBody) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(&body.metrics_path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_fifo() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a named pipe"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use devices::virtio::DeviceName;
    use devices::virtio::metrics::DeviceReading;

    use super::*;

    fn body(path: &std::path::Path) -> MetricsBody {
        MetricsBody {
            metrics_path: path.to_owned(),
            emit_id: true,
            properties: [("rack".to_owned(), "7".to_owned())].into(),
        }
    }

    #[test]
    fn lines_are_added_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let mut metrics = Metrics::default();
        assert!(metrics.flush("x", &[]).unwrap_err().to_string().contains("set /metrics"));
        metrics.set(body(&path)).unwrap();
        assert!(metrics.set(body(&path)).unwrap_err().to_string().contains("already"));
        metrics.count("GET", 200);
        metrics.count("PUT", 400);
        metrics.time(Timed::Resume, Instant::now());
        metrics.flush("vm1", &[]).unwrap();
        metrics.flush("vm1", &[]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        let line = &lines[0];
        assert_eq!((&line["id"], &line["properties"]["rack"]), (&json!("vm1"), &json!("7")));
        let requests = &line["api_requests"];
        assert_eq!((&requests["get"], &requests["put"], &requests["failed"]), (&json!(1), &json!(1), &json!(1)));
        assert!(line["latencies_us"]["resume_vm"].is_u64());
    }

    #[test]
    fn a_pipe_that_nobody_reads_neither_blocks_nor_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        crate::open::fifo(&path);
        let mut metrics = Metrics::default();
        metrics.set(body(&path)).unwrap();
        // Lines that a pipe takes a part of.
        let name = DeviceName { kind: "blk", id: Some("b".repeat(5000)) };
        let devices = [DeviceReport { name, reading: DeviceReading::default() }];
        let mut reader = File::open(&path).unwrap();
        let (mut text, mut flushed) = (String::new(), 0);
        for _ in 0..3 {
            let full = (0..100_000).find_map(|_| match metrics.flush("x", &devices) {
                Ok(()) => {
                    flushed += 1;
                    None
                }
                Err(e) => Some(e),
            });
            let full = full.expect("a pipe has an end");
            assert!(full.to_string().contains("fifo"), "{full}");
            let mut some = vec![0; 20_000];
            reader.read_exact(&mut some).unwrap();
            text.push_str(std::str::from_utf8(&some).unwrap());
        }
        // The rest of what is there, and of the last line.
        while text.lines().count() < flushed || !text.ends_with('\n') {
            let mut some = vec![0; 1000];
            let count = reader.read(&mut some).unwrap();
            text.push_str(std::str::from_utf8(&some[..count]).unwrap());
            if let Some(Sink { file, owed, .. }) = &mut metrics.sink {
                let done = write_some(file, owed).unwrap();
                owed.drain(..done);
            }
        }
        let whole = text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok());
        assert!(whole && text.lines().count() == flushed && flushed > 3);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let mut metrics = Metrics::default();
        assert!(metrics.set(body(std::path::Path::new("/dev/null"))).is_err());
        assert!(metrics.set(body(std::path::Path::new("/nowhere/m"))).is_err());
        assert!(metrics.set(body(std::path::Path::new("/"))).is_err());
    }
}
