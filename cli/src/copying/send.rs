//! A file or directory of this host, as entries.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, anyhow};
use guest_protocol::files::{Bytes, Entry, EntryKind, FileMessage, MAX_DATA, join};
use rustix::fs::{OFlags, major, minor};

/// Whoever takes them.
pub type Sink<'a> = dyn FnMut(FileMessage) -> anyhow::Result<()> + 'a;

/// How files are to be seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Owners as they are here; root's otherwise.
    pub archive: bool,
    /// If the top is a symbolic link: what it leads to.
    pub follow: bool,
}

/// Sends what is at `top`, and all below it.
///
/// # Errors
/// It is not there or cannot be read, or nobody takes it.
pub fn all(top: &Path, how: How, sink: &mut Sink<'_>) -> anyhow::Result<()> {
    let mut links = HashMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let place =
            if path.is_empty() { top.to_owned() } else { top.join(Path::new(std::ffi::OsStr::from_bytes(&path))) };
        let read = || format!("cannot read {}", place.display());
        let follow = how.follow && path.is_empty();
        let meta = if follow { fs::metadata(&place) } else { fs::symlink_metadata(&place) }.with_context(read)?;
        let kind = meta.file_type();
        let device = (major(meta.rdev()), minor(meta.rdev()));
        let entry = |kind| FileMessage::Entry(entry(&path, kind, &meta, how.archive));
        let known = (meta.nlink() > 1 && !meta.is_dir()).then(|| links.get(&(meta.dev(), meta.ino()))).flatten();
        if let Some(to) = known {
            sink(entry(EntryKind::Hardlink { to: Bytes(Vec::clone(to)) }))?;
            continue;
        }
        if meta.is_dir() {
            sink(entry(EntryKind::Directory { opaque: false }))?;
            let mut names = Vec::new();
            for found in fs::read_dir(&place).with_context(read)? {
                names.push(found.with_context(read)?.file_name());
            }
            names.sort_unstable();
            waiting.extend(names.iter().rev().map(|name| join(&path, name.as_bytes())));
            continue;
        }
        if meta.nlink() > 1 {
            links.insert((meta.dev(), meta.ino()), path.clone());
        }
        if kind.is_symlink() {
            let target = fs::read_link(&place).with_context(read)?;
            sink(entry(EntryKind::Symlink { target: target.as_os_str().as_bytes().into() }))?;
        } else if kind.is_file() {
            send(&place, follow, &entry, sink).with_context(read)?;
        } else if kind.is_fifo() {
            sink(entry(EntryKind::Fifo))?;
        } else if kind.is_char_device() {
            sink(entry(EntryKind::Character { device }))?;
        } else if kind.is_block_device() {
            sink(entry(EntryKind::Block { device }))?;
        } else {
            eprintln!("bulkhead: left out: {}: a socket cannot be copied", place.display());
        }
    }
    Ok(())
}

/// Sends a regular file: as many bytes as it says first, whatever becomes of it meanwhile.
fn send(
    place: &Path,
    follow: bool,
    entry: &dyn Fn(EntryKind) -> FileMessage,
    sink: &mut Sink<'_>,
) -> anyhow::Result<()> {
    // Something else may have taken its place: it is not to be waited for.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    flags.set(OFlags::NOFOLLOW, !follow);
    let mut file = File::options().read(true).custom_flags(flags.bits() as i32).open(place)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(anyhow!("it has become something else"));
    }
    sink(entry(EntryKind::File { size: meta.len() }))?;
    let mut left = meta.len();
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_DATA);
        let mut data = vec![0; want];
        file.read_exact(&mut data).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => anyhow!("it became shorter while it was read"),
            _ => error.into(),
        })?;
        sink(FileMessage::Data(Bytes(data)))?;
        left -= want as u64;
    }
    Ok(())
}

fn entry(path: &[u8], kind: EntryKind, meta: &Metadata, archive: bool) -> Entry {
    let (uid, gid) = if archive { (meta.uid(), meta.gid()) } else { (0, 0) };
    Entry {
        path: path.into(),
        kind,
        mode: meta.mode() & 0o7777,
        uid,
        gid,
        mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
        xattrs: Vec::new(),
    }
}
