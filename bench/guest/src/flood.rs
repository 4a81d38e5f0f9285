//! A guest that takes all it can get of its host, in one way, until it is ended: a neighbour to be measured beside.
//!
//! Which way is on the kernel's command line: `flood=spin`, `flood=serial`, `flood=kicks` or `flood=disk`.

/// What it does without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Nothing but to compute.
    Spin,
    /// Writes to its serial port.
    Serial,
    /// Kicks a device that has nothing to do.
    Kicks,
    /// Writes to its disk.
    Disk,
}

impl Flood {
    /// From a command line.
    pub fn parse(line: &[u8]) -> Option<Self> {
        match crate::value(line, b"flood=")? {
            b"spin" => Some(Flood::Spin),
            b"serial" => Some(Flood::Serial),
            b"kicks" => Some(Flood::Kicks),
            b"disk" => Some(Flood::Disk),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flood_is_on_the_command_line() {
        assert_eq!(Flood::parse(b"quiet flood=disk\0"), Some(Flood::Disk));
        assert_eq!(Flood::parse(b"flood=spin work=3"), Some(Flood::Spin));
        for none in [&b""[..], b"flood=", b"flood", b"xflood=spin", b"flood=spins"] {
            assert_eq!(Flood::parse(none), None);
        }
    }
}
