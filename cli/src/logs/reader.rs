//! Reading a log: what there is, and what comes until the process that has the container ends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::{FILE, Line, OLDER};
use crate::clock;
use crate::rotated::{Lines, is_ready};

/// No line of a log is longer: 16 KiB, each byte of which may be written as six.
const MOST_LINE: u64 = 256 << 10;

/// Which lines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Not before then, in nanoseconds since the epoch.
    pub since_ns: u64,
    /// Not after then.
    pub until_ns: Option<u64>,
    /// So many of those that there are, the last ones; all otherwise.
    pub tail: Option<usize>,
}

/// A line, for printing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// It was written to stderr.
    pub is_error: bool,
    /// When, as RFC 3339.
    pub time: String,
    /// What.
    pub text: String,
}

/// A log that is being read.
#[derive(Debug)]
pub struct Reader {
    wanted: Wanted,
    lines: Lines,
}

impl Reader {
    /// Reads the log in a container's directory.
    pub fn open(dir: &Path, wanted: Wanted) -> Self {
        Reader { wanted, lines: Lines::open(dir, [FILE, OLDER], MOST_LINE) }
    }

    /// Passes on what there is.
    pub fn present(&mut self, print: &mut dyn FnMut(&Entry) -> io::Result<()>) -> io::Result<()> {
        let mut last = VecDeque::new();
        let (tail, wanted) = (self.wanted.tail, self.wanted);
        self.lines.present(&mut |line| match (entry(line, &wanted), tail) {
            (None, _) => Ok(()),
            (Some(entry), None) => print(&entry),
            (Some(entry), Some(most)) => {
                last.push_back(entry);
                if last.len() > most {
                    last.pop_front();
                }
                Ok(())
            }
        })?;
        last.iter().try_for_each(print)
    }

    /// Passes on what comes, until the container is nobody's any more: `owner` becomes readable then.
    pub fn follow(
        &mut self,
        owner: Option<&OwnedFd>,
        print: &mut dyn FnMut(&Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        let (watch, wanted) = (self.lines.watch()?, self.wanted);
        loop {
            // Looked at before the log is: what it wrote last is there by then.
            let over = owner.is_none_or(is_ready);
            self.lines.news(&mut |line| entry(line, &wanted).map_or(Ok(()), |entry| print(&entry)))?;
            let (Some(owner), false) = (owner, over) else { return Ok(()) };
            watch.wait(Some(owner.as_fd()), None)?;
        }
    }
}

/// What is on a line, if that is wanted. What is no line is left out.
fn entry(line: &[u8], wanted: &Wanted) -> Option<Entry> {
    let line = serde_json::from_slice::<Line>(line).ok()?;
    let at = clock::moment(&line.time, 0).unwrap_or(0);
    let fits = at >= wanted.since_ns && wanted.until_ns.is_none_or(|until| at <= until);
    fits.then(|| Entry { is_error: line.stream == "stderr", time: line.time, text: line.log })
}

#[cfg(test)]
mod tests {
    use super::super::writer::Writer;
    use super::*;
    use crate::session::Recorder as _;
    use guest_protocol::StreamKind;

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut texts = Vec::new();
        reader
            .present(&mut |entry| {
                texts.push(format!("{}{}", if entry.is_error { "!" } else { "" }, entry.text));
                Ok(())
            })
            .unwrap();
        texts
    }

    #[test]
    fn what_there_is_is_read_and_nonsense_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert!(texts(&mut Reader::open(dir.path(), Wanted::default())).is_empty());
        let line =
            |text: &str, time: &str| format!("{{\"log\":\"{text}\",\"stream\":\"stderr\",\"time\":\"{time}\"}}\n");
        let old = line("old", "1970-01-01T00:00:01Z");
        std::fs::write(dir.path().join(OLDER), old).unwrap();
        let long = "x".repeat(MOST_LINE as usize + 10);
        let new = format!("garbage\n{long}\n{}{}\n{{\"log\":", line("new", "1970-01-01T00:00:03Z"), "\u{fffd}");
        std::fs::write(dir.path().join(FILE), new).unwrap();
        let read = |wanted| texts(&mut Reader::open(dir.path(), wanted));
        assert_eq!(read(Wanted::default()), ["!old", "!new"]);
        assert_eq!(read(Wanted { tail: Some(1), ..Wanted::default() }), ["!new"]);
        assert!(read(Wanted { tail: Some(0), ..Wanted::default() }).is_empty());
        assert_eq!(read(Wanted { since_ns: 2_000_000_000, ..Wanted::default() }), ["!new"]);
        assert_eq!(read(Wanted { until_ns: Some(2_000_000_000), ..Wanted::default() }), ["!old"]);
    }

    #[test]
    fn a_follower_hears_everything_over_changes_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let (ended, owner) = rustix::pipe::pipe().unwrap();
        let mut reader = Reader::open(dir.path(), Wanted::default());
        assert!(texts(&mut reader).is_empty());
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                let mut heard = Vec::new();
                reader
                    .follow(Some(&ended), &mut |entry| {
                        heard.push(entry.text.clone());
                        Ok(())
                    })
                    .unwrap();
                heard
            });
            let log = Writer::open(dir.path()).unwrap();
            for number in 0..100 {
                log.output(StreamKind::Stdout, format!("{number}\n").as_bytes());
            }
            drop(log);
            drop(owner);
            let heard = follower.join().unwrap();
            assert_eq!(heard, (0..100).map(|number| format!("{number}\n")).collect::<Vec<_>>());
        });
    }
}
