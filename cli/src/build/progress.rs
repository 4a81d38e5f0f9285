//! What a build says while it works, as docker's plain progress: each line with the number of its step.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Mutex;
use std::time::Instant;

use crate::failure::sanitize;

/// Longest line of a command's output that is waited for; a longer one is told in parts.
const MAX_LINE: u64 = 16 << 10;
/// What is kept of a command's output where it is not told, for the case that it fails.
const MAX_KEPT: usize = 64 << 10;

/// The teller.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    number: Mutex<usize>,
}

/// A step that is under way.
#[derive(Debug)]
pub struct Step<'a> {
    progress: &'a Progress,
    number: usize,
    began: Instant,
    /// What is not told.
    kept: Mutex<Vec<u8>>,
}

impl Progress {
    /// `quiet`: it tells nothing, but what commands have said that failed.
    pub fn new(quiet: bool) -> Self {
        Progress { quiet, number: Mutex::new(0) }
    }

    /// The next step.
    pub fn step(&self, title: &str) -> Step<'_> {
        let mut number = self.number.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *number += 1;
        let step = Step { progress: self, number: *number, began: Instant::now(), kept: Mutex::default() };
        step.say(&sanitize(title));
        step
    }

    /// Something that belongs to no step.
    pub fn warn(&self, text: &str) {
        if !self.quiet {
            tell(format!("bulkhead: {}\n", sanitize(text)).as_bytes());
        }
    }
}

impl Step<'_> {
    /// A line.
    pub fn say(&self, text: &str) {
        if !self.progress.quiet {
            tell(format!("#{} {text}\n", self.number).as_bytes());
        }
    }

    /// It was done before.
    pub fn cached(self) {
        self.say("CACHED");
    }

    /// It is done.
    pub fn done(self) {
        self.say(&format!("DONE {:.1}s", self.began.elapsed().as_secs_f64()));
    }

    /// It failed. What its command has said, and was not told, is told now.
    pub fn failed(self, why: &str) {
        let kept = self.kept.lock().map(|kept| kept.clone()).unwrap_or_default();
        tell(&kept);
        self.say(&format!("ERROR: {}", sanitize(why)));
    }

    /// Tells what a command writes, line by line, to its end.
    pub fn relay(&self, output: impl Read) {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            let end = if line.last() == Some(&b'\n') { &b""[..] } else { b"\n" };
            let head = format!("#{} {:.3} ", self.number, self.began.elapsed().as_secs_f64());
            let line = [head.as_bytes(), &line, end].concat();
            if !self.progress.quiet {
                tell(&line);
            } else if let Ok(mut kept) = self.kept.lock() {
                kept.extend_from_slice(&line);
                let over = kept.len().saturating_sub(MAX_KEPT);
                kept.drain(..over);
            }
        }
    }
}

/// In one write, so that lines do not mix; a closed stderr leaves nobody to tell.
fn tell(bytes: &[u8]) {
    let _ = io::stderr().write_all(bytes);
}
