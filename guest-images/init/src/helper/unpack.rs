//! Files of the host into the container.

use super::{Broken, Output, broken};
use crate::failure::Reason;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_protocol::files::{
    Bytes, Copied, Entry, EntryKind, FileMessage, MAX_FILE_FRAME, There, destination, is_contained, join,
};
use guest_protocol::{FrameBuffer, FrameError};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, linkat,
    lsetxattr, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{self, Errno};

/// Makes what comes from `input` at `path`.
///
/// # Errors
/// It cannot be made there, or does not come whole. What has been made stays.
pub fn all(input: BorrowedFd<'_>, path: &str, copied: &Copied, output: &mut Output<'_>) -> Result<(), Broken> {
    let there = match statat(CWD, path, AtFlags::empty()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => There::Directory,
        Ok(_) => There::Other,
        Err(Errno::NOENT) => There::Nothing,
        Err(error) => return Err(broken(path)(error)),
    };
    let top = destination(path, there, copied).map_err(|why| Broken(format!("{path}: {why}")))?;
    let mut making = Making { top: top.as_bytes(), file: None, directories: Vec::new() };
    let mut input = Input { fd: input, buffer: FrameBuffer::new(MAX_FILE_FRAME) };
    loop {
        match input.next()? {
            FileMessage::Entry(entry) => {
                let shown = shown(making.top, &entry.path.0);
                making.make(entry, output).map_err(|error| broken(&shown)(error))?;
            }
            FileMessage::Data(Bytes(data)) => making.write(&data)?,
            FileMessage::End => break,
            FileMessage::Failed(why) => return Err(Broken(why)),
            FileMessage::Note(_) | FileMessage::Process(_) | FileMessage::Usage(_) => {}
        }
    }
    making.finish()
}

/// What has come of the host.
struct Input<'a> {
    fd: BorrowedFd<'a>,
    buffer: FrameBuffer,
}

impl Input<'_> {
    fn next(&mut self) -> Result<FileMessage, Broken> {
        loop {
            let taken = self.buffer.take().map_err(|error: FrameError| Broken(format!("from the host: {error}")))?;
            if let Some(message) = taken {
                return Ok(message);
            }
            match io::read(self.fd, self.buffer.space()) {
                Ok(0) => return Err(Broken("what was to come from the host broke off".into())),
                Ok(count) => self.buffer.received(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken("reading from the host")(error)),
            }
        }
    }
}

/// What has been made so far.
struct Making<'a> {
    top: &'a [u8],
    /// The last regular file: its entry, and how much of it is still to come.
    file: Option<(OwnedFd, Entry, u64)>,
    /// What is made in a directory changes its time, and may need it to be writable: that is set at the end.
    directories: Vec<Entry>,
}

impl Making<'_> {
    /// The outer error is that it cannot be made.
    fn make(&mut self, entry: Entry, output: &mut Output<'_>) -> io::Result<()> {
        self.close()?;
        if !is_contained(&entry.path.0) {
            return Err(Errno::INVAL);
        }
        let place = join(self.top, &entry.path.0);
        let place = place.as_slice();
        let directory = matches!(entry.kind, EntryKind::Directory { .. });
        match statat(CWD, place, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                if !directory {
                    return Err(Errno::ISDIR);
                }
            }
            // The top may be a link to a directory: what is copied goes there.
            Ok(_) if directory && entry.path.0.is_empty() && is_directory(place) => {}
            Ok(_) if directory => return Err(Errno::NOTDIR),
            Ok(_) => unlinkat(CWD, place, AtFlags::empty())?,
            Err(Errno::NOENT) => make_parents(self.top, &entry.path.0)?,
            Err(error) => return Err(error),
        }
        let special = |kind, (major, minor)| -> io::Result<()> {
            mknodat(CWD, place, kind, Mode::RUSR | Mode::WUSR, makedev(major, minor) as Dev)
        };
        match &entry.kind {
            EntryKind::Directory { .. } => {
                match mkdirat(CWD, place, Mode::RWXU) {
                    Err(Errno::EXIST) => {}
                    other => other?,
                }
                self.directories.push(entry);
                return Ok(());
            }
            EntryKind::File { size } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(CWD, place, flags, Mode::RUSR | Mode::WUSR)?;
                let size = *size;
                self.file = Some((file, entry, size));
                return Ok(());
            }
            EntryKind::Symlink { target } => symlinkat(target.0.as_slice(), CWD, place)?,
            EntryKind::Hardlink { to } => {
                if !is_contained(&to.0) {
                    return Err(Errno::INVAL);
                }
                return linkat(CWD, join(self.top, &to.0).as_slice(), CWD, place, AtFlags::empty());
            }
            EntryKind::Character { device } => special(FileType::CharacterDevice, *device)?,
            EntryKind::Block { device } => special(FileType::BlockDevice, *device)?,
            EntryKind::Fifo => special(FileType::Fifo, (0, 0))?,
            EntryKind::Removed => return Ok(()),
        }
        match describe(place, &entry) {
            Ok(()) => Ok(()),
            Err(error) => {
                let why = format!("its owner, times or attributes: {}", Reason(error));
                output.note(&entry.path.0, &why).map_err(|_| Errno::PIPE)
            }
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Broken> {
        let Some((file, entry, left)) = &mut self.file else { return Err(Broken("data without a file".into())) };
        *left = left.checked_sub(data.len() as u64).ok_or_else(|| Broken("more data than the file has".into()))?;
        let mut rest = data;
        while !rest.is_empty() {
            match io::write(&*file, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken(&shown(self.top, &entry.path.0))(error)),
            }
        }
        Ok(())
    }

    /// The last file is complete.
    fn close(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some((file, entry, 0)) => {
                drop(file);
                describe(&join(self.top, &entry.path.0), &entry)
            }
            Some(_) => Err(Errno::NODATA),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), Broken> {
        self.close().map_err(broken("the last file"))?;
        for entry in self.directories.iter().rev() {
            let place = join(self.top, &entry.path.0);
            describe(&place, entry).map_err(broken(&shown(self.top, &entry.path.0)))?;
        }
        Ok(())
    }
}

/// Makes what is missing between the top and what `path` is in: archives need not speak of it.
fn make_parents(top: &[u8], path: &[u8]) -> io::Result<()> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends {
        let directory = join(top, path.get(..end).unwrap_or_default());
        match mkdirat(CWD, directory.as_slice(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn shown(top: &[u8], path: &[u8]) -> String {
    format!("{}", join(top, path).escape_ascii())
}

fn is_directory(place: &[u8]) -> bool {
    statat(CWD, place, AtFlags::empty()).is_ok_and(|stat| super::pack::is_directory(&stat))
}

/// Owner, attributes, permissions and time: in this order, since each of them may be lost with the one before.
fn describe(place: &[u8], entry: &Entry) -> io::Result<()> {
    let symlink = matches!(entry.kind, EntryKind::Symlink { .. });
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let follow = if matches!(entry.kind, EntryKind::Directory { .. }) { AtFlags::empty() } else { flags };
    chownat(CWD, place, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)), follow)?;
    for (name, value) in &entry.xattrs {
        match lsetxattr(place, name.0.as_slice(), &value.0, XattrFlags::empty()) {
            Err(Errno::NOTSUP) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    if !symlink {
        chmodat(CWD, place, Mode::from_raw_mode(entry.mode & 0o7777), AtFlags::empty())?;
    }
    let (tv_sec, nanoseconds) = entry.mtime;
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    utimensat(CWD, place, &Timestamps { last_access: time, last_modification: time }, follow)
}
