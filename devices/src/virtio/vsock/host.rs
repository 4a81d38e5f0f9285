//! The host's side of the sockets: the `vsock` section, the `--vsock` flag, the listening socket and outgoing connections.
//!
//! A host program reaches guest port P by connecting to `uds_path` and writing `CONNECT P\n`; it reads `OK <port>\n` and
//! then has the stream. The guest reaches host port P where a program listens on `<uds_path>_P`.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Vsock;
use crate::listener::{Access, Listener};
use crate::virtio::VirtioDevice;
use crate::virtio::table::{DeviceError, DeviceKind, Does, Reach};

const SECTION: &str = "vsock";
/// Bytes of a socket's path, without the terminating zero (unix(7)).
const PATH_MOST: usize = 107;
/// The longest suffix: `_4294967295`.
const SUFFIX_MOST: usize = 11;
/// Context ids below are reserved, 2 being the host's (virtio 1.3, 5.10.4); the last ones of 32 bits mean "any".
const FIRST_CID: u64 = 3;
const LAST_CID: u64 = u32::MAX as u64 - 1;

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "vsock",
    config_key: SECTION,
    flag: "vsock",
    flag_syntax: "PATH[,cid=N]",
    help: "sockets between host and guest, through the unix socket PATH; the guest's context id N is 3 unless given",
    parse_flag,
    id_key: None,
    swappable: &[],
    adjustable: &[],
    limiters: &[],
    told: None,
    writable_files: |_| Vec::new(),
    reaches,
    check: |section| parse(section).map(drop),
    build,
    given: None,
    kernel_args: |_| None,
    syscalls: &[
        libc::SYS_accept4,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_shutdown,
        libc::SYS_ioctl,
        libc::SYS_close,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_wait,
        libc::SYS_timerfd_settime,
        libc::SYS_unlink,
    ],
    prompt_syscalls: &[],
    ioctls: &[libc::FIONBIO as u32],
    workers: &[],
    works: |_| true,
    #[cfg(any(test, feature = "testing"))]
    sample: |dir| serde_json::json!({ "guest_cid": 3, "uds_path": dir.join("vsock") }),
};

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Config {
    guest_cid: u64,
    uds_path: PathBuf,
    /// Accepted for configuration files of old; it never meant anything.
    #[serde(default, skip_serializing)]
    #[allow(dead_code)]
    vsock_id: Option<String>,
}

fn invalid(reason: String) -> DeviceError {
    DeviceError::Invalid { section: SECTION, reason }
}

fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    let wrong = |reason: String| DeviceError::Invalid { section: "--vsock", reason };
    if !section.is_null() {
        return Err(wrong("given twice".into()));
    }
    let (path, cid) = match value.rsplit_once(",cid=") {
        Some((path, cid)) => (path, cid.parse().map_err(|_| wrong(format!("'{cid}' is not a number")))?),
        None => (value, FIRST_CID),
    };
    if path.is_empty() {
        return Err(wrong("no path; write PATH or PATH,cid=N".into()));
    }
    *section = serde_json::json!({ "guest_cid": cid, "uds_path": path });
    Ok(())
}

fn parse(section: &Value) -> Result<Config, DeviceError> {
    let config: Config = serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))?;
    if !(FIRST_CID..=LAST_CID).contains(&config.guest_cid) {
        return Err(invalid(format!("guest_cid {} is not between {FIRST_CID} and {LAST_CID}", config.guest_cid)));
    }
    let most = PATH_MOST - SUFFIX_MOST;
    if config.uds_path.as_os_str().len() > most {
        let path = config.uds_path.display();
        return Err(invalid(format!("uds_path {path} is longer than {most} bytes; choose a shorter directory")));
    }
    Ok(config)
}

/// The directory of its socket, in which are those that the guest connects to.
fn reaches(section: &Value) -> Vec<Reach> {
    let path = parse(section).ok().and_then(|config| std::path::absolute(config.uds_path).ok());
    let directory = path.as_deref().and_then(Path::parent).map(Path::to_owned);
    directory.map(|path| Reach { path, does: Does::Connect }).into_iter().collect()
}

fn build(section: &Value) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let config = parse(section)?;
    let host = |what: &str| DeviceError::host(SECTION, format!("{what} {}", config.uds_path.display()));
    let endpoint = Endpoint::bind(config.uds_path.clone()).map_err(host("listen on"))?;
    Ok(vec![Box::new(Vsock::new(config.guest_cid, endpoint).map_err(host("watch"))?)])
}

/// The listening socket and the place of those that the guest connects to.
pub struct Endpoint {
    listener: Listener,
}

impl Endpoint {
    /// Binds `path`, in place of a socket file that nobody listens on any more.
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        Ok(Endpoint { listener: Listener::bind(path, Access::Umask)? })
    }

    /// The socket, for epoll.
    pub fn listener(&self) -> &UnixListener {
        self.listener.socket()
    }

    /// The next host program that has connected.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept()
    }

    /// Connects to whoever listens for host port `port`. Does not wait: a full queue there is a refusal.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(self.listener.path());
        path.push(format!("_{port}"));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(Path::new(&path))?)?;
        Ok(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(section: Value) -> String {
        build(&section).err().unwrap().to_string()
    }

    #[test]
    fn the_flag_is_the_section() {
        let mut section = Value::Null;
        parse_flag("/run/a,b,cid=9", &mut section).unwrap();
        assert_eq!(section, json!({ "guest_cid": 9, "uds_path": "/run/a,b" }));
        assert!(parse_flag("/run/b", &mut section).unwrap_err().to_string().contains("twice"));
        assert!(parse_flag("", &mut Value::Null).is_err());
        assert!(parse_flag("/a,cid=x", &mut Value::Null).is_err());
    }

    #[test]
    fn bad_sections_say_what_is_wrong() {
        for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
            assert!(error(json!({ "guest_cid": cid, "uds_path": "/tmp/x" })).contains("guest_cid"));
        }
        let long = format!("/tmp/{}", "x".repeat(100));
        assert!(error(json!({ "guest_cid": 3, "uds_path": long })).contains("longer than 96 bytes"));
        assert!(error(json!({ "guest_cid": 3, "uds_path": "/nowhere/x" })).contains("/nowhere/x"));
        assert!(error(json!({ "guest_cid": 3 })).contains("uds_path"));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let section = json!({ "guest_cid": 3, "uds_path": path });
        let device = build(&section).unwrap();
        assert!(error(section.clone()).contains("another process listens"));
        drop(device);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(error(section).contains("not a socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
