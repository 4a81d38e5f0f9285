//! Templates for warm starts: snapshots of microVMs whose init is ready and that have no image yet.
//!
//! `<store>/templates/<key>` is a snapshot (docs/snapshot-format.md). The key stands for everything that the memory in it depends
//! on, so a template is never stale, only unused: the least recently used go when there are too many. A snapshot appears whole; one
//! that is removed stays with the VMs that run on it.
//!
//! `<store>/templates/.<key>.making` is locked by whoever makes that one ([`Making`]): of runs that are the first of their kind at the
//! same time, one boots, and the others wait for what it leaves.

mod making;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use guest_images::Digest;
use serde::Serialize;
use vmm::VmConfig;
use vmm::config::{Paging, SnapshotSource};
use vmm::cpuid::Model;
use vmm::host::{self, KvmKind};

use crate::monitor;
use crate::paths::disk_bytes;

pub use making::Making;

/// Raised when templates of older versions of this program will not do although the program's file is the same.
const VERSION: u32 = 1;
/// Most templates that are kept.
const MOST: usize = 16;
/// Most bytes on disk that all of them may take.
const MOST_BYTES: u64 = 2 << 30;

/// What a template depends on.
#[derive(Debug, Serialize)]
pub struct Ingredients<'a> {
    version: u32,
    program: FileId,
    monitor: FileId,
    kernel: FileId,
    boot_args: &'a str,
    /// Kinds of devices: what each of them has of this host comes with the machine that goes on.
    devices: Vec<&'a str>,
    vcpus: u8,
    memory_mib: u64,
    /// How many places it has for containers, if it is a pod's.
    drives: usize,
    kvm: KvmKind,
    cpu: Model,
    host_kernel: String,
}

/// A file's content, as far as that can be told without reading it, wherever it is mounted.
#[derive(Debug, Serialize)]
struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_ns: i128,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        // Of the inode, not of the content: a content put back with an old time stamp is a change, too.
        let changed_ns = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        Ok(FileId { device: meta.dev(), inode: meta.ino(), bytes: meta.size(), changed_ns })
    }
}

impl<'a> Ingredients<'a> {
    /// Those of a machine that is to boot. `None` if the machine does not boot, or a file cannot be looked at.
    pub fn of(config: &'a VmConfig) -> Option<Self> {
        let source = config.boot_source.as_ref()?;
        let release = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        Some(Ingredients {
            version: VERSION,
            program: FileId::of(Path::new("/proc/self/exe")).ok()?,
            monitor: FileId::of(&monitor::program()).ok()?,
            kernel: FileId::of(&source.kernel_image_path).ok()?,
            boot_args: &source.boot_args,
            devices: config.devices.keys().map(String::as_str).collect(),
            vcpus: config.machine.vcpu_count,
            memory_mib: config.machine.mem_size_mib,
            drives: config.devices.get("drives").and_then(|drives| drives.as_array()).map_or(0, Vec::len),
            kvm: host::kind(),
            cpu: Model::host(),
            host_kernel: release("osrelease") + &release("version"),
        })
    }

    fn key(&self) -> Option<String> {
        let text = serde_json::to_vec(self).ok()?;
        Some(Digest::of(&text).hex().chars().take(32).collect())
    }
}

/// A template that is there, or could be.
#[derive(Debug)]
pub struct Template {
    path: PathBuf,
    found: bool,
    /// A microVM has not come to life from it.
    doubted: bool,
}

impl Template {
    /// Where to go on from, if it is there.
    pub fn source(&self) -> Option<SnapshotSource> {
        self.found.then(|| SnapshotSource { path: self.path.clone(), resume: true, paging: Paging::Map })
    }

    /// A microVM has not come to life from it: this run takes another way. It stays until that way has worked, since the fault may be
    /// this host's ([`Template::make_room`]).
    pub fn doubt(&mut self) {
        (self.found, self.doubted) = (false, true);
    }

    /// Away with one that is in doubt: another takes its place.
    pub fn make_room(&self) {
        if self.doubted {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The templates of a store.
#[derive(Debug)]
pub struct Templates {
    dir: PathBuf,
}

/// One of them, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was last used, in nanoseconds since the epoch.
    pub used_ns: u64,
}

/// Where they are in a store.
const DIRECTORY: &str = "templates";

/// Their place in a store, which is there from now on.
pub fn directory(store: &Path) -> io::Result<PathBuf> {
    let dir = store.join(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    Ok(dir)
}

impl Templates {
    /// Those in `store`, whose directory exists.
    pub fn of(store: &Path) -> io::Result<Self> {
        let dir = directory(store)?;
        // What a process that was killed while it made one has left.
        vmm::snapshot::files::sweep(&dir);
        making::sweep(&dir);
        Ok(Templates { dir })
    }

    /// The template for a machine, there or not; marked as used.
    pub fn find(&self, ingredients: &Ingredients<'_>) -> Option<Template> {
        let path = self.dir.join(ingredients.key()?);
        let state = File::options().write(true).open(path.join("state"));
        let found = state.and_then(|file| file.set_modified(SystemTime::now())).is_ok();
        Some(Template { path, found, doubted: false })
    }

    /// The right to make `template`. Whoever is making it is waited for, no longer than `patience`: then it is there, or it is this
    /// one's turn. `None`: it is there ([`Template::source`]), or it cannot be made now.
    pub fn make(&self, template: &mut Template, patience: Duration) -> Option<Making> {
        if template.found {
            return None;
        }
        let making = Making::begin(&template.path, Instant::now() + patience)?;
        template.found = !template.doubted && template.path.join("state").exists();
        (!template.found).then_some(making)
    }

    /// All of them, the last used first.
    pub fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(key) = entry.file_name().into_string() else { continue };
            let Ok(state) = fs::metadata(entry.path().join("state")) else { continue };
            if key.starts_with('.') {
                continue;
            }
            let used = state.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let used_ns = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
            entries.push(Entry { key, bytes: disk_bytes(&entry.path()), used_ns });
        }
        entries.sort_by(|a, b| b.used_ns.cmp(&a.used_ns).then_with(|| a.key.cmp(&b.key)));
        Ok(entries)
    }

    /// Removes the least recently used, until there are not too many. To be called when one was made.
    pub fn trim(&self) -> io::Result<()> {
        self.remove_beyond(MOST, MOST_BYTES).map(drop)
    }

    /// Removes all; returns the bytes that this gives back once no VM runs on them.
    pub fn prune(&self) -> io::Result<u64> {
        self.remove_beyond(0, 0)
    }

    fn remove_beyond(&self, most: usize, most_bytes: u64) -> io::Result<u64> {
        let (mut kept, mut freed) = (0, 0);
        for (index, entry) in self.list()?.into_iter().enumerate() {
            if index < most && kept + entry.bytes <= most_bytes {
                kept += entry.bytes;
                continue;
            }
            // Two at once: then the other one has removed it.
            match fs::remove_dir_all(self.dir.join(&entry.key)) {
                Ok(()) => freed += entry.bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(templates: &Templates, key: &str, bytes: usize, used_s: u64) {
        let dir = templates.dir.join(key);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("memory"), vec![1; bytes]).unwrap();
        let state = File::create(dir.join("state")).unwrap();
        state.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used_s)).unwrap();
    }

    fn add_at(path: &Path) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("state"), "x").unwrap();
    }

    fn keys(templates: &Templates) -> Vec<String> {
        templates.list().unwrap().into_iter().map(|entry| entry.key).collect()
    }

    fn config(kernel: &Path, memory_mib: u64) -> VmConfig {
        let json = serde_json::json!({ "boot-source": { "kernel_image_path": kernel },
                                       "machine-config": { "mem_size_mib": memory_mib } });
        VmConfig::from_json(&json.to_string()).unwrap()
    }

    #[test]
    fn a_template_is_found_again_unless_something_it_depends_on_changes() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::of(dir.path()).unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, "one").unwrap();
        let find = |memory| templates.find(&Ingredients::of(&config(&kernel, memory)).unwrap()).unwrap();
        let mut first = find(128);
        assert!(first.source().is_none());
        let making = templates.make(&mut first, Duration::ZERO).unwrap();
        assert!(templates.make(&mut find(128), Duration::ZERO).is_none(), "two make it at once");
        assert!(templates.make(&mut find(256), Duration::ZERO).is_some(), "it is another");
        add_at(making.target());
        drop(making);
        assert!(templates.make(&mut first, Duration::ZERO).is_none(), "it is there already");
        assert_eq!(find(128).source().unwrap().path, first.path);
        assert!(find(256).source().is_none());
        fs::write(&kernel, "another").unwrap();
        assert!(find(128).source().is_none());
        first.make_room();
        assert!(
            first.path.exists() && templates.make(&mut first, Duration::ZERO).is_none(),
            "nothing is wrong with it"
        );
        first.doubt();
        assert!(first.source().is_none() && templates.make(&mut first, Duration::ZERO).is_some());
        assert_eq!(find(128).source(), None, "another kernel");
        assert!(first.path.exists(), "until there is another");
        first.make_room();
        assert!(!first.path.exists());
        assert!(Ingredients::of(&config(Path::new("/nonexistent"), 128)).is_none());
    }

    #[test]
    fn who_waits_has_what_the_other_makes_or_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::of(dir.path()).unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, "one").unwrap();
        let find = || templates.find(&Ingredients::of(&config(&kernel, 128)).unwrap()).unwrap();
        let turn = |makes: bool| {
            let making = templates.make(&mut find(), Duration::ZERO).unwrap();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let mut template = find();
                    let making = templates.make(&mut template, Duration::from_secs(600));
                    (making.is_some(), template.source().is_some())
                });
                if makes {
                    add_at(making.target());
                }
                drop(making);
                waiting.join().unwrap()
            })
        };
        assert_eq!(turn(false), (true, false));
        assert_eq!(turn(true), (false, true));
        // A mark that nobody holds any more goes with the next command; nothing else is left.
        let marks = || fs::read_dir(&templates.dir).unwrap().flatten().filter(|entry| entry.path().is_file()).count();
        assert_eq!(marks(), 0);
        fs::write(templates.dir.join(".left.making"), "").unwrap();
        Templates::of(dir.path()).unwrap();
        assert_eq!(marks(), 0);
    }

    #[test]
    fn the_least_recently_used_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::of(dir.path()).unwrap();
        for (key, used) in [("b", 20), ("a", 30), ("c", 10)] {
            add(&templates, key, 8192, used);
        }
        fs::create_dir(templates.dir.join(".d.1.unfinished")).unwrap();
        assert_eq!(keys(&templates), ["a", "b", "c"]);
        templates.trim().unwrap();
        assert_eq!(keys(&templates).len(), 3);
        assert!(templates.remove_beyond(2, 1 << 20).unwrap() >= 8192);
        assert_eq!(keys(&templates), ["a", "b"]);
        templates.remove_beyond(2, 8192).unwrap();
        assert_eq!(keys(&templates), ["a"]);
        assert!(templates.prune().unwrap() >= 8192);
        assert_eq!(keys(&templates), [""; 0]);
    }
}
