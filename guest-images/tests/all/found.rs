//! What the host finds in an image for the guest is what the guest would find.

use crate::support::oci::{Layout, layer};
use crate::support::tar::{Item, Tar, dir, file, item, symlink};
use guest_images::erofs::{Entry, Files};
use guest_images::{ImageRef, PreparedImage, Store};
use proptest::prelude::*;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

fn program(path: &str) -> Item {
    file(path, "#!/bin/sh\n").mode(0o755)
}

/// An image of two layers: the upper one adds a user and hides a program.
fn image(temp: &Path) -> PreparedImage {
    let lower = layer([
        dir("usr"),
        dir("usr/bin"),
        symlink("bin", "usr/bin"),
        program("usr/bin/sh"),
        program("usr/bin/gone"),
        program("usr/bin/real"),
        symlink("usr/bin/link", "../../bin/./real"),
        symlink("usr/bin/null", "/dev/null"),
        symlink("usr/bin/dangling", "nowhere"),
        symlink("usr/bin/loop", "loop"),
        file("usr/bin/data", "not for execution"),
        dir("usr/bin/folder"),
        dir("usr/sbin"),
        program("usr/sbin/folder"),
        dir("etc"),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("etc/group", "root:x:0:\nadm:x:4:web\n"),
    ]);
    let upper = layer([
        dir("usr"),
        dir("usr/bin"),
        file("usr/bin/.wh.gone", ""),
        dir("etc"),
        file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:\n"),
        // More than fits beside an inode.
        file("etc/large", vec![b'x'; 10_000]),
    ]);
    let path = temp.join("image.tar");
    fs::write(&path, Layout::simple(&[lower, upper]).tar()).expect("writable");
    let store = Store::open(temp.join("store")).expect("a store");
    let image: ImageRef = format!("oci-archive:{}", path.display()).parse().expect("a reference");
    store.prepare(&image, &mut ()).expect("a good image")
}

#[test]
fn programs_are_found_where_the_guest_would_execute_them() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let image = image(temp.path());
    let find = |command: &str, path: &str| {
        let env = ["A=b".to_owned(), format!("PATH={path}")];
        image.find("", command, &env).program
    };
    let path = "/usr/local/bin:/usr/sbin:/bin:/usr/bin";
    assert_eq!(find("sh", path).as_deref(), Some("/bin/sh"));
    assert_eq!(find("link", path).as_deref(), Some("/bin/link"));
    assert_eq!(image.find("", "sh", &[]).program.as_deref(), Some("/usr/bin/sh"), "the PATH that a guest would add");
    for (command, path) in [
        ("gone", path),
        ("missing", path),
        ("dangling", path),
        ("loop", path),
        ("null", path),
        // The guest tells why, or goes on to another place.
        ("data", path),
        ("folder", "/bin:/usr/sbin"),
        // Nothing is looked for, or not only in the image.
        ("/bin/sh", path),
        ("", path),
        ("sh", ".:/bin"),
        ("sh", ":/bin"),
        ("sh", "/proc/self:/bin"),
    ] {
        assert_eq!(find(command, path), None, "{command:?} in {path:?}");
    }
}

#[test]
fn users_are_those_of_the_merged_image() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let image = image(temp.path());
    let account = |user: &str| image.find(user, "sh", &[]).account;
    let root = account("").expect("root is there");
    assert_eq!((root.uid, root.gid, root.groups, root.home.as_str()), (0, 0, vec![0], "/root"));
    let web = account("web").expect("the upper layer has it");
    assert_eq!((web.uid, web.gid, web.groups, web.home.as_str()), (33, 44, vec![44, 4], "/srv"));
    assert_eq!(account("nobody"), None, "the guest tells");
}

#[test]
fn an_image_without_accounts_has_root() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let path = temp.path().join("image.tar");
    fs::write(&path, Layout::simple(&[layer([program("sh")])]).tar()).expect("writable");
    let store = Store::open(temp.path().join("store")).expect("a store");
    let image: ImageRef = format!("oci-archive:{}", path.display()).parse().expect("a reference");
    let image = store.prepare(&image, &mut ()).expect("a good image");
    assert_eq!(image.find("", "sh", &[]).account.expect("root").home, "/");
    fs::create_dir_all(temp.path().join("root/etc")).expect("writable");
    std::os::unix::fs::symlink("/proc/self/environ", temp.path().join("root/etc/passwd")).expect("writable");
    let image: ImageRef = format!("rootfs:{}", temp.path().join("root").display()).parse().expect("a reference");
    let image = store.prepare(&image, &mut ()).expect("a directory");
    assert_eq!(image.find("", "sh", &[]).account, None, "not a file of the image");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damaged_images_are_read_to_an_end(damage in proptest::collection::vec((0usize..20_000, any::<u8>()), 1..40)) {
        let tar = Tar::of([
            dir("a"),
            symlink("a/up", "../a/b"),
            file("a/b", vec![1; 9000]),
            symlink("a/loop", "loop/loop"),
            item(b'3', "a/c"),
        ]);
        let mut bytes = crate::support::convert(&tar).expect("a good layer");
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let mut image: File = tempfile::tempfile().expect("a temporary file");
        image.write_all(&bytes).expect("writable");
        if let Ok(files) = Files::open(std::iter::once(&image)) {
            for path in ["/a/up", "a/b", "/a/loop", "a/c", "/x"] {
                if let Ok(Entry::File { nid, .. }) = files.look_up(path.as_bytes()) {
                    let read = files.read(nid, 20_000);
                    prop_assert!(read.is_err() || read.is_ok_and(|data| data.is_none_or(|data| data.len() <= 20_000)));
                }
            }
        }
    }
}
