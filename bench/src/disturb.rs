//! Processes of the host that are bad neighbours in the way of a microVM whose guest is one (`bench_guest::flood`): what a share is worth
//! against these, [`neighbours`](crate::neighbours) has beside what it is worth against microVMs.
//!
//! A microVM has a thread that computes, its vCPU, and one that does what that asks for; so do they.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc::{TryRecvError, TrySendError, sync_channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

/// Bytes that are written at a time.
const PIECE: usize = 4096;
/// Pieces that may be asked for and not written yet.
const DEPTH: usize = 32;

/// How to disturb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One thread computes.
    Compute,
    /// One thread asks, and another writes: 4 KiB to one place of a file after the other, at random and through the page cache.
    Write,
    /// One thread wakes another up, over and over.
    Wake,
}

impl Way {
    /// All, with their names.
    pub const ALL: [(&str, Way); 3] = [("compute", Way::Compute), ("wake", Way::Wake), ("write", Way::Write)];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, way)| *way == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let way = Self::ALL.into_iter().find(|(known, _)| *known == name);
        way.map(|(_, way)| way).ok_or_else(|| format!("none of {:?}", Self::ALL.map(|(name, _)| name)))
    }
}

/// Disturbs until it is killed, or cannot: with `file`, of which each piece may be overwritten.
///
/// # Errors
/// The file cannot be written to, or has no room for a piece; the host has no thread for it.
pub fn disturb(way: Way, file: &Path) -> io::Result<()> {
    match way {
        Way::Compute => loop {
            std::hint::spin_loop();
        },
        Way::Write => write(&OpenOptions::new().write(true).open(file)?),
        Way::Wake => wake(),
    }
}

fn write(file: &File) -> io::Result<()> {
    let places = file.metadata()?.len() / PIECE as u64;
    if places == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let (ask, asked) = sync_channel::<u64>(DEPTH);
    thread::scope(|scope| {
        let writer = thread::Builder::new().spawn_scoped(scope, move || {
            asked.iter().try_for_each(|place| file.write_all_at(&[0; PIECE], place * PIECE as u64))
        })?;
        let mut random = fastrand::Rng::with_seed(1);
        loop {
            let mut place = random.u64(..places);
            // As a guest does that looks for what has been done.
            while let Err(TrySendError::Full(again)) = ask.try_send(place) {
                place = again;
                std::hint::spin_loop();
            }
            if writer.is_finished() {
                drop(ask);
                return writer.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            }
        }
    })
}

fn wake() -> io::Result<()> {
    let event = eventfd(0, EventfdFlags::empty())?;
    let (woken, seen) = sync_channel::<()>(DEPTH);
    thread::scope(|scope| {
        let event = event.as_fd();
        thread::Builder::new().spawn_scoped(scope, move || -> io::Result<()> {
            loop {
                rustix::io::read(event, &mut [0; 8])?;
                if woken.send(()).is_err() {
                    return Ok(());
                }
            }
        })?;
        loop {
            rustix::io::write(event, &1u64.to_ne_bytes())?;
            while let Err(TryRecvError::Empty) = seen.try_recv() {
                std::hint::spin_loop();
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ways_have_names() {
        assert!(Way::ALL.iter().all(|(name, way)| way.name() == *name && name.parse() == Ok(*way)));
        assert!("spin".parse::<Way>().is_err());
    }

    #[test]
    fn a_file_without_room_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let kind = |path: &Path| disturb(Way::Write, path).map_err(|error| error.kind());
        assert_eq!(kind(&path), Err(io::ErrorKind::NotFound));
        fs::write(&path, [1; PIECE - 1]).unwrap();
        assert_eq!(kind(&path), Err(io::ErrorKind::WriteZero));
        assert_eq!(fs::read(&path).unwrap(), [1; PIECE - 1]);
    }
}
