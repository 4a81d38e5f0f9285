//! A container of the host's own kernel, in namespaces that an OCI runtime has made: init lives the same life in it as in a guest, with
//! unix sockets for vsock and directories for disks. They are where [`guest_protocol::contained`] says, and nowhere any more once they are used.
//!
//! What of it is the runtime's: the namespaces, the control group with its limits, and which devices can be opened. What is init's is what
//! it does in every guest, and what it does for a container [beside](crate::beside) others.

use crate::guest::Machine;
use crate::network;
use crate::root::read_file;
use crate::sys::{make_tap, restrict};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use guest_protocol::Layer;
use guest_protocol::contained::{FILES, IMAGE, LINK_PORT, SCRATCH, SOCKETS, VOLUMES};
use rustix::cmsg_space;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fcntl_setfl, openat};
use rustix::io::{self, Errno, IoSlice};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use rustix::process::{chdir, fchdir};

/// Such a container.
#[derive(Debug)]
pub struct Contained {
    /// The directory with the host's sockets.
    sockets: OwnedFd,
    /// The user namespace is the host's own.
    root: bool,
}

/// All there are, as they are (user_namespaces(7)).
const ALL_USERS: &str = "0 0 4294967295";

impl Contained {
    /// Makes the working directory what init finds as a guest's first one: empty, and gone with this process.
    ///
    /// # Errors
    /// As open(2) and mount(2): the runtime has not mounted what it was to.
    pub fn enter() -> io::Result<Self> {
        let sockets = open_directory(SOCKETS)?;
        let users = read_file("/proc/self/uid_map", 4096)?;
        let root = String::from_utf8_lossy(&users).split_ascii_whitespace().eq(ALL_USERS.split(' '));
        // From now on nobody but this process gets there.
        unmount(SOCKETS, UnmountFlags::DETACH)?;
        mount("tmpfs", SCRATCH, "tmpfs", MountFlags::NOSUID, Some(c"mode=755"))?;
        chdir(SCRATCH)?;
        Ok(Self { sockets, root })
    }
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Machine for Contained {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let address = SocketAddrUnix::new(format!("vsock_{port}").as_str())?;
        // No path leads there.
        let back = open_directory(".")?;
        fchdir(&self.sockets)?;
        let connected = connect(&socket, &address);
        fchdir(back)?;
        connected.map(|()| socket)
    }

    fn begin_connect(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = self.connect(port)?;
        fcntl_setfl(&socket, OFlags::NONBLOCK)?;
        Ok(socket)
    }

    fn mount_layer(&self, _: usize, count: usize, _: &Layer, target: &str) -> io::Result<()> {
        // The files of an image are one directory.
        if count != 1 {
            return Err(Errno::INVAL);
        }
        mount_move(IMAGE, target)?;
        restrict(open_directory(target)?, true)
    }

    fn mount_upper(&self, target: &str) -> io::Result<()> {
        // In place of the file system in memory that is there already.
        mount_move(FILES, target)
    }

    fn mount_volumes(&self, target: &str) -> io::Result<()> {
        mount_move(VOLUMES, target)
    }

    fn cgroups(&self) -> io::Result<OwnedFd> {
        // Its group is the runtime's business.
        Err(Errno::NODEV)
    }

    fn kernel_log(&self) -> Vec<u8> {
        Vec::new()
    }

    fn plug(&self) -> io::Result<()> {
        let tap = make_tap(network::NAME)?;
        let host = self.connect(LINK_PORT)?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let tap = [tap.as_fd()];
        // There is room for one.
        let _ = ancillary.push(SendAncillaryMessage::ScmRights(&tap));
        // From now on it is there as long as the host has it.
        sendmsg(&host, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }

    fn overlay_options(&self) -> &'static str {
        match self.root {
            // A kernel may be told to keep changes so that they cannot be told by a look at them.
            true => ",redirect_dir=off,metacopy=off,index=off",
            // It has its attributes where every user may have some, and then does none of that.
            false => ",userxattr",
        }
    }

    fn is_root(&self) -> bool {
        self.root
    }

    fn has_kernel(&self) -> bool {
        false
    }
}
