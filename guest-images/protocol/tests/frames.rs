//! Round trips and hostile bytes.
use guest_protocol::files::{Copied, FileMessage, Helper, MAX_FILE_FRAME};
use guest_protocol::*;
use proptest::prelude::*;
use serde::de::DeserializeOwned;

fn start() -> impl Strategy<Value = HostMessage> {
    let layer = (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(start_sector, sectors, erofs)| Layer {
        start_sector,
        sectors,
        fs: if erofs { LayerFs::Erofs } else { LayerFs::Squashfs },
    });
    let size = proptest::option::of((any::<u16>(), any::<u16>()))
        .prop_map(|size| size.map(|(rows, columns)| WindowSize { rows, columns }));
    let strings = || proptest::collection::vec(".{0,40}", 0..20);
    let root = (proptest::collection::vec(layer, 0..10), any::<Option<u64>>(), any::<bool>()).prop_map(
        |(layers, bytes, read_only)| {
            let upper = if bytes == Some(0) { Upper::Disk } else { Upper::Memory { bytes } };
            Root { layers, upper, read_only }
        },
    );
    let account = (any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u32>(), 0..5), ".{0,40}")
        .prop_map(|(uid, gid, groups, home)| Account { uid, gid, groups, home });
    let found = (proptest::option::of(account), proptest::option::of(".{0,40}"))
        .prop_map(|(account, program)| Found { account, program });
    let process = (strings(), strings(), ".{0,40}", ".{0,40}", size, any::<bool>(), found).prop_map(
        |(args, env, cwd, user, terminal, stdin, found)| Process { args, env, cwd, user, terminal, stdin, found },
    );
    (root, process, strings(), any::<Option<String>>(), any::<(u64, [u8; 32], [u8; 16])>()).prop_map(
        |(root, process, hosts, resolv_conf, (wall_clock_ns, seed, machine_id))| {
            HostMessage::Start(Box::new(Start {
                seed: Seed(seed),
                machine_id,
                hostname: "h".into(),
                wall_clock_ns,
                root,
                network: None,
                volumes: hosts.iter().map(volume).collect(),
                settings: settings(&hosts, wall_clock_ns),
                names: Names { hosts, resolv_conf },
                end: End::PowerOff,
                process,
                helper: (wall_clock_ns % 3 == 0).then_some(Helper::Changes { content: true }),
                changes: wall_clock_ns % 2 == 0,
            }))
        },
    )
}

fn settings(names: &[String], number: u64) -> Settings {
    let tmpfs = |name: &String| Tmpfs {
        target: name.clone(),
        bytes: Some(number).filter(|n| n % 2 == 0),
        mode: number as u16,
        exec: number % 3 == 0,
        writable: number % 5 == 0,
    };
    let limit = |resource| Limit { resource, soft: Some(number), hard: None };
    Settings {
        tmpfs: names.iter().map(tmpfs).collect(),
        shm_bytes: Some(number),
        sysctls: names.iter().map(|name| Sysctl { path: name.clone(), value: name.clone() }).collect(),
        limits: vec![limit(Resource::Core), limit(Resource::Stack)],
        capabilities: number,
        writable_sys: number % 7 == 0,
        beside: (number % 2 == 0).then_some(Beside {
            memory_bytes: Some(number),
            cpu_thousandths: None,
            processes: Some(7),
            privileged: number % 3 == 0,
        }),
    }
}

fn volume(name: &String) -> Volume {
    let source = match name.len() % 3 {
        0 => VolumeSource::Directory(name.clone()),
        1 => VolumeSource::File(name.clone()),
        _ => VolumeSource::Own,
    };
    Volume { source, target: format!("/{name}"), read_only: name.len() % 3 == 0 }
}

fn thaw() -> impl Strategy<Value = HostMessage> {
    let address = any::<Option<([u8; 4], u8, Option<[u8; 4]>)>>();
    let network = (any::<Option<([u8; 6], Option<u16>)>>(), address, any::<Option<String>>());
    let identity = any::<Option<([u8; 32], [u8; 16], String, u64, (u16, u16), bool)>>();
    (identity, network).prop_map(|(identity, (network, address, resolv_conf))| {
        let address = address.map(|(ip, prefix_len, gateway)| Address { ip, prefix_len, gateway });
        let network = network.map(|(mac, mtu)| Network { mac, mtu, address });
        HostMessage::Thaw(identity.map(|(seed, machine_id, hostname, wall_clock_ns, (rows, columns), stdin)| {
            let size = WindowSize { rows, columns };
            let seed = Seed(seed);
            Box::new(Identity { seed, machine_id, hostname, wall_clock_ns, network, resolv_conf, size, stdin })
        }))
    })
}

fn exec() -> impl Strategy<Value = HostMessage> {
    let strings = || proptest::collection::vec(".{0,40}", 0..20);
    let options = (any::<Option<String>>(), any::<Option<String>>(), any::<Option<(u16, u16)>>());
    (any::<ProcessId>(), strings(), strings(), options, any::<[bool; 2]>(), proptest::option::of(helper())).prop_map(
        |(process, args, env, (cwd, user, size), [stdin, attached], helper)| {
            let terminal = size.map(|(rows, columns)| WindowSize { rows, columns });
            HostMessage::Exec(Box::new(Exec { process, args, helper, env, cwd, user, terminal, stdin, attached }))
        },
    )
}

fn helper() -> impl Strategy<Value = Helper> {
    prop_oneof![
        Just(Helper::Processes),
        (".{0,40}", any::<bool>()).prop_map(|(path, follow)| Helper::Pack { path, follow }),
        (".{0,40}", ".{0,40}", any::<[bool; 2]>()).prop_map(|(path, name, [directory, contents])| Helper::Unpack {
            path,
            copied: Copied { name, directory, contents }
        }),
        any::<bool>().prop_map(|content| Helper::Changes { content }),
        Just(Helper::Usage),
        Just(Helper::Wait),
        any::<u8>().prop_map(|place| Helper::Member { place }),
    ]
}

fn message() -> impl Strategy<Value = HostMessage> {
    let signal =
        (any::<ProcessId>(), any::<u8>()).prop_map(|(process, signal)| HostMessage::Signal { process, signal });
    prop_oneof![start(), thaw(), exec(), signal, Just(HostMessage::Freeze)]
}

/// Feeds `bytes` in pieces of `piece`; the messages that come out, or the first error.
fn receive<T: DeserializeOwned>(bytes: &[u8], piece: usize, limit: usize) -> Result<Vec<T>, FrameError> {
    let mut buffer = FrameBuffer::new(limit);
    let mut left = bytes;
    let mut messages = Vec::new();
    while !left.is_empty() {
        let space = buffer.space();
        assert!(!space.is_empty(), "a buffer without room would never end");
        let count = piece.min(space.len()).min(left.len());
        space[..count].copy_from_slice(&left[..count]);
        buffer.received(count);
        left = &left[count..];
        while let Some(message) = buffer.take()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

proptest! {
    #[test]
    fn what_is_sent_arrives(messages in proptest::collection::vec(message(), 1..4), piece in 1usize..5000) {
        let mut bytes = Vec::new();
        for message in &messages {
            bytes.extend(encode(message, MAX_HOST_FRAME).unwrap());
        }
        prop_assert_eq!(receive::<HostMessage>(&bytes, piece, MAX_HOST_FRAME), Ok(messages));
    }

    #[test]
    fn hostile_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600), piece in 1usize..64) {
        // Whatever comes out, it ends, and within the limit.
        let _ = receive::<HostMessage>(&bytes, piece, 256);
    }

    #[test]
    fn hostile_files_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..6) {
        // Of a length that fits, so that more than that is looked at.
        let mut frame = (bytes.len() as u32 + 1).to_le_bytes().to_vec();
        frame.push(kind);
        frame.extend(bytes);
        let _ = receive::<FileMessage>(&frame, 97, MAX_FILE_FRAME);
    }

    #[test]
    fn a_changed_byte_is_contained(message in message(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = encode(&message, MAX_HOST_FRAME).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = receive::<HostMessage>(&bytes, 997, MAX_HOST_FRAME);
    }

    #[test]
    fn stream_headers_are_one_to_one(bytes in any::<[u8; 8]>(), process in any::<u32>()) {
        if let Some(header) = StreamHeader::from_bytes(bytes) {
            prop_assert_eq!(header.to_bytes(), bytes);
        }
        for kind in [StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr, StreamKind::Terminal] {
            let header = StreamHeader { process, kind };
            prop_assert_eq!(StreamHeader::from_bytes(header.to_bytes()), Some(header));
        }
    }
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_arrives() {
    let refused = Err(FrameError::TooLarge { length: 257, limit: 256 });
    assert_eq!(receive::<HostMessage>(&257u32.to_le_bytes(), 4, 256), refused);
    let message = HostMessage::Start(Box::new(Start {
        seed: Seed([0; 32]),
        machine_id: [0; 16],
        hostname: "x".repeat(300),
        wall_clock_ns: 0,
        root: Root { layers: vec![], upper: Upper::Disk, read_only: false },
        network: None,
        volumes: vec![],
        names: Names::default(),
        settings: Settings::default(),
        end: End::Reset,
        process: Process {
            args: vec![],
            env: vec![],
            cwd: "/".into(),
            user: String::new(),
            terminal: None,
            stdin: false,
            found: Found::default(),
        },
        helper: None,
        changes: false,
    }));
    assert!(matches!(encode(&message, 256), Err(FrameError::TooLarge { limit: 256, .. })));
}

#[test]
fn a_seed_is_not_shown() {
    assert_eq!(format!("{:?}", Seed([77; 32])), "Seed(..)");
}

#[test]
fn bytes_left_over_in_a_frame_are_refused() {
    let mut frame = encode(&HostMessage::Hello { version: VERSION }, MAX_HOST_FRAME).unwrap();
    frame.push(0);
    frame[0] += 1;
    assert_eq!(receive::<HostMessage>(&frame, 64, MAX_HOST_FRAME), Err(FrameError::Malformed));
}

#[test]
fn hello_keeps_its_encoding() {
    let frame = encode(&HostMessage::Hello { version: 1 }, MAX_HOST_FRAME).unwrap();
    assert_eq!(frame, [2, 0, 0, 0, 0, 1]);
    let hello = GuestMessage::Hello { version: 2, phase: Phase::Prepared, init_ns: 3, now_ns: 4 };
    assert_eq!(encode(&hello, MAX_GUEST_FRAME).unwrap(), [5, 0, 0, 0, 0, 2, 1, 3, 4]);
}

#[test]
fn a_list_that_claims_more_than_it_brings_takes_no_memory() {
    // Start, seed, machine id, empty host name, clock 0, and "2^60 layers": refused for its content, not by the allocator.
    let mut body = vec![1u8];
    body.extend([0; 32 + 16 + 2]);
    body.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10]);
    let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    frame.extend(body);
    assert_eq!(receive::<HostMessage>(&frame, 64, MAX_HOST_FRAME), Err(FrameError::Malformed));
}
