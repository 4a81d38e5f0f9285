//! Files of an image by name: in a directory, or in a tar file that is indexed once and then read in place.
//!
//! A compressed archive is first unpacked into an unnamed temporary file (nothing to clean up, whatever happens).
//! Symlinks in an archive (`docker save` of old used them) are followed within the archive only.

use crate::layer::tar::{EntryKind, TarError, TarReader};
use crate::pipe::{Compression, decompress};
use crate::tree::{TreeError, components};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most files in an archive: an image has a few per layer.
const MAX_FILES: usize = 20_000;
/// Most symlinks followed to a file of an archive.
const MAX_LINKS: usize = 8;

/// Why a file of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The image itself cannot be opened or read.
    #[error("cannot read '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a regular file nor, where one is wanted, a directory.
    #[error("'{}' is not a {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The archive is no tar file or a broken one.
    #[error("'{}': {source}", path.display())]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: TarError,
    },
    /// Something that an image must have is not there.
    #[error("'{}' has no file '{name}'", path.display())]
    Missing {
        /// The archive or directory.
        path: PathBuf,
        /// What is missing.
        name: String,
    },
    /// An archive of far more files than an image has.
    #[error("'{}' has more than {MAX_FILES} files: not an image", .0.display())]
    TooManyFiles(PathBuf),
    /// A compressed archive that is larger than allowed.
    #[error("'{}' takes more than {limit} bytes when uncompressed, the limit", path.display())]
    Bomb {
        /// The archive.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
}

/// A file of an image, to be read once from its start.
pub struct Blob {
    /// Its content.
    pub reader: Box<dyn Read + Send>,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Where an image's files are.
#[derive(Debug)]
pub enum Source {
    /// In a directory.
    Dir(PathBuf),
    /// In a tar file.
    Archive(Archive),
}

/// An indexed tar file.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: Arc<File>,
    files: HashMap<String, Place>,
}

#[derive(Debug)]
enum Place {
    Data { at: u64, bytes: u64 },
    Symlink(String),
}

/// Opens a regular file; a FIFO or device in its place is refused instead of waited for.
pub(crate) fn open_regular(path: &Path) -> Result<File, SourceError> {
    let read = |source| SourceError::Read { path: path.to_owned(), source };
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(read)?;
    if !file.metadata().map_err(read)?.is_file() {
        return Err(SourceError::Kind { path: path.to_owned(), expected: "regular file" });
    }
    Ok(file)
}

impl Source {
    /// The directory `path`.
    ///
    /// # Errors
    /// It is none.
    pub fn dir(path: &Path) -> Result<Source, SourceError> {
        let meta = path.metadata().map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
        if !meta.is_dir() {
            return Err(SourceError::Kind { path: path.to_owned(), expected: "directory" });
        }
        Ok(Source::Dir(path.to_owned()))
    }

    /// The tar file `path`, compressed or not; `temp` gives the directory for a decompressed copy of at most `limit`
    /// bytes.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn archive(path: &Path, temp: &Path, limit: u64) -> Result<Source, SourceError> {
        Self::archive_file(path, open_regular(path)?, temp, limit)
    }

    /// The same of a file that is open already; `path` is what messages call it.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn archive_file(path: &Path, mut file: File, temp: &Path, limit: u64) -> Result<Source, SourceError> {
        let read = |source| SourceError::Read { path: path.to_owned(), source };
        let mut start = [0; 6];
        let got = file.read_at(&mut start, 0).map_err(read)?;
        if Compression::detect(&start[..got]) != Compression::None {
            let mut plain = decompress(file).map_err(read)?.take(limit + 1);
            let mut spool =
                tempfile::tempfile_in(temp).map_err(|source| SourceError::Read { path: temp.to_owned(), source })?;
            let bytes = io::copy(&mut plain, &mut spool).map_err(read)?;
            if bytes > limit {
                return Err(SourceError::Bomb { path: path.to_owned(), limit });
            }
            file = spool;
        }
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        Archive::index(path, file).map(Source::Archive)
    }

    /// The archive or directory, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Source::Dir(path) => path,
            Source::Archive(archive) => &archive.path,
        }
    }

    /// Whether there is a file of that name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Source::Dir(path) => path.join(name).is_file(),
            Source::Archive(archive) => archive.find(name).is_some(),
        }
    }

    /// Opens the file `name`, a relative path without `..`.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub fn open(&self, name: &str) -> Result<Blob, SourceError> {
        let missing = || SourceError::Missing { path: self.path().to_owned(), name: super::printable(name) };
        match self {
            Source::Dir(root) => {
                if components(name.as_bytes()).is_err()
                    || name.split('/').any(|part| part == "..")
                    || name.starts_with('/')
                {
                    return Err(missing());
                }
                let path = root.join(name);
                let file = match open_regular(&path) {
                    Err(SourceError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        return Err(missing());
                    }
                    other => other?,
                };
                let bytes = file.metadata().map_err(|source| SourceError::Read { path, source })?.len();
                Ok(Blob { reader: Box::new(file), bytes })
            }
            Source::Archive(archive) => {
                let (at, bytes) = archive.find(name).ok_or_else(missing)?;
                let section = Section { file: Arc::clone(&archive.file), at, end: at + bytes };
                Ok(Blob { reader: Box::new(section), bytes })
            }
        }
    }
}

/// A part of a file, read without moving the file's own position.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = (self.end - self.at).min(buffer.len() as u64) as usize;
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// A name in its one spelling: without `.`, doubled slashes and the like.
fn canonical(name: &[u8]) -> Result<String, TreeError> {
    let parts = components(name)?;
    Ok(String::from_utf8_lossy(&parts.join(&b'/')).into_owned())
}

impl Archive {
    fn index(path: &Path, file: File) -> Result<Archive, SourceError> {
        let tar = |source| SourceError::Tar { path: path.to_owned(), source };
        let total = file.metadata().map_err(|source| SourceError::Read { path: path.to_owned(), source })?.len();
        let mut files = HashMap::new();
        let mut reader = TarReader::new(BufReader::with_capacity(4096, &file));
        while let Some(entry) = reader.next_entry().map_err(tar)? {
            let Ok(name) = canonical(&entry.path) else {
                continue;
            };
            let place = match entry.kind {
                EntryKind::File if entry.is_whole() => Place::Data { at: entry.position, bytes: entry.size },
                EntryKind::Symlink(target) => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let joined = [dir.as_bytes(), &target].join(&b'/');
                    let Ok(target) = canonical(&joined) else {
                        continue;
                    };
                    Place::Symlink(target)
                }
                EntryKind::HardLink(target) => {
                    let Ok(target) = canonical(&target) else {
                        continue;
                    };
                    Place::Symlink(target)
                }
                _ => continue,
            };
            if let Place::Data { at, bytes } = place
                && at.checked_add(bytes).is_none_or(|end| end > total)
            {
                return Err(tar(TarError::Truncated));
            }
            files.insert(name, place);
            if files.len() > MAX_FILES {
                return Err(SourceError::TooManyFiles(path.to_owned()));
            }
            reader.seek_past_data().map_err(tar)?;
        }
        Ok(Archive { path: path.to_owned(), file: Arc::new(file), files })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = canonical(name.as_bytes()).ok()?;
        for _ in 0..MAX_LINKS {
            match self.files.get(&name)? {
                Place::Data { at, bytes } => return Some((*at, *bytes)),
                Place::Symlink(target) => name.clone_from(target),
            }
        }
        None
    }
}
