//! What the control socket counts and times, and where it goes: one JSON object a line, with Firecracker's names where
//! the meaning is the same.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::SnapshotReport;
use super::bodies::MetricsBody;

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

/// The counters, and the file.
#[derive(Default)]
pub struct Metrics {
    sink: Option<(MetricsBody, File)>,
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
        if let Some((other, _)) = &self.sink {
            return Err(MetricsError::Twice(other.metrics_path.display().to_string()));
        }
        let file = open(&body).map_err(io_error(&body))?;
        self.sink = Some((body, file));
        Ok(())
    }

    /// Where they go.
    pub fn target(&self) -> Option<&MetricsBody> {
        self.sink.as_ref().map(|(body, _)| body)
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

    /// All of it, as it is now.
    pub fn tell(&self) -> Value {
        let latencies = TIMED.iter().zip(&self.latencies).map(|(name, time)| ((*name).to_owned(), micros(*time)));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "utc_timestamp_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            "api_requests": { "get": self.get, "put": self.put, "patch": self.patch, "other": self.other,
                              "failed": self.failed },
            "latencies_us": latencies.collect::<serde_json::Map<_, _>>(),
            "last_snapshot": { "bytes": self.snapshot.bytes, "pause_us": self.snapshot.pause_ns / 1000 },
        })
    }

    /// Adds a line to the file. One that does not fit a pipe nobody reads is an error: nothing waits for a reader.
    pub fn flush(&mut self, id: &str) -> Result<(), MetricsError> {
        let mut line = self.tell();
        let Some((body, file)) = &mut self.sink else {
            return Err(MetricsError::Nowhere);
        };
        if body.emit_id {
            line["id"] = id.into();
        }
        if !body.properties.is_empty() {
            line["properties"] = json!(body.properties);
        }
        file.write_all(format!("{line}\n").as_bytes()).map_err(io_error(body))
    }
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
        assert!(metrics.flush("x").unwrap_err().to_string().contains("set /metrics"));
        metrics.set(body(&path)).unwrap();
        assert!(metrics.set(body(&path)).unwrap_err().to_string().contains("already"));
        metrics.count("GET", 200);
        metrics.count("PUT", 400);
        metrics.time(Timed::Resume, Instant::now());
        metrics.flush("vm1").unwrap();
        metrics.flush("vm1").unwrap();
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
        let full = (0..100_000).find_map(|_| metrics.flush("x").err()).expect("a pipe has an end");
        assert!(full.to_string().contains("fifo"), "{full}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let mut metrics = Metrics::default();
        assert!(metrics.set(body(std::path::Path::new("/dev/null"))).is_err());
        assert!(metrics.set(body(std::path::Path::new("/nowhere/m"))).is_err());
        assert!(metrics.set(body(std::path::Path::new("/"))).is_err());
    }
}
