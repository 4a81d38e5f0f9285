use proptest::prelude::*;

use super::*;

const HEAD: &str = "bulkhead queue trace 1\ndevice rng\nfeatures 0x130000000\nmemory 4096\nconfig \n";

fn problem(text: &str) -> String {
    text.parse::<Trace>().unwrap_err().to_string()
}

#[test]
fn a_trace_is_what_its_lines_say() {
    let text = format!("{HEAD}kick 0\n# nothing\n\nchain 0 r16=00ff w4096 w1\nback 0 1\nchain 3\n");
    let trace: Trace = text.parse().unwrap();
    let chain = vec![Part::Read { len: 16, bytes: vec![0, 0xff] }, Part::Write(4096), Part::Write(1)];
    let steps = vec![Step::Kick(0), Step::Chain(0, chain), Step::Back(0, 1), Step::Chain(3, Vec::new())];
    assert_eq!((trace.device.as_str(), trace.features, trace.memory), ("rng", 0x1_3000_0000, 4096));
    assert_eq!((&trace.config, &trace.steps), (&Vec::new(), &steps));
}

#[test]
fn bytes_lose_their_zeros_and_nothing_else() {
    assert_eq!(Part::read(&[0, 7, 0, 0]), Part::Read { len: 4, bytes: vec![0, 7] });
    assert_eq!(Part::read(&[0; 9]), Part::Read { len: 9, bytes: Vec::new() });
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (text, expect) in [
        ("", "not a queue trace"),
        ("bulkhead queue trace x", "not a queue trace"),
        ("bulkhead queue trace 2\n", "version 2"),
        ("bulkhead queue trace 1\nfeatures 1\n", "line 2: it does not say 'device'"),
        ("bulkhead queue trace 1\ndevice \n", "line 2: '' is no device's name"),
        // The one at the end belongs to the line.
        ("bulkhead queue trace 1\ndevice a\r\r\n", "line 2: 'a\\r' is no device's name"),
        ("bulkhead queue trace 1\ndevice a\nfeatures -1\n", "line 3: '-1' is not a number"),
        ("bulkhead queue trace 1\ndevice a\nfeatures 1\nmemory 0x100000000\n", "line 4: '0x100000000' is not a number"),
        ("bulkhead queue trace 1\ndevice a\nfeatures 1\nmemory 1\nconfig 0\n", "line 5: '0' is not an even number"),
    ] {
        assert!(problem(text).contains(expect), "{text:?}: {}", problem(text));
    }
    for (step, expect) in [
        ("jump 0", "neither kick nor chain nor back"),
        ("kick", "'' is not a number"),
        ("kick 64", "'64' is not a number up to 63"),
        ("kick +1", "'+1' is not a number"),
        ("kick 1 2", "more than that"),
        ("back 0", "'' is not a number"),
        ("back 0 4294967296", "is not a number"),
        ("chain 0 x", "'x' is neither"),
        ("chain 0 r1", "'r1' is neither"),
        ("chain 0 r1=0001", "more than 1 bytes"),
        ("chain 0 r1=zz", "hexadecimal"),
        ("chain 0 r2=\u{e9}", "hexadecimal"),
        ("chain 0 r16777217=", "is not a number"),
        ("chain 0 r16777216= r1=", "too much"),
        ("chain 0 w268435457", "is not a number"),
        ("chain 0 w268435456 w1", "too much"),
        ("chain 0 w1 r1=", "come before"),
    ] {
        let said = problem(&format!("{HEAD}{step}\n"));
        assert!(said.starts_with("line 6: ") && said.contains(expect), "{step:?}: {said}");
    }
    let many = format!("{HEAD}chain 0{}\n", " w0".repeat(MOST_PARTS + 1));
    assert!(problem(&many).contains("parts at most"));
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| Part::read(&bytes)),
        (0..5000u32).prop_map(Part::Write)
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let parts = proptest::collection::vec(any_part(), 0..6).prop_map(|mut parts| {
        parts.sort_by_key(|part| matches!(part, Part::Write(_)));
        parts
    });
    prop_oneof![
        (0..MOST_QUEUES).prop_map(Step::Kick),
        (0..MOST_QUEUES, any::<u32>()).prop_map(|(queue, count)| Step::Back(queue, count)),
        (0..MOST_QUEUES, parts).prop_map(|(queue, parts)| Step::Chain(queue, parts)),
    ]
}

proptest! {
    #[test]
    fn a_trace_reads_back_as_it_was_written(
        features in any::<u64>(),
        memory in 0..=MOST_MEMORY,
        config in proptest::collection::vec(any::<u8>(), 0..64),
        steps in proptest::collection::vec(any_step(), 0..20),
    ) {
        let trace = Trace { device: "net".into(), features, memory, config, steps };
        prop_assert_eq!(trace.to_string().parse::<Trace>(), Ok(trace));
    }

    #[test]
    fn any_text_is_a_trace_or_an_error(text in ".{0,200}", lines in proptest::collection::vec("(kick|chain|back) [0-9a-frw= ]{0,40}", 0..8)) {
        let _ = text.parse::<Trace>();
        let _ = format!("{HEAD}{}\n{text}", lines.join("\n")).parse::<Trace>();
    }
}
