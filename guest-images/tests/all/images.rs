//! Images of all kinds to prepared layers, and every way in which one can be wrong.

use crate::support::erofs::Image;
use crate::support::oci::{GZIP, LayerFile, Layout, MANIFEST, PLAIN, ZSTD, config, docker_archive, gzip, layer, zstd};
use crate::support::tar::{Tar, dir, file};
use guest_images::{Digest, ImageError, ImageRef, Limits, PreparedImage, Store};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Place {
    temp: TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let temp = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(temp.path().join("store")).expect("a new store");
        Place { temp, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).expect("writable");
        self.path(name)
    }

    fn prepare(&self, image: &ImageRef) -> Result<PreparedImage, ImageError> {
        self.store.prepare(image, &mut ())
    }

    /// Prepares a layout written as an archive.
    fn archive(&self, layout: &Layout) -> Result<PreparedImage, ImageError> {
        let path = self.write("image.tar", &layout.tar());
        self.prepare(&ImageRef::OciArchive(path, None))
    }

    /// What preparing ends in: one line, and nothing left in the store.
    fn refusal(&self, image: &ImageRef) -> String {
        let text = self.prepare(image).expect_err("a bad image").to_string();
        assert!(!text.contains('\n'), "{text}");
        self.assert_clean();
        text
    }

    fn assert_clean(&self) {
        for dir in ["layers", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.path("store").join(dir)).expect("readable").collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
}

fn content(path: &Path, name: &str) -> Vec<u8> {
    let bytes = fs::read(path).expect("readable");
    Image::read(&bytes).get(name.as_bytes()).unwrap_or_else(|| panic!("no {name}")).data.clone()
}

fn two_layers() -> Vec<LayerFile> {
    let mut upper = layer([file("etc/.wh.old", ""), file("new", "upper")]);
    let tar = Tar::of([file("etc/.wh.old", ""), file("new", "upper")]);
    (upper.media_type, upper.stored) = (ZSTD, zstd(&tar));
    vec![layer([dir("etc"), file("etc/old", "lower")]), upper]
}

#[test]
fn every_source_gives_the_same_layers() {
    let place = Place::new();
    let layers = two_layers();
    let layout = Layout::simple(&layers);
    layout.write_dir(&place.path("dir"));
    let images = [
        ImageRef::OciDir(place.path("dir"), None),
        ImageRef::OciDir(place.path("dir"), Some("v1".into())),
        ImageRef::OciArchive(place.write("plain.tar", &layout.tar()), None),
        ImageRef::OciArchive(place.write("image.tar.gz", &gzip(&layout.tar())), Some("v1".into())),
        ImageRef::OciArchive(place.write("image.tar.zst", &zstd(&layout.tar())), None),
        ImageRef::DockerArchive(place.write("docker.tar", &docker_archive(&["x:1"], &layers)), None),
        ImageRef::DockerArchive(place.path("docker.tar"), Some("x:1".into())),
    ];
    for reference in images {
        let image = place.prepare(&reference).unwrap_or_else(|e| panic!("{reference}: {e}"));
        let digests: Vec<&Digest> = image.layers.iter().map(|l| &l.digest).collect();
        assert_eq!(digests, [&layers[0].diff_id, &layers[1].diff_id], "{reference}");
        assert_eq!(content(&image.layers[0].path, "etc/old"), b"lower");
        assert_eq!(content(&image.layers[1].path, "new"), b"upper");
        assert_eq!(image.layers[1].bytes, fs::metadata(&image.layers[1].path).expect("there").len());
        let config = &image.config;
        assert_eq!((&config.entrypoint[0][..], &config.cmd[0][..]), ("/bin/echo", "hi"));
        assert_eq!((&config.working_dir[..], &config.user[..]), ("/srv", "7:8"));
        assert_eq!((&config.env[0][..], config.stop_signal.as_deref()), ("A=1", Some("SIGINT")));
        assert_eq!((&config.exposed_ports[0][..], &config.volumes[0][..]), ("80/tcp", "/data"));
        assert_eq!(config.labels["k"], "v");
    }
    assert_eq!(place.store.usage().expect("usage").layers, 2, "converted once");
}

#[test]
fn the_platform_is_chosen_through_nested_indexes() {
    let place = Place::new();
    let mut layout = Layout::default();
    let mut arm = layout.image(("linux", "arm64"), &[layer([file("arm", "")])]);
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut amd = layout.image(("linux", "amd64"), &[layer([file("amd", "yes")])]);
    amd["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut attestation = layout.image(("unknown", "unknown"), &[layer([file("x", "")])]);
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = layout.index(vec![arm.clone(), amd, attestation]);
    let outer = layout.index(vec![inner]);
    layout.tag(outer, "multi");
    let image = place.archive(&layout).expect("amd64 is there");
    assert_eq!(content(&image.layers[0].path, "amd"), b"yes");

    let only_arm = Layout { manifests: vec![arm], ..layout.clone() };
    let text = place.archive(&only_arm).expect_err("no amd64").to_string();
    assert!(text.contains("linux/amd64") && text.contains("linux/arm64"), "{text}");

    let mut deep = Layout::simple(&[layer([file("x", "")])]);
    let mut descriptor = deep.manifests.remove(0);
    for _ in 0..8 {
        descriptor = deep.index(vec![descriptor]);
    }
    deep.tag(descriptor, "");
    assert!(place.archive(&deep).expect_err("too deep").to_string().contains("nested"));
}

#[test]
fn tags_choose_and_are_listed() {
    let place = Place::new();
    let mut layout = Layout::default();
    for tag in ["one", "two"] {
        let manifest = layout.image(("linux", "amd64"), &[layer([file("name", tag)])]);
        layout.tag(manifest, tag);
    }
    let path = place.write("image.tar", &layout.tar());
    let text = place.refusal(&ImageRef::OciArchive(path.clone(), None));
    assert!(text.contains("more than one") && text.contains("one, two"), "{text}");
    let text = place.refusal(&ImageRef::OciArchive(path.clone(), Some("three".into())));
    assert!(text.contains("'three'") && text.contains("one, two"), "{text}");
    let image = place.prepare(&ImageRef::OciArchive(path, Some("two".into()))).expect("tagged");
    assert_eq!(content(&image.layers[0].path, "name"), b"two");
}

/// Changes the one blob that `name` finds, without changing what refers to it.
fn spoil(layout: &mut Layout, find: impl Fn(&[u8]) -> bool, change: impl Fn(&mut Vec<u8>)) {
    let at = layout.files.iter().position(|(_, bytes)| find(bytes)).expect("the blob");
    change(&mut layout.files[at].1);
}

#[test]
fn wrong_digests_and_sizes_are_found() {
    let place = Place::new();
    let one = || vec![layer([file("x", vec![7; 100_000])])];
    let layout = Layout::simple(&one());
    let is_gzip = |bytes: &[u8]| bytes.starts_with(&[0x1f, 0x8b]);
    let is_manifest = |bytes: &[u8]| {
        bytes.windows(6).any(|w| w == b"config")
            && bytes.windows(6).any(|w| w == b"layers")
            && !bytes.windows(7).any(|w| w == b"created")
    };
    let is_config = |bytes: &[u8]| bytes.windows(7).any(|w| w == b"created");
    let refused = |layout: &Layout| {
        let path = place.write("image.tar", &layout.tar());
        place.refusal(&ImageRef::OciArchive(path, None))
    };
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    type Case<'a> = (&'a dyn Fn(&[u8]) -> bool, &'a dyn Fn(&mut Vec<u8>), &'a str);
    let cases: [Case<'_>; 6] = [
        (&is_gzip, &flip, "blob digest is wrong"),
        (&is_gzip, &|bytes| bytes.truncate(50), "size is 50 bytes"),
        (&is_gzip, &|bytes| bytes.push(0), "size is"),
        (&is_manifest, &flip, "digest is wrong"),
        (&is_manifest, &|bytes| bytes.truncate(9), "size is 9"),
        (&is_config, &flip, "digest is wrong"),
    ];
    for (find, change, expected) in cases {
        let mut bad = layout.clone();
        spoil(&mut bad, find, change);
        let text = refused(&bad);
        assert!(text.contains(expected), "'{text}' should tell of '{expected}'");
    }
    // Right blob, wrong diff_id.
    let mut liar = one();
    liar[0].diff_id = Digest::of(b"something else");
    let text = refused(&Layout::simple(&liar));
    assert!(text.contains("uncompressed digest is wrong"), "{text}");
    // A good digest of bytes that do not decompress.
    let mut garbage = one();
    garbage[0].stored = [&[0x1f, 0x8b][..], &[0; 100]].concat();
    let text = refused(&Layout::simple(&garbage));
    assert!(text.contains("cannot read the layer"), "{text}");
    // A truncated stream with the right digest.
    let mut short = one();
    short[0].stored.truncate(60);
    let text = refused(&Layout::simple(&short));
    assert!(text.contains("layer sha256:"), "{text}");
}

#[test]
fn what_cannot_be_used_is_refused() {
    let place = Place::new();
    let good = layer([file("x", "")]);
    let typed = |media_type| LayerFile { media_type, ..good.clone() };
    let refused = |layout: &Layout| {
        let path = place.write("image.tar", &layout.tar());
        place.refusal(&ImageRef::OciArchive(path, None))
    };
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "text/plain",
    ] {
        let text = refused(&Layout::simple(&[typed(media_type)]));
        assert!(text.contains("unsupported media type") && text.contains(media_type), "{text}");
    }
    assert!(refused(&Layout::simple(&[])).contains("0 layers"));
    let mut layout = Layout::default();
    let config = layout.blob(crate::support::oci::CONFIG, config(("linux", "amd64"), &[]).to_string().as_bytes());
    let blob = layout.blob(GZIP, &good.stored);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [blob]}).to_string();
    let manifest = layout.blob(MANIFEST, manifest.as_bytes());
    layout.tag(manifest, "");
    assert!(refused(&layout).contains("1 layers but the configuration lists 0"));
    let mut bad_digest = Layout::simple(std::slice::from_ref(&good));
    bad_digest.manifests[0]["digest"] = json!("sha256:../../../../etc/passwd");
    refused(&bad_digest);
    let mut md5 = Layout::simple(&[good]);
    md5.manifests[0]["digest"] = json!("md5:0123456789abcdef0123456789abcdef");
    assert!(refused(&md5).contains("only sha256 and sha512"));
}

#[test]
fn broken_containers_are_refused() {
    let place = Place::new();
    let oci = |bytes: &[u8]| {
        let path = place.write("image.tar", bytes);
        place.refusal(&ImageRef::OciArchive(path, None))
    };
    assert!(oci(b"").contains("index.json"));
    assert!(oci(&[b'x'; 4096]).contains("checksum"));
    assert!(oci(&Tar::of([file("index.json", "{}")])).contains("index.json"));
    let deep = format!("{{\"manifests\":{}", "[".repeat(100_000));
    assert!(oci(&Tar::of([file("index.json", deep)])).contains("index.json"));
    assert!(oci(&Tar::of([file("index.json", vec![b' '; 5 << 20])])).contains("limit of 4 MiB"));
    let whole = Layout::simple(&[layer([file("x", vec![3; 9000])])]).tar();
    assert!(oci(&whole[..whole.len() / 2]).contains("image.tar'"));
    assert!(oci(&gzip(&whole)[..200]).contains("image.tar'"));
    let docker = |bytes: &[u8]| {
        let path = place.write("docker.tar", bytes);
        place.refusal(&ImageRef::DockerArchive(path, None))
    };
    assert!(docker(&whole).contains("manifest.json"));
    let manifest = |text: &str| Tar::of([file("manifest.json", text), file("c.json", "{}")]);
    assert!(docker(&manifest(r#"[{"Config":"c.json","Layers":[]}]"#)).contains("malformed"));
    assert!(docker(&manifest(r#"[{"Config":"../c.json","Layers":[]}]"#)).contains("no file"));
    assert!(docker(&manifest("[]")).contains("more than one image") || docker(&manifest("[]")).contains("nothing"));
    for missing in [ImageRef::OciDir("/does/not/exist".into(), None), ImageRef::Rootfs("/does/not/exist".into())] {
        assert!(place.refusal(&missing).contains("/does/not/exist"));
    }
    // A FIFO in the place of a file must not be waited for.
    let dir = place.path("layout");
    fs::create_dir(&dir).expect("writable");
    let made = std::process::Command::new("mkfifo").arg(dir.join("index.json")).status().expect("mkfifo");
    assert!(made.success());
    assert!(place.refusal(&ImageRef::OciDir(dir, None)).contains("not a regular file"));
}

#[test]
fn bombs_end_at_the_limit() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let limits = Limits { bytes: 4 << 20, entries: 1000, metadata: 1 << 20 };
    let store = Store::open_with(temp.path().join("store"), limits).expect("a new store");
    let prepare = |layout: &Layout| {
        let path = temp.path().join("image.tar");
        fs::write(&path, layout.tar()).expect("writable");
        store.prepare(&ImageRef::OciArchive(path, None), &mut ()).expect_err("too large").to_string()
    };
    let zeros = layer([file("zeros", vec![0; 64 << 20])]);
    assert!(prepare(&Layout::simple(&[zeros])).contains("limit"));
    // Nothing but end-of-archive: the bytes after it are counted too.
    let tail = vec![0u8; 64 << 20];
    let endless = LayerFile { media_type: GZIP, stored: gzip(&tail), diff_id: Digest::of(&tail) };
    assert!(prepare(&Layout::simple(&[endless])).contains("limit"));
    let path = temp.path().join("archive.tar.gz");
    fs::write(&path, gzip(&tail)).expect("writable");
    let text = store.prepare(&ImageRef::OciArchive(path, None), &mut ()).expect_err("too large").to_string();
    assert!(text.contains("when uncompressed"), "{text}");
}

#[test]
fn empty_layers_are_left_out() {
    let place = Place::new();
    let empty = LayerFile { media_type: PLAIN, stored: vec![0; 1024], diff_id: Digest::of(&[0; 1024]) };
    let full = layer([file("x", "1")]);
    let image = place.archive(&Layout::simple(&[empty.clone(), full.clone(), empty.clone()])).expect("good");
    assert_eq!(image.layers.iter().map(|l| &l.digest).collect::<Vec<_>>(), [&full.diff_id]);
    assert_eq!(image.lock.files().len(), 1);
    let image = place.archive(&Layout::simple(&[empty.clone(), empty])).expect("good");
    assert_eq!(image.layers.len(), 1);
}

#[test]
fn a_directory_becomes_an_image() {
    let place = Place::new();
    let root = place.path("root");
    fs::create_dir_all(root.join("etc/.wh.dir")).expect("writable");
    fs::write(root.join("etc/file"), "one").expect("writable");
    fs::write(root.join("big"), vec![5; 10_000]).expect("writable");
    fs::hard_link(root.join("big"), root.join("big2")).expect("writable");
    std::os::unix::fs::symlink("/etc/file", root.join("link")).expect("writable");
    let reference = ImageRef::Rootfs(root.clone());
    let first = place.prepare(&reference).expect("a good directory");
    let bytes = fs::read(&first.layers[0].path).expect("readable");
    let files = Image::read(&bytes);
    assert_eq!(files[&b"etc/file"[..]].data, b"one");
    assert_eq!(files[&b"link"[..]].data, b"/etc/file");
    assert_eq!(files[&b"big"[..]].nid, files[&b"big2"[..]].nid);
    assert_eq!((files[&b"big"[..]].nlink, files[&b"big"[..]].data.len()), (2, 10_000));
    assert!(files.contains_key(&b"etc/.wh.dir"[..]));
    let again = place.prepare(&reference).expect("the same");
    assert_eq!(again.layers, first.layers);
    fs::write(root.join("etc/file"), "two").expect("writable");
    let changed = place.prepare(&reference).expect("good");
    assert_ne!(changed.layers[0].digest, first.layers[0].digest);
    assert_eq!(content(&changed.layers[0].path, "etc/file"), b"two");
}

#[test]
fn a_tarball_of_a_root_file_system_becomes_an_image() {
    let place = Place::new();
    let tar = Tar::of([dir("./etc"), file("./etc/.wh.literal", "1")]);
    for (name, bytes) in [("r.tar", tar.clone()), ("r.tgz", gzip(&tar)), ("r.tzst", zstd(&tar))] {
        let image = place.prepare(&ImageRef::Rootfs(place.write(name, &bytes))).expect("good");
        assert_eq!(content(&image.layers[0].path, "etc/.wh.literal"), b"1");
    }
}
