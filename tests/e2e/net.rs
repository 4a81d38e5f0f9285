//! Guests on a network: data from a server and back, byte for byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread::JoinHandle;

use tests::{Kvm, Lab, Running, cpio};

use crate::bare::own_kernel;
use crate::lab;

/// Bytes that are sent each way. Where guest kernels are emulated, each costs them 0.2 us.
fn bytes(lab: &Lab) -> u64 {
    if lab.kvm() == Kvm::SoftwareNested { 1_000_000 } else { 100_000_000 }
}

/// As in the guest.
fn pattern(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

/// Sends `bytes` to one client, and tells whether as much of the same came back.
fn serve(listener: TcpListener, bytes: u64) -> JoinHandle<bool> {
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let all: Vec<u8> = (0..bytes).map(pattern).collect();
        client.write_all(&all).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        back == all
    })
}

/// Puts this thread, and what it starts, into a network of its own. False, and a line that says why, if it may not.
fn own_network(test: &str) -> bool {
    // SAFETY: no descriptors or memory are unshared.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
    if let Err(error) = unshared {
        tests::lab::skip(test, &format!("no network namespace of its own: {error}"));
        return false;
    }
    ip(&["link", "set", "lo", "up"]);
    true
}

fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().expect("ip");
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A tap interface that stays without anybody at it, with an address.
fn make_tap(name: &str, address: &str) {
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    request[16..18].copy_from_slice(&0x5002u16.to_le_bytes());
    // SAFETY: TUNSETIFF takes a struct ifreq, TUNSETPERSIST a number.
    unsafe {
        assert_eq!(libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&tun), 0x4004_54ca, request.as_mut_ptr()), 0);
        assert_eq!(libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&tun), 0x4004_54cb, 1), 0);
    }
    ip(&["addr", "add", address, "dev", name]);
    ip(&["link", "set", name, "up"]);
}

/// `boot` of a guest that fetches from `server` and powers off.
fn fetching(lab: &Lab, net: &str, address: &str, server: SocketAddr) -> Command {
    let initrd = lab.path("initrd");
    std::fs::write(&initrd, cpio::initramfs(&std::fs::read(lab.guest_program()).unwrap())).unwrap();
    let append = format!("PROBE_NET={address} PROBE_FETCH={server},{}", bytes(lab));
    let kernel = own_kernel(lab);
    let initrd = initrd.display().to_string();
    lab.bulkhead(["boot", "--kernel", &kernel, "--initrd", &initrd, "--net", net, "-m", "96m", "--append", &append])
}

/// Through a tap interface, with large segments and checksums left to the host, in a network of the test's own.
#[test]
fn a_guest_fetches_through_a_tap() {
    let lab = lab!("a_guest_fetches_through_a_tap");
    let patience = lab.patience(4);
    if !own_network("a_guest_fetches_through_a_tap") {
        return;
    }
    make_tap("bh0", "192.0.2.1/24");
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let command = fetching(&lab, "tap=bh0", "192.0.2.2", listener.local_addr().unwrap());
    let server = serve(listener, bytes(&lab));
    let ended = Running::start(command).end(patience);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.text().contains(&format!("fetched {0}, sent {0}", bytes(&lab))), "{ended:?}");
    assert!(server.join().unwrap());

    let ended = lab.run(["boot", "--kernel", &own_kernel(&lab), "--net", "tap=bh1"]);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.stderr.contains("tap 'bh1': there is no such interface"), "{ended:?}");
    lab.assert_clean();
}
