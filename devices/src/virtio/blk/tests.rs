use std::os::unix::fs::FileExt;

use serde_json::json;

use super::*;
use crate::virtio::testing::{Done, Driver, NEEDS_RESET, Part, RUNNING};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

fn drive(section: Value) -> Driver {
    let device = (KIND.build)(&section).unwrap().remove(0);
    Driver::start(device)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn read(driver: &mut Driver, sector: u64, len: u32) -> Done {
    driver.request(0, &[Part::Read(&header(IN, sector)), Part::Write(len), Part::Write(1)])
}

fn write(driver: &mut Driver, sector: u64, data: &[u8]) -> Done {
    driver.request(0, &[Part::Read(&header(OUT, sector)), Part::Read(data), Part::Write(1)])
}

fn status(done: &Done) -> u8 {
    *done.data.last().unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
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
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[0; 64 << 10]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path }]));
    assert_eq!(driver.get(0x100), 128, "capacity in sectors");
    let data = pattern(8192);
    assert_eq!(status(&write(&mut driver, 3, &data)), 0);
    assert_eq!(std::fs::read(&path).unwrap()[3 * 512..][..8192], data);
    // The last sector, and a read cut into odd descriptors with the status in the last one.
    let done = driver.request(
        0,
        &[Part::Read(&header(IN, 3)[..7]), Part::Read(&header(IN, 3)[7..]), Part::Write(1000), Part::Write(7193)],
    );
    assert_eq!((done.written, &done.data[..8192], done.data[8192]), (8193, &data[..], 0));
    assert_eq!(status(&read(&mut driver, 127, 512)), 0);
    assert_eq!(status(&read(&mut driver, 127, 1024)), 1);
    assert_eq!(status(&driver.request(0, &[Part::Read(&header(FLUSH, 0)), Part::Write(1)])), 0);
    let id = driver.request(0, &[Part::Read(&header(8, 0)), Part::Write(20), Part::Write(1)]);
    assert_eq!(&id.data, b"d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_read_only_disk_is_not_written_whatever_the_guest_says() {
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

#[test]
fn a_disk_of_the_same_capacity_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let image = file(&dir, "a", &[7; 4096]);
    let disk = |section: Value| (KIND.build)(&json!([section])).unwrap().remove(0);
    let state = disk(json!({ "drive_id": "d", "capacity": 1u64 << 40 })).save();
    disk(json!({ "drive_id": "d", "extents": [image], "capacity": 1u64 << 40 })).load(&state).unwrap();
    assert!(disk(json!({ "drive_id": "d", "extents": [image] })).load(&state).is_err());
    assert!(disk(json!({ "drive_id": "d", "capacity": 1u64 << 39 })).load(&state).is_err());
}

#[test]
fn a_file_truncated_beneath_is_an_io_error_and_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[7; 8192]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path }]));
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(status(&read(&mut driver, 8, 512)), 1);
    assert_eq!(status(&read(&mut driver, 0, 8192)), 1);
    assert_eq!(status(&read(&mut driver, 0, 4096)), 0);
    assert_eq!(driver.status(), RUNNING);
}

#[test]
fn a_full_disk_is_an_io_error() {
    let mut driver = Driver::start(Box::new(Blk::new(Box::new(Full), false, "full")));
    assert_eq!(status(&write(&mut driver, 0, &[1; 512])), 1);
    assert_eq!(status(&driver.request(0, &[Part::Read(&header(FLUSH, 0)), Part::Write(1)])), 1);
    assert_eq!(driver.status(), RUNNING);
}

/// Fails as a file system without space does.
struct Full;
impl Backend for Full {
    fn bytes(&self) -> u64 {
        4096
    }
    fn read_at(&mut self, _: crate::virtio::chain::Buffers, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_at(&mut self, _: crate::virtio::chain::Buffers, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }
    fn flush(&mut self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
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
}

#[test]
fn many_requests_in_one_kick_are_all_served_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[0; 64 << 10]);
    let mut driver = drive(json!([{ "drive_id": "d", "path_on_host": path }]));
    let disk = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for sector in 0..85u64 {
        disk.write_at(&[sector as u8; 512], sector * 512).unwrap();
        driver.add(0, &[Part::Read(&header(IN, sector)), Part::Write(512), Part::Write(1)]).unwrap();
    }
    let before = driver.interrupts();
    driver.kick(0);
    driver.settle();
    for sector in 0..85u8 {
        let done = driver.used(0).unwrap();
        assert_eq!((done.data[0], done.data[511], status(&done)), (sector, sector, 0));
    }
    assert_eq!(driver.interrupts() - before, 1, "one interrupt for the batch");
}

#[test]
fn state_is_only_taken_over_by_the_same_disk() {
    let device = |len: usize| {
        Blk::new(Box::new(backend::RawFile { file: tempfile::tempfile().unwrap(), len: len as u64 }), false, "")
    };
    let state = device(4096).save();
    device(4096).load(&state).unwrap();
    assert!(device(8192).load(&state).is_err());
    assert!(device(4096).load(&json!({ "version": 2 })).is_err());
    assert!(device(4096).load(&json!(null)).is_err());
}
