//! Whether what docker's users are used to comes to the same here and with another engine: a habit is a few commands, told to
//! both, whose exit codes and outputs are compared.

mod habits;
mod lent;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

pub use self::habits::{Habit, habits};
use self::habits::{Step, Told};
pub use self::lent::Lent;
use super::arm::program;
use super::running::{Ended, Input, Patience, Running};
use crate::place::Place;
use crate::process::{BenchError, io_error};

/// What both are told the same for.
pub struct Bout<'a> {
    /// Bulkhead's program.
    pub ours: &'a Path,
    /// The other engine's, which takes docker's commands.
    pub theirs: &'a Path,
    /// An image that both have under this name.
    pub image: &'a str,
    /// For one command.
    pub limit: Duration,
    /// Readable: everything is to end.
    pub stop: BorrowedFd<'a>,
    /// Told what is going on.
    pub say: &'a dyn Fn(&str),
}

/// What became of a habit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The habit.
    pub habit: &'static str,
    /// What differs, command by command; empty if nothing does.
    pub differences: Vec<Difference>,
    /// Why it does, if that is known and meant.
    pub explained: Option<&'static str>,
}

impl Verdict {
    /// Something differs, and nobody has said why.
    pub fn is_open(&self) -> bool {
        !self.differences.is_empty() && self.explained.is_none()
    }
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// After which command, without the program.
    pub command: String,
    /// `exit code`, `stdout` or `stderr`.
    pub what: &'static str,
    /// Bulkhead's.
    pub ours: String,
    /// The other engine's.
    pub theirs: String,
}

/// Has both do what a habit is.
///
/// # Errors
/// Neither differs nor agrees what could not be tried: no files for it, or [`BenchError::Interrupted`].
pub fn try_habit(habit: &'static Habit, number: usize, bout: &Bout<'_>) -> Result<Verdict, BenchError> {
    (bout.say)(habit.title);
    let ours = Side::new(bout.ours, number, bout)?;
    let theirs = Side::new(bout.theirs, number, bout)?;
    let mut differences = Vec::new();
    for step in habit.steps {
        let (here, there) = (ours.tell(step)?, theirs.tell(step)?);
        differences.extend(compare(step, &here, &there));
    }
    let explained = habit.differs.filter(|_| !differences.is_empty());
    Ok(Verdict { habit: habit.title, differences, explained })
}

/// What one engine answered, its own names replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

fn compare(step: &Step, ours: &Answer, theirs: &Answer) -> Vec<Difference> {
    let code = |answer: &Answer| match step.told {
        Told::Success if answer.code != 0 => "not 0".to_owned(),
        _ => answer.code.to_string(),
    };
    let lines = |text: &str| {
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        if step.any_order {
            lines.sort_unstable();
        }
        lines.concat()
    };
    let mut found = vec![("exit code", code(ours), code(theirs))];
    if matches!(step.told, Told::Output | Told::All) {
        found.push(("stdout", lines(&ours.stdout), lines(&theirs.stdout)));
    }
    if step.told == Told::All {
        found.push(("stderr", lines(&ours.stderr), lines(&theirs.stderr)));
    }
    let found = found.into_iter().filter(|(_, ours, theirs)| ours != theirs);
    found.map(|(what, ours, theirs)| Difference { command: step.words.join(" "), what, ours, theirs }).collect()
}

/// One of the two, with what is its own for a habit: containers and images of one name, a directory. They go when it does.
struct Side<'a> {
    bout: &'a Bout<'a>,
    program: &'a Path,
    /// What containers, volumes and images of this habit begin with.
    name: String,
    dir: Place,
}

impl<'a> Side<'a> {
    fn new(program: &'a Path, number: usize, bout: &'a Bout<'a>) -> Result<Self, BenchError> {
        let dir = Place::new()?;
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text);
        write("in", "from the host\n")
            .and_then(|()| write("env", "# a comment\nX=1\nY=two words\n"))
            .map_err(io_error("files"))?;
        Ok(Side { bout, program, name: format!("{}{}-{number}", lent::HABIT, std::process::id()), dir })
    }

    fn tell(&self, step: &Step) -> Result<Answer, BenchError> {
        let words = step.words.iter().map(|word| self.fill(word)).collect::<Vec<_>>();
        let ended = self.run(&with_network(words), step.input.as_bytes())?;
        let text = |bytes: &[u8]| self.plain(&String::from_utf8_lossy(bytes));
        Ok(Answer {
            // A signal, as a shell would say it: neither is to end by one.
            code: ended.status.code().unwrap_or(-1),
            stdout: text(&ended.seen.stdout),
            stderr: text(&ended.seen.stderr),
        })
    }

    fn run(&self, words: &[String], input: &[u8]) -> Result<Ended, BenchError> {
        let mut command = Command::new(self.program);
        command.args(words);
        let input = if input.is_empty() { Input::Nothing } else { Input::Bytes(input.to_vec()) };
        let patience = Patience { limit: self.bout.limit, stop: self.bout.stop };
        Running::start(command, input)?.end(patience)
    }

    /// A word of a command, with what is this side's in its place.
    fn fill(&self, word: &str) -> String {
        let dir = self.dir.path().to_string_lossy();
        word.replace("{image}", self.bout.image).replace("{name}", &self.name).replace("{dir}", &dir)
    }

    /// The other way round; and ids, which nobody else has, are all one.
    fn plain(&self, text: &str) -> String {
        let dir = self.dir.path().to_string_lossy();
        ids(&text.replace(&*dir, "{dir}").replace(&self.name, "{name}").replace(self.bout.image, "{image}"))
    }
}

impl Drop for Side<'_> {
    /// Nothing of it stays, whatever became of it: also if all else is to end.
    fn drop(&mut self) {
        let names = ["", "-2"].map(|end| format!("{}{end}", self.name));
        for [verb, what] in [["rm", "-f"], ["volume", "rm"], ["rmi", "-f"]] {
            for name in &names {
                // What is not there cannot be removed.
                let _ = clear(self.program, &[verb, what, name], self.bout.limit);
            }
        }
    }
}

/// Networks are not what is compared, and take longest to start.
fn with_network(mut words: Vec<String>) -> Vec<String> {
    if matches!(words[0].as_str(), "run" | "create") && !words.iter().any(|word| word == "--network") {
        words.splice(1..1, ["--network", "none"].map(str::to_owned));
    }
    words
}

/// Hexadecimal numbers of 12 or 64 digits are ids.
fn ids(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for char in text.chars().chain(['\0']) {
        if char.is_ascii_digit() || ('a'..='f').contains(&char) {
            digits.push(char);
            continue;
        }
        out.push_str(if matches!(digits.len(), 12 | 64) { "{id}" } else { &digits });
        digits.clear();
        out.push(char);
    }
    out.pop();
    out.replace("sha256:{id}", "{id}")
}

/// The first of these programs that is installed, with its name.
pub fn find<'a>(names: &[&'a str]) -> Option<(&'a str, PathBuf)> {
    names.iter().find_map(|name| Some((*name, program(name)?)))
}

/// Runs a program that has to do something for a bout, but is no part of one.
fn prepare(program: &Path, words: &[&str], limit: Duration, stop: BorrowedFd<'_>) -> Result<(), BenchError> {
    let mut command = Command::new(program);
    command.args(words);
    let ended = Running::start(command, Input::Nothing)?.end(Patience { limit, stop })?;
    ended.good(&format!("{} {}", program.display(), words[0])).map(drop)
}

/// The same for what is to be done whatever became of a bout: nobody breaks it off.
fn clear(program: &Path, words: &[&str], limit: Duration) -> Result<(), BenchError> {
    let (stop, _other) = UnixStream::pair().map_err(io_error("socket"))?;
    prepare(program, words, limit, stop.as_fd())
}

#[cfg(test)]
mod tests;
