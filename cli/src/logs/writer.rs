//! Writing a log. A disk that is full, or broken, costs lines and nothing else: the process goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use guest_protocol::StreamKind;

use super::{FILE, Line, OLDER};
use crate::clock;
use crate::containers::record::now_ns;
use crate::session::Recorder;

/// A file gets no longer than this, and a line.
const MOST_BYTES: u64 = 10 << 20;
/// A longer line is cut into several, as docker does.
const MOST_LINE: usize = 16 << 10;

/// A log that is being written.
#[derive(Debug)]
pub struct Writer {
    /// Held while lines are appended, of either stream.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    file: File,
    bytes: u64,
    most: u64,
    /// What has been written since the last line end.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Writer {
    /// Appends to the log in a container's directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_with(dir, MOST_BYTES)
    }

    fn open_with(dir: &Path, most: u64) -> io::Result<Self> {
        let file = open(dir)?;
        let bytes = file.metadata()?.len();
        let inner = Inner { dir: dir.to_owned(), file, bytes, most, stdout: Vec::new(), stderr: Vec::new() };
        Ok(Writer { inner: Mutex::new(inner) })
    }
}

fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(FILE))
}

impl Recorder for Writer {
    fn output(&self, stream: StreamKind, bytes: &[u8]) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).output(stream, bytes);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for (stream, rest) in
            [("stdout", std::mem::take(&mut inner.stdout)), ("stderr", std::mem::take(&mut inner.stderr))]
        {
            if !rest.is_empty() {
                append(&mut lines, stream, &rest, &clock::rfc3339(now_ns()));
            }
        }
        inner.write(&lines);
    }
}

impl Inner {
    fn output(&mut self, stream: StreamKind, bytes: &[u8]) {
        let (name, rest) = match stream {
            StreamKind::Stderr => ("stderr", &mut self.stderr),
            _ => ("stdout", &mut self.stdout),
        };
        let time = clock::rfc3339(now_ns());
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            rest.extend_from_slice(part);
            while rest.len() > MOST_LINE {
                let tail = rest.split_off(character_end(rest, MOST_LINE));
                append(&mut lines, name, &std::mem::replace(rest, tail), &time);
            }
            if rest.ends_with(b"\n") {
                append(&mut lines, name, &std::mem::take(rest), &time);
            }
        }
        self.write(&lines);
    }

    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.bytes > 0 && self.bytes + lines.len() as u64 > self.most {
            let rotated = fs::rename(self.dir.join(FILE), self.dir.join(OLDER)).and_then(|()| open(&self.dir));
            match rotated {
                Ok(file) => (self.file, self.bytes) = (file, 0),
                Err(error) => return tracing::warn!("log: {error}"),
            }
        }
        match self.file.write_all(lines) {
            Ok(()) => self.bytes += lines.len() as u64,
            Err(error) => tracing::warn!("log: {error}"),
        }
    }
}

/// Where to cut so that no character of UTF-8 is cut: at `most`, or up to three bytes before.
fn character_end(bytes: &[u8], most: usize) -> usize {
    let continues = |at: &usize| bytes.get(*at).is_some_and(|byte| byte & 0xC0 == 0x80);
    (most - 3..=most).rev().find(|at| !continues(at)).unwrap_or(most)
}

fn append(lines: &mut Vec<u8>, stream: &str, bytes: &[u8], time: &str) {
    let log = String::from_utf8_lossy(bytes).into_owned();
    let line = Line { log, stream: stream.into(), time: time.into() };
    if serde_json::to_writer(&mut *lines, &line).is_ok() {
        lines.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(dir: &Path, file: &str) -> Vec<(String, String)> {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        let parse = |line| serde_json::from_str::<Line>(line).unwrap();
        text.lines().map(parse).map(|line| (line.stream, line.log)).collect()
    }

    #[test]
    fn lines_are_whole_whatever_they_come_in() {
        let dir = tempfile::tempdir().unwrap();
        let log = Writer::open(dir.path()).unwrap();
        log.output(StreamKind::Stdout, b"on");
        log.output(StreamKind::Stderr, b"err\n");
        log.output(StreamKind::Stdout, b"e\ntw\xc3");
        log.output(StreamKind::Stdout, b"\xa4\n\n\xff\nlast");
        drop(log);
        let got = lines(dir.path(), FILE);
        let want = [
            ("stderr", "err\n"),
            ("stdout", "one\n"),
            ("stdout", "tw\u{e4}\n"),
            ("stdout", "\n"),
            ("stdout", "\u{fffd}\n"),
            ("stdout", "last"),
        ];
        assert_eq!(got.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let dir = tempfile::tempdir().unwrap();
        let log = Writer::open(dir.path()).unwrap();
        let text = format!("x{}\n", "ä".repeat(MOST_LINE));
        text.as_bytes().chunks(1000).for_each(|chunk| log.output(StreamKind::Stdout, chunk));
        drop(log);
        let got = lines(dir.path(), FILE);
        assert_eq!(got.iter().map(|(_, log)| log.as_str()).collect::<String>(), text);
        assert!(got.len() == 3 && got.iter().all(|(_, log)| log.len() <= MOST_LINE));
    }

    #[test]
    fn it_is_bounded_and_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let log = Writer::open_with(dir.path(), 1000).unwrap();
            log.output(StreamKind::Stdout, format!("line {round}\n").as_bytes());
        }
        let mut all = lines(dir.path(), OLDER);
        all.extend(lines(dir.path(), FILE));
        assert!(all.len() < 50 && all.last().unwrap().1 == "line 49\n", "{all:?}");
        let numbers: Vec<usize> = all.iter().map(|(_, log)| log[5..].trim().parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        for file in [FILE, OLDER] {
            assert!(fs::metadata(dir.path().join(file)).unwrap().len() <= 1000);
        }
    }
}
