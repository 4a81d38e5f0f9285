//! Any tree of files, written as tar, converted and read back, is the same tree; and no bytes make the converter panic.

use crate::support::convert;
use crate::support::erofs::Image;
use crate::support::tar::{Item, Tar, dir, file, item, symlink};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use std::collections::BTreeMap;

/// A file of any kind at a path of short names, so that paths collide and nest.
fn any_item() -> impl Strategy<Value = Item> {
    let name = prop::collection::vec("[a-c]{1,2}|[ -~&&[^/]]{3,30}|[a-z]{200}", 1..4).prop_map(|parts| parts.join("/"));
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        (any::<u8>(), 0usize..20_000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let kind = prop_oneof![
        4 => content.prop_map(|data| file("", data)),
        2 => Just(dir("")),
        1 => "[!-~]{1,200}".prop_map(|to| symlink("", to)),
        1 => (0u32..4096, 1u32..1 << 20).prop_map(|device| Item { device, ..item(b'3', "") }),
        1 => Just(item(b'6', "")),
    ];
    let xattrs = prop::collection::vec(("user\\.[a-z]{1,20}", prop::collection::vec(any::<u8>(), 1..5000)), 0..3);
    let attrs = (0u32..0o10000, any::<u32>(), any::<u32>(), 0u64..1 << 33);
    (name, kind, attrs, xattrs).prop_map(|(name, kind, (mode, uid, gid, mtime), xattrs)| {
        let item = Item { name: name.into_bytes(), mode, uid, gid, mtime, ..kind };
        xattrs.iter().fold(item, |item, (key, value)| item.pax(format!("SCHILY.xattr.{key}"), value))
    })
}

/// What tar means: later entries win, a directory replaces and is replaced as a whole. `None`: not a valid layer.
fn model(items: &[Item]) -> Option<BTreeMap<Vec<u8>, Item>> {
    let mut tree: BTreeMap<Vec<u8>, Item> = BTreeMap::new();
    for item in items {
        let name = item.name.clone();
        if name.split(|b| *b == b'/').any(|part| matches!(part, b"." | b"..") || part.starts_with(b".wh.")) {
            return None;
        }
        for end in (0..name.len()).filter(|i| name[*i] == b'/') {
            let parent = tree.entry(name[..end].to_vec()).or_insert_with(|| Item { mtime: 0, ..dir(&name[..end]) });
            if parent.kind != b'5' {
                return None;
            }
        }
        if !(item.kind == b'5' && tree.get(&name).is_some_and(|old| old.kind == b'5')) {
            let below = [&name[..], b"/"].concat();
            tree.retain(|path, _| !path.starts_with(&below));
        }
        tree.insert(name, item.clone());
    }
    Some(tree)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        // What has failed once is tried first, from then on.
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/all/round_trip.regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_tree_survives(items in prop::collection::vec(any_item(), 0..12)) {
        let Some(expected) = model(&items) else { return Ok(()) };
        let image = convert(&Tar::of(items)).expect("a good layer");
        let files = Image::read(&image);
        prop_assert_eq!(files.len(), expected.len() + 1);
        for (path, item) in expected {
            let found = files.get(&path).expect("is there");
            let kind = match item.kind { b'0' => 0o100_000, b'5' => 0o040_000, b'2' => 0o120_000, b'3' => 0o020_000, _ => 0o010_000 };
            prop_assert_eq!(u32::from(found.mode), kind | item.mode);
            prop_assert_eq!((found.uid, found.gid), (item.uid, item.gid));
            prop_assert_eq!(found.mtime, (item.mtime as i64, 0));
            let data = if item.kind == b'2' { &item.link } else { &item.data };
            prop_assert!(found.data == *data);
            let xattrs: BTreeMap<Vec<u8>, Vec<u8>> =
                item.pax.iter().filter_map(|(k, v)| Some((k.strip_prefix(b"SCHILY.xattr.")?.to_vec(), v.clone()))).collect();
            prop_assert_eq!(&found.xattrs, &xattrs);
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(items in prop::collection::vec(any_item(), 0..4), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), cut in any::<prop::sample::Index>()) {
        let mut tar = Tar::of(items);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
            // Make the damaged header count.
            let start = at / 512 * 512;
            let header: &mut [u8; 512] = (&mut tar[start..start + 512]).try_into().expect("a block");
            crate::support::tar::seal(header);
        }
        tar.truncate(cut.index(tar.len() * 2));
        if let Ok(image) = convert(&tar) {
            Image::read(&image);
        }
    }
}

/// A root directory may be as long as what is left of the first block, or longer.
#[test]
fn a_root_directory_of_any_length_is_found() {
    for length in (3800..4300).step_by(4) {
        // Each entry takes twelve bytes and its name.
        let name = |at: usize, length: usize| format!("{at:03}{}", "x".repeat(length - 3));
        let mut left = length - 2 * 12 - 3;
        let mut items = Vec::new();
        while left > 12 + 3 {
            let name = name(items.len(), (left - 12).min(200));
            left -= 12 + name.len();
            items.push(dir(&name));
        }
        let image = convert(&Tar::of(items.clone())).expect("a good layer");
        assert_eq!(Image::read(&image).len(), items.len() + 1, "{length} bytes");
    }
}
