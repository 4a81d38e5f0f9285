//! One layer from tar to EROFS and read back: what is kept, what whiteouts become, and what is refused.

use crate::support::erofs::{File, Image};
use crate::support::tar::{Tar, dir, file, hard_link, header, item, seal, symlink};
use crate::support::{convert, convert_with};
use guest_images::layer::{Flavour, LayerError, Limits};
use std::collections::BTreeMap;

fn read(tar: &[u8]) -> BTreeMap<Vec<u8>, File> {
    Image::read(&convert(tar).expect("a good layer"))
}

fn get<'a>(files: &'a BTreeMap<Vec<u8>, File>, path: &str) -> &'a File {
    files.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path}"))
}

/// The error for a layer, as text of one line.
fn refusal(tar: &[u8]) -> String {
    let text = convert(tar).expect_err("a bad layer").to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn all_kinds_of_files_survive() {
    let big = (0..20_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let char_device = crate::support::tar::Item { device: (10, 200), ..item(b'3', "dev/tun") };
    let block_device = crate::support::tar::Item { device: (259, 70_000), ..item(b'4', "dev/nvme") };
    let files = read(&Tar::of([
        dir("./").mode(0o700),
        dir("usr/").mode(0o1777).owner(4_000_000_000, 3),
        file("usr/small", "hello\n").mode(0o4755).owner(1, 2).pax("mtime", "1600000000.25"),
        file("usr/big", &big),
        file("usr/block", vec![9; 4096]),
        file("usr/empty", ""),
        symlink("usr/link", "../target"),
        hard_link("usr/again", "usr/big"),
        char_device,
        block_device,
        item(b'6', "fifo"),
        file("old", "x").pax("mtime", "-1.5"),
    ]));
    assert_eq!(get(&files, "").mode, 0o040_700);
    let usr = get(&files, "usr");
    assert_eq!((usr.mode, usr.uid, usr.gid), (0o041_777, 4_000_000_000, 3));
    let small = get(&files, "usr/small");
    assert_eq!((small.mode, small.uid, small.gid), (0o104_755, 1, 2));
    assert_eq!((small.mtime, &small.data[..]), ((1_600_000_000, 250_000_000), &b"hello\n"[..]));
    assert!(get(&files, "usr/big").data == big);
    assert_eq!(get(&files, "usr/block").data, vec![9; 4096]);
    assert_eq!(get(&files, "usr/empty").data, b"");
    assert_eq!(get(&files, "usr/link").data, b"../target");
    assert_eq!(get(&files, "usr/again").nid, get(&files, "usr/big").nid);
    assert_eq!((get(&files, "dev/tun").mode, get(&files, "dev/tun").rdev), (0o020_644, 200 | 10 << 8));
    assert_eq!(get(&files, "dev/nvme").rdev, (70_000 & 0xff) | 259 << 8 | (70_000 & !0xff) << 12);
    assert_eq!(get(&files, "fifo").kind(), 0o010_000);
    assert_eq!(get(&files, "old").mtime, (-2, 500_000_000));
    // The directory that no entry describes.
    assert_eq!((get(&files, "dev").mode, get(&files, "dev").uid), (0o040_755, 0));
    assert_eq!(files.len(), 13);
}

#[test]
fn the_same_layer_gives_the_same_image() {
    let layer = Tar::of([dir("b"), file("b/x", vec![1; 9000]), file("a", "1").pax("SCHILY.xattr.user.k", "v")]);
    assert_eq!(convert(&layer).expect("good"), convert(&layer).expect("good"));
}

#[test]
fn extended_attributes_survive_except_overlayfs_own() {
    let capability = b"\x01\x00\x00\x02\x00\x20\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let large = vec![b'v'; 6000];
    let files = read(&Tar::of([file("ping", vec![1; 1500])
        .pax("SCHILY.xattr.security.capability", capability)
        .pax("SCHILY.xattr.user.large", &large)
        .pax("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0")
        .pax("SCHILY.xattr.trusted.overlay.redirect", "/etc/shadow")
        .pax("SCHILY.xattr.com.apple.quarantine", "x")]));
    let ping = get(&files, "ping");
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = [
        (b"security.capability".to_vec(), capability.to_vec()),
        (b"user.large".to_vec(), large),
        (b"system.posix_acl_access".to_vec(), b"\x02\0\0\0".to_vec()),
    ]
    .into();
    assert_eq!(ping.xattrs, expected);
    assert_eq!(ping.data, vec![1; 1500], "data that no longer fits beside the inode");
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let files = read(&Tar::of([
        dir("etc"),
        file("etc/.wh.gone", ""),
        file("var/cache/.wh..wh..opq", ""),
        file("var/cache/new", "n"),
        file("var/cache/.wh.hidden", ""),
        file("srv/.wh..wh.plnk", ""),
        // Replaced in this layer: whiteouts are about lower layers, in any order.
        file(".wh.opt", ""),
        dir("opt"),
        file("opt/x", "x"),
        dir("lib"),
        file(".wh.lib", ""),
        file("kept", "k"),
        file(".wh.kept", ""),
        file(".wh.late", ""),
        file("late", "l"),
    ]));
    assert!(get(&files, "etc/gone").is_whiteout());
    assert!(!get(&files, "etc").is_opaque());
    assert!(get(&files, "var/cache").is_opaque());
    assert!(!files.contains_key(&b"var/cache/hidden"[..]), "useless in an opaque directory");
    assert!(!files.contains_key(&b"srv"[..]));
    assert!(get(&files, "opt").is_opaque() && get(&files, "lib").is_opaque());
    assert_eq!((&get(&files, "kept").data[..], &get(&files, "late").data[..]), (&b"k"[..], &b"l"[..]));
    assert!(!files.keys().any(|path| path.windows(4).any(|w| w == b".wh.")));
}

#[test]
fn a_root_file_system_has_no_whiteouts() {
    let tar = Tar::of([file("a/.wh.x", "literal")]);
    let image = convert_with(&tar, Flavour::Rootfs, Limits::default()).expect("good");
    assert_eq!(get(&Image::read(&image), "a/.wh.x").data, b"literal");
}

#[test]
fn later_entries_win() {
    let files = read(&Tar::of([
        file("f", "old"),
        file("f", "new"),
        dir("d").mode(0o700),
        file("d/x", "1"),
        dir("d").mode(0o711),
        dir("gone"),
        file("gone/x", "1"),
        file("gone", "now a file"),
        file("turned", "file"),
        dir("turned"),
        file("turned/x", "2"),
    ]));
    assert_eq!(get(&files, "f").data, b"new");
    assert_eq!(get(&files, "d").mode, 0o040_711);
    assert_eq!(get(&files, "d/x").data, b"1");
    assert_eq!(get(&files, "gone").data, b"now a file");
    assert_eq!(get(&files, "turned/x").data, b"2");
    assert!(!files.contains_key(&b"gone/x"[..]));
}

#[test]
fn group_13_names_stay_inside() {
    let files = read(&Tar::of([
        file("/abs/x", "1"),
        file("./a/./b//c", "2"),
        file("a/../e", "3"),
        symlink("out", "/../../.."),
        file("out/etc/passwd", "4"),
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        file("lib/so", "5"),
        symlink("dangling", "not/there"),
        file("dangling/f", "6"),
    ]));
    for (path, data) in
        [("abs/x", "1"), ("a/b/c", "2"), ("e", "3"), ("etc/passwd", "4"), ("usr/lib/so", "5"), ("not/there/f", "6")]
    {
        assert_eq!(get(&files, path).data, data.as_bytes(), "{path}");
    }
    assert_eq!(get(&files, "lib").kind(), 0o120_000);
}

#[test]
fn group_13_hostile_entries_are_refused_by_name() {
    let long = vec![b'n'; 256];
    let deep = "d/".repeat(2100);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Tar::of([file("../x", "")]), "leads out"),
        (Tar::of([file("a/../../x", "")]), "leads out"),
        (Tar::of([file(&long, "")]), "longer than 255"),
        (Tar::of([file(&deep, "")]), "longer than 4095"),
        (Tar::of([file("x", "").pax("path", "a\0b")]), "NUL"),
        (Tar::of([file(".", "data")]), "root"),
        (Tar::of([symlink("a", "b"), symlink("b", "a"), file("a/x", "")]), "symbolic links"),
        (Tar::of([file("f", ""), file("f/x", "")]), "not a directory"),
        (Tar::of([hard_link("h", "later"), file("later", "")]), "not there: 'later'"),
        (Tar::of([hard_link("h", "../../etc/shadow")]), "leads out"),
        (Tar::of([dir("d"), hard_link("h", "d")]), "hard link to a directory"),
        (Tar::of([file(".wh.", "")]), "whiteout"),
        (Tar::of([file("a/.wh...", "")]), "whiteout"),
        (Tar::of([file(".wh.a/b", "")]), "whiteout"),
        (Tar::of([item(b'V', "label")]), "unsupported type"),
        (Tar::of([symlink("s", vec![b't'; 4096])]), "longer than 4095"),
        (Tar::of([crate::support::tar::Item { device: (4096, 0), ..item(b'3', "c") }]), "device number"),
        (Tar::of([file("x", "").pax("SCHILY.xattr.user.a", vec![0; 65536])]), "attributes"),
    ];
    for (tar, expected) in cases {
        let text = refusal(&tar);
        assert!(text.contains(expected), "'{text}' should tell of '{expected}'");
    }
}

#[test]
fn damaged_archives_are_refused() {
    let good = Tar::of([file("a", vec![1; 3000]), dir("d")]);
    for len in [100, 512 + 100, 512 + 3000, good.len() - 1024 - 10] {
        assert!(refusal(&good[..len]).contains("truncated"), "{len}");
    }
    // Without end blocks it is complete.
    assert_eq!(read(&good[..good.len() - 1024]).len(), 3);
    assert!(refusal(b"not a tar archive, but long enough to be a header".repeat(20).as_slice()).contains("checksum"));
    let mut negative = header(&file("n", ""));
    negative[124..136].fill(0xff);
    seal(&mut negative);
    assert!(refusal(&negative).contains("'size'"));
    let huge = crate::support::tar::Item { size: Some(u64::MAX >> 1), ..file("h", "") };
    assert!(convert(&Tar::of([huge])).is_err());
    let mut long_name = Tar::new();
    long_name.block(&header(&crate::support::tar::Item { size: Some(1 << 40), ..item(b'L', "././@LongLink") }));
    assert!(refusal(&long_name.end()).contains("1 MiB"));
}

#[test]
fn gnu_long_names() {
    let (name, target) = ("n".repeat(120) + "/" + &"m".repeat(120), "t".repeat(300));
    let mut tar = Tar::new();
    for (kind, text) in [(b'L', &name), (b'K', &target)] {
        let long = crate::support::tar::Item { data: [text.as_bytes(), b"\0"].concat(), ..item(kind, "././@LongLink") };
        tar.push(long);
    }
    tar.push(symlink("short", "short"));
    let files = read(&tar.end());
    assert_eq!(get(&files, &name).data, target.as_bytes());
}

#[test]
fn sparse_files_in_pax_formats() {
    let data = [vec![b'a'; 512], vec![b'b'; 100]].concat();
    let mut expected = vec![0u8; 100_000];
    expected[1024..1536].fill(b'a');
    expected[50_000..50_100].fill(b'b');
    let map = "1024,512,50000,100";
    let old = file("GNUSparseFile.0/s", &data)
        .pax("GNU.sparse.size", "100000")
        .pax("GNU.sparse.name", "s")
        .pax("GNU.sparse.map", map);
    let mut lines = b"2\n1024\n512\n50000\n100\n".to_vec();
    lines.resize(512, 0);
    let new = file("GNUSparseFile.0/t", [lines, data].concat())
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "t")
        .pax("GNU.sparse.realsize", "100000");
    let files = read(&Tar::of([old.clone(), new]));
    assert!(get(&files, "s").data == expected && get(&files, "t").data == expected);
    for bad in ["1024,512,50000", "1024,512,1000,100", "1024,512,99999,100", "0,18446744073709551615,50000,613"] {
        let item = file("s", vec![0; 612]).pax("GNU.sparse.size", "100000").pax("GNU.sparse.map", bad);
        assert!(refusal(&Tar::of([item])).contains("sparse"), "{bad}");
    }
}

#[test]
fn what_gnu_tar_writes_is_read() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let sparse = std::fs::File::create(temp.path().join("sparse")).expect("writable");
    sparse.set_len(3 << 20).expect("writable");
    std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 2 << 20).expect("writable");
    std::fs::write(temp.path().join("x".repeat(200)), "long name").expect("writable");
    for format in ["gnu", "pax", "ustar"] {
        let mut command = std::process::Command::new("tar");
        command.args(["-cf", "-", "--format", format, "-C"]).arg(temp.path()).arg("sparse");
        if format != "ustar" {
            command.arg("x".repeat(200)).arg("--sparse");
        }
        let output = command.output().expect("GNU tar");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let files = read(&output.stdout);
        let data = &get(&files, "sparse").data;
        assert_eq!((data.len(), &data[2 << 20..(2 << 20) + 6]), (3 << 20, &b"middle"[..]), "{format}");
    }
}

#[test]
fn directories_of_many_blocks() {
    let names: Vec<String> = (0..3000).map(|i| format!("{:a>width$}", i, width = 8 + i % 200)).collect();
    let files = read(&Tar::of(names.iter().map(|name| file(format!("d/{name}"), name))));
    assert_eq!(files.len(), names.len() + 2);
    // Names around "." in byte order.
    let odd = read(&Tar::of([file("!", "1"), file("-", "2"), file("...", "3"), file(".a", "4"), file("\u{ff}", "5")]));
    assert_eq!(odd.len(), 6);
}

#[test]
fn group_13_limits_end_bombs() {
    let limits = |bytes, entries, metadata| Limits { bytes, entries, metadata };
    let many = Tar::of((0..200).map(|i| file(format!("f{i}"), "x")));
    let error = |tar: &[u8], limits| convert_with(tar, Flavour::Layer, limits).expect_err("over the limit").to_string();
    assert!(error(&many, limits(1 << 20, 100, 1 << 20)).contains("more than 100 files"));
    assert!(error(&many, limits(1 << 20, 1000, 10_000)).contains("metadata"));
    assert!(
        error(&Tar::of([file("big", vec![1; 2 << 20])]), limits(1 << 20, 10, 1 << 20)).contains("limit of 1048576")
    );
    let sparse = file("s", "").pax("GNU.sparse.size", "9000000000000000000").pax("GNU.sparse.map", "");
    assert!(error(&Tar::of([sparse]), limits(1 << 30, 10, 1 << 20)).contains("limit"));
    let xattrs = Tar::of((0..40).map(|i| file(format!("{i}"), "").pax("SCHILY.xattr.user.a", vec![0; 60_000])));
    assert!(matches!(
        convert_with(&xattrs, Flavour::Layer, limits(1 << 30, 1000, 1 << 20)),
        Err(LayerError::Entry { .. })
    ));
    // Small files go to blocks of their own when memory for them runs short, and are all there.
    let small = Tar::of((0..400).map(|i| file(format!("f{i}"), vec![i as u8; 2000])));
    let image = convert_with(&small, Flavour::Layer, limits(8 << 20, 1000, 600_000)).expect("within the limits");
    let files = Image::read(&image);
    assert!((0..400).all(|i| get(&files, &format!("f{i}")).data == vec![i as u8; 2000]));
}

#[test]
fn zeros_take_no_space_but_are_there() {
    let mut data = vec![0u8; 1 << 20];
    data[700_000] = 1;
    let tar = Tar::of([file("z", &data)]);
    let out = tempfile::tempfile().expect("temporary file");
    let bytes =
        guest_images::layer::from_tar(&tar[..], &out, Flavour::Layer, Limits::default(), [0; 16]).expect("good");
    let meta = out.metadata().expect("a file");
    assert_eq!(meta.len(), bytes);
    assert!(std::os::unix::fs::MetadataExt::blocks(&meta) * 512 < 200_000);
    let image = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&out))).expect("readable");
    assert!(get(&Image::read(&image), "z").data == data);
}
