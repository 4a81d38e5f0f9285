//! What a guest's driver asks of a device, written down as text: a queue trace.
//!
//! - this file: the format, read and written;
//! - [`tape`]: how a trace is recorded while a guest runs;
//! - [`replay`]: how it is done again to a device, without a guest.
//!
//! A trace has a head of five lines and then a step a line (docs/benchmarks.md, "Queue traces"):
//!
//! ```text
//! bulkhead queue trace 1
//! device blk
//! features 0x130000246
//! memory 134217728
//! config 0000020000000000
//! kick 0
//! chain 0 r16=000000000000000008 w4096 w1
//! back 0 1
//! ```
//!
//! `kick Q`: the driver notified queue Q. `chain Q PART...`: the device took this chain from it: `rN=HEX` are N bytes for the device,
//! those given and then zeros, `wN` is room for N bytes from it. `back Q N`: the device has given N chains back. A line that begins
//! with `#` says nothing. A trace is as untrusted as any file: there are bounds on all that its reader makes of it.

pub mod replay;
mod rings;
pub mod tape;

use std::fmt::{self, Display, Formatter, Write as _};
use std::str::FromStr;

/// The first line of a trace, but for its version.
const MAGIC: &str = "bulkhead queue trace ";
const VERSION: u32 = 1;
/// Most bytes of a trace's text.
pub const MOST_TEXT: usize = 64 << 20;
/// Most queues of a device.
const MOST_QUEUES: u16 = 64;
/// Most parts of a chain.
const MOST_PARTS: usize = 1024;
/// Most bytes of a chain for the device.
const MOST_BYTES: u32 = 16 << 20;
/// Most room of a chain: guests report free memory as room of some hundred MiB.
const MOST_ROOM: u32 = 256 << 20;
/// Most guest memory: what is below the hole, so that all of it is one piece from 0 on.
const MOST_MEMORY: u64 = 3 << 30;
/// Most bytes of a configuration space.
const MOST_CONFIG: usize = 4096;

/// All that a driver asked of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What the device is called in the [table](super::DEVICES).
    pub device: String,
    /// Features that the driver accepted.
    pub features: u64,
    /// Bytes of guest memory from 0 on, of which addresses within requests may speak.
    pub memory: u64,
    /// The device's configuration space, when the driver was ready.
    pub config: Vec<u8>,
    /// What happened then.
    pub steps: Vec<Step>,
}

/// Something that happened to a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The driver notified it.
    Kick(u16),
    /// The device took a chain from it.
    Chain(u16, Vec<Part>),
    /// The device gave so many chains back.
    Back(u16, u32),
}

/// A part of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes for the device.
    Read {
        /// How many.
        len: u32,
        /// The first of them; the others are zeros.
        bytes: Vec<u8>,
    },
    /// Room for so many bytes from it.
    Write(u32),
}

impl Part {
    /// Bytes for the device: zeros at the end are left out.
    pub fn read(bytes: &[u8]) -> Self {
        let some = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Part::Read { len: bytes.len() as u32, bytes: bytes[..some].to_vec() }
    }

    /// Bytes.
    pub fn len(&self) -> u32 {
        match self {
            Part::Read { len, .. } | Part::Write(len) => *len,
        }
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A text that is no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is too long.
    #[error("a queue trace has {MOST_TEXT} bytes at most")]
    TooLong,
    /// It does not begin as one.
    #[error("not a queue trace: its first line is not '{MAGIC}{VERSION}'")]
    Magic,
    /// It is of another version.
    #[error("a queue trace of version {0}; this program knows {VERSION}")]
    Version(u32),
    /// A line is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

impl FromStr for Trace {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        if text.len() > MOST_TEXT {
            return Err(TraceError::TooLong);
        }
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let version = lines.next().and_then(|(_, line)| line.strip_prefix(MAGIC)).ok_or(TraceError::Magic)?;
        match version.parse() {
            Ok(VERSION) => {}
            Ok(other) => return Err(TraceError::Version(other)),
            Err(_) => return Err(TraceError::Magic),
        }
        let mut field = |name: &str, line: usize| match lines.next().and_then(|(_, line)| line.split_once(' ')) {
            Some((found, value)) if found == name => Ok(value),
            _ => Err(TraceError::Line { line, problem: format!("it does not say '{name}'") }),
        };
        let device = at(2, device(field("device", 2)?))?;
        let features = at(3, number(field("features", 3)?, u64::MAX))?;
        let memory = at(4, number(field("memory", 4)?, MOST_MEMORY))?;
        let config = at(5, bytes(field("config", 5)?, MOST_CONFIG))?;
        let said = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let steps = said.map(|(line, text)| at(line, text.parse())).collect::<Result<_, _>>()?;
        Ok(Trace { device, features, memory, config, steps })
    }
}

/// A device's name: what ends a line, or looks like nothing, is no part of one.
fn device(name: &str) -> Result<String, String> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name { Ok(name.to_owned()) } else { Err(format!("'{}' is no device's name", shown(name))) }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let queue = number(words.next().unwrap_or_default(), u64::from(MOST_QUEUES) - 1)? as u16;
        let step = match what {
            "kick" => Step::Kick(queue),
            "back" => Step::Back(queue, number(words.next().unwrap_or_default(), u32::MAX.into())? as u32),
            "chain" => return Ok(Step::Chain(queue, parts(words)?)),
            _ => return Err(format!("'{}' is neither kick nor chain nor back", shown(what))),
        };
        if words.next().is_some() { Err("there is more than that".into()) } else { Ok(step) }
    }
}

/// The parts of a chain: what the device may read comes first, and together they are within bounds.
fn parts<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    let (mut bytes, mut room) = (MOST_BYTES, MOST_ROOM);
    for word in words {
        let part: Part = word.parse()?;
        if parts.len() == MOST_PARTS {
            return Err(format!("a chain has {MOST_PARTS} parts at most"));
        }
        if matches!((parts.last(), &part), (Some(Part::Write(_)), Part::Read { .. })) {
            return Err("bytes for the device come before room for it".into());
        }
        let left = if matches!(part, Part::Write(_)) { &mut room } else { &mut bytes };
        *left = left.checked_sub(part.len()).ok_or("that is too much for a chain")?;
        parts.push(part);
    }
    Ok(parts)
}

impl FromStr for Part {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if let Some(len) = word.strip_prefix('w') {
            return Ok(Part::Write(number(len, MOST_ROOM.into())? as u32));
        }
        let (len, hex) = word
            .strip_prefix('r')
            .and_then(|word| word.split_once('='))
            .ok_or_else(|| format!("'{}' is neither rLENGTH=BYTES nor wLENGTH", shown(word)))?;
        let len = number(len, MOST_BYTES.into())? as u32;
        Ok(Part::Read { len, bytes: bytes(hex, len as usize)? })
    }
}

/// For a line: what is wrong there.
fn at<T>(line: usize, result: Result<T, String>) -> Result<T, TraceError> {
    result.map_err(|problem| TraceError::Line { line, problem })
}

/// A number of at most `most`, in decimal or behind 0x.
fn number(text: &str, most: u64) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let sound = parsed.ok().filter(|number| *number <= most && !text.contains('+'));
    sound.ok_or_else(|| format!("'{}' is not a number up to {most}", shown(text)))
}

/// Up to `most` bytes, two digits each.
fn bytes(hex: &str, most: usize) -> Result<Vec<u8>, String> {
    if hex.len() / 2 > most {
        return Err(format!("there are more than {most} bytes"));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
    bytes.ok_or_else(|| format!("'{}' is not an even number of hexadecimal digits", shown(hex)))
}

/// As much of a word as a message needs.
fn shown(word: &str) -> String {
    word.chars().take(20).flat_map(char::escape_debug).collect()
}

impl Display for Trace {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Trace { device, features, memory, .. } = self;
        write!(f, "{MAGIC}{VERSION}\ndevice {device}\nfeatures {features:#x}\nmemory {memory}\nconfig ")?;
        hex(f, &self.config)?;
        f.write_char('\n')?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Step::Kick(queue) => write!(f, "kick {queue}"),
            Step::Back(queue, count) => write!(f, "back {queue} {count}"),
            Step::Chain(queue, parts) => {
                write!(f, "chain {queue}")?;
                parts.iter().try_for_each(|part| match part {
                    Part::Write(len) => write!(f, " w{len}"),
                    Part::Read { len, bytes } => write!(f, " r{len}=").and_then(|()| hex(f, bytes)),
                })
            }
        }
    }
}

fn hex(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests;
