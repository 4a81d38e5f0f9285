//! Directories and files of the host in the container's root, and directories of the container's own that are no part of its changes.
//!
//! One virtio-fs file system has all of the host's, each by its name. It is mounted where the container cannot see it, and each of
//! its entries is mounted again where it belongs. One of the container's own is mounted on itself, with a mark for whoever looks for
//! changes.

use crate::failure::Failure;
use crate::guest::Machine;
use crate::root::{self, failed, make_directory};
use crate::sys::restrict;
use alloc::format;
use alloc::vec::Vec;
use guest_protocol::{FailureKind, Volume, VolumeSource};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, XattrFlags, fsetxattr, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Where all of them are before the root is switched.
const ALL: &str = "v";

/// Mounts that wait for the container's root.
#[derive(Debug)]
pub struct Volumes(Vec<(Volume, Option<OwnedFd>)>);

/// The attribute by which a directory is known whose content is no change of the image; the mount is gone when it is looked for.
pub const MARK: &str = "trusted.bulkhead.volume";
/// Its value if the image has the directory: then it is no change, either.
pub const OF_IMAGE: &[u8] = b"i";
/// Its value if it was made for the volume.
const MADE: &[u8] = b"m";

impl Volumes {
    /// Mounts the file system in the working directory, if there is need for it.
    ///
    /// # Errors
    /// [`FailureKind::Root`] with the target of the volume; [`FailureKind::BadRequest`].
    pub fn find<M: Machine>(machine: &M, volumes: Vec<Volume>) -> Result<Self, Failure> {
        if volumes.iter().any(|volume| volume.source != VolumeSource::Own) {
            make_directory(ALL)?;
            machine
                .mount_volumes(ALL)
                .map_err(|error| Failure::errno(FailureKind::Root, "mounting the host's directories", error))?;
        }
        volumes.into_iter().map(find).collect::<Result<_, _>>().map(Self)
    }

    /// Mounts them at their targets in the root of this process.
    ///
    /// # Errors
    /// [`FailureKind::Root`] with the target.
    pub fn attach(self) -> Result<(), Failure> {
        self.0.into_iter().try_for_each(|(volume, tree)| {
            let attached = match &tree {
                Some(tree) => attach(&volume, tree),
                None => mount_on_itself(&volume.target),
            };
            attached.map_err(|error| failed(&format!("volume {}", volume.target), error))
        })
    }
}

fn find(volume: Volume) -> Result<(Volume, Option<OwnedFd>), Failure> {
    let (name, within) = match &volume.source {
        VolumeSource::Directory(name) => (Some(name), ""),
        VolumeSource::File(name) => (Some(name), "/file"),
        VolumeSource::Own => (None, ""),
    };
    // A name is one entry of the file system, a target a path of its own.
    if name.is_some_and(|name| name.is_empty() || name.contains('/')) || !volume.target.starts_with('/') {
        let detail = format!("volume {name:?} at {:?}: not a name and an absolute path", volume.target);
        return Err(Failure::new(FailureKind::BadRequest, detail));
    }
    let Some(name) = name else { return Ok((volume, None)) };
    let path = format!("{ALL}/{name}{within}");
    // With what is mounted below it, where that is the host's business.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    match open_tree(CWD, path.as_str(), flags) {
        Ok(tree) => Ok((volume, Some(tree))),
        Err(error) => Err(failed(&format!("volume {}", volume.target), error)),
    }
}

fn attach(volume: &Volume, tree: &OwnedFd) -> Result<(), Errno> {
    let target = volume.target.as_str();
    restrict(tree, volume.read_only)?;
    let graft = || move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    match graft() {
        Err(Errno::NOENT) => {
            make_mount_point(target, !matches!(volume.source, VolumeSource::File(_)))?;
            graft()?;
        }
        other => other?,
    }
    Ok(())
}

/// Has a directory of the root be a file system of its own to programs, and its content no change of the image.
fn mount_on_itself(target: &str) -> Result<(), Errno> {
    let open = || openat(CWD, target, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let (directory, value) = match open() {
        Err(Errno::NOENT) => {
            root::make_path(target)?;
            (open()?, MADE)
        }
        other => (other?, OF_IMAGE),
    };
    // It has it from the container's last life, or where there are no attributes nobody looks at them.
    let _ = fsetxattr(&directory, MARK, value, XattrFlags::CREATE);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&directory, "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &directory, "", flags)
}

/// Makes what is missing of a path, and what it leads to.
fn make_mount_point(path: &str, directory: bool) -> Result<(), Errno> {
    let path = path.trim_end_matches('/');
    if directory {
        return root::make_path(path);
    }
    let (parent, _) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    root::make_path(parent)?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    openat(CWD, path, flags, Mode::from_raw_mode(0o644)).map(drop)
}
