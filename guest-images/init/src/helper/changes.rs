//! What differs in the container's root from its image: the writable layer, as overlayfs keeps it
//! (Linux `filesystems/overlayfs.rst`). The working directory is that layer.

use super::pack::{attributes, described, is_directory, link, names, send};
use super::{Broken, Output, broken, open};
use crate::failure::Reason;
use crate::volumes;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use guest_protocol::files::{EntryKind, FileMessage, join};
use rustix::fs::{AtFlags, CWD, FileType, Stat, lgetxattr, major, minor, statat};
use rustix::io;

/// What init has put there for every container.
const OWN: [&[u8]; 7] = [b"dev", b"proc", b"sys", b"etc/hostname", b"etc/hosts", b"etc/machine-id", b"etc/resolv.conf"];
/// The directory that is there for init's own files, if nothing else is in it.
const ETC: &[u8] = b"etc";

/// Sends every change, and the content of files if that is wanted.
///
/// # Errors
/// The layer cannot be read.
pub fn all(output: &mut Output<'_>, content: bool) -> Result<(), Broken> {
    let mut waiting = vec![Vec::new()];
    while let Some(directory) = waiting.pop() {
        let place = if directory.is_empty() { b".".to_vec() } else { directory.clone() };
        let mut names = names(&place).map_err(broken("the writable layer"))?;
        names.sort_unstable();
        for name in names {
            let path = join(&directory, &name);
            if OWN.contains(&path.as_slice()) || path == ETC && is_own(&path) {
                continue;
            }
            let volume = mark(&path);
            if volume == Some(Volume::OfImage) {
                continue;
            }
            match change(output, &path, content) {
                Ok(stat) => {
                    if is_directory(&stat?) && volume.is_none() {
                        waiting.push(path);
                    }
                }
                Err(error) => output.note(&path, &format!("{}", Reason(error)))?,
            }
        }
    }
    Ok(())
}

/// A directory whose content is the container's own business ([`volumes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Volume {
    /// The image has it.
    OfImage,
    /// It was made for that.
    Made,
}

fn mark(path: &[u8]) -> Option<Volume> {
    let mut value = [0; volumes::OF_IMAGE.len()];
    let length = lgetxattr(path, volumes::MARK, value.as_mut_slice()).ok()?;
    Some(if value.get(..length) == Some(volumes::OF_IMAGE) { Volume::OfImage } else { Volume::Made })
}

fn is_own(etc: &[u8]) -> bool {
    names(etc).is_ok_and(|names| names.iter().all(|name| OWN.contains(&join(etc, name).as_slice())))
}

/// Sends one. The outer error is that it cannot be read.
fn change(output: &mut Output<'_>, path: &[u8], content: bool) -> io::Result<Result<Stat, Broken>> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    let (xattrs, opaque) = attributes(path, false)?;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory { opaque },
        FileType::Symlink => EntryKind::Symlink { target: link(path)? },
        FileType::RegularFile => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let entry = described(path, EntryKind::File { size }, &stat, xattrs);
            let sent = match content {
                true => send(output, entry, &open(path, false)?),
                false => output.say(&FileMessage::Entry(entry)),
            };
            return Ok(sent.map(|()| stat));
        }
        FileType::CharacterDevice if device == (0, 0) => EntryKind::Removed,
        FileType::CharacterDevice => EntryKind::Character { device },
        FileType::BlockDevice => EntryKind::Block { device },
        FileType::Fifo => EntryKind::Fifo,
        // A socket is nothing without who listens.
        _ => return Ok(Ok(stat)),
    };
    Ok(output.say(&FileMessage::Entry(described(path, kind, &stat, xattrs))).map(|()| stat))
}
