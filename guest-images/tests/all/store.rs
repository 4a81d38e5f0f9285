//! The store: loading, listing, removing, layers in use, several at once, killed converters, full disks.

use crate::support::erofs::Image;
use crate::support::oci::{Layout, docker_archive, layer};
use crate::support::tar::file;
use guest_images::{ImageError, ImageRef, Keeper, Store};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

fn open(dir: &Path) -> Store {
    Store::open(dir.join("store")).expect("a store")
}

fn layer_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("store/layers")).expect("readable").count()
}

fn temp_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("store/tmp")).expect("readable");
    entries.map(|e| e.expect("readable").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn images_are_loaded_listed_found_and_removed() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let shared = layer([file("shared", "s")]);
    let (a, b) = (layer([file("a", "a")]), layer([file("b", "b")]));
    let first = dir.join("first.tar");
    fs::write(&first, docker_archive(&["host.example/team/app:1", "app:2"], &[shared.clone(), a])).expect("writable");
    let second = dir.join("Second.tar.gz");
    fs::write(&second, crate::support::oci::gzip(&Layout::simple(&[shared, b]).tar())).expect("writable");

    let store = open(dir);
    let loaded = store.load(&first, None, &mut ()).expect("a docker archive");
    assert_eq!(loaded.len(), 2);
    store.load(&second, None, &mut ()).expect("an OCI archive");
    store.load(&second, Some("other/name"), &mut ()).expect("an OCI archive");
    let names: Vec<String> = store.list().expect("readable").iter().map(|i| format!("{}:{}", i.name, i.tag)).collect();
    assert_eq!(names, ["app:2", "host.example/team/app:1", "other/name:latest", "second:latest"]);
    let info = &store.list().expect("readable")[0];
    assert_eq!(info.created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_eq!((info.size % 4096, info.id.hex().len()), (0, 64));
    assert_eq!(layer_files(dir), 3);

    let by_name = |name: &str| store.prepare(&name.parse::<ImageRef>().expect("a name"), &mut ());
    assert_eq!(by_name("app:1").expect("the end of a longer name").layers.len(), 2);
    assert_eq!(by_name("second").expect("loaded").config.cmd, ["hi"]);
    let text = by_name("missing").expect_err("not loaded").to_string();
    assert!(text.contains("'missing:latest'") && text.contains("app:2"), "{text}");

    store.remove("app:1").expect("loaded");
    assert_eq!(layer_files(dir), 3, "app:2 has the same layers");
    store.remove("app:2").expect("loaded");
    assert_eq!(layer_files(dir), 2);
    store.remove("second").expect("loaded");
    store.remove("other/name").expect("loaded");
    assert_eq!(layer_files(dir), 0);
    assert!(store.list().expect("readable").is_empty());
    assert!(matches!(store.remove("second"), Err(ImageError::NotFound { .. })));
    assert!(temp_files(dir).is_empty());
}

#[test]
fn layers_in_use_stay() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let path = dir.join("i.tar");
    fs::write(&path, Layout::simple(&[layer([file("x", "1")])]).tar()).expect("writable");
    let store = open(dir);
    store.load(&path, Some("x"), &mut ()).expect("good");
    let running = store.prepare(&ImageRef::Name("x:latest".into()), &mut ()).expect("loaded");
    open(dir).remove("x").expect("loaded");
    assert_eq!(open(dir).prune().expect("works"), 0);
    assert!(running.layers[0].path.exists());
    drop(running);
    assert!(store.prune().expect("works") > 0);
    assert_eq!(layer_files(dir), 0);
}

#[test]
fn layers_that_somebody_keeps_stay_until_that_goes() {
    layers_stay(guest_images::SNAPSHOTS, Keeper::Snapshot("0a"));
    layers_stay(guest_images::CONTAINERS, Keeper::Container("0a"));
}

fn layers_stay(kind: &str, who: Keeper<'_>) {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let path = dir.join("i.tar");
    let layers = [layer([file("x", "1")]), layer([file("y", "2")])];
    fs::write(&path, Layout::simple(&layers).tar()).expect("writable");
    let store = open(dir);
    store.load(&path, Some("x"), &mut ()).expect("good");
    let running = store.prepare(&ImageRef::Name("x:latest".into()), &mut ()).expect("loaded");
    let keeper = dir.join("store").join(kind).join("0a");
    fs::create_dir_all(&keeper).expect("writable");
    assert!(store.kept(who).expect("readable").is_none());
    store.keep(who, &running.keys()).expect("new");
    assert!(store.keep(who, &running.keys()).is_err(), "twice");
    let disk: Vec<_> = running.disk().cloned().collect();
    drop(running);
    store.remove("x").expect("loaded");
    assert_eq!(store.prune().expect("works"), 0);
    let kept = store.kept(who).expect("readable").expect("a list");
    assert_eq!((disk.len(), kept.layers), (3, disk));

    // What cannot be read, or leads elsewhere, keeps everything.
    let list = keeper.join("layers");
    for bad in ["sha256-../../etc/passwd", "sha256-00", "/etc/passwd", "md5-00", ""] {
        fs::write(&list, format!("{bad}\n")).expect("writable");
        assert!(matches!(store.kept(who), Err(ImageError::Kept { .. })), "{bad:?}");
        assert!(matches!(store.prune(), Err(ImageError::Kept { .. })), "{bad:?}");
    }
    let gone = format!("sha256-{}\n", "0".repeat(64));
    fs::write(&list, gone).expect("writable");
    assert!(store.kept(who).expect_err("gone").to_string().contains("is gone"));
    fs::remove_dir_all(&keeper).expect("writable");
    drop(kept.lock);
    assert!(store.prune().expect("works") > 0);
    assert_eq!(layer_files(dir), 0);
}

#[test]
fn a_loaded_image_without_its_layer_says_so() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let path = dir.join("i.tar");
    fs::write(&path, Layout::simple(&[layer([file("x", "1")])]).tar()).expect("writable");
    let store = open(dir);
    store.load(&path, Some("x"), &mut ()).expect("good");
    let image = ImageRef::Name("x:latest".into());
    let layer = store.prepare(&image, &mut ()).expect("loaded").layers[0].path.clone();
    // Damaged counts as missing; loading again repairs it.
    File::options().write(true).open(&layer).expect("ours").set_len(4096).expect("writable");
    assert!(store.prepare(&image, &mut ()).expect_err("damaged").to_string().contains("load the image again"));
    store.load(&path, Some("x"), &mut ()).expect("good");
    Image::read(&fs::read(&store.prepare(&image, &mut ()).expect("repaired").layers[0].path).expect("readable"));
}

#[test]
fn many_at_once_convert_a_layer_once() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let path = dir.join("i.tar");
    fs::write(&path, Layout::simple(&[layer([file("x", vec![9; 3 << 20])])]).tar()).expect("writable");
    struct Conversions<'a>(&'a std::sync::Mutex<std::collections::HashSet<usize>>, usize);
    impl guest_images::Progress for Conversions<'_> {
        fn bytes(&mut self, _: u64, _: Option<u64>) {
            self.0.lock().expect("no panics").insert(self.1);
        }
    }
    let converters = std::sync::Mutex::default();
    std::thread::scope(|scope| {
        for i in 0..6 {
            let (path, converters) = (path.clone(), &converters);
            scope.spawn(move || {
                let store = open(dir);
                let image =
                    store.prepare(&ImageRef::OciArchive(path, None), &mut Conversions(converters, i)).expect("good");
                Image::read(&fs::read(&image.layers[0].path).expect("readable"));
            });
        }
    });
    assert_eq!(converters.into_inner().expect("no panics").len(), 1);
    assert!(temp_files(dir).is_empty());
}

#[test]
fn what_killed_processes_leave_is_swept() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    open(dir);
    let tmp = dir.join("store/tmp");
    fs::write(tmp.join("sha256-dead.lock"), "").expect("writable");
    fs::write(tmp.join("sha256-dead.tmp"), "half a layer").expect("writable");
    fs::write(tmp.join("orphan.tmp"), "x").expect("writable");
    fs::write(tmp.join("sha256-alive.tmp"), "growing").expect("writable");
    let alive = File::create(tmp.join("sha256-alive.lock")).expect("writable");
    rustix::fs::flock(&alive, rustix::fs::FlockOperation::LockExclusive).expect("free");
    open(dir);
    let mut left = temp_files(dir);
    left.sort();
    assert_eq!(left, ["sha256-alive.lock", "sha256-alive.tmp"]);
    drop(alive);
    open(dir);
    assert!(temp_files(dir).is_empty());
}

#[test]
fn stores_of_other_versions_are_left_alone() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    open(dir);
    fs::write(dir.join("store/version"), "2\n").expect("writable");
    let text = Store::open(dir.join("store")).expect_err("a newer store").to_string();
    assert!(text.contains("version 2") && text.contains("version 1"), "{text}");
}

/// Runs this test again in a child whose files may not grow over a megabyte: writing fails as on a full disk.
#[test]
fn a_failing_write_leaves_nothing() {
    const INNER: &str = "GUEST_IMAGES_TEST_INNER_DIR";
    if let Some(dir) = std::env::var_os(INNER) {
        let dir = Path::new(&dir);
        let error = open(dir).prepare(&ImageRef::OciArchive(dir.join("i.tar"), None), &mut ());
        println!("inner: {}", error.expect_err("cannot be written"));
        return;
    }
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    fs::write(dir.join("i.tar"), Layout::simple(&[layer([file("x", vec![9; 8 << 20])])]).tar()).expect("writable");
    // Ignored, SIGXFSZ becomes EFBIG.
    let script = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" --exact store::a_failing_write_leaves_nothing --nocapture";
    let exe = std::env::current_exe().expect("this test");
    let output = Command::new("bash").args(["-c", script]).arg(exe).env(INNER, dir).output().expect("bash");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("inner: layer sha256:"), "{text}");
    assert!(text.contains("cannot write the layer image"), "{text}");
    assert!(temp_files(dir).is_empty() && layer_files(dir) == 0);
}

/// Needs root, to mount a small tmpfs.
#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let disk = dir.join("store");
    fs::create_dir(&disk).expect("writable");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_is_named_and_left_as_it_was: cannot mount a tmpfs here (not root?)");
        return;
    }
    fs::write(dir.join("i.tar"), Layout::simple(&[layer([file("x", vec![9; 8 << 20])])]).tar()).expect("writable");
    let result = open(dir).prepare(&ImageRef::OciArchive(dir.join("i.tar"), None), &mut ());
    let left = (temp_files(dir), layer_files(dir));
    // Lazily: a process that another test is just starting has all files of this one until it is another program.
    let unmounted = Command::new("umount").arg("-l").arg(&disk).status().expect("umount");
    let text = result.expect_err("no room").to_string();
    assert!(text.contains("no space") && text.contains("BULKHEAD_STORE"), "{text}");
    assert_eq!(left, (Vec::new(), 0));
    assert!(unmounted.success());
}

/// A process killed in the middle of a conversion leaves what the next one sweeps, and the next conversion works.
#[test]
fn a_killed_conversion_is_done_again() {
    const INNER: &str = "GUEST_IMAGES_TEST_KILLED_DIR";
    struct Die;
    impl guest_images::Progress for Die {
        fn bytes(&mut self, done: u64, _: Option<u64>) {
            if done > 0 {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                    .expect("oneself");
            }
        }
    }
    if let Some(dir) = std::env::var_os(INNER) {
        let dir = Path::new(&dir);
        let image = ImageRef::OciArchive(dir.join("i.tar"), None);
        drop(open(dir).prepare(&image, &mut Die));
        unreachable!("killed");
    }
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let noise: Vec<u8> = (0..3_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("i.tar"), Layout::simple(&[layer([file("x", noise)])]).tar()).expect("writable");
    let exe = std::env::current_exe().expect("this test");
    let status =
        Command::new(exe).args(["--exact", "store::a_killed_conversion_is_done_again"]).env(INNER, dir).output();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status.expect("runs").status), Some(9));
    assert_eq!(temp_files(dir).len(), 2, "a temporary file and its lock");
    let store = open(dir);
    assert!(temp_files(dir).is_empty());
    store.prepare(&ImageRef::OciArchive(dir.join("i.tar"), None), &mut ()).expect("good");
}

fn merged_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("store/merged")).expect("readable").count()
}

#[test]
fn several_layers_are_merged_once_and_again_when_one_is_another_file() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path();
    let archive = dir.join("image.tar");
    let layers = [layer([file("a", "low"), file("b", vec![1; 9000])]), layer([]), layer([file("a", "high")])];
    fs::write(&archive, Layout::simple(&layers).tar()).expect("writable");
    let store = open(dir);
    store.load(&archive, None, &mut ()).expect("an OCI archive");
    assert_eq!(merged_files(dir), 0);
    let prepare = || store.prepare(&"image".parse::<ImageRef>().expect("a name"), &mut ()).expect("loaded");
    let first = prepare();
    let disk: Vec<u8> = first.disk().flat_map(|part| fs::read(&part.path).expect("readable")).collect();
    let merged = first.merged.clone().expect("two layers with files");
    let files = Image::read_disk(&disk, merged.bytes as usize);
    assert_eq!((&files[&b"a"[..]].data[..], files[&b"b"[..]].data.len(), files.len()), (&b"high"[..], 9000, 3));
    assert_eq!(prepare().merged, Some(merged.clone()));
    // Where a layer's data is in a file converted by another program nobody knows.
    let copy = dir.join("copy");
    fs::copy(&first.layers[0].path, &copy).expect("writable");
    fs::rename(&copy, &first.layers[0].path).expect("writable");
    let second = prepare().merged.expect("two layers with files");
    assert_ne!(second.path, merged.path);
    drop(first);
    // What is in use stays, what no image has any more goes.
    assert!(store.prune().expect("writable") > 0 && merged_files(dir) == 1 && second.path.exists());
    store.remove("image").expect("loaded");
    assert_eq!((merged_files(dir), layer_files(dir)), (0, 0));
}
