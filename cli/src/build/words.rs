//! What Dockerfiles have of a shell: quotes, escapes and variables in the words of an instruction.

use std::iter::Peekable;
use std::str::Chars;

use anyhow::{anyhow, bail};

/// Longest text that comes of one: variables that hold each other double with each line.
const MAX: usize = 1 << 20;
/// How deep `${a:-${b:-…}}` may go.
const MAX_DEPTH: usize = 32;

/// What a variable holds, if there is one of this name.
pub type LookUp<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The text without its quotes and escapes, and with what its variables hold; nothing for one that is not there.
pub fn expand(text: &str, escape: char, look_up: LookUp<'_>) -> anyhow::Result<String> {
    let mut expander = Expander { rest: text.chars().peekable(), escape, look_up, out: String::new() };
    expander.until(None, 0)?;
    Ok(expander.out)
}

/// The words of a text, which blanks outside of quotes part. Quotes and escapes are still in them.
pub fn split(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(end) if c == end => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(rest.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

struct Expander<'a> {
    rest: Peekable<Chars<'a>>,
    escape: char,
    look_up: LookUp<'a>,
    out: String,
}

impl Expander<'_> {
    fn push(&mut self, text: &str) -> anyhow::Result<()> {
        if self.out.len() + text.len() > MAX {
            bail!("it becomes longer than {MAX} bytes");
        }
        self.out.push_str(text);
        Ok(())
    }

    fn push_char(&mut self, c: char) -> anyhow::Result<()> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// To the end, or to `end`, which is taken.
    fn until(&mut self, end: Option<char>, depth: usize) -> anyhow::Result<()> {
        while let Some(c) = self.rest.next() {
            match c {
                c if Some(c) == end => return Ok(()),
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted(depth)?,
                '$' => self.variable(depth)?,
                c if c == self.escape => {
                    let next = self.rest.next().unwrap_or(c);
                    self.push_char(next)?;
                }
                c => self.push_char(c)?,
            }
        }
        end.map_or(Ok(()), |end| Err(anyhow!("a '{end}' is missing")))
    }

    fn single_quoted(&mut self) -> anyhow::Result<()> {
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(c) => self.push_char(c)?,
                None => bail!("a closing ' is missing"),
            }
        }
    }

    fn double_quoted(&mut self, depth: usize) -> anyhow::Result<()> {
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(depth)?,
                Some(c) if c == self.escape => match self.rest.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => self.push_char(next)?,
                    Some(next) => {
                        self.push_char(c)?;
                        self.push_char(next)?;
                    }
                    None => bail!("a closing \" is missing"),
                },
                Some(c) => self.push_char(c)?,
                None => bail!("a closing \" is missing"),
            }
        }
    }

    /// Behind a `$`.
    fn variable(&mut self, depth: usize) -> anyhow::Result<()> {
        if self.rest.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return self.push("$");
            }
            let value = (self.look_up)(&name).unwrap_or_default();
            return self.push(&value);
        }
        if depth >= MAX_DEPTH {
            bail!("variables within variables, more than {MAX_DEPTH} deep");
        }
        let name = self.name();
        if name.is_empty() {
            bail!("'${{' without a variable's name");
        }
        let value = (self.look_up)(&name);
        let colon = self.rest.next_if_eq(&':').is_some();
        let set = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        match self.rest.next() {
            Some('}') if !colon => self.push(&value.unwrap_or_default()),
            Some(operator @ ('-' | '+' | '?')) => {
                let before = std::mem::take(&mut self.out);
                self.until(Some('}'), depth + 1)?;
                let word = std::mem::replace(&mut self.out, before);
                match operator {
                    '-' if set => self.push(&value.unwrap_or_default()),
                    '-' => self.push(&word),
                    '+' if set => self.push(&word),
                    '+' => Ok(()),
                    _ if set => self.push(&value.unwrap_or_default()),
                    _ => Err(anyhow!("{name}: {}", if word.is_empty() { "it is not set" } else { &word })),
                }
            }
            Some(other) => Err(anyhow!(
                "'${{{name}{}{other}': of this form only :-, :+, :?, -, + and ? are supported",
                if colon { ":" } else { "" }
            )),
            None => Err(anyhow!("'${{{name}' has no end")),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            // `$12` is `$1` and a 2.
            if name.len() == 1 && c.is_ascii_digit() {
                break;
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look_up(name: &str) -> Option<String> {
        match name {
            "a" => Some("one two".into()),
            "empty" => Some(String::new()),
            "quoted" => Some("\"q\" $a".into()),
            _ => None,
        }
    }

    fn expanded(text: &str) -> anyhow::Result<String> {
        expand(text, '\\', &look_up)
    }

    #[test]
    fn variables_and_quotes_are_as_in_docker() {
        for (text, wanted) in [
            ("$a/${a}x$b.", "one two/one twox."),
            ("'$a' \"$a\" \\$a \"\\$a \\x\"", "$a one two $a $a \\x"),
            ("${b:-x} ${empty:-x} ${empty-x} ${b-x} ${a:-x}", "x x  x one two"),
            ("${b:+x}|${empty:+x}|${empty+x}|${a:+y$b}", "||x|y"),
            ("${b:-${b:-'in $a'}}", "in $a"),
            ("${b:-\"}\"}", "}"),
            ("$quoted", "\"q\" $a"),
            ("$ $- $1a \\", "$ $- a \\"),
            ("${a:?no}", "one two"),
        ] {
            assert_eq!(expanded(text).unwrap(), wanted, "{text}");
        }
        assert_eq!(expand("`$a \\$a", '`', &look_up).unwrap(), "$a \\one two");
        for (text, word) in
            [("${b:?is wanted}", "wanted"), ("${", "name"), ("${a", "end"), ("'", "'"), ("\"", "\""), ("${a#x}", "#")]
        {
            assert!(expanded(text).unwrap_err().to_string().contains(word), "{text}");
        }
        assert!(expanded(&"${b:-".repeat(1000)).unwrap_err().to_string().contains("deep"));
    }

    #[test]
    fn words_keep_their_quotes_and_blanks() {
        let words = split(" a=1  b=\"x y\" c='\"' d=\\ e \"\\\" f\" ", '\\');
        assert_eq!(words, ["a=1", "b=\"x y\"", "c='\"'", "d=\\ e", "\"\\\" f\""]);
        assert!(split(" \t\n", '\\').is_empty());
    }

    #[test]
    fn what_doubles_with_each_line_has_an_end() {
        let mut value = "x".to_owned();
        let failed = (0..64).find_map(|_| {
            let look_up = |_: &str| Some(value.clone());
            let next = expand("$v$v", '\\', &look_up);
            next.map(|next| value = next).err()
        });
        assert!(failed.unwrap().to_string().contains("longer"));
    }

    proptest! {
        #[test]
        fn no_text_is_more_than_refused(text in "[a-c${}:+?'\" \\\\-]{0,60}") {
            let _ = expanded(&text);
            let words = split(&text, '\\');
            prop_assert_eq!(words.concat().len() <= text.len(), true);
        }

        #[test]
        fn plain_text_stays(text in "[a-z ./=]{0,60}") {
            prop_assert_eq!(expanded(&text).unwrap(), text);
        }
    }
}
