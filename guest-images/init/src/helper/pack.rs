//! Files of the container to the host.

use super::{Broken, Output, broken, open, read_full};
use crate::failure::Reason;
use crate::volumes;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use guest_protocol::files::{Bytes, Entry, EntryKind, FileMessage, MAX_DATA, join};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, lgetxattr, lgetxattr_query, llistxattr,
    llistxattr_query, major, minor, openat, readlinkat_raw, statat,
};
use rustix::io::{self, Errno};

/// Names of one piece of a directory.
const NAMES: usize = 32 << 10;
/// Longest target of a symbolic link (PATH_MAX).
const LINK: usize = 4096;
/// What overlayfs keeps for itself, also where it is mounted by who is no user of the host's (the option `userxattr`).
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Kernel file systems, which are nobody's files.
const KERNEL: [&[u8]; 3] = [b"/dev", b"/proc", b"/sys"];

/// Sends what is at `path`.
///
/// # Errors
/// There is nothing, or it cannot be read; what cannot be read below it is noted.
pub fn all(output: &mut Output<'_>, path: &str, follow: bool) -> Result<(), Broken> {
    let top = path.as_bytes();
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = statat(CWD, top, flags).map_err(broken(path))?;
    let mut walk = Walk { output, top, links: BTreeMap::new() };
    let mut waiting = vec![Vec::new()];
    walk.entry(&[], &stat, follow).map_err(broken(path))??;
    if !is_directory(&stat) {
        return Ok(());
    }
    while let Some(directory) = waiting.pop() {
        let names = match names(&join(top, &directory)) {
            Ok(names) => names,
            Err(error) if directory.is_empty() => return Err(broken(path)(error)),
            Err(error) => {
                walk.output.note(&directory, &format!("{}", Reason(error)))?;
                continue;
            }
        };
        for name in names {
            let path = join(&directory, &name);
            let place = join(top, &path);
            let looked = statat(CWD, place.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
            let sent = looked.and_then(|stat| walk.entry(&path, &stat, false).map(|sent| (stat, sent)));
            match sent {
                Ok((stat, sent)) => {
                    sent?;
                    if is_directory(&stat) && !KERNEL.contains(&place.as_slice()) {
                        waiting.push(path);
                    }
                }
                // It went away meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => walk.output.note(&path, &format!("{}", Reason(error)))?,
            }
        }
    }
    Ok(())
}

/// What is sent, and what of it has other names.
struct Walk<'o, 'f, 't> {
    output: &'o mut Output<'f>,
    top: &'t [u8],
    links: BTreeMap<(u64, u64), Bytes>,
}

impl Walk<'_, '_, '_> {
    /// Sends one entry with its content. The outer error is that it cannot be read.
    fn entry(&mut self, path: &[u8], stat: &Stat, follow: bool) -> io::Result<Result<(), Broken>> {
        let place = join(self.top, path);
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryKind::Directory { opaque: false },
            FileType::Symlink => EntryKind::Symlink { target: link(&place)? },
            FileType::RegularFile => return self.file(path, &place, follow),
            FileType::CharacterDevice => EntryKind::Character { device: (major(stat.st_rdev), minor(stat.st_rdev)) },
            FileType::BlockDevice => EntryKind::Block { device: (major(stat.st_rdev), minor(stat.st_rdev)) },
            FileType::Fifo => EntryKind::Fifo,
            // A socket is nothing without who listens.
            _ => return Ok(self.output.note(path, "a socket cannot be copied")),
        };
        let entry = described(path, kind, stat, attributes(&place, follow)?.0);
        Ok(self.output.say(&FileMessage::Entry(entry)))
    }

    fn file(&mut self, path: &[u8], place: &[u8], follow: bool) -> io::Result<Result<(), Broken>> {
        let file = open(place, follow)?;
        let stat = fstat(&file)?;
        let attributes = attributes(place, follow)?.0;
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(to) = self.links.get(&id) {
                let entry = described(path, EntryKind::Hardlink { to: to.clone() }, &stat, attributes);
                return Ok(self.output.say(&FileMessage::Entry(entry)));
            }
            self.links.insert(id, path.into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(send(self.output, described(path, EntryKind::File { size }, &stat, attributes), &file))
    }
}

/// Sends a regular file: as many bytes as it said, whatever becomes of it meanwhile.
pub fn send(output: &mut Output<'_>, entry: Entry, file: &rustix::fd::OwnedFd) -> Result<(), Broken> {
    let EntryKind::File { size } = entry.kind else { return Ok(()) };
    let path = entry.path.clone();
    output.say(&FileMessage::Entry(entry))?;
    let mut left = size;
    let mut problem = None;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_DATA);
        let mut data = vec![0; want];
        if problem.is_none() {
            problem = match read_full(file, &mut data) {
                Ok(count) if count == want => None,
                Ok(_) => Some("it became shorter while it was read; zeros take the place of the rest".into()),
                Err(error) => Some(format!("{}; zeros take the place of the rest", Reason(error))),
            };
        }
        output.say(&FileMessage::Data(Bytes(data)))?;
        left -= want as u64;
    }
    problem.map_or(Ok(()), |problem| output.note(&path.0, &problem))
}

/// What `stat` says of something.
pub fn described(path: &[u8], kind: EntryKind, stat: &Stat, xattrs: Vec<(Bytes, Bytes)>) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        xattrs,
    }
}

/// Whether it is a directory.
pub fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What is in a symbolic link.
pub fn link(place: &[u8]) -> io::Result<Bytes> {
    let mut target = vec![0; LINK];
    let count = readlinkat_raw(CWD, place, target.as_mut_slice())?;
    target.truncate(count);
    Ok(Bytes(target))
}

/// Extended attributes, without those of overlayfs; and whether it says that a directory is opaque.
pub fn attributes(place: &[u8], follow: bool) -> io::Result<(Vec<(Bytes, Bytes)>, bool)> {
    let none = Ok((Vec::new(), false));
    // What a link leads to is looked at by its own name only.
    if follow {
        return none;
    }
    let mut list = match llistxattr_query(place) {
        Ok(0) | Err(Errno::NOTSUP) => return none,
        length => vec![0; length?],
    };
    let length = llistxattr(place, list.as_mut_slice())?;
    list.truncate(length);
    let (mut found, mut opaque) = (Vec::new(), false);
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; lgetxattr_query(place, name)?.max(1)];
        let length = lgetxattr(place, name, value.as_mut_slice())?;
        value.truncate(length);
        match OVERLAY.iter().find_map(|prefix| name.strip_prefix(*prefix)) {
            Some(name) => opaque |= name == b"opaque" && value == b"y",
            // Where it comes to it is no volume.
            None if name == volumes::MARK.as_bytes() => {}
            None => found.push((name.into(), Bytes(value))),
        }
    }
    Ok((found, opaque))
}

/// The names in a directory, in no order.
pub fn names(place: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The top may be a link that is to be followed, and was looked at.
    let directory = match openat(CWD, place, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => openat(CWD, place, flags - OFlags::NOFOLLOW, Mode::empty())?,
        other => other?,
    };
    let mut buffer = vec![MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(directory, buffer.as_mut_slice());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}
