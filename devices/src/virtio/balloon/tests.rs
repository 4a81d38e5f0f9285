use serde_json::json;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::pages::PAGE;
use super::*;
use crate::BusDevice;
use crate::virtio::testing::{Driver, NEEDS_RESET, NEXT, Part, RAM, RUNNING, WRITE};

const REPORTING: usize = 3;
/// Where the tests have pages to give: nothing of the driver's is there.
const FIRST: u64 = 0xc0_0000;

fn build(section: Value) -> Box<dyn VirtioDevice> {
    (KIND.build)(&section).unwrap().remove(0)
}

fn section() -> Value {
    json!({ "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 3600, "free_page_reporting": true })
}

fn start() -> Driver {
    Driver::start(build(section()))
}

/// Writes to `pages` pages from the `first` on.
fn fill(driver: &Driver, first: u64, pages: u64) {
    for page in first / PAGE as u64..first / PAGE as u64 + pages {
        driver.mem.write_obj(page + 1, GuestAddress(page * PAGE as u64 + 8)).unwrap();
    }
}

/// Whether the host has memory for the page at a guest-physical address.
fn resident(driver: &Driver, address: u64) -> bool {
    let host = driver.mem.get_host_address(GuestAddress(address)).unwrap();
    let mut there = [0u8];
    // SAFETY: mincore(2) of one page of RAM writes one byte.
    let done = unsafe { libc::mincore(host.cast(), PAGE, there.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    there[0] & 1 != 0
}

fn word(driver: &Driver, address: u64) -> u64 {
    driver.mem.read_obj(GuestAddress(address + 8)).unwrap()
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn state(driver: &Driver) -> Value {
    driver.lock().device_state().unwrap()
}

fn entries(entries: &[(u16, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

#[test]
fn pages_in_the_balloon_are_the_hosts() {
    let mut driver = start();
    fill(&driver, FIRST, 16);
    let page = |n: u64| FIRST + n * PAGE as u64;
    let first = (FIRST / PAGE as u64) as u32;
    // In no order, some twice, and three bytes that are no number.
    let mut given = numbers(&[first + 9, first + 3, first + 2, first + 3, first + 4, first + 15]);
    given.extend([0xff; 3]);
    let interrupts = driver.interrupts();
    assert_eq!(driver.request(INFLATE, &[Part::Read(&given[..5]), Part::Read(&given[5..])]).written, 0);
    assert_eq!(driver.interrupts(), interrupts + 1);
    for n in 0..16 {
        let gone = [2, 3, 4, 9, 15].contains(&n);
        assert_eq!(resident(&driver, page(n)), !gone, "page {n}");
        assert_eq!(word(&driver, page(n)) == 0, gone, "page {n}");
    }
    // The guest may use it again, asked or not.
    driver.request(DEFLATE, &[Part::Read(&numbers(&[first + 9]))]);
    fill(&driver, FIRST, 16);
    assert!((0..16).all(|n| word(&driver, page(n)) == u64::from(first) + n + 1));
    // The other region, its last page.
    let [_, (start, len)] = RAM;
    let last = start + len as u64 - PAGE as u64;
    fill(&driver, last, 1);
    driver.request(INFLATE, &[Part::Read(&numbers(&[(last / PAGE as u64) as u32]))]);
    assert!(!resident(&driver, last));
    assert_eq!(driver.status(), RUNNING);
}

#[test]
fn pages_that_are_no_memory_stop_the_device() {
    let [(_, low), (high, len)] = RAM.map(|(start, len)| ((start / PAGE as u64) as u32, (len / PAGE) as u32));
    for bad in [&[low][..], &[low - 1, low], &[high - 1, high], &[high + len], &[u32::MAX], &[0, u32::MAX]] {
        let mut driver = start();
        driver.add(INFLATE, &[Part::Read(&numbers(bad))]).unwrap();
        driver.kick(INFLATE);
        assert!(driver.settle());
        assert_eq!(driver.status(), RUNNING | NEEDS_RESET, "{bad:x?}");
        driver.reset();
        driver.bring_up(u64::MAX);
        driver.request(INFLATE, &[Part::Read(&numbers(&[low - 1, high, high + len - 1]))]);
    }
}

#[test]
fn a_request_has_a_bound() {
    let mut driver = start();
    let most = vec![0x300; 4096];
    driver.request(INFLATE, &[Part::Read(&numbers(&most))]);
    // A pageful of memory that all descriptors of the queue refer to.
    let (table, ..) = driver.parts(INFLATE);
    for index in 0..5 {
        driver.descriptor(table, index, (FIRST, 4096), if index < 4 { NEXT } else { 0 }, index + 1);
    }
    driver.offer(INFLATE, 0);
    driver.kick(INFLATE);
    assert!(driver.settle());
    assert_eq!(driver.status(), RUNNING | NEEDS_RESET);
}

#[test]
fn free_pages_are_given_back_as_far_as_they_are_whole() {
    let mut driver = start();
    fill(&driver, FIRST, 8);
    let (table, ..) = driver.parts(REPORTING);
    let page = |n: u64| FIRST + n * PAGE as u64;
    // What is readable is not the device's to touch; half pages stay.
    driver.descriptor(table, 0, (page(7), PAGE as u32), NEXT, 1);
    driver.descriptor(table, 1, (page(1) + 100, 2 * PAGE as u32), NEXT | WRITE, 2);
    driver.descriptor(table, 2, (page(4), 2 * PAGE as u32), NEXT | WRITE, 3);
    driver.descriptor(table, 3, (page(6), 4095), WRITE, 0);
    driver.offer(REPORTING, 0);
    driver.kick(REPORTING);
    assert!(driver.settle());
    assert_eq!((driver.used(REPORTING).unwrap().written, driver.status()), (0, RUNNING));
    let gone: Vec<_> = (0..8).filter(|n| !resident(&driver, page(*n))).collect();
    assert_eq!(gone, [2, 4, 5]);
}

#[test]
fn reporting_is_where_the_driver_looks_for_it() {
    // As Linux counts, with the features that are there; and as the specification does.
    let with = |interval: u32| {
        let mut section = section();
        section["stats_polling_interval_s"] = interval.into();
        section
    };
    for (interval, features, queue) in
        [(3600, u64::MAX, 3), (3600, u64::MAX, 4), (0, u64::MAX, 2), (0, u64::MAX, 4), (3600, !F_STATS_VQ, 2)]
    {
        let mut driver = Driver::new(build(with(interval)));
        driver.bring_up(features);
        let (table, ..) = driver.parts(queue);
        fill(&driver, FIRST, 1);
        driver.descriptor(table, 0, (FIRST, PAGE as u32), WRITE, 0);
        driver.offer(queue, 0);
        driver.kick(queue);
        assert!(driver.settle() && driver.used(queue).is_some(), "{interval} {queue}");
        assert!(!resident(&driver, FIRST), "{interval} {queue}");
    }
    // Not without the feature.
    let mut driver = Driver::new(build(section()));
    driver.bring_up(!F_REPORTING);
    fill(&driver, FIRST, 1);
    let (table, ..) = driver.parts(REPORTING);
    driver.descriptor(table, 0, (FIRST, PAGE as u32), WRITE, 0);
    driver.offer(REPORTING, 0);
    driver.kick(REPORTING);
    assert!(driver.settle() && resident(&driver, FIRST));
}

#[test]
fn only_what_is_wanted_is_offered() {
    let offered = |section: Value| Driver::new(build(section)).offered() & 0xff;
    assert_eq!(offered(section()), F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING);
    assert_eq!(offered(json!({ "amount_mib": 0, "deflate_on_oom": false })), 0);
    let plain = build(json!({ "amount_mib": 0, "deflate_on_oom": false }));
    assert_eq!((plain.info().queue_sizes.len(), plain.fds()), (2, vec![]));
}

#[test]
fn the_driver_reads_the_target_and_writes_what_there_is() {
    let driver = start();
    let read = |at: u64| driver.get(0x100 + at);
    assert_eq!((read(0), read(4)), (256, 0));
    driver.lock().write(0, 0x104, &7u32.to_le_bytes());
    // The target is the host's.
    driver.lock().write(0, 0x100, &9u32.to_le_bytes());
    driver.lock().write(0, 0x102, &[0xff; 4]);
    assert_eq!((read(0), read(4)), (256, 0xffff));
    assert_eq!(state(&driver)["actual"], 0xffff);
    // Another target in the course of things: the driver is told, and what it wrote stays.
    let generation = driver.get(0xfc);
    let mut larger = section();
    larger["amount_mib"] = 2.into();
    larger["stats_polling_interval_s"] = 5.into();
    driver.lock().replace(build(larger)).unwrap();
    assert_eq!((read(0), read(4), driver.get(0x60) & 2, driver.get(0xfc)), (512, 0xffff, 2, generation + 1));
    // Statistics cannot come or go.
    let without = json!({ "amount_mib": 2, "deflate_on_oom": true, "free_page_reporting": true });
    let error = driver.lock().replace(build(without)).unwrap_err();
    assert!(error.reason.ends_with("offers the driver something else"), "{error}");
    assert_eq!(read(0), 512);
}

#[test]
fn statistics_are_kept_until_there_are_new_ones() {
    let mut driver = start();
    let give = |driver: &mut Driver, list: &[(u16, u64)]| {
        driver.add(STATISTICS, &[Part::Read(&entries(list))]).unwrap();
        driver.kick(STATISTICS);
        assert!(driver.settle());
    };
    give(&mut driver, &[(4, 1000), (5, 2000), (99, 1), (0xffff, 1), (4, 1001)]);
    assert_eq!(state(&driver)["statistics"], json!({ "free_memory": 1001, "total_memory": 2000 }));
    assert!(driver.used(STATISTICS).is_none(), "it is not asked for new ones yet");
    // A second buffer takes the place of the first.
    give(&mut driver, &[(6, 5)]);
    assert!(driver.used(STATISTICS).is_some() && driver.used(STATISTICS).is_none());
    assert_eq!(state(&driver)["statistics"], json!({ "available_memory": 5 }));
    // The buffer that is kept is in nobody's way when the machine is saved, and it goes on as before.
    for _ in 0..2 {
        let saved = driver.lock().save().unwrap();
        assert_eq!(driver.status(), RUNNING);
        let other = Driver::new(build(section()));
        for (start, len) in RAM {
            let mut bytes = vec![0; len];
            driver.mem.read_slice(&mut bytes, GuestAddress(start)).unwrap();
            other.mem.write_slice(&bytes, GuestAddress(start)).unwrap();
        }
        other.lock().load(&saved).unwrap();
        assert_eq!(state(&other), state(&driver));
    }
    give(&mut driver, &[(6, 6)]);
    assert_eq!(state(&driver)["statistics"], json!({ "available_memory": 6 }));
    // More than anybody has, and less than an entry.
    give(&mut driver, &vec![(1, 3); 200]);
    assert_eq!(state(&driver)["statistics"], json!({ "swap_out": 3 }));
    driver.add(STATISTICS, &[Part::Read(&[1, 2, 3])]).unwrap();
    driver.kick(STATISTICS);
    assert!(driver.settle());
    assert_eq!((&state(&driver)["statistics"], driver.status()), (&json!({}), RUNNING));
}

#[test]
fn the_timer_asks_for_new_statistics() {
    let mut quick = section();
    quick["stats_polling_interval_s"] = 1.into();
    let mut driver = Driver::start(build(quick));
    driver.add(STATISTICS, &[Part::Read(&entries(&[(4, 1)]))]).unwrap();
    driver.kick(STATISTICS);
    driver.wait(|driver| driver.used(STATISTICS).is_some());
    // After a snapshot, too, of which the driver knows nothing.
    driver.add(STATISTICS, &[Part::Read(&entries(&[(4, 2)]))]).unwrap();
    driver.kick(STATISTICS);
    assert!(driver.settle());
    driver.lock().save().unwrap();
    driver.wait(|driver| driver.used(STATISTICS).is_some());
    assert_eq!(state(&driver)["statistics"]["free_memory"], 2);
}

#[test]
fn a_restored_balloon_has_its_air_and_is_told_of_another_target() {
    let first = start();
    first.lock().write(0, 0x104, &200u32.to_le_bytes());
    let saved = first.lock().save().unwrap();
    for (amount, told) in [(1, 0), (3, 2)] {
        let mut section = section();
        section["amount_mib"] = amount.into();
        let mut second = Driver::new(build(section));
        let mut rings = vec![0; 0x10_0000];
        first.mem.read_slice(&mut rings, GuestAddress(0)).unwrap();
        second.mem.write_slice(&rings, GuestAddress(0)).unwrap();
        second.lock().load(&saved).unwrap();
        assert!(second.settle());
        assert_eq!((second.get(0x100), second.get(0x104)), (amount * 256, 200));
        assert_eq!(second.get(0x60) & 2, told);
    }
    for (member, value) in [
        ("actual", json!(-1)),
        ("actual", json!(1u64 << 32)),
        ("pages", json!("1")),
        ("statistics", json!({ "free_memory": "1" })),
        ("statistics", json!({ "no_such": 1 })),
        ("statistics", json!([])),
    ] {
        let mut state = build(section()).save().unwrap();
        state[member] = value;
        let error = build(section()).load(&state).unwrap_err();
        assert!(error.reason.contains(member), "{error}");
    }
}
