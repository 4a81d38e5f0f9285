//! A disk in a qcow2 image: the format is the library's, `imago`.
//!
//! The image is opened with the first job, so that a device that takes the place of another on the same file does not know its
//! tables from before ([`Image::settle`]). An image that leads to other files (a backing file, a file with the data) is refused:
//! whoever wrote it would choose what of the host the guest reads. Data passes through buffers of ours, as guests change their
//! memory at any time and the library does not expect that.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock};

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, file::File as Storage};
use vm_memory::VolatileSlice;

use super::engine::{Job, List, Store, Work};

/// Most bytes that pass at a time: a multiple of most images' clusters.
const BOUNCE: usize = 256 << 10;

type Access = FormatAccess<Storage>;

/// An image.
pub struct Image {
    file: File,
    writable: bool,
    bytes: u64,
    /// Locked for writing where places of the image change their meaning: nobody may be on the way to one then.
    state: RwLock<State>,
}

enum State {
    Closed,
    Open(Access),
    /// A mistake in the library: what it knows may be wrong, and is not written.
    Broken,
}

impl Image {
    /// An image in `file`, which is writable if `writable` says so. Nothing is written yet.
    pub fn new(file: File, writable: bool) -> io::Result<Self> {
        let bytes = open(&file, false)?.size();
        if writable {
            // What keeps an image from being written to is not found out by reading it.
            drop(open(&file, true)?);
        }
        Ok(Image { file, writable, bytes, state: RwLock::new(State::Closed) })
    }

    /// Bytes of the disk, fixed for its life here.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Brings all that finished jobs have changed into the file, so that others see it whole.
    pub fn settle(&self) -> io::Result<()> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Closed => Ok(()),
            State::Open(image) => image.flush(),
            State::Broken => Err(io::Error::other("a mistake in the library")),
        }
    }

    /// Does something with the image, alone if `alone` says so.
    fn with(&self, alone: bool, work: impl Fn(&mut Handle) -> io::Result<i32>) -> io::Result<i32> {
        loop {
            if !alone && let State::Open(image) = &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
                return work(&mut Handle::Shared(image));
            }
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            match &mut *state {
                State::Closed => *state = State::Open(open(&self.file, self.writable)?),
                State::Open(image) if alone => return work(&mut Handle::Alone(image)),
                // Somebody else was first.
                State::Open(_) => {}
                State::Broken => return Err(io::Error::other("a mistake in the library")),
            }
        }
    }

    /// # Safety
    /// As that of [`Store::carry_out`].
    unsafe fn try_job(&self, job: &Job) -> io::Result<i32> {
        let punches = |mode: i32| mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let alone = matches!(job.work, Work::Allocate { mode, .. } if punches(mode));
        self.with(alone, |handle| match (&job.work, handle) {
            // SAFETY: the caller's promise.
            (Work::Read(list), handle) => unsafe { read(handle.get(), list, job.offset) },
            // SAFETY: the caller's promise.
            (Work::Write(list), handle) => unsafe { write(handle.get(), list, job.offset) },
            (Work::Sync, handle) => {
                let image = handle.get();
                image.flush().and_then(|()| image.sync()).map(|()| 0)
            }
            (Work::Allocate { len, .. }, Handle::Alone(image)) => image.discard_to_zero(job.offset, *len).map(|()| 0),
            (Work::Allocate { len, .. }, Handle::Shared(image)) => image.write_zeroes(job.offset, *len).map(|()| 0),
        })
    }
}

/// Access to the open image.
enum Handle<'a> {
    Shared(&'a Access),
    Alone(&'a mut Access),
}

impl Handle<'_> {
    fn get(&self) -> &Access {
        match self {
            Handle::Shared(image) => image,
            Handle::Alone(image) => image,
        }
    }
}

fn open(file: &File, writable: bool) -> io::Result<Access> {
    let storage = Storage::try_from(file.try_clone()?)?;
    let builder = Qcow2::<Storage>::builder(storage).backing(None).data_file(None).write(writable);
    let image = builder.open(DenyImplicitOpenGate::default())?;
    if image.implicit_backing_file().is_some() || image.requires_external_data_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(FormatAccess::new(image))
}

/// The memory of a list.
///
/// # Safety
/// The list and the memory it names are there as long as what is returned.
unsafe fn slices<'a>(list: &List) -> impl Iterator<Item = VolatileSlice<'a>> {
    // SAFETY: the caller's promise.
    let entries = unsafe { std::slice::from_raw_parts(list.first, list.count as usize) };
    // SAFETY: the caller's promise.
    entries.iter().map(|entry| unsafe { VolatileSlice::new(entry.iov_base.cast(), entry.iov_len) })
}

/// Calls `move_part` for parts of the list's memory of [`BOUNCE`] bytes at most, in order, each with a buffer as long as it and its
/// offset in the list; returns the bytes of the list.
///
/// # Safety
/// As that of [`slices`], until it returns.
unsafe fn in_parts(
    list: &List,
    mut move_part: impl FnMut(&mut dyn Iterator<Item = VolatileSlice<'_>>, &mut [u8], u64) -> io::Result<()>,
) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let total: usize = unsafe { slices(list) }.map(|slice| slice.len()).sum();
    let mut buffer = vec![0; total.min(BOUNCE)];
    let mut done = 0;
    while done < total {
        let len = BOUNCE.min(total - done);
        let (mut skip, mut left) = (done, len);
        // SAFETY: the caller's promise.
        let mut part = unsafe { slices(list) }.filter_map(|slice| {
            let from = skip.min(slice.len());
            skip -= from;
            let take = left.min(slice.len() - from);
            left -= take;
            slice.subslice(from, take).ok().filter(|_| take > 0)
        });
        move_part(&mut part, &mut buffer[..len], done as u64)?;
        done += len;
    }
    Ok(total as i32)
}

/// # Safety
/// As that of [`in_parts`].
unsafe fn read(image: &Access, list: &List, offset: u64) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    unsafe {
        in_parts(list, |part, buffer, at| {
            image.read(&mut *buffer, offset + at)?;
            let mut rest = &*buffer;
            part.for_each(|slice| {
                let (now, later) = rest.split_at(slice.len().min(rest.len()));
                slice.copy_from(now);
                rest = later;
            });
            Ok(())
        })
    }
}

/// # Safety
/// As that of [`in_parts`].
unsafe fn write(image: &Access, list: &List, offset: u64) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    unsafe {
        in_parts(list, |part, buffer, at| {
            let mut filled = 0;
            part.for_each(|slice| filled += slice.copy_to(&mut buffer[filled..]));
            image.write(&*buffer, offset + at)
        })
    }
}

impl Store for Image {
    unsafe fn carry_out(&self, job: &Job) -> i32 {
        // SAFETY: the caller's promise. Whatever a panic leaves behind is not used again.
        match catch_unwind(AssertUnwindSafe(|| unsafe { self.try_job(job) })) {
            Ok(Ok(moved)) => moved,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Unsupported => -libc::EOPNOTSUPP,
            Ok(Err(error)) => -error.raw_os_error().unwrap_or(libc::EIO),
            Err(_) => {
                tracing::error!("a qcow2 image: a mistake in the library; the disk is not used any more");
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                // It would write what it knows.
                std::mem::forget(std::mem::replace(&mut *state, State::Broken));
                -libc::EIO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use imago::FormatCreateBuilder;
    use serde_json::{Value, json};

    use super::super::KIND;
    use super::super::tests::{DISCARD, WRITE_ZEROES, flush, pattern, read, segment, status, write};
    use super::*;
    use crate::virtio::testing::{Driver, Part};

    const BYTES: u64 = 8 << 20;

    /// An empty image, as the library makes it.
    fn image(dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("disk.qcow2");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        Qcow2::<Storage>::create_builder(file.try_into().unwrap()).size(BYTES).create().unwrap();
        path
    }

    fn section(path: &Path) -> Value {
        json!([{ "drive_id": "d", "path_on_host": path, "format": "qcow2", "num_queues": 2 }])
    }

    fn drive(section: &Value) -> Driver {
        Driver::start((KIND.build)(section).unwrap().remove(0))
    }

    fn error(section: &Value) -> String {
        (KIND.build)(section).err().unwrap().to_string()
    }

    /// What QEMU's tool says, if it is there: the reference.
    fn qemu_img(arguments: &[&str]) -> Option<String> {
        let output = match Command::new("qemu-img").args(arguments).output() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                println!("SKIP a part: no qemu-img");
                return None;
            }
            output => output.unwrap(),
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
        Some(text)
    }

    fn assert_sound(path: &Path) {
        let Some(text) = qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]) else { return };
        assert!(text.contains("No errors were found"), "{text}");
    }

    #[test]
    fn what_is_written_is_read_back_here_and_by_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let mut driver = drive(&section(&path));
        assert_eq!(driver.get(0x100), (BYTES / 512) as u32, "capacity in sectors");
        let data = pattern(300 << 10);
        assert_eq!(status(&write(&mut driver, 3, &data)), 0);
        assert_eq!(status(&write(&mut driver, BYTES / 512 - 1, &[7; 512])), 0);
        let done = read(&mut driver, 3, data.len() as u32);
        assert!(status(&done) == 0 && done.data[..data.len()] == data);
        assert_eq!(read(&mut driver, 1 << 13, 512).data, [0; 513], "nothing there yet");
        assert_eq!(status(&read(&mut driver, BYTES / 512, 512)), 1);
        assert_eq!(segment(&mut driver, WRITE_ZEROES, (8, 16), 0), 0);
        assert_eq!(segment(&mut driver, DISCARD, (128, 256), 0), 0);
        assert_eq!(status(&flush(&mut driver)), 0);
        let mut expect = vec![0; BYTES as usize];
        expect[3 * 512..][..data.len()].copy_from_slice(&data);
        expect[8 * 512..24 * 512].fill(0);
        expect[128 * 512..384 * 512].fill(0);
        expect[BYTES as usize - 512..].fill(7);
        // Flushed, and not closed.
        let raw = dir.path().join("raw");
        let arguments = ["convert", "-U", "-f", "qcow2", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()];
        if qemu_img(&arguments).is_some() {
            assert!(std::fs::read(&raw).unwrap() == expect, "QEMU reads something else");
        }
        assert_sound(&path);
        drop(driver);
        assert_sound(&path);
        let mut driver = drive(&section(&path));
        let done = read(&mut driver, 0, BYTES as u32);
        assert!(done.data[..BYTES as usize] == expect && status(&done) == 0);
    }

    #[test]
    fn one_that_qemu_made_is_used_and_left_sound() {
        let dir = tempfile::tempdir().unwrap();
        for (name, options) in [("old", "compat=0.10"), ("small", "cluster_size=512"), ("lazy", "lazy_refcounts=on")] {
            let path = dir.path().join(name);
            if qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, path.to_str().unwrap(), "8M"]).is_none() {
                return;
            }
            let mut driver = drive(&section(&path));
            let data = pattern(100 << 10);
            assert_eq!(status(&write(&mut driver, 77, &data)), 0, "{name}");
            for kind in [DISCARD, WRITE_ZEROES] {
                assert_eq!(segment(&mut driver, kind, (100, 50), 0), 0, "{name}");
            }
            assert!(read(&mut driver, 77, 512).data[..512] == data[..512], "{name}");
            assert_eq!(read(&mut driver, 149, 512).data[..512], [0; 512], "{name}");
            assert_eq!(status(&flush(&mut driver)), 0, "{name}");
            drop(driver);
            assert_sound(&path);
        }
    }

    #[test]
    fn a_read_only_image_is_not_written_whatever_the_guest_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let before = std::fs::read(&path).unwrap();
        let mut section = section(&path);
        section[0]["is_read_only"] = true.into();
        let mut driver = drive(&section);
        // Where reads of files are answered on the spot, too.
        driver.lock().answer_at_once();
        assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 1);
        assert_eq!(segment(&mut driver, DISCARD, (0, 8), 0), 1);
        assert_eq!((status(&flush(&mut driver)), read(&mut driver, 0, 512).data), (0, vec![0; 513]));
        drop(driver);
        assert!(std::fs::read(&path).unwrap() == before);
    }

    #[test]
    fn an_image_that_leads_to_other_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), [1; 4096]).unwrap();
        for name in ["secret", "/etc/passwd"] {
            let path = dir.path().join("leads.qcow2");
            let _ = std::fs::remove_file(&path);
            let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
            let builder = Qcow2::<Storage>::create_builder(file.try_into().unwrap()).size(BYTES);
            builder.backing(name.into(), "raw".into()).create().unwrap();
            for read_only in [false, true] {
                let mut section = section(&path);
                section[0]["is_read_only"] = read_only.into();
                let error = error(&section);
                assert!(error.contains("leads to other files") && error.contains("leads.qcow2"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_no_image_is_refused_and_the_content_of_a_raw_disk_is_never_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let raw = json!([{ "drive_id": "d", "path_on_host": path }]);
        let len = std::fs::metadata(&path).unwrap().len();
        let mut driver = drive(&raw);
        assert_eq!(driver.get(0x100), (len / 512) as u32);
        assert_eq!(read(&mut driver, 0, 512).data[..4], *b"QFI\xfb");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(error(&section(&path)).contains("not a qcow2 image"), "{}", error(&section(&path)));
        std::fs::write(&path, b"QFI\xfb").unwrap();
        assert!(error(&section(&path)).contains("not a qcow2 image"));
        let extents = json!([{ "drive_id": "d", "extents": [path], "format": "qcow2" }]);
        assert!(error(&extents).contains("extents"));
    }

    #[test]
    fn the_image_takes_its_own_place_and_is_whole_for_whoever_copies_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let mut driver = drive(&section(&path));
        for round in 1..20u8 {
            assert_eq!(status(&write(&mut driver, u64::from(round) * 500, &[round; 512])), 0);
            if round % 4 == 0 {
                driver.lock().replace((KIND.build)(&section(&path)).unwrap().remove(0)).unwrap();
            }
        }
        driver.lock().save().unwrap();
        let copy = dir.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        assert_sound(&copy);
        for path in [&path, &copy] {
            let mut driver = drive(&section(path));
            for round in 1..20u8 {
                assert_eq!(read(&mut driver, u64::from(round) * 500, 512).data[..512], [round; 512]);
            }
        }
        drop(driver);
        assert_sound(&path);
    }

    #[test]
    fn a_discard_amid_other_requests_harms_none_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir);
        let mut driver = drive(&section(&path));
        let header = |kind: u32, sector: u64| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[8..].copy_from_slice(&sector.to_le_bytes());
            bytes
        };
        let mut away = [0; 16];
        away[..8].copy_from_slice(&4096u64.to_le_bytes());
        away[8..12].copy_from_slice(&4096u32.to_le_bytes());
        for round in 0..30u8 {
            let data = [round + 1; 4096];
            let mut asked = 0;
            for block in 0..8u64 {
                for parts in [
                    [Part::Read(&header(1, block * 300)), Part::Read(&data), Part::Write(1)],
                    [Part::Read(&header(DISCARD, 0)), Part::Read(&away), Part::Write(1)],
                    [Part::Read(&header(1, 4096 + block * 300)), Part::Read(&data), Part::Write(1)],
                ] {
                    driver.add(0, &parts).unwrap();
                    asked += 1;
                }
            }
            driver.kick(0);
            driver.wait(|driver| {
                let done: Vec<_> = std::iter::from_fn(|| driver.used(0)).collect();
                assert!(done.iter().all(|done| status(done) == 0));
                asked -= done.len();
                asked == 0
            });
            for block in 0..8 {
                assert_eq!(read(&mut driver, block * 300, 4096).data[..4096], data);
            }
        }
        drop(driver);
        assert_sound(&path);
    }
}
