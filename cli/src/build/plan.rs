//! Where COPY and ADD put what: the entries of a layer, before any of it is written.
//!
//! The rules are docker's. Of a directory goes what is in it; a file goes into a directory that is there or is asked for by a slash,
//! and is the destination otherwise. What the image has there decides, through its links.

use std::collections::HashSet;
use std::io::Read;

use anyhow::{Context as _, anyhow, bail};
use guest_images::digest::{Algorithm, Hasher};
use guest_images::tree::{Attrs, Kind, NodeId, Tree};
use guest_images::{Contents, Digest};
use guest_protocol::encode;
use guest_protocol::files::{Bytes, Entry, EntryKind, FileMessage, MAX_DATA, MAX_FILE_FRAME};

use super::items::{Archived, Data, Item, MAX_ITEMS, What, extend};

/// An entry of the layer to be.
#[derive(Debug)]
struct Planned {
    path: Vec<u8>,
    attrs: Attrs,
    kind: EntryKind,
    data: Option<Data>,
}

/// How files are to be in the image, other than they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changed {
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Permissions.
    pub mode: Option<u16>,
    /// When what is made on the way is made, and no file is younger, if that is asked for: seconds since the epoch.
    pub made: i64,
    /// No file is younger.
    pub clamp: bool,
}

/// What goes into a layer on top of an image.
#[derive(Debug)]
pub struct Plan<'a> {
    image: &'a Contents,
    changed: Changed,
    entries: Vec<Planned>,
    /// Directories among them.
    made: HashSet<Vec<u8>>,
    /// What else is among them that names may lead through.
    placed: HashSet<Vec<u8>>,
    /// What comes is of an archive.
    unpacking: bool,
}

impl<'a> Plan<'a> {
    /// Nothing yet.
    pub fn new(image: &'a Contents, changed: Changed) -> Self {
        Plan { image, changed, entries: Vec::new(), made: HashSet::new(), placed: HashSet::new(), unpacking: false }
    }

    /// Puts items to the absolute path `to`; `into`: that is a directory, whether it is there or not.
    pub fn put(&mut self, items: Vec<Item>, to: &[u8], into: bool) -> anyhow::Result<()> {
        let shown = || anyhow!("destination '{}'", to.escape_ascii());
        let place = self.image.find(to).with_context(|| shown().to_string())?;
        let there = place.node.is_some_and(|id| self.image.is_directory(id));
        let into = into || there || items.len() > 1 || place.names.is_empty();
        if place.node.is_some() && !there && into {
            return Err(shown().context("it is no directory in the image"));
        }
        for item in items {
            let names: Vec<&[u8]> = place.names.iter().map(|name| &**name).collect();
            match item.what {
                What::Directory(items) => {
                    if place.node.is_some() && !there {
                        return Err(shown().context("a directory cannot be copied to it: the image has a file there"));
                    }
                    if there {
                        self.make(&names)?;
                    } else if let Some((_, above)) = names.split_last() {
                        self.make(above)?;
                        if self.made.insert(names.join(&b'/')) {
                            self.add(names.join(&b'/'), item.attrs, EntryKind::Directory { opaque: false }, None)?;
                        }
                    }
                    let path = names.join(&b'/');
                    items.into_iter().try_for_each(|item| self.below(&path, place.node, item))?;
                }
                _ if into => {
                    self.make(&names)?;
                    self.below(&names.join(&b'/'), place.node, item)?;
                }
                _ => {
                    let (name, above) = names.split_last().ok_or_else(shown)?;
                    self.make(above)?;
                    let item = Item { name: (*name).into(), ..item };
                    self.below(&above.join(&b'/'), None, item)?;
                }
            }
        }
        Ok(())
    }

    /// Puts the entries of an archive below the absolute path `to`.
    pub fn unpack(&mut self, entries: Archived, to: &[u8]) -> anyhow::Result<()> {
        self.unpacking = true;
        let done = self.unpack_all(entries, to);
        self.unpacking = false;
        done
    }

    fn unpack_all(&mut self, entries: Archived, to: &[u8]) -> anyhow::Result<()> {
        let top = self.image.find(to)?;
        if top.node.is_some_and(|id| !self.image.is_directory(id)) {
            bail!(
                "destination '{}': an archive cannot be unpacked there, it is no directory in the image",
                to.escape_ascii()
            );
        }
        let top: Vec<&[u8]> = top.names.iter().map(|name| &**name).collect();
        self.make(&top)?;
        let top = top.join(&b'/');
        let within = |path: &[u8]| {
            let mut whole = top.clone();
            extend(&mut whole, path);
            whole
        };
        for (path, mut item) in entries {
            let Some(above) = path.len().checked_sub(item.name.len() + 1) else {
                if !path.is_empty() {
                    self.below(&top, None, item)?;
                }
                continue;
            };
            if let What::Hardlink(target) = &mut item.what {
                let names = guest_images::tree::components(target)?;
                *target = within(&names.join(&b'/'));
            }
            // Through the image's own links, as tar would.
            let above = self.image.find(&within(&path[..above]))?.names;
            let above: Vec<&[u8]> = above.iter().map(|name| &**name).collect();
            self.make_unless_planned(&above)?;
            self.below(&above.join(&b'/'), None, item)?;
        }
        Ok(())
    }

    /// An empty directory, if it is not there: what WORKDIR asks for.
    pub fn make_directory(&mut self, path: &[u8]) -> anyhow::Result<()> {
        let place = self.image.find(path)?;
        match place.node {
            Some(id) if self.image.is_directory(id) => return Ok(()),
            Some(_) => bail!("'{}' is no directory in the image", path.escape_ascii()),
            None => {}
        }
        let names: Vec<&[u8]> = place.names.iter().map(|name| &**name).collect();
        self.make(&names)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Has the directories of a path, of which no name is a link, be in the layer: as they are in the image, or made. What a layer does
    /// not describe would become anybody's directory again.
    fn make(&mut self, names: &[&[u8]]) -> anyhow::Result<()> {
        let (mut here, mut path) = (Some(Tree::ROOT), Vec::new());
        for name in names {
            extend(&mut path, name);
            here = here.and_then(|id| self.image.child(id, name));
            if !self.made.insert(path.clone()) {
                continue;
            }
            let kind = EntryKind::Directory { opaque: false };
            match here {
                Some(id) => {
                    let attrs = self.image.node(id).attrs.clone();
                    self.entries.push(Planned { path: path.clone(), attrs, kind, data: None });
                }
                None => {
                    let attrs = Attrs { mode: 0o755, mtime: self.changed.made, ..Attrs::default() };
                    let mode = self.changed.mode.take();
                    let added = self.add(path.clone(), attrs, kind, None);
                    self.changed.mode = mode;
                    added?;
                }
            }
        }
        Ok(())
    }

    /// As [`Self::make`], but through what an archive itself has put there, links among it, as that has it.
    fn make_unless_planned(&mut self, names: &[&[u8]]) -> anyhow::Result<()> {
        let missing = |end: usize| !self.placed.contains(&names[..end].join(&b'/'));
        let own = (1..=names.len()).all(missing);
        if own { self.make(names) } else { Ok(()) }
    }

    /// Puts an item into the directory at `above`, which is `node` in the image, if that is known.
    fn below(&mut self, above: &[u8], node: Option<NodeId>, item: Item) -> anyhow::Result<()> {
        let mut path = above.to_vec();
        extend(&mut path, &item.name);
        let mut there = match node {
            Some(id) => self.image.child(id, &item.name),
            None => self.image.find(above)?.node.and_then(|id| self.image.child(id, &item.name)),
        };
        let is_directory = |id: NodeId| self.image.is_directory(id);
        let (kind, data) = match item.what {
            What::Directory(items) => {
                if there.is_some_and(|id| matches!(self.image.node(id).kind, Kind::Symlink(_))) {
                    let place = self.image.find(&path)?;
                    (path, there) = (place.names.join(&b'/'), place.node);
                }
                if there.is_some_and(|id| !is_directory(id)) {
                    bail!("'/{}': a directory cannot replace the image's file", path.escape_ascii());
                }
                let kind = EntryKind::Directory { opaque: false };
                match there.filter(|_| !self.unpacking) {
                    // One that is there stays what it is; an archive says what it is to be.
                    Some(id) if self.made.insert(path.clone()) => {
                        let attrs = self.image.node(id).attrs.clone();
                        self.entries.push(Planned { path: path.clone(), attrs, kind, data: None });
                    }
                    Some(_) => {}
                    None => {
                        self.made.insert(path.clone());
                        self.add(path.clone(), item.attrs, kind, None)?;
                    }
                }
                return items.into_iter().try_for_each(|item| self.below(&path, there, item));
            }
            _ if there.is_some_and(is_directory) => {
                bail!("'/{}': a file cannot replace the image's directory", path.escape_ascii())
            }
            What::File { size, data } => (EntryKind::File { size }, Some(data)),
            What::Symlink(target) => {
                self.placed.insert(path.clone());
                (EntryKind::Symlink { target: Bytes(target.into_vec()) }, None)
            }
            What::Hardlink(to) => (EntryKind::Hardlink { to: Bytes(to) }, None),
            What::Special(Kind::Char { major, minor }) => (EntryKind::Character { device: (major, minor) }, None),
            What::Special(Kind::Block { major, minor }) => (EntryKind::Block { device: (major, minor) }, None),
            What::Special(Kind::Fifo) => (EntryKind::Fifo, None),
            // A socket is nothing without who listens, and a whiteout nothing at all.
            What::Special(_) => return Ok(()),
        };
        self.add(path, item.attrs, kind, data)
    }

    fn add(&mut self, path: Vec<u8>, mut attrs: Attrs, kind: EntryKind, data: Option<Data>) -> anyhow::Result<()> {
        if self.entries.len() >= MAX_ITEMS {
            bail!("more than {MAX_ITEMS} files in one layer");
        }
        if let Some((uid, gid)) = self.changed.owner {
            (attrs.uid, attrs.gid) = (uid, gid);
        }
        if let (Some(mode), false) = (self.changed.mode, matches!(kind, EntryKind::Symlink { .. })) {
            attrs.mode = mode;
        }
        if self.changed.clamp && attrs.mtime >= self.changed.made {
            (attrs.mtime, attrs.mtime_nsec) = (self.changed.made, 0);
        }
        self.entries.push(Planned { path, attrs, kind, data });
        Ok(())
    }

    /// What `archive::write` takes, from the beginning.
    pub fn messages(&self) -> Messages<'_> {
        Messages { entries: self.entries.iter(), data: None, hasher: Hasher::new(Algorithm::Sha256) }
    }

    /// A digest of all that is in it, but for times. All files are read.
    pub fn digest(&self) -> anyhow::Result<Digest> {
        let mut messages = self.messages();
        while messages.next()?.is_some() {}
        Ok(messages.digest())
    }
}

/// See [`Plan::messages`].
pub struct Messages<'a> {
    entries: std::slice::Iter<'a, Planned>,
    /// The rest of a file.
    data: Option<(&'a [u8], Box<dyn Read + 'a>, u64)>,
    hasher: Hasher,
}

impl Messages<'_> {
    /// The next one.
    pub fn next(&mut self) -> anyhow::Result<Option<FileMessage>> {
        if let Some((path, reader, left)) = &mut self.data {
            let mut chunk = vec![0; usize::try_from(*left).unwrap_or(MAX_DATA).min(MAX_DATA)];
            reader.read_exact(&mut chunk).with_context(|| format!("'/{}' cannot be read", path.escape_ascii()))?;
            self.hasher.update(&chunk);
            *left -= chunk.len() as u64;
            if *left == 0 {
                self.data = None;
            }
            return Ok(Some(FileMessage::Data(Bytes(chunk))));
        }
        let Some(planned) = self.entries.next() else { return Ok(None) };
        if let (Some(data), EntryKind::File { size: size @ 1.. }) = (&planned.data, &planned.kind) {
            self.data = Some((&planned.path, data.open(*size)?, *size));
        }
        let Attrs { mode, uid, gid, mtime, mtime_nsec, xattrs } = &planned.attrs;
        let bytes = |bytes: &[u8]| Bytes(bytes.to_vec());
        let mut entry = Entry {
            path: Bytes(planned.path.clone()),
            kind: planned.kind.clone(),
            mode: u32::from(*mode),
            uid: *uid,
            gid: *gid,
            mtime: (0, 0),
            xattrs: xattrs.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        };
        let frame = encode(&FileMessage::Entry(entry.clone()), MAX_FILE_FRAME);
        self.hasher.update(&frame.map_err(|error| anyhow!("'/{}': {error}", planned.path.escape_ascii()))?);
        entry.mtime = (*mtime, *mtime_nsec);
        Ok(Some(FileMessage::Entry(entry)))
    }

    /// Of all that has been told.
    pub fn digest(self) -> Digest {
        self.hasher.finish()
    }
}
