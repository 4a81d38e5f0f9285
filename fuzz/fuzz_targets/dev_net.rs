//! Packets of any kind both ways, in chains of any shape: no panic, no endless work, and frames come out whole.

#![no_main]

mod device;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use device::{Input, recovers};
use devices::virtio::net::{Net, Offer, Stream};
use devices::virtio::testing::{Driver, Part};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (ours, mut theirs) = UnixStream::pair().expect("a socket");
    // Everything but the list of where packets may go, which has a target of its own.
    let offer = Offer { mac: Some([2, 0, 0, 0, 0, 1]), mtu: Some(1500), pairs: 2 };
    let device = Net::new(offer, Some(Box::new(Stream::new(ours).expect("a stream"))), None);
    let mut driver = Driver::new(Box::new(device.expect("a device")));
    theirs.set_nonblocking(true).expect("a socket");
    driver.bring_up(input.u64());
    let mut out = Vec::new();
    while !input.is_empty() {
        match input.byte() % 5 {
            0 => drop(driver.add(0, &[Part::Write(u32::from(input.u16())), Part::Write(input.byte().into())])),
            // Lengths that are true, and others.
            1 => drop(theirs.write(input.bytes(64))),
            2 => {
                let len = usize::from(input.byte()) * 16;
                let frame = [&(len as u32).to_be_bytes()[..], &vec![0x55; len]].concat();
                drop(theirs.write(&frame));
            }
            3 => {
                let len = usize::from(input.byte()) % 12;
                let command = input.bytes(len);
                let _ = driver.add(4, &[Part::Read(command), Part::Write(u32::from(input.byte() & 3))]);
            }
            _ => {
                let (head, split) = (input.bytes(24), usize::from(input.byte()) % 25);
                let (first, second) = head.split_at(split.min(head.len()));
                let body = vec![0xaa; usize::from(input.u16())];
                let _ = driver.add(1 + 2 * (split & 1), &[Part::Read(first), Part::Read(second), Part::Read(&body)]);
            }
        }
        (0..5).for_each(|queue| driver.kick(queue));
        assert!(driver.settle(), "endless work");
        for queue in 0..5 {
            while driver.used(queue).is_some() {}
        }
        let mut buffer = [0; 1 << 16];
        while let Ok(count @ 1..) = theirs.read(&mut buffer) {
            out.extend(&buffer[..count]);
        }
        while let Some(prefix) = out.first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            assert!((1..=65553).contains(&len), "a frame of {len} bytes");
            if out.len() < 4 + len {
                break;
            }
            out.drain(..4 + len);
        }
    }
    recovers(&mut driver);
});
