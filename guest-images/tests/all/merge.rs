//! Layers merged into one file system are what overlayfs would make of them.

use crate::support::convert;
use crate::support::erofs::{File, Image};
use crate::support::tar::{Item, Tar, dir, file, hard_link, item, symlink};
use guest_images::erofs::{merge, read_tree};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};

type Files = BTreeMap<Vec<u8>, File>;

fn on_disk(image: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(image).expect("writable");
    file
}

/// Merges layer images and reads the disk that they make.
fn merged(layers: &[Vec<u8>]) -> Files {
    let files: Vec<_> = layers.iter().map(|layer| on_disk(layer)).collect();
    let parts: Vec<_> = files.iter().zip(layers).map(|(file, layer)| (file, layer.len() as u64)).collect();
    let mut out = Cursor::new(Vec::new());
    let own = merge(&parts, &mut out, [7; 16], 1 << 28, 1 << 20).expect("good layers") as usize;
    let mut disk = out.into_inner();
    assert_eq!(disk.len(), own);
    layers.iter().for_each(|layer| disk.extend(layer));
    Image::read_disk(&disk, own)
}

/// What overlayfs shows of layers, by the rules of its documentation.
fn overlay(layers: &[Vec<u8>]) -> Files {
    let mut seen = Files::new();
    for layer in layers {
        for (path, mut file) in Image::read(layer) {
            let opaque = file.is_opaque();
            let is_dir = file.kind() == 0o040_000;
            let merges = is_dir && !opaque && seen.get(&path).is_none_or(|below| below.kind() == 0o040_000);
            if !merges {
                let below = [&path[..], b"/"].concat();
                seen.retain(|other, _| other != &path && !other.starts_with(&below));
            }
            file.xattrs.remove(&b"trusted.overlay.opaque"[..]);
            if !file.is_whiteout() {
                seen.insert(path, file);
            }
        }
    }
    seen
}

/// Without what a merge numbers anew.
fn comparable(files: &Files) -> Files {
    files.iter().map(|(path, file)| (path.clone(), File { nid: 0, nlink: 0, ..file.clone() })).collect()
}

#[test]
fn layers_stack() {
    let large = vec![7; 100_000];
    let layers = [
        vec![
            dir("etc"),
            file("etc/passwd", "low"),
            file("etc/gone", "x"),
            file("big", &large),
            dir("opaque"),
            file("opaque/hidden", "x"),
            file("becomes-dir", "x"),
            dir("becomes-file"),
            file("becomes-file/x", "x"),
        ],
        vec![
            file("etc/passwd", "high"),
            file("etc/.wh.gone", ""),
            file("bigger", vec![9; 200_000]),
            file("opaque/.wh..wh..opq", ""),
            file("opaque/own", "y"),
            dir("becomes-dir"),
            file("becomes-dir/inside", "z"),
            file("becomes-file", "now"),
            hard_link("another", "bigger"),
            symlink("link", "etc"),
        ],
        vec![file(".wh.nothing", ""), file("top", vec![1; 5000])],
    ];
    let images: Vec<_> = layers.into_iter().map(|items| convert(&Tar::of(items)).expect("a good layer")).collect();
    let files = merged(&images);
    let names: Vec<_> = files.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    assert_eq!(
        names,
        [
            "",
            "another",
            "becomes-dir",
            "becomes-dir/inside",
            "becomes-file",
            "big",
            "bigger",
            "etc",
            "etc/passwd",
            "link",
            "opaque",
            "opaque/own",
            "top"
        ]
    );
    let data = |path: &str| &files[path.as_bytes()].data;
    assert!(*data("etc/passwd") == b"high" && *data("big") == large && data("bigger") == &vec![9; 200_000]);
    assert!(files[&b"another"[..]].nid == files[&b"bigger"[..]].nid && *data("top") == vec![1; 5000]);
    assert_eq!(comparable(&files), comparable(&overlay(&images)));
}

fn any_item() -> impl Strategy<Value = Item> {
    let part = prop_oneof![4 => "[a-c]", 1 => "\\.wh\\.[a-c]"];
    let parents = prop::collection::vec("[a-c]", 0..3);
    let name = (parents, part).prop_map(|(mut parents, last)| {
        parents.push(last);
        parents.join("/")
    });
    let item = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..10_000).prop_map(|data| file("", data)),
        3 => Just(dir("")),
        1 => Just(symlink("", "a/b")),
        1 => Just(Item { device: (7, 7), ..item(b'3', "") }),
        1 => Just(file(".wh..wh..opq", "")),
    ];
    (name, item, 0u32..0o10000).prop_map(|(name, item, mode)| match item.name.is_empty() {
        true if name.contains(".wh.") => file(name, ""),
        true => Item { name: name.into_bytes(), mode, ..item },
        false => Item { name: [name.replace(".wh.", "").as_bytes(), b"/", &item.name].concat(), ..item },
    })
}

proptest! {
    #[test]
    fn any_layers_stack_as_overlayfs_stacks_them(
        layers in prop::collection::vec(prop::collection::vec(any_item(), 0..10), 1..5)
    ) {
        let images: Result<Vec<_>, _> = layers.into_iter().map(|items| convert(&Tar::of(items))).collect();
        let Ok(images) = images else { return Ok(()) };
        prop_assert_eq!(comparable(&merged(&images)), comparable(&overlay(&images)));
    }

    #[test]
    fn a_damaged_layer_is_an_error_at_worst(
        items in prop::collection::vec(any_item(), 0..10),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let Ok(mut image) = convert(&Tar::of(items)) else { return Ok(()) };
        let meta = image.len() - 4096;
        for (at, byte) in damage {
            // Half of it where the inodes are, some in the superblock.
            let at = match byte % 4 {
                0 => 1024 + at.index(64),
                1 => at.index(image.len()),
                _ => meta + at.index(4096),
            };
            image[at] ^= byte;
        }
        image.truncate(4096.max(cut.index(2 * image.len())));
        let _ = read_tree(&on_disk(&image), 1 << 24, 1000);
    }
}
