//! What a guest may do with a volume, whatever it asks the library for.
//!
//! Only what is in [`operations`](super::operations) can be done at all: no extended attributes, no ioctl, no locks of the host (the guest keeps its own).
//! - A volume that is read-only is so here.
//! - A name is one entry of a directory: `..` leads nowhere, so nobody comes out of a directory that was moved meanwhile.
//! - No device is made. Others than regular files and directories are not opened, by the library.
//! - What the guest knows by number, and has open, is counted: each takes a descriptor of this process.
//! - Whoever is not root has but one user to give: files of that user are root's in the guest, and what the guest makes is that user's.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Error};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::BackendFileSystem;
use fuse_backend_rs::api::filesystem::{Context, Entry, ROOT_ID};
use fuse_backend_rs::passthrough::PassthroughFs;
use rustix::process::{getegid, geteuid};

use super::config::SharedVolume;

/// What the one file of a volume is called.
const FILE: &[u8] = b"file";
/// Reading, writing or both. Not the C library's O_ACCMODE: in musl's there is O_PATH, and who has a file by that may change what no call
/// of his may.
const ACCESS: i32 = libc::O_WRONLY | libc::O_RDWR;
/// Flags of open(2) that mean something for a file that is there.
const FLAGS: i32 = ACCESS
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_NOATIME
    | libc::O_NOFOLLOW
    | libc::O_DIRECTORY;

pub(super) fn error(number: i32) -> Error {
    Error::from_raw_os_error(number)
}

/// How many files a guest may have, in all volumes together.
pub struct Budget {
    most: u64,
    used: AtomicU64,
}

impl Budget {
    /// At most so many.
    pub fn new(most: u64) -> Self {
        Budget { most, used: AtomicU64::new(0) }
    }

    /// One more, if there is room.
    pub fn take(&self) -> io::Result<()> {
        let more = |used: u64| (used < self.most).then_some(used + 1);
        let result = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        result.map(drop).map_err(|_| error(libc::ENFILE))
    }

    /// So many less.
    pub fn give_back(&self, count: u64) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }
}

/// A user and group of this process that are root's in the guest.
#[derive(Clone, Copy)]
struct One {
    uid: u32,
    gid: u32,
}

/// A volume behind its rules.
pub struct Guard {
    pub(super) inner: PassthroughFs,
    read_only: bool,
    /// The one file that is shared of the directory.
    pub(super) only: Option<CString>,
    /// `None` for root, whose guests have the users of the host.
    one: Option<One>,
    pub(super) budget: Arc<Budget>,
    counted: Mutex<Counted>,
}

/// What is counted in the budget.
#[derive(Default)]
struct Counted {
    /// By number: how often the guest has been told it.
    known: HashMap<u64, u64>,
    /// By handle: the flags it was opened with.
    open: HashMap<u64, u32>,
}

impl Counted {
    fn files(&self) -> u64 {
        (self.known.len() + self.open.len()) as u64
    }
}

impl Guard {
    /// Puts `inner` behind the rules for `volume`.
    pub fn new(inner: PassthroughFs, volume: &SharedVolume, budget: Arc<Budget>) -> Self {
        let (uid, gid) = (geteuid(), getegid());
        Guard {
            inner,
            read_only: volume.read_only,
            only: volume.file.clone(),
            one: (!uid.is_root()).then(|| One { uid: uid.as_raw(), gid: gid.as_raw() }),
            budget,
            counted: Mutex::default(),
        }
    }

    /// What the guest asked to forget.
    pub(super) fn forgotten(&self, inode: u64, times: u64) {
        let mut counted = self.counted();
        if let Some(known) = counted.known.get_mut(&inode) {
            *known = known.saturating_sub(times);
            if *known == 0 {
                counted.known.remove(&inode);
                self.budget.give_back(1);
            }
        }
    }

    /// The guest has nothing any more.
    pub(super) fn all_forgotten(&self) {
        let counted = std::mem::take(&mut *self.counted());
        self.budget.give_back(counted.files());
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name to use for `name` in `parent`.
    pub(super) fn name<'a>(&'a self, parent: u64, name: &'a CStr) -> io::Result<&'a CStr> {
        let bytes = name.to_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(error(libc::EINVAL));
        }
        match &self.only {
            Some(only) if parent == ROOT_ID && bytes == FILE => Ok(only),
            Some(_) if parent == ROOT_ID => Err(error(libc::ENOENT)),
            _ => Ok(name),
        }
    }

    /// Whether the volume may be changed.
    pub(super) fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(error(libc::EROFS)) } else { Ok(()) }
    }

    /// Whether entries of `directory` may be made, moved and removed; then `name` is one.
    pub(super) fn changeable(&self, directory: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        if self.only.is_some() && directory == ROOT_ID {
            return Err(error(libc::EPERM));
        }
        self.name(directory, name).map(drop)
    }

    /// The flags to open a file with, if it may be opened with `flags`.
    pub(super) fn flags(&self, flags: u32) -> io::Result<u32> {
        let flags = flags as i32;
        if flags & ACCESS != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            self.writable()?;
        }
        Ok((flags & FLAGS) as u32)
    }

    /// As whom the host does it: the guest's user, if this process can be any.
    pub(super) fn context(&self, ctx: &Context) -> Context {
        let (uid, gid) = if self.one.is_some() { (0, 0) } else { (ctx.uid, ctx.gid) };
        Context { uid, gid, pid: ctx.pid }
    }

    /// The attributes as the guest sees them.
    pub(super) fn seen(&self, mut attr: stat64) -> stat64 {
        if let Some(one) = self.one {
            attr.st_uid = if attr.st_uid == one.uid { 0 } else { attr.st_uid };
            attr.st_gid = if attr.st_gid == one.gid { 0 } else { attr.st_gid };
        }
        attr
    }

    /// The attributes that the guest means.
    pub(super) fn meant(&self, mut attr: stat64) -> stat64 {
        if let Some(one) = self.one {
            attr.st_uid = if attr.st_uid == 0 { one.uid } else { attr.st_uid };
            attr.st_gid = if attr.st_gid == 0 { one.gid } else { attr.st_gid };
        }
        attr
    }

    /// Something that tells the guest a file by number, if it may know one more.
    pub(super) fn telling<T>(
        &self,
        tell: impl FnOnce() -> io::Result<T>,
        entry: impl Fn(&mut T) -> &mut Entry,
    ) -> io::Result<T> {
        self.budget.take()?;
        let told = tell().map(|mut told| {
            let entry = entry(&mut told);
            entry.attr = self.seen(entry.attr);
            let first = self.count(entry.inode);
            (told, first)
        });
        match told {
            Ok((told, true)) => Ok(told),
            Ok((told, false)) => {
                self.budget.give_back(1);
                Ok(told)
            }
            Err(e) => {
                self.budget.give_back(1);
                Err(e)
            }
        }
    }

    /// Counts that the guest has been told a number; says whether it did not know it.
    pub(super) fn count(&self, inode: u64) -> bool {
        if inode == ROOT_ID {
            return false;
        }
        let mut counted = self.counted();
        let times = counted.known.entry(inode).or_default();
        *times = times.saturating_add(1);
        *times == 1
    }

    /// Something that opens a file with these flags, if one more may be open.
    pub(super) fn opening<T>(
        &self,
        flags: u32,
        open: impl FnOnce() -> io::Result<T>,
        handle: impl Fn(&T) -> Option<u64>,
    ) -> io::Result<T> {
        self.budget.take()?;
        let opened = open();
        match opened.as_ref().ok().and_then(handle) {
            Some(handle) => drop(self.counted().open.insert(handle, flags)),
            None => self.budget.give_back(1),
        }
        opened
    }

    pub(super) fn closed(&self, handle: u64, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() && self.counted().open.remove(&handle).is_some() {
            self.budget.give_back(1);
        }
        result
    }

    /// The flags that a file is open with, whatever the guest says they are: told others, the library would set them, and
    /// should that fail close the descriptor under whoever has it.
    pub(super) fn open_flags(&self, handle: u64) -> io::Result<u32> {
        self.counted().open.get(&handle).copied().ok_or_else(|| error(libc::EBADF))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.all_forgotten();
    }
}

impl BackendFileSystem for Guard {
    fn mount(&self) -> io::Result<(Entry, u64)> {
        let (mut entry, most) = self.inner.mount()?;
        entry.attr = self.seen(entry.attr);
        Ok((entry, most))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::{pool, server};
    use super::*;
    use fuse_backend_rs::api::filesystem::{FileSystem, SetattrValid};
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, chown};

    fn one_user() {
        // The library changes it.
        pool::own_umask();
        let dir = tempfile::tempdir().unwrap();
        let (mine, others) = (dir.path().join("mine"), dir.path().join("others"));
        for path in [&mine, &others] {
            fs::write(path, "x").unwrap();
        }
        let this = fs::metadata(&mine).unwrap();
        // Only root can give a file away.
        let given = chown(&others, Some(1234), Some(2345)).is_ok();
        let directory = File::open(dir.path()).unwrap();
        let volume = SharedVolume { name: "0".into(), directory, file: None, read_only: false };
        let inner = server::passthrough(&volume).unwrap();
        let one = One { uid: if given { 1234 } else { this.uid() }, gid: if given { 2345 } else { this.gid() } };
        let mut guard = Guard::new(inner, &volume, Arc::new(Budget::new(9)));
        guard.one = Some(one);
        let path = if given { &others } else { &mine };
        let name = CString::new(path.file_name().unwrap().as_encoded_bytes()).unwrap();
        let other = Context { uid: 33, gid: 33, pid: 1 };
        let entry = guard.lookup(&other, ROOT_ID, &name).unwrap();
        assert_eq!((entry.attr.st_uid, entry.attr.st_gid), (0, 0));
        let (mut attr, _) = guard.getattr(&other, entry.inode, None).unwrap();
        assert_eq!((attr.st_uid, attr.st_gid), (0, 0));
        // A chown to root is one to whom the file belongs anyway.
        attr.st_uid = 0;
        guard.setattr(&other, entry.inode, attr, None, SetattrValid::UID).unwrap();
        assert_eq!(fs::metadata(path).unwrap().uid(), one.uid);
        // Whoever the guest's user is, the monitor's makes it.
        guard.mkdir(&other, ROOT_ID, c"made", 0o755, 0).unwrap();
        assert_eq!(fs::metadata(dir.path().join("made")).unwrap().uid(), this.uid());
    }

    #[test]
    fn whoever_is_not_root_is_root_in_the_guest() {
        std::thread::spawn(one_user).join().unwrap();
    }
}
