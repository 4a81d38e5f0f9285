//! Paths: their components as archives write them, and the state of following one through a tree.

use super::{NodeId, Tree};

/// Longest file name, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// Longest path and longest symlink target, in bytes, without the final NUL (PATH_MAX - 1).
pub const PATH_MAX: usize = 4095;
/// Most symlinks followed while one path is resolved (as the kernel's MAXSYMLINKS).
const MAX_SYMLINKS: usize = 40;
/// Most path components walked because of symlinks, for one path.
const MAX_STEPS: usize = 4 * 1024;

/// Why a path or an entry cannot be in a tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// The path leads out of the root by `..`.
    #[error("the path leads out of the image")]
    Escapes,
    /// A component is longer than [`NAME_MAX`].
    #[error("a name in the path is longer than 255 bytes")]
    NameTooLong,
    /// The path is longer than [`PATH_MAX`].
    #[error("the path is longer than 4095 bytes")]
    PathTooLong,
    /// NUL in a name.
    #[error("the path has a NUL byte")]
    Nul,
    /// The path names the root, where only a directory can be.
    #[error("the root of the image can only be a directory")]
    Root,
    /// Symlinks that lead to each other, or too many of them.
    #[error("too many symbolic links in the path")]
    SymlinkLoop,
    /// A path goes through something that is neither directory nor symlink.
    #[error("a parent in the path is not a directory")]
    NotADirectory,
    /// A hard link to nothing (yet).
    #[error("hard link to a file that is not there: '{0}'")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("hard link to a directory: '{0}'")]
    LinkToDirectory(String),
    /// The metadata of this tree takes more memory than it may.
    #[error("more file metadata than the limit of {0} bytes")]
    Budget(u64),
    /// More entries than allowed.
    #[error("more than {0} files")]
    Entries(u64),
}

/// The components of a path as archives write them: leading `/` and `.` dropped, `..` resolved lexically.
///
/// # Errors
/// Names too long, NUL bytes, and a `..` that leads above the root.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    if path.len() > PATH_MAX {
        return Err(TreeError::PathTooLong);
    }
    if path.contains(&0) {
        return Err(TreeError::Nul);
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(TreeError::Escapes)?;
            }
            name if name.len() > NAME_MAX => return Err(TreeError::NameTooLong),
            name => parts.push(name),
        }
    }
    Ok(parts)
}

/// The state of following a path: the directories entered, and the components still to come (last one first).
pub(super) struct Walk {
    stack: Vec<NodeId>,
    todo: Vec<Box<[u8]>>,
    symlinks: usize,
    /// Components that symlinks put on the way, so that a few entries cannot cost hours.
    steps: usize,
}

impl Walk {
    pub(super) fn new(path: &[&[u8]]) -> Self {
        Walk { stack: vec![Tree::ROOT], todo: path.iter().rev().map(|p| (*p).into()).collect(), symlinks: 0, steps: 0 }
    }

    pub(super) fn next(&mut self) -> Option<Box<[u8]>> {
        self.todo.pop()
    }

    pub(super) fn here(&self) -> NodeId {
        self.stack.last().copied().unwrap_or(Tree::ROOT)
    }

    pub(super) fn enter(&mut self, id: NodeId) {
        self.stack.push(id);
    }

    /// `..`; the root is its own parent.
    pub(super) fn up(&mut self) {
        if self.stack.len() > 1 {
            self.stack.pop();
        }
    }

    pub(super) fn follow(&mut self, target: &[u8]) -> Result<(), TreeError> {
        self.symlinks += 1;
        if self.symlinks > MAX_SYMLINKS {
            return Err(TreeError::SymlinkLoop);
        }
        if target.first() == Some(&b'/') {
            self.stack.truncate(1);
        }
        for part in target.split(|b| *b == b'/').rev() {
            if part.len() > NAME_MAX {
                return Err(TreeError::NameTooLong);
            }
            if !part.is_empty() && part != b"." {
                self.todo.push(part.into());
            }
        }
        self.steps += self.todo.len();
        if self.steps > MAX_STEPS { Err(TreeError::SymlinkLoop) } else { Ok(()) }
    }
}
