//! Files of lines that are bounded: one is written to, and becomes the older one, in place of the one before, when it is full.
//! This is the reading side: what there is, and what comes, over any number of changes of files.
//!
//! Whoever waits for more sleeps until the kernel tells of a change in the directory (inotify).

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Hears a line, with its end.
pub type Hear<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Two such files that are being read.
#[derive(Debug)]
pub struct Lines {
    dir: PathBuf,
    /// The names: of the one that is written to, and of the older one.
    names: [&'static str; 2],
    /// Longer lines are cut: these are no lines of ours.
    most_line: u64,
    /// The newer of the files, where it has been read to.
    file: Option<BufReader<File>>,
    /// A line whose end has not been written yet.
    part: Vec<u8>,
}

impl Lines {
    /// Those in a directory. Neither need be there yet.
    pub fn open(dir: &Path, names: [&'static str; 2], most_line: u64) -> Self {
        Lines { dir: dir.to_owned(), names, most_line, file: None, part: Vec::new() }
    }

    /// Passes on what there is.
    pub fn present(&mut self, hear: Hear<'_>) -> io::Result<()> {
        // What is renamed between the two is read once all the same: the newer file is opened first.
        let newer = self.open_newer()?;
        if let Some(older) = File::open(self.dir.join(self.names[1])).ok().filter(|older| !same(older, newer.as_ref()))
        {
            self.file = Some(BufReader::new(older));
            self.rest(hear)?;
            self.part.clear();
        }
        self.file = newer.map(BufReader::new);
        self.rest(hear)
    }

    /// Passes on what has come since, in the file there was and in the one that took its place.
    pub fn news(&mut self, hear: Hear<'_>) -> io::Result<()> {
        loop {
            self.rest(hear)?;
            let newer = self.open_newer()?;
            if newer.is_none() || self.file.as_ref().is_some_and(|file| same(file.get_ref(), newer.as_ref())) {
                return Ok(());
            }
            // What was written before the change of files has been read only if it is read now.
            self.rest(hear)?;
            self.part.clear();
            self.file = newer.map(BufReader::new);
        }
    }

    /// From now on changes are noticed.
    pub fn watch(&self) -> io::Result<Watch> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE;
        inotify::add_watch(&watch, &self.dir, flags)?;
        Ok(Watch(watch))
    }

    fn open_newer(&self) -> io::Result<Option<File>> {
        match File::open(self.dir.join(self.names[0])) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The rest of the file that is open.
    fn rest(&mut self, hear: Hear<'_>) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        loop {
            let room = self.most_line.saturating_sub(self.part.len() as u64);
            let count = io::Read::take(&mut *file, room).read_until(b'\n', &mut self.part)?;
            if !self.part.ends_with(b"\n") && room != 0 {
                if count == 0 {
                    return Ok(());
                }
                continue;
            }
            let line = std::mem::take(&mut self.part);
            hear(&line)?;
        }
    }
}

/// Notices changes.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Waits for one, for `other` to be readable, or for so long.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, patience: Option<Duration>) -> io::Result<()> {
        let patience = patience.map(|patience| Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        });
        let fds = [Some(self.0.as_fd()), other];
        let mut polled: Vec<_> =
            fds.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut polled, patience.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0u8; 4096];
        while rustix::io::read(&self.0, &mut events[..]).is_ok_and(|count| count != 0) {}
        Ok(())
    }
}

/// Whether something can be read there, or has ended, by now.
pub fn is_ready(fd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).is_ok_and(|count| count != 0)
}

fn same(one: &File, other: Option<&File>) -> bool {
    let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    other.is_some_and(|other| id(one) == id(other))
}
