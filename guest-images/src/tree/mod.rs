//! A file tree in memory: the metadata of one layer while it is being converted.
//!
//! File contents are not here (they go to the image as they arrive), except those small enough to be stored beside
//! their inode. Nodes live in one arena and never refer to the host's file system, so no name in an archive can reach
//! outside. What the tree may cost in memory is bounded by [`Tree::new`]'s budget.

mod path;

pub use path::{NAME_MAX, PATH_MAX, TreeError, components};

use path::Walk;
use std::collections::BTreeMap;

/// Index of a node in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// Position in the arena, for side tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Extended attributes: full name (`security.capability`) to value, sorted so that images are reproducible.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    /// Permission bits with setuid, setgid and sticky (`mode & 0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Modification time, the nanoseconds within the second.
    pub mtime_nsec: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Attrs {
    /// What a directory gets that no entry describes: mode 0755, root's, no time.
    pub fn implicit_dir() -> Self {
        Attrs { mode: 0o755, ..Attrs::default() }
    }
}

/// Where a regular file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileData {
    /// Small: here, to be stored beside the inode.
    Inline(Box<[u8]>),
    /// In the image already, in consecutive blocks.
    Blocks {
        /// First block.
        start: u32,
        /// Length in bytes.
        size: u64,
    },
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Directory: names to nodes, and whether it hides what lower layers have at its place.
    Dir {
        /// The entries, without `.` and `..`, in byte order.
        entries: BTreeMap<Box<[u8]>, NodeId>,
        /// Lower layers' entries do not show.
        opaque: bool,
    },
    /// Regular file.
    File(FileData),
    /// Symbolic link and its target.
    Symlink(Box<[u8]>),
    /// Character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// The name is deleted: lower layers' file of this name does not show.
    Whiteout,
}

impl Kind {
    /// A directory without entries.
    pub fn empty_dir() -> Kind {
        Kind::Dir { entries: BTreeMap::new(), opaque: false }
    }
}

/// One inode.
#[derive(Clone, Debug)]
pub struct Node {
    /// Owner, mode, time, attributes.
    pub attrs: Attrs,
    /// What it is.
    pub kind: Kind,
}

/// The file tree of one layer.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    cost: u64,
    budget: u64,
    max_entries: u64,
}

impl Tree {
    /// The root's id.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of just a root directory, that may grow to about `budget` bytes of memory and `max_entries` nodes.
    pub fn new(budget: u64, max_entries: u64) -> Self {
        let root = Node { attrs: Attrs::implicit_dir(), kind: Kind::empty_dir() };
        Tree { nodes: vec![root], cost: 0, budget, max_entries: max_entries.min(u64::from(u32::MAX) - 1) }
    }

    /// The node of an id handed out by this tree.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// As [`Tree::node`], to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// How many ids were handed out, including nodes replaced since.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How much of the memory budget is left, in bytes.
    pub fn budget_left(&self) -> u64 {
        self.budget.saturating_sub(self.cost)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.cost += bytes as u64;
        if self.cost > self.budget { Err(TreeError::Budget(self.budget)) } else { Ok(()) }
    }

    fn entries(&self, dir: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.node(dir).kind {
            Kind::Dir { entries, .. } => Some(entries),
            _ => None,
        }
    }

    /// The child of that name, if `dir` is a directory and has one.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entries(dir)?.get(name).copied()
    }

    /// Adds or replaces `name` in `dir`. A directory that meets a directory takes the new attributes and keeps its
    /// entries; anything else replaces what was there. A directory in the place of a whiteout becomes opaque, and a
    /// whiteout for a name that this layer has makes a directory opaque and else does nothing: whiteouts are about
    /// lower layers, in whatever order the entries come (OCI image-spec, layer.md, "Whiteouts").
    ///
    /// # Errors
    /// The memory budget or the number of entries is used up.
    pub fn insert(&mut self, dir: NodeId, name: &[u8], attrs: Attrs, kind: Kind) -> Result<NodeId, TreeError> {
        if let Some(old) = self.child(dir, name) {
            let was_whiteout = matches!(self.node(old).kind, Kind::Whiteout);
            match (&mut self.nodes[old.index()].kind, &kind) {
                (Kind::Dir { opaque, .. }, Kind::Whiteout) => *opaque = true,
                (_, Kind::Whiteout) => {}
                (Kind::Dir { .. }, Kind::Dir { .. }) => {
                    self.charge_attrs(&attrs)?;
                    self.node_mut(old).attrs = attrs;
                }
                _ => {
                    let id = self.add(attrs, kind, name.len())?;
                    if let Kind::Dir { opaque, .. } = &mut self.node_mut(id).kind {
                        *opaque = was_whiteout;
                    }
                    return Ok(self.bind(dir, name, id));
                }
            }
            return Ok(old);
        }
        let id = self.add(attrs, kind, name.len())?;
        Ok(self.bind(dir, name, id))
    }

    /// Takes a name out of a directory, if it is there.
    pub fn remove(&mut self, dir: NodeId, name: &[u8]) {
        if let Kind::Dir { entries, .. } = &mut self.node_mut(dir).kind {
            entries.remove(name);
        }
    }

    /// Gives an existing node that is no directory one more name.
    ///
    /// # Errors
    /// As [`Tree::insert`].
    pub fn link(&mut self, dir: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        self.charge(name.len() + 64)?;
        self.bind(dir, name, target);
        Ok(())
    }

    fn bind(&mut self, dir: NodeId, name: &[u8], id: NodeId) -> NodeId {
        if let Kind::Dir { entries, .. } = &mut self.node_mut(dir).kind {
            entries.insert(name.into(), id);
        }
        id
    }

    fn charge_attrs(&mut self, attrs: &Attrs) -> Result<(), TreeError> {
        let xattrs: usize = attrs.xattrs.iter().map(|(k, v)| k.len() + v.len() + 128).sum();
        self.charge(xattrs)
    }

    fn add(&mut self, attrs: Attrs, kind: Kind, name_len: usize) -> Result<NodeId, TreeError> {
        let payload = match &kind {
            Kind::File(FileData::Inline(bytes)) | Kind::Symlink(bytes) => bytes.len(),
            _ => 0,
        };
        self.charge(size_of::<Node>() + 64 + name_len + payload)?;
        self.charge_attrs(&attrs)?;
        if self.nodes.len() as u64 > self.max_entries {
            return Err(TreeError::Entries(self.max_entries));
        }
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| TreeError::Entries(self.max_entries))?);
        self.nodes.push(Node { attrs, kind });
        Ok(id)
    }

    /// Follows `path` to a directory, making the missing ones (mode 0755, root's). Symlinks on the way are followed
    /// inside the tree, with the tree's root as `/`, as a program chrooted into the image would.
    ///
    /// # Errors
    /// A parent that is a file, a symlink loop, and limits.
    pub fn make_dirs(&mut self, path: &[&[u8]]) -> Result<NodeId, TreeError> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next() {
            if *name == *b".." {
                walk.up();
                continue;
            }
            let here = walk.here();
            let next = match self.child(here, &name).map(|id| (id, &self.node(id).kind)) {
                None | Some((_, Kind::Whiteout)) => {
                    self.insert(here, &name, Attrs::implicit_dir(), Kind::empty_dir())?
                }
                Some((id, Kind::Dir { .. })) => id,
                Some((_, Kind::Symlink(target))) => {
                    walk.follow(target)?;
                    continue;
                }
                Some(_) => return Err(TreeError::NotADirectory),
            };
            walk.enter(next);
        }
        Ok(walk.here())
    }

    /// Finds what `path` names, following symlinks in its parents (not a last one).
    ///
    /// # Errors
    /// A symlink loop. `Ok(None)`: there is no such file.
    pub fn lookup(&self, path: &[&[u8]]) -> Result<Option<NodeId>, TreeError> {
        let Some((last, parents)) = path.split_last() else {
            return Ok(Some(Self::ROOT));
        };
        let mut walk = Walk::new(parents);
        while let Some(name) = walk.next() {
            if *name == *b".." {
                walk.up();
                continue;
            }
            let Some(id) = self.child(walk.here(), &name) else {
                return Ok(None);
            };
            match &self.node(id).kind {
                Kind::Dir { .. } => walk.enter(id),
                Kind::Symlink(target) => walk.follow(target)?,
                _ => return Ok(None),
            }
        }
        Ok(self.child(walk.here(), last))
    }
}
