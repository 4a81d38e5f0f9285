//! Clients of all kinds against a server that is turned by hand.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::super::connection::Reply;
use super::super::http::{MAX_BODY, MAX_HEAD, Request};
use super::*;

/// Answers each request with what it was; "/later" waits.
#[derive(Default)]
struct Echo {
    seen: Arc<Mutex<Vec<String>>>,
    /// What came with the last request.
    given: Vec<OwnedFd>,
}

impl Handler for Echo {
    fn give(&mut self, descriptors: Vec<OwnedFd>) {
        self.given = descriptors;
    }

    fn handle(&mut self, request: &Request) -> Reply {
        let what = format!("{} {} {}", request.method, request.target, request.body.len());
        self.seen.lock().unwrap().push(what.clone());
        if request.target == "/later" { Reply::Later } else { Reply::Now(Response::ok(what.into())) }
    }
}

struct Rig {
    server: Server<Echo>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        Rig { server: Server::bind(path.clone(), Echo::default()).unwrap(), path, _dir: dir }
    }

    fn client(&mut self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_nonblocking(true).unwrap();
        self.server.turn();
        client
    }

    fn seen(&self) -> Vec<String> {
        self.server.handler.seen.lock().unwrap().clone()
    }

    /// Turns the server until nothing more comes; gives what came, and whether it was to the end.
    fn read(&mut self, mut client: &UnixStream) -> (String, bool) {
        let mut bytes = Vec::new();
        let mut idle = 0;
        // More turns than the largest request takes to be read.
        while idle < 100 {
            self.server.turn();
            idle += 1;
            let mut chunk = [0; 4096];
            match client.read(&mut chunk) {
                Ok(0) => return (String::from_utf8(bytes).unwrap(), true),
                Ok(count) => {
                    bytes.extend_from_slice(&chunk[..count]);
                    idle = 0;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("{e}"),
            }
        }
        (String::from_utf8(bytes).unwrap(), false)
    }

    /// Sends all of it, however long the server takes to read it; false if it does not want it.
    fn send(&mut self, mut client: &UnixStream, mut bytes: &[u8]) -> bool {
        for _ in 0..10_000 {
            match client.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.server.turn(),
                Err(_) => return false,
            }
            if bytes.is_empty() {
                return true;
            }
        }
        panic!("the server does not read");
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Sends bytes with so many descriptors of a socket, and returns its other end.
fn give(client: &UnixStream, bytes: &[u8], count: usize) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let descriptors = vec![theirs.as_fd(); count];
    let message = SendAncillaryMessage::ScmRights(&descriptors);
    let mut space = vec![MaybeUninit::uninit(); message.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(message));
    assert_eq!(sendmsg(client, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap(), bytes.len());
    ours
}

/// Nobody has the other end open any more.
fn is_closed(mut end: &UnixStream) -> bool {
    end.set_nonblocking(true).unwrap();
    end.read(&mut [0]).is_ok_and(|count| count == 0)
}

#[test]
fn descriptors_belong_to_the_request_that_they_came_with() {
    let mut rig = Rig::new();
    let client = rig.client();
    let end = give(&client, b"PATCH /a HTTP/1.1\r\nContent-Len", 2);
    rig.server.turn();
    assert!(rig.seen().is_empty() && !is_closed(&end));
    assert!(rig.send(&client, b"gth: 2\r\n\r\n{}"));
    rig.read(&client);
    assert_eq!((rig.seen().len(), rig.server.handler.given.len()), (1, 2));
    // The next one has none, and so nobody has them.
    assert!(rig.send(&client, GET));
    rig.read(&client);
    assert!(rig.server.handler.given.is_empty() && is_closed(&end));
}

#[test]
fn a_client_cannot_fill_the_process_with_descriptors() {
    let mut rig = Rig::new();
    let client = rig.client();
    let first = give(&client, b"GET", 50);
    rig.server.turn();
    let second = give(&client, b" / ", 50);
    rig.server.turn();
    let third = give(&client, b"HTTP/1.1\r\n", 200);
    rig.server.turn();
    assert!(!is_closed(&first) && !is_closed(&second) && is_closed(&third));
    assert!(rig.send(&client, b"\r\n"));
    rig.read(&client);
    assert_eq!(rig.server.handler.given.len(), 64);
    // A client that goes takes with it what it has given and not asked anything of.
    let client = rig.client();
    let end = give(&client, b"GET", 1);
    rig.server.turn();
    drop(client);
    rig.server.turn();
    assert!(is_closed(&end));
}

fn put(path: &str, body: usize) -> Vec<u8> {
    let mut request = format!("PUT {path} HTTP/1.1\r\nContent-Length: {body}\r\n\r\n").into_bytes();
    request.resize(request.len() + body, b'x');
    request
}

#[test]
fn a_connection_takes_one_request_after_the_other() {
    let mut rig = Rig::new();
    let client = rig.client();
    for round in 0..3 {
        assert!(rig.send(&client, &put("/a", round)));
        let (text, ended) = rig.read(&client);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with(&format!("\"PUT /a {round}\"")), "{text}");
        assert!(!ended);
    }
}

#[test]
fn group_10_requests_that_come_together_are_answered_in_order() {
    let mut rig = Rig::new();
    let client = rig.client();
    let mut all = Vec::new();
    (0..100).for_each(|n| all.extend(put(&format!("/{n}"), n)));
    assert!(rig.send(&client, &all));
    let (text, ended) = rig.read(&client);
    assert!(!ended);
    let places: Vec<_> = (0..100).map(|n| text.find(&format!("\"PUT /{n} {n}\"")).expect("an answer")).collect();
    assert!(places.is_sorted());
}

#[test]
fn group_10_one_byte_at_a_time_is_a_request_too() {
    let mut rig = Rig::new();
    let client = rig.client();
    for byte in put("/slow", 3) {
        assert!(rig.seen().is_empty());
        assert!(rig.send(&client, &[byte]));
        rig.server.turn();
    }
    assert_eq!(rig.seen(), ["PUT /slow 3"]);
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answers() {
    let mut rig = Rig::new();
    let client = rig.client();
    assert!(rig.send(&client, &[GET, GET].concat()));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let (text, ended) = rig.read(&client);
    assert_eq!(text.matches("200 OK").count(), 2);
    assert!(ended && rig.server.clients.is_empty());
}

#[test]
fn a_client_that_vanishes_is_forgotten_wherever_it_was() {
    let mut rig = Rig::new();
    for sent in [&b""[..], b"GET / HT", &put("/a", 100)[..60], GET] {
        let client = rig.client();
        assert!(rig.send(&client, sent));
        drop(client);
        (0..4).for_each(|_| rig.server.turn());
        assert!(rig.server.clients.is_empty(), "{sent:?}");
    }
    let client = rig.client();
    assert!(rig.send(&client, &put("/later", 0)));
    rig.server.turn();
    drop(client);
    rig.server.turn();
    assert!(rig.server.clients.is_empty());
    // Nobody is there to take it.
    rig.server.answer(&Response::done());
}

#[test]
fn an_answer_that_comes_later_finds_its_client() {
    let mut rig = Rig::new();
    let (first, second) = (rig.client(), rig.client());
    assert!(rig.send(&first, &[&put("/later", 0), GET].concat()));
    rig.server.turn();
    assert!(rig.send(&second, GET));
    assert!(rig.read(&second).0.contains("200 OK"));
    assert_eq!(rig.read(&first).0, "", "what comes behind it waits");
    rig.server.answer(&Response::done());
    let (text, _) = rig.read(&first);
    assert!(text.starts_with("HTTP/1.1 204 ") && text.contains("200 OK"), "{text}");
}

#[test]
fn an_answer_for_the_loop_is_given_by_its_next_turn_or_at_the_end() {
    for end in [false, true] {
        let mut rig = Rig::new();
        rig.server.answer_soon(Response::done());
        let client = rig.client();
        assert!(rig.send(&client, &put("/later", 0)));
        rig.server.turn();
        assert!(rig.server.soon.0.is_none(), "an answer that nobody waited for");
        rig.server.answer_soon(Response::done());
        if end {
            rig.server.close()
        } else {
            rig.server.turn()
        }
        let mut text = [0; 12];
        (&client).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"HTTP/1.1 204");
    }
}

#[test]
fn what_is_no_http_is_told_and_ends_the_connection() {
    for (bytes, status) in [
        (b"nonsense\r\n\r\n".to_vec(), 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_vec(), 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(), 413),
        (put("/", MAX_BODY + 1), 413),
        (b"GET / HTTP/1.1\r\nX: ".iter().copied().chain([b'x'; 2 * MAX_HEAD]).collect(), 431),
    ] {
        let mut rig = Rig::new();
        let client = rig.client();
        // All of it is read, so that the answer is not lost; it is what a client does that reads only when it has sent.
        assert!(rig.send(&client, &bytes));
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (text, ended) = rig.read(&client);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")) && text.contains("fault_message"), "{text}");
        assert!(text.contains("Connection: close") && ended, "{text}");
        assert!(rig.seen().is_empty());
    }
}

#[test]
fn group_10_a_request_that_stops_in_the_middle_is_told() {
    let mut rig = Rig::new();
    let client = rig.client();
    assert!(rig.send(&client, b"GET / HTTP/1.1\r\n"));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let (text, ended) = rig.read(&client);
    assert!(text.contains("ends too early") && ended, "{text}");
}

#[test]
fn the_largest_body_passes_and_its_memory_is_given_back() {
    let mut rig = Rig::new();
    let client = rig.client();
    assert!(rig.send(&client, &put("/big", MAX_BODY)));
    assert!(rig.read(&client).0.contains(&format!("PUT /big {MAX_BODY}")));
    let footprint: usize = rig.server.clients.values().map(|client| client.connection.footprint()).sum();
    assert!(footprint <= 2 * MAX_HEAD, "{footprint}");
}

#[test]
fn a_client_that_waits_for_leave_to_send_gets_it_once() {
    let mut rig = Rig::new();
    let client = rig.client();
    assert!(rig.send(&client, b"PUT /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"));
    assert_eq!(rig.read(&client).0, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(rig.send(&client, b"12"));
    assert_eq!(rig.read(&client).0, "");
    assert!(rig.send(&client, b"34"));
    assert!(rig.read(&client).0.contains("PUT /e 4"));
    // A body that is too long is refused before it is sent.
    assert!(rig.send(&client, b"PUT /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"));
    assert!(rig.read(&client).0.starts_with("HTTP/1.1 413 "));
}

#[test]
fn group_10_a_client_that_does_not_read_stops_being_served_and_holds_up_nobody() {
    let mut rig = Rig::new();
    let deaf = rig.client();
    let mut sent = 0;
    // Until neither side takes more.
    while let Ok(count) = (&deaf).write(GET) {
        assert!(sent < 64 << 20, "the server answers a client that does not read");
        sent += count;
        rig.server.turn();
    }
    (0..50).for_each(|_| rig.server.turn());
    let footprint: usize = rig.server.clients.values().map(|client| client.connection.footprint()).sum();
    assert!(footprint <= 4 * MAX_HEAD, "{footprint}");
    let other = rig.client();
    assert!(rig.send(&other, GET));
    assert!(rig.read(&other).0.contains("200 OK"));
    // It gets all of it when it reads.
    let (text, _) = rig.read(&deaf);
    assert!(text.matches("200 OK").count() >= sent / GET.len() - 1);
}

#[test]
fn one_client_too_many_takes_the_place_of_the_most_silent() {
    let mut rig = Rig::new();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| rig.client()).collect();
    // The first waits for an answer, so that the second is the most silent.
    assert!(rig.send(&clients[0], &put("/later", 0)));
    (0..3).for_each(|_| rig.server.turn());
    clients.push(rig.client());
    assert_eq!(rig.server.clients.len(), CLIENTS);
    assert!(rig.read(&clients[1]).1, "it was shown out");
    for client in [&clients[2], &clients[CLIENTS]] {
        assert!(rig.send(client, GET));
        assert!(rig.read(client).0.contains("200 OK"));
    }
    rig.server.answer(&Response::done());
    assert!(rig.read(&clients[0]).0.contains("204"));
}

#[test]
fn a_client_that_floods_leaves_turns_to_others() {
    let mut rig = Rig::new();
    let flood = rig.client();
    assert!(rig.send(&flood, &GET.repeat(500)));
    rig.server.turn();
    let served = rig.seen().len();
    assert!((1..=100).contains(&served), "{served} requests in one turn");
}

#[test]
fn its_file_goes_with_it() {
    let rig = Rig::new();
    let path = rig.path.clone();
    let Rig { server, _dir, .. } = rig;
    assert!(path.exists());
    assert!(Server::bind(path.clone(), Echo::default()).is_err(), "someone listens there");
    drop(server);
    assert!(!path.exists());
}

/// What a client might do.
#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    Read,
    Turn,
    HalfClose,
    Answer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![
        Just(GET.to_vec()),
        (0usize..3000).prop_map(|body| put("/p", body)),
        Just(put("/later", 0)),
        Just(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n".to_vec()),
        Just(b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let cut = (bytes, 0usize..4096).prop_map(|(bytes, at)| bytes[..at.min(bytes.len())].to_vec());
    let step = prop_oneof![
        6 => cut.prop_map(Step::Send), 2 => Just(Step::Read), 3 => Just(Step::Turn), 1 => Just(Step::HalfClose),
        1 => Just(Step::Answer),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    /// Whatever a client does: no panic, bounded memory, and others are served.
    #[test]
    fn group_10_no_client_can_harm_another(steps in steps()) {
        let mut rig = Rig::new();
        let mut client = rig.client();
        for step in steps {
            match step {
                Step::Send(bytes) => drop(client.write(&bytes)),
                Step::Read => drop(client.read(&mut [0; 4096])),
                Step::Turn => rig.server.turn(),
                Step::HalfClose => drop(client.shutdown(std::net::Shutdown::Write)),
                Step::Answer => rig.server.answer(&Response::done()),
            }
            let footprint: usize = rig.server.clients.values().map(|client| client.connection.footprint()).sum();
            prop_assert!(footprint <= 4 * MAX_HEAD, "{}", footprint);
        }
        drop(client);
        rig.server.answer(&Response::done());
        let other = rig.client();
        prop_assert!(rig.send(&other, GET));
        prop_assert!(rig.read(&other).0.contains("200 OK"));
        // What another test starts just now has copies of all descriptors, of the client's end too, until it is another program.
        let begun = Instant::now();
        while rig.server.clients.len() > 1 && begun.elapsed() < Duration::from_secs(10) {
            rig.server.turn();
        }
        prop_assert!(rig.server.clients.len() == 1);
    }
}
