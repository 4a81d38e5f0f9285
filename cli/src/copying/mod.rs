//! Files between a container and this host.
//!
//! - [`send`]: a file or directory of this host, as entries;
//! - [`receive`]: entries that a guest has sent, made on this host, below one directory and nowhere else;
//! - [`archive`]: the same from and to a tar archive.

pub mod archive;
pub mod receive;
pub mod send;

use guest_protocol::files::Copied;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// `CONTAINER:PATH`.
    Container {
        /// Which.
        name: String,
        /// Where in it; relative paths are relative to `/`.
        path: String,
    },
    /// A path on this host.
    Host(String),
    /// A tar archive on stdin or stdout.
    Stream,
}

impl Side {
    /// What a word of the command line means: as docker has it, a colon makes it a container, unless the word begins as a path does.
    pub fn parse(word: &str) -> Self {
        if word == "-" {
            return Side::Stream;
        }
        if !word.starts_with(['/', '.'])
            && let Some((name, path)) = word.split_once(':')
            && !name.is_empty()
            && !name.contains('/')
        {
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            return Side::Container { name: name.into(), path };
        }
        Side::Host(word.into())
    }
}

/// What is copied, of what its path says: its name, and whether only its contents are meant.
pub fn copied(path: &str, directory: bool) -> Copied {
    let trimmed = path.trim_end_matches('/');
    let (_, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    // What has no name of its own has only contents.
    let contents = matches!(name, "" | "." | "..");
    Copied { name: if contents { String::new() } else { name.into() }, directory, contents: directory && contents }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sides_as_dockers_are() {
        let container = |name: &str, path: &str| Side::Container { name: name.into(), path: path.into() };
        for (word, side) in [
            ("web:/etc/x", container("web", "/etc/x")),
            ("web:x", container("web", "/x")),
            ("web:", container("web", "/")),
            ("./web:x", Side::Host("./web:x".into())),
            ("/a:b", Side::Host("/a:b".into())),
            ("a/b:c", Side::Host("a/b:c".into())),
            (":x", Side::Host(":x".into())),
            ("x", Side::Host("x".into())),
            ("-", Side::Stream),
        ] {
            assert_eq!(Side::parse(word), side, "{word}");
        }
    }

    #[test]
    fn what_has_no_name_has_contents() {
        for (path, name, contents) in [
            ("/a/b", "b", false),
            ("/a/b/", "b", false),
            ("/a/b/.", "", true),
            ("b", "b", false),
            (".", "", true),
            ("/", "", true),
            ("..", "", true),
        ] {
            assert_eq!(copied(path, true), Copied { name: name.into(), directory: true, contents }, "{path}");
        }
        assert!(!copied("/a", false).contents);
    }
}
