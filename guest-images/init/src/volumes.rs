//! Directories and files of the host in the container's root.
//!
//! One virtio-fs file system has them all, each by its name. It is mounted where the container cannot see it, and each of
//! its entries is mounted again where it belongs.

use crate::failure::Failure;
use crate::guest::Machine;
use crate::root::{self, failed, make_directory};
use alloc::format;
use alloc::vec::Vec;
use guest_protocol::{FailureKind, Volume};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};

/// Where all of them are before the root is switched.
const ALL: &str = "v";

/// Mounts that wait for the container's root.
#[derive(Debug)]
pub struct Volumes(Vec<(Volume, OwnedFd)>);

impl Volumes {
    /// Mounts the file system in the working directory, if there is need for it.
    ///
    /// # Errors
    /// [`FailureKind::Root`] with the target of the volume; [`FailureKind::BadRequest`].
    pub fn find<M: Machine>(machine: &M, volumes: Vec<Volume>) -> Result<Self, Failure> {
        if volumes.is_empty() {
            return Ok(Self(Vec::new()));
        }
        make_directory(ALL)?;
        machine
            .mount_volumes(ALL)
            .map_err(|error| Failure::errno(FailureKind::Root, "mounting the host's directories", error))?;
        volumes.into_iter().map(find).collect::<Result<_, _>>().map(Self)
    }

    /// Mounts them at their targets in the root of this process.
    ///
    /// # Errors
    /// [`FailureKind::Root`] with the target.
    pub fn attach(self) -> Result<(), Failure> {
        self.0.into_iter().try_for_each(|(volume, tree)| {
            attach(&volume, &tree).map_err(|error| failed(&format!("volume {}", volume.target), error))
        })
    }
}

fn find(volume: Volume) -> Result<(Volume, OwnedFd), Failure> {
    // A name is one entry of the file system, a target a path of its own.
    if volume.name.is_empty() || volume.name.contains('/') || !volume.target.starts_with('/') {
        let detail = format!("volume {:?} at {:?}: not a name and an absolute path", volume.name, volume.target);
        return Err(Failure::new(FailureKind::BadRequest, detail));
    }
    let path = format!("{ALL}/{}{}", volume.name, if volume.directory { "" } else { "/file" });
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(CWD, path.as_str(), flags) {
        Ok(tree) => Ok((volume, tree)),
        Err(error) => Err(failed(&format!("volume {}", volume.target), error)),
    }
}

fn attach(volume: &Volume, tree: &OwnedFd) -> Result<(), Errno> {
    let target = volume.target.as_str();
    let graft = || move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    match graft() {
        Err(Errno::NOENT) => {
            make_mount_point(target, volume.directory)?;
            graft()?;
        }
        other => other?,
    }
    if volume.read_only {
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV, c"")?;
    }
    Ok(())
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
