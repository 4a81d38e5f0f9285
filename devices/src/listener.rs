//! A unix socket that host programs connect to: its file, from bind to removal.
//!
//! A file that nobody listens on any more, left by a process that was killed, is replaced; any other file is an error.
//! The file goes away with the listener, unless it is somebody else's by then.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whom the process's umask lets.
    Umask,
    /// The owner, and root.
    Owner,
}

/// The listening socket. It never blocks, and nor do the streams it gives.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that nobody else's is removed. None once it has been.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Binds `path`, in place of a socket file that nobody listens on any more.
    pub fn bind(path: PathBuf, access: Access) -> io::Result<Self> {
        let socket = match listen(&path, access) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(&path)?;
                listen(&path, access)?
            }
            result => result?,
        };
        let file = std::fs::symlink_metadata(&path)?;
        Ok(Listener { socket, path, file: Some((file.dev(), file.ino())) })
    }

    /// The socket, for epoll.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket's file, if it is still ours. Who has connected stays connected. Without effect the second time.
    pub fn remove(&mut self) {
        let Some(ours) = self.file.take() else { return };
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == ours) {
            // Nothing else can be done about a file that does not go.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// The next host program that has connected.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    if access == Access::Owner {
        // The mode of the socket is what bind gives the file: there is no moment at which others could connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Removes a socket file that refuses connections.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not a socket"));
    }
    // Does not wait: a listener with a full queue is one that lives.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path),
        Ok(()) | Err(rustix::io::Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"))
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn bind(path: &Path) -> io::Result<Listener> {
        Listener::bind(path.to_owned(), Access::Owner)
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind(&path).unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("another process listens"));
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_live_socket_with_a_full_queue_is_live() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _live = bind(&path).unwrap();
        let connect = || {
            let flags = SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).map(|()| socket)
        };
        let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
        assert!(waiting.len() > BACKLOG as usize);
        assert!(bind(&path).unwrap_err().to_string().contains("another process listens"));
    }

    #[test]
    fn a_link_to_somewhere_else_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("s"), dir.path().join("t"));
        drop(UnixListener::bind(&target).unwrap());
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("not a socket"));
        assert!(target.exists());
    }

    #[test]
    fn a_file_that_is_not_ours_survives_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn the_owner_alone_may_connect_if_asked_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
