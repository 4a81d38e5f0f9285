//! Keys that have a terminal leave a process without ending it: docker's `--detach-keys`.

/// What docker takes if nothing is said: ctrl-p, ctrl-q.
const USUAL: [u8; 2] = [0x10, 0x11];
/// Longest sequence.
const MOST: usize = 16;

/// A sequence of keys, and how much of it has been typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    sequence: Vec<u8>,
    /// The first so many of them have come last.
    typed: usize,
}

impl Default for Keys {
    fn default() -> Self {
        Keys { sequence: USUAL.into(), typed: 0 }
    }
}

impl Keys {
    /// Docker's way to write them: characters, or `ctrl-` and a letter or one of `@[\]^_`, between commas.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let sequence = text.split(',').map(key).collect::<Option<Vec<u8>>>().filter(|keys| keys.len() <= MOST);
        let sequence = sequence.ok_or_else(|| {
            format!("they are up to {MOST} characters, or ctrl- and one of a-z@[\\]^_, between commas: ctrl-p,ctrl-q")
        })?;
        Ok(Keys { sequence, typed: 0 })
    }

    /// Takes what has been typed: what of it is the process's, and whether the sequence is complete. Its beginning is kept back
    /// until the next key tells; what comes after its end is nobody's.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut through = Vec::with_capacity(typed.len() + self.typed);
        for &byte in typed {
            // The longest end of what has been typed that is a beginning of the sequence.
            loop {
                if self.sequence[self.typed] == byte {
                    self.typed += 1;
                    break;
                }
                if self.typed == 0 {
                    through.push(byte);
                    break;
                }
                let shorter = self.shorter();
                through.extend_from_slice(&self.sequence[..self.typed - shorter]);
                self.typed = shorter;
            }
            if self.typed == self.sequence.len() {
                self.typed = 0;
                return (through, true);
            }
        }
        (through, false)
    }

    /// The next shorter beginning that is an end of what has been typed.
    fn shorter(&self) -> usize {
        let typed = &self.sequence[..self.typed];
        (0..self.typed).rev().find(|&len| typed.ends_with(&typed[..len])).unwrap_or(0)
    }
}

/// The byte that a key is.
fn key(word: &str) -> Option<u8> {
    match (word.strip_prefix("ctrl-"), word.as_bytes()) {
        (Some(with), _) => match with.as_bytes() {
            [letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Some(letter & 0x1F),
            _ => None,
        },
        (None, [byte]) if byte.is_ascii() => Some(*byte),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &str, parts: &[&[u8]]) -> (Vec<u8>, Option<usize>) {
        let mut keys = Keys::parse(keys).unwrap();
        let mut all = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let (through, complete) = keys.filter(part);
            all.extend(through);
            if complete {
                return (all, Some(at));
            }
        }
        (all, None)
    }

    #[test]
    fn they_are_written_as_in_docker() {
        assert_eq!(Keys::parse("ctrl-p,ctrl-q"), Ok(Keys::default()));
        assert_eq!(Keys::parse("a").unwrap().sequence, b"a");
        assert_eq!(
            Keys::parse("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,~").unwrap().sequence,
            b"\0\x1b\x1c\x1d\x1e\x1f~"
        );
        for bad in ["", "ctrl-", "ctrl-P", "ctrl-1", "ab", "a,", "ä", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"] {
            assert!(Keys::parse(bad).unwrap_err().contains("ctrl-p,ctrl-q"), "{bad}");
        }
    }

    #[test]
    fn the_sequence_leaves_and_everything_else_goes_through() {
        let usual = "ctrl-p,ctrl-q";
        assert_eq!(typed(usual, &[b"ls\r", b"\x10", b"\x11"]), (b"ls\r".to_vec(), Some(2)));
        assert_eq!(typed(usual, &[b"a\x10\x11b"]), (b"a".to_vec(), Some(0)));
        assert_eq!(typed(usual, &[b"\x10", b"x\x11\x10\x10", b"y"]), (b"\x10x\x11\x10\x10y".to_vec(), None));
        assert_eq!(typed(usual, &[b"\x10\x10\x11"]), (b"\x10".to_vec(), Some(0)));
        assert_eq!(typed("a,a,b", &[b"aaab"]), (b"a".to_vec(), Some(0)));
        assert_eq!(typed("a,b,a,c", &[b"ababac"]), (b"ab".to_vec(), Some(0)));
        assert_eq!(typed("a,a,b", &[b"aac"]), (b"aac".to_vec(), None));
    }
}
