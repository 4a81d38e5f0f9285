//! The other end of a TCP connection, as little of it as a fast one on one wire takes: one connection at a time, which the host
//! opens. At [`SINK`] all that comes is acknowledged, at [`SOURCE`] as much is sent as the host's window takes.
//!
//! It answers ARP, leaves checksums and segmentation to the wire, and goes back to what was acknowledged last when the host says
//! three times that something is missing, or nothing for a while. It knows nothing of what is in the data.

/// Port that takes data.
pub const SINK: u16 = 9;
/// Port that gives data.
pub const SOURCE: u16 = 19;
/// Bytes of a packet that it looks at: the wire's header, Ethernet, IPv4 and TCP with the options of a SYN.
pub const HEAD: usize = NET + 14 + 20 + 60;

/// Bytes of the wire's header (`struct virtio_net_hdr`, virtio 1.3, 5.1.6).
const NET: usize = 12;
const IP: usize = NET + 14;
const TCP: usize = IP + 20;
/// Ethernet types.
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Largest segment on an Ethernet.
const MSS: usize = 1460;
/// Most bytes in one packet of the wire.
const MOST: usize = 44 * MSS;
/// Its window: 4 MiB, as (window, shift).
const WINDOW: (u16, u8) = (512, 13);
/// Bytes after which an acknowledgement is due, if there is more to receive.
const DUE: u32 = 1 << 18;
/// Ticks of the processor's counter without an acknowledgement, after which it goes back: some tenth of a second.
const PATIENCE: u64 = 1 << 28;

/// What packets go through. Their first bytes are a header as virtio has it.
pub trait Wire {
    /// Its address.
    fn mac(&self) -> [u8; 6];
    /// The next packet, if there is one: its first bytes, and how long it is.
    fn receive(&mut self, head: &mut [u8; HEAD]) -> Option<usize>;
    /// Whether it takes a packet.
    fn ready(&mut self) -> bool;
    /// Sends the first `len` bytes of `head`, and `data` bytes of anything.
    fn send(&mut self, head: &[u8; HEAD], len: usize, data: usize);
    /// All that was to be sent now has been.
    fn flush(&mut self);
}

/// The connection there is.
#[derive(Clone, Copy, Default)]
struct Connection {
    /// Addresses and ports of the two ends: the host's MAC address, IP addresses, ports.
    host_mac: [u8; 6],
    host_ip: [u8; 4],
    ip: [u8; 4],
    host_port: u16,
    port: u16,
    established: bool,
    /// Next byte that is to come.
    expected: u32,
    /// Last byte that was acknowledged to the host.
    acknowledged: u32,
    /// Next byte to send, the first one that the host has not, and how many after that it takes.
    next: u32,
    first: u32,
    window: u32,
    shift: u8,
    repeated: u8,
    /// When the host last acknowledged something.
    heard: u64,
}

/// It, and the wire.
pub struct Peer<W> {
    wire: W,
    connection: Option<Connection>,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    core::array::from_fn(|i| bytes[at + i])
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The ones' complement sum of big-endian words (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The processor's counter.
fn ticks() -> u64 {
    // SAFETY: every processor of this kind has it, and lets ring 3 read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl<W: Wire> Peer<W> {
    /// At one end of a wire.
    pub fn new(wire: W) -> Self {
        Peer { wire, connection: None }
    }

    /// The wire.
    pub fn wire(&self) -> &W {
        &self.wire
    }

    /// Takes what has come, and sends what can be. False: there was nothing to do.
    pub fn turn(&mut self) -> bool {
        let mut head = [0; HEAD];
        let mut busy = false;
        while let Some(len) = self.wire.receive(&mut head) {
            busy = true;
            self.packet(&head, len);
        }
        if let Some(mut connection) = self.connection {
            busy |= self.send_data(&mut connection);
            self.acknowledge(&mut connection, 1);
            self.connection = Some(connection);
        }
        self.wire.flush();
        busy
    }

    fn packet(&mut self, head: &[u8; HEAD], len: usize) {
        match word(head, NET + 12) {
            ARP if len >= NET + 14 + 28 && word(head, IP + 6) == 1 => self.answer_arp(head),
            IPV4 if len >= TCP + 20 && head[IP] == 0x45 && head[IP + 9] == 6 => self.segment(head, len),
            _ => {}
        }
    }

    /// Whatever is asked for, it is here.
    fn answer_arp(&mut self, asked: &[u8; HEAD]) {
        let mut head = [0; HEAD];
        let (mac, whose) = (self.wire.mac(), array::<4>(asked, IP + 24));
        put(&mut head, NET, &array::<6>(asked, NET + 6));
        put(&mut head, NET + 6, &mac);
        put(&mut head, NET + 12, &array::<8>(asked, NET + 12));
        put(&mut head, IP + 6, &2u16.to_be_bytes());
        put(&mut head, IP + 8, &mac);
        put(&mut head, IP + 14, &whose);
        put(&mut head, IP + 18, &array::<10>(asked, IP + 8));
        self.wire.send(&head, NET + 14 + 28, 0);
    }

    fn segment(&mut self, head: &[u8; HEAD], len: usize) {
        let flags = head[TCP + 13];
        let ports = (word(head, TCP), word(head, TCP + 2));
        if flags & SYN != 0 && [SINK, SOURCE].contains(&ports.1) {
            self.connection = Some(self.open(head));
            return;
        }
        let Some(mut connection) = self.connection.filter(|c| (c.host_port, c.port) == ports) else { return };
        if flags & (RST | FIN) != 0 {
            self.reply(&connection, RST | ACK, 0);
            self.connection = None;
            return;
        }
        let header = usize::from(head[TCP + 12] >> 4) * 4;
        let data = usize::from(word(head, IP + 2)).min(len.saturating_sub(IP)).saturating_sub(20 + header) as u32;
        let behind = long(head, TCP + 4).wrapping_sub(connection.expected);
        if behind == 0 {
            connection.expected = connection.expected.wrapping_add(data);
            self.acknowledge(&mut connection, DUE);
        } else if data > 0 {
            // Something before it is missing, or it is known: the host is told what is expected.
            self.reply(&connection, ACK, 0);
        }
        connection.hear(long(head, TCP + 8), word(head, TCP + 14), data);
        self.connection = Some(connection);
    }

    /// A new connection, in place of the one there was.
    fn open(&mut self, head: &[u8; HEAD]) -> Connection {
        let expected = long(head, TCP + 4).wrapping_add(1);
        let connection = Connection {
            host_mac: array(head, NET + 6),
            host_ip: array(head, IP + 12),
            ip: array(head, IP + 16),
            host_port: word(head, TCP),
            port: word(head, TCP + 2),
            established: false,
            expected,
            acknowledged: expected,
            next: 1,
            first: 0,
            window: word(head, TCP + 14).into(),
            shift: shift(&head[TCP + 20..TCP + (usize::from(head[TCP + 12] >> 4) * 4).clamp(20, 60)]),
            repeated: 0,
            heard: ticks(),
        };
        self.reply(&Connection { next: 0, ..connection }, SYN | ACK, 0);
        connection
    }

    /// As much as the host's window and the wire take.
    fn send_data(&mut self, connection: &mut Connection) -> bool {
        if connection.port != SOURCE || !connection.established {
            return false;
        }
        if ticks().wrapping_sub(connection.heard) > PATIENCE {
            connection.go_back();
        }
        let mut busy = false;
        loop {
            let under_way = connection.next.wrapping_sub(connection.first);
            let room = connection.window.saturating_sub(under_way) as usize;
            let len = room.min(MOST) / MSS * MSS;
            // A large packet or none, while there is something under way.
            if len == 0 || (len < MOST && under_way > 0) || !self.wire.ready() {
                return busy;
            }
            self.reply(connection, ACK, len);
            connection.acknowledged = connection.expected;
            connection.next = connection.next.wrapping_add(len as u32);
            busy = true;
        }
    }

    /// Tells the host what has come, if it has not been told for so many bytes.
    fn acknowledge(&mut self, connection: &mut Connection, due: u32) {
        if connection.established
            && connection.expected.wrapping_sub(connection.acknowledged) >= due
            && self.wire.ready()
        {
            self.reply(connection, ACK, 0);
            connection.acknowledged = connection.expected;
        }
    }

    /// Sends a segment of the connection.
    fn reply(&mut self, connection: &Connection, flags: u8, data: usize) {
        let mut head = [0; HEAD];
        let options: &[u8] = match flags & SYN {
            0 => &[],
            // The largest segment, and the window's shift.
            _ => &[2, 4, (MSS >> 8) as u8, MSS as u8, 1, 3, 3, WINDOW.1],
        };
        let tcp = 20 + options.len();
        head[0] = NEEDS_CSUM;
        if data > MSS {
            head[1] = GSO_TCPV4;
            put(&mut head, 2, &((14 + 20 + tcp) as u16).to_le_bytes());
            put(&mut head, 4, &(MSS as u16).to_le_bytes());
        }
        put(&mut head, 6, &34u16.to_le_bytes());
        put(&mut head, 8, &16u16.to_le_bytes());
        put(&mut head, NET, &connection.host_mac);
        put(&mut head, NET + 6, &self.wire.mac());
        put(&mut head, NET + 12, &IPV4.to_be_bytes());
        head[IP] = 0x45;
        put(&mut head, IP + 2, &((20 + tcp + data) as u16).to_be_bytes());
        // Do not fragment.
        head[IP + 6] = 0x40;
        (head[IP + 8], head[IP + 9]) = (64, 6);
        put(&mut head, IP + 12, &connection.ip);
        put(&mut head, IP + 16, &connection.host_ip);
        let checksum = !sum(&head[IP..TCP]);
        put(&mut head, IP + 10, &checksum.to_be_bytes());
        put(&mut head, TCP, &connection.port.to_be_bytes());
        put(&mut head, TCP + 2, &connection.host_port.to_be_bytes());
        put(&mut head, TCP + 4, &connection.next.to_be_bytes());
        put(&mut head, TCP + 8, &connection.expected.to_be_bytes());
        (head[TCP + 12], head[TCP + 13]) = ((tcp as u8 / 4) << 4, flags);
        put(&mut head, TCP + 14, &WINDOW.0.to_be_bytes());
        put(&mut head, TCP + 20, options);
        // That of the pseudo header; the wire does the rest.
        let mut pseudo: [u8; 12] = array(&head, IP + 12);
        put(&mut pseudo, 8, &[0, 6]);
        put(&mut pseudo, 10, &((tcp + data) as u16).to_be_bytes());
        put(&mut head, TCP + 16, &sum(&pseudo).to_be_bytes());
        self.wire.send(&head, TCP + tcp, data);
    }
}

impl Connection {
    /// The host acknowledges bytes up to one, and takes so many more.
    fn hear(&mut self, acknowledged: u32, window: u16, data: u32) {
        let ahead = acknowledged.wrapping_sub(self.first);
        if ahead > self.next.wrapping_sub(self.first).max(MOST as u32 * 1024) {
            return;
        }
        let window = u32::from(window) << self.shift;
        if ahead > 0 {
            // What it acknowledges beyond this was on its way when this went back.
            if ahead > self.next.wrapping_sub(self.first) {
                self.next = acknowledged;
            }
            (self.first, self.repeated, self.heard) = (acknowledged, 0, ticks());
            self.established = true;
        } else if data == 0 && window == self.window && self.next != self.first {
            self.repeated += 1;
            if self.repeated == 3 {
                self.go_back();
            }
        }
        self.window = window;
    }

    fn go_back(&mut self) {
        (self.next, self.repeated, self.heard) = (self.first, 0, ticks());
    }
}

/// The window's shift in a SYN's options; 0 if they do not say.
fn shift(mut options: &[u8]) -> u8 {
    loop {
        match options {
            [1, rest @ ..] => options = rest,
            [3, 3, shift, ..] => return (*shift).min(14),
            [0, ..] | [] | [_] => return 0,
            [_, len, ..] => options = options.get(usize::from(*len).max(2)..).unwrap_or(&[]),
        }
    }
}
