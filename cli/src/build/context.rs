//! The build context: a directory of this host, out of which no name leads.
//!
//! Each file is opened from the context's own descriptor, by the kernel's rule that resolving its path must not leave what is below that
//! (openat2(2), RESOLVE_BENEATH): neither `..` nor a link does, whoever changes the directory meanwhile.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, anyhow, bail};
use guest_images::tree::{Attrs, Xattrs};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::ignore::{self, Ignore};
use super::items::{Data, Item, Source, What, extend};

/// Deepest directory: a path has 4095 bytes.
const MAX_DEPTH: usize = 2048;

/// An open one.
#[derive(Debug)]
pub struct Context {
    path: PathBuf,
    /// Where that really is.
    real: PathBuf,
    top: OwnedFd,
    ignore: Ignore,
}

impl Context {
    /// Opens the directory, with the rules of its `.dockerignore`, or of the one that belongs to the Dockerfile at `file`.
    pub fn open(path: &Path, file: Option<&Path>) -> anyhow::Result<Self> {
        let shown = || format!("build context '{}'", path.display());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let top = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()).with_context(shown)?;
        let real = fs::read_link(format!("/proc/self/fd/{}", top.as_raw_fd())).with_context(shown)?;
        let mut context = Context { path: path.to_owned(), real, top, ignore: Ignore::default() };
        let own = file.map(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let text = match own.as_deref().map(read_rules).transpose()?.flatten() {
            Some(text) => Some(text),
            None => context.rules()?,
        };
        context.ignore = Ignore::parse(&text.unwrap_or_default()).context(".dockerignore")?;
        Ok(context)
    }

    fn rules(&self) -> anyhow::Result<Option<String>> {
        match self.open_at(b".dockerignore", OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => rules_in(File::from(file)).map(Some).context(".dockerignore"),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed(b".dockerignore", error)),
        }
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        openat2(&self.top, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::BENEATH)
    }

    fn failed(&self, path: &[u8], error: Errno) -> anyhow::Error {
        let shown = format!("'{}' of the build context {}", path.escape_ascii(), self.path.display());
        match error {
            Errno::XDEV => anyhow!("{shown}: it leads out of the context; only what is in it can be copied"),
            error => anyhow::Error::new(std::io::Error::from(error)).context(shown),
        }
    }

    /// A regular file that had so many bytes when it was found, for reading; not through a link.
    pub fn open_file(&self, path: &[u8], size: u64) -> anyhow::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(self.open_at(path, flags).map_err(|error| self.failed(path, error))?);
        let meta = file.metadata().with_context(|| self.path.display().to_string())?;
        if !meta.is_file() || meta.size() != size {
            bail!("'{}' of the build context changed while it was read", path.escape_ascii());
        }
        Ok(file)
    }

    /// Where in the context an open file really is.
    fn real_path(&self, file: &OwnedFd) -> Option<Vec<u8>> {
        let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        Some(real.strip_prefix(&self.real).ok()?.as_os_str().as_bytes().to_vec())
    }
}

/// The context as a source: shared, since the data of its files is read later.
#[derive(Debug)]
pub struct OfContext(pub Rc<Context>);

impl OfContext {
    fn all_below(&self, path: &[u8], depth: usize) -> anyhow::Result<Vec<Item>> {
        let mut items = Vec::new();
        for name in self.names(path)? {
            let mut path = path.to_vec();
            extend(&mut path, &name);
            items.extend(self.below(&name, &path, depth + 1)?);
        }
        Ok(items)
    }

    /// What is at `path`, where no link is followed. None: it is not in the context.
    fn below(&self, name: &[u8], path: &[u8], depth: usize) -> anyhow::Result<Option<Item>> {
        if depth > MAX_DEPTH {
            bail!("'{}' of the build context is nested too deep", path.escape_ascii());
        }
        let excluded = !path.is_empty() && self.0.ignore.excludes(path);
        if excluded && !self.0.ignore.has_exceptions() {
            return Ok(None);
        }
        let failed = |error| self.0.failed(path, error);
        // A link is looked at and not followed; what is above leads nowhere else, whatever has become of it.
        let file = self.0.open_at(path, OFlags::PATH | OFlags::NOFOLLOW).map_err(failed)?;
        let stat = statat(&file, "", AtFlags::EMPTY_PATH).map_err(failed)?;
        let what = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let items = self.all_below(path, depth)?;
                if excluded && items.is_empty() {
                    return Ok(None);
                }
                What::Directory(items)
            }
            _ if excluded => return Ok(None),
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                What::File { size, data: Data::Host(self.0.clone(), path.to_vec()) }
            }
            FileType::Symlink => {
                let target = readlinkat(&file, "", Vec::new()).map_err(failed)?;
                What::Symlink(target.into_bytes().into())
            }
            other => bail!(
                "'{}' of the build context is a {}: only files, directories and symbolic links can be copied; name it in .dockerignore",
                path.escape_ascii(),
                kind(other)
            ),
        };
        Ok(Some(Item { name: name.into(), attrs: attrs(&stat), what }))
    }
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "socket",
        FileType::Fifo => "named pipe",
        _ => "device",
    }
}

/// As docker sends files of a context: they are root's, and have no attributes.
fn attrs(stat: &Stat) -> Attrs {
    let mode = u16::try_from(stat.st_mode & 0o7777).unwrap_or(0);
    let mtime_nsec = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Attrs { mode, uid: 0, gid: 0, mtime: stat.st_mtime, mtime_nsec, xattrs: Xattrs::new() }
}

impl Source for OfContext {
    fn names(&self, path: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let directory = match self.0.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOTDIR | Errno::NOENT) => return Ok(Vec::new()),
            other => other.map_err(|error| self.0.failed(path, error))?,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|error| self.0.failed(path, error))? {
            let entry = entry.map_err(|error| self.0.failed(path, error))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
            if names.len() > super::items::MAX_ITEMS {
                bail!("'{}' of the build context has too many files", path.escape_ascii());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn item(&self, path: &[u8]) -> anyhow::Result<Option<Item>> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let file = match self.0.open_at(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.map_err(|error| self.0.failed(path, error))?,
        };
        // A link leads to what is asked for, and what that is called where it really is, the rules are about.
        match self.0.real_path(&file) {
            Some(real) => self.below(name, &real, 0),
            None => bail!("'{}' of the build context was moved while it was read", path.escape_ascii()),
        }
    }

    fn called(&self) -> String {
        format!("the build context {}", self.0.path.display())
    }
}

fn read_rules(path: &Path) -> anyhow::Result<Option<String>> {
    match super::dockerfile::open(path) {
        Ok(file) => rules_in(file).map(Some).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn rules_in(file: File) -> anyhow::Result<String> {
    if !file.metadata()?.is_file() {
        bail!("not a regular file");
    }
    let mut text = String::new();
    file.take(ignore::MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > ignore::MAX {
        bail!("more than {} bytes", ignore::MAX);
    }
    Ok(text)
}
