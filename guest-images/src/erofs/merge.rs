//! One image of several layers: their trees stacked as overlayfs would, written as metadata whose block numbers lead on
//! beyond the image's own end, into the layers' images that follow it on the disk.
//!
//! ```text
//! disk:  │ merged: superblock, directories, inodes, small files │ lowest layer's image │ … │ topmost layer's image │
//!                                       └── data of larger files ──────────▲────────────────────▲
//! ```
//!
//! A guest mounts that disk once, instead of a partition and a file system for each layer, and looks each name up once.

use super::reader::{ReadError, read_tree};
use super::writer::{Data, finish_with};
use super::{BLOCK, BlockWriter, ErofsError};
use crate::tree::{FileData, Kind, Node, NodeId, Tree, TreeError};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, Write};

/// Why layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Layer of this index (the lowest is 0) cannot be read.
    #[error("layer {0}: {1}")]
    Layer(usize, #[source] ReadError),
    /// All layers together have more files than one image may.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The merged image cannot be written.
    #[error(transparent)]
    Write(#[from] ErofsError),
    /// The layers take more blocks than can be counted.
    #[error("the layers are larger than a disk can be")]
    TooLarge,
}

/// Merges layer images (lowest first, each of so many bytes) into one in `out` (empty, at position 0), and returns its
/// length. Its files' data is where it is on a disk of the merged image and the layers, in order, one after the other.
///
/// # Errors
/// See [`MergeError`]; what is in `out` is then worthless.
pub fn merge<W: Write + Seek>(
    layers: &[(&File, u64)],
    out: W,
    uuid: [u8; 16],
    budget: u64,
    max_entries: u64,
) -> Result<u64, MergeError> {
    let (tree, first_block) = stacked(layers, budget, max_entries)?;
    let (_, bytes) = finish_with(tree, BlockWriter::new(out, budget)?, uuid, Data::Behind(first_block))?;
    Ok(bytes)
}

/// The tree that layer images (lowest first, each of so many bytes) make together, and the number of their blocks: the data of
/// larger files is where it is when the images lie one after the other.
///
/// # Errors
/// See [`MergeError`].
pub(crate) fn stacked(layers: &[(&File, u64)], budget: u64, max_entries: u64) -> Result<(Tree, u32), MergeError> {
    let mut tree = Tree::new(budget, max_entries);
    let mut first_block = 0u32;
    for (index, (file, bytes)) in layers.iter().enumerate() {
        let layer = read_tree(file, budget, max_entries).map_err(|e| MergeError::Layer(index, e))?;
        stack(&mut tree, &layer, first_block)?;
        let blocks = u32::try_from(bytes.div_ceil(BLOCK as u64)).map_err(|_| MergeError::TooLarge)?;
        first_block = first_block.checked_add(blocks).ok_or(MergeError::TooLarge)?;
    }
    Ok((tree, first_block))
}

/// Puts a layer on top of what is there (overlayfs.rst). `first_block` is where its image begins.
fn stack(tree: &mut Tree, layer: &Tree, first_block: u32) -> Result<(), MergeError> {
    tree.node_mut(Tree::ROOT).attrs = layer.node(Tree::ROOT).attrs.clone();
    let mut links: HashMap<NodeId, NodeId> = HashMap::new();
    let mut todo = vec![(Tree::ROOT, Tree::ROOT)];
    while let Some((dir, upper)) = todo.pop() {
        let Kind::Dir { entries, .. } = &layer.node(upper).kind else { continue };
        for (name, id) in entries {
            let Node { attrs, kind } = layer.node(*id);
            let below = tree.child(dir, name);
            match kind {
                Kind::Whiteout => tree.remove(dir, name),
                Kind::Dir { opaque, .. } => {
                    let merges = !opaque && below.is_some_and(|id| matches!(tree.node(id).kind, Kind::Dir { .. }));
                    if !merges {
                        tree.remove(dir, name);
                    }
                    todo.push((tree.insert(dir, name, attrs.clone(), Kind::empty_dir())?, *id));
                }
                _ => {
                    tree.remove(dir, name);
                    if let Some(known) = links.get(id) {
                        tree.link(dir, name, *known)?;
                        continue;
                    }
                    let kind = moved(kind, first_block).ok_or(MergeError::TooLarge)?;
                    links.insert(*id, tree.insert(dir, name, attrs.clone(), kind)?);
                }
            }
        }
    }
    Ok(())
}

/// The same file with its data's place counted from the first layer's beginning.
fn moved(kind: &Kind, first_block: u32) -> Option<Kind> {
    Some(match kind {
        Kind::File(FileData::Blocks { start, size }) => {
            Kind::File(FileData::Blocks { start: start.checked_add(first_block)?, size: *size })
        }
        other => other.clone(),
    })
}
