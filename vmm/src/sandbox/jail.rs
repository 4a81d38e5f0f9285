//! A root directory of the process's own, in which is what its threads may still reach by a path, and nothing else of the host: no other
//! program's socket above all, since who may connect to a unix socket may, as far as system-call filters and Landlock see, connect to each
//! that has a path (mount_namespaces(7), pivot_root(2)).
//!
//! What is open already stays as it is: guest disks, and what is shared with a guest, which is opened from descriptors.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, PROC_SUPER_MAGIC, fstatfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{getegid, geteuid, pivot_root};
use rustix::thread::UnshareFlags;

use super::user;

/// Something is laid over this directory while the new root is made; nobody else sees that.
const WORKSHOP: &str = "/proc";
/// What the root takes at most: directories and empty files.
const ROOM: &std::ffi::CStr = c"mode=0755,size=256k,nr_inodes=1k";

/// The process's namespaces: what it mounts and sees mounted, its host name, its System V IPC and message queues. For the network's see
/// [`leave_network`]. That of processes it has from the beginning, or not at all ([`birth`](crate::birth)).
fn namespaces() -> UnshareFlags {
    UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC
}

/// Whether files of root's are those of the user that was asked for, or why not.
pub type Owned = io::Result<()>;

/// Gives the calling thread a root directory of its own that has these files and directories from now on, at the paths that they had. Those that are not there are left out; what is root's of them is `owner`'s, if it says and the
/// host can. To be called in the namespaces of [`leave`].
///
/// # Errors
/// The host does not let it: nothing has changed then, or the thread has no /proc.
pub fn change_root(reached: &[PathBuf], owner: Option<u32>) -> io::Result<Owned> {
    // Mounts of the host go on without us, and ours are not theirs.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let mapping = owner.filter(|_| !reached.is_empty()).map(user::mapping).transpose();
    let (places, owned) = match mapping.and_then(|mapping| places(reached, mapping.as_ref())) {
        Ok(places) => (places, Ok(())),
        Err(error) => (places(reached, None)?, Err(error)),
    };
    let before = std::env::current_dir();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bulkhead", WORKSHOP, "tmpfs", flags, ROOM)?;
    rustix::process::chdir(WORKSHOP)?;
    places.iter().try_for_each(Place::attach)?;
    pivot_root(".", ".")?;
    // The old root lies on top of the new one.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    rustix::mount::mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | flags, c"")?;
    // A path that is not from the root is one from here, if here is reached.
    let _ = before.map(std::env::set_current_dir);
    Ok(owned)
}

/// Whether what is root's in these directories can be another user's: tried, and nothing is left of it.
///
/// # Errors
/// The host does not let it, or one of their file systems does not.
pub fn can_own(directories: &[PathBuf]) -> Owned {
    let mapping = user::mapping(user::FIRST)?;
    places(directories, Some(&mapping)).map(drop)
}

/// Puts the calling thread into new namespaces; without the privilege for that, in a user namespace where there is only this user, which
/// nobody gets who is not the only thread.
///
/// # Errors
/// The host does not let it: nothing has changed then.
pub fn leave() -> io::Result<()> {
    // SAFETY: descriptors stay shared.
    match unsafe { rustix::thread::unshare_unsafe(namespaces()) } {
        Err(Errno::PERM) => {}
        result => return Ok(result?),
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(namespaces() | UnshareFlags::NEWUSER) }?;
    map_alone(user, group)
}

/// In a user namespace that has just been made: there are this user and this group, which have made it, and no other.
///
/// # Errors
/// The host does not let it.
pub fn map_alone(user: u32, group: u32) -> io::Result<()> {
    // Or nothing could be made in a file system that belongs to this namespace.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Puts the process into a network namespace of its own, in which there is nothing. No thread can make a socket for a network; but
/// unix sockets without a path are the namespace's (unix(7)), and what may connect to one with a path may connect to those. It takes half
/// a millisecond and kernel memory, and so it is for a process that nothing else keeps from them. To be called in the namespaces of
/// [`leave`]. What is open stays: taps above all.
///
/// # Errors
/// The host does not let it.
pub fn leave_network() -> io::Result<()> {
    // SAFETY: no memory is concerned, and descriptors stay as they are.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// A file or directory of the host on its way into the new root.
struct Place {
    /// From the new root.
    path: PathBuf,
    tree: OwnedFd,
    is_dir: bool,
}

/// The places for these paths: what lies in another one comes with that. Users are as `mapping` says.
fn places(reached: &[PathBuf], mapping: Option<&OwnedFd>) -> io::Result<Vec<Place>> {
    let mut paths = reached.iter().map(std::path::absolute).collect::<io::Result<Vec<_>>>()?;
    // What leads to another place has no such place in the new root.
    for path in paths.iter_mut().filter(|path| path.components().any(|part| part == std::path::Component::ParentDir)) {
        *path = path.canonicalize()?;
    }
    // By their parts: a directory is before what is in it.
    paths.sort();
    let mut places: Vec<Place> = Vec::new();
    for path in paths {
        let Ok(from_root) = path.strip_prefix("/") else { continue };
        if !places.iter().any(|place| from_root.starts_with(&place.path)) {
            places.extend(Place::of(&path, from_root, mapping)?);
        }
    }
    Ok(places)
}

impl Place {
    /// `None` if there is nothing.
    fn of(path: &Path, from_root: &Path, mapping: Option<&OwnedFd>) -> io::Result<Option<Place>> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            // With what is mounted below: a part of what others have mounted cannot be had.
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = match rustix::mount::open_tree(CWD, path, flags) {
            Err(Errno::NOENT) => return Ok(None),
            tree => tree?,
        };
        // What the kernel tells of a process is the process's.
        let is_proc = fstatfs(&tree)?.f_type == PROC_SUPER_MAGIC;
        set(&tree, mapping.filter(|_| !is_proc))?;
        let is_dir = path.is_dir();
        Ok(Some(Place { path: from_root.to_owned(), tree, is_dir }))
    }

    /// Puts it where it belongs, below the current directory.
    fn attach(&self) -> io::Result<()> {
        let within = if self.is_dir { Some(self.path.as_path()) } else { self.path.parent() };
        let mut directories = fs::DirBuilder::new();
        within.map_or(Ok(()), |within| directories.recursive(true).mode(0o755).create(within))?;
        if !self.is_dir {
            File::create(&self.path)?;
        }
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(rustix::mount::move_mount(&self.tree, "", CWD, &self.path, empty)?)
    }
}

/// No programs and no devices are opened there, and users are as `mapping` says.
fn set(tree: &OwnedFd, mapping: Option<&OwnedFd>) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: all zeros are a valid value of it.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = set;
    if let Some(mapping) = mapping {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = mapping.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: an empty path and attributes of the size that is said; both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// Namespaces and root are the thread's that asks for them, if it is not the only one; the others go on as before.
    #[test]
    fn group_11_nothing_has_a_path_but_what_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["own/inside", "other"] {
            fs::create_dir_all(path(name)).unwrap();
            fs::write(path(name).join("file"), name).unwrap();
        }
        fs::write(path("disk"), "disk").unwrap();
        std::os::unix::fs::symlink(path("other"), path("own/link")).unwrap();
        let sockets = [path("own/socket"), path("other/socket")];
        let _listening = sockets.clone().map(|path| UnixListener::bind(path).unwrap());
        let mut open = File::create(path("other/open")).unwrap();
        let crooked = path("own/../disk");
        let missing = [path("missing"), path("missing/too")];
        let reached = [&[path("own"), path("own/inside"), crooked, "/proc/self".into()], &missing[..]].concat();
        let jailed = || {
            if let Err(error) = leave().and_then(|()| change_root(&reached, None)) {
                println!("SKIP group_11_nothing_has_a_path_but_what_is_reached: {error}");
                return;
            }
            let gone = |result: io::Result<()>| result.unwrap_err().kind() == ErrorKind::NotFound;
            let read = |path: PathBuf| fs::read(path).map(drop);
            assert_eq!(fs::read(path("own/inside/file")).unwrap(), b"own/inside");
            assert_eq!(fs::read(path("disk")).unwrap(), b"disk");
            fs::write(path("own/new"), "x").unwrap();
            assert!(
                gone(read(path("other/file"))) && gone(read(path("own/link/file"))) && gone(read("/etc/passwd".into()))
            );
            UnixStream::connect(&sockets[0]).unwrap();
            assert!(gone(UnixStream::connect(&sockets[1]).map(drop)), "another's socket");
            // Its way there is not a way out, and the root is nobody's to write to.
            assert!(fs::read_dir("/..").unwrap().count() <= 2 && fs::read_dir(dir.path()).unwrap().count() == 2);
            assert_eq!(fs::write("/new", "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
            assert!(File::open("/proc/self/pagemap").is_ok() && gone(read("/proc/1/comm".into())));
            let this = format!("/proc/{}/comm", std::process::id());
            assert!(gone(read(this.into())), "other processes");
            assert_eq!(fs::read_dir("/proc").unwrap().count(), 1);
            open.write_all(b"as before").unwrap();
        };
        std::thread::scope(|scope| scope.spawn(jailed).join().unwrap());
        assert!(path("own/new").exists() && fs::read(path("other/open")).unwrap() == b"as before");
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains("bulkhead"), "a mount is left");
    }

    #[test]
    fn group_11_no_socket_without_a_path_is_reached() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;
        let name = format!("bulkhead-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let _listening = UnixListener::bind_addr(&address).unwrap();
        let jailed = || {
            UnixStream::connect_addr(&address).expect("that of a process on the same network");
            if let Err(error) = leave().and_then(|()| leave_network()) {
                println!("SKIP group_11_no_socket_without_a_path_is_reached: {error}");
                return;
            }
            assert_eq!(UnixStream::connect_addr(&address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        };
        std::thread::scope(|scope| scope.spawn(jailed).join().unwrap());
    }

    /// What is root's on the host is the process's own user's, and what is another's is not.
    #[test]
    fn group_11_what_is_reached_is_its_users() {
        use std::os::unix::fs::{MetadataExt, chown};
        let Some(owner) = user::own() else {
            return println!("SKIP group_11_what_is_reached_is_its_users: only root can be somebody else");
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["roots", "anothers"] {
            fs::write(path(name), name).unwrap();
        }
        chown(path("anothers"), Some(1234), Some(1234)).unwrap();
        let reached = [dir.path().to_owned(), "/proc/self".into()];
        let jailed = || match leave().and_then(|()| change_root(&reached, Some(owner))) {
            Ok(Ok(())) => {
                let of = |path: PathBuf| fs::metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
                assert_eq!((of(path("roots")), of(path("anothers"))), ((owner, owner), (1234, 1234)));
                assert_eq!(of("/proc/self".into()), (0, 0));
            }
            result => println!("SKIP group_11_what_is_reached_is_its_users: {result:?}"),
        };
        std::thread::scope(|scope| scope.spawn(jailed).join().unwrap());
        assert_eq!(fs::metadata(path("roots")).unwrap().uid(), 0);
    }
}
