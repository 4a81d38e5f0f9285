//! The TCP connections of a container that has become another one. Whoever is at their other ends is connected to the original:
//! a program that waits for an answer would wait for ever.
//!
//! A socket is reset as connect(2) does it for AF_UNSPEC: whoever uses it finds ECONNRESET. Init gets at the sockets of others by
//! pidfd_getfd(2), which every kernel has that has pidfds; to destroy them by netlink is an option of few.

use core::mem::MaybeUninit;
use core::net::SocketAddr;
use core::str::FromStr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir, openat};
use rustix::io::{self, Errno};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::sockopt::{socket_acceptconn, socket_protocol};
use rustix::net::{connect_unspec, getsockname, ipproto};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Resets those of `processes` that lead out of this machine, while the interface is down: nobody is told, since nobody out there
/// is concerned. The processes stand still.
///
/// # Errors
/// As mount(2) of /proc. Processes and descriptors that are gone are passed over.
pub fn reset(processes: &[Pid]) -> io::Result<()> {
    let proc = view_of_processes(MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    for &pid in processes {
        let _ = reset_of(&proc, pid);
    }
    Ok(())
}

/// A view of this process's PID namespace, which no path leads to.
///
/// # Errors
/// As fsopen(2) and fsmount(2).
pub fn view_of_processes(attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn reset_of(proc: &OwnedFd, pid: Pid) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptors = openat(proc, alloc::format!("{}/fd", pid.as_raw_nonzero()).as_str(), flags, Mode::empty())?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    numbers(descriptors, |fd| {
        let Ok(socket) = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()) else { return };
        if leads_out(&socket) {
            let _ = connect_unspec(&socket);
        }
    })
}

/// Whether it is a TCP connection whose own end has an address that others know. One that only waits for others goes on.
fn leads_out(socket: impl AsFd) -> bool {
    if socket_protocol(&socket) != Ok(Some(ipproto::TCP)) || socket_acceptconn(&socket) != Ok(false) {
        return false;
    }
    let address =
        getsockname(&socket).and_then(|address| SocketAddr::try_from(address).map_err(|_| Errno::AFNOSUPPORT));
    address.is_ok_and(|address| {
        let ip = address.ip().to_canonical();
        !ip.is_loopback() && !ip.is_unspecified()
    })
}

/// Calls `with` for each entry of a directory whose name is a number.
fn numbers<N: FromStr>(directory: OwnedFd, mut with: impl FnMut(N)) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(number) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
            with(number);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn only_connections_that_others_know_of_lead_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let mut other_protocol = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(!leads_out(&listener) && !leads_out(&stream) && !leads_out(&everywhere) && !leads_out(&other_protocol));
        assert!(!leads_out(std::io::stderr()));
        // What this machine has beside its loopback interface, if it has anything: nothing is sent.
        if other_protocol.connect("192.0.2.1:9").is_ok() {
            let own = other_protocol.local_addr().unwrap().ip();
            let listener = TcpListener::bind((own, 0)).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(!leads_out(&listener) && leads_out(&stream));
            connect_unspec(&stream).unwrap();
            let error = std::io::Read::read(&mut &stream, &mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            other_protocol = UdpSocket::bind("127.0.0.1:0").unwrap();
        }
        drop(other_protocol);
    }

    #[test]
    fn numbers_are_the_names_that_are_some() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1", "22", "x", "3x", "-4", "99999999999"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let opened = openat(rustix::fs::CWD, directory.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        let mut found: std::vec::Vec<u32> = std::vec::Vec::new();
        numbers(opened, |number| found.push(number)).unwrap();
        found.sort_unstable();
        assert_eq!(found, [1, 22]);
    }
}
