//! A client of a microVM's control socket (docs/control-api.md): one request a connection.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde_json::Value;

/// Longest answer that is believed.
const MAX_ANSWER: u64 = 4 << 20;
/// How long an answer may take. A snapshot of much memory on a slow disk does take minutes.
const PATIENCE: Duration = Duration::from_secs(900);
/// Most headers of an answer.
const MAX_HEADERS: usize = 32;

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers.
    #[error("control socket {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine says no.
    #[error("{0}")]
    Refused(String),
}

/// A microVM's control socket.
#[derive(Debug, Clone)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// The one at `path`. Nothing is opened yet.
    pub fn at(path: &Path) -> Self {
        Control { path: path.to_owned() }
    }

    /// The run directory that its socket is in.
    pub fn directory(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// The process that serves it: whoever has begun to listen there (SO_PEERCRED, unix(7)).
    ///
    /// # Errors
    /// Nobody does.
    pub fn server(&self) -> Result<u32, ControlError> {
        let pid = UnixStream::connect(&self.path).and_then(|socket| {
            let pid = rustix::net::sockopt::socket_peercred(&socket)?.pid.as_raw_nonzero().get();
            u32::try_from(pid).map_err(io::Error::other)
        });
        pid.map_err(|source| ControlError::Io { path: self.path.clone(), source })
    }

    /// Sends `body` as JSON, or nothing if that is `null`; returns what the machine answers, `null` if that is nothing.
    ///
    /// # Errors
    /// Nobody answers, or the answer is no: then in the machine's words.
    pub fn call(&self, method: &str, target: &str, body: &impl Serialize) -> Result<Value, ControlError> {
        self.call_giving(method, target, body, &[])
    }

    /// The same, with descriptors that the machine takes over.
    ///
    /// # Errors
    /// As [`Control::call`].
    pub fn call_giving(
        &self,
        method: &str,
        target: &str,
        body: &impl Serialize,
        descriptors: &[OwnedFd],
    ) -> Result<Value, ControlError> {
        let failed = |source| ControlError::Io { path: self.path.clone(), source };
        let (status, body) = self.exchange(method, target, body, descriptors).map_err(failed)?;
        if (200..300).contains(&status) {
            return Ok(serde_json::from_slice(&body).unwrap_or(Value::Null));
        }
        let fault: Option<Value> = serde_json::from_slice(&body).ok();
        let words = fault.as_ref().and_then(|fault| fault.get("fault_message")).and_then(Value::as_str);
        Err(ControlError::Refused(words.map_or_else(|| format!("HTTP status {status}"), str::to_owned)))
    }

    /// Status and body of the answer.
    fn exchange(
        &self,
        method: &str,
        target: &str,
        body: &impl Serialize,
        descriptors: &[OwnedFd],
    ) -> io::Result<(u16, Vec<u8>)> {
        let mut body = serde_json::to_vec(body)?;
        if body == b"null" {
            body.clear();
        }
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), &body].concat();
        let sent = if descriptors.is_empty() { 0 } else { send(&stream, &request, descriptors)? };
        stream.write_all(&request[sent..])?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        parse(answer)
    }
}

/// Sends bytes with descriptors; how many bytes were sent.
fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let message = SendAncillaryMessage::ScmRights(&descriptors);
    let mut space = vec![MaybeUninit::uninit(); message.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(message) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Status and body.
pub(crate) fn parse(mut answer: Vec<u8>) -> io::Result<(u16, Vec<u8>)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match (response.parse(&answer), response.code) {
        (Ok(httparse::Status::Complete(head)), Some(status)) => Ok((status, answer.split_off(head))),
        (Err(error), _) => Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// What a call says to a server that answers with these bytes.
    fn call(answer: &'static str) -> Result<Value, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let result = Control::at(&path).call("PUT", "/x", &serde_json::json!({ "a": 1 })).map_err(|e| e.to_string());
        let request = server.join().unwrap();
        assert!(request.starts_with("PUT /x HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
        result
    }

    #[test]
    fn an_answer_is_a_value_or_the_machines_words() {
        assert_eq!(call("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"b\":2}"), Ok(serde_json::json!({ "b": 2 })));
        assert_eq!(call("HTTP/1.1 204 No Content\r\n\r\n"), Ok(Value::Null));
        let refused = call("HTTP/1.1 400 Bad Request\r\n\r\n{\"fault_message\":\"no disk\"}");
        assert_eq!(refused, Err("no disk".into()));
        assert_eq!(call("HTTP/1.1 500 Oops\r\n\r\nhm"), Err("HTTP status 500".into()));
    }

    #[test]
    fn whoever_does_not_answer_is_an_error_with_the_sockets_name() {
        for answer in ["", "HTTP/1.1 200", "garbage\r\n\r\n"] {
            assert!(call(answer).unwrap_err().contains("control socket"), "{answer:?}");
        }
        let missing = Control::at(Path::new("/nonexistent/api")).call("GET", "/", &()).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/api"));
    }
}
