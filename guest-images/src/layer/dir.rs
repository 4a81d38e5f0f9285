//! A directory of the host as one layer, and the fingerprint that tells whether it changed.
//!
//! Owners, modes, times, attributes and hard links are taken as they are on disk; names have no special meaning. Other
//! file systems mounted below the directory are left out (an empty directory marks the place). A file that this user
//! may not read is an error: an image without it would be a different one.

use super::{Builder, LayerError, Limits, clean};
use crate::erofs;
use crate::tree::{Attrs, FileData, Kind, NodeId, Tree, TreeError, Xattrs};
use rustix::fs::{lgetxattr, llistxattr, major, minor};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a directory cannot become an image.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// A file or directory cannot be read.
    #[error("cannot read '{}': {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file was replaced or changed its size meanwhile.
    #[error("'{}' changed while it was read", .0.display())]
    Changed(PathBuf),
    /// Not a directory.
    #[error("'{}' is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Longer than a guest could use.
    #[error("the path '{}' is longer than 4095 bytes", .0.display())]
    TooLong(PathBuf),
    /// More than the limits allow.
    #[error("'{}': {source}", path.display())]
    Limit {
        /// At which file.
        path: PathBuf,
        /// Which limit.
        source: TreeError,
    },
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> DirError {
    let path = path.to_owned();
    move |source| DirError::Read { path, source }
}

/// One file found by the walk: depth first, entries in byte order.
struct Found {
    path: PathBuf,
    /// Components below the root; 0 is the root.
    depth: usize,
    meta: Metadata,
}

/// Walks `root` without following symlinks or entering other file systems.
fn walk(root: &Path, mut visit: impl FnMut(&Found) -> Result<(), LayerError>) -> Result<(), LayerError> {
    let meta = fs::metadata(root).map_err(read_error(root))?;
    if !meta.is_dir() {
        return Err(DirError::NotADirectory(root.to_owned()).into());
    }
    let device = meta.dev();
    let base = root.as_os_str().len();
    let mut todo = vec![Found { path: root.to_owned(), depth: 0, meta }];
    while let Some(found) = todo.pop() {
        visit(&found)?;
        if !found.meta.is_dir() || found.meta.dev() != device {
            continue;
        }
        if found.path.as_os_str().len() - base > crate::tree::PATH_MAX {
            return Err(DirError::TooLong(found.path).into());
        }
        let mut entries = Vec::new();
        for entry in fs::read_dir(&found.path).map_err(read_error(&found.path))? {
            let path = entry.map_err(read_error(&found.path))?.path();
            let meta = fs::symlink_metadata(&path).map_err(read_error(&path))?;
            entries.push(Found { path, depth: found.depth + 1, meta });
        }
        // Last one first: the stack turns the order round.
        entries.sort_by(|a, b| b.path.as_os_str().cmp(a.path.as_os_str()));
        todo.append(&mut entries);
    }
    Ok(())
}

/// A digest over names and metadata (type, mode, owner, size, device, inode, modification and change time) of everything
/// below `root`. While it stays the same the contents did too, unless someone set the clock back.
///
/// # Errors
/// The directory cannot be walked.
pub fn fingerprint(root: &Path) -> Result<[u8; 32], LayerError> {
    let mut hash = Sha256::new();
    walk(root, |found| {
        let m = &found.meta;
        let name = found.path.as_os_str().as_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        let numbers =
            [m.mode().into(), m.uid().into(), m.gid().into(), m.size(), m.rdev(), m.dev(), m.ino(), m.nlink()];
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
        numbers.iter().for_each(|n| hash.update(n.to_le_bytes()));
        times.iter().for_each(|n| hash.update(n.to_le_bytes()));
        Ok(())
    })?;
    Ok(hash.finalize().into())
}

/// Converts the directory `root` into an image in `out` (empty, at position 0) and returns its length in bytes.
/// `on_bytes` hears how many bytes of file data were read so far.
///
/// # Errors
/// See [`LayerError`]. What is in `out` is then worthless.
pub fn from_dir<W: Write + Seek>(
    root: &Path,
    out: W,
    limits: Limits,
    uuid: [u8; 16],
    mut on_bytes: impl FnMut(u64),
) -> Result<u64, LayerError> {
    let mut builder = Builder::new(out, limits)?;
    // The directories above the file in hand; the walk is depth first.
    let mut parents: Vec<NodeId> = Vec::new();
    let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
    let mut done = 0;
    walk(root, |found| {
        let (path, meta) = (&found.path, &found.meta);
        let limit = |source| DirError::Limit { path: path.clone(), source };
        if found.depth == 0 {
            builder.tree.node_mut(Tree::ROOT).attrs = attrs(path, meta)?;
            parents = vec![Tree::ROOT];
            return Ok(());
        }
        parents.truncate(found.depth);
        let dir = parents.last().copied().unwrap_or(Tree::ROOT);
        let name = path.file_name().unwrap_or_default().as_bytes();
        let key = (meta.dev(), meta.ino());
        let shared = meta.nlink() > 1 && !meta.is_dir();
        if let Some(&node) = linked.get(&key).filter(|_| shared) {
            return Ok(builder.tree.link(dir, name, node).map_err(limit)?);
        }
        let kind = kind(&mut builder, path, meta)?;
        done += if meta.is_file() { meta.size() } else { 0 };
        on_bytes(done);
        let node = builder.tree.insert(dir, name, attrs(path, meta)?, kind).map_err(limit)?;
        if meta.is_dir() {
            parents.push(node);
        } else if shared {
            linked.insert(key, node);
        }
        Ok(())
    })?;
    let (_, bytes) = erofs::finish(builder.tree, builder.out, uuid)?;
    Ok(bytes)
}

fn kind<W: Write + Seek>(builder: &mut Builder<W>, path: &Path, meta: &Metadata) -> Result<Kind, LayerError> {
    let file_type = meta.file_type();
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    Ok(if file_type.is_dir() {
        Kind::empty_dir()
    } else if file_type.is_file() {
        Kind::File(file_data(builder, path, meta)?)
    } else if file_type.is_symlink() {
        let target = fs::read_link(path).map_err(read_error(path))?;
        Kind::Symlink(target.as_os_str().as_bytes().into())
    } else if file_type.is_char_device() {
        Kind::Char { major, minor }
    } else if file_type.is_block_device() {
        Kind::Block { major, minor }
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else {
        Kind::Socket
    })
}

/// Opens a file and makes sure that it is the one the walk saw.
fn open(path: &Path, seen: &Metadata) -> Result<File, DirError> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(read_error(path))?;
    let now = file.metadata().map_err(read_error(path))?;
    let same = (now.dev(), now.ino(), now.size()) == (seen.dev(), seen.ino(), seen.size());
    if same { Ok(file) } else { Err(DirError::Changed(path.to_owned())) }
}

fn file_data<W: Write + Seek>(builder: &mut Builder<W>, path: &Path, meta: &Metadata) -> Result<FileData, LayerError> {
    let mut file = open(path, meta)?;
    let size = meta.size();
    if builder.is_inline(size) {
        // INLINE_MAX bounds this.
        let mut bytes = vec![0; size as usize];
        file.read_exact(&mut bytes).map_err(read_error(path))?;
        return Ok(FileData::Inline(bytes.into()));
    }
    let start = builder.out.next_block();
    let mut buffer = vec![0u8; 256 << 10];
    let mut left = size;
    while left > 0 {
        let want = left.min(buffer.len() as u64) as usize;
        let got = file.read(&mut buffer[..want]).map_err(read_error(path))?;
        if got == 0 {
            return Err(DirError::Changed(path.to_owned()).into());
        }
        builder.out.write(&buffer[..got])?;
        left -= got as u64;
    }
    builder.out.pad()?;
    Ok(FileData::Blocks { start, size })
}

fn attrs(path: &Path, meta: &Metadata) -> Result<Attrs, DirError> {
    let attrs = Attrs {
        mode: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: meta.mtime(),
        // The kernel keeps this below 10^9.
        mtime_nsec: meta.mtime_nsec() as u32,
        xattrs: xattrs(path).map_err(|e| read_error(path)(e.into()))?,
    };
    Ok(clean(attrs))
}

/// All attributes that this user can see. A file system without any has none.
fn xattrs(path: &Path) -> Result<Xattrs, rustix::io::Errno> {
    let mut names = vec![0u8; 64 << 10];
    let len = match llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Xattrs::new()),
        Err(e) => return Err(e),
    };
    let mut value = Vec::new();
    let mut found = Xattrs::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        value.resize(64 << 10, 0);
        match lgetxattr(path, OsStr::from_bytes(name), &mut value) {
            Ok(len) => drop(found.insert(name.into(), value[..len].into())),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}
