//! The kernel command line, checked while it is built.
//!
//! Does not know what parameters mean.

use crate::layout;

/// `COMMAND_LINE_SIZE` of Linux on x86, with the NUL: what a kernel without a setup header is taken to hold.
pub const LINUX_CAPACITY: u64 = 2048;

/// Text that cannot be on a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// It does not fit.
    #[error("{len} bytes are more than the {max} that this kernel takes")]
    TooLong {
        /// Bytes it would have, without a NUL.
        len: usize,
        /// Most it may have.
        max: usize,
    },
    /// A character the kernel would end at, or split words at unseen, or that a console cannot show.
    #[error("character {character:?} at byte {position} is not printable ASCII")]
    NotPrintable {
        /// The character.
        character: char,
        /// Where it stands in the text given.
        position: usize,
    },
}

/// A command line under construction, never longer than its kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    text: String,
    max: usize,
}

impl CommandLine {
    /// An empty one of at most `max` bytes, NUL not counted.
    pub fn new(max: usize) -> CommandLine {
        CommandLine { text: String::new(), max }
    }

    /// Appends `parameters`, after a space if there is something already. On error nothing is appended.
    pub fn push(&mut self, parameters: &str) -> Result<(), CommandLineError> {
        let space = usize::from(!self.text.is_empty() && !parameters.is_empty());
        let len = self.text.len().saturating_add(space).saturating_add(parameters.len());
        if len > self.max {
            return Err(CommandLineError::TooLong { len, max: self.max });
        }
        let odd = parameters.char_indices().find(|(_, c)| !matches!(c, ' '..='~'));
        if let Some((position, character)) = odd {
            return Err(CommandLineError::NotPrintable { character, position });
        }
        if space == 1 {
            self.text.push(' ');
        }
        self.text.push_str(parameters);
        Ok(())
    }

    /// The text so far.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Checks a whole command line for a kernel that takes `kernel_max` bytes, NUL not counted.
pub(crate) fn check(text: &str, kernel_max: u64) -> Result<CommandLine, CommandLineError> {
    let max = kernel_max.min(layout::CMDLINE_CAPACITY - 1);
    let mut line = CommandLine::new(max as usize);
    line.push(text)?;
    Ok(line)
}
