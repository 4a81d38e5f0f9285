//! The parsers of what other processes have written, for the fuzz targets: each takes any bytes, and at worst refuses them.

use crate::attend::{Answer, Order, Word};
use crate::control::parse;
use crate::monitor::read_events;
use crate::snapshots::Record;

/// A snapshot's `bulkhead.json`; what is read is written again as it was.
pub fn record(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes)
        && let Ok(bytes) = record.encode()
    {
        assert_eq!(Record::decode(&bytes), Ok(record));
    }
}

/// A line from a client of the attendance socket, and one from its other side.
pub fn attendance(line: &[u8]) {
    if let Ok(order) = Order::decode(line)
        && let Ok(line) = order.encode()
    {
        assert_eq!(Order::decode(line.as_bytes()), Ok(order));
    }
    let _ = serde_json::from_slice::<Answer>(line);
    if let Ok(word) = serde_json::from_slice::<Word>(line) {
        assert_eq!(serde_json::to_string(&word).ok().and_then(|line| serde_json::from_str(&line).ok()), Some(word));
    }
}

/// What a microVM's process says about itself, which a guest may have taken over.
pub fn events(bytes: &[u8]) {
    let _ = read_events(bytes, &std::sync::mpsc::channel().0);
}

/// An answer of its control socket.
pub fn answer(bytes: &[u8]) {
    let _ = parse(bytes.to_vec());
}
