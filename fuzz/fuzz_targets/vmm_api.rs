//! Any bytes on the control socket, from two clients, in any pieces, and requests that are well-formed but for what they
//! say: no panic, no client that is served no more, and bounded memory (the fuzzer's own limit).
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use vmm::api::http::Response;
use vmm::api::{Controller, Draft, Server};

const METHODS: [&str; 4] = ["GET", "PUT", "PATCH", "HEAD"];
const PATHS: [&str; 14] = [
    "/",
    "/vm/config",
    "/machine-config",
    "/boot-source",
    "/drives/a",
    "/vsock",
    "/entropy",
    "/balloon",
    "/balloon/statistics",
    "/serial",
    "/actions",
    "/vm",
    "/snapshot/create",
    "/snapshot/load",
];

struct Rig {
    server: Server<Controller>,
    path: PathBuf,
}

impl Rig {
    fn new(dir: &Path) -> Self {
        let path = dir.join("s");
        let controller = Controller::new("fuzz".into(), Draft::default(), 1024).expect("no metrics file");
        Rig { server: Server::bind(path.clone(), controller).expect("a socket"), path }
    }

    fn client(&mut self) -> UnixStream {
        let client = UnixStream::connect(&self.path).expect("a listener");
        client.set_nonblocking(true).expect("a socket");
        client
    }

    /// What the loop around the server does, with a machine that cannot be built.
    fn turn(&mut self) {
        self.server.turn();
        if self.server.handler_mut().take_launch().is_some() {
            self.server.handler_mut().failed();
            self.server.answer(&Response::fault(400, "not here"));
        }
    }

    /// A client that asks politely is answered, whatever the others do.
    fn serves(&mut self) {
        let mut client = self.client();
        client.write_all(b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n").expect("room");
        let mut answer = Vec::new();
        for _ in 0..1000 {
            self.turn();
            match client.read_to_end(&mut answer) {
                Ok(_) => break,
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    }
}

fuzz_target!(|data: &[u8]| {
    // The one request that writes to a file of the client's choice.
    if data.windows(7).any(|window| window == b"metrics") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::new(dir.path());
    let mut clients = [rig.client(), rig.client()];
    let mut rest = data;
    while let [step, length, after @ ..] = rest {
        let (bytes, after) = after.split_at(usize::from(*length).min(after.len()));
        let client = &mut clients[usize::from(step & 1)];
        match step >> 1 & 7 {
            0 | 1 => drop(client.write(bytes)),
            2 | 3 => {
                let method = METHODS[usize::from(step >> 4 & 3)];
                let path = PATHS[usize::from(*length) % PATHS.len()];
                let head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", bytes.len());
                drop(client.write(&[head.as_bytes(), bytes].concat()));
            }
            4 => drop(client.read(&mut [0; 4096])),
            5 => drop(client.shutdown(Shutdown::Write)),
            6 => *client = rig.client(),
            _ => {}
        }
        rig.turn();
        rest = after;
    }
    rig.serves();
    drop(clients);
    rig.serves();
});
