//! How a command ends when it does not succeed: an exit code, and at most one line for the user.
//!
//! Codes are those container users know: 125 Bulkhead failed, 126 not executable, 127 not found, 128+n signal n, and
//! otherwise the command's own.

use std::fmt::Write as _;
use std::io;

/// Bulkhead itself failed.
pub const FAILED: u8 = 125;

/// The end of a command that did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// Exit code of the process.
    pub code: u8,
    /// What to tell the user; `None` if the code says it all.
    pub error: Option<anyhow::Error>,
}

/// A signal has ended what was being done.
#[derive(Debug, thiserror::Error)]
#[error("ended by signal {0}")]
pub struct Interrupted(pub u8);

/// What every verb returns.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// Ends with `code` and nothing to say.
    pub fn silent(code: u8) -> Self {
        Failure { code, error: None }
    }

    /// Ends with `code` and a line.
    pub fn with_code(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Failure { code, error: Some(error.into()) }
    }

    /// As docker ends where something cannot be done: with 1; or by the signal that was the reason, with nothing to say.
    pub fn refused(error: anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(Interrupted(signal)) => Failure::silent(128u8.saturating_add(*signal)),
            None => Failure::with_code(1, error),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        // Nobody reads our results any more: end as a process that SIGPIPE ended.
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return Failure::silent(128 + 13);
        }
        Failure { code: FAILED, error: Some(error) }
    }
}

/// The error with its causes as one line. A cause that the text before it tells already is not told again.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
    }
    sanitize(&line)
}

/// Makes text of unknown origin safe for one line of a terminal: control characters become spaces.
pub fn sanitize(text: &str) -> String {
    let text = text.trim().replace(|c: char| c.is_control(), " ");
    text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Prints what there is to say on stderr and returns the exit code.
pub fn conclude(outcome: Outcome, verbose: bool) -> u8 {
    let failure = match outcome {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    if let Some(error) = &failure.error {
        let mut text = format!("bulkhead: {}\n", one_line(error));
        if verbose {
            for cause in error.chain().skip(1) {
                let _ = writeln!(text, "  because: {}", sanitize(&cause.to_string()));
            }
        }
        // In one write, so that lines of several runs do not mix; a closed stderr leaves nobody to tell.
        let _ = io::Write::write_all(&mut io::stderr(), text.as_bytes());
    }
    failure.code
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn causes_are_told_once_on_one_line() {
        let error = anyhow!("no such\nfile").context("kernel /k: no such\nfile").context("boot");
        assert_eq!(one_line(&error), "boot: kernel /k: no such file");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(sanitize("a\x1b[31mb\r\n c\t"), "a [31mb c");
    }

    #[test]
    fn a_closed_pipe_is_no_error_to_talk_about() {
        let broken: Failure = io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert!(broken.error.is_none() && broken.code == 141);
        let other: Failure = Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context("x").unwrap_err().into();
        assert_eq!(other.code, FAILED);
    }
}
