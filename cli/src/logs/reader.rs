//! Reading a log: what there is, and what comes.
//!
//! Whoever follows sleeps until the kernel tells of a change in the container's directory (inotify), or of the end of the process
//! that has the container.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::{FILE, Line, OLDER};
use crate::clock;

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
    dir: PathBuf,
    wanted: Wanted,
    /// The newer of the files, where it has been read to.
    file: Option<BufReader<File>>,
    /// A line whose end has not been written yet.
    part: Vec<u8>,
}

impl Reader {
    /// Reads the log in a container's directory.
    pub fn open(dir: &Path, wanted: Wanted) -> Self {
        Reader { dir: dir.to_owned(), wanted, file: None, part: Vec::new() }
    }

    /// Passes on what there is.
    pub fn present(&mut self, print: &mut dyn FnMut(&Entry) -> io::Result<()>) -> io::Result<()> {
        let mut last = VecDeque::new();
        let tail = self.wanted.tail;
        let mut keep = |entry: &Entry| match tail {
            None => print(entry),
            Some(most) => {
                last.push_back(entry.clone());
                if last.len() > most {
                    last.pop_front();
                }
                Ok(())
            }
        };
        // What is renamed between the two is read once all the same: the newer file is opened first.
        let newer = self.open_newer()?;
        if let Some(older) = File::open(self.dir.join(OLDER)).ok().filter(|older| !same(older, newer.as_ref())) {
            self.file = Some(BufReader::new(older));
            self.rest(&mut keep)?;
            self.part.clear();
        }
        self.file = newer.map(BufReader::new);
        self.rest(&mut keep)?;
        last.iter().try_for_each(print)
    }

    /// Passes on what comes, until the container is nobody's any more: `owner` becomes readable then.
    pub fn follow(
        &mut self,
        owner: Option<&OwnedFd>,
        print: &mut dyn FnMut(&Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE;
        inotify::add_watch(&watch, &self.dir, flags)?;
        loop {
            // Looked at before the log is: what it wrote last is there by then.
            let over = owner.is_none_or(|owner| readable(&[owner], false).is_ok_and(|ready| ready));
            self.news(print)?;
            let (Some(owner), false) = (owner, over) else { return Ok(()) };
            readable(&[&watch, owner], true)?;
            let mut events = [0u8; 4096];
            while rustix::io::read(&watch, &mut events[..]).is_ok_and(|count| count != 0) {}
        }
    }

    /// What has come since, in the file there was and in the one that took its place.
    fn news(&mut self, print: &mut dyn FnMut(&Entry) -> io::Result<()>) -> io::Result<()> {
        loop {
            self.rest(print)?;
            let newer = self.open_newer()?;
            if newer.is_none() || same_reader(self.file.as_ref(), newer.as_ref()) {
                return Ok(());
            }
            // What was written before the change of files has been read only if it is read now.
            self.rest(print)?;
            self.part.clear();
            self.file = newer.map(BufReader::new);
        }
    }

    fn open_newer(&self) -> io::Result<Option<File>> {
        match File::open(self.dir.join(FILE)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The rest of the file that is open. What is no line is left out.
    fn rest(&mut self, print: &mut dyn FnMut(&Entry) -> io::Result<()>) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        loop {
            let room = MOST_LINE.saturating_sub(self.part.len() as u64);
            let count = io::Read::take(&mut *file, room).read_until(b'\n', &mut self.part)?;
            if !self.part.ends_with(b"\n") && room != 0 {
                if count == 0 {
                    return Ok(());
                }
                continue;
            }
            let line = serde_json::from_slice::<Line>(&self.part);
            self.part.clear();
            if let Ok(line) = line {
                let at = clock::moment(&line.time, 0).unwrap_or(0);
                if at >= self.wanted.since_ns && self.wanted.until_ns.is_none_or(|until| at <= until) {
                    print(&Entry { is_error: line.stream == "stderr", time: line.time, text: line.log })?;
                }
            }
        }
    }
}

/// Whether one of them can be read, now or once it can.
fn readable(fds: &[&OwnedFd], wait: bool) -> io::Result<bool> {
    let timeout = (!wait).then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    match poll(&mut polled, timeout.as_ref()) {
        Ok(count) => Ok(count != 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn same(one: &File, other: Option<&File>) -> bool {
    let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    other.is_some_and(|other| id(one) == id(other))
}

fn same_reader(reader: Option<&BufReader<File>>, other: Option<&File>) -> bool {
    reader.is_some_and(|reader| same(reader.get_ref(), other))
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
