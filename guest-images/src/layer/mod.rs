//! Turns one layer into one EROFS image: a tar stream ([`from_tar`]) or a directory ([`from_dir`]).
//!
//! Each layer is converted on its own; overlayfs in the guest puts them together, so deletions become overlayfs's marks
//! (a 0:0 character device for a whiteout, an attribute for an opaque directory). Nothing is unpacked: names only ever
//! meet the [`Tree`] in memory, so a hostile name can reach nothing on the host. Bytes, entries and memory are bounded by
//! [`Limits`].

mod dir;
mod pax;
mod sparse;
pub mod tar;

pub use dir::{DirError, fingerprint, from_dir};

use crate::erofs::{self, BlockWriter, ErofsError, INLINE_MAX};
use crate::tree::{Attrs, FileData, Kind, Tree, TreeError, Xattrs, components};
use std::io::{Read, Seek, Write};
use tar::{Entry, EntryKind, TarError, TarReader};

/// What converting one layer may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed layer, and bytes of the image (holes of sparse files included).
    pub bytes: u64,
    /// Files in the layer.
    pub entries: u64,
    /// Memory for file metadata, in bytes.
    pub metadata: u64,
}

impl Default for Limits {
    /// 256 GiB, 4 million files, 1 GiB of memory: above any image in use, below what hurts a host.
    fn default() -> Self {
        Limits { bytes: 256 << 30, entries: 4_000_000, metadata: 1 << 30 }
    }
}

/// What a tar file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// A layer: names that start with `.wh.` delete things in lower layers.
    Layer,
    /// A whole root file system: every name is just a name.
    Rootfs,
}

/// Why a layer cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream is broken.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry cannot be part of an image.
    #[error("entry '{path}': {source}")]
    Entry {
        /// The entry's name, as text.
        path: String,
        /// What is wrong with it.
        source: TreeError,
    },
    /// A name that only whiteouts may have, in a place where it means nothing.
    #[error("entry '{0}': not a valid whiteout")]
    Whiteout(String),
    /// The image cannot be written.
    #[error(transparent)]
    Image(#[from] ErofsError),
    /// A directory cannot be read.
    #[error(transparent)]
    Dir(#[from] DirError),
}

/// Prefix of whiteout names (OCI image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Marks its directory as opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are private to one storage driver and mean nothing here.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// overlayfs's own attributes: what an image has of these must not steer the guest's overlay.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// An image under construction: its metadata in memory, its data on the way out.
struct Builder<W> {
    tree: Tree,
    out: BlockWriter<W>,
    limits: Limits,
}

impl<W: Write + Seek> Builder<W> {
    fn new(out: W, limits: Limits) -> Result<Self, ErofsError> {
        let tree = Tree::new(limits.metadata, limits.entries);
        Ok(Builder { tree, out: BlockWriter::new(out, limits.bytes)?, limits })
    }

    /// Whether a file of this size goes beside its inode. At most half of the memory budget is spent on such files.
    fn is_inline(&self, size: u64) -> bool {
        size <= INLINE_MAX && self.tree.budget_left() > self.limits.metadata / 2
    }
}

/// Converts the tar stream `input` into an image in `out` (empty, at position 0) and returns the image's length in
/// bytes. `uuid` becomes the file system's. What follows the archive's end mark in `input` is not read.
///
/// # Errors
/// See [`LayerError`]. What is in `out` is then worthless.
pub fn from_tar<R: Read, W: Write + Seek>(
    input: R,
    out: W,
    flavour: Flavour,
    limits: Limits,
    uuid: [u8; 16],
) -> Result<u64, LayerError> {
    let mut reader = TarReader::new(input);
    let mut builder = Builder::new(out, limits)?;
    while let Some(entry) = reader.next_entry()? {
        add_entry(&mut builder, &mut reader, entry, flavour)?;
    }
    let (_, bytes) = erofs::finish(builder.tree, builder.out, uuid)?;
    Ok(bytes)
}

fn add_entry<R: Read, W: Write + Seek>(
    builder: &mut Builder<W>,
    reader: &mut TarReader<R>,
    entry: Entry,
    flavour: Flavour,
) -> Result<(), LayerError> {
    let fail = |source| LayerError::Entry { path: String::from_utf8_lossy(&entry.path).into_owned(), source };
    let parts = components(&entry.path).map_err(fail)?;
    let Some((&name, parents)) = parts.split_last() else {
        if entry.kind != EntryKind::Dir {
            return Err(fail(TreeError::Root));
        }
        builder.tree.node_mut(Tree::ROOT).attrs = clean(entry.attrs);
        return Ok(());
    };
    if flavour == Flavour::Layer {
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(LayerError::Whiteout(String::from_utf8_lossy(&entry.path).into_owned()));
        }
        if name.starts_with(WHITEOUT) {
            return add_whiteout(&mut builder.tree, parents, name, &entry.path);
        }
    }
    let dir = builder.tree.make_dirs(parents).map_err(fail)?;
    let kind = match entry.kind {
        EntryKind::HardLink(ref target) => {
            return hard_link(&mut builder.tree, dir, name, target).map_err(fail);
        }
        EntryKind::File => Kind::File(file_data(builder, reader, &entry)?),
        EntryKind::Dir => Kind::empty_dir(),
        EntryKind::Symlink(ref target) if target.len() > crate::tree::PATH_MAX => {
            return Err(fail(TreeError::PathTooLong));
        }
        EntryKind::Symlink(ref target) if target.contains(&0) => return Err(fail(TreeError::Nul)),
        EntryKind::Symlink(ref target) => Kind::Symlink(target.as_slice().into()),
        EntryKind::Char { major, minor } => Kind::Char { major, minor },
        EntryKind::Block { major, minor } => Kind::Block { major, minor },
        EntryKind::Fifo => Kind::Fifo,
    };
    let fail = |source| LayerError::Entry { path: String::from_utf8_lossy(&entry.path).into_owned(), source };
    builder.tree.insert(dir, name, clean(entry.attrs.clone()), kind).map_err(fail)?;
    Ok(())
}

/// Drops the attributes that an image may not set or the image format cannot hold.
fn clean(mut attrs: Attrs) -> Attrs {
    let dropped = |name: &[u8]| name.starts_with(OVERLAY_XATTRS) || erofs::split_xattr_name(name).is_none();
    if attrs.xattrs.keys().any(|name| dropped(name)) {
        attrs.xattrs = attrs.xattrs.into_iter().filter(|(name, _)| !dropped(name)).collect::<Xattrs>();
    }
    attrs
}

fn add_whiteout(tree: &mut Tree, parents: &[&[u8]], name: &[u8], path: &[u8]) -> Result<(), LayerError> {
    let fail = |source| LayerError::Entry { path: String::from_utf8_lossy(path).into_owned(), source };
    if name == OPAQUE {
        let dir = tree.make_dirs(parents).map_err(fail)?;
        if let Kind::Dir { opaque, .. } = &mut tree.node_mut(dir).kind {
            *opaque = true;
        }
        return Ok(());
    }
    if name.starts_with(WHITEOUT_META) {
        tracing::debug!(entry = %String::from_utf8_lossy(path), "ignored: a storage driver's private entry");
        return Ok(());
    }
    let target = &name[WHITEOUT.len()..];
    if matches!(target, b"" | b"." | b"..") {
        return Err(LayerError::Whiteout(String::from_utf8_lossy(path).into_owned()));
    }
    let dir = tree.make_dirs(parents).map_err(fail)?;
    tree.insert(dir, target, Attrs::default(), Kind::Whiteout).map_err(fail)?;
    Ok(())
}

fn hard_link(tree: &mut Tree, dir: crate::tree::NodeId, name: &[u8], target: &[u8]) -> Result<(), TreeError> {
    let text = || String::from_utf8_lossy(target).into_owned();
    let found = tree.lookup(&components(target)?)?.ok_or_else(|| TreeError::LinkTarget(text()))?;
    match tree.node(found).kind {
        Kind::Dir { .. } => Err(TreeError::LinkToDirectory(text())),
        Kind::Whiteout => Err(TreeError::LinkTarget(text())),
        _ => tree.link(dir, name, found),
    }
}

/// Takes a file's bytes from the stream into the image or into memory.
fn file_data<R: Read, W: Write + Seek>(
    builder: &mut Builder<W>,
    reader: &mut TarReader<R>,
    entry: &Entry,
) -> Result<FileData, LayerError> {
    if builder.is_inline(entry.size) {
        // INLINE_MAX bounds this.
        let mut bytes = vec![0u8; entry.size as usize];
        for segment in &entry.segments {
            reader.read_data(&mut bytes[segment.offset as usize..][..segment.len as usize])?;
        }
        return Ok(FileData::Inline(bytes.into()));
    }
    let start = builder.out.next_block();
    let mut buffer = vec![0u8; 128 << 10];
    let mut at = 0;
    for segment in &entry.segments {
        builder.out.zeros(segment.offset - at)?;
        let mut left = segment.len;
        while left > 0 {
            let take = left.min(buffer.len() as u64) as usize;
            reader.read_data(&mut buffer[..take])?;
            builder.out.write(&buffer[..take])?;
            left -= take as u64;
        }
        at = segment.offset + segment.len;
    }
    builder.out.zeros(entry.size - at)?;
    builder.out.pad()?;
    Ok(FileData::Blocks { start, size: entry.size })
}
