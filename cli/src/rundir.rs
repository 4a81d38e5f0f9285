//! Run directories: one per VM, with its sockets, its console log and a lock.
//!
//! ```text
//! <root>/.lock            held while a directory is made or removed
//! <root>/<name>/lock      held for as long as whoever has the VM lives; free = nobody's any more
//! <root>/<name>/owned     paths outside the directory that go with it, one a line
//! <root>/.net-<id>        socket of a network's switch; nobody listens there = nobody's any more
//! <root>/.<name>.helpers  processes that go with it, and when each was started, one a line
//! <root>/.<name>.groups   control groups of its processes, one a line, where these cannot change it: what is in such a group is killed
//! ```
//!
//! Lock order: `.lock`, then a VM's `lock`, and that one never waits. [`sweep`] removes what SIGKILL left behind; every
//! verb calls it. It does not end processes but those of the two lists: a VM dies with whoever has it.

mod helpers;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::rand::GetRandomFlags;

use crate::cgroup;
pub use helpers::note_helper;

/// Longest path of a unix socket, in bytes (`sun_path` and its final NUL).
const MAX_SOCKET_PATH: usize = 107;
/// Longest file name put into a run directory: `/vsock2_1025`, with room for a port of ten digits.
const LONGEST_SOCKET: usize = "/vsock2_4294967295".len();
/// What the sockets of networks' switches are called, before the beginning of their ids. No VM's name begins so.
pub const SWITCH_PREFIX: &str = ".net-";
/// Longest name of a VM.
const MAX_NAME: usize = 63;
/// No VM makes more files in its directory.
const MOST_FILES: usize = 64;
/// More than this in `owned` is not ours.
const MAX_OWNED: u64 = 64 << 10;

/// A run directory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Someone runs under this name.
    #[error("the name '{0}' is in use by a running microVM; choose another --name, or leave it out")]
    InUse(String),
    /// Not a name.
    #[error(
        "--name '{0}' is not a name: letters, digits, '_', '.' and '-', up to {MAX_NAME}, the first a letter or digit"
    )]
    BadName(String),
    /// Sockets in it would have paths that are too long.
    #[error(
        "run directory {path}: longer than the {most} bytes that leave room for sockets; set BULKHEAD_RUN to a shorter path"
    )]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// Longest there may be.
        most: usize,
    },
    /// Nothing runs under this name.
    #[error("no container or microVM '{name}' is running; there is: {there_is}")]
    NotRunning {
        /// What was asked for.
        name: String,
        /// What runs.
        there_is: String,
    },
    /// The root belongs to someone else.
    #[error("run directory {0}: belongs to another user, or others may write to it; remove it, or set BULKHEAD_RUN")]
    Foreign(PathBuf),
    /// The host said no.
    #[error("run directory {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |source| RunDirError::Io { path, source }
}

/// A run directory, held. Dropping it removes it.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    name: String,
    /// The lock is this descriptor's; it goes with it, also by SIGKILL.
    _lock: File,
}

impl RunDir {
    /// Makes the directory `root/name` and takes its lock; without a name, one is made up.
    pub fn create(root: &Path, name: Option<&str>) -> Result<Self, RunDirError> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let guard = lock_root(root)?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => random_name().map_err(io_error(root))?,
        };
        let path = root.join(&name);
        let most = MAX_SOCKET_PATH - LONGEST_SOCKET;
        if path.as_os_str().len() > most {
            return Err(RunDirError::TooLong { path, most });
        }
        if path.symlink_metadata().is_ok() {
            match take_lock(&path).map_err(io_error(&path))? {
                Some(lock) => remove(&path, lock).map_err(io_error(&path))?,
                None => return Err(RunDirError::InUse(name)),
            }
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(io_error(&path))?;
        let lock = take_lock(&path).map_err(io_error(&path))?.ok_or_else(|| RunDirError::InUse(name.clone()))?;
        drop(guard);
        Ok(RunDir { root: root.to_owned(), name, _lock: lock })
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(&self.name).join(name)
    }

    /// Notes a socket elsewhere that is to go with this directory, before it is made.
    pub fn own_socket(&self, path: &Path) -> Result<(), RunDirError> {
        let list = self.file("owned");
        let absolute = std::path::absolute(path).map_err(io_error(path))?;
        let mut line = absolute.as_os_str().as_bytes().to_vec();
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&list).map_err(io_error(&list))?;
        file.write_all(&line).map_err(io_error(&list))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What may take its time is not done under a lock that others wait for.
        let _ = helpers::end_helpers(&self.root.join(&self.name));
        // Removing under the lock on the root keeps a sweep from meeting a half-removed directory. What cannot be
        // removed now is the next command's.
        if let Ok(_guard) = lock_root(&self.root) {
            let _ = remove_files(&self.root.join(&self.name));
        }
    }
}

/// Calls `make`, which makes these control groups, once they are listed beside the run directory `dir`, with which they go. Nobody
/// removes it meanwhile; and if it is gone, nothing is made.
pub fn with_groups<T>(dir: &Path, groups: &[PathBuf], make: impl FnOnce() -> T) -> Result<T, RunDirError> {
    let _guard = lock_root(dir.parent().unwrap_or(dir))?;
    dir.symlink_metadata().map_err(io_error(dir))?;
    let list = groups_list(dir);
    // A microVM that is replaced many times has had many.
    let groups = listed(&list).into_iter().filter(|group| group.exists()).chain(groups.iter().cloned());
    let lines: Vec<u8> = groups.flat_map(|group| [group.as_os_str().as_bytes(), b"\n"].concat()).collect();
    write_list(&list, &lines).map_err(io_error(&list))?;
    Ok(make())
}

/// The list of the control groups that go with a run directory.
fn groups_list(dir: &Path) -> PathBuf {
    beside_name(dir, "groups")
}

/// The path of a list that goes with a run directory, and is not in it: what lives in there cannot change it.
fn beside_name(dir: &Path, what: &str) -> PathBuf {
    dir.with_file_name(format!(".{}.{what}", dir.file_name().unwrap_or_default().to_string_lossy()))
}

/// Removes the control groups that go with a run directory, and then their list: without it nobody would find one that cannot be
/// removed now.
fn remove_groups(dir: &Path) -> io::Result<()> {
    let list = groups_list(dir);
    listed(&list).iter().try_for_each(|group| cgroup::remove(group))?;
    remove_list(&list)
}

/// Where a list is written before it takes its place.
fn new_list(list: &Path) -> PathBuf {
    let mut name = list.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Has a list be these lines, or what it was.
fn write_list(list: &Path, lines: &[u8]) -> io::Result<()> {
    let new = new_list(list);
    fs::write(&new, lines)?;
    fs::rename(new, list)
}

/// Removes a list, if it is there.
fn remove_list(list: &Path) -> io::Result<()> {
    for file in [new_list(list).as_path(), list] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the root, if it is not there, for what lives in it beside run directories.
pub fn ensure(root: &Path) -> Result<(), RunDirError> {
    lock_root(root).map(drop)
}

/// Calls `make`, which makes something in the root beside run directories. Nothing is swept meanwhile.
pub fn beside<T>(root: &Path, make: impl FnOnce() -> T) -> Result<T, RunDirError> {
    let _guard = lock_root(root)?;
    Ok(make())
}

/// Removes a socket in the root if nobody listens there.
pub fn remove_if_deaf(root: &Path, socket: &Path) -> Result<(), RunDirError> {
    let _guard = lock_root(root)?;
    if nobody_listens(socket) {
        fs::remove_file(socket).map_err(io_error(socket))?;
    }
    Ok(())
}

/// The running VM of this name, or the only one whose name begins so: its name, and its directory.
pub fn named(root: &Path, word: &str) -> Result<(String, PathBuf), RunDirError> {
    let mut names = running(root)?;
    names.sort();
    let mut fitting = names.iter().filter(|name| !word.is_empty() && name.starts_with(word));
    let found = match (names.iter().find(|name| *name == word), fitting.next(), fitting.next()) {
        (Some(exact), ..) => exact,
        (None, Some(only), None) => only,
        _ => {
            let there_is = if names.is_empty() { "none".into() } else { names.join(", ") };
            let name = crate::failure::sanitize(word).chars().take(160).collect();
            return Err(RunDirError::NotRunning { name, there_is });
        }
    };
    Ok((found.clone(), root.join(found)))
}

/// The names of all VMs whose holders live.
fn running(root: &Path) -> Result<Vec<String>, RunDirError> {
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let _guard = lock_root(root)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(io_error(root))? {
        let path = entry.map_err(io_error(root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| check_name(name).is_ok());
        let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        if let (Some(name), true) = (name, is_dir && take_lock(&path).map_err(io_error(&path))?.is_none()) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes the run directories whose holders are gone. A root that is not there has nothing to sweep.
pub fn sweep(root: &Path) -> Result<(), RunDirError> {
    if !root.is_dir() {
        return Ok(());
    }
    let _guard = lock_root(root)?;
    for entry in fs::read_dir(root).map_err(io_error(root))? {
        let path = entry.map_err(io_error(root))?.path();
        let is_switch = path.file_name().is_some_and(|name| name.as_bytes().starts_with(SWITCH_PREFIX.as_bytes()));
        if is_switch && nobody_listens(&path) {
            fs::remove_file(&path).map_err(io_error(&path))?;
            continue;
        }
        // A file is not a run directory: not ours to judge.
        if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        if let Some(lock) = take_lock(&path).map_err(io_error(&path))? {
            tracing::info!("removing what is left of {}", path.display());
            match remove(&path, lock) {
                // The host's kernel holds one of its processes: a later sweep's business, and no reason to do nothing now.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => tracing::warn!("{error}"),
                result => result.map_err(io_error(&path))?,
            }
        }
    }
    Ok(())
}

/// Makes the root if need be, checks that nobody else can play with it, and locks it.
fn lock_root(root: &Path) -> Result<File, RunDirError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io_error(root))?;
    let meta = root.symlink_metadata().map_err(io_error(root))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(RunDirError::Foreign(root.to_owned()));
    }
    let path = root.join(".lock");
    let lock = open_lock(&path).map_err(io_error(&path))?;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(io_error(&path)(e.into())),
        }
    }
}

/// The lock of a run directory, if it is free. The caller holds the root's.
fn take_lock(dir: &Path) -> io::Result<Option<File>> {
    let lock = open_lock(&dir.join("lock"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Removes a directory whose lock is ours now.
fn remove(path: &Path, _lock: File) -> io::Result<()> {
    remove_files(path)
}

fn remove_files(path: &Path) -> io::Result<()> {
    remove_owned(&path.join("owned"));
    remove_groups(path)?;
    helpers::end_helpers(path)?;
    let mut tries = 0..MOST_FILES;
    loop {
        match fs::remove_dir_all(path) {
            // The VM's process still lives, and makes its sockets.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries.next().is_some() => {}
            result => return result,
        }
    }
}

/// Removes the listed sockets, if they still are sockets and nobody listens there.
fn remove_owned(list: &Path) {
    for path in listed(list) {
        let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
        if is_socket && nobody_listens(&path) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The paths in a list, which need not be there.
fn listed(list: &Path) -> Vec<PathBuf> {
    let mut bytes = Vec::new();
    // Of a list that cannot be read to its end, what has been read counts.
    let _ = File::open(list).and_then(|file| file.take(MAX_OWNED).read_to_end(&mut bytes));
    let lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| PathBuf::from(std::ffi::OsStr::from_bytes(line))).collect()
}

/// Whether a socket refuses connections. Does not wait: a listener with a full queue is one that lives.
fn nobody_listens(path: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let connect = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    connect() == Err(rustix::io::Errno::CONNREFUSED)
}

fn check_name(name: &str) -> Result<(), RunDirError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first && rest && name.len() <= MAX_NAME { Ok(()) } else { Err(RunDirError::BadName(name.to_owned())) }
}

/// Twelve hexadecimal digits, like a container's short id.
fn random_name() -> io::Result<String> {
    let mut bytes = [0u8; 6];
    // The kernel fills requests of up to 256 bytes whole, once it has started.
    let got = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    if got != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn root() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        (dir, root)
    }

    /// The names of the run directories in `root`.
    fn entries(root: &Path) -> Vec<String> {
        let names = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".lock").collect()
    }

    #[test]
    fn a_directory_lives_as_long_as_its_holder() {
        let (_dir, root) = root();
        let run = RunDir::create(&root, None).unwrap();
        assert_eq!(run.name().len(), 12);
        fs::write(run.file("console.log"), "x").unwrap();
        sweep(&root).unwrap();
        assert!(run.file("console.log").exists());
        drop(run);
        assert!(entries(&root).is_empty());
    }

    #[test]
    fn files_that_come_while_a_directory_is_removed_go_with_it() {
        let (_dir, root) = root();
        for _ in 0..20 {
            let run = RunDir::create(&root, None).unwrap();
            let path = root.join(run.name());
            let began = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    began.wait();
                    for file in 0..MOST_FILES {
                        let _ = fs::write(path.join(file.to_string()), "x");
                    }
                });
                began.wait();
                drop(run);
            });
            assert!(entries(&root).is_empty());
        }
    }

    #[test]
    fn what_a_killed_holder_left_is_swept_and_its_name_is_free() {
        let (_dir, root) = root();
        for _ in 0..2 {
            fs::create_dir_all(root.join("dead/deep")).unwrap();
            fs::write(root.join("dead/lock"), "").unwrap();
            drop(RunDir::create(&root, Some("dead")).unwrap());
        }
        fs::create_dir_all(root.join("without-a-lock")).unwrap();
        sweep(&root).unwrap();
        assert!(entries(&root).is_empty());
    }

    #[test]
    fn a_name_is_used_once() {
        let (_dir, root) = root();
        let first = RunDir::create(&root, Some("web")).unwrap();
        assert!(matches!(RunDir::create(&root, Some("web")), Err(RunDirError::InUse(_))));
        drop(first);
        RunDir::create(&root, Some("web")).unwrap();
    }

    #[test]
    fn running_vms_are_found_by_name_and_by_what_only_one_begins_with() {
        let (_dir, root) = root();
        let none = named(&root, "web").unwrap_err().to_string();
        assert!(none.contains("'web'") && none.contains("there is: none"), "{none}");
        let _held: Vec<_> = ["web", "web2", "db"].map(|name| RunDir::create(&root, Some(name)).unwrap()).into();
        fs::create_dir(root.join("dead")).unwrap();
        for (word, name) in [("web", "web"), ("web2", "web2"), ("d", "db")] {
            assert_eq!(named(&root, word).unwrap(), (name.to_owned(), root.join(name)), "{word}");
        }
        for word in ["we", "", "dead", "..", "x/y", "db\n"] {
            let error = named(&root, word).unwrap_err().to_string();
            assert!(error.contains("db, web, web2") && !error.contains('\n'), "{word}: {error}");
        }
    }

    #[test]
    fn names_that_would_leave_the_root_are_refused() {
        let (_dir, root) = root();
        let long = "a".repeat(64);
        for name in ["", "..", ".", "a/b", "/etc", ".lock", "-x", "a b", "ä", "a\n", &long] {
            assert!(matches!(RunDir::create(&root, Some(name)), Err(RunDirError::BadName(_))), "{name:?}");
        }
        let deep = root.join("d".repeat(100));
        assert!(matches!(RunDir::create(&deep, Some("x")), Err(RunDirError::TooLong { .. })));
    }

    #[test]
    fn group_11_a_root_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, root) = root();
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(RunDir::create(&root, None), Err(RunDirError::Foreign(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        assert!(matches!(sweep(&link), Err(RunDirError::Foreign(_))));
    }

    #[test]
    fn owned_sockets_go_unless_someone_listens_there() {
        let (dir, root) = root();
        let (dead, alive, file) = (dir.path().join("dead"), dir.path().join("alive"), dir.path().join("file"));
        drop(UnixListener::bind(&dead).unwrap());
        let _listener = UnixListener::bind(&alive).unwrap();
        fs::write(&file, "precious").unwrap();
        // So busy that a connection would have to wait.
        let busy = dir.path().join("busy");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let (listener, address) = (socket(), SocketAddrUnix::new(&busy).unwrap());
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let connect = || Some(socket()).filter(|socket| rustix::net::connect(socket, &address).is_ok());
        let waiting: Vec<_> = std::iter::from_fn(connect).collect();
        assert!(!waiting.is_empty());
        let run = RunDir::create(&root, None).unwrap();
        for path in [&dead, &alive, &busy, &file, &dir.path().join("missing")] {
            run.own_socket(path).unwrap();
        }
        drop(run);
        assert!(!dead.exists() && alive.exists() && busy.exists() && file.exists());
    }

    #[test]
    fn many_at_once_do_not_disturb_each_other() {
        let (_dir, root) = root();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let run = RunDir::create(&root, None).unwrap();
                        fs::write(run.file("x"), "x").unwrap();
                        sweep(&root).unwrap();
                        assert!(run.file("x").exists());
                    }
                });
            }
        });
        assert!(entries(&root).is_empty());
    }
}
