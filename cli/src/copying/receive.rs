//! Entries that a guest has sent, made on this host. What a guest says is not trusted: nothing is made or changed but below the one
//! directory, through no symbolic link, whatever the entries are called and in whatever order they come.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use guest_protocol::files::{Entry, EntryKind, FileMessage, is_contained};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod,
    fchown, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// Permissions that a file of a guest has here without `--archive`: not those to be somebody else.
const USUAL: u32 = 0o777;

/// What is being made.
#[derive(Debug)]
pub struct Receiver {
    top: PathBuf,
    /// Owners and all permissions as they are in the container.
    archive: bool,
    /// The top, if that is a directory.
    directory: Option<OwnedFd>,
    /// The file whose content comes, and how much of it is missing.
    file: Option<(File, Entry, u64)>,
    /// What is made in a directory changes its time, and needs it to be writable. By their paths: each is there once, however often the
    /// guest speaks of it, and so there are no more than are on the disk.
    directories: BTreeMap<Vec<u8>, Entry>,
}

impl Receiver {
    /// One that makes what comes at `top`.
    pub fn at(top: PathBuf, archive: bool) -> Self {
        Receiver { top, archive, directory: None, file: None, directories: BTreeMap::new() }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// What it says cannot be made. What has been made stays.
    pub fn take(&mut self, message: FileMessage) -> anyhow::Result<()> {
        match message {
            FileMessage::Entry(entry) => {
                self.close()?;
                let path = self.shown(&entry.path.0);
                self.make(entry).with_context(|| format!("cannot make {path}"))
            }
            FileMessage::Data(data) => {
                let (file, _, left) =
                    self.file.as_mut().ok_or_else(|| anyhow!("the container sent data of no file"))?;
                let length = data.0.len() as u64;
                *left = left.checked_sub(length).ok_or_else(|| anyhow!("the container sent more than a file has"))?;
                file.write_all(&data.0).with_context(|| format!("cannot write {}", self.top.display()))
            }
            _ => Ok(()),
        }
    }

    /// That was all.
    ///
    /// # Errors
    /// It was not.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.close()?;
        // What is in a directory comes behind it in this order.
        for entry in std::mem::take(&mut self.directories).values().rev() {
            let path = self.shown(&entry.path.0);
            let opened = self.open(&entry.path.0);
            opened
                .and_then(|directory| self.describe(&directory, entry))
                .with_context(|| format!("cannot make {path}"))?;
        }
        Ok(())
    }

    fn shown(&self, path: &[u8]) -> String {
        let path = Path::new(OsStr::from_bytes(path));
        let place = if path == Path::new("") { self.top.clone() } else { self.top.join(path) };
        crate::failure::sanitize(&place.to_string_lossy())
    }

    /// The last file has all that it said it has.
    fn close(&mut self) -> anyhow::Result<()> {
        let Some((file, entry, left)) = self.file.take() else { return Ok(()) };
        let path = self.shown(&entry.path.0);
        if left > 0 {
            return Err(anyhow!("{path}: the container sent {left} bytes less than it has"));
        }
        self.describe(&file, &entry).with_context(|| format!("cannot make {path}"))
    }

    /// A directory below the top, or the top.
    fn open(&self, path: &[u8]) -> anyhow::Result<OwnedFd> {
        let top = self.directory.as_ref().ok_or_else(|| anyhow!("what is copied is not a directory"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if path.is_empty() {
            return Ok(top.try_clone()?);
        }
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(top, path, flags, Mode::empty(), within)?)
    }

    fn make(&mut self, entry: Entry) -> anyhow::Result<()> {
        let path = entry.path.0.clone();
        if !is_contained(&path) {
            return Err(anyhow!("the container calls it by a path that leads elsewhere"));
        }
        // The top is where the user said; anything else is below it.
        if path.is_empty() {
            let top = self.top.clone();
            return self.make_in(CWD, top.as_os_str().as_bytes(), entry);
        }
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], &path[..]),
        };
        let parent = self.open(parent)?;
        self.make_in(&parent, name, entry)
    }

    fn make_in(&mut self, parent: impl std::os::fd::AsFd, name: &[u8], entry: Entry) -> anyhow::Result<()> {
        let parent = parent.as_fd();
        let directory = matches!(entry.kind, EntryKind::Directory { .. });
        match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) if directory => {}
            Ok(FileType::Directory) => return Err(Errno::ISDIR.into()),
            // Only the user's own word may be a link that is followed.
            Ok(FileType::Symlink) if directory && entry.path.0.is_empty() => {}
            Ok(_) if directory => return Err(Errno::NOTDIR.into()),
            Ok(_) => unlinkat(parent, name, AtFlags::empty())?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let owner_only = Mode::RUSR | Mode::WUSR;
        match &entry.kind {
            EntryKind::Directory { .. } => {
                match mkdirat(parent, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                if entry.path.0.is_empty() {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    self.directory = Some(openat(parent, name, flags, Mode::empty())?);
                }
                self.directories.insert(entry.path.0.clone(), Entry { xattrs: Vec::new(), ..entry });
            }
            EntryKind::File { size } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(parent, name, flags, owner_only)?);
                let size = *size;
                self.file = Some((file, entry, size));
            }
            EntryKind::Symlink { target } => {
                symlinkat(target.0.as_slice(), parent, name)?;
                if self.archive {
                    chownat(parent, name, owner(&entry).0, owner(&entry).1, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                utimensat(parent, name, &times(&entry), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            EntryKind::Hardlink { to } => {
                if !is_contained(&to.0) || to.0.is_empty() {
                    return Err(anyhow!("the container calls what it links to by a path that leads elsewhere"));
                }
                let (directory, from) = match to.0.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => (self.open(&to.0[..slash])?, &to.0[slash + 1..]),
                    None => (self.open(&[])?, &to.0[..]),
                };
                linkat(directory, from, parent, name, AtFlags::empty())?;
            }
            EntryKind::Fifo => {
                mknodat(parent, name, FileType::Fifo, owner_only, 0)?;
                chmodat(parent, name, self.mode(&entry), AtFlags::empty())?;
            }
            EntryKind::Character { .. } | EntryKind::Block { .. } => {
                eprintln!("bulkhead: left out: {}: a device is the guest's own", self.shown(&entry.path.0));
            }
            EntryKind::Removed => {}
        }
        Ok(())
    }

    fn mode(&self, entry: &Entry) -> Mode {
        Mode::from_raw_mode(entry.mode & if self.archive { 0o7777 } else { USUAL })
    }

    fn describe(&self, file: impl std::os::fd::AsFd, entry: &Entry) -> anyhow::Result<()> {
        if self.archive {
            let (uid, gid) = owner(entry);
            fchown(&file, uid, gid)?;
        }
        fchmod(&file, self.mode(entry))?;
        Ok(futimens(&file, &times(entry))?)
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times(entry: &Entry) -> Timestamps {
    let (tv_sec, nanoseconds) = entry.mtime;
    // What no clock says is said by none.
    let time = Timespec { tv_sec, tv_nsec: i64::from(nanoseconds.min(999_999_999)) };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copying::send;
    use guest_protocol::files::Bytes;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn named(path: &str, kind: EntryKind) -> FileMessage {
        let entry = Entry {
            path: path.as_bytes().into(),
            kind,
            mode: 0o4755,
            uid: 0,
            gid: 0,
            mtime: (1, 2),
            xattrs: Vec::new(),
        };
        FileMessage::Entry(entry)
    }

    fn directory(path: &str) -> FileMessage {
        named(path, EntryKind::Directory { opaque: false })
    }

    fn receive(top: &Path, messages: Vec<FileMessage>) -> anyhow::Result<()> {
        let mut receiver = Receiver::at(top.to_owned(), false);
        messages.into_iter().try_for_each(|message| receiver.take(message))?;
        receiver.finish()
    }

    #[test]
    fn a_tree_is_the_same_on_the_other_side() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::write(from.join("sub/big"), vec![7; 200_000]).unwrap();
        fs::write(from.join("sub/empty"), "").unwrap();
        fs::hard_link(from.join("sub/big"), from.join("twin")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        fs::set_permissions(from.join("sub/big"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("sub/deep"), fs::Permissions::from_mode(0o500)).unwrap();
        let mut messages = Vec::new();
        send::all(&from, send::How::default(), &mut |message| {
            messages.push(message);
            Ok(())
        })
        .unwrap();
        let to = dir.path().join("to");
        for _ in 0..2 {
            receive(&to, messages.clone()).unwrap();
            let big = fs::metadata(to.join("sub/big")).unwrap();
            assert_eq!((big.mode() & 0o7777, big.nlink(), big.len()), (0o751, 2, 200_000));
            assert_eq!(big.mtime(), fs::metadata(from.join("sub/big")).unwrap().mtime());
            assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
            assert_eq!(fs::metadata(to.join("sub/deep")).unwrap().mode() & 0o777, 0o500);
            assert_eq!(fs::read(to.join("sub/empty")).unwrap(), b"");
        }
    }

    #[test]
    fn group_13_a_guest_makes_nothing_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "mine").unwrap();
        let link = |target: &Path| named("l", EntryKind::Symlink { target: target.as_os_str().as_bytes().into() });
        let file = |path: &str| vec![named(path, EntryKind::File { size: 1 }), FileMessage::Data(Bytes(vec![b'x']))];
        let hard = |to: &str| named("h", EntryKind::Hardlink { to: to.as_bytes().into() });
        let cases = [
            file("../outside/new"),
            file("/outside/new"),
            file("a/../../outside/new"),
            [vec![link(&outside)], file("l/new")].concat(),
            [vec![link(Path::new("../outside"))], file("l/file")].concat(),
            vec![link(&outside), directory("l/new")],
            vec![link(&outside), hard("l/file")],
            vec![hard("../outside/file")],
            vec![hard("")],
        ];
        for case in cases {
            let _ = fs::remove_dir_all(&top);
            assert!(receive(&top, [vec![directory("")], case.clone()].concat()).is_err(), "{case:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{case:?}");
            assert_eq!(fs::read(outside.join("file")).unwrap(), b"mine", "{case:?}");
        }
        // A link that is in the way is replaced, not followed; and nobody becomes somebody else.
        let _ = fs::remove_dir_all(&top);
        let messages = [vec![directory(""), link(&outside.join("file"))], file("l")].concat();
        receive(&top, messages).unwrap();
        assert_eq!(
            (fs::read(top.join("l")).unwrap(), fs::read(outside.join("file")).unwrap()),
            (b"x".to_vec(), b"mine".to_vec())
        );
        assert_eq!(fs::metadata(top.join("l")).unwrap().mode() & 0o7777, 0o755);
    }

    fn any_message() -> impl Strategy<Value = FileMessage> {
        let path = || {
            prop::sample::select(vec![
                "",
                "a",
                "b",
                "a/b",
                "l",
                "l/a",
                "a/l",
                "..",
                "../outside/file",
                "/etc/x",
                "a/../l",
            ])
        };
        let kind = prop_oneof![
            Just(EntryKind::Directory { opaque: false }),
            (0..3u64).prop_map(|size| EntryKind::File { size }),
            prop::sample::select(vec![".", "..", "../outside", "a"])
                .prop_map(|target| EntryKind::Symlink { target: target.as_bytes().into() }),
            path().prop_map(|to| EntryKind::Hardlink { to: to.as_bytes().into() }),
            Just(EntryKind::Fifo),
            Just(EntryKind::Removed),
        ];
        prop_oneof![
            4 => (path(), kind).prop_map(|(path, kind)| named(path, kind)),
            1 => (0..3usize).prop_map(|count| FileMessage::Data(Bytes(vec![b'x'; count]))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_guest_says_nothing_is_made_elsewhere(messages in prop::collection::vec(any_message(), 0..14)) {
            let dir = tempfile::tempdir().unwrap();
            let outside = dir.path().join("outside");
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("file"), "mine").unwrap();
            let before = fs::metadata(outside.join("file")).unwrap();
            let _ = receive(&dir.path().join("top"), [vec![directory("")], messages].concat());
            let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
            prop_assert_eq!((names(dir.path()), names(&outside)), (2, 1));
            let after = fs::metadata(outside.join("file")).unwrap();
            prop_assert_eq!((after.mode(), after.nlink(), after.ctime_nsec()), (before.mode(), 1, before.ctime_nsec()));
            prop_assert_eq!(fs::read(outside.join("file")).unwrap(), b"mine");
        }
    }

    #[test]
    fn what_does_not_come_whole_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        let data = |count| FileMessage::Data(Bytes(vec![0; count]));
        let file = || named("", EntryKind::File { size: 2 });
        for messages in
            [vec![file()], vec![file(), data(1)], vec![file(), data(3)], vec![data(1)], vec![file(), data(1), file()]]
        {
            assert!(receive(&top, messages.clone()).is_err(), "{messages:?}");
        }
        receive(&top, vec![file(), data(1), data(1)]).unwrap();
        // What is said again takes no place.
        let mut receiver = Receiver::at(dir.path().join("again"), false);
        (0..1000).for_each(|_| receiver.take(directory("")).unwrap());
        assert_eq!(receiver.directories.len(), 1);
        fs::remove_file(&top).unwrap();
        fs::create_dir(&top).unwrap();
        assert!(receive(&top, vec![file(), data(2)]).is_err());
        assert!(receive(&top.join("a/b"), vec![directory("")]).is_err());
    }
}
