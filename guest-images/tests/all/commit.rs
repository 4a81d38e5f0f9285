//! New images of loaded ones: the layers of theirs, and one more.

use crate::support::oci::{Layout, docker_archive, layer};
use crate::support::tar::{Tar, file};
use guest_images::{ImageError, ImageRef, Said, Store};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

const SAID: Said<'_> =
    Said { created: "2026-01-02T03:04:05Z", created_by: "sh -c make", author: "somebody", comment: "why" };

fn open(dir: &Path) -> Store {
    Store::open(dir.join("store")).expect("a store")
}

fn blobs(dir: &Path) -> usize {
    fs::read_dir(dir.join("store/blobs/sha256")).map_or(0, Iterator::count)
}

fn commit(store: &Store, base: &str, name: &str) -> Result<guest_images::ImageInfo, ImageError> {
    let write = |out: &mut dyn Write| {
        let changed = Tar::of([file("c", "new"), file(".wh.a", "")]);
        out.write_all(&changed).map_err(|source| ImageError::Io { action: "write", path: "layer".into(), source })
    };
    store.commit(base, name, SAID, write, |config| config["User"] = "www".into())
}

#[test]
fn an_image_gets_a_layer_and_is_one() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let layers = [layer([file("a", "a"), file("b", "b")])];
    fs::write(temp.path().join("oci.tar"), Layout::simple(&layers).tar()).expect("writable");
    fs::write(temp.path().join("docker.tar"), docker_archive(&["base:1"], &layers)).expect("writable");
    for archive in ["oci.tar", "docker.tar"] {
        let store = open(temp.path());
        store.load(&temp.path().join(archive), Some("base"), &mut ()).expect("good");
        let base = store.details("base").expect("loaded");
        let made = commit(&store, &base.info.id.to_string(), "team/new:2").expect("room");
        let new = store.details("team/new:2").expect("made");
        assert_eq!((new.info.id.clone(), new.layers.len()), (made.id, 2));
        assert_eq!(new.layers[0], base.layers[0], "the same layer, not another");
        let step = &store.history("team/new:2").expect("made")[0];
        assert_eq!((step.created_by.as_str(), step.comment.as_str()), ("sh -c make", "why"));
        let prepared = store.prepare(&ImageRef::Name("team/new:2".into()), &mut ()).expect("an image");
        assert_eq!((prepared.layers.len(), prepared.config.user.as_str()), (2, "www"));

        // It is whole without its base, and elsewhere.
        store.remove("base").expect("loaded");
        let mut saved = Vec::new();
        store.save(&["team/new:2".to_owned()], &mut saved).expect("whole");
        fs::write(temp.path().join("saved.tar"), saved).expect("writable");
        store.remove("team/new:2").expect("loaded");
        assert_eq!(blobs(temp.path()), 0);
        let again = store.load(&temp.path().join("saved.tar"), None, &mut ()).expect("good");
        assert_eq!(again[0].id, new.info.id);
        store.remove("team/new:2").expect("loaded");
    }
}

#[test]
fn what_fails_leaves_nothing() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let layers = [layer([file("a", "a")])];
    fs::write(temp.path().join("oci.tar"), Layout::simple(&layers).tar()).expect("writable");
    let store = open(temp.path());
    assert!(matches!(commit(&store, "none", "x"), Err(ImageError::NotFound { .. })));
    store.load(&temp.path().join("oci.tar"), Some("base"), &mut ()).expect("good");
    let before = blobs(temp.path());
    let broken = |out: &mut dyn Write| {
        out.write_all(&[1; 5000])
            .and_then(|()| Err(io::Error::other("the guest is gone")))
            .map_err(|source| ImageError::Io { action: "write", path: "layer".into(), source })
    };
    let error = store.commit("base", "x", SAID, broken, |_| ()).unwrap_err();
    assert!(format!("{error:?}").contains("gone"), "{error:?}");
    let nonsense = |out: &mut dyn Write| {
        let write =
            out.write_all(b"this is no tar archive, whatever it is called: it is some text that goes on for a while");
        write.map_err(|source| ImageError::Io { action: "write", path: "layer".into(), source })
    };
    store.commit("base", "x", SAID, nonsense, |_| ()).unwrap_err();
    assert!(commit(&store, "base", "NOT A NAME").is_err());
    assert_eq!(store.list().expect("a store").len(), 1);
    drop(store);
    let store = open(temp.path());
    store.prune().expect("a store");
    assert_eq!(blobs(temp.path()), before);
    assert_eq!(fs::read_dir(temp.path().join("store/tmp")).expect("a store").count(), 0);
}
