use std::collections::BTreeMap;

use proptest::prelude::*;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::*;
use crate::sandbox::tests::config;
use crate::sandbox::{Thread, Wanted};

/// What the kernel is asked: `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Asked {
    number: u32,
    architecture: u32,
    arguments: [u64; 6],
}

impl Asked {
    fn word(&self, at: u32) -> u32 {
        match at {
            0 => self.number,
            4 => self.architecture,
            16..64 if at.is_multiple_of(4) => {
                (self.arguments[(at as usize - 16) / 8] >> (8 * (u64::from(at) % 8))) as u32
            }
            _ => panic!("word at {at}"),
        }
    }
}

/// What a filter says, by the rules of Documentation/networking/filter.rst, and the instructions that takes.
fn run(program: &[sock_filter], asked: &Asked) -> (u32, usize) {
    let (mut accumulator, mut at, mut steps) = (0, 0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        (at, steps) = (at + 1, steps + 1);
        let jump = |to: bool| usize::from(if to { jt } else { jf });
        match u32::from(code) {
            0x20 => accumulator = asked.word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The library's filter for the same, but for calls that are to seem absent.
fn librarys(calls: &Calls) -> BpfProgram {
    let rule = |number| match condition(number, calls) {
        Some(Condition { argument, mask, one_of }) => {
            let masked = SeccompCmpOp::MaskedEq(mask.into());
            let condition = |value: u32| {
                SeccompCondition::new(argument as u8, SeccompCmpArgLen::Dword, masked.clone(), value.into()).unwrap()
            };
            one_of.into_iter().map(|value| SeccompRule::new(vec![condition(value)]).unwrap()).collect()
        }
        None => Vec::new(),
    };
    let rules: BTreeMap<_, _> = calls.numbers().map(|number| (number, rule(number))).collect();
    let (other, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, other, allow, TargetArch::x86_64).unwrap().try_into().unwrap()
}

/// Both say the same of each call, with arguments that some list has, and others.
fn agree(calls: &Calls) {
    let (ours, theirs) = (compile(calls, Mode::Enforce).unwrap(), librarys(calls));
    let mut values: Vec<u64> = calls.ioctls().map(u64::from).chain(calls.prctls().iter().map(|&r| r.into())).collect();
    values.extend([0, 1, 2, 3, 4, 7, libc::F_DUPFD_CLOEXEC as u64, std::process::id().into(), 0x0001_0100, u64::MAX]);
    let near: Vec<_> = values.iter().flat_map(|&v| [v, v.wrapping_add(1), v.wrapping_sub(1), v | 1 << 40]).collect();
    for number in (0..600).chain([0x4000_0010, u32::MAX]) {
        for &value in if calls.numbers().any(|n| n as u32 == number) { &near[..] } else { &near[..1] } {
            for architecture in [AUDIT_ARCH_X86_64, 0x4000_0003] {
                let asked = Asked { number, architecture, arguments: [value; 6] };
                let (got, _) = run(&ours, &asked);
                let absent = architecture == AUDIT_ARCH_X86_64 && ABSENT.contains(&number.into());
                let expected = if absent { 0x0005_0000 | libc::ENOSYS as u32 } else { run(&theirs, &asked).0 };
                assert_eq!(got, expected, "{asked:x?} of {calls:?}");
            }
        }
    }
}

#[test]
fn filters_say_what_the_librarys_say() {
    for devices in [false, true] {
        let sandbox = crate::sandbox::Sandbox::new(Wanted { requests: true, ..Wanted::default() }, config(devices));
        for thread in [Thread::First, Thread::Vcpu, Thread::Events, Thread::Nursery] {
            agree(&sandbox.calls(thread));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn of_any_list_they_say_the_same(
        numbers in prop::collection::vec(0..500i64, 0..120),
        ioctls in prop::collection::vec(any::<u32>(), 0..200),
    ) {
        agree(&Calls::of(&numbers, &ioctls));
    }
}

#[test]
fn what_a_filter_cannot_hold_is_an_error() {
    let ioctls: Vec<_> = (0..256).collect();
    let calls = Calls::of(&[libc::SYS_ioctl], &ioctls);
    assert!(matches!(compile(&calls, Mode::Enforce), Err(FilterError::TooLong)));
    agree(&Calls::of(&[libc::SYS_ioctl], &ioctls[..255]));
}

/// Instructions of a filter, and most of those that the kernel goes through for one call: what taking it costs.
#[test]
fn filters_are_short() {
    let calls = crate::sandbox::Sandbox::new(Wanted::default(), config(false)).calls(Thread::First);
    let (ours, theirs) = (compile(&calls, Mode::Enforce).unwrap(), librarys(&calls));
    let longest = |program: &BpfProgram| {
        let asked = |number| Asked { number, architecture: AUDIT_ARCH_X86_64, arguments: [0; 6] };
        let steps = |number: c_long| run(program, &asked(number as u32)).1;
        (0..500).filter(|number| !matches!(*number, libc::SYS_ioctl | libc::SYS_prctl)).map(steps).max().unwrap()
    };
    assert!(3 * ours.len() < theirs.len(), "{} and {} instructions", ours.len(), theirs.len());
    assert!(longest(&ours) < 20 && longest(&theirs) > 40, "{} and {}", longest(&ours), longest(&theirs));
}
