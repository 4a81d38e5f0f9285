//! A snapshot's directory: `state` and `memory`, and a copy of each disk that the machine could write to.
//!
//! It is written under another name in the same place and renamed when all of it is on the disk, so that a process that is
//! killed, or a full disk, leaves the old snapshot or the new one. What a killed process left is locked by nobody, and
//! goes when the next snapshot is written beside it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::memory::Source;
use super::{FormatError, Snapshot, SnapshotError, format, memory};
use crate::process;

/// Name of the state file.
pub const STATE: &str = "state";
/// Name of the memory file.
pub const MEMORY: &str = "memory";
/// End of the name of a directory that is being written.
const UNFINISHED: &str = ".unfinished";

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { path: path.to_owned(), source }
}

/// Stack of a thread that waits for the disk.
const STACK: usize = 64 << 10;

/// Most snapshots that one can be a change to, one after the other.
pub const MOST_PARENTS: usize = 64;

/// Reads and verifies the state in `dir`, and opens the memory that belongs to it: its parents' first, its own last.
pub fn open(dir: &Path) -> Result<(Snapshot, Vec<Source>), SnapshotError> {
    let (snapshot, source) = open_one(dir)?;
    let mib = snapshot.config.machine.mem_size_mib;
    let mut sources = vec![source];
    let (mut dir, mut parent) = (dir.to_owned(), snapshot.meta.parent.clone());
    while let Some(wanted) = parent {
        let wrong = |problem: String| SnapshotError::Parent { path: dir.clone(), problem };
        if sources.len() > MOST_PARENTS {
            return Err(wrong(format!("more than {MOST_PARENTS} of them")));
        }
        let path = dir.join(&wanted.path);
        let (found, source) = open_one(&path).map_err(|e| wrong(e.to_string()))?;
        if found.meta.memory_id != wanted.memory_id || found.config.machine.mem_size_mib != mib {
            return Err(wrong(format!("{} has been replaced by another", path.display())));
        }
        sources.push(source);
        (dir, parent) = (path, found.meta.parent);
    }
    sources.reverse();
    Ok((snapshot, sources))
}

fn open_one(dir: &Path) -> Result<(Snapshot, Source), SnapshotError> {
    let path = dir.join(STATE);
    let bytes = read_state(&path)?;
    let records = format::parse(&bytes).map_err(|source| SnapshotError::Format { path, source })?;
    let mut snapshot = Snapshot::decode(&records)?;
    let path = dir.join(MEMORY);
    let file = crate::open::regular(&path).map_err(io_error(&path))?;
    let bytes = snapshot.config.machine.mem_size_mib.saturating_mul(1 << 20);
    if !memory::belongs(&file, bytes, &snapshot.meta.memory_id).map_err(io_error(&path))? {
        return Err(SnapshotError::Memory(path));
    }
    let extents = snapshot.extents.take();
    Ok((snapshot, Source { file, extents }))
}

/// The path of the snapshot `parent`, for a child that is to be at `target`: beside each other, both can be moved.
pub fn path_of_parent(parent: &Path, target: &Path) -> io::Result<PathBuf> {
    let parent = fs::canonicalize(parent)?;
    let beside = match target.parent() {
        Some(dir) if dir != Path::new("") => fs::canonicalize(dir)?,
        _ => std::env::current_dir()?,
    };
    Ok(match (parent.parent(), parent.file_name()) {
        (Some(dir), Some(name)) if dir == beside => Path::new("..").join(name),
        _ => parent,
    })
}

/// The file's bytes, as far as a state file can have as many.
fn read_state(path: &Path) -> Result<Vec<u8>, SnapshotError> {
    let file = crate::open::regular(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    if length > format::MAX_STATE {
        return Err(SnapshotError::Format { path: path.to_owned(), source: FormatError::Length(length) });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // One more than there may be: a file that grows meanwhile has another length than its header says.
    file.take(format::MAX_STATE + 1).read_to_end(&mut bytes).map_err(io_error(path))?;
    Ok(bytes)
}

/// A directory that nobody sees before it is finished. Dropped unfinished, it is removed.
#[derive(Debug)]
pub struct Unfinished {
    target: PathBuf,
    path: PathBuf,
    /// Held as a lock.
    dir: File,
    finished: bool,
}

impl Unfinished {
    /// Starts what is to become `target`, whose parent must exist. Removes what killed processes left there.
    pub fn create(target: &Path) -> Result<Self, SnapshotError> {
        let bad = || io_error(target)(io::Error::new(io::ErrorKind::InvalidInput, "not a path of a directory to make"));
        let name = target.file_name().ok_or_else(bad)?;
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        sweep(parent);
        let mut unfinished = OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}{UNFINISHED}", process::id()));
        let path = parent.join(unfinished);
        loop {
            fs::DirBuilder::new().mode(0o700).create(&path).map_err(io_error(&path))?;
            let lock = || -> io::Result<Option<File>> {
                let dir = File::open(&path)?;
                flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
                // Another process may have swept it before it was locked.
                let mine = dir.metadata()?.ino() == fs::metadata(&path)?.ino();
                Ok(mine.then_some(dir))
            };
            match lock() {
                Ok(Some(dir)) => return Ok(Unfinished { target: target.to_owned(), path, dir, finished: false }),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    let _ = fs::remove_dir(&path);
                    return Err(io_error(&path)(e));
                }
            }
        }
    }

    /// Where its files go for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it, for reading and writing.
    pub fn file(&self, name: &str) -> Result<File, SnapshotError> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(io_error(&path))
    }

    /// Writes a whole file, which is not on the disk yet.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<File, SnapshotError> {
        let mut file = self.file(name)?;
        file.write_all(bytes).map_err(io_error(&self.path.join(name)))?;
        Ok(file)
    }

    /// Has `files`, which are all of its files, reach the disk, and which they are. All at the same time: a file system with a journal
    /// then waits for its disk once or twice, and not once for each.
    pub fn sync(&self, files: &[File]) -> Result<(), SnapshotError> {
        let sync = |file: &File| file.sync_all().map_err(io_error(&self.path));
        let Some((first, rest)) = files.split_first() else { return sync(&self.dir) };
        thread::scope(|scope| {
            // Whose thread cannot be had waits for its turn.
            let start = |file| match thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || sync(file)) {
                Ok(thread) => Ok(thread),
                Err(_) => Err(file),
            };
            let started: Vec<_> = rest.iter().chain([&self.dir]).map(start).collect();
            let mut result = sync(first);
            for one in started {
                let one = match one {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    Err(file) => sync(file),
                };
                result = result.and(one);
            }
            result
        })
    }

    /// Makes it the target, in place of a snapshot that is there already. It must be on the disk.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |e: rustix::io::Errno| SnapshotError::Io { path, source: e.into() }
        };
        match renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => self.finished = true,
            // Never in place of something else.
            Err(rustix::io::Errno::EXIST) if self.target.join(STATE).is_file() => {
                renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::EXCHANGE)
                    .map_err(failed(&self.target))?;
                // Dropping this removes what the old one's place has become.
            }
            Err(e) => return Err(failed(&self.target)(e)),
        }
        if let Some(parent) = self.path.parent() {
            let synced = File::open(if parent == Path::new("") { Path::new(".") } else { parent })
                .and_then(|parent| parent.sync_all());
            synced.map_err(io_error(parent))?;
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes what nobody is writing any more in `parent`. Everybody who writes there does that first.
pub fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if !(name.starts_with(b".") && name.ends_with(UNFINISHED.as_bytes())) {
            continue;
        }
        let Ok(dir) = crate::open::directory(&entry.path()) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(target: &Path, content: &str) -> Result<(), SnapshotError> {
        let new = Unfinished::create(target)?;
        new.sync(&[new.write(STATE, content.as_bytes())?, new.file(MEMORY)?])?;
        new.finish()
    }

    #[test]
    fn a_directory_appears_whole_and_replaces_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("one");
        let new = Unfinished::create(&target).unwrap();
        new.sync(&[]).unwrap();
        new.sync(&[new.write(STATE, b"first").unwrap()]).unwrap();
        assert!(!target.exists());
        new.finish().unwrap();
        write(&target, "second").unwrap();
        assert_eq!(fs::read(target.join(STATE)).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["one"]);
    }

    #[test]
    fn what_is_not_finished_goes_and_what_is_no_snapshot_stays() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("thesis"), "x").unwrap();
        assert!(matches!(write(&precious, "state"), Err(SnapshotError::Io { .. })));
        drop(Unfinished::create(&dir.path().join("other")).unwrap());
        assert_eq!((names(dir.path()), names(&precious)), (vec!["precious".into()], vec!["thesis".into()]));
        assert!(Unfinished::create(&dir.path().join("missing/x")).is_err());
        assert!(Unfinished::create(Path::new("/")).is_err());
    }

    #[test]
    fn leftovers_go_unless_somebody_is_at_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".dead.1.unfinished/deep")).unwrap();
        let alive = Unfinished::create(&dir.path().join("alive")).unwrap();
        write(&dir.path().join("new"), "x").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        alive.write(STATE, b"y").unwrap();
        alive.finish().unwrap();
        // What is no directory of ours is not waited for either.
        crate::open::fifo(&dir.path().join(format!(".x{UNFINISHED}")));
        Unfinished::create(&dir.path().join("newer")).unwrap();
        fs::remove_file(dir.path().join(format!(".x{UNFINISHED}"))).unwrap();
        assert_eq!(names(dir.path()), ["alive", "new"]);
    }

    #[test]
    fn whatever_does_not_reach_the_disk_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let new = Unfinished::create(&dir.path().join("new")).unwrap();
        // What cannot be synced at all.
        let broken = || OpenOptions::new().write(true).open("/dev/null").unwrap();
        let fine = |name| new.file(name).unwrap();
        new.sync(&[fine("a"), fine("b")]).unwrap();
        for files in [vec![broken(), fine("c")], vec![fine("d"), broken(), fine("e")], vec![broken()]] {
            assert!(matches!(new.sync(&files), Err(SnapshotError::Io { .. })));
        }
    }

    #[test]
    fn what_is_no_snapshot_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = |dir: &Path| open(dir).unwrap_err().to_string();
        assert!(text(dir.path()).contains("state"));
        fs::write(dir.path().join(STATE), "x").unwrap();
        assert!(text(dir.path()).contains("1 bytes"));
        File::create(dir.path().join(STATE)).unwrap().set_len(1 << 40).unwrap();
        assert!(text(dir.path()).contains("not the length"));
        fs::remove_file(dir.path().join(STATE)).unwrap();
        crate::open::fifo(&dir.path().join(STATE));
        assert!(text(dir.path()).contains("not a regular file"));
    }
}
