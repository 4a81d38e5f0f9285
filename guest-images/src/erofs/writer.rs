//! The end of an image: directories, inodes and superblock, once all file data is out.
//!
//! Inodes lie breadth first: the entries of one directory are neighbours, each directory's own (last) entries follow its
//! inode. A path lookup in a guest reads few blocks that way, and block requests are what costs there.

use super::ErofsError;
use super::blocks::BlockWriter;
use super::dirents::{self, Entry};
use super::format::{BLOCK, FileType, INODE_SIZE, Inode, Layout, SLOT, SuperBlock, device_number, encode_xattrs};
use crate::tree::{FileData, Kind, NodeId, Tree};
use std::io::{Seek, Write};

/// The first inode's place in the metadata: not 0, since a file whose inode number is 0 is invisible to many programs.
const FIRST: u64 = 64;

/// Where and how one inode is stored.
struct Place {
    id: NodeId,
    /// The directory it was first found in (the root's is itself).
    parent: NodeId,
    /// Bytes from the start of the metadata.
    offset: u64,
    size: u64,
    layout: Layout,
    /// First block of what is not inline, or the device number.
    addr: u32,
    xattrs: Vec<u8>,
}

impl Place {
    fn nid(&self) -> u64 {
        self.offset / SLOT as u64
    }

    /// How much of the data follows the inode.
    fn inline_len(&self) -> usize {
        match self.layout {
            Layout::Plain => 0,
            Layout::Inline => (self.size % BLOCK as u64) as usize,
        }
    }

    fn len(&self) -> usize {
        INODE_SIZE + self.xattrs.len() + self.inline_len()
    }
}

/// Writes directories, inodes and the superblock, and returns the output and the image's length in bytes.
/// `uuid` is the file system's; the same tree, data and `uuid` give the same bytes.
///
/// # Errors
/// Writing fails, the limit is reached, or an inode cannot be represented.
pub fn finish<W: Write + Seek>(tree: Tree, out: BlockWriter<W>, uuid: [u8; 16]) -> Result<(W, u64), ErofsError> {
    finish_with(tree, out, uuid, Data::Within)
}

/// Where the data of files that are not inline is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    /// In the image.
    Within,
    /// In this many blocks that follow it.
    Behind(u32),
}

/// As [`finish`].
pub(super) fn finish_with<W: Write + Seek>(
    mut tree: Tree,
    mut out: BlockWriter<W>,
    uuid: [u8; 16],
    data: Data,
) -> Result<(W, u64), ErofsError> {
    drop_hidden_whiteouts(&mut tree);
    let mut table = Table::collect(&tree)?;
    for place in &mut table.places {
        spill(&mut tree, place, &mut out)?;
    }
    table.assign_offsets();
    for index in 0..table.places.len() {
        table.write_directory_blocks(&tree, index, &mut out)?;
    }
    let meta_block = out.next_block();
    if let Data::Behind(blocks) = data {
        let own = u64::from(meta_block) + table.bytes().div_ceil(BLOCK as u64);
        let end = u32::try_from(own + u64::from(blocks)).map_err(|_| ErofsError::TooLarge(u64::from(u32::MAX)))?;
        table.move_data(&tree, end - blocks);
    }
    table.write_inodes(&tree, &mut out)?;
    // The first inode, in the first block or, if it is too long for what is left of that, at the start of the second.
    let root_nid = table.places.first().map_or(0, Place::nid) as u16;
    let inodes = table.places.len() as u64;
    out.finish(|blocks| SuperBlock { root_nid, inodes, blocks, meta_block, uuid }.encode())
}

/// A whiteout in an opaque directory hides nothing, and overlayfs would list it (overlayfs.rst, "whiteouts and opaque
/// directories").
fn drop_hidden_whiteouts(tree: &mut Tree) {
    let mut todo = vec![Tree::ROOT];
    while let Some(dir) = todo.pop() {
        let Kind::Dir { entries, opaque } = &tree.node(dir).kind else {
            continue;
        };
        let mut hidden = Vec::new();
        for (name, id) in entries {
            match tree.node(*id).kind {
                Kind::Dir { .. } => todo.push(*id),
                Kind::Whiteout if *opaque => hidden.push(name.clone()),
                _ => {}
            }
        }
        if let Kind::Dir { entries, .. } = &mut tree.node_mut(dir).kind {
            for name in &hidden {
                entries.remove(name);
            }
        }
    }
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Dir { .. } => FileType::Directory,
        Kind::File(_) => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Char { .. } | Kind::Whiteout => FileType::Char,
        Kind::Block { .. } => FileType::Block,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// Moves bytes that were to be inline, but do not fit beside the inode and its attributes, into blocks of their own.
fn spill<W: Write + Seek>(tree: &mut Tree, place: &mut Place, out: &mut BlockWriter<W>) -> Result<(), ErofsError> {
    let bytes = match &tree.node(place.id).kind {
        Kind::File(FileData::Inline(bytes)) | Kind::Symlink(bytes) => bytes,
        _ => return Ok(()),
    };
    if place.layout == Layout::Plain && place.size > 0 {
        place.addr = out.next_block();
        out.write(bytes)?;
        out.pad()?;
    }
    Ok(())
}

/// All inodes of an image, in the order they are stored.
struct Table {
    places: Vec<Place>,
    /// Per node of the tree: its index in `places`.
    index: Vec<Option<u32>>,
    /// Per node of the tree: how many names it has.
    nlink: Vec<u32>,
}

impl Table {
    /// Walks the tree breadth first.
    fn collect(tree: &Tree) -> Result<Table, ErofsError> {
        let mut table = Table { places: Vec::new(), index: vec![None; tree.len()], nlink: vec![0; tree.len()] };
        table.add(tree, Tree::ROOT, Tree::ROOT)?;
        table.nlink[Tree::ROOT.index()] = 2;
        let mut next = 0;
        while next < table.places.len() {
            let dir = table.places[next].id;
            next += 1;
            let Kind::Dir { entries, .. } = &tree.node(dir).kind else {
                continue;
            };
            for id in entries.values() {
                let is_dir = matches!(tree.node(*id).kind, Kind::Dir { .. });
                table.nlink[id.index()] += if is_dir { 2 } else { 1 };
                if is_dir {
                    table.nlink[dir.index()] += 1;
                }
                if table.index[id.index()].is_none() {
                    table.add(tree, *id, dir)?;
                }
            }
        }
        Ok(table)
    }

    fn add(&mut self, tree: &Tree, id: NodeId, parent: NodeId) -> Result<(), ErofsError> {
        let node = tree.node(id);
        let mut opaque_dir = false;
        let (size, addr, may_inline) = match &node.kind {
            Kind::Dir { entries, opaque } => {
                opaque_dir = *opaque;
                (dirents::size(names_with_dots(entries.keys().map(|name| &**name))), 0, true)
            }
            Kind::File(FileData::Blocks { start, size }) => (*size, *start, false),
            Kind::File(FileData::Inline(bytes)) | Kind::Symlink(bytes) => (bytes.len() as u64, 0, true),
            Kind::Char { major, minor } | Kind::Block { major, minor } => (0, device_number(*major, *minor)?, false),
            Kind::Fifo | Kind::Socket | Kind::Whiteout => (0, 0, false),
        };
        let xattrs = encode_xattrs(&node.attrs.xattrs, opaque_dir)?;
        let tail = (size % BLOCK as u64) as usize;
        let fits = INODE_SIZE + xattrs.len() + tail <= BLOCK;
        let layout = if may_inline && tail > 0 && fits { Layout::Inline } else { Layout::Plain };
        self.index[id.index()] = Some(self.places.len() as u32);
        self.places.push(Place { id, parent, offset: 0, size, layout, addr, xattrs });
        Ok(())
    }

    /// No inode with what follows it crosses a block's end, unless its attributes alone are longer than a block.
    fn assign_offsets(&mut self) {
        let mut offset = FIRST;
        for place in &mut self.places {
            let room = BLOCK - (offset % BLOCK as u64) as usize;
            if place.len() > room {
                offset = offset.next_multiple_of(BLOCK as u64);
            }
            place.offset = offset;
            offset = (offset + place.len() as u64).next_multiple_of(SLOT as u64);
        }
    }

    /// Bytes of all inodes with what is stored beside them.
    fn bytes(&self) -> u64 {
        self.places.last().map_or(0, |place| place.offset + place.len() as u64)
    }

    /// Counts the blocks of file data from another place on.
    fn move_data(&mut self, tree: &Tree, by: u32) {
        for place in &mut self.places {
            if matches!(tree.node(place.id).kind, Kind::File(FileData::Blocks { .. })) {
                place.addr += by;
            }
        }
    }

    fn place(&self, id: NodeId) -> Option<&Place> {
        self.index[id.index()].map(|i| &self.places[i as usize])
    }

    /// The bytes of a directory, `.` and `..` among its names.
    fn directory(&self, tree: &Tree, place: &Place) -> Vec<u8> {
        let Kind::Dir { entries, .. } = &tree.node(place.id).kind else {
            return Vec::new();
        };
        let nid = |id| self.place(id).map_or(0, Place::nid);
        let dots = [(&b"."[..], place.id), (&b".."[..], place.parent)];
        let named = entries.iter().map(|(name, id)| (&**name, *id));
        let mut list: Vec<Entry<'_>> = dots
            .into_iter()
            .chain(named)
            .map(|(name, id)| Entry { name, nid: nid(id), file_type: file_type(&tree.node(id).kind) })
            .collect();
        list.sort_by_key(|entry| entry.name);
        dirents::encode(&list)
    }

    fn write_directory_blocks<W: Write + Seek>(
        &mut self,
        tree: &Tree,
        index: usize,
        out: &mut BlockWriter<W>,
    ) -> Result<(), ErofsError> {
        let place = &self.places[index];
        let inline = place.inline_len() as u64;
        if !matches!(tree.node(place.id).kind, Kind::Dir { .. }) || place.size == inline {
            return Ok(());
        }
        let bytes = self.directory(tree, place);
        self.places[index].addr = out.next_block();
        out.write(&bytes[..bytes.len() - inline as usize])?;
        out.pad()
    }

    fn write_inodes<W: Write + Seek>(&self, tree: &Tree, out: &mut BlockWriter<W>) -> Result<(), ErofsError> {
        let mut written = 0;
        for (i, place) in self.places.iter().enumerate() {
            let node = tree.node(place.id);
            let inode = Inode {
                layout: place.layout,
                file_type: file_type(&node.kind),
                attrs: &node.attrs,
                xattr_bytes: place.xattrs.len(),
                size: place.size,
                addr: place.addr,
                ino: i as u32 + 1,
                nlink: self.nlink[place.id.index()],
            };
            out.zeros(place.offset - written)?;
            out.write(&inode.encode())?;
            out.write(&place.xattrs)?;
            if place.layout == Layout::Inline {
                match &node.kind {
                    Kind::File(FileData::Inline(bytes)) | Kind::Symlink(bytes) => out.write(bytes)?,
                    _ => {
                        let bytes = self.directory(tree, place);
                        out.write(&bytes[bytes.len() - place.inline_len()..])?;
                    }
                }
            }
            written = place.offset + place.len() as u64;
        }
        Ok(())
    }
}

/// A directory's names with `.` and `..` at their places in byte order.
fn names_with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut all: Vec<&[u8]> = [&b"."[..], b".."].into_iter().chain(names).collect();
    all.sort();
    all.into_iter()
}
