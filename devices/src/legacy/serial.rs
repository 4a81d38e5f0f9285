//! The 16550 serial port: registers by `vm-superio`, interrupts to an [`InterruptLine`], bounded buffers both ways.
//!
//! Input waits in the port's 64-byte FIFO; [`Serial::room`] says how much fits and [`Serial::room_event`] when it is
//! empty again, so whoever feeds it needs no buffer of its own. Output: see [`crate::output`].

use std::io::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState as UartState};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::output::{self, Output};
use crate::worker::Work;
use crate::{BusDevice, InterruptLine};

/// What writes a port's output.
pub const OUTPUT: Work = output::work("serial");

const MODEM_CONTROL: u64 = 4;
const LOOPBACK: u8 = 0x10;

struct Line(Arc<dyn InterruptLine>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Tells the feeder that the input FIFO is empty.
#[derive(Default)]
struct Room(std::sync::OnceLock<EventFd>);

impl Room {
    fn signal(&self) {
        if let Some(event) = self.0.get() {
            // Only a full counter fails, and that wakes the feeder as well.
            let _ = event.write(1);
        }
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.signal();
    }
}

/// The registers of a port and the input that the guest has not read, as plain data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte first.
    pub baud_divisor: [u8; 2],
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// At most 64 bytes.
    pub input: Vec<u8>,
}

/// The port: eight byte-wide registers.
pub struct Serial {
    uart: Uart<Line, Room, Output>,
    /// In loopback mode the guest talks to itself and no input fits.
    loopback: bool,
}

impl Serial {
    /// Interrupts go to `line`, output to `output`, which may block or fail without harm to the guest.
    pub fn new(line: Arc<dyn InterruptLine>, output: Box<dyn Write + Send>) -> Self {
        Serial { uart: Uart::with_events(Line(line), Room::default(), Output::new(&OUTPUT, output)), loopback: false }
    }

    /// A port that goes on where another was; `None` if `state` is none that a port can be in.
    pub fn restore(state: SerialState, line: Arc<dyn InterruptLine>, output: Box<dyn Write + Send>) -> Option<Self> {
        let loopback = state.modem_control & LOOPBACK != 0;
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        let state = UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input,
        };
        let uart = Uart::from_state(&state, Line(line), Room::default(), Output::new(&OUTPUT, output)).ok()?;
        Some(Serial { uart, loopback })
    }

    /// Its state. What it has put out is not part of it: that is on its way to the writer.
    pub fn save(&self) -> SerialState {
        let state = self.uart.state();
        SerialState {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    /// Puts out what is left, and nothing after that. Waits for the writer a moment at most.
    pub fn close(&mut self) {
        self.uart.writer_mut().close();
    }

    /// Bytes of input that fit now.
    pub fn room(&self) -> usize {
        if self.loopback { 0 } else { self.uart.fifo_capacity() }
    }

    /// An event that is signalled each time the guest has emptied the input FIFO.
    pub fn room_event(&self) -> io::Result<EventFd> {
        let room = &self.uart.events().0;
        if room.get().is_none() {
            let _ = room.set(EventFd::new(EFD_NONBLOCK)?);
        }
        room.get().ok_or_else(|| io::Error::other("room event"))?.try_clone()
    }

    /// Gives input to the guest; what exceeds [`Self::room`] is lost.
    pub fn enqueue(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.room())];
        if !bytes.is_empty()
            && let Err(e) = self.uart.enqueue_raw_bytes(bytes)
        {
            tracing::warn!("serial input: {e}");
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, _: u64, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.uart.read(offset);
        }
    }

    fn write(&mut self, _: u64, offset: u64, data: &[u8]) {
        let (&[value], Ok(register)) = (data, u8::try_from(offset)) else {
            return;
        };
        if let Err(e) = self.uart.write(register, value) {
            tracing::warn!("serial port: {e}");
        }
        if offset == MODEM_CONTROL {
            let was = std::mem::replace(&mut self.loopback, value & LOOPBACK != 0);
            if was && !self.loopback {
                self.uart.events().signal();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Count(AtomicU32);
    impl InterruptLine for Count {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(0x3f8, offset, &mut byte);
        byte[0]
    }

    #[test]
    fn output_reaches_the_writer_in_order() {
        let sink = Sink::default();
        let mut serial = Serial::new(Arc::new(Count::default()), Box::new(sink.clone()));
        for byte in b"hello" {
            serial.write(0x3f8, 0, &[*byte]);
        }
        serial.write(0x3f8, 0, b"wide writes do nothing");
        drop(serial);
        assert_eq!(*sink.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_interrupts_and_says_when_there_is_room() {
        let line = Arc::new(Count::default());
        let mut serial = Serial::new(line.clone(), Box::new(io::sink()));
        let event = serial.room_event().unwrap();
        serial.write(0x3f8, 1, &[1]);
        let before = line.0.load(Ordering::Relaxed);
        serial.enqueue(&[b'a'; 100]);
        assert_eq!((serial.room(), line.0.load(Ordering::Relaxed) - before), (0, 1));
        event.read().unwrap_err();
        for _ in 0..64 {
            assert_eq!(read(&mut serial, 5) & 1, 1);
            assert_eq!(read(&mut serial, 0), b'a');
        }
        assert_eq!((read(&mut serial, 5) & 1, serial.room()), (0, 64));
        event.read().unwrap();
    }

    #[test]
    fn a_restored_port_goes_on() {
        let mut serial = Serial::new(Arc::new(Count::default()), Box::new(io::sink()));
        serial.write(0x3f8, 1, &[1]);
        serial.write(0x3f8, 7, &[0x5a]);
        serial.enqueue(b"abc");
        let state = serial.save();
        let line = Arc::new(Count::default());
        let mut again = Serial::restore(state.clone(), line.clone(), Box::new(io::sink())).unwrap();
        assert_eq!((again.save(), line.0.load(Ordering::Relaxed) > 0), (state.clone(), true));
        assert_eq!((read(&mut again, 7), read(&mut again, 0), again.room()), (0x5a, b'a', 62));
        let full = SerialState { input: vec![0; 65], ..state };
        assert!(Serial::restore(full, line, Box::new(io::sink())).is_none());
    }

    #[test]
    fn loopback_takes_no_input_and_tells_when_it_ends() {
        let mut serial = Serial::new(Arc::new(Count::default()), Box::new(io::sink()));
        let event = serial.room_event().unwrap();
        serial.write(0x3f8, MODEM_CONTROL, &[LOOPBACK]);
        assert_eq!(serial.room(), 0);
        serial.enqueue(b"lost");
        serial.write(0x3f8, MODEM_CONTROL, &[0]);
        event.read().unwrap();
        assert_eq!((serial.room(), read(&mut serial, 0)), (64, 0));
    }
}
