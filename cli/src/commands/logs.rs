//! `bulkhead logs`: what a container's process has written, from the file it is kept in.

use std::io::{self, Write as _};

use super::inspect::find;
use crate::args::Logs;
use crate::containers::{Containers, Status};
use crate::failure::{Failure, Outcome};
use crate::logs::reader::{Entry, Reader, Wanted};
use crate::paths;
use crate::running;

/// Prints it, each stream on its own.
pub fn logs(args: &Logs) -> Outcome {
    let entry = find(&args.container).map_err(|error| Failure::with_code(1, error))?;
    let wanted = Wanted { since_ns: args.since.unwrap_or(0), until_ns: args.until, tail: args.tail.0 };
    let mut print = |line: &Entry| {
        let mut text = if args.timestamps { format!("{} ", line.time) } else { String::new() };
        text.push_str(&line.text);
        let bytes = text.as_bytes();
        if line.is_error { io::stderr().write_all(bytes) } else { io::stdout().lock().write_all(bytes) }
    };
    let mut reader = Reader::open(&entry.dir, wanted);
    let owner = match entry.record.state.status {
        Status::Running if args.follow => running::owner(&Containers::of(&paths::store())?, &entry)?,
        _ => None,
    };
    reader.present(&mut print)?;
    if args.follow {
        reader.follow(owner.as_ref(), &mut print)?;
    }
    io::stdout().flush()?;
    Ok(0)
}
