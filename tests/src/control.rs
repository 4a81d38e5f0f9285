//! A client of a microVM's control socket: one request a connection, HTTP as plain as it can be.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Running;

/// A control socket.
#[derive(Debug, Clone)]
pub struct Control {
    path: PathBuf,
    patience: Duration,
}

impl Control {
    /// The socket at `path`, as soon as the process serves it; it answers anything within `patience`.
    ///
    /// # Panics
    /// It does not.
    pub fn of(process: &Running, path: PathBuf, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        while UnixStream::connect(&path).is_err() {
            assert!(Instant::now() < deadline, "process {} does not serve {}", process.pid(), path.display());
            // The file appears a moment before somebody listens, and tells nobody of that.
            std::thread::sleep(Duration::from_millis(5));
        }
        Control::at(path, patience)
    }

    /// The socket at `path`, which is served already.
    pub fn at(path: PathBuf, patience: Duration) -> Self {
        Control { path, patience }
    }

    /// Status and content of the answer to a request; no body if it is `Value::Null`.
    ///
    /// # Panics
    /// There is no answer, or it is no HTTP.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.attempt(method, path, body).expect("an answer")
    }

    /// The same of a process that may end before it answers.
    ///
    /// # Errors
    /// It has ended, or does not answer.
    ///
    /// # Panics
    /// The answer is no HTTP.
    pub fn attempt(&self, method: &str, path: &str, body: &Value) -> io::Result<(u16, Value)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(self.patience))?;
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (head, content) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Ok((status, serde_json::from_str(content).unwrap_or(Value::Null)))
    }

    /// Asks for something that is done.
    ///
    /// # Panics
    /// It is not.
    pub fn done(&self, method: &str, path: &str, body: Value) {
        assert_eq!(self.ask(method, path, &body), (204, Value::Null), "{method} {path} {body}");
    }

    /// The content at a path.
    ///
    /// # Panics
    /// There is none.
    pub fn get(&self, path: &str) -> Value {
        let (status, content) = self.ask("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {content}");
        content
    }

    /// What is wrong with a request.
    ///
    /// # Panics
    /// Nothing is.
    pub fn fault(&self, method: &str, path: &str, body: Value) -> String {
        let (status, content) = self.ask(method, path, &body);
        assert_eq!(status, 400, "{method} {path}: {content}");
        content["fault_message"].as_str().expect("a message").to_owned()
    }
}
