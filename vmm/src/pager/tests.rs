use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use vm_memory::{Bytes, GuestAddress};

use std::thread;

use super::*;

const ID: [u8; 16] = [5; 16];

/// A memory file of 32 MiB: pages 0 to 63 and 4096 to 4127 begin with their number and one.
fn memory_file() -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    for page in (0..64u64).chain(4096..4128) {
        file.write_all_at(&(page + 1).to_le_bytes(), page * PAGE as u64).unwrap();
    }
    file.set_len((32 << 20) + PAGE as u64).unwrap();
    file
}

fn sources(file: &std::fs::File) -> Vec<Source> {
    vec![Source { file: file.try_clone().unwrap(), extents: None }]
}

/// What begins a page, as the guest sees it.
fn word(ram: &Ram, page: u64) -> u64 {
    ram.guest().read_obj(GuestAddress(page * PAGE as u64)).unwrap()
}

/// Whether a page is there without anybody having asked for it since.
fn is_present(ram: &Ram, page: u64) -> bool {
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let start = ram.guest().iter().next().unwrap().as_ptr() as u64;
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, (start / PAGE as u64 + page) * 8).unwrap();
    u64::from_le_bytes(entry) >> 63 == 1
}

/// False, loudly, where the kernel gives this user none.
fn has_userfaultfd() -> bool {
    let opened = Uffd::open();
    if let Err(error) = &opened {
        println!("SKIP userfaultfd: {error}");
    }
    opened.is_ok()
}

fn no_error() -> OnError {
    Box::new(|problem| panic!("{problem}"))
}

#[test]
fn pages_come_when_they_are_asked_for_and_the_next_machine_gets_them_before() {
    if !has_userfaultfd() {
        return;
    }
    let (dir, file) = (tempfile::tempdir().unwrap(), memory_file());
    let place = Place::of(dir.path(), ID);
    let ram = Ram::new(32).unwrap();
    let pager = Pager::start(&ram, &sources(&file), place.clone(), no_error()).unwrap();
    assert_eq!([word(&ram, 20), word(&ram, 4100), word(&ram, 1000)], [21, 4101, 0]);
    ram.guest().write_obj(7u64, GuestAddress(2000 * PAGE as u64)).unwrap();
    assert_eq!([word(&ram, 2000), word(&ram, 21)], [7, 22]);
    // Neighbours come along, others do not.
    assert!(is_present(&ram, 31) && !is_present(&ram, 32) && !is_present(&ram, 4096));
    drop(pager);
    assert_eq!(place.read(8192).unwrap(), [(20, 12), (1000, 8), (2000, 16), (4100, 12)]);

    let ram = Ram::new(32).unwrap();
    let pager = Pager::start(&ram, &sources(&file), place.clone(), no_error()).unwrap();
    // The set is filled in order: when its last page is there, all of it is.
    assert_eq!(word(&ram, 5), 6);
    while !is_present(&ram, 4111) {
        thread::yield_now();
    }
    assert!(is_present(&ram, 20) && is_present(&ram, 1007) && is_present(&ram, 2015));
    assert!(!is_present(&ram, 40) && !is_present(&ram, 4112));
    assert_eq!([word(&ram, 20), word(&ram, 4111), word(&ram, 63), word(&ram, 2000)], [21, 4112, 64, 0]);
    drop(pager);
    assert_eq!(place.read(8192).unwrap().len(), 4, "a recorded set stays");
}

#[test]
fn a_page_that_was_given_back_is_asked_for_again() {
    if !has_userfaultfd() {
        return;
    }
    let (dir, file) = (tempfile::tempdir().unwrap(), memory_file());
    let ram = Ram::new(32).unwrap();
    let _pager = Pager::start(&ram, &sources(&file), Place::of(dir.path(), ID), no_error()).unwrap();
    for round in 0..3u64 {
        ram.guest().write_obj(100 + round, GuestAddress(20 * PAGE as u64)).unwrap();
        ram.guest().write_obj(200 + round, GuestAddress(1000 * PAGE as u64)).unwrap();
        for page in [20, 1000] {
            let start = ram.guest().get_host_address(GuestAddress(page * PAGE as u64)).unwrap();
            // SAFETY: a page of RAM that nobody else uses: what the balloon does.
            assert_eq!(unsafe { libc::madvise(start.cast(), PAGE, libc::MADV_DONTNEED) }, 0);
            assert!(!is_present(&ram, page));
        }
        assert_eq!([word(&ram, 20), word(&ram, 1000)], [21, 0], "{round}");
    }
}

#[test]
fn every_page_is_right_whoever_is_first() {
    if !has_userfaultfd() {
        return;
    }
    let (dir, file) = (tempfile::tempdir().unwrap(), memory_file());
    let place = Place::of(dir.path(), ID);
    place.write(&[(0, 64), (100, 1), (4090, 60), (8000, 192)]).unwrap();
    let ram = Ram::new(32).unwrap();
    let _pager = Pager::start(&ram, &sources(&file), place, no_error()).unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            let ram = &ram;
            scope.spawn(move || {
                for at in 0..8192u64 {
                    let page = (at * 67 + thread * 2048) % 8192;
                    let holds = page < 64 || (4096..4128).contains(&page);
                    assert_eq!(word(ram, page), if holds { page + 1 } else { 0 }, "page {page}");
                }
            });
        }
    });
}

#[test]
fn a_memory_file_that_is_cut_short_is_told_and_nobody_waits_for_ever() {
    if !has_userfaultfd() {
        return;
    }
    let (dir, file) = (tempfile::tempdir().unwrap(), memory_file());
    let place = Place::of(dir.path(), ID);
    let ram = Ram::new(32).unwrap();
    let (told, problems) = mpsc::channel();
    let on_error: OnError = Box::new(move |problem| told.send(problem).unwrap());
    let pager = Pager::start(&ram, &sources(&file), place.clone(), on_error).unwrap();
    file.set_len(32 * PAGE as u64).unwrap();
    assert_eq!([word(&ram, 3), word(&ram, 40), word(&ram, 41), word(&ram, 8000)], [4, 0, 0, 0]);
    assert!(problems.recv().unwrap().contains("page 40"));
    drop(pager);
    assert!(place.read(8192).is_err(), "what a broken machine wanted is no working set");
}
