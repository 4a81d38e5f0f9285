use proptest::prelude::*;

use super::*;

fn sample() -> Snapshot {
    let config = r#"{ "boot-source": { "kernel_image_path": "/k" }, "machine-config": { "vcpu_count": 2 } }"#;
    Snapshot {
        meta: Meta {
            kvm: KvmKind::AmdV,
            cpu: Model::host(),
            taken_at_ns: 5,
            memory_id: [3; memory::ID_LEN],
            parent: Some(Parent { path: "../base".into(), memory_id: [4; memory::ID_LEN] }),
        },
        config: VmConfig::from_json(config).unwrap(),
        vcpus: vec![SavedVcpu::sample(), SavedVcpu::sample()],
        clock: kvm_clock_data { clock: 77, ..Default::default() },
        ioapic: IoapicState { select: 1, id: 0, entries: [1 << 16; 24] },
        serial: SerialState::default(),
        transports: vec![],
        extents: Some(vec![(0, 3), (7, 1)]),
    }
}

fn decode(file: &[u8]) -> Result<Snapshot, SnapshotError> {
    Snapshot::decode(&format::parse(file).unwrap())
}

/// A file of the sample's records as `change` leaves them.
fn changed(change: impl FnOnce(&mut Vec<(u32, u32, Vec<u8>)>)) -> Vec<u8> {
    let file = sample().encode().unwrap();
    let mut records: Vec<_> =
        format::parse(&file).unwrap().iter().map(|r| (r.kind, r.version, r.bytes.to_vec())).collect();
    change(&mut records);
    let mut writer = Writer::default();
    records.iter().for_each(|(kind, version, bytes)| writer.push(*kind, *version, bytes));
    writer.finish()
}

#[test]
fn what_is_encoded_is_decoded() {
    let (snapshot, again) = (sample(), decode(&sample().encode().unwrap()).unwrap());
    assert_eq!((&again.meta, &again.config, again.clock.clock), (&snapshot.meta, &snapshot.config, 77));
    assert_eq!((again.ioapic, again.vcpus.len(), again.extents), (snapshot.ioapic, 2, snapshot.extents));
}

#[test]
fn group_8_records_that_are_missing_doubled_unknown_or_newer_are_refused() {
    let count = format::parse(&sample().encode().unwrap()).unwrap().len();
    for index in 0..count {
        assert!(decode(&changed(|records| drop(records.remove(index)))).is_err(), "without record {index}");
        assert!(decode(&changed(|records| records.push(records[index].clone()))).is_err(), "record {index} twice");
        assert!(decode(&changed(|records| records[index].1 += 1)).is_err(), "record {index}, newer");
        assert!(decode(&changed(|records| records[index].2.push(b'}'))).is_err(), "record {index}, longer");
        assert!(decode(&changed(|records| records[index].2.truncate(1))).is_err(), "record {index}, shorter");
    }
    let error = decode(&changed(|records| records.push((99, 1, vec![])))).unwrap_err().to_string();
    assert!(error.contains("kind 99"), "{error}");
}

#[test]
fn extents_go_with_a_parent_and_stay_in_memory() {
    let with = |change: fn(&mut Snapshot)| {
        let mut snapshot = sample();
        change(&mut snapshot);
        decode(&snapshot.encode().unwrap()).is_ok()
    };
    assert!(with(|snapshot| (snapshot.extents, snapshot.meta.parent) = (None, None)));
    assert!(!with(|snapshot| snapshot.extents = None));
    assert!(!with(|snapshot| snapshot.meta.parent = None));
    assert!(!with(|snapshot| snapshot.extents = Some(vec![(128 << 8, 1)])));
}

proptest! {
    /// Signed by whoever made them: nothing panics, whatever the records say.
    #[test]
    fn group_8_hostile_records_are_refused_or_decoded(index in 0usize..8, at in 0usize..5000, byte in any::<u8>(), cut in any::<bool>()) {
        let file = changed(|records| {
            let index = index % records.len();
            let bytes = &mut records[index].2;
            let at = at % bytes.len();
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
        });
        let _ = decode(&file);
    }
}

#[test]
fn memory_that_is_no_file_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut snapshot = sample();
    (snapshot.extents, snapshot.meta.parent) = (None, None);
    std::fs::write(dir.path().join(files::STATE), snapshot.encode().unwrap()).unwrap();
    crate::open::fifo(&dir.path().join(files::MEMORY));
    let error = files::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("memory") && error.contains("not a regular file"), "{error}");
}
