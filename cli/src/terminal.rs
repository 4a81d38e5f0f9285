//! A bare microVM's console on the user's terminal: raw mode, and the way out.

use std::io;
use std::os::fd::OwnedFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal in raw mode; back as it was when dropped.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Every key is read as it is typed, ^C included.
    pub fn enter(terminal: OwnedFd) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Raw { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// Finds the escape among what is typed: Ctrl-A x ends, Ctrl-A Ctrl-A is one Ctrl-A, and any other key after a Ctrl-A
/// goes to the guest with it.
#[derive(Debug, Default)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Appends to `output` what of `input` is for the guest; true: the user wants out.
    pub fn filter(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for &key in input {
            match (std::mem::take(&mut self.pending), key) {
                (false, ESCAPE) => self.pending = true,
                (false, key) => output.push(key),
                (true, ESCAPE) => output.push(ESCAPE),
                (true, b'x' | b'X') => return true,
                (true, key) => output.extend([ESCAPE, key]),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut escape, mut output) = (Escape::default(), Vec::new());
        let out = parts.iter().any(|part| escape.filter(part, &mut output));
        (output, out)
    }

    #[test]
    fn only_ctrl_a_x_leaves() {
        assert_eq!(typed(&[b"ls\r\x03x"]), (b"ls\r\x03x".to_vec(), false));
        assert_eq!(typed(&[b"a\x01", b"xb"]), (b"a".to_vec(), true));
        assert_eq!(typed(&[b"\x01\x01x"]), (b"\x01x".to_vec(), false));
        assert_eq!(typed(&[b"\x01c"]), (b"\x01c".to_vec(), false));
        assert_eq!(typed(&[b"\x01\x01\x01X"]), (b"\x01".to_vec(), true));
    }
}
