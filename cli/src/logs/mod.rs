//! What a container's process has written, kept in its directory: docker's json-file format, one object a line, so that what
//! reads docker's logs reads these.
//!
//! ```text
//! log.json      the last of it, up to 10 MiB; then it becomes
//! log.json.1    which replaces the one before
//! ```
//!
//! - [`writer`]: the side of the one that has the container;
//! - [`reader`]: `bulkhead logs`.

pub mod reader;
pub mod writer;

use serde::{Deserialize, Serialize};

/// The file's name.
const FILE: &str = "log.json";
/// What came before.
const OLDER: &str = "log.json.1";

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    /// What was written, with its line end, if it has one.
    log: String,
    /// `stdout` or `stderr`.
    stream: String,
    /// When, as RFC 3339.
    time: String,
}
