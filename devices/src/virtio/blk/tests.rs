use std::os::unix::fs::FileExt;

use serde_json::json;

use super::engine::{Done as JobDone, Engine, Job, Work};
use super::*;
use crate::virtio::limit::Limits;
use crate::virtio::testing::{Done, Driver, NEEDS_RESET, Part, RUNNING};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

fn drive(section: Value) -> Driver {
    let device = (KIND.build)(&section).unwrap().remove(0);
    Driver::start(device)
}

/// With io_uring, and with threads.
fn each_engine(test: impl Fn(&str)) {
    ["Async", "Sync"].into_iter().for_each(test);
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

pub fn read(driver: &mut Driver, sector: u64, len: u32) -> Done {
    driver.request(0, &[Part::Read(&header(IN, sector)), Part::Write(len), Part::Write(1)])
}

pub fn write(driver: &mut Driver, sector: u64, data: &[u8]) -> Done {
    driver.request(0, &[Part::Read(&header(OUT, sector)), Part::Read(data), Part::Write(1)])
}

pub fn flush(driver: &mut Driver) -> Done {
    driver.request(0, &[Part::Read(&header(FLUSH, 0)), Part::Write(1)])
}

/// A discard or a write of zeros.
pub fn segment(driver: &mut Driver, kind: u32, (sector, count): (u64, u32), flags: u32) -> u8 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    status(&driver.request(0, &[Part::Read(&header(kind, 0)), Part::Read(&bytes), Part::Write(1)]))
}

pub fn status(done: &Done) -> u8 {
    *done.data.last().unwrap()
}

fn errors(driver: &Driver) -> u64 {
    let metrics = driver.lock().metrics();
    metrics.read().queues[0].errors
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 512 + n) as u8).collect()
}

fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn another_file_takes_the_place_of_the_first_at_run_time() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (file(&dir, "first", &[1; 4096]), file(&dir, "second", &[2; 8192]));
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": first }]));
    assert_eq!(read(&mut driver, 0, 512).data[..512], [1; 512]);
    let device = (KIND.build)(&json!([{ "drive_id": "d", "path_on_host": second }])).unwrap().remove(0);
    driver.lock().replace(device).unwrap();
    assert_eq!((driver.get(0x100), driver.get(0x60) & 2), (16, 2), "another capacity, and the driver is told");
    assert_eq!(read(&mut driver, 15, 512).data[..512], [2; 512]);
    assert_eq!(status(&write(&mut driver, 0, &[3; 512])), 0);
    assert_eq!((std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap()[0]), (vec![1; 4096], 3));
    // One that the driver was told is writable does not become read-only behind its back.
    let read_only = json!([{ "drive_id": "d", "path_on_host": first, "is_read_only": true }]);
    assert!(driver.lock().replace((KIND.build)(&read_only).unwrap().remove(0)).is_err());
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    each_engine(|engine| {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "disk", &[0; 64 << 10]);
        let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "io_engine": engine }]));
        assert_eq!(driver.get(0x100), 128, "capacity in sectors");
        let data = pattern(8192);
        assert_eq!(status(&write(&mut driver, 3, &data)), 0);
        assert_eq!(std::fs::read(&path).unwrap()[3 * 512..][..8192], data);
        // The last sector, and a read cut into odd descriptors with the status in the last one.
        let (head, tail) = (&header(IN, 3)[..7], &header(IN, 3)[7..]);
        let parts = [Part::Read(head), Part::Read(tail), Part::Write(1000), Part::Write(7193)];
        let done = driver.request(0, &parts);
        assert_eq!((done.written, &done.data[..8192], done.data[8192]), (8193, &data[..], 0));
        assert_eq!(status(&read(&mut driver, 127, 512)), 0);
        assert_eq!(status(&read(&mut driver, 127, 1024)), 1);
        assert_eq!(status(&flush(&mut driver)), 0);
        let id = driver.request(0, &[Part::Read(&header(8, 0)), Part::Write(20), Part::Write(1)]);
        assert_eq!(&id.data, b"d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    });
}

#[test]
fn group_13_a_read_only_disk_is_not_written_whatever_the_guest_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 4096]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "is_read_only": true }]));
    assert_ne!(driver.offered() & F_RO, 0);
    assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 1);
    assert_eq!(status(&read(&mut driver, 0, 512)), 0);
    assert_eq!(std::fs::read(&path).unwrap(), [7; 4096]);
}

#[test]
fn extents_are_one_padded_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (first, last) = (pattern(5000), pattern(12_288));
    let paths = [file(&dir, "a", &first), file(&dir, "empty", &[]), file(&dir, "b", &last), file(&dir, "c", &[9])];
    let mut driver = drive(json!([{ "drive_id": "d", "extents": paths }]));
    let mut expect = first;
    expect.resize(8192, 0);
    expect.extend(&last);
    expect.push(9);
    expect.resize(8192 + 12_288 + 4096, 0);
    assert_eq!(u64::from(driver.get(0x100)), expect.len() as u64 / 512);
    let done = read(&mut driver, 0, expect.len() as u32);
    assert!(status(&done) == 0 && done.data[..expect.len()] == expect);
    for sector in 0..expect.len() / 512 {
        let done = read(&mut driver, sector as u64, 512);
        assert!(done.data[..512] == expect[sector * 512..][..512], "sector {sector}");
    }
    assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 1);
}

#[test]
fn a_capacity_ends_a_disk_in_zeros() {
    const TIB: u64 = 1 << 40;
    let dir = tempfile::tempdir().unwrap();
    let image = file(&dir, "a", &[7; 5000]);
    let mut driver = drive(json!([{ "drive_id": "d", "extents": [image], "capacity": TIB }]));
    assert_eq!((u64::from(driver.get(0x104)) << 32) + u64::from(driver.get(0x100)), TIB / 512);
    let done = read(&mut driver, 0, 12_288);
    assert!(status(&done) == 0 && done.data[..5000] == [7; 5000] && done.data[5000..12_288] == [0; 7288]);
    let last = TIB / 512 - 1;
    assert_eq!(read(&mut driver, last, 512).data, [0; 513]);
    assert_eq!(status(&read(&mut driver, last + 1, 512)), 1);
    assert_eq!(status(&write(&mut driver, last, &[1; 512])), 1);
    // Without any file yet, all of it is zeros. A file truncated beneath is an error still.
    let mut driver = drive(json!([{ "drive_id": "d", "capacity": TIB }]));
    assert_eq!(read(&mut driver, 0, 8192).data, [0; 8193]);
    let image = file(&dir, "b", &[7; 4096]);
    let mut driver = drive(json!([{ "drive_id": "d", "extents": [image], "capacity": TIB }]));
    std::fs::write(&image, []).unwrap();
    assert_eq!(status(&read(&mut driver, 0, 512)), 1);
}

/// The place of a disk to come: nothing that is written there can be lost, since nothing is taken.
#[test]
fn a_writable_disk_without_files_is_zeros_and_keeps_nothing() {
    const BYTES: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let blank = json!({ "drive_id": "d", "capacity": BYTES, "is_read_only": false });
    let mut driver = drive(json!([blank]));
    assert_eq!((driver.offered() & F_RO, u64::from(driver.get(0x100))), (0, BYTES / 512));
    assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 1);
    assert_eq!(status(&write(&mut driver, BYTES / 512 - 1, &[1; 512])), 1);
    assert_eq!((status(&write(&mut driver, 0, &[])), status(&flush(&mut driver))), (0, 0));
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(segment(&mut driver, kind, (0, 8), 0), 0);
        assert_eq!(segment(&mut driver, kind, (BYTES / 512, 8), 0), 1);
    }
    assert_eq!(read(&mut driver, 0, 8192).data, [0; 8193]);
    // A file of that size takes its place, in the machine or in one that goes on from it; for the guest it is the same disk.
    let device = |section: Value| (KIND.build)(&json!([section])).unwrap().remove(0);
    let image = file(&dir, "a", &vec![7; BYTES as usize]);
    let real = json!({ "drive_id": "d", "path_on_host": image });
    device(real.clone()).load(&device(blank.clone()).save().unwrap()).unwrap();
    device(blank).load(&device(real.clone()).save().unwrap()).unwrap();
    driver.lock().replace(device(real)).unwrap();
    assert_eq!(status(&write(&mut driver, 1, &[9; 512])), 0);
    assert_eq!(std::fs::read(&image).unwrap()[511..513], [7, 9]);
}

#[test]
fn a_disk_of_the_same_capacity_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let image = file(&dir, "a", &[7; 4096]);
    let disk = |section: Value| (KIND.build)(&json!([section])).unwrap().remove(0);
    let state = disk(json!({ "drive_id": "d", "capacity": 1u64 << 40 })).save().unwrap();
    disk(json!({ "drive_id": "d", "extents": [image], "capacity": 1u64 << 40 })).load(&state).unwrap();
    assert!(disk(json!({ "drive_id": "d", "extents": [image] })).load(&state).is_err());
    assert!(disk(json!({ "drive_id": "d", "capacity": 1u64 << 39 })).load(&state).is_err());
}

#[test]
fn a_file_truncated_beneath_is_an_io_error_and_no_end() {
    each_engine(|engine| {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "disk", &[7; 8192]);
        let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "io_engine": engine }]));
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert_eq!(status(&read(&mut driver, 8, 512)), 1);
        assert_eq!(status(&read(&mut driver, 0, 8192)), 1);
        assert_eq!(status(&read(&mut driver, 0, 4096)), 0);
        assert_eq!((driver.status(), errors(&driver)), (RUNNING, 2));
    });
}

#[test]
fn a_limit_of_bytes_written_is_none_of_those_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 64 << 10]);
    let hour = json!({ "bandwidth": { "size": 4096, "refill_time": 3_600_000 } });
    let limits = |key: &str| Limits::of(&KIND, &json!({ key: hour })).unwrap();
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "num_queues": 2 }]));
    driver.lock().set_limits(&limits("write_rate_limiter")).unwrap();
    // More than there is, and what it takes is made up for later.
    assert_eq!(status(&write(&mut driver, 0, &[1; 8192])), 0);
    assert_eq!(status(&read(&mut driver, 0, 32 << 10)), 0);
    driver.add(0, &[Part::Read(&header(OUT, 0)), Part::Read(&[2; 512]), Part::Write(1)]).unwrap();
    driver.kick(0);
    assert!(driver.settle() && driver.used(0).is_none());
    // Zeros that are written are bytes, too; another queue's reads go on.
    let mut zeros = [0; 16];
    zeros[8] = 1;
    driver.add(1, &[Part::Read(&header(WRITE_ZEROES, 0)), Part::Read(&zeros), Part::Write(1)]).unwrap();
    driver.kick(1);
    assert!(driver.settle() && driver.used(1).is_none());
    assert_eq!(std::fs::read(&path).unwrap()[..8192], [1; 8192]);
    driver.lock().set_limits(&limits("read_rate_limiter")).unwrap();
    driver.wait(|driver| driver.used(0).is_some());
    driver.wait(|driver| driver.used(1).is_some());
    assert_eq!(status(&write(&mut driver, 0, &[3; 16384])), 0);
    assert_eq!(status(&read(&mut driver, 0, 8192)), 0);
    driver.add(0, &[Part::Read(&header(IN, 0)), Part::Write(512), Part::Write(1)]).unwrap();
    driver.kick(0);
    assert!(driver.settle() && driver.used(0).is_none());
}

fn options(engine: Choice) -> Options {
    Options { read_only: false, write_through: false, queues: 1, engine }
}

#[test]
fn a_full_disk_is_an_io_error() {
    for engine in [Choice::Uring, Choice::Threads] {
        let full = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let blk = Blk::new(Disk::raw(full, 4096), options(engine), "full").unwrap();
        let mut driver = Driver::start(Box::new(blk));
        assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 1);
        assert_eq!(status(&flush(&mut driver)), 1);
        assert_eq!(status(&read(&mut driver, 0, 512)), 0);
        assert_eq!(driver.status(), RUNNING);
    }
}

#[test]
fn what_is_discarded_takes_no_place_and_zeros_are_zeros() {
    use std::os::unix::fs::MetadataExt;
    each_engine(|engine| {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "disk", &[7; 256 << 10]);
        let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "io_engine": engine }]));
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        assert_eq!(status(&flush(&mut driver)), 0);
        let full = blocks();
        assert_eq!(segment(&mut driver, DISCARD, (0, 256), 0), 0);
        assert!(blocks() <= full - 256, "{} of {full}", blocks());
        assert_eq!(segment(&mut driver, WRITE_ZEROES, (256, 64), 1), 0);
        assert!(blocks() <= full - 320, "{} of {full}", blocks());
        let before = blocks();
        assert_eq!(segment(&mut driver, WRITE_ZEROES, (321, 5), 0), 0);
        assert_eq!(blocks(), before, "these keep their place");
        let mut expect = vec![0; 256 << 10];
        expect[320 * 512..].fill(7);
        expect[321 * 512..326 * 512].fill(0);
        assert!(std::fs::read(&path).unwrap() == expect);
        for sectors in [(511, 2), (u64::MAX, 1), (0, u32::MAX)] {
            assert_eq!(segment(&mut driver, DISCARD, sectors, 0), 1);
            assert_eq!(segment(&mut driver, WRITE_ZEROES, sectors, 0), 1);
        }
        assert_eq!(segment(&mut driver, DISCARD, (0, 1), 1), 2);
        assert!(std::fs::read(&path).unwrap() == expect);
    });
}

#[test]
fn what_a_guest_throws_away_of_a_read_only_disk_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 4096]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "is_read_only": true }]));
    assert_eq!(driver.offered() & (F_DISCARD | F_WRITE_ZEROES), 0);
    assert_eq!(segment(&mut driver, DISCARD, (0, 8), 0), 1);
    assert_eq!(segment(&mut driver, WRITE_ZEROES, (0, 8), 0), 1);
    assert_eq!(std::fs::read(&path).unwrap(), [7; 4096]);
}

#[test]
fn a_disk_may_have_several_queues() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 4096]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "num_queues": 8 }]));
    assert_eq!((driver.offered() & F_MQ, driver.get(0x100 + 32) >> 16), (F_MQ, 8));
    for queue in (0..8).rev() {
        driver
            .request(queue, &[Part::Read(&header(OUT, queue as u64)), Part::Read(&[queue as u8; 512]), Part::Write(1)]);
    }
    let bytes = std::fs::read(&path).unwrap();
    assert!((0..8).all(|queue| bytes[queue * 512..][..512] == [queue as u8; 512]));
}

#[test]
fn a_request_that_cannot_be_answered_stops_the_device_until_reset() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 4096]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path }]));
    driver.add(0, &[Part::Read(&header(OUT, 0)), Part::Read(&[1; 512])]).unwrap();
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.status(), RUNNING | NEEDS_RESET);
    assert_eq!(driver.get(0x60) & 2, 2, "a configuration interrupt");
    driver.reset();
    driver.bring_up(u64::MAX);
    assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 0);
}

#[test]
fn truncated_headers_and_unknown_types_get_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 4096]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path }]));
    assert_eq!(status(&driver.request(0, &[Part::Read(&[0; 15]), Part::Write(513)])), 1);
    assert_eq!(status(&driver.request(0, &[Part::Write(513)])), 1);
    assert_eq!(status(&driver.request(0, &[Part::Read(&header(99, 0)), Part::Write(513)])), 2);
    assert_eq!((status(&flush(&mut driver)), errors(&driver)), (0, 3));
}

#[test]
fn many_requests_in_one_kick_are_all_served() {
    each_engine(|engine| {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "disk", &[0; 64 << 10]);
        let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path, "io_engine": engine }]));
        let disk = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let mut sectors = std::collections::HashMap::new();
        for sector in 0..85u64 {
            disk.write_at(&[sector as u8; 512], sector * 512).unwrap();
            let parts = [Part::Read(&header(IN, sector)), Part::Write(512), Part::Write(1)];
            sectors.insert(driver.add(0, &parts).unwrap(), sector as u8);
        }
        driver.kick(0);
        while !sectors.is_empty() {
            let mut done = None;
            driver.wait(|driver| {
                done = driver.used(0);
                done.is_some()
            });
            let done = done.unwrap();
            let sector = sectors.remove(&done.head).unwrap();
            assert_eq!((done.data[0], done.data[511], status(&done)), (sector, sector, 0));
        }
    });
}

/// An engine that does a job when it is told to.
#[derive(Clone, Default)]
struct Slow(Arc<std::sync::Mutex<SlowState>>);

#[derive(Default)]
struct SlowState {
    taken: Vec<Job>,
    submitted: std::collections::VecDeque<Job>,
    done: Vec<JobDone>,
}

impl Slow {
    fn state(&self) -> std::sync::MutexGuard<'_, SlowState> {
        self.0.lock().unwrap()
    }

    /// Ends the oldest job that was submitted.
    fn end(&self, result: i32) -> Work {
        let mut state = self.state();
        let job = state.submitted.pop_front().unwrap();
        state.done.push(JobDone { tag: job.tag, result });
        job.work
    }
}

/// What a job returns that does all it was asked for.
fn success(work: Work) -> i32 {
    match work {
        Work::Read(list) | Work::Write(list) => {
            // SAFETY: the engine's promise.
            let list = unsafe { std::slice::from_raw_parts(list.first, list.count as usize) };
            list.iter().map(|entry| entry.iov_len as i32).sum()
        }
        Work::Sync | Work::Allocate { .. } => 0,
    }
}

impl Engine for Slow {
    unsafe fn start(&mut self, job: Job) {
        self.state().taken.push(job);
    }
    fn submit(&mut self) -> io::Result<()> {
        let mut state = self.state();
        let taken = std::mem::take(&mut state.taken);
        state.submitted.extend(taken);
        Ok(())
    }
    fn wait(&mut self) {
        self.submit().unwrap();
        let work = self.state().submitted[0].work;
        self.end(success(work));
    }
    fn next(&mut self) -> Option<JobDone> {
        self.state().done.pop()
    }
}

/// A disk of 64 KiB, by hand.
fn slow(options: Options) -> (Driver, Slow, Arc<EventFd>) {
    let engine = Slow::default();
    let mut blk = Blk::new(Disk::raw(tempfile::tempfile().unwrap(), 64 << 10), options, "").unwrap();
    // Not the driver's RAM, which lives as long as all of this.
    let mem = crate::GuestRam::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]).unwrap();
    blk.flight = Some(Flight::new(Box::new(engine.clone()), mem));
    let event = blk.done.clone();
    (Driver::start(Box::new(blk)), engine, event)
}

fn add_write(driver: &mut Driver, queue: usize) {
    driver.add(queue, &[Part::Read(&header(OUT, 0)), Part::Read(&[1; 512]), Part::Write(1)]).unwrap();
}

#[test]
fn more_requests_than_there_is_room_for_wait_their_turn() {
    let (mut driver, engine, event) = slow(Options { queues: 2, ..options(Choice::Threads) });
    let ask = |driver: &mut Driver| {
        for queue in [0, 1] {
            (0..80).for_each(|_| add_write(driver, queue));
            driver.kick(queue);
            driver.settle();
        }
    };
    let end = |driver: &mut Driver, count: usize| {
        for _ in 0..count {
            engine.end(512);
            event.write(1).unwrap();
            driver.settle();
        }
        [0, 1].map(|queue| std::iter::from_fn(|| driver.used(queue)).filter(|done| status(done) == 0).count())
    };
    ask(&mut driver);
    assert_eq!(engine.state().submitted.len(), engine::MOST_JOBS);
    assert_eq!(end(&mut driver, 160), [80, 80]);
    // A snapshot ends what is in flight; the rest goes on by itself afterwards.
    ask(&mut driver);
    driver.lock().save().unwrap();
    driver.settle();
    assert_eq!(engine.state().submitted.len(), 160 - engine::MOST_JOBS);
    assert_eq!(end(&mut driver, 160 - engine::MOST_JOBS), [80, 80]);
    // A reset forgets it.
    ask(&mut driver);
    driver.reset();
    assert_eq!(engine.state().submitted.len(), 0);
    driver.bring_up(u64::MAX);
    add_write(&mut driver, 1);
    driver.kick(1);
    driver.settle();
    assert_eq!(end(&mut driver, 1), [0, 1]);
}

/// What becomes of one request whose jobs return `script`, and success afterwards; and the jobs with the bytes they move.
fn scripted(options: Options, parts: &[Part], script: &[i32]) -> (u8, Vec<(&'static str, i32)>) {
    let (mut driver, engine, event) = slow(options);
    driver.add(0, parts).unwrap();
    driver.kick(0);
    driver.settle();
    let (mut jobs, mut script) = (Vec::new(), script.iter());
    loop {
        let Some(work) = engine.state().submitted.front().map(|job| job.work) else { break };
        let name = match work {
            Work::Read(_) => "read",
            Work::Write(_) => "write",
            Work::Sync => "sync",
            Work::Allocate { .. } => "allocate",
        };
        jobs.push((name, success(work)));
        engine.end(script.next().copied().unwrap_or(success(work)));
        event.write(1).unwrap();
        driver.settle();
    }
    (status(&driver.used(0).unwrap()), jobs)
}

#[test]
fn what_a_job_leaves_undone_another_does() {
    let options = options(Choice::Threads);
    let write = [Part::Read(&header(OUT, 1)), Part::Read(&[1; 512]), Part::Read(&[2; 1024]), Part::Write(1)];
    let jobs = [1536, 1436, 1024, 24].map(|bytes| ("write", bytes));
    assert_eq!(scripted(options, &write, &[100, 412, 1000]), (0, jobs.to_vec()));
    let read = [Part::Read(&header(IN, 1)), Part::Write(513)];
    assert_eq!(scripted(options, &read, &[500]), (0, vec![("read", 512), ("read", 12)]));
    assert_eq!(scripted(options, &write, &[100, 0]).0, 1, "the end of the file");
    assert_eq!(scripted(options, &write, &[100, -libc::EIO]).0, 1);
    assert_eq!(scripted(options, &write, &[1537]).0, 1, "more than there was to do");
}

#[test]
fn group_12_a_write_through_a_cache_ends_when_it_is_durable() {
    let write = [Part::Read(&header(OUT, 1)), Part::Read(&[1; 512]), Part::Write(1)];
    let through = Options { write_through: true, ..options(Choice::Threads) };
    assert_eq!(scripted(through, &write, &[]), (0, vec![("write", 512), ("sync", 0)]));
    assert_eq!(scripted(through, &write, &[512, -libc::EIO]).0, 1, "not on the disk is not done");
    assert_eq!(scripted(options(Choice::Threads), &write, &[]).1, [("write", 512)], "this driver flushes itself");
    let blk = Blk::new(Disk::raw(tempfile::tempfile().unwrap(), 4096), through, "").unwrap();
    assert_eq!(blk.info().features & F_FLUSH, 0);
}

/// FLUSH is answered when the host has synced, and not before (virtio 1.3, 5.2.6.2); what was written before it is in its file by then.
#[test]
fn group_12_a_flush_ends_when_all_is_durable() {
    let flush = [Part::Read(&header(FLUSH, 0)), Part::Write(1)];
    let options = options(Choice::Threads);
    assert_eq!(scripted(options, &flush, &[]), (0, vec![("sync", 0)]));
    assert_eq!(scripted(options, &flush, &[-libc::EIO]).0, 1, "not on the disk is not done");
    let (mut driver, engine, event) = slow(options);
    driver.add(0, &[Part::Read(&header(OUT, 1)), Part::Read(&[1; 512]), Part::Write(1)]).unwrap();
    driver.kick(0);
    driver.settle();
    engine.end(512);
    event.write(1).unwrap();
    driver.settle();
    assert_eq!(status(&driver.used(0).unwrap()), 0, "a write in the cache is one");
    driver.add(0, &flush).unwrap();
    driver.kick(0);
    driver.settle();
    assert!(driver.used(0).is_none(), "answered before it is durable");
    engine.end(0);
    event.write(1).unwrap();
    driver.settle();
    assert_eq!(status(&driver.used(0).unwrap()), 0);
}

#[test]
fn what_a_file_system_cannot_is_done_by_hand_or_not_needed() {
    let mut segment = [0; 16];
    segment[8] = 100;
    let run = |kind, script: &[i32]| {
        let parts = [Part::Read(&header(kind, 0)), Part::Read(&segment), Part::Write(1)];
        scripted(options(Choice::Threads), &parts, script)
    };
    let jobs = vec![("allocate", 0), ("write", 51_200), ("write", 50_200)];
    assert_eq!(run(WRITE_ZEROES, &[-libc::EOPNOTSUPP, 1000]), (0, jobs));
    assert_eq!(run(WRITE_ZEROES, &[-libc::EOPNOTSUPP, -libc::ENOSPC]).0, 1);
    assert_eq!(run(DISCARD, &[-libc::EOPNOTSUPP]), (0, vec![("allocate", 0)]));
    assert_eq!(run(DISCARD, &[-libc::EIO]).0, 1);
}

#[test]
fn state_is_only_taken_over_by_the_same_disk() {
    let device =
        |len: u64| Blk::new(Disk::raw(tempfile::tempfile().unwrap(), len), options(Choice::Uring), "").unwrap();
    let state = device(4096).save().unwrap();
    device(4096).load(&state).unwrap();
    assert!(device(8192).load(&state).is_err());
    assert!(device(4096).load(&json!({ "version": 2 })).is_err());
    assert!(device(4096).load(&json!(null)).is_err());
}
