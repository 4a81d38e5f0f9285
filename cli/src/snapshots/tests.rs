//! The store of snapshots: names, removal that never breaks a child, and what killed processes leave.

use super::making::{Making, Wanted};
use super::record::tests::record;
use super::*;

fn store() -> (tempfile::TempDir, Snapshots) {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::of(dir.path()).unwrap();
    (dir, snapshots)
}

/// Makes one, as a change to `base`.
fn make(snapshots: &Snapshots, name: &str, base: Option<&Held>) -> Held {
    let making = snapshots.begin().unwrap();
    save(&making);
    let ancestors: Vec<Id> = base.iter().map(|held| held.record.id).collect();
    let record = Record { base: base.map(|held| held.record.id), ..record(making.id(), &ancestors) };
    making.finish(record, &Wanted::Name(name.parse().unwrap())).unwrap().1
}

fn save(making: &Making) {
    fs::create_dir(making.path()).unwrap();
    fs::write(making.path().join("memory"), [1; 8192]).unwrap();
}

fn names(snapshots: &Snapshots) -> Vec<String> {
    snapshots.list().unwrap().iter().map(|entry| entry.name.to_string()).collect()
}

#[test]
fn a_snapshot_is_found_by_its_name_and_the_beginning_of_its_id() {
    let (_dir, snapshots) = store();
    let one = make(&snapshots, "one", None);
    let id = one.record.id.to_string();
    for word in ["one", &id, &id[..12]] {
        assert_eq!(snapshots.find(word).unwrap().record, one.record, "{word}");
    }
    for word in ["two", "", "../one", "/etc", ".names", &"x".repeat(1 << 20)] {
        let error = snapshots.find(word).unwrap_err().to_string();
        assert!(error.contains("there is: one") && error.len() < 300, "{word}: {error}");
    }
    assert_eq!(snapshots.list().unwrap()[0].bytes, snapshots.bytes().unwrap());
}

#[test]
fn a_name_is_used_once_and_whoever_is_late_leaves_nothing() {
    let (_dir, snapshots) = store();
    drop(make(&snapshots, "web-1", None));
    let late = snapshots.begin().unwrap();
    save(&late);
    let path = late.path();
    let error = late.finish(record(path_id(&path), &[]), &Wanted::Name("web-1".parse().unwrap())).unwrap_err();
    assert!(matches!(error, SnapshotsError::InUse(_)) && !path.exists());
    let next = snapshots.begin().unwrap();
    save(&next);
    let id = next.id();
    let (name, _held) = next.finish(record(id, &[]), &Wanted::Numbered("web".into())).unwrap();
    assert_eq!(name.as_str(), "web-2");
    // What has been given up is gone, whatever there was of it.
    let given_up = snapshots.begin().unwrap();
    save(&given_up);
    drop(given_up);
    assert_eq!((names(&snapshots).len(), snapshots.ids().unwrap().len()), (2, 2));
}

fn path_id(path: &Path) -> Id {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn removal_leaves_what_a_child_needs_and_what_is_in_use() {
    let (_dir, snapshots) = store();
    let one = make(&snapshots, "one", None);
    let two = make(&snapshots, "two", Some(&one));
    let three = make(&snapshots, "three", Some(&two));
    let paths = [&one, &two, &three].map(|held| held.path().to_owned());
    let there = || paths.each_ref().map(|path| path.exists());
    drop((one, two));
    for name in ["one", "two"] {
        assert_eq!(snapshots.remove(name).unwrap().as_str(), name);
        assert!(snapshots.find(name).is_err());
    }
    assert_eq!((names(&snapshots), there()), (vec!["three".to_owned()], [true; 3]));
    // Nobody has it, but a VM goes on from it, and may make a change to it.
    snapshots.remove("three").unwrap();
    assert_eq!((names(&snapshots), there()), (vec![], [true; 3]));
    let four = make(&snapshots, "four", Some(&three));
    drop(three);
    assert_eq!(snapshots.collect().unwrap(), 0);
    drop(four);
    snapshots.remove("four").unwrap();
    assert_eq!((there(), snapshots.bytes().unwrap()), ([false; 3], 0));
}

#[test]
fn of_each_vm_the_newest_stay_and_what_they_need() {
    let (_dir, snapshots) = store();
    let mut last: Option<Held> = None;
    let lineage = Id::random().unwrap();
    let mut take = |name: &str, vm: &str, created_ns: u64, base: bool| {
        let making = snapshots.begin().unwrap();
        save(&making);
        let base = last.take().filter(|_| base).map(|held| held.record.id);
        let record = Record { base, vm: vm.into(), created_ns, lineage, ..record(making.id(), &[]) };
        last = Some(making.finish(record, &Wanted::Name(name.parse().unwrap())).unwrap().1);
    };
    for number in 1..=4 {
        take(&format!("web-{number}"), "web", number, number > 1);
    }
    take("db-1", "db", 1, false);
    let warm = Name::warm("app").unwrap();
    take(warm.as_str(), "web", 0, false);
    drop(last);
    let bytes = snapshots.bytes().unwrap();
    let (gone, freed) = snapshots.prune(2).unwrap();
    assert_eq!((gone.iter().map(Name::as_str).collect::<Vec<_>>(), freed), (vec!["web-1", "web-2"], 0));
    assert_eq!(names(&snapshots), [warm.as_str(), "db-1", "web-3", "web-4"]);
    // All that they were changes to is there.
    assert_eq!(snapshots.bytes().unwrap(), bytes);
    let (gone, freed) = snapshots.prune(0).unwrap();
    assert_eq!((gone.len(), names(&snapshots)), (3, vec![warm.to_string()]));
    assert!(freed >= 5 * 8192 && snapshots.prune(0).unwrap() == (vec![], 0));
}

#[test]
fn what_a_killed_maker_left_goes_and_what_is_being_made_stays() {
    let (dir, snapshots) = store();
    let base = make(&snapshots, "base", None);
    let making = snapshots.begin().unwrap();
    save(&making);
    // Killed: with its files, with its mark, with a name whose snapshot never came.
    let dead = snapshots.path(Id::random().unwrap());
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("memory"), [1; 8192]).unwrap();
    fs::write(snapshots.dir.join(format!(".{}.making", path_id(&dead))), "").unwrap();
    fs::create_dir(snapshots.dir.join(".0.1.unfinished")).unwrap();
    std::os::unix::fs::symlink("0123456789abcdef", snapshots.dir.join(".names/gone")).unwrap();
    std::os::unix::fs::symlink("../../etc", snapshots.dir.join(".names/elsewhere")).unwrap();
    assert!(snapshots.collect().unwrap() >= 8192);
    assert!(!dead.exists() && making.path().exists());
    let left: Vec<_> = fs::read_dir(&snapshots.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "{left:?}");
    assert!(snapshots.find("elsewhere").is_err() && snapshots.find("gone").is_err());
    let record = Record { base: Some(base.record.id), ..record(making.id(), &[]) };
    making.finish(record, &Wanted::Name("new".parse().unwrap())).unwrap();
    assert_eq!(names(&Snapshots::existing(dir.path()).unwrap()), ["base", "new"]);
}

#[test]
fn nothing_goes_while_a_record_cannot_be_read() {
    let (_dir, snapshots) = store();
    let one = make(&snapshots, "one", None);
    let two = make(&snapshots, "two", Some(&one));
    let path = one.path().to_owned();
    let file = two.path().join(record::FILE);
    let bytes = fs::read(&file).unwrap();
    drop((one, two));
    fs::write(&file, "{").unwrap();
    snapshots.remove("one").unwrap();
    assert!(path.exists());
    assert!(snapshots.find("two").unwrap_err().to_string().contains("bulkhead.json"));
    assert!(snapshots.list().unwrap().is_empty());
    fs::write(&file, bytes).unwrap();
    assert_eq!(snapshots.collect().unwrap(), 0);
    snapshots.remove("two").unwrap();
    assert!(!path.exists());
}

#[test]
fn many_makers_and_removers_do_not_disturb_each_other() {
    let (_dir, snapshots) = store();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let snapshots = &snapshots;
            scope.spawn(move || {
                for round in 0..10 {
                    let (first, second) = (format!("a{worker}-{round}"), format!("b{worker}-{round}"));
                    let base = make(snapshots, &first, None);
                    snapshots.remove(&first).unwrap();
                    let child = make(snapshots, &second, Some(&base));
                    assert!(base.path().join("memory").exists() && child.path().join("memory").exists());
                    drop((base, child));
                    snapshots.remove(&second).unwrap();
                }
            });
        }
    });
    snapshots.collect().unwrap();
    assert_eq!((names(&snapshots).len(), snapshots.ids().unwrap().len()), (0, 0));
}
