//! Entries from and to tar archives.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use guest_protocol::files::{Bytes, Entry, EntryKind, FileMessage, MAX_DATA, is_contained, join};
use tar::{Archive, Builder, EntryType, Header};

use super::send::Sink;

/// What the names of extended attributes begin with in an archive.
const XATTR: &str = "SCHILY.xattr.";

/// Whoever has the entries, one message after the other; none after the last.
pub type Messages<'a> = dyn FnMut() -> anyhow::Result<Option<FileMessage>> + 'a;

/// Sends what is in an archive.
///
/// # Errors
/// It is none, or names what is elsewhere.
pub fn read(archive: impl Read, sink: &mut Sink<'_>) -> anyhow::Result<()> {
    let broken = "cannot read the archive";
    for entry in Archive::new(archive).entries().context(broken)? {
        let mut entry = entry.context(broken)?;
        let path = contained(&entry.path_bytes())?;
        let header = entry.header();
        let number = |value: io::Result<u64>| value.ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
        let device = || -> io::Result<(u32, u32)> {
            Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
        };
        let link = || entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let kind = match header.entry_type() {
            EntryType::Directory => EntryKind::Directory { opaque: false },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File { size: entry.size() },
            EntryType::Symlink => EntryKind::Symlink { target: Bytes(link()) },
            EntryType::Link => EntryKind::Hardlink { to: contained(&link())?.as_slice().into() },
            EntryType::Char => EntryKind::Character { device: device().context(broken)? },
            EntryType::Block => EntryKind::Block { device: device().context(broken)? },
            EntryType::Fifo => EntryKind::Fifo,
            // What is said of other entries, which the library has read already, or nothing that is a file.
            _ => continue,
        };
        let file = matches!(kind, EntryKind::File { .. });
        let (mode, mtime) = (header.mode().context(broken)?, header.mtime().unwrap_or(0));
        let (uid, gid) = (number(header.uid()), number(header.gid()));
        let xattrs = attributes(&mut entry).context(broken)?;
        if path.is_empty() {
            continue;
        }
        let mtime = (i64::try_from(mtime).unwrap_or(0), 0);
        sink(FileMessage::Entry(Entry { path: Bytes(path), kind, mode: mode & 0o7777, uid, gid, mtime, xattrs }))?;
        if file {
            let mut data = vec![0; MAX_DATA];
            loop {
                match entry.read(&mut data).context(broken)? {
                    0 => break,
                    count => sink(FileMessage::Data(data[..count].into()))?,
                }
            }
        }
    }
    Ok(())
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(Bytes, Bytes)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key_bytes().strip_prefix(XATTR.as_bytes()) {
            found.push((name.into(), extension.value_bytes().into()));
        }
    }
    Ok(found)
}

/// A path of an archive as one below a directory.
fn contained(path: &[u8]) -> anyhow::Result<Vec<u8>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let joined = parts.join(&b'/');
    match is_contained(&joined) {
        true => Ok(joined),
        false => Err(anyhow!("the archive has '{}', which leads elsewhere", path.escape_ascii())),
    }
}

/// Writes entries into an archive, as whose top directory `prefix` is; without one, its parts are at the top.
///
/// # Errors
/// They do not come whole, or cannot be written.
pub fn write(messages: &mut Messages<'_>, prefix: &str, out: impl Write) -> anyhow::Result<()> {
    let mut builder = Builder::new(out);
    let mut pending = messages()?;
    while let Some(message) = pending.take() {
        let FileMessage::Entry(entry) = message else { return Err(anyhow!("the container sent data of no file")) };
        pending = append(&mut builder, entry, prefix, messages)?;
    }
    builder.into_inner().and_then(|mut out| out.flush()).context("cannot write the archive")
}

/// Writes one with its content; returns the message behind that.
fn append(
    builder: &mut Builder<impl Write>,
    entry: Entry,
    prefix: &str,
    messages: &mut Messages<'_>,
) -> anyhow::Result<Option<FileMessage>> {
    if !is_contained(&entry.path.0) {
        return Err(anyhow!("the container calls a file '{}', which leads elsewhere", entry.path.0.escape_ascii()));
    }
    let name = join(prefix.as_bytes(), &entry.path.0);
    if name.is_empty() {
        return messages();
    }
    let failed =
        || format!("cannot write {} into the archive", crate::failure::sanitize(&String::from_utf8_lossy(&name)));
    let path = Path::new(OsStr::from_bytes(&name));
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(u64::try_from(entry.mtime.0).unwrap_or(0));
    header.set_size(0);
    let attributes: BTreeMap<String, &[u8]> = entry
        .xattrs
        .iter()
        .map(|(name, value)| (format!("{XATTR}{}", String::from_utf8_lossy(&name.0)), value.0.as_slice()))
        .collect();
    if !attributes.is_empty() {
        builder
            .append_pax_extensions(attributes.iter().map(|(name, value)| (name.as_str(), *value)))
            .with_context(failed)?;
    }
    let mut plain = |builder: &mut Builder<_>, kind, device: (u32, u32)| -> io::Result<()> {
        header.set_entry_type(kind);
        header.set_device_major(device.0)?;
        header.set_device_minor(device.1)?;
        builder.append_data(&mut header, path, io::empty())
    };
    match &entry.kind {
        EntryKind::Directory { opaque } => {
            plain(builder, EntryType::Directory, (0, 0)).with_context(failed)?;
            if *opaque {
                whiteout(builder, &path.join(".wh..wh..opq")).with_context(failed)?;
            }
        }
        EntryKind::Removed => {
            let gone = path.file_name().unwrap_or_default();
            let mark = [b".wh.", gone.as_bytes()].concat();
            whiteout(builder, &path.with_file_name(OsStr::from_bytes(&mark))).with_context(failed)?;
        }
        EntryKind::Symlink { target } => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, Path::new(OsStr::from_bytes(&target.0))).with_context(failed)?;
        }
        EntryKind::Hardlink { to } => {
            if !is_contained(&to.0) {
                return Err(anyhow!("the container links to '{}', which leads elsewhere", to.0.escape_ascii()));
            }
            header.set_entry_type(EntryType::Link);
            let to = join(prefix.as_bytes(), &to.0);
            builder.append_link(&mut header, path, Path::new(OsStr::from_bytes(&to))).with_context(failed)?;
        }
        EntryKind::Character { device } => plain(builder, EntryType::Char, *device).with_context(failed)?,
        EntryKind::Block { device } => plain(builder, EntryType::Block, *device).with_context(failed)?,
        EntryKind::Fifo => plain(builder, EntryType::Fifo, (0, 0)).with_context(failed)?,
        EntryKind::File { size } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            let mut content = Content { messages, left: *size, chunk: Vec::new(), at: 0, failed: None };
            let written = builder.append_data(&mut header, path, &mut content);
            if let Some(error) = content.failed {
                return Err(error);
            }
            written.with_context(failed)?;
        }
    }
    messages()
}

fn whiteout(builder: &mut Builder<impl Write>, path: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_entry_type(EntryType::Regular);
    builder.append_data(&mut header, path, io::empty())
}

/// The content of a file, as it comes.
struct Content<'a, 'b> {
    messages: &'a mut Messages<'b>,
    left: u64,
    chunk: Vec<u8>,
    at: usize,
    failed: Option<anyhow::Error>,
}

impl Content<'_, '_> {
    fn more(&mut self) -> anyhow::Result<()> {
        match (self.messages)()? {
            Some(FileMessage::Data(data)) if !data.0.is_empty() && data.0.len() as u64 <= self.left => {
                self.left -= data.0.len() as u64;
                (self.chunk, self.at) = (data.0, 0);
                Ok(())
            }
            _ => Err(anyhow!("the container sent another content than the file has")),
        }
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            if self.left == 0 {
                return Ok(0);
            }
            if let Err(error) = self.more() {
                self.failed = Some(error);
                return Err(io::Error::other("the content broke off"));
            }
        }
        let rest = &self.chunk[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.as_bytes().into(), kind, mode: 0o640, uid: 3, gid: 4, mtime: (5, 0), xattrs: Vec::new() }
    }

    fn packed(messages: Vec<FileMessage>, prefix: &str) -> anyhow::Result<Vec<u8>> {
        let (mut messages, mut out) = (messages.into_iter(), Vec::new());
        write(&mut || Ok(messages.next()), prefix, &mut out)?;
        Ok(out)
    }

    fn unpacked(archive: &[u8]) -> anyhow::Result<Vec<FileMessage>> {
        let mut all = Vec::new();
        read(archive, &mut |message| {
            all.push(message);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_is_written_reads_back() {
        let long = "d/".to_owned() + &"x".repeat(200);
        let mut file = entry(&long, EntryKind::File { size: 3 });
        file.xattrs = vec![(b"user.a"[..].into(), b"\0\xff"[..].into())];
        let messages = vec![
            FileMessage::Entry(entry("d", EntryKind::Directory { opaque: false })),
            FileMessage::Entry(file),
            FileMessage::Data(b"abc"[..].into()),
            FileMessage::Entry(entry("d/empty", EntryKind::File { size: 0 })),
            FileMessage::Entry(entry("d/s", EntryKind::Symlink { target: b"../../x"[..].into() })),
            FileMessage::Entry(entry("d/h", EntryKind::Hardlink { to: long.as_bytes().into() })),
            FileMessage::Entry(entry("d/c", EntryKind::Character { device: (1, 3) })),
            FileMessage::Entry(entry("d/f", EntryKind::Fifo)),
        ];
        assert_eq!(unpacked(&packed(messages.clone(), "").unwrap()).unwrap(), messages);
        let top = [FileMessage::Entry(entry("", EntryKind::Directory { opaque: false }))];
        let prefixed = packed([&top[..], &messages].concat(), "top").unwrap();
        let paths: Vec<_> = unpacked(&prefixed)
            .unwrap()
            .into_iter()
            .filter_map(|message| match message {
                FileMessage::Entry(entry) => Some(String::from_utf8(entry.path.0).unwrap()),
                _ => None,
            })
            .collect();
        assert_eq!(paths[..2], ["top", "top/d"]);
        assert!(paths.contains(&"top/d/h".to_owned()), "{paths:?}");
    }

    #[test]
    fn what_is_gone_is_marked_as_in_a_layer() {
        let messages = vec![
            FileMessage::Entry(entry("a", EntryKind::Directory { opaque: true })),
            FileMessage::Entry(entry("a/b", EntryKind::Removed)),
            FileMessage::Entry(entry("c", EntryKind::Removed)),
        ];
        let archive = packed(messages, "").unwrap();
        let names: Vec<_> = Archive::new(&archive[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["a", "a/.wh..wh..opq", "a/.wh.b", ".wh.c"].map(str::to_owned));
    }

    #[test]
    fn what_leads_elsewhere_or_is_not_whole_is_refused() {
        for path in ["../x", "/x", "a/../../x"] {
            let message = FileMessage::Entry(entry(path, EntryKind::Fifo));
            assert!(packed(vec![message], "").is_err(), "{path}");
        }
        let file = || FileMessage::Entry(entry("f", EntryKind::File { size: 2 }));
        let data = |bytes: &[u8]| FileMessage::Data(bytes.into());
        for messages in [vec![file()], vec![file(), data(b"a")], vec![file(), data(b"abc")], vec![data(b"a")]] {
            assert!(packed(messages.clone(), "").is_err(), "{messages:?}");
        }
        let link = FileMessage::Entry(entry("l", EntryKind::Hardlink { to: b"../x"[..].into() }));
        assert!(packed(vec![link], "").is_err());
        assert!(unpacked(b"not an archive, but as long as a block of one is at the least.......").is_err());
    }

    #[test]
    fn an_archives_own_words_stay_below() {
        let mut builder = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.as_gnu_mut().unwrap().name[..7].copy_from_slice(b"../evil");
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        assert!(unpacked(&builder.into_inner().unwrap()).unwrap_err().to_string().contains("../evil"));
        assert_eq!(contained(b"./a//b/").unwrap(), b"a/b");
        assert_eq!(contained(b"/etc/x").unwrap(), b"etc/x");
        assert_eq!(contained(b"./").unwrap(), b"");
    }
}
