//! Any text, in pieces that end at a newline, on a command line whose capacity is the first byte.
#![no_main]

use boot::CommandLine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, &str)| {
    let (max, text) = (usize::from(data.0), data.1);
    let mut line = CommandLine::new(max);
    for piece in text.split('\n') {
        let before = line.as_str().to_owned();
        match line.push(piece) {
            Ok(()) => assert!(line.as_str().starts_with(&before) && line.as_str().ends_with(piece)),
            Err(error) => assert!(line.as_str() == before && !error.to_string().contains('\n')),
        }
        assert!(line.as_str().len() <= max && line.as_str().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
});
