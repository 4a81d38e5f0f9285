//! The files that tell a container who it is: /etc/hostname, /etc/hosts, /etc/resolv.conf, /etc/machine-id.
//!
//! In nearly every image /etc is an ordinary directory. Then they are put into the writable layer before that is mounted
//! over the others: two of them are there already when the guest learns its name. To write them through overlayfs, which
//! copies the directory up and makes each file aside, costs ten times as much. Where /etc is something else, it is done so
//! all the same: that way every image means what it says.

use crate::failure::Failure;
use crate::root::{self, UPPER_LAYER, ensure_directory, failed, make_directory};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use guest_protocol::{Identity, Start};
use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, chmodat, chownat, ftruncate, llistxattr, lstat, openat, unlinkat,
};
use rustix::io::{self, Errno};
use rustix::process::{Gid, Uid};

const ETC_MODE: u32 = 0o755;
/// What an image says in /etc/machine-id that leaves it to be filled in (machine-id(5)); or nothing.
const UNINITIALIZED: &[u8] = b"uninitialized";

/// Two of the files in the writable layer, still empty.
#[derive(Debug)]
pub struct Names {
    hostname: OwnedFd,
    hosts: OwnedFd,
}

/// What the layers have at /etc, as far as it matters here.
struct Etc {
    /// The directory that is seen, if there is one.
    directory: Option<Stat>,
    /// The machine id is to be filled in.
    wants_machine_id: bool,
}

impl Names {
    /// Makes them, in the working directory.
    ///
    /// # Errors
    /// [`FailureKind::Root`](guest_protocol::FailureKind::Root).
    pub fn new() -> Result<Self, Failure> {
        make_directory(&upper(""))?;
        Ok(Self { hostname: create(&upper("/hostname"))?, hosts: create(&upper("/hosts"))? })
    }

    /// Fills in the writable layer, which is not mounted yet, over the layers, which are. False: it is left empty, and
    /// [`write_through`] is what remains.
    ///
    /// # Errors
    /// [`FailureKind::Root`](guest_protocol::FailureKind::Root).
    pub fn write(self, start: &Start) -> Result<bool, Failure> {
        let Some(etc) = examine(start.root.layers.len()) else {
            for (name, flags) in
                [("/hostname", AtFlags::empty()), ("/hosts", AtFlags::empty()), ("", AtFlags::REMOVEDIR)]
            {
                unlinkat(CWD, upper(name).as_str(), flags).map_err(|error| failed("/etc", error))?;
            }
            return Ok(false);
        };
        if let Some(image) = etc.directory {
            same_owner_and_mode(&image).map_err(|error| failed("/etc", error))?;
        }
        fill(&self.hostname, hostname_file(&start.hostname).as_bytes())
            .map_err(|error| failed("/etc/hostname", error))?;
        fill(&self.hosts, hosts_file(&start.hostname, &start.names.hosts).as_bytes())
            .map_err(|error| failed("/etc/hosts", error))?;
        let put = |name: &str, content: &[u8]| {
            let file = create(&upper(name))?;
            fill(&file, content).map_err(|error| failed(name, error))
        };
        if let Some(content) = &start.names.resolv_conf {
            put("/resolv.conf", content.as_bytes())?;
        }
        if etc.wants_machine_id {
            put("/machine-id", machine_id_file(start.machine_id).as_bytes())?;
        }
        Ok(true)
    }
}

/// What was written, for when the container gets another name.
#[derive(Debug)]
pub struct Own {
    hostname: String,
    hosts: Vec<String>,
    machine_id: [u8; 16],
    /// None: the image's own.
    resolv_conf: Option<String>,
    /// The root cannot be written to through its mount.
    read_only: bool,
}

impl Own {
    /// Of a container that is what `start` says.
    #[must_use]
    pub fn new(start: &Start) -> Self {
        Self {
            hostname: start.hostname.clone(),
            hosts: start.names.hosts.clone(),
            machine_id: start.machine_id,
            resolv_conf: start.names.resolv_conf.clone(),
            read_only: start.root.read_only,
        }
    }

    /// Its host name.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Makes it another one: where a file still says what it was given, it gets its new content. Nothing of the container
    /// may run.
    ///
    /// # Errors
    /// [`FailureKind::Root`](guest_protocol::FailureKind::Root).
    pub fn rename(&mut self, identity: &Identity) -> Result<(), Failure> {
        let before = self.files();
        self.hostname.clone_from(&identity.hostname);
        self.machine_id = identity.machine_id;
        if identity.resolv_conf.is_some() && self.resolv_conf.is_some() {
            self.resolv_conf.clone_from(&identity.resolv_conf);
        }
        if self.read_only {
            root::set_read_only(false)?;
        }
        let mut result = Ok(());
        for ((path, old), (_, new)) in before.into_iter().zip(self.files()) {
            result = result.and(exchange(path, old.as_bytes(), new.as_bytes()).map_err(|error| failed(path, error)));
        }
        if self.read_only {
            root::set_read_only(true)?;
        }
        result
    }

    fn files(&self) -> Vec<(&'static str, String)> {
        let resolv_conf = self.resolv_conf.clone().map(|content| ("/etc/resolv.conf", content));
        let others = [
            ("/etc/hostname", hostname_file(&self.hostname)),
            ("/etc/hosts", hosts_file(&self.hostname, &self.hosts)),
            ("/etc/machine-id", machine_id_file(self.machine_id)),
        ];
        others.into_iter().chain(resolv_conf).collect()
    }
}

/// Gives a file another content, if it has exactly the old one. It stays the same file: whoever has it open goes on with it.
fn exchange(path: &str, old: &[u8], new: &[u8]) -> io::Result<()> {
    if !lstat(path).is_ok_and(|stat| is(&stat, FileType::RegularFile) && stat.st_size as usize == old.len()) {
        return Ok(());
    }
    if root::read_file(path, old.len())? != old {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(CWD, path, flags, Mode::empty())?;
    fill(&file, new)?;
    ftruncate(&file, new.len() as u64)
}

/// Writes the files into the root of this process, where nothing may be mounted yet.
///
/// # Errors
/// [`FailureKind::Root`](guest_protocol::FailureKind::Root): the image has something there that cannot be replaced, or the
/// layer is full.
pub fn write_through(start: &Start) -> Result<(), Failure> {
    replace_file("/etc/hostname", hostname_file(&start.hostname).as_bytes())?;
    replace_file("/etc/hosts", hosts_file(&start.hostname, &start.names.hosts).as_bytes())?;
    if let Some(content) = &start.names.resolv_conf {
        replace_file("/etc/resolv.conf", content.as_bytes())?;
    }
    if wants_machine_id("/etc/machine-id") {
        replace_file("/etc/machine-id", machine_id_file(start.machine_id).as_bytes())?;
    }
    Ok(())
}

/// Looks at /etc in each of the layers. None if one of them has something there that is more than a directory.
fn examine(layers: usize) -> Option<Etc> {
    let mut etc = Etc { directory: None, wants_machine_id: false };
    let mut machine_id_seen = false;
    for layer in (0..layers).rev() {
        let path = format!("{layer}/etc");
        let stat = match lstat(path.as_str()) {
            Err(Errno::NOENT) => continue,
            stat => stat.ok()?,
        };
        // Attributes: it may be opaque to overlayfs, or have access lists.
        if !is(&stat, FileType::Directory) || llistxattr(path.as_str(), &mut [0; 0]) != Ok(0) {
            return None;
        }
        let path = format!("{layer}/etc/machine-id");
        if !machine_id_seen && lstat(path.as_str()).err() != Some(Errno::NOENT) {
            machine_id_seen = true;
            etc.wants_machine_id = wants_machine_id(&path);
        }
        etc.directory.get_or_insert(stat);
    }
    Some(etc)
}

/// Whether there is a file that leaves the machine id to be filled in. An id in it, or no such file, is as the image's maker
/// wanted it.
fn wants_machine_id(path: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut content = [0; 16];
    let is_file = lstat(path).is_ok_and(|stat| is(&stat, FileType::RegularFile));
    let read = || openat(CWD, path, flags, Mode::empty()).and_then(|file| io::read(file, &mut content[..]));
    match is_file.then(read) {
        Some(Ok(count)) => {
            let text = content.get(..count).unwrap_or_default().trim_ascii_end();
            text.is_empty() || text == UNINITIALIZED
        }
        _ => false,
    }
}

/// Gives the writable layer's /etc what the image's own has.
fn same_owner_and_mode(image: &Stat) -> io::Result<()> {
    let mode = image.st_mode & 0o7777;
    if (image.st_uid, image.st_gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(image.st_uid), Gid::from_raw(image.st_gid));
        chownat(CWD, upper("").as_str(), Some(uid), Some(gid), AtFlags::empty())?;
    }
    if mode != ETC_MODE {
        chmodat(CWD, upper("").as_str(), Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(())
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// Where a file of /etc is in the writable layer.
fn upper(name: &str) -> String {
    format!("{UPPER_LAYER}/etc{name}")
}

fn hostname_file(hostname: &str) -> String {
    format!("{hostname}\n")
}

fn machine_id_file(id: [u8; 16]) -> String {
    format!("{:032x}\n", u128::from_be_bytes(id))
}

fn hosts_file(hostname: &str, lines: &[String]) -> String {
    let mut content = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        let _ = writeln!(content, "127.0.1.1\t{hostname}");
    }
    for line in lines {
        content.push_str(line);
        content.push('\n');
    }
    content
}

/// A new file.
fn create(path: &str) -> Result<OwnedFd, Failure> {
    new_file(path).map_err(|error| failed(path, error))
}

fn new_file(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::from_raw_mode(0o644))
}

/// A file with this content, whatever was there: never written through a link, a device or a FIFO.
fn replace_file(path: &str, content: &[u8]) -> Result<(), Failure> {
    let file = match new_file(path) {
        Err(Errno::EXIST) => {
            unlinkat(CWD, path, AtFlags::empty()).map_err(|error| failed(path, error))?;
            new_file(path)
        }
        Err(Errno::NOENT) => {
            ensure_directory("/etc")?;
            new_file(path)
        }
        other => other,
    };
    file.and_then(|file| fill(&file, content)).map_err(|error| failed(path, error))
}

fn fill(file: &OwnedFd, content: &[u8]) -> io::Result<()> {
    let mut left = content;
    while !left.is_empty() {
        match io::write(file, left) {
            Ok(count) => left = left.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
