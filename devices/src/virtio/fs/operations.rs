//! What a guest can ask for, each by the rules of the [`Guard`] and then by the library. What is missing here cannot be done.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, OpenOptions, ROOT_ID, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};

use super::guard::{Guard, error};

/// Most bytes of names that are read at once.
const MOST_NAMES: u32 = 1 << 20;

type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl FileSystem for Guard {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.inner.init(capable)
    }

    fn destroy(&self) {
        self.inner.destroy();
        self.all_forgotten();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = self.name(parent, name)?;
        self.telling(|| self.inner.lookup(&self.context(ctx), parent, name), |entry| entry)
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.inner.forget(ctx, inode, count);
        self.forgotten(inode, count);
    }

    fn getattr(&self, ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.inner.getattr(ctx, inode, handle).map(|(attr, timeout)| (self.seen(attr), timeout))
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.writable()?;
        // Of the one file's directory nothing is shared.
        if self.only.is_some() && inode == ROOT_ID {
            return Err(error(libc::EPERM));
        }
        let result = self.inner.setattr(&self.context(ctx), inode, self.meant(attr), handle, valid);
        result.map(|(attr, timeout)| (self.seen(attr), timeout))
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.inner.readlink(ctx, inode)
    }

    fn symlink(&self, ctx: &Context, linkname: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.changeable(parent, name)?;
        self.telling(|| self.inner.symlink(&self.context(ctx), linkname, parent, name), |entry| entry)
    }

    fn mknod(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32, _: u32, umask: u32) -> io::Result<Entry> {
        self.changeable(parent, name)?;
        if ![0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK].contains(&(mode & libc::S_IFMT)) {
            return Err(error(libc::EPERM));
        }
        self.telling(|| self.inner.mknod(&self.context(ctx), parent, name, mode, 0, umask), |entry| entry)
    }

    fn mkdir(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        self.changeable(parent, name)?;
        self.telling(|| self.inner.mkdir(&self.context(ctx), parent, name, mode, umask), |entry| entry)
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.changeable(parent, name)?;
        self.inner.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.changeable(parent, name)?;
        self.inner.rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.changeable(olddir, oldname)?;
        self.changeable(newdir, newname)?;
        // A whiteout is a device.
        if flags & libc::RENAME_WHITEOUT != 0 {
            return Err(error(libc::EINVAL));
        }
        self.inner.rename(ctx, olddir, oldname, newdir, newname, flags)
    }

    fn link(&self, ctx: &Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        self.changeable(newparent, newname)?;
        self.telling(|| self.inner.link(ctx, inode, newparent, newname), |entry| entry)
    }

    fn open(&self, ctx: &Context, inode: u64, flags: u32, fuse_flags: u32) -> io::Result<Opened> {
        let flags = self.flags(flags)?;
        self.opening(flags, || self.inner.open(&self.context(ctx), inode, flags, fuse_flags), |opened| opened.0)
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        self.changeable(parent, name)?;
        let (flags, exclusive) = (self.flags(args.flags)?, libc::O_EXCL as u32);
        let may_exist = args.flags & exclusive == 0;
        args.flags = flags | exclusive;
        let create = || self.inner.create(&self.context(ctx), parent, name, args);
        match self.opening(args.flags, || self.telling(create, |(entry, ..)| entry), |created| created.1) {
            Err(e) if may_exist && e.raw_os_error() == Some(libc::EEXIST) => {}
            result => return result,
        }
        // The library would not forget a file that is there and cannot be opened.
        let entry = self.lookup(ctx, parent, name)?;
        match self.open(ctx, entry.inode, flags, args.fuse_flags) {
            Ok((handle, options, passthrough)) => Ok((entry, handle, options, passthrough)),
            Err(e) => {
                self.forget(ctx, entry.inode, 1);
                Err(e)
            }
        }
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let flags = self.open_flags(handle)?;
        self.inner.read(ctx, inode, handle, w, size, offset, lock_owner, flags)
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        _: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.writable()?;
        let (ctx, flags) = (self.context(ctx), self.open_flags(handle)?);
        self.inner.write(&ctx, inode, handle, r, size, offset, lock_owner, delayed_write, flags, fuse_flags)
    }

    fn flush(&self, ctx: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        self.inner.flush(ctx, inode, handle, lock_owner)
    }

    fn fsync(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(&self, ctx: &Context, inode: u64, handle: u64, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        self.writable()?;
        self.inner.fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.closed(handle, self.inner.release(ctx, inode, flags, handle, flush, flock_release, lock_owner))
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        self.inner.statfs(ctx, inode)
    }

    fn opendir(&self, ctx: &Context, inode: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        if self.only.is_some() && inode == ROOT_ID {
            return Err(error(libc::EACCES));
        }
        let flags = (libc::O_RDONLY | libc::O_DIRECTORY) as u32;
        self.opening(flags, || self.inner.opendir(&self.context(ctx), inode, flags), |opened| opened.0)
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.inner.readdir(ctx, inode, handle, size.min(MOST_NAMES), offset, add_entry)
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let (mut some, mut failed) = (false, Ok(()));
        self.inner.readdirplus(ctx, inode, handle, size.min(MOST_NAMES), offset, &mut |name, mut entry| {
            // The library forgets an entry for which there is no room, but not one that fails.
            if let Err(e) = self.budget.take() {
                failed = Err(e);
                return Ok(0);
            }
            entry.attr = self.seen(entry.attr);
            let number = entry.inode;
            let added = add_entry(name, entry).unwrap_or_else(|e| {
                failed = Err(e);
                0
            });
            if added == 0 || !self.count(number) {
                self.budget.give_back(1);
            }
            some |= added > 0;
            Ok(added)
        })?;
        if some { Ok(()) } else { failed }
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.closed(handle, self.inner.releasedir(ctx, inode, flags, handle))
    }

    fn lseek(&self, ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        self.inner.lseek(ctx, inode, handle, offset, whence)
    }
}
