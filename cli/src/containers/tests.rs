use super::record::tests::record;
use super::*;
use std::path::Path;

fn store() -> (tempfile::TempDir, Containers) {
    let dir = tempfile::tempdir().unwrap();
    let containers = Containers::of(dir.path()).unwrap();
    (dir, containers)
}

fn create(containers: &Containers, name: Option<&str>, rm: bool) -> anyhow::Result<(String, Held, Record)> {
    let with = |id| {
        let mut record = record(&id);
        record.flags.rm = rm;
        record
    };
    containers.create(name, with, |_, _| Ok(()))
}

/// As a process that is killed leaves it.
fn kill(held: Held) {
    held.passed_on();
}

/// Everything in a directory, however deep, but for the lock, and for what has happened.
fn all(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name() != ".lock" && entry.file_name() != "events")
    {
        names.push(entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            names.extend(all(&entry.path()));
        }
    }
    names.sort();
    names
}

const EMPTY: [&str; 3] = [".names", ".running", "containers"];

#[test]
fn containers_are_found_by_name_id_and_what_only_one_begins_with() {
    let (_dir, containers) = store();
    let (name, held, first) = create(&containers, Some("web"), false).unwrap();
    assert_eq!((name.as_str(), held.id()), ("web", &first.id));
    let (made_up, ..) = create(&containers, None, false).unwrap();
    assert!(made_up.contains('_'), "{made_up}");
    for word in ["web", first.id.as_str(), first.id.short()] {
        let entry = containers.find(word).unwrap();
        assert_eq!((entry.name.as_str(), &entry.record, &entry.dir), ("web", &first, &held.dir()), "{word}");
    }
    assert_eq!(containers.list().unwrap().len(), 2);
    assert_eq!(containers.name_of(&first.id).as_deref(), Some("web"));
    for word in ["", "we", "..", "../web", "x\n", "none"] {
        let error = containers.find(word).unwrap_err();
        assert!(
            matches!(error, ContainersError::NotFound(_)) && !error.to_string().contains('\n'),
            "{word:?}: {error}"
        );
    }
    // Sixteen more: two of them begin alike.
    let more: Vec<_> = (0..16).map(|_| create(&containers, None, false).unwrap()).collect();
    let ambiguous = more
        .iter()
        .any(|(.., record)| matches!(containers.find(&record.id.as_str()[..1]), Err(ContainersError::Ambiguous(_))));
    assert!(ambiguous);
}

#[test]
fn a_name_is_one_containers() {
    let (_dir, containers) = store();
    let (_, _held, first) = create(&containers, Some("web"), false).unwrap();
    let error = create(&containers, Some("web"), false).unwrap_err().to_string();
    assert!(error.contains("\"web\" is already in use") && error.contains(first.id.as_str()), "{error}");
    create(&containers, Some("db"), false).unwrap();
    assert!(matches!(containers.rename("db", "web"), Err(ContainersError::InUse { .. })));
    assert!(matches!(containers.rename("db", "../x"), Err(ContainersError::BadName(_))));
    assert_eq!(containers.rename("db", "db2").unwrap(), "db");
    assert!(containers.find("db").is_err() && containers.find("db2").is_ok());
    create(&containers, Some("db"), false).unwrap();
}

#[test]
fn one_that_is_somebodys_cannot_be_taken_or_removed() {
    let (dir, containers) = store();
    let (_, held, record) = create(&containers, Some("web"), false).unwrap();
    assert!(matches!(containers.take("web"), Err(ContainersError::Busy(_))));
    assert!(matches!(containers.remove("web"), Err(ContainersError::Busy(_))));
    containers.sweep().unwrap();
    drop(held);
    assert!(containers.runner(&record.id).unwrap().is_none());
    let (name, held, taken) = containers.take(record.id.short()).unwrap();
    assert_eq!((name.as_str(), &taken), ("web", &record));
    assert!(containers.runner(&record.id).unwrap().is_some());
    assert!(matches!(containers.remove("web"), Err(ContainersError::Busy(_))));
    drop(held);
    assert_eq!(containers.remove("web").unwrap(), "web");
    assert_eq!(all(dir.path()), EMPTY);
}

#[test]
fn a_lock_can_be_passed_on() {
    let (dir, containers) = store();
    let (_, held, record) = create(&containers, Some("web"), true).unwrap();
    let shared = held.share().unwrap();
    held.passed_on();
    assert!(matches!(containers.take("web"), Err(ContainersError::Busy(_))));
    // Not by one that only says so.
    let stranger = File::open(containers.path(&record.id)).unwrap();
    assert!(matches!(containers.take_over(&record.id, stranger), Err(ContainersError::Busy(_))));
    let other = File::open(dir.path()).unwrap();
    assert!(matches!(containers.take_over(&record.id, other), Err(ContainersError::Busy(_))));
    fs::remove_file(containers.mark_path(&record.id)).unwrap();
    let (held, same) = containers.take_over(&record.id, shared).unwrap();
    assert_eq!(same, record);
    assert!(containers.runner(&record.id).unwrap().is_some());
    drop(held);
    assert_eq!(all(dir.path()), EMPTY);
}

/// Taken over by one process after the other, it has one at any time.
#[test]
fn somebody_runs_it_while_it_is_passed_on() {
    let (_dir, containers) = store();
    let (_, held, record) = create(&containers, Some("web"), true).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut looked = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(containers.runner(&record.id).unwrap().is_some(), "after {looked}");
                looked += 1;
            }
        });
        for _ in 0..2000 {
            let (next, _) = containers.take_over(&record.id, held.share().unwrap()).unwrap();
            next.passed_on();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        looks.join().unwrap();
    });
}

#[test]
fn what_a_killed_owner_had_has_ended_or_goes() {
    let (dir, containers) = store();
    let (_, held, mut record) = create(&containers, Some("stays"), false).unwrap();
    record.start();
    record.write(&held.dir(), false).unwrap();
    kill(held);
    kill(create(&containers, Some("goes"), true).unwrap().1);
    // Never started, half made, half removed.
    kill(create(&containers, Some("new"), false).unwrap().1);
    let half = containers.path(&Id::random().unwrap());
    fs::create_dir(&half).unwrap();
    fs::write(half.join("record.json.new"), "{").unwrap();
    let (_, held, _) = create(&containers, Some("x"), false).unwrap();
    fs::remove_file(containers.name_path("x")).unwrap();
    kill(held);
    let gone = Id::random().unwrap();
    fs::write(containers.mark_path(&gone), "").unwrap();
    containers.sweep().unwrap();
    let state = |name: &str| containers.find(name).unwrap().record.state;
    assert_eq!((state("stays").status, state("stays").exit_code), (Status::Exited, 137));
    assert_eq!(state("new").status, Status::Created);
    assert_eq!(containers.list().unwrap().len(), 2);
    assert!(fs::read_dir(containers.dir.join(".running")).unwrap().count() == 0 && !half.exists());
    for name in ["stays", "new"] {
        containers.remove(name).unwrap();
    }
    assert_eq!(all(dir.path()), EMPTY);
}

#[test]
fn a_record_that_cannot_be_read_is_left_alone_and_can_be_removed() {
    let (dir, containers) = store();
    let (_, held, _) = create(&containers, Some("web"), false).unwrap();
    fs::write(held.dir().join(record::FILE), "{}").unwrap();
    kill(held);
    containers.sweep().unwrap();
    assert!(containers.list().unwrap().is_empty());
    assert!(containers.find("web").unwrap_err().to_string().contains("record.json"));
    containers.remove("web").unwrap();
    assert_eq!(all(dir.path()), EMPTY);
}

#[test]
fn many_at_once_do_not_disturb_each_other() {
    let (dir, containers) = store();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..20 {
                    let (name, held, record) = create(&containers, None, round % 2 == 0).unwrap();
                    containers.sweep().unwrap();
                    assert_eq!(containers.find(&name).unwrap().record, record);
                    drop(held);
                    if round % 2 == 1 {
                        containers.remove(&name).unwrap();
                    }
                }
            });
        }
        let names: Vec<_> = (0..4).map(|_| scope.spawn(|| create(&containers, Some("one"), false).is_ok())).collect();
        assert_eq!(names.into_iter().map(|made| made.join().unwrap()).filter(|made| *made).count(), 1);
    });
    containers.remove("one").unwrap();
    assert_eq!(all(dir.path()), EMPTY);
}
