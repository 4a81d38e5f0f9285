//! Any bytes as what a store has on disk: the record of a loaded image, and a snapshot's list of layers. The first byte says which.
#![no_main]

use guest_images::Store;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    let Ok(temp) = tempfile::tempdir() else { return };
    let store = Store::open(temp.path()).expect("a new store");
    if *which == b'l' {
        let keeper = temp.path().join(guest_images::SNAPSHOTS).join("x");
        std::fs::create_dir_all(&keeper).expect("writable");
        std::fs::write(keeper.join("layers"), bytes).expect("writable");
        let _ = store.kept(guest_images::Keeper::Snapshot("x"));
    } else {
        std::fs::write(temp.path().join("images/x.json"), bytes).expect("writable");
        let _ = store.list();
        let _ = store.usage();
    }
    // Whatever it holds, it can be cleared.
    let _ = store.prune();
});
