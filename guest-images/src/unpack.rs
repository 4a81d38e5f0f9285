//! An image as a directory, for those who cannot do with a disk image: the container runtimes that the benchmark compares with.
//!
//! The layers are stacked in memory first, so a path of the image leads through directories that were made here and through no
//! symbolic link. The directory is its caller's alone: nobody else puts anything into it meanwhile.

use crate::PreparedImage;
use crate::erofs::{BLOCK, stacked};
use crate::error::ImageError;
use crate::layer::Limits;
use crate::store::{Place, Progress};
use crate::tree::{Attrs, FileData, Kind, Node, NodeId, Tree};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// How much of a file is copied at a time; as much of zeros becomes a hole.
const CHUNK: usize = 64 << 10;

impl PreparedImage {
    /// Writes the image's files into `dir`, which is empty. Owners and attributes are the image's where this process may give them
    /// (root may), otherwise its own, and then its owner can write to each directory. Devices, pipes and sockets are left out: a container's runtime makes its own.
    ///
    /// # Errors
    /// A layer is damaged, or the directory cannot be written.
    pub fn unpack(&self, dir: &Path) -> Result<(), ImageError> {
        self.unpack_from(dir, |_| Some(Tree::ROOT)).map(drop)
    }

    /// The same with what the image has in its directory `path`, through every symbolic link. False: it has no such directory.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub fn unpack_directory(&self, path: &[u8], dir: &Path) -> Result<bool, ImageError> {
        self.unpack_from(dir, |tree| {
            let node = Place::of(tree, path).ok().and_then(|place| place.node);
            node.filter(|id| matches!(tree.node(*id).kind, Kind::Dir { .. }))
        })
    }

    /// The same from a directory on; false if there is none.
    fn unpack_from(&self, dir: &Path, top: impl FnOnce(&Tree) -> Option<NodeId>) -> Result<bool, ImageError> {
        let files: Vec<(&File, u64)> =
            self.lock.files().iter().zip(&self.layers).map(|(file, layer)| (file, layer.bytes)).collect();
        let store = self.layers.first().and_then(|layer| layer.path.parent()?.parent());
        unpack_layers(&files, store.unwrap_or(Path::new("")), dir, &mut (), top)
    }
}

/// Writes what is in the tree of these layers of a store, with their lengths, from `top` on.
pub(crate) fn unpack_layers(
    files: &[(&File, u64)],
    store: &Path,
    dir: &Path,
    progress: &mut dyn Progress,
    top: impl FnOnce(&Tree) -> Option<NodeId>,
) -> Result<bool, ImageError> {
    let limits = Limits::default();
    let (tree, _) = stacked(files, limits.metadata, limits.entries)
        .map_err(|source| ImageError::Merge { dir: store.to_owned(), source })?;
    let Some(top) = top(&tree) else { return Ok(false) };
    let root = rustix::process::geteuid().is_root();
    let total = files.iter().map(|(_, bytes)| bytes).sum();
    Unpacking { tree: &tree, files, root, links: HashMap::new(), progress, done: 0, total }.all(top, dir).map(|()| true)
}

struct Unpacking<'a> {
    tree: &'a Tree,
    /// The layers, in the order in which their blocks are counted.
    files: &'a [(&'a File, u64)],
    root: bool,
    /// Where files are already that may have another name.
    links: HashMap<NodeId, PathBuf>,
    progress: &'a mut dyn Progress,
    /// Bytes of files that are there, of so many that layers have.
    done: u64,
    total: u64,
}

impl Unpacking<'_> {
    fn all(&mut self, top: NodeId, dir: &Path) -> Result<(), ImageError> {
        let mut todo = vec![(top, dir.to_owned())];
        // Their attributes come last: a directory may be one that nobody can write to, and has its time from its last entry.
        let mut made = Vec::new();
        while let Some((id, path)) = todo.pop() {
            if let Kind::Dir { entries, .. } = &self.tree.node(id).kind {
                for (name, child) in entries {
                    let path = path.join(OsStr::from_bytes(name));
                    let put = self.put(*child, &path).map_err(ImageError::io("unpack", &path))?;
                    todo.extend(put.then_some((*child, path)));
                }
            }
            made.push((id, path));
        }
        for (id, path) in made.iter().rev() {
            let Node { attrs, .. } = self.tree.node(*id);
            self.dress(attrs, path, false).map_err(ImageError::io("unpack", path))?;
        }
        Ok(())
    }

    /// Makes what `id` is; true: a directory, whose entries are still to come.
    fn put(&mut self, id: NodeId, path: &Path) -> io::Result<bool> {
        let Node { attrs, kind } = self.tree.node(id);
        match kind {
            Kind::Dir { .. } => {
                DirBuilder::new().mode(0o700).create(path)?;
                return Ok(true);
            }
            Kind::Symlink(target) => {
                symlink(OsStr::from_bytes(target), path)?;
                self.dress(attrs, path, true)?;
            }
            Kind::File(data) => match self.links.get(&id) {
                Some(known) => fs::hard_link(known, path)?,
                None => {
                    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                    match data {
                        FileData::Inline(bytes) => file.write_all(bytes)?,
                        FileData::Blocks { start, size } => self.copy(*start, *size, &mut file)?,
                    }
                    self.dress(attrs, path, false)?;
                    self.links.insert(id, path.to_owned());
                    if let FileData::Blocks { size, .. } = data {
                        self.done += size;
                        self.progress.bytes(self.done.min(self.total), Some(self.total));
                    }
                }
            },
            Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo | Kind::Socket | Kind::Whiteout => {}
        }
        Ok(false)
    }

    /// Copies a file's data, which is in one of the layers.
    fn copy(&self, start: u32, size: u64, out: &mut File) -> io::Result<()> {
        let mut at = u64::from(start) * BLOCK as u64;
        let layer = self.files.iter().find_map(|(file, bytes)| {
            let length = bytes.next_multiple_of(BLOCK as u64);
            let here = at < length;
            at -= if here { 0 } else { length };
            here.then_some(*file)
        });
        let layer = layer.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut buffer = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK as u64) as usize];
            layer.read_exact_at(chunk, at)?;
            if chunk.iter().all(|byte| *byte == 0) {
                out.seek(SeekFrom::Current(chunk.len() as i64))?;
            } else {
                out.write_all(chunk)?;
            }
            at += chunk.len() as u64;
            left -= chunk.len() as u64;
        }
        out.set_len(size)
    }

    /// Owner, attributes, permissions and time.
    fn dress(&self, attrs: &Attrs, path: &Path, is_link: bool) -> io::Result<()> {
        if self.root {
            // Before the permissions: a change of owner takes set-id bits away.
            lchown(path, Some(attrs.uid), Some(attrs.gid))?;
            for (name, value) in &attrs.xattrs {
                match lsetxattr(path, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                    // The host's file system need not have them all.
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if !is_link {
            // Who is not root could not remove what is in a directory that nobody can write to.
            let own = if self.root || !path.is_dir() { 0 } else { 0o700 };
            fs::set_permissions(path, Permissions::from_mode(u32::from(attrs.mode) | own))?;
        }
        let time = Timespec { tv_sec: attrs.mtime, tv_nsec: attrs.mtime_nsec.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
