//! A guest that speaks FUSE by hand, so that it can say what no kernel says.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::testing::{Driver, Part};
use super::config::SharedVolume;
use super::guard::Budget;
use super::*;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;
const RENAME2: u32 = 45;
const ROOT: u64 = 1;

struct Guest {
    driver: Driver,
    dir: tempfile::TempDir,
    /// The root of the volume.
    top: u64,
}

/// The fields of a request's body, little-endian.
fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Guest {
    /// One that has mounted a directory, prepared by `prepare`.
    fn new(read_only: bool, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        prepare(&dir.path().join("shared"));
        let volume = json!({ "name": "0", "path_on_host": dir.path().join("shared"), "is_read_only": read_only });
        let device = (KIND.build)(&json!({ "volumes": [volume] })).unwrap().remove(0);
        Self::of(device, dir)
    }

    fn of(device: Box<dyn VirtioDevice>, dir: tempfile::TempDir) -> Self {
        let mut guest = Guest { driver: Driver::start(device), dir, top: 0 };
        guest.mount();
        guest
    }

    fn mount(&mut self) {
        self.call(INIT, 0, &words(&[7, 31, 0, 0])).unwrap();
        self.top = self.lookup(ROOT, "0").unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("shared").join(name)
    }

    /// A request of this guest's root; the answer's body, or its error.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let (len, uid) = (40 + body.len() as u32, 0);
        let header = [words(&[len, opcode]), longs(&[7, node]), words(&[uid, 0, 1, 0])].concat();
        let done = self.driver.request(1, &[Part::Read(&header), Part::Read(body), Part::Write(16), Part::Write(8192)]);
        assert!(done.written >= 16, "no answer to {opcode}");
        assert_eq!((u32_at(&done.data, 0), u64_at(&done.data, 8)), (done.written, 7));
        match u32_at(&done.data, 4) as i32 {
            0 => Ok(done.data[16..done.written as usize].to_vec()),
            error => Err(-error),
        }
    }

    /// Has no answer.
    fn unmount(&mut self) {
        let header = [words(&[40, DESTROY]), longs(&[7, 0]), words(&[0; 4])].concat();
        assert_eq!(self.driver.request(1, &[Part::Read(&header), Part::Write(16)]).written, 0);
    }

    fn lookup(&mut self, node: u64, text: &str) -> Result<u64, i32> {
        self.call(LOOKUP, node, &name(text)).map(|entry| u64_at(&entry, 0))
    }

    fn forget(&mut self, node: u64, count: u64) {
        let header = [words(&[48, FORGET]), longs(&[7, node]), words(&[0; 4])].concat();
        let done = self.driver.request(0, &[Part::Read(&header), Part::Read(&longs(&[count]))]);
        assert_eq!(done.written, 0);
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.call(OPEN, node, &words(&[flags as u32, 0])).map(|body| u64_at(&body, 0))
    }

    fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        self.call(READ, node, &[longs(&[handle, 0]), words(&[4096, 0, 0, 0, 0, 0])].concat())
    }

    fn write(&mut self, node: u64, handle: u64, flags: i32, data: &[u8]) -> Result<Vec<u8>, i32> {
        let size = data.len() as u32;
        let body = [longs(&[handle, 0]), words(&[size, 0, 0, 0, flags as u32, 0]), data.to_vec()].concat();
        self.call(WRITE, node, &body)
    }

    fn create(&mut self, node: u64, text: &str, flags: i32) -> Result<(u64, u64), i32> {
        let body = [words(&[flags as u32, 0o640, 0, 0]), name(text)].concat();
        self.call(CREATE, node, &body).map(|body| (u64_at(&body, 0), u64_at(&body, 128)))
    }

    fn mknod(&mut self, text: &str, mode: u32, device: u32) -> Result<Vec<u8>, i32> {
        let top = self.top;
        self.call(MKNOD, top, &[words(&[mode, device, 0, 0]), name(text)].concat())
    }

    fn save(&self) -> Result<String, String> {
        self.driver.lock().save().map(|state| serde_json::to_string(&state).unwrap()).map_err(|e| e.to_string())
    }
}

#[test]
fn the_configuration_space_tells_the_tag() {
    let dir = tempfile::tempdir().unwrap();
    let section = json!({ "tag": "t", "volumes": [{ "name": "a", "path_on_host": dir.path() }] });
    let device = (KIND.build)(&section).unwrap().remove(0);
    let (config, info) = (device.config(), device.info());
    assert_eq!((&config[..2], u32_at(config, 36), info.id), (b"t\0".as_slice(), 1, 26));
}

#[test]
fn files_are_read_and_written() {
    let mut guest = Guest::new(false, |dir| fs::write(dir.join("a"), "of the host").unwrap());
    let top = guest.top;
    let a = guest.lookup(top, "a").unwrap();
    let handle = guest.open(a, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(a, handle).unwrap(), b"of the host");
    guest.write(a, handle, libc::O_RDWR, b"OF").unwrap();
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"OF the host");
    let (b, handle) = guest.create(top, "b", libc::O_WRONLY).unwrap();
    guest.write(b, handle, libc::O_WRONLY, &[7; 5000]).unwrap();
    let made = fs::metadata(guest.path("b")).unwrap();
    assert_eq!((made.len(), made.permissions().mode() & 0o777), (5000, 0o640));
    guest.call(MKDIR, top, &[words(&[0o777, 0]), name("d")].concat()).unwrap();
    // The umask of the monitor's own threads is not that of the guest's files.
    assert_eq!(fs::metadata(guest.path("d")).unwrap().permissions().mode() & 0o777, 0o777);
    let moved = [longs(&[guest.lookup(top, "d").unwrap()]), name("b"), name("c")].concat();
    guest.call(RENAME, top, &moved).unwrap();
    assert_eq!(fs::read(guest.path("d/c")).unwrap().len(), 5000);
    guest.call(SYMLINK, top, &[name("l"), name("/etc/passwd")].concat()).unwrap();
    assert_eq!(fs::read_link(guest.path("l")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(guest.create(top, "a", libc::O_WRONLY | libc::O_EXCL), Err(libc::EEXIST));
    assert_eq!(guest.create(top, "a", libc::O_WRONLY | libc::O_TRUNC).unwrap().0, a);
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"");
}

/// As if it had not been asked for: of a file that is open by O_PATH alone the host checks nothing, and what is done with it may come
/// to calls that the device's threads do not make.
#[test]
fn group_13_no_file_is_opened_by_its_path_alone() {
    for read_only in [false, true] {
        let mut guest = Guest::new(read_only, |dir| fs::write(dir.join("a"), "of the host").unwrap());
        let a = guest.lookup(guest.top, "a").unwrap();
        let handle = guest.open(a, libc::O_PATH).unwrap();
        assert_eq!(guest.read(a, handle).unwrap(), b"of the host");
    }
}

#[test]
fn group_13_nothing_changes_what_is_read_only() {
    let mut guest = Guest::new(true, |dir| {
        fs::write(dir.join("a"), "of the host").unwrap();
        fs::create_dir(dir.join("d")).unwrap();
    });
    let top = guest.top;
    let (a, d) = (guest.lookup(top, "a").unwrap(), guest.lookup(top, "d").unwrap());
    let handle = guest.open(a, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(a, handle).unwrap(), b"of the host");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, 3] {
        assert_eq!(guest.open(a, flags), Err(libc::EROFS), "{flags:#o}");
    }
    assert_eq!(guest.create(top, "a", libc::O_RDONLY), Err(libc::EROFS));
    assert_eq!(guest.create(top, "new", libc::O_WRONLY), Err(libc::EROFS));
    let mut attributes = [0; 88];
    // FATTR_MODE, FATTR_UID, FATTR_SIZE.
    attributes[0] = 1 | 2 | 8;
    for (opcode, node, body) in [
        (WRITE, a, [longs(&[handle, 0]), words(&[1, 0, 0, 0, 2, 0]), vec![b'x']].concat()),
        (SETATTR, a, attributes.to_vec()),
        (SETATTR, top, attributes.to_vec()),
        (SYMLINK, top, [name("l"), name("a")].concat()),
        (MKNOD, top, [words(&[libc::S_IFREG | 0o600, 0, 0, 0]), name("n")].concat()),
        (MKDIR, d, [words(&[0o700, 0]), name("n")].concat()),
        (UNLINK, top, name("a")),
        (RMDIR, top, name("d")),
        (RENAME, top, [longs(&[d]), name("a"), name("b")].concat()),
        (RENAME2, top, [longs(&[d]), words(&[0, 0]), name("a"), name("b")].concat()),
        (LINK, d, [longs(&[a]), name("b")].concat()),
        (FALLOCATE, a, [longs(&[handle, 0, 1 << 20]), words(&[0, 0])].concat()),
    ] {
        assert_eq!(guest.call(opcode, node, &body), Err(libc::EROFS), "{opcode}");
    }
    let body = [words(&[1, 0]), name("user.a"), vec![1]].concat();
    assert_eq!(guest.call(SETXATTR, a, &body[..]), Err(libc::ENOSYS));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"of the host");
    let entries = fs::read_dir(guest.path("")).unwrap().count() + fs::read_dir(guest.path("d")).unwrap().count();
    assert_eq!(entries, 2);
}

#[test]
fn group_13_no_name_leads_out_of_the_directory() {
    let mut guest = Guest::new(false, |dir| {
        fs::write(dir.join("../secret"), "secret").unwrap();
        fs::create_dir_all(dir.join("d/e")).unwrap();
        symlink("/etc", dir.join("away")).unwrap();
        symlink("../secret", dir.join("up")).unwrap();
    });
    let top = guest.top;
    let d = guest.lookup(top, "d").unwrap();
    let e = guest.lookup(d, "e").unwrap();
    // What is open stays, and still nothing leads out of it.
    fs::rename(guest.path("d/e"), guest.dir.path().join("e")).unwrap();
    for node in [top, d, e] {
        for text in ["..", ".", "", "../secret", "/etc/passwd", "d/../../secret"] {
            assert_eq!(guest.lookup(node, text).err(), Some(libc::EINVAL), "{text}");
            assert!(guest.create(node, text, libc::O_WRONLY).is_err(), "{text}");
            assert!(guest.call(UNLINK, node, &name(text)).is_err(), "{text}");
            assert!(guest.call(RMDIR, node, &name(text)).is_err(), "{text}");
            assert!(guest.call(RENAME, d, &[longs(&[node]), name("e"), name(text)].concat()).is_err(), "{text}");
        }
    }
    // A link is what it says, and nothing is behind it.
    for (link, target) in [("away", "/etc"), ("up", "../secret")] {
        let node = guest.lookup(top, link).unwrap();
        assert_eq!(guest.call(READLINK, node, &[]).unwrap(), target.as_bytes());
        assert!(guest.lookup(node, "passwd").is_err());
        assert!(guest.open(node, libc::O_RDONLY).is_err() && guest.call(OPENDIR, node, &words(&[0, 0])).is_err());
        assert!(guest.create(top, link, libc::O_WRONLY).is_err());
    }
    assert_eq!(fs::read(guest.dir.path().join("secret")).unwrap(), b"secret");
    // Numbers are not guessed, and those of one volume are not another's.
    for node in [0, 2, top + 1, 2 << 56 | 1, 255 << 56 | 1, u64::MAX] {
        assert!(guest.lookup(node, "etc").is_err(), "{node:#x}");
        let read = guest.open(node, 0).and_then(|handle| guest.read(node, handle));
        assert!(read.is_err(), "{node:#x}");
    }
}

#[test]
fn a_directory_is_the_one_that_was_there_when_the_device_was_made() {
    let mut guest = Guest::new(false, |dir| fs::write(dir.join("a"), "first").unwrap());
    fs::rename(guest.path(""), guest.dir.path().join("moved")).unwrap();
    symlink("/etc", guest.dir.path().join("shared")).unwrap();
    // All of the library's state is made anew.
    guest.driver.reset();
    guest.driver.bring_up(u64::MAX);
    guest.mount();
    let top = guest.top;
    assert!(guest.lookup(top, "a").is_ok() && guest.lookup(top, "passwd").is_err());
}

#[test]
fn devices_are_not_made_and_pipes_not_opened() {
    let mut guest = Guest::new(false, |_| ());
    let top = guest.top;
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK, 0o170_000] {
        assert!(guest.mknod("node", kind | 0o666, 0x103).is_err(), "{kind:#o}");
    }
    let whiteout = [longs(&[top]), words(&[libc::RENAME_WHITEOUT, 0]), name("pipe"), name("else")].concat();
    guest.mknod("pipe", libc::S_IFIFO | 0o666, 0).unwrap();
    assert!(guest.call(RENAME2, top, &whiteout).is_err());
    let pipe = guest.lookup(top, "pipe").unwrap();
    assert!(guest.open(pipe, libc::O_RDWR).is_err() && guest.create(top, "pipe", libc::O_RDWR).is_err());
    let kinds: Vec<_> =
        fs::read_dir(guest.path("")).unwrap().map(|entry| entry.unwrap().file_type().unwrap()).collect();
    assert!(matches!(kinds[..], [kind] if kind.is_fifo()));
}

#[test]
fn of_a_volume_that_is_a_file_there_is_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for (file, content) in [("one", "content"), ("file", "neighbour")] {
        fs::write(dir.path().join(file), content).unwrap();
    }
    let section = json!({ "volumes": [{ "name": "0", "path_on_host": dir.path().join("one") }] });
    let mut guest = Guest::of((KIND.build)(&section).unwrap().remove(0), dir);
    let top = guest.top;
    let file = guest.lookup(top, "file").unwrap();
    let handle = guest.open(file, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(file, handle).unwrap(), b"content");
    assert_eq!(guest.lookup(top, "one"), Err(libc::ENOENT));
    assert_eq!(guest.call(OPENDIR, top, &words(&[0, 0])), Err(libc::EACCES));
    for (opcode, body) in [
        (UNLINK, name("file")),
        (MKDIR, [words(&[0o700, 0]), name("n")].concat()),
        (RENAME, [longs(&[top]), name("file"), name("n")].concat()),
        (LINK, [longs(&[file]), name("n")].concat()),
        (CREATE, [words(&[1, 0o600, 0, 0]), name("n")].concat()),
        (SETATTR, vec![1; 88]),
    ] {
        assert_eq!(guest.call(opcode, top, &body), Err(libc::EPERM), "{opcode}");
    }
}

#[test]
fn a_guest_cannot_change_how_a_file_is_open() {
    let mut guest = Guest::new(false, |dir| fs::write(dir.join("a"), "abc").unwrap());
    let top = guest.top;
    let a = guest.lookup(top, "a").unwrap();
    let handle = guest.open(a, libc::O_RDWR).unwrap();
    for flags in [libc::O_APPEND, libc::O_DIRECT, libc::O_ASYNC, -1] {
        guest.write(a, handle, flags, b"x").unwrap();
        assert_eq!(fs::read(guest.path("a")).unwrap(), b"xbc", "{flags:#o}");
    }
    assert_eq!(guest.write(a, handle + 1, 0, b"x"), Err(libc::EBADF));
    assert_eq!(guest.read(top, handle), Err(libc::EBADF));
}

/// A guest that may have four files.
fn with_four(prepare: impl FnOnce(&Path)) -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    prepare(&shared);
    let directory = fs::File::open(&shared).unwrap();
    let volume = SharedVolume { name: "0".into(), directory, file: None, read_only: false };
    let shared = Shared { volumes: vec![volume], budget: Arc::new(Budget::new(4)) };
    Guest::of(Box::new(Fs::new("t", shared).unwrap()), dir)
}

#[test]
fn what_a_guest_can_have_open_is_bounded() {
    let mut guest = with_four(|dir| (0..9).for_each(|n| fs::write(dir.join(n.to_string()), "x").unwrap()));
    let top = guest.top;
    let nodes: Vec<u64> = (0..4).map(|n| guest.lookup(top, &n.to_string()).unwrap()).collect();
    assert_eq!(guest.lookup(top, "4"), Err(libc::ENFILE));
    assert_eq!(guest.open(nodes[0], 0), Err(libc::ENFILE));
    assert_eq!(guest.create(top, "new", libc::O_WRONLY), Err(libc::ENFILE));
    assert!(!guest.path("new").exists());
    // More is forgotten than was known, or of what never was.
    for (node, count) in [(nodes[1], 1), (nodes[2], u64::MAX), (nodes[2], 1), (12345, 9), (top, 5)] {
        guest.forget(node, count);
    }
    let handle = guest.open(nodes[0], 0).unwrap();
    let listing = guest.call(OPENDIR, top, &words(&[0, 0])).map(|body| u64_at(&body, 0)).unwrap();
    // It tells what it can: nothing, when there is room for nothing.
    let body = [longs(&[listing, 0]), words(&[4096, 0, 0, 0, 0, 0])].concat();
    for _ in 0..20 {
        assert_eq!(guest.call(READDIRPLUS, top, &body), Err(libc::ENFILE));
    }
    assert!(!guest.call(READDIR, top, &body).unwrap().is_empty());
    guest.call(RELEASE, nodes[0], &[longs(&[handle]), words(&[0; 4])].concat()).unwrap();
    assert!(guest.call(RELEASE, nodes[0], &[longs(&[handle]), words(&[0; 4])].concat()).is_err());
    assert!(!guest.call(READDIRPLUS, top, &body).unwrap().is_empty());
    assert_eq!(guest.lookup(top, "new"), Err(libc::ENFILE));
    // A new driver has nothing open.
    guest.driver.reset();
    guest.driver.bring_up(u64::MAX);
    guest.mount();
    let top = guest.top;
    (0..4).for_each(|n| assert!(guest.lookup(top, &n.to_string()).is_ok()));
    guest.unmount();
    guest.mount();
    (0..4).for_each(|n| assert!(guest.lookup(top, &n.to_string()).is_ok()));
}

/// Descriptors of this process in a directory.
fn descriptors_in(dir: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|target| target.starts_with(dir)).count()
}

#[test]
fn what_fails_leaves_nothing_open() {
    let mut guest = with_four(|dir| {
        for n in 0..30 {
            fs::write(dir.join(format!("f{n}")), "x").unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, dir.join(n.to_string()), rustix::fs::FileType::Fifo, 0o600.into(), 0)
                .unwrap();
        }
    });
    let (top, dir) = (guest.top, guest.dir.path().to_owned());
    let before = descriptors_in(&dir);
    for n in 0..30 {
        assert!(guest.create(top, &n.to_string(), libc::O_WRONLY).is_err());
    }
    let listing = guest.call(OPENDIR, top, &words(&[0, 0])).map(|body| u64_at(&body, 0)).unwrap();
    let body = [longs(&[listing, 0]), words(&[4096, 0, 0, 0, 0, 0])].concat();
    for _ in 0..30 {
        let _ = guest.call(READDIRPLUS, top, &body);
    }
    assert!(descriptors_in(&dir) <= before + 4, "{} and {before} before", descriptors_in(&dir));
}

#[test]
fn a_device_is_saved_only_while_nothing_is_open() {
    let mut guest = Guest::new(false, |_| ());
    let error = guest.save().unwrap_err();
    assert!(error.contains("fs") && error.contains("mounted"), "{error}");
    guest.unmount();
    guest.save().unwrap();
    guest.mount();
    guest.driver.reset();
    guest.save().unwrap();
}

#[test]
fn nonsense_is_answered_or_given_back() {
    let mut guest = Guest::new(false, |_| ());
    let top = guest.top;
    for opcode in (0..60).chain([1 << 20, u32::MAX]).filter(|opcode| ![FORGET, 42, INIT, DESTROY].contains(opcode)) {
        for len in [0, 1, 7, 8, 16, 24, 40, 64, 88] {
            for fill in [0u8, 0xff, b'a'] {
                let (header, body) =
                    ([words(&[40 + len as u32, opcode]), longs(&[7, top]), words(&[0; 4])].concat(), vec![fill; len]);
                let done = guest.driver.request(1, &[Part::Read(&header), Part::Read(&body), Part::Write(16)]);
                assert!(done.written <= 16, "{opcode}");
            }
        }
    }
    // Lengths that lie, and chains with no room for an answer.
    for len in [0, 39, 41, 1 << 20, u32::MAX] {
        for opcode in [LOOKUP, GETATTR, WRITE, SETXATTR, 42] {
            let header = [words(&[len, opcode]), longs(&[7, top]), words(&[0; 4])].concat();
            for room in [0, 15, 16, 8192] {
                guest.driver.request(1, &[Part::Read(&header), Part::Write(room)]);
            }
        }
    }
    guest.lookup(top, "none").unwrap_err();
}

/// Others that go on from the same snapshot have volumes.
#[test]
fn without_a_volume_each_request_is_refused_and_nobody_works() {
    let dir = tempfile::tempdir().unwrap();
    let none = json!({ "volumes": [] });
    assert!(!(KIND.works)(&none) && (KIND.works)(&json!({ "volumes": [{ "name": "0", "path_on_host": dir.path() }] })));
    let device = (KIND.build)(&none).unwrap().remove(0);
    let mut guest = Guest { driver: Driver::start(device), dir, top: ROOT };
    for opcode in [INIT, LOOKUP, GETATTR, OPEN, WRITE, 42, u32::MAX] {
        assert_eq!(guest.call(opcode, ROOT, &[0; 64]), Err(libc::ENODEV), "{opcode}");
    }
    guest.forget(ROOT, 1);
    for (header, room) in [(40, 15), (39, 16), (0, 16)] {
        assert_eq!(guest.driver.request(1, &[Part::Read(&vec![0; header]), Part::Write(room)]).written, 0);
    }
    guest.save().unwrap();
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let volume = |name: &str| json!({ "name": name, "path_on_host": dir.path() });
    let many: Vec<Value> = (0..256).map(|n: u32| volume(&n.to_string())).collect();
    for (section, word) in [
        (json!({ "volumes": [volume("a"), volume("a")] }), "two volumes"),
        (json!({ "volumes": [volume("a/b")] }), "a/b"),
        (json!({ "volumes": [volume("..")] }), ".."),
        (json!({ "volumes": [volume("")] }), "name"),
        (json!({ "volumes": many }), "256"),
        (json!({ "tag": "", "volumes": [] }), "tag"),
        (json!({ "tag": "x".repeat(37), "volumes": [] }), "tag"),
        (json!({ "volumes": [{ "name": "a", "path_on_host": "/none" }] }), "/none"),
        (json!({ "volumes": [{ "name": "a", "path_on_host": "/dev/null" }] }), "neither"),
    ] {
        let error = (KIND.build)(&section).err().unwrap().to_string();
        assert!(error.contains(word) && error.starts_with("fs"), "{error}");
    }
    let mut section = Value::Null;
    (KIND.parse_flag)("a=/x,ro", &mut section).unwrap();
    (KIND.parse_flag)("b=/y=z", &mut section).unwrap();
    assert_eq!(section["volumes"][0], json!({ "name": "a", "path_on_host": "/x", "is_read_only": true }));
    assert_eq!(section["volumes"][1], json!({ "name": "b", "path_on_host": "/y=z", "is_read_only": false }));
    for flag in ["", "a", "=x", "a=", "a=,ro"] {
        (KIND.parse_flag)(flag, &mut section).unwrap_err();
    }
}
