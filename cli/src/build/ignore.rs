//! Patterns: those of `.dockerignore`, and the wildcards of COPY and ADD.
//!
//! As docker has them: `*` and `?` stop at a slash, `**` does not, `[a-z]` and `[^a-z]` are one character, a backslash takes what is
//! special from the next one. A match takes time by the length of pattern and path, whatever is in them.

use anyhow::{anyhow, bail};

/// Longest file of patterns that is read, in bytes.
pub const MAX: u64 = 1 << 20;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// Any but a slash.
    One,
    /// Any number of those.
    Star,
    /// Anything.
    All,
    /// Directories, or none: `**/`.
    Directories,
    /// One of these ranges, or, if false, none of them, and no slash.
    Class(bool, Vec<(u8, u8)>),
}

impl Pattern {
    /// Reads one.
    pub fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let (mut tokens, mut rest) = (Vec::new(), text);
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            tokens.push(match byte {
                b'*' if rest.first() == Some(&b'*') => {
                    rest = &rest[rest.iter().take_while(|byte| **byte == b'*').count()..];
                    let alone = matches!(tokens.last(), None | Some(Token::Byte(b'/')));
                    match rest.split_first() {
                        Some((b'/', after)) if alone => {
                            rest = after;
                            Token::Directories
                        }
                        _ => Token::All,
                    }
                }
                b'*' => Token::Star,
                b'?' => Token::One,
                b'[' => {
                    let (class, after) = class(rest).ok_or_else(|| bad(text, "a '[' without its end"))?;
                    rest = after;
                    class
                }
                b'\\' => {
                    let (&next, after) = rest.split_first().ok_or_else(|| bad(text, "a backslash at its end"))?;
                    rest = after;
                    Token::Byte(next)
                }
                other => Token::Byte(other),
            });
        }
        Ok(Pattern(tokens))
    }

    /// Whether it has anything that a plain name has not.
    pub fn is_wild(text: &[u8]) -> bool {
        text.iter().any(|byte| b"*?[\\".contains(byte))
    }

    /// Whether it is the whole of a path.
    pub fn matches(&self, path: &[u8]) -> bool {
        // Which beginnings of the pattern fit what has been read of the path.
        let mut fits = vec![false; self.0.len() + 1];
        fits[0] = true;
        self.pass_over_nothing(&mut fits, true);
        for (at, &byte) in path.iter().enumerate() {
            let mut next = vec![false; fits.len()];
            for (index, token) in self.0.iter().enumerate().filter(|(index, _)| fits[*index]) {
                match token {
                    Token::Byte(own) => next[index + 1] |= *own == byte,
                    Token::One => next[index + 1] |= byte != b'/',
                    Token::Class(inside, ranges) => {
                        let found = ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte));
                        next[index + 1] |= found == *inside && byte != b'/';
                    }
                    Token::Star => next[index] |= byte != b'/',
                    Token::All => next[index] = true,
                    Token::Directories => next[index] = true,
                }
            }
            self.pass_over_nothing(&mut next, path[at] == b'/');
            fits = next;
        }
        fits[self.0.len()]
    }

    /// What may also be nothing. Directories end with a slash: behind one, or at the beginning.
    fn pass_over_nothing(&self, fits: &mut [bool], boundary: bool) {
        for (index, token) in self.0.iter().enumerate() {
            let empty = match token {
                Token::Star | Token::All => true,
                Token::Directories => boundary,
                _ => false,
            };
            fits[index + 1] |= empty && fits[index];
        }
    }
}

fn bad(text: &[u8], what: &str) -> anyhow::Error {
    anyhow!("pattern '{}': {what}", text.escape_ascii())
}

/// Behind its `[`: the class, and what follows it.
fn class(mut rest: &[u8]) -> Option<(Token, &[u8])> {
    let inside = rest.first() != Some(&b'^');
    rest = if inside { rest } else { &rest[1..] };
    let one = |rest: &mut &[u8]| -> Option<u8> {
        let (mut byte, mut after) = rest.split_first()?;
        if *byte == b'\\' {
            (byte, after) = after.split_first()?;
        }
        *rest = after;
        Some(*byte)
    };
    let mut ranges = Vec::new();
    while ranges.is_empty() || rest.first() != Some(&b']') {
        let low = one(&mut rest)?;
        let high = if rest.first() == Some(&b'-') && rest.get(1).is_some_and(|next| *next != b']') {
            rest = &rest[1..];
            one(&mut rest)?
        } else {
            low
        };
        ranges.push((low, high));
    }
    Some((Token::Class(inside, ranges), &rest[1..]))
}

/// What is not in a context.
#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<(bool, Pattern)>,
}

impl Ignore {
    /// Reads the text of a `.dockerignore`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut rules = Vec::new();
        for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (excluded, pattern) = match line.strip_prefix('!') {
                Some(rest) => (false, rest.trim()),
                None => (true, line),
            };
            let pattern = clean(pattern);
            match (pattern.is_empty(), excluded) {
                // "." or "/": that is all of it.
                (true, true) => bail!("'{line}' leaves nothing of the context"),
                (true, false) => {}
                _ => rules.push((excluded, Pattern::parse(pattern.as_bytes())?)),
            }
        }
        Ok(Ignore { rules })
    }

    /// Whether a path from the context's top is not in it. The last rule counts that fits it or a directory above it.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        let all: Vec<&[u8]> = above.chain([path]).collect();
        let fitting = self.rules.iter().rev().find(|(_, pattern)| all.iter().any(|path| pattern.matches(path)));
        fitting.is_some_and(|(excluded, _)| *excluded)
    }

    /// Whether something below a directory that is not in the context may be in it.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(excluded, _)| !excluded)
    }
}

/// The path of a pattern, without `.`, `..` and slashes that say nothing.
fn clean(pattern: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in pattern.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::parse(pattern.as_bytes()).unwrap().matches(path.as_bytes())
    }

    #[test]
    fn patterns_fit_as_in_docker() {
        for (pattern, yes, no) in [
            ("*.go", &["a.go", ".go"][..], &["a/b.go", "a.go/x", "go"][..]),
            ("a?c", &["abc"], &["a/c", "ac"]),
            ("**", &["a", "a/b/c"], &[]),
            ("**/x", &["x", "a/x", "a/b/x"], &["ax", "a/bx", "x/a"]),
            ("a/**", &["a/b", "a/b/c", "a/"], &["a", "ab"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["ab", "a/xb"]),
            ("**.go", &["a.go", "a/b.go"], &["a.goo"]),
            ("foo**", &["foo", "foobar", "foo/x"], &["fo"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x"]),
            ("[^a-c]x", &["dx"], &["ax", "/x"]),
            ("[]a]", &["]", "a"], &["b"]),
            ("\\*x", &["*x"], &["ax"]),
        ] {
            yes.iter().for_each(|path| assert!(matches(pattern, path), "{pattern} {path}"));
            no.iter().for_each(|path| assert!(!matches(pattern, path), "{pattern} {path}"));
        }
        for bad in ["[", "[a", "[a-", "\\", "[\\"] {
            assert!(Pattern::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        let ignore =
            Ignore::parse("# c\n\n*.md\n!README*.md\nREADME-secret.md\n/build/\n!build/keep\n./x/../y\n").unwrap();
        for (path, excluded) in [
            ("a.md", true),
            ("README.md", false),
            ("README-secret.md", true),
            ("docs/a.md", false),
            ("build", true),
            ("build/a", true),
            ("build/keep", false),
            ("build/keep/deep", false),
            ("y/z", true),
            ("x", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), excluded, "{path}");
        }
        assert!(ignore.has_exceptions() && !Ignore::parse("a").unwrap().has_exceptions());
        assert!(Ignore::parse("/").is_err() && Ignore::parse("[").is_err());
    }

    /// The plain way to say it, which may take for ever.
    fn slowly(tokens: &[Token], path: &[u8], start: bool) -> bool {
        let Some((token, rest)) = tokens.split_first() else { return path.is_empty() };
        let first = path.first().copied();
        let next = |path: &[u8]| slowly(rest, &path[1..], path[0] == b'/');
        match token {
            Token::Byte(byte) => first == Some(*byte) && next(path),
            Token::One => first.is_some_and(|byte| byte != b'/') && next(path),
            Token::Class(inside, ranges) => {
                first
                    .is_some_and(|byte| byte != b'/' && ranges.iter().any(|(a, b)| *a <= byte && byte <= *b) == *inside)
                    && next(path)
            }
            Token::Star | Token::All => {
                let far = path.iter().take_while(|byte| **byte != b'/' || *token == Token::All).count();
                (0..=far).any(|at| slowly(rest, &path[at..], if at == 0 { start } else { path[at - 1] == b'/' }))
            }
            Token::Directories => (0..=path.len())
                .any(|at| (if at == 0 { start } else { path[at - 1] == b'/' }) && slowly(rest, &path[at..], true)),
        }
    }

    proptest! {
        #[test]
        fn a_match_is_what_the_plain_way_says(pattern in "[ab/*?]{0,8}", path in "[ab/]{0,8}") {
            let pattern = Pattern::parse(pattern.as_bytes()).unwrap();
            prop_assert_eq!(pattern.matches(path.as_bytes()), slowly(&pattern.0, path.as_bytes(), true));
        }

        #[test]
        fn no_pattern_is_more_than_refused(pattern in prop::collection::vec(any::<u8>(), 0..40), path in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                pattern.matches(&path);
            }
        }
    }

    #[test]
    fn stars_without_end_take_no_time() {
        assert!(!matches(&"*a".repeat(2000), &"a".repeat(1000)));
        assert!(!matches(&"**a".repeat(2000), &"a".repeat(1000)));
    }
}
