//! The side of the VM's owner: a descriptor to wait for, and orders when there are any. It never waits for a client, keeps
//! a bounded number of them with a bounded line each, and speaks to none before it has said all of its line.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use super::talk::Talking;
use super::{Answer, MAX_ORDER, Order};

/// Most clients that may be speaking: one more takes the place of the one that has done so for longest.
const MOST_CLIENTS: usize = 16;
/// Most connections taken, or reads of a client made, at a time: the VM has its turn in between.
const PATIENCE: usize = 32;

/// The socket and its clients. Dropping it removes the socket.
#[derive(Debug)]
pub struct Attendance {
    listener: UnixListener,
    path: PathBuf,
    /// Readable if something of all that is.
    any: OwnedFd,
    clients: VecDeque<Client>,
}

/// A client that has not said all of its line.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// A client that waits for its answer.
#[derive(Debug)]
pub struct Waiting {
    stream: UnixStream,
}

impl Attendance {
    /// Listens at `path`, for the owner only.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let any = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&any, &listener, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Attendance { listener, path: path.to_owned(), any, clients: VecDeque::new() })
    }

    /// An order that has come, if there is one; takes the event away as far as there is none.
    pub fn take(&mut self) -> Option<(Order, Waiting)> {
        self.accept();
        for _ in 0..self.clients.len() {
            let mut client = self.clients.pop_front()?;
            match client.read() {
                Heard::Nothing => self.clients.push_back(client),
                Heard::End => {}
                Heard::Line => {
                    let waiting = Waiting { stream: client.stream };
                    // Its line has been said: nothing is an event any more but that it goes away.
                    let none = epoll::EventFlags::empty();
                    let _ = epoll::modify(&self.any, &waiting.stream, epoll::EventData::new_u64(0), none);
                    match Order::decode(&client.line) {
                        Ok(order) => return Some((order, waiting)),
                        Err(problem) => waiting.refuse(&problem),
                    }
                }
            }
        }
        None
    }

    /// Goes on with a client: from now on what it says is an event, until it is dropped.
    pub fn talk(&self, waiting: Waiting) -> io::Result<Talking> {
        epoll::modify(&self.any, &waiting.stream, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Talking::new(waiting.stream))
    }

    /// Listens to a client as well that has not come by way of the socket.
    pub fn adopt(&self, client: &Talking) -> io::Result<()> {
        Ok(epoll::add(&self.any, client, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
    }

    /// Goes on with somebody who is connected already and has asked by other ways.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn admit(&self, stream: UnixStream) -> io::Result<Talking> {
        stream.set_nonblocking(true)?;
        let client = Talking::new(stream);
        self.adopt(&client)?;
        Ok(client)
    }

    fn accept(&mut self) {
        for _ in 0..PATIENCE {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let added = stream.set_nonblocking(true).and_then(|()| {
                        Ok(epoll::add(&self.any, &stream, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
                    });
                    if added.is_ok() {
                        self.clients.push_back(Client { stream, line: Vec::new() });
                    }
                    if self.clients.len() > MOST_CLIENTS {
                        self.clients.pop_front();
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Attendance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What a client has said.
enum Heard {
    /// Not all of it yet.
    Nothing,
    /// Its line is complete, or too long to be one.
    Line,
    /// It is gone.
    End,
}

impl Client {
    fn read(&mut self) -> Heard {
        let mut chunk = [0; 4096];
        for _ in 0..PATIENCE {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Heard::End,
                Ok(count) => {
                    let part = &chunk[..count];
                    let end = part.iter().position(|byte| *byte == b'\n');
                    self.line.extend_from_slice(&part[..end.unwrap_or(count)]);
                    if end.is_some() || self.line.len() >= MAX_ORDER {
                        self.line.truncate(MAX_ORDER);
                        return Heard::Line;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                Err(_) => return Heard::End,
            }
        }
        Heard::Nothing
    }
}

impl Waiting {
    /// It waits no more: an event until this is dropped.
    pub fn is_gone(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        matches!(poll(&mut fds, Some(&now)), Ok(1..))
    }

    /// It goes on.
    pub fn progress(&self, text: &str) {
        self.say(&Answer::Progress(text.into()));
    }

    /// It is done.
    pub fn done(self, value: serde_json::Value) {
        self.say(&Answer::Done(value));
    }

    /// It cannot be done.
    pub fn refuse(self, reason: &str) {
        self.say(&Answer::Error(reason.into()));
    }

    fn say(&self, answer: &Answer) {
        say(&self.stream, answer);
    }
}

/// Says something to a client. One that does not read what fits into its socket's buffer loses the rest.
pub(super) fn say(mut stream: &UnixStream, answer: &Answer) {
    if let Ok(line) = serde_json::to_string(answer) {
        let _ = stream.write_all(format!("{line}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::ask;
    use super::super::{SOCKET, VERSION};
    use super::*;
    use serde_json::json;

    fn attendance() -> (tempfile::TempDir, Attendance) {
        let dir = tempfile::tempdir().unwrap();
        let attendance = Attendance::listen(&dir.path().join(SOCKET)).unwrap();
        (dir, attendance)
    }

    /// Waits for an order.
    fn next(attendance: &mut Attendance) -> (Order, Waiting) {
        loop {
            poll(&mut [PollFd::new(attendance, PollFlags::IN)], None).unwrap();
            if let Some(found) = attendance.take() {
                return found;
            }
        }
    }

    fn is_quiet(attendance: &Attendance) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(attendance, PollFlags::IN)], Some(&now)) == Ok(0)
    }

    #[test]
    fn an_order_gets_its_progress_and_its_answer() {
        let (dir, mut attendance) = attendance();
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let place = dir.path().to_owned();
        let client = std::thread::spawn(move || {
            let mut told = Vec::new();
            let order = Order::Snapshot { name: Some("one".into()) };
            let done = ask(&place, "web", &order, &mut |text| told.push(text.to_owned())).unwrap();
            let refused = ask(&place, "web", &Order::About {}, &mut |_| ()).unwrap_err().to_string();
            let gone = ask(&place, "web", &Order::About {}, &mut |_| ()).unwrap_err().to_string();
            (told, done, refused, gone)
        });
        let (order, waiting) = next(&mut attendance);
        assert_eq!(order, Order::Snapshot { name: Some("one".into()) });
        waiting.progress("half\n way");
        waiting.done(json!({ "name": "one" }));
        next(&mut attendance).1.refuse("no\x1b!");
        let (_, waiting) = next(&mut attendance);
        assert!(is_quiet(&attendance) && !waiting.is_gone());
        drop(waiting);
        let leaving = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        (&leaving).write_all(Order::About {}.encode().unwrap().as_bytes()).unwrap();
        // That it says no more is not that it waits no more.
        leaving.shutdown(std::net::Shutdown::Write).unwrap();
        let (_, waiting) = next(&mut attendance);
        assert!(is_quiet(&attendance) && !waiting.is_gone());
        drop(leaving);
        assert!(!is_quiet(&attendance) && waiting.is_gone() && attendance.take().is_none());
        drop(waiting);
        assert!(is_quiet(&attendance));
        drop(attendance);
        let (told, done, refused, gone) = client.join().unwrap();
        assert_eq!((told, done, refused.as_str()), (vec!["half way".into()], json!({ "name": "one" }), "no !"));
        assert!(gone.contains("'web'") && !dir.path().join(SOCKET).exists(), "{gone}");
    }

    #[test]
    fn clients_that_say_nothing_or_too_much_hold_nobody_up() {
        let (dir, mut attendance) = attendance();
        let connect = || UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        let silent: Vec<_> = (0..100).map(|_| connect()).collect();
        while !is_quiet(&attendance) {
            assert!(attendance.take().is_none());
        }
        assert!(attendance.clients.len() <= MOST_CLIENTS);
        let mut slow = connect();
        slow.write_all(b"{\"version\":1,").unwrap();
        let endless = std::thread::spawn({
            let mut stream = connect();
            move || {
                let _ = stream.write_all(&vec![b'x'; 1 << 20]);
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                answer
            }
        });
        let mut garbage = connect();
        garbage.write_all(b"\xff\xfe\n").unwrap();
        drop(connect());
        let mut good = connect();
        good.write_all(format!("{{\"version\":{VERSION},\"order\":\"about\"}}\nmore").as_bytes()).unwrap();
        let (order, waiting) = next(&mut attendance);
        assert_eq!(order, Order::About {});
        waiting.done(json!(1));
        slow.write_all(b"\"order\":\"about\"}\n").unwrap();
        assert_eq!(next(&mut attendance).0, Order::About {});
        let mut answer = String::new();
        garbage.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":"), "{answer}");
        while !endless.is_finished() {
            assert!(attendance.take().is_none());
        }
        endless.join().unwrap();
        drop(silent);
        while !is_quiet(&attendance) {
            attendance.take();
        }
    }
}
