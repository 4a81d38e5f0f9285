//! Files between the container and the host, and what [`Helper`]s say: what one of them writes to its stdout, or reads from its
//! stdin, is a sequence of frames ([`crate::frame`]), each a [`FileMessage`] of at most [`MAX_FILE_FRAME`] bytes.
//!
//! ```text
//! Entry ─► Data* (of a regular file, its size in all) ─► Entry ─► … ─► End, or Failed
//! ```
//!
//! A directory comes before what is in it. What ends without `End` is not complete.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Largest body of a frame of this kind: an entry with all the attributes that Linux lets a file have (xattr(7)), or data.
pub const MAX_FILE_FRAME: usize = 256 << 10;
/// Most bytes of data in one message.
pub const MAX_DATA: usize = 64 << 10;

/// What init does for the host, in a process of its own in the container, with all privileges that the guest has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Helper {
    /// Says what processes there are in the container.
    Processes,
    /// Says what is at a path, with all below it.
    Pack {
        /// Where, in the container.
        path: String,
        /// If that is a symbolic link: what it leads to, not itself.
        follow: bool,
    },
    /// Makes what it is told at a path.
    Unpack {
        /// Where, in the container: see [`destination`].
        path: String,
        /// What it is that comes.
        copied: Copied,
    },
    /// Says what differs in the container's root from its image.
    Changes {
        /// With the content of files.
        content: bool,
    },
    /// Says what the guest uses.
    Usage,
    /// Waits to be ended: the main process of a guest that several containers share.
    Wait,
    /// Is a guest to one of them: a copy of init in namespaces of its own, with its own connections ([`crate::port_at`]) and disks, which lives
    /// the life that init does where there is one container. It has ended with code 0 when nothing uses its disks any more.
    Member {
        /// Which of the guest's places it has, from 0. One has it at a time.
        place: u8,
    },
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileMessage {
    /// What comes next.
    Entry(Entry),
    /// More of the last regular file.
    Data(Bytes),
    /// A process of the container.
    Process(ProcessInfo),
    /// What the guest uses.
    Usage(Usage),
    /// Something was left out, and why: one line.
    Note(String),
    /// That was all.
    End,
    /// That was not all, and why: one line.
    Failed(String),
}

/// A file, directory, link or device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From the top of what is sent, without a slash at its ends; empty for the top itself.
    pub path: Bytes,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions, with the set-id and sticky bits: `07777` at most.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When its content was last changed: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, without overlayfs's own.
    pub xattrs: Vec<(Bytes, Bytes)>,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A directory.
    Directory {
        /// Of changes: what the image has there is not to be seen.
        opaque: bool,
    },
    /// A regular file with so many bytes, which follow.
    File {
        /// How many.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// What is in it.
        target: Bytes,
    },
    /// Another name of a file that came before.
    Hardlink {
        /// By this path.
        to: Bytes,
    },
    /// A character device.
    Character {
        /// Its number: major, minor.
        device: (u32, u32),
    },
    /// A block device.
    Block {
        /// Its number: major, minor.
        device: (u32, u32),
    },
    /// A named pipe.
    Fifo,
    /// Of changes: what the image has there is gone.
    Removed,
}

/// A process of the container, as /proc tells of it (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its id in the container.
    pub pid: u32,
    /// Its parent's; 0 for one that was started from outside.
    pub ppid: u32,
    /// Its user.
    pub uid: u32,
    /// How long it has been there, in milliseconds.
    pub age_ms: u64,
    /// Processor time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// Number of its terminal among those of the container, if it has one.
    pub terminal: Option<u32>,
    /// Bytes of memory that it has.
    pub resident: u64,
    /// Its arguments, with spaces between them; its name in brackets if it has none.
    pub command: String,
}

/// What a guest uses (proc_meminfo(5)), in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory that its kernel hands out: without the kernel's own text and tables.
    pub total: u64,
    /// Of that, what is in no use at all.
    pub free: u64,
    /// What programs could get without anything being swapped out.
    pub available: u64,
    /// What files are kept there.
    pub cached: u64,
    /// What the container's processes have, and would have in any kernel's container: their own memory, files in memory, page tables.
    pub workload: u64,
    /// Processes of the container.
    pub processes: u32,
}

/// What is copied to a path, as far as it matters for where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The last part of its own path.
    pub name: String,
    /// It is a directory.
    pub directory: bool,
    /// Only what is in that directory is meant.
    pub contents: bool,
}

/// What there is at a path already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Nothing,
    /// A directory, or a link to one.
    Directory,
    /// Something else.
    Other,
}

/// Where something goes that is copied to `path`, as with docker's `cp`: into a directory that is there, in place of a file, or as
/// what is not there yet.
///
/// # Errors
/// It cannot go there, and why.
pub fn destination(path: &str, there: There, copied: &Copied) -> Result<String, &'static str> {
    let trimmed = match path.trim_end_matches('/') {
        "" if path.is_empty() => ".",
        "" => "/",
        trimmed => trimmed,
    };
    match there {
        There::Directory if copied.directory && copied.contents => Ok(trimmed.into()),
        There::Directory => {
            let separator = if trimmed.ends_with('/') { "" } else { "/" };
            Ok([trimmed, separator, copied.name.as_str()].concat())
        }
        There::Other if copied.directory => Err("a directory cannot go where a file is"),
        There::Other if path.ends_with('/') => Err("not a directory"),
        There::Nothing if !copied.directory && path.ends_with('/') => Err("no such directory"),
        There::Other | There::Nothing => Ok(trimmed.into()),
    }
}

/// `path` below `top`. Either may be empty, and is nothing then.
#[must_use]
pub fn join(top: &[u8], path: &[u8]) -> Vec<u8> {
    match (top, path) {
        ([], one) | (one, []) => one.to_vec(),
        _ if top.ends_with(b"/") => [top, path].concat(),
        _ => [top, b"/", path].concat(),
    }
}

/// Whether `path` stays below the directory it starts from, by its own words: relative, each part a name.
#[must_use]
pub fn is_contained(path: &[u8]) -> bool {
    path.is_empty()
        || path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0))
}

/// Bytes, which need not be text.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;

        impl<'de> Visitor<'de> for Whole {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(bytes.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }

        deserializer.deserialize_bytes(Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode;

    #[test]
    fn messages_read_back() {
        let entry = Entry {
            path: Bytes::from(&b"a/\xff"[..]),
            kind: EntryKind::File { size: 3 },
            mode: 0o4755,
            uid: 1,
            gid: 2,
            mtime: (-5, 999_999_999),
            xattrs: alloc::vec![(Bytes::from(&b"user.x"[..]), Bytes::default())],
        };
        let data = Bytes(alloc::vec![7; MAX_DATA]);
        for message in [FileMessage::Entry(entry), FileMessage::Data(data), FileMessage::End] {
            let frame = encode(&message, MAX_FILE_FRAME).unwrap();
            // Behind the length of the frame.
            assert_eq!(postcard::from_bytes::<FileMessage>(&frame[4..]).unwrap(), message);
        }
    }

    #[test]
    fn things_go_where_docker_puts_them() {
        let file = Copied { name: "f".into(), directory: false, contents: false };
        let directory = Copied { name: "d".into(), directory: true, contents: false };
        let contents = Copied { contents: true, ..directory.clone() };
        let ok = |path: &str| Ok(String::from(path));
        for (path, there, copied, wanted) in [
            ("/x", There::Nothing, &file, ok("/x")),
            ("/x/", There::Nothing, &file, Err("no such directory")),
            ("/x", There::Other, &file, ok("/x")),
            ("/x/", There::Other, &file, Err("not a directory")),
            ("/x", There::Directory, &file, ok("/x/f")),
            ("/", There::Directory, &file, ok("/f")),
            ("", There::Directory, &file, ok("./f")),
            (".", There::Directory, &file, ok("./f")),
            ("/x", There::Nothing, &directory, ok("/x")),
            ("/x//", There::Nothing, &directory, ok("/x")),
            ("/x", There::Directory, &directory, ok("/x/d")),
            ("/x", There::Other, &directory, Err("a directory cannot go where a file is")),
            ("/x/", There::Directory, &contents, ok("/x")),
            ("/x", There::Nothing, &contents, ok("/x")),
        ] {
            assert_eq!(destination(path, there, copied), wanted, "{path} {there:?} {copied:?}");
        }
    }

    #[test]
    fn paths_are_joined_by_one_slash() {
        for (top, path, joined) in [("a", "b", "a/b"), ("/", "b", "/b"), ("", "b", "b"), ("a", "", "a"), ("", "", "")] {
            assert_eq!(join(top.as_bytes(), path.as_bytes()), joined.as_bytes());
        }
    }

    #[test]
    fn paths_that_lead_out_are_told() {
        for path in ["", "a", "a/b", "..a", "a/...", "-"] {
            assert!(is_contained(path.as_bytes()), "{path}");
        }
        for path in ["/", "/a", "a/", "a//b", "..", "a/..", "../a", "a/./b", ".", "a\0b"] {
            assert!(!is_contained(path.as_bytes()), "{path}");
        }
    }
}
