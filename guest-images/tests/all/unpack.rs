//! An image as a directory is what a guest would see of it.

use crate::support::oci::{Layout, layer};
use crate::support::tar::{dir, file, hard_link, item, symlink};
use guest_images::{ImageRef, PreparedImage, Store};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn image(temp: &Path) -> PreparedImage {
    let lower = layer([
        dir("bin"),
        file("bin/sh", vec![b'x'; 100_000]).mode(0o4755),
        hard_link("bin/ash", "bin/sh"),
        file("bin/gone", "lower"),
        dir("hidden"),
        file("hidden/lower", "lower"),
        dir("closed").mode(0o500),
        file("closed/file", "inside"),
        symlink("out", "/etc"),
        item(b'6', "pipe"),
    ]);
    let mut holes = vec![0; 1 << 20];
    holes[700_000] = b'h';
    let upper = layer([
        dir("bin"),
        file("bin/.wh.gone", ""),
        dir("hidden"),
        file("hidden/.wh..wh..opq", ""),
        file("hidden/upper", "upper"),
        file("holes", holes),
    ]);
    let path = temp.join("image.tar");
    fs::write(&path, Layout::simple(&[lower, upper]).tar()).expect("writable");
    let store = Store::open(temp.join("store")).expect("a store");
    let image: ImageRef = format!("oci-archive:{}", path.display()).parse().expect("a reference");
    store.prepare(&image, &mut ()).expect("a good image")
}

/// One for all, made again where it is missing or was never finished, and gone with the image.
#[test]
fn an_image_is_unpacked_once_and_goes_with_its_layers() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let image = image(temp.path());
    let store = Store::open(temp.path().join("store")).expect("a store");
    let disk: Vec<_> = image.disk().cloned().collect();
    let dir = store.unpacked(&disk, &mut ()).expect("unpacked");
    let inode = || fs::metadata(dir.join("hidden/upper")).expect("a file").ino();
    let first = inode();
    assert_eq!(store.unpacked(&disk, &mut ()).expect("unpacked"), dir);
    assert_eq!(inode(), first);
    // As a process leaves it that was killed in the middle of it.
    fs::rename(&dir, dir.with_extension("new")).expect("writable");
    assert_eq!(
        fs::read(store.unpacked(&disk, &mut ()).expect("unpacked").join("hidden/upper")).expect("a file"),
        b"upper"
    );
    assert!(!dir.with_extension("new").exists());
    let with = store.usage().expect("a store").bytes;
    store.prune().expect("a store");
    assert!(dir.is_dir(), "it is in use");
    drop(image);
    assert!(store.prune().expect("a store") > 0 && !dir.exists());
    assert!(store.usage().expect("a store").bytes < with);
    // What was made from nothing that is there any more.
    fs::create_dir_all(dir.join("sub")).expect("writable");
    store.prune().expect("a store");
    assert!(!dir.exists());
}

#[test]
fn layers_are_stacked_and_data_comes_from_the_right_one() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let root = temp.path().join("root");
    fs::create_dir(&root).expect("writable");
    image(temp.path()).unpack(&root).expect("unpacked");
    let read = |path: &str| fs::read(root.join(path)).expect("a file");
    assert_eq!(read("bin/sh"), vec![b'x'; 100_000]);
    assert_eq!((read("hidden/upper"), read("closed/file")), (b"upper".to_vec(), b"inside".to_vec()));
    for gone in ["bin/gone", "hidden/lower", "pipe"] {
        assert!(!root.join(gone).exists(), "{gone}");
    }
    let inode = |path: &str| fs::metadata(root.join(path)).expect("a file").ino();
    assert_eq!(inode("bin/sh"), inode("bin/ash"));
    let mode = |path: &str| fs::metadata(root.join(path)).expect("a file").permissions().mode() & 0o7777;
    assert_eq!((mode("bin/sh"), mode("closed")), (0o4755, 0o500));
    assert_eq!(fs::read_link(root.join("out")).expect("a link"), Path::new("/etc"));
    let holes = read("holes");
    assert!(holes.len() == 1 << 20 && holes[700_000] == b'h' && holes.iter().filter(|b| **b != 0).count() == 1);
}

#[test]
fn a_directory_of_it_is_found_through_links() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let lower =
        layer([dir("etc").mode(0o750), file("etc/x", "x"), dir("var"), symlink("var/conf", "/etc"), file("f", "f")]);
    let path = temp.path().join("image.tar");
    fs::write(&path, Layout::simple(&[lower]).tar()).expect("writable");
    let store = Store::open(temp.path().join("store")).expect("a store");
    let image: ImageRef = format!("oci-archive:{}", path.display()).parse().expect("a reference");
    let image = store.prepare(&image, &mut ()).expect("a good image");
    let out = temp.path().join("out");
    fs::create_dir(&out).expect("writable");
    for none in ["/none", "/f", "/f/x", "/var/none/etc"] {
        assert!(!image.unpack_directory(none.as_bytes(), &out).expect("readable"), "{none}");
    }
    assert!(image.unpack_directory(b"/var/conf", &out).expect("unpacked"));
    let names: Vec<_> =
        fs::read_dir(&out).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["x"]);
    assert_eq!(fs::metadata(&out).expect("a directory").permissions().mode() & 0o7777, 0o750);
}

#[test]
fn what_cannot_be_written_is_said_with_its_path() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let error = image(temp.path()).unpack(&temp.path().join("missing")).expect_err("no directory").to_string();
    assert!(error.contains("cannot unpack") && error.contains("missing"), "{error}");
}
