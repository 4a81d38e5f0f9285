//! The side that asks: one order a connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::{Answer, MAX_LINE, Order, SOCKET};
use crate::failure::sanitize;

/// An order that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error("microVM '{vm}': {source}")]
    Io {
        /// Whose socket.
        vm: String,
        /// Why.
        source: io::Error,
    },
    /// Its owner is gone.
    #[error("microVM '{0}' ended before it had answered")]
    Gone(String),
    /// Its owner's words.
    #[error("{0}")]
    Refused(String),
}

/// Asks the owner of the VM `vm`, whose run directory is `dir`, and waits for what comes of it. Progress goes to `progress`.
pub fn ask(dir: &Path, vm: &str, order: &Order, progress: &mut dyn FnMut(&str)) -> Result<Value, AskError> {
    let failed = |source: io::Error| match source.kind() {
        // The directory is there until the VM's end is cleaned up.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::BrokenPipe => {
            AskError::Gone(vm.into())
        }
        _ => AskError::Io { vm: vm.into(), source },
    };
    let mut stream = UnixStream::connect(dir.join(SOCKET)).map_err(failed)?;
    let line = order.encode().map_err(|e| failed(e.into()))?;
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answers = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        answers.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line).map_err(failed)?;
        if line.last() != Some(&b'\n') {
            return Err(AskError::Gone(vm.into()));
        }
        match serde_json::from_slice(&line).map_err(|e| failed(e.into()))? {
            Answer::Progress(text) => progress(&sanitize(&text)),
            Answer::Done(value) => return Ok(value),
            Answer::Error(text) => return Err(AskError::Refused(sanitize(&text))),
        }
    }
}
