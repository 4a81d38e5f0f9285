//! Named volumes: directories of the store that containers share, and that stay when those go.
//!
//! ```text
//! <store>/volumes/.lock        held while volumes come, go and are filled, and until a container's record says that it has one
//! <store>/volumes/.passing/    which go with their containers ([`anonymous`])
//! <store>/volumes/.work/       what whoever has the lock is making or removing; without a holder it is rubbish
//! <store>/volumes/NAME/        record.json; a volume exists from the moment it has its name, complete
//! <store>/volumes/NAME/data/   what containers see
//! ```
//!
//! Lock order: `.lock`, then those of containers.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest_images::{ImageError, PreparedImage};
use rustix::fs::{FlockOperation, flock, syncfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{VolumeFlag, anonymous};
use crate::containers::record::now_ns;
use crate::containers::{self, Containers, ContainersError, Entry, Id};
use crate::failure::sanitize;
use crate::pods;

/// Where they are, in the store.
const VOLUMES: &str = "volumes";
/// What containers see, in the directory of a volume.
const DATA: &str = "data";
/// What is known of one, in its directory.
const RECORD: &str = "record.json";
/// Version of that.
const VERSION: u32 = 1;
/// Longest one that is believed.
const MAX_RECORD: u64 = 1 << 20;
/// What is being made or removed.
const WORK: &str = ".work";

/// What cannot be done with volumes. The words are docker's where docker has some.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// Not a name.
    #[error("invalid volume name ({0}): letters, digits, '_', '.' and '-', up to 63, the first a letter or digit")]
    BadName(String),
    /// There is none.
    #[error("no such volume: {0}; `bulkhead volume ls` lists those there are")]
    NotFound(String),
    /// Containers have it.
    #[error("remove {name}: volume is in use - [{}]; `bulkhead rm` these containers before", shown(.users))]
    InUse {
        /// Which.
        name: String,
        /// Whose it is.
        users: Vec<Id>,
    },
    /// Its record.
    #[error("volume {name}: {RECORD}: {problem}")]
    Record {
        /// Whose.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Who has it cannot be known.
    #[error(transparent)]
    Containers(#[from] ContainersError),
    /// What the image has there cannot be read, or not be written.
    #[error("volume {name}: {source}")]
    Fill {
        /// Which.
        name: String,
        /// Why.
        source: ImageError,
    },
    /// The host said no.
    #[error("volumes: {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

fn shown(users: &[Id]) -> String {
    users.iter().map(Id::short).collect::<Vec<_>>().join(", ")
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> VolumesError {
    let path = path.to_owned();
    move |source| VolumesError::Io { path, source }
}

/// Whether one may be called so.
pub fn check_name(name: &str) -> Result<(), VolumesError> {
    match containers::is_name(name) {
        true => Ok(()),
        false => Err(VolumesError::BadName(sanitize(name).chars().take(160).collect())),
    }
}

/// `record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// When it was made, in nanoseconds since the epoch.
    created_ns: u64,
    labels: BTreeMap<String, String>,
}

/// A volume, as it was at some moment.
#[derive(Debug, Clone)]
pub struct Volume {
    /// What it is called.
    pub name: String,
    /// When it was made, in nanoseconds since the epoch.
    pub created_ns: u64,
    /// What was said of it then.
    pub labels: BTreeMap<String, String>,
    /// The directory that containers see.
    pub data: PathBuf,
    /// The containers that have it, whether they run or not.
    pub users: Vec<Id>,
}

impl Volume {
    /// Its name was made up.
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(anonymous::LABEL)
    }
}

/// The named volumes of a store.
#[derive(Debug, Clone)]
pub struct NamedVolumes {
    store: PathBuf,
}

impl NamedVolumes {
    /// Those of a store; their place is made if it is not there.
    pub fn of(store: &Path) -> Result<Self, VolumesError> {
        let dir = store.join(VOLUMES);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error(&dir))?;
        Ok(NamedVolumes { store: store.to_owned() })
    }

    /// The same, if there has ever been one.
    pub fn existing(store: &Path) -> Option<Self> {
        store.join(VOLUMES).is_dir().then(|| NamedVolumes { store: store.to_owned() })
    }

    /// All of them, by name. One whose record cannot be read is left out, with a warning.
    pub fn list(&self) -> Result<Vec<Volume>, VolumesError> {
        let dir = self.dir();
        let entries = fs::read_dir(&dir).map_err(io_error(&dir))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let (mut users, mut volumes) = (self.known_users()?, Vec::new());
        for name in names.filter(|name| check_name(name).is_ok()) {
            match self.read(&name, users.remove(&name).unwrap_or_default()) {
                Ok(volume) => volumes.push(volume),
                // Removed meanwhile.
                Err(VolumesError::NotFound(_)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// The volume of this name.
    pub fn find(&self, name: &str) -> Result<Volume, VolumesError> {
        check_name(name)?;
        self.read(name, self.known_users()?.remove(name).unwrap_or_default())
    }

    /// The directory that containers see of the volume of this name.
    pub fn data(&self, name: &str) -> Result<PathBuf, VolumesError> {
        check_name(name)?;
        self.read(name, Vec::new()).map(|volume| volume.data)
    }

    /// Takes the lock, waiting for it, and removes what killed processes have left.
    pub fn lock(&self) -> Result<Locked, VolumesError> {
        let (path, file) = self.lock_file()?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other.map_err(|error| io_error(&path)(error.into()))?,
            }
        }
        let locked = Locked { volumes: self.clone(), _lock: file };
        locked.clear()?;
        Ok(locked)
    }

    /// Removes what killed processes have left, and what was to go with containers that are gone, unless somebody is at work.
    pub fn sweep(&self) -> Result<(), VolumesError> {
        if !self.dir().join(WORK).exists() && self.left().is_empty() {
            return Ok(());
        }
        let (path, file) = self.lock_file()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let locked = Locked { volumes: self.clone(), _lock: file };
                locked.clear()?;
                locked.remove_left()
            }
            Err(Errno::WOULDBLOCK) => Ok(()),
            Err(error) => Err(io_error(&path)(error.into())),
        }
    }

    fn lock_file(&self) -> Result<(PathBuf, File), VolumesError> {
        let path = self.dir().join(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.map(|file| (path.clone(), file)).map_err(io_error(&path))
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.store.join(VOLUMES)
    }

    /// Whether there is this container.
    pub(super) fn has_container(&self, id: &Id) -> bool {
        self.store.join(guest_images::CONTAINERS).join(id.as_str()).exists()
    }

    fn read(&self, name: &str, users: Vec<Id>) -> Result<Volume, VolumesError> {
        let dir = self.dir().join(name);
        let bad = |problem: String| VolumesError::Record { name: name.to_owned(), problem };
        let file = match File::open(dir.join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VolumesError::NotFound(name.to_owned()));
            }
            other => other.map_err(|error| bad(error.to_string()))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        match record {
            Record { version: VERSION, created_ns, labels } => {
                Ok(Volume { name: name.to_owned(), created_ns, labels, data: dir.join(DATA), users })
            }
            Record { version, .. } => Err(bad(format!("it has version {version}, this program reads {VERSION}"))),
        }
    }

    /// Which containers have which volumes, of those whose records can be read.
    fn known_users(&self) -> Result<Users, VolumesError> {
        let both = [Containers::existing(&self.store), pods::existing_in(&self.store)];
        let lists = both.into_iter().flatten().map(|containers| containers.list()).collect::<Result<Vec<_>, _>>()?;
        Ok(users(lists.concat()))
    }

    /// Which containers have which volumes. There is no answer if one's record cannot be read.
    fn all_users(&self) -> Result<Users, VolumesError> {
        Ok(users(pods::and_containers(&self.store)?))
    }
}

/// Volumes by name, and who has each.
type Users = BTreeMap<String, Vec<Id>>;

fn users(entries: Vec<Entry>) -> Users {
    let mut users = Users::new();
    for record in entries.into_iter().map(|entry| entry.record) {
        for name in record.flags.volume.iter().filter_map(VolumeFlag::name) {
            let of = users.entry(name.to_owned()).or_default();
            if of.last() != Some(&record.id) {
                of.push(record.id.clone());
            }
        }
    }
    users
}

/// The volumes of a store, none of which comes, goes or gets another container meanwhile, but by this.
#[derive(Debug)]
pub struct Locked {
    volumes: NamedVolumes,
    /// The kernel gives the lock back if this process is killed.
    _lock: File,
}

impl Locked {
    pub(super) fn volumes(&self) -> &NamedVolumes {
        &self.volumes
    }

    /// Makes a volume, or leaves it as it is if it is there, as docker does.
    pub fn create(&self, name: &str, labels: BTreeMap<String, String>) -> Result<(), VolumesError> {
        check_name(name)?;
        let path = self.volumes.dir().join(name);
        if path.exists() {
            return self.volumes.read(name, Vec::new()).map(drop);
        }
        let new = self.work("new")?;
        let data = new.join(DATA);
        DirBuilder::new().mode(0o755).create(&data).map_err(io_error(&data))?;
        let record = Record { version: VERSION, created_ns: now_ns(), labels };
        let file = new.join(RECORD);
        let write = || {
            let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            serde_json::to_writer(&mut out, &record)?;
            out.write_all(b"\n")?;
            out.sync_all()
        };
        write().map_err(io_error(&file))?;
        let publish = || {
            fs::rename(&new, &path)?;
            File::open(self.volumes.dir())?.sync_all()
        };
        publish().map_err(io_error(&path))?;
        self.clear()
    }

    /// Sees to those that a new container is to have: makes those that are missing, and fills each that is empty, and that no other
    /// container has, with what the image has where it goes.
    pub fn prepare(&self, flags: &[VolumeFlag], image: &PreparedImage) -> Result<(), VolumesError> {
        let users = self.volumes.all_users()?;
        for (name, flag) in flags.iter().filter_map(|flag| Some((flag.name()?, flag))) {
            let label = flag.is_anonymous().then(|| (anonymous::LABEL.to_owned(), String::new()));
            self.create(name, label.into_iter().collect())?;
            if !users.contains_key(name) {
                self.fill(name, flag.target(), image)?;
            }
        }
        Ok(())
    }

    /// Makes those that are not there, empty.
    pub fn prepare_empty(&self, flags: &[VolumeFlag]) -> Result<(), VolumesError> {
        flags.iter().filter_map(VolumeFlag::name).try_for_each(|name| self.create(name, BTreeMap::new()).map(drop))
    }

    /// All of it appears at once: nobody has the empty directory that it takes the place of.
    fn fill(&self, name: &str, target: &str, image: &PreparedImage) -> Result<(), VolumesError> {
        let data = self.volumes.dir().join(name).join(DATA);
        if fs::read_dir(&data).map_err(io_error(&data))?.next().is_some() {
            return Ok(());
        }
        let new = self.work("data")?;
        let fill = image.unpack_directory(target.as_bytes(), &new);
        if fill.map_err(|source| VolumesError::Fill { name: name.to_owned(), source })? {
            let publish = || {
                syncfs(File::open(&new)?)?;
                fs::rename(&new, &data)
            };
            publish().map_err(io_error(&data))?;
        }
        self.clear()
    }

    /// Removes one that no container has.
    pub fn remove(&self, name: &str) -> Result<(), VolumesError> {
        let path = self.volumes.dir().join(name);
        check_name(name)?;
        // One whose record cannot be read can be removed all the same.
        if !path.is_dir() {
            return Err(VolumesError::NotFound(name.to_owned()));
        }
        if let Some(users) = self.volumes.all_users()?.remove(name) {
            return Err(VolumesError::InUse { name: name.to_owned(), users });
        }
        let gone = self.work("gone")?;
        // Into a directory of its own: over an empty one it could be put, but not over one with rubbish in it.
        fs::rename(&path, gone.join(name)).map_err(io_error(&path))?;
        self.clear()
    }

    /// A new directory for something that is under way.
    fn work(&self, what: &str) -> Result<PathBuf, VolumesError> {
        let path = self.volumes.dir().join(WORK).join(what);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io_error(&path))?;
        Ok(path)
    }

    /// Nothing is under way any more.
    fn clear(&self) -> Result<(), VolumesError> {
        let path = self.volumes.dir().join(WORK);
        match raze(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// Removes a directory of ours with what guests have made in it. That may be deeper than a path can be long, or than a process can have
/// files open: so each directory is moved up to the top before what is in it goes. And it may be closed to its owner.
fn raze(top: &Path) -> io::Result<()> {
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o700));
    let mut number = 0_u64;
    loop {
        let mut directories = 0;
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            directories += 1;
            open(&entry.path())?;
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if !inner.file_type()?.is_dir() {
                    fs::remove_file(inner.path())?;
                    continue;
                }
                open(&inner.path())?;
                let free = |number: &u64| top.join(number.to_string()).symlink_metadata().is_err();
                number = (number + 1..).find(free).unwrap_or(u64::MAX);
                fs::rename(inner.path(), top.join(number.to_string()))?;
            }
            fs::remove_dir(entry.path())?;
        }
        if directories == 0 {
            return fs::remove_dir(top);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::record::tests::record;

    fn names(volumes: &NamedVolumes) -> Vec<String> {
        volumes.list().unwrap().into_iter().map(|volume| volume.name).collect()
    }

    #[test]
    fn they_come_and_go_but_not_from_containers() {
        let dir = tempfile::tempdir().unwrap();
        assert!(NamedVolumes::existing(dir.path()).is_none());
        let volumes = NamedVolumes::of(dir.path()).unwrap();
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        let locked = volumes.lock().unwrap();
        locked.create("b", labels.clone()).unwrap();
        locked.create("a", BTreeMap::new()).unwrap();
        let before = volumes.find("b").unwrap();
        assert!(before.labels == labels && before.created_ns > 0 && before.users.is_empty() && before.data.is_dir());
        locked.create("b", BTreeMap::new()).unwrap();
        assert_eq!(volumes.find("b").unwrap().labels, labels, "it is there already");
        assert_eq!(names(&volumes), ["a", "b"]);
        for bad in ["", ".work", "..", "a/b", "a b"] {
            assert!(matches!(locked.create(bad, BTreeMap::new()), Err(VolumesError::BadName(_))), "{bad}");
            assert!(matches!(locked.remove(bad), Err(VolumesError::BadName(_))), "{bad}");
        }

        let containers = Containers::of(dir.path()).unwrap();
        let make = |id| {
            let mut record = record(&id);
            record.flags.volume = vec!["b:/x".parse().unwrap(), "b:/y".parse().unwrap(), "/a:/z".parse().unwrap()];
            record
        };
        let (_, held, made) = containers.create(Some("web"), make, |_, _| Ok(())).unwrap();
        held.stays();
        assert_eq!(volumes.find("b").unwrap().users, std::slice::from_ref(&made.id));
        let refused = locked.remove("b").unwrap_err().to_string();
        assert!(
            refused.starts_with("remove b: volume is in use - [") && refused.contains(made.id.short()),
            "{refused}"
        );
        // Of one whose record cannot be read nobody knows what it has.
        let path = dir.path().join("containers").join(made.id.as_str()).join("record.json");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(matches!(locked.remove("a"), Err(VolumesError::Containers(_))));
        fs::write(&path, whole).unwrap();
        containers.remove("web").unwrap();
        for name in ["a", "b"] {
            fs::write(volumes.find(name).unwrap().data.join("file"), "x").unwrap();
            locked.remove(name).unwrap();
            assert!(matches!(locked.remove(name), Err(VolumesError::NotFound(_))));
        }
        assert!(names(&volumes).is_empty());
        assert_eq!(fs::read_dir(dir.path().join(VOLUMES)).unwrap().count(), 1, "the lock");
    }

    #[test]
    fn what_killed_processes_leave_goes_once_nobody_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = NamedVolumes::of(dir.path()).unwrap();
        let rubbish = dir.path().join(VOLUMES).join(WORK).join("new/data");
        let locked = volumes.lock().unwrap();
        fs::create_dir_all(&rubbish).unwrap();
        volumes.sweep().unwrap();
        assert!(rubbish.exists(), "somebody's work");
        drop(locked);
        volumes.sweep().unwrap();
        assert!(!rubbish.exists() && names(&volumes).is_empty());
        fs::create_dir_all(&rubbish).unwrap();
        volumes.lock().unwrap().create("a", BTreeMap::new()).unwrap();
        assert_eq!(names(&volumes), ["a"]);
    }

    /// Deeper than a path can be long, and than this process could have directories open; what is in it leads elsewhere, or is closed.
    #[test]
    fn whatever_a_guest_has_made_can_be_removed() {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        let dir = tempfile::tempdir().unwrap();
        let volumes = NamedVolumes::of(dir.path()).unwrap();
        let locked = volumes.lock().unwrap();
        locked.create("deep", BTreeMap::new()).unwrap();
        let data = volumes.find("deep").unwrap().data;
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, data.join("link")).unwrap();
        for name in ["1", "2", "gone"] {
            fs::create_dir(data.join(name)).unwrap();
            fs::write(data.join(name).join("file"), "x").unwrap();
        }
        let mut here = rustix::fd::OwnedFd::from(File::open(&data).unwrap());
        for _ in 0..3000 {
            mkdirat(&here, "down", Mode::RWXU).unwrap();
            here = openat(&here, "down", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        fs::set_permissions(data.join("down/down"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o000)).unwrap();
        locked.remove("deep").unwrap();
        assert!(names(&volumes).is_empty() && outside.join("file").exists());
        assert_eq!(fs::read_dir(dir.path().join(VOLUMES)).unwrap().count(), 1, "the lock");
    }

    #[test]
    fn a_record_of_another_version_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = NamedVolumes::of(dir.path()).unwrap();
        volumes.lock().unwrap().create("a", BTreeMap::new()).unwrap();
        let path = dir.path().join(VOLUMES).join("a").join(RECORD);
        for (text, word) in [(r#"{"version":2,"created_ns":1,"labels":{}}"#, "version 2"), ("{", "EOF"), ("", "EOF")] {
            fs::write(&path, text).unwrap();
            let error = volumes.find("a").unwrap_err().to_string();
            assert!(error.contains("volume a") && error.contains(word), "{error}");
            assert!(names(&volumes).is_empty());
        }
    }
}
