//! Loaded images given on: the same bytes come out that came in, under the same digests, however they came.

use crate::support::oci::{Layout, ZSTD, docker_archive, layer, zstd};
use crate::support::tar::{Tar, file};
use guest_images::{ImageError, Store};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

fn open(dir: &Path) -> Store {
    Store::open(dir.join("store")).expect("a store")
}

fn saved(store: &Store, names: &[&str]) -> Vec<u8> {
    let mut archive = Vec::new();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    store.save(&names, &mut archive).expect("loaded");
    archive
}

fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let mut files = BTreeMap::new();
    for entry in archive.entries().expect("a tar file") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("in memory");
        assert!(files.insert(name, bytes).is_none(), "a file twice");
    }
    files
}

fn blob_count(dir: &Path) -> usize {
    fs::read_dir(dir.join("store/blobs/sha256")).map_or(0, Iterator::count)
}

/// Two images that share a layer, one of them packed in another way.
fn layouts() -> (Layout, Layout) {
    let shared = layer([file("shared", "s")]);
    let mut other = layer([file("b", "b")]);
    (other.media_type, other.stored) = (ZSTD, zstd(&Tar::of([file("b", "b")])));
    (Layout::simple(&[shared.clone(), layer([file("a", "a")])]), Layout::simple(&[shared, other]))
}

#[test]
fn what_is_saved_is_what_was_loaded() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let (first, second) = layouts();
    fs::write(temp.path().join("first.tar"), first.tar()).expect("writable");
    second.write_dir(&temp.path().join("second"));
    let store = open(temp.path());
    store.load(&temp.path().join("first.tar"), Some("team/first:1"), &mut ()).expect("good");
    store.load(&temp.path().join("second"), Some("second"), &mut ()).expect("good");
    store.tag("second", "again:2").expect("loaded");
    let archive = saved(&store, &["team/first:1", "second", "again:2", "second"]);
    let found = files(&archive);
    for (name, bytes) in first.files.iter().chain(&second.files) {
        assert_eq!(found.get(name), Some(bytes), "{name}");
    }
    // Seven blobs: the shared layer is there once.
    assert_eq!(found.len(), 7 + 3, "{:?}", found.keys());
    assert_eq!(archive, saved(&store, &["team/first:1", "second", "again:2"]), "the same images, the same archive");

    // Into an empty store, by the layout and by docker's table, which say the same.
    let before = store.list().expect("readable");
    for without in ["manifest.json", "index.json", ""] {
        let other = tempfile::tempdir().expect("temporary directory");
        let kept = found.iter().filter(|(name, _)| *name != without);
        let path = other.path().join("saved.tar");
        fs::write(&path, Tar::of(kept.map(|(name, bytes)| file(name, bytes.clone())))).expect("writable");
        let store = open(other.path());
        let loaded = store.load(&path, None, &mut ()).expect("good");
        assert_eq!((loaded.len(), store.list().expect("readable")), (3, before.clone()), "without {without:?}");
        if without != "index.json" {
            assert_eq!(saved(&store, &["team/first:1", "second", "again:2"]), archive, "without {without:?}");
        }
    }
}

#[test]
fn an_image_that_came_without_a_manifest_gets_one() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let path = temp.path().join("docker.tar");
    let packed = layer([file("a", "a")]);
    let mut plain = layer([file("b", "b")]);
    plain.stored = Tar::of([file("b", "b")]);
    fs::write(&path, docker_archive(&["d:1"], &[packed.clone(), plain])).expect("writable");
    let store = open(temp.path());
    store.load(&path, None, &mut ()).expect("good");
    let details = store.details("d:1").expect("loaded");
    let found = files(&saved(&store, &["d:1"]));
    let manifest = &found[&format!("blobs/sha256/{}", details.manifest.hex())];
    let manifest: serde_json::Value = serde_json::from_slice(manifest).expect("JSON");
    let types: Vec<_> = manifest["layers"].as_array().expect("layers").iter().map(|l| &l["mediaType"]).collect();
    let tar = "application/vnd.oci.image.layer.v1.tar";
    assert_eq!(types, [&format!("{tar}+gzip"), tar], "{manifest}");
    assert_eq!(manifest["config"]["digest"], details.info.id.to_string());
    assert!(found.values().any(|bytes| *bytes == packed.stored));
}

#[test]
fn an_image_has_several_names_and_is_known_by_its_id() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let (first, second) = layouts();
    let store = open(temp.path());
    for (name, layout) in [("first", first), ("second", second)] {
        fs::write(temp.path().join(name), layout.tar()).expect("writable");
        store.load(&temp.path().join(name), None, &mut ()).expect("good");
    }
    let id = store.image("first").expect("loaded").id;
    store.tag(&id.hex()[..12], "host.example:5000/x/y:3").expect("by its id");
    assert_eq!(store.details(&id.to_string()).expect("by its id").names, ["first:latest", "host.example:5000/x/y:3"]);
    assert_eq!(store.details("y:3").expect("by the end of its name").config["os"], "linux");
    assert!(matches!(store.tag("third", "x"), Err(ImageError::NotFound { .. })));
    assert!(matches!(store.tag("first", "UPPER"), Err(ImageError::Reference(_))));
    assert!(matches!(store.image(&format!("sha256:{}", "0".repeat(64))), Err(ImageError::NotFound { .. })));

    // A name that goes to another image; blobs go with the last name of what has them.
    assert_eq!(blob_count(temp.path()), 7);
    store.tag("second", "first").expect("loaded");
    assert_eq!(store.image("first").expect("there").id, store.image("second").expect("there").id);
    store.remove("y:3").expect("loaded");
    assert_eq!(blob_count(temp.path()), 4, "the second image's");
    store.remove("first").expect("loaded");
    assert_eq!(blob_count(temp.path()), 4);
    store.remove("second").expect("loaded");
    assert_eq!(blob_count(temp.path()), 0);
}

#[test]
fn history_gives_each_layer_to_its_step() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let mut layout = Layout::default();
    let layers = [layer([file("a", "a")]), layer([file("b", vec![7; 9000])])];
    let mut config =
        crate::support::oci::config(("linux", "amd64"), &[layers[0].diff_id.clone(), layers[1].diff_id.clone()]);
    config["history"] = serde_json::json!([
        { "created": "2026-01-01T00:00:00Z", "created_by": "ADD a" },
        { "created_by": "ENV x", "empty_layer": true },
    ]);
    let descriptor = layout.image_of(&config, &layers);
    layout.tag(descriptor, "v1");
    fs::write(temp.path().join("i.tar"), layout.tar()).expect("writable");
    let store = open(temp.path());
    store.load(&temp.path().join("i.tar"), Some("i"), &mut ()).expect("good");
    let steps = store.history("i").expect("loaded");
    let shown: Vec<_> = steps.iter().map(|step| (&step.created_by[..], step.bytes)).collect();
    // The image's maker said nothing of its last layer.
    let sizes: Vec<u64> = store.details("i").expect("loaded").layers.iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(shown, [("", sizes[1]), ("ENV x", 0), ("ADD a", sizes[0])]);
}

#[test]
fn images_of_earlier_versions_say_what_they_lack() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let (first, _) = layouts();
    let path = temp.path().join("first");
    fs::write(&path, first.tar()).expect("writable");
    let store = open(temp.path());
    store.load(&path, None, &mut ()).expect("good");
    let record = fs::read_dir(temp.path().join("store/images")).expect("readable").next().expect("one").expect("one");
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(record.path()).expect("readable")).expect("JSON");
    json.as_object_mut().expect("an object").remove("original");
    fs::write(record.path(), json.to_string()).expect("writable");
    assert!(store.prune().expect("writable") > 0);
    assert_eq!(blob_count(temp.path()), 0, "nobody's");
    let mut out = Vec::new();
    let error = store.save(&["first".into()], &mut out).expect_err("nothing to save").to_string();
    assert!(error.contains("load it again") && out.is_empty(), "{error}");
    assert!(store.details("first").is_err() && store.prepare(&"first".parse().expect("a name"), &mut ()).is_ok());
    store.load(&path, None, &mut ()).expect("good");
    store.details("first").expect("complete again");
}

/// A blob that is being given on stays until that is done; one that is not what its digest says is not kept.
#[test]
fn blobs_in_use_stay_and_wrong_ones_do_not_come_in() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let (first, _) = layouts();
    let path = temp.path().join("first");
    fs::write(&path, first.tar()).expect("writable");
    let store = open(temp.path());
    store.load(&path, None, &mut ()).expect("good");
    let id = store.image("first").expect("loaded").id;
    let held = store.blob(&id).expect("readable").expect("there");
    store.remove("first").expect("loaded");
    assert_eq!(blob_count(temp.path()), 1);
    drop(held);
    assert!(store.prune().expect("works") > 0);
    assert_eq!(blob_count(temp.path()), 0);
    let write = |file: &mut fs::File| {
        std::io::Write::write_all(file, b"something else").expect("writable");
        Ok(())
    };
    assert!(matches!(store.keep_blob(&id, write), Err(ImageError::LayerDigest { .. })));
    assert!(store.blob(&id).expect("readable").is_none());
    assert_eq!(fs::read_dir(temp.path().join("store/tmp")).expect("readable").count(), 0);
}
