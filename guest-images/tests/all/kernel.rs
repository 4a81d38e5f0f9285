//! Judges of our images that are not ours: erofs-utils, and the host's kernel. Both are skipped, loudly, where they are not
//! to be had.

use crate::support::tar::{Tar, dir, file, hard_link, item, symlink};
use std::fs;
use std::path::Path;
use std::process::Command;

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
    fs::write(&image, crate::support::convert(&layer()).expect("good")).expect("writable");
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
    fs::write(&image, crate::support::convert(&layer()).expect("good")).expect("writable");
    let Ok(output) = Command::new("fsck.erofs").arg(&image).output() else {
        eprintln!("SKIPPED erofs_utils_agree: no fsck.erofs (package erofs-utils)");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("<E>"), "{text}");
}

/// Mounts for one test, undone in reverse order whatever happens.
struct Mounts(Vec<std::path::PathBuf>);

impl Mounts {
    fn add(&mut self, arguments: &[&str], what: &Path, at: &Path) -> bool {
        fs::create_dir_all(at).expect("writable");
        let mount = Command::new("mount").args(arguments).arg(what).arg(at).output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        if mounted {
            self.0.push(at.to_owned());
        }
        mounted
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let unmounted = Command::new("umount").arg(path).status();
            assert!(unmounted.is_ok_and(|status| status.success()), "umount {}", path.display());
        }
    }
}

#[test]
fn overlayfs_understands_whiteouts_and_opaque_directories() {
    let lower = Tar::of([
        file("etc/kept", "lower"),
        file("etc/gone", "lower"),
        file("var/hidden", "lower"),
        dir("opt/gone/sub"),
        file("srv", "a file"),
    ]);
    let upper = Tar::of([
        file("etc/.wh.gone", ""),
        file("var/.wh..wh..opq", ""),
        file("var/new", "upper"),
        file("opt/.wh.gone", ""),
        file("srv/x", "upper").pax("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
    ]);
    let temp = tempfile::tempdir().expect("temporary directory");
    let at = |name: &str| temp.path().join(name);
    let mut mounts = Mounts(Vec::new());
    for (name, tar) in [("lower", &lower), ("upper", &upper)] {
        let image = at(&format!("{name}.erofs"));
        fs::write(&image, crate::support::convert(tar).expect("good")).expect("writable");
        if !mounts.add(&["-t", "erofs", "-o", "loop,ro"], &image, &at(name)) {
            eprintln!("SKIPPED overlayfs_understands_whiteouts_and_opaque_directories: cannot mount erofs here");
            return;
        }
    }
    let layers = format!("lowerdir={}:{}", at("upper").display(), at("lower").display());
    assert!(mounts.add(&["-t", "overlay", "-o", &layers], Path::new("overlay"), &at("root")));
    let list = |name: &str| {
        let entries = fs::read_dir(at("root").join(name)).expect("a directory");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("readable").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(list("etc"), ["kept"]);
    assert_eq!(list("var"), ["new"]);
    assert_eq!(list("opt"), [""; 0]);
    assert_eq!(list("srv"), ["x"]);
    assert_eq!(fs::read(at("root").join("srv/x")).expect("readable"), b"upper");
}
