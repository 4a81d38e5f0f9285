//! The files of an image, read on the host: what it has where, and what is in it.

use super::blobs::FromStart;
use super::build::Draft;
use super::layers::Held;
use super::{Progress, Store};
use crate::erofs::{BLOCK, stacked};
use crate::error::ImageError;
use crate::tree::{FileData, Kind, Node, NodeId, Tree, TreeError, components};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Most symbolic links on the way to one file (as the kernel's MAXSYMLINKS), and most names of a path with what they lead to.
const MAX_SYMLINKS: usize = 40;
const MAX_NAMES: usize = 4096;

/// All files of an image. What it lies on stays for as long as this lives.
#[derive(Debug)]
pub struct Contents {
    tree: Tree,
    /// Each layer's image, locked, and the number of its first block; lowest first.
    layers: Vec<(File, u64)>,
}

/// Where a path leads, through every symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The names from the root on, none of them a link.
    pub names: Vec<Box<[u8]>>,
    /// What is there, if anything is.
    pub node: Option<NodeId>,
}

impl Store {
    /// The files of an image in the making.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn draft_contents(&self, draft: &Draft, progress: &mut dyn Progress) -> Result<Contents, ImageError> {
        match draft.diff_ids().next() {
            Some(_) => self.contents_of(self.convert_draft(draft, progress)?.1),
            None => Ok(Contents::none()),
        }
    }

    /// The files of a root file system: a directory or a tar file.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn rootfs_contents(&self, path: &Path, progress: &mut dyn Progress) -> Result<Contents, ImageError> {
        self.contents_of(vec![self.rootfs_layer(path, progress)?])
    }

    fn contents_of(&self, held: Vec<Held>) -> Result<Contents, ImageError> {
        let layers: Vec<(&File, u64)> = held.iter().map(|held| (&held.file, held.layer.bytes)).collect();
        let (tree, _) = stacked(&layers, self.limits.metadata, self.limits.entries)
            .map_err(|source| ImageError::Merge { dir: self.dir.clone(), source })?;
        let mut first = 0;
        let place = |held: Held| {
            let at = first;
            first += held.layer.bytes.div_ceil(BLOCK as u64);
            (held.file, at)
        };
        Ok(Contents { tree, layers: held.into_iter().map(place).collect() })
    }
}

impl Contents {
    /// Those of an image without layers: an empty root directory.
    #[must_use]
    pub fn none() -> Self {
        Contents { tree: Tree::new(0, 0), layers: Vec::new() }
    }

    /// A file, directory or link.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        self.tree.node(id)
    }

    /// Whether something is a directory.
    #[must_use]
    pub fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, Kind::Dir { .. })
    }

    /// What a directory has of this name, links not followed.
    #[must_use]
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.tree.child(directory, name)
    }

    /// Where `path` leads, from the root, whether it is there or not.
    ///
    /// # Errors
    /// It is no path, goes through a file, or through links without end.
    pub fn find(&self, path: &[u8]) -> Result<Place, TreeError> {
        Place::of(&self.tree, path)
    }

    /// The bytes of a regular file; none of anything else.
    #[must_use]
    pub fn read(&self, id: NodeId) -> Box<dyn Read + '_> {
        match &self.node(id).kind {
            Kind::File(FileData::Inline(bytes)) => Box::new(&bytes[..]),
            Kind::File(FileData::Blocks { start, size }) => {
                let start = u64::from(*start);
                match self.layers.iter().rev().find(|(_, first)| *first <= start) {
                    Some((file, first)) => Box::new(FromStart { file, at: (start - first) * BLOCK as u64 }.take(*size)),
                    None => Box::new(io::empty()),
                }
            }
            _ => Box::new(io::empty()),
        }
    }

    /// The first `most` bytes of the file that a path leads to; none where there is no file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_small(&self, path: &[u8], most: u64) -> io::Result<Vec<u8>> {
        let place = self.find(path).ok().and_then(|place| place.node);
        let mut bytes = Vec::new();
        if let Some(id) = place {
            self.read(id).take(most).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

impl Place {
    /// Where `path` leads in a tree, from its root, whether it is there or not.
    ///
    /// # Errors
    /// It is no path, goes through a file, or through links without end.
    pub(crate) fn of(tree: &Tree, path: &[u8]) -> Result<Place, TreeError> {
        components(path).map(drop).or_else(|error| if error == TreeError::Escapes { Ok(()) } else { Err(error) })?;
        let mut todo: Vec<Box<[u8]>> = names_of(path);
        let (mut here, mut missing) = (vec![(Box::default(), Tree::ROOT)], Vec::new());
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let (_, directory) = here[here.len() - 1];
            match (&*name, tree.child(directory, &name)) {
                (b"..", _) if !missing.is_empty() => drop(missing.pop()),
                (b"..", _) if here.len() > 1 => drop(here.pop()),
                (b"..", _) => {}
                (_, Some(id)) if missing.is_empty() => match &tree.node(id).kind {
                    Kind::Symlink(target) => {
                        links += 1;
                        todo.extend(names_of(target));
                        if links > MAX_SYMLINKS || todo.len() > MAX_NAMES {
                            return Err(TreeError::SymlinkLoop);
                        }
                        if target.first() == Some(&b'/') {
                            here.truncate(1);
                        }
                    }
                    Kind::Dir { .. } => here.push((name, id)),
                    _ if todo.is_empty() => here.push((name, id)),
                    _ => return Err(TreeError::NotADirectory),
                },
                _ => missing.push(name),
            }
        }
        let node = missing.is_empty().then(|| here[here.len() - 1].1);
        let names = here.into_iter().skip(1).map(|(name, _)| name).chain(missing).collect();
        Ok(Place { names, node })
    }
}

/// The names of a path, the last one first.
fn names_of(path: &[u8]) -> Vec<Box<[u8]>> {
    path.split(|byte| *byte == b'/').rev().filter(|name| !matches!(*name, b"" | b".")).map(Into::into).collect()
}
