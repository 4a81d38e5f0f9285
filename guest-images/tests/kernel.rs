//! Judges of our images that are not ours: erofs-utils, and the host's kernel. Both are skipped, loudly, where they are not
//! to be had.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use support::tar::{Tar, dir, file, hard_link, item, symlink};

fn layer() -> Vec<u8> {
    let mut items = vec![
        dir("./").mode(0o755),
        dir("etc").mode(0o750).owner(0, 42),
        file("etc/small", "small\n").mode(0o640).pax("SCHILY.xattr.user.note", "text"),
        file("etc/big", (0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()),
        hard_link("etc/again", "etc/big"),
        symlink("link", "etc/small"),
        item(b'6', "fifo"),
        file("empty", ""),
    ];
    items.extend((0..700).map(|i| file(format!("many/{i:0>40}"), vec![i as u8; i * 3])));
    Tar::of(items)
}

/// What GNU tar finds different between the archive and a directory.
fn differences(dir: &Path, tar: &Path) -> String {
    let output = Command::new("tar").arg("-df").arg(tar).arg("-C").arg(dir).output().expect("GNU tar");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_kernel_reads_what_was_written() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let (tar, image, root) = (temp.path().join("l.tar"), temp.path().join("l.erofs"), temp.path().join("root"));
    fs::create_dir(&root).expect("writable");
    fs::write(&tar, layer()).expect("writable");
    fs::write(&image, support::convert(&layer()).expect("good")).expect("writable");
    let mount = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&image).arg(&root).output();
    if !mount.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED the_kernel_reads_what_was_written: cannot mount erofs here: {mount:?}");
        return;
    }
    let found = differences(&root, &tar);
    let names = fs::read_dir(root.join("many")).expect("readable").count();
    let missing = root.join("many/nothing").exists();
    let unmounted = Command::new("umount").arg(&root).status().expect("umount");
    assert_eq!((found.as_str(), names, missing), ("", 700, false));
    assert!(unmounted.success());
}

#[test]
fn erofs_utils_agree() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let image = temp.path().join("l.erofs");
    fs::write(&image, support::convert(&layer()).expect("good")).expect("writable");
    let Ok(output) = Command::new("fsck.erofs").arg(&image).output() else {
        eprintln!("SKIPPED erofs_utils_agree: no fsck.erofs (package erofs-utils)");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("<E>"), "{text}");
}
