//! The 8254 interval timer at 0x40 and the system control port 0x61 of a PC.
//!
//! Words and rules: Intel 8254 data sheet (order 231164); port 0x61: Intel PIIX3 data sheet, 2.5.7.
//! Channel 0 drives GSI 0, channel 1 nothing (once DRAM refresh), channel 2 the speaker, gated by port 0x61 bit 0.
//!
//! ```text
//!  channel:  Stopped ── count written ──> Counting ── control word ──> Stopped
//!            (modes 1 and 5: the count only arms; a rising gate starts counting)
//!  tick:     irq0_next ─ host timer ─> irq0_expire ─ pulse ─> guest ─ EOI ─> irq0_ack ─ pulse if ticks are pending
//! ```
//!
//! Counting is arithmetic on the time of the load: *clocks* are whole periods of 1 193 182 Hz since then, so no error
//! adds up. Simplifications: a new count takes effect at once, not at the end of the running period, and the one
//! clock that loading takes is not counted. Port accesses wider than a byte act as consecutive byte accesses.

use bytemuck::Zeroable;
use exitless_kvm_abi::{
    KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON, KVM_PIT_SPEAKER_DUMMY, kvm_pit_channel_state,
    kvm_pit_state2,
};
use exitless_nospec::Guarded;

/// The input clock in Hz.
pub const FREQUENCY: u64 = 1_193_182;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// Shortest distance between two ticks of channel 0, in clocks (200.3 microseconds), to protect the host. A shorter
/// period ticks at this pace; reading the counter is not affected.
pub const MIN_TICK_CLOCKS: u64 = 239;
/// How many times as long as a tick took in the hard interrupt no other follows it, up to [`MAX_REST_NS`].
pub const REST: u64 = 7;
/// A tick takes some 2 ms for the most vCPUs; one that takes longer was itself held up.
pub const MAX_REST_NS: u64 = 15_000_000;
/// Half a period of port 0x61's refresh bit, in nanoseconds.
const REFRESH_TOGGLE_NS: u64 = 15_085;

const PORT_CHANNEL0: u16 = 0x40;
const PORT_CHANNEL2: u16 = 0x42;
const PORT_CONTROL: u16 = 0x43;
/// System control port B.
pub const PORT_SPEAKER: u16 = 0x61;

/// Whole clocks in `ns` nanoseconds. Exact, and no `u64` of nanoseconds overflows.
pub fn clocks_of(ns: u64) -> u64 {
    (ns / NS_PER_SECOND) * FREQUENCY + (ns % NS_PER_SECOND) * FREQUENCY / NS_PER_SECOND
}

/// Nanoseconds until `clocks` clocks are complete, rounded up: the least n with `clocks_of(n) >= clocks`.
pub fn ns_of(clocks: u64) -> u64 {
    (clocks / FREQUENCY)
        .saturating_mul(NS_PER_SECOND)
        .saturating_add(((clocks % FREQUENCY) * NS_PER_SECOND).div_ceil(FREQUENCY))
}

/// Bytes of a count that an access moves, and the byte that comes next. The numbers are those of `rw_mode`,
/// `read_state`, `write_state` and `count_latched` in `kvm_pit_channel_state`.
mod access {
    pub(super) const LSB: u8 = 1;
    pub(super) const MSB: u8 = 2;
    /// Both bytes, the low one next.
    pub(super) const WORD0: u8 = 3;
    /// Both bytes, the high one next.
    pub(super) const WORD1: u8 = 4;
}

/// Counting modes (8254 data sheet, "Mode definitions").
mod mode {
    pub(super) const INTERRUPT_ON_TERMINAL_COUNT: u8 = 0;
    pub(super) const ONE_SHOT: u8 = 1;
    pub(super) const RATE_GENERATOR: u8 = 2;
    pub(super) const SQUARE_WAVE: u8 = 3;
    pub(super) const SOFTWARE_STROBE: u8 = 4;
    pub(super) const HARDWARE_STROBE: u8 = 5;
    /// No control word since power-on; KVM's number for it.
    pub(super) const NONE: u8 = 0xff;
}

const STATUS_NULL_COUNT: u8 = 1 << 6;
const STATUS_OUT: u8 = 1 << 7;
const MAX_COUNT: u32 = 0x1_0000;

/// One counter.
#[derive(Zeroable)]
struct Channel {
    /// As written, 1 to 65536 (a written 0); 0 when the control word has not been followed by a count yet.
    count: u32,
    latched_count: u16,
    /// The byte of the latched count that is read next; 0 when none is latched.
    count_latched: u8,
    status_latched: bool,
    status: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    rw_mode: u8,
    mode: u8,
    bcd: bool,
    gate: bool,
    /// Modes 1 and 5: the gate rose after the count was written.
    triggered: bool,
    /// When counting began, nanoseconds.
    load_time: u64,
    /// Clocks counted when the gate fell.
    frozen: u64,
}

impl Channel {
    fn init(&mut self, gate: bool) {
        *self = Zeroable::zeroed();
        self.count = MAX_COUNT;
        self.mode = mode::NONE;
        self.gate = gate;
    }

    /// A mode that a rising gate starts, and a low gate does not stop.
    fn gate_starts(&self) -> bool {
        matches!(self.mode, mode::ONE_SHOT | mode::HARDWARE_STROBE)
    }

    fn counting(&self) -> bool {
        self.count != 0 && (self.triggered || !self.gate_starts())
    }

    /// Clocks counted since the load.
    fn elapsed(&self, now: u64) -> u64 {
        if !self.counting() {
            0
        } else if self.gate || self.gate_starts() {
            clocks_of(now.saturating_sub(self.load_time))
        } else {
            self.frozen
        }
    }

    /// The count in clocks: decoded if it is BCD, never 0.
    fn period(&self) -> u64 {
        let count = u64::from(self.count);
        if !self.bcd || self.count == 0 || self.count == MAX_COUNT {
            return if self.bcd { 10_000 } else { count.max(1) };
        }
        let digits = [1000, 100, 10, 1];
        let value = digits
            .iter()
            .zip([12, 8, 4, 0])
            .map(|(weight, shift)| (count >> shift & 0xf) * weight)
            .sum::<u64>();
        value.max(1)
    }

    /// The counting element as a read sees it.
    fn counter(&self, now: u64) -> u16 {
        if self.count == 0 {
            return 0;
        }
        let period = self.period();
        let modulus = if self.bcd { 10_000 } else { u64::from(MAX_COUNT) };
        let elapsed = self.elapsed(now);
        let value = match self.mode {
            mode::RATE_GENERATOR => period - elapsed % period,
            mode::SQUARE_WAVE => square_wave_counter(period, elapsed % period),
            _ => period + modulus - elapsed % modulus,
        };
        // Either keeps what the chip has digits for.
        if self.bcd { to_bcd(value) } else { value as u16 }
    }

    /// The level of OUT.
    fn out(&self, now: u64) -> bool {
        let period = self.period();
        let elapsed = self.elapsed(now);
        let counting = self.counting();
        match self.mode {
            mode::ONE_SHOT => !counting || elapsed >= period,
            mode::RATE_GENERATOR => !counting || !self.gate || elapsed % period != period - 1,
            mode::SQUARE_WAVE => !counting || !self.gate || elapsed % period < period.div_ceil(2),
            mode::SOFTWARE_STROBE | mode::HARDWARE_STROBE => !counting || elapsed != period,
            _ => counting && elapsed >= period,
        }
    }

    fn control(&mut self, value: u8) {
        let access = value >> 4 & 3;
        self.rw_mode = access;
        self.read_state = access;
        self.write_state = access;
        self.mode = known_mode(value >> 1 & 7);
        self.bcd = value & 1 != 0;
        self.count = 0;
        self.triggered = false;
        self.count_latched = 0;
        self.status_latched = false;
    }

    fn load_count(&mut self, written: u16, now: u64) {
        self.count = if written == 0 { MAX_COUNT } else { written.into() };
        self.start(now);
    }

    fn start(&mut self, now: u64) {
        self.load_time = now;
        self.frozen = 0;
        self.triggered = false;
    }

    /// Takes a byte of a count; returns true once the count is complete and loaded.
    fn write(&mut self, value: u8, now: u64) -> bool {
        match self.write_state {
            access::LSB => self.load_count(value.into(), now),
            access::MSB => self.load_count(u16::from(value) << 8, now),
            access::WORD1 => {
                self.write_state = access::WORD0;
                self.load_count(u16::from_le_bytes([self.write_latch, value]), now);
            }
            access::WORD0 => {
                self.write_latch = value;
                self.write_state = access::WORD1;
                return false;
            }
            _ => return false,
        }
        true
    }

    /// Gives the latched status, else the latched count, else the running count, a byte at a time.
    fn read(&mut self, now: u64) -> u8 {
        if core::mem::take(&mut self.status_latched) {
            return self.status;
        }
        if self.count_latched != 0 {
            let [low, high] = self.latched_count.to_le_bytes();
            let (byte, next) = match self.count_latched {
                access::WORD0 => (low, access::MSB),
                access::MSB => (high, 0),
                _ => (low, 0),
            };
            self.count_latched = next;
            return byte;
        }
        let [low, high] = self.counter(now).to_le_bytes();
        let (byte, next) = match self.read_state {
            access::WORD0 => (low, access::WORD1),
            access::WORD1 => (high, access::WORD0),
            access::MSB => (high, access::MSB),
            other => (low, other),
        };
        self.read_state = next;
        byte
    }

    /// Counter latch command. A second one before the first is read has no effect.
    fn latch_count(&mut self, now: u64) {
        if self.count_latched == 0 {
            self.latched_count = self.counter(now);
            self.count_latched = self.rw_mode;
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status_latched {
            return;
        }
        let null = if self.count == 0 { STATUS_NULL_COUNT } else { 0 };
        let out = if self.out(now) { STATUS_OUT } else { 0 };
        self.status = out | null | self.rw_mode << 4 | (self.mode & 7) << 1 | u8::from(self.bcd);
        self.status_latched = true;
    }

    /// The gate input moves (8254 data sheet, "Gate pin operations summary").
    fn set_gate(&mut self, level: bool, now: u64) {
        if level == self.gate {
            return;
        }
        if !level {
            self.frozen = self.elapsed(now);
            self.gate = false;
            return;
        }
        self.gate = true;
        match self.mode {
            mode::ONE_SHOT | mode::HARDWARE_STROBE => {
                self.start(now);
                self.triggered = true;
            }
            mode::RATE_GENERATOR | mode::SQUARE_WAVE => self.start(now),
            // Counting goes on where it stopped.
            _ => self.load_time = now.saturating_sub(ns_of(self.frozen)),
        }
    }

    fn save(&self) -> kvm_pit_channel_state {
        kvm_pit_channel_state {
            count: self.count,
            latched_count: self.latched_count,
            count_latched: self.count_latched,
            status_latched: self.status_latched.into(),
            status: self.status,
            read_state: self.read_state,
            write_state: self.write_state,
            write_latch: self.write_latch,
            rw_mode: self.rw_mode,
            mode: self.mode,
            bcd: self.bcd.into(),
            gate: self.gate.into(),
            count_load_time: self.load_time as i64,
        }
    }

    fn load(&mut self, state: &kvm_pit_channel_state, now: u64) {
        self.count = state.count.min(MAX_COUNT);
        self.latched_count = state.latched_count;
        self.count_latched = state.count_latched & 3;
        self.status_latched = state.status_latched != 0;
        self.status = state.status;
        self.read_state = state.read_state.min(access::WORD1);
        self.write_state = state.write_state.min(access::WORD1);
        self.write_latch = state.write_latch;
        self.rw_mode = state.rw_mode & 3;
        self.mode = if state.mode < 8 { known_mode(state.mode) } else { mode::NONE };
        self.bcd = state.bcd != 0;
        self.gate = state.gate != 0;
        self.start(now);
    }
}

/// Modes 6 and 7 are other spellings of 2 and 3.
fn known_mode(mode: u8) -> u8 {
    if mode > mode::HARDWARE_STROBE { mode & 3 } else { mode }
}

/// In mode 3 the counter runs down by two, once for each half of the period; an odd count loses its lowest bit, and
/// its high half is one clock longer.
fn square_wave_counter(period: u64, phase: u64) -> u64 {
    let high_half = period.div_ceil(2);
    let in_half = if phase < high_half { phase } else { phase - high_half };
    (period & !1) - 2 * in_half
}

/// The lowest four digits: a full count of 10000 reads as 0.
fn to_bcd(value: u64) -> u16 {
    let digit = |weight: u64| (value / weight % 10) as u16;
    digit(1) | (digit(10) << 4) | (digit(100) << 8) | (digit(1000) << 12)
}

/// The timer, port 0x61, and the accounting of channel 0's ticks.
#[derive(Zeroable)]
pub struct Pit {
    channels: [Channel; 3],
    /// Clocks from channel 0's load to its next tick; 0 for none.
    next_tick: u64,
    /// No tick before: the host's CPU is for others.
    rest_until: u64,
    /// Ticks not yet ended by the guest, the one under way included. Counted while `reinject` is set.
    pending: u32,
    /// The guest ended the last tick, so the next one may go out.
    acked: bool,
    reinject: bool,
    /// Port 0x61 is ours (KVM_PIT_SPEAKER_DUMMY).
    speaker: bool,
    speaker_data: bool,
    /// An HPET in user space replaces channel 0 (KVM_PIT_FLAGS_HPET_LEGACY).
    hpet_legacy: bool,
}

impl Pit {
    /// Power-on state: no channel programmed, lost ticks made up for. `flags` are those of KVM_CREATE_PIT2.
    pub fn init(&mut self, flags: u32) {
        for (channel, gate) in self.channels.iter_mut().zip([true, true, false]) {
            channel.init(gate);
        }
        self.next_tick = 0;
        self.rest_until = 0;
        self.reinject = true;
        self.speaker = flags & KVM_PIT_SPEAKER_DUMMY != 0;
        self.speaker_data = false;
        self.hpet_legacy = false;
        self.reset_reinject();
    }

    /// Whether [`Pit::io_read`] and [`Pit::io_write`] answer this port.
    pub fn claims(&self, port: u16) -> bool {
        matches!(port, PORT_CHANNEL0..=PORT_CONTROL) || (self.speaker && port == PORT_SPEAKER)
    }

    /// Reads `size` bytes (1, 2 or 4) from `port` on; the write-only control port reads as 0, foreign ports as 0xff.
    pub fn io_read(&mut self, port: u16, size: u8, now: u64) -> u32 {
        let mut value = 0;
        for i in 0..size.min(4) {
            let byte = self.read_byte(port.wrapping_add(u16::from(i)), now);
            value |= u32::from(byte) << (8 * i);
        }
        value
    }

    /// Writes `size` bytes (1, 2 or 4) from `port` on. Returns true if [`Pit::irq0_next`] changed, so the host timer
    /// must be set or cancelled.
    pub fn io_write(&mut self, port: u16, size: u8, value: u32, now: u64) -> bool {
        let mut changed = false;
        for i in 0..size.min(4) {
            changed |= self.write_byte(port.wrapping_add(u16::from(i)), (value >> (8 * i)) as u8, now);
        }
        changed
    }

    fn read_byte(&mut self, port: u16, now: u64) -> u8 {
        match port {
            PORT_CHANNEL0..=PORT_CHANNEL2 => self.channel(port).map_or(0xff, |channel| channel.read(now)),
            PORT_CONTROL => 0,
            PORT_SPEAKER if self.speaker => self.read_speaker(now),
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: u64) -> bool {
        match port {
            PORT_CHANNEL0..=PORT_CHANNEL2 => self.write_channel(port, value, now),
            PORT_CONTROL => self.write_control(value, now),
            PORT_SPEAKER if self.speaker => {
                self.write_speaker(value, now);
                false
            }
            _ => false,
        }
    }

    fn channel(&mut self, port: u16) -> Option<&mut Channel> {
        self.channels.guarded_mut(usize::from(port.wrapping_sub(PORT_CHANNEL0)))
    }

    fn write_channel(&mut self, port: u16, value: u8, now: u64) -> bool {
        let loaded = self.channel(port).is_some_and(|channel| channel.write(value, now));
        let timer = loaded && port == PORT_CHANNEL0;
        if timer {
            self.arm();
        }
        timer
    }

    fn write_control(&mut self, value: u8, now: u64) -> bool {
        let select = value >> 6;
        if select == 3 {
            self.read_back(value, now);
            return false;
        }
        let Some(channel) = self.channels.guarded_mut(usize::from(select)) else { return false };
        if value >> 4 & 3 == 0 {
            channel.latch_count(now);
            return false;
        }
        channel.control(value);
        if select == 0 {
            self.arm();
        }
        select == 0
    }

    /// Read-back command: bits 3:1 choose channels, bit 5 clear latches counts, bit 4 clear latches status.
    fn read_back(&mut self, value: u8, now: u64) {
        for (channel, chosen) in self.channels.iter_mut().zip([1u8 << 1, 1 << 2, 1 << 3]) {
            if value & chosen == 0 {
                continue;
            }
            if value & (1 << 5) == 0 {
                channel.latch_count(now);
            }
            if value & (1 << 4) == 0 {
                channel.latch_status(now);
            }
        }
    }

    fn read_speaker(&self, now: u64) -> u8 {
        let [_, _, speaker] = &self.channels;
        let refresh = (now / REFRESH_TOGGLE_NS) & 1 != 0;
        u8::from(speaker.gate)
            | u8::from(self.speaker_data) << 1
            | u8::from(refresh) << 4
            | u8::from(speaker.out(now)) << 5
    }

    fn write_speaker(&mut self, value: u8, now: u64) {
        let [_, _, speaker] = &mut self.channels;
        self.speaker_data = value & 2 != 0;
        speaker.set_gate(value & 1 != 0, now);
    }

    /// Distance between ticks of channel 0 in clocks; 0 if it ticks once only.
    fn tick_period(&self) -> u64 {
        let [timer, ..] = &self.channels;
        match timer.mode {
            mode::RATE_GENERATOR | mode::SQUARE_WAVE => timer.period().max(MIN_TICK_CLOCKS),
            _ => 0,
        }
    }

    /// Sets the first tick after a load or a control word. Channel 0's gate is tied high, so modes 1 and 5 never see
    /// the rising gate that would start them.
    fn arm(&mut self) {
        let [timer, ..] = &self.channels;
        self.next_tick = match timer.mode {
            _ if self.hpet_legacy || !timer.counting() => 0,
            mode::RATE_GENERATOR | mode::SQUARE_WAVE => self.tick_period(),
            mode::INTERRUPT_ON_TERMINAL_COUNT | mode::SOFTWARE_STROBE => timer.period(),
            _ => 0,
        };
        self.reset_reinject();
    }

    /// When the host timer must call [`Pit::irq0_expire`], in nanoseconds; None while channel 0 does not tick.
    pub fn irq0_next(&self) -> Option<u64> {
        let [timer, ..] = &self.channels;
        let tick = || timer.load_time.saturating_add(ns_of(self.next_tick)).max(self.rest_until);
        (self.next_tick != 0).then(tick)
    }

    /// The pulse for which [`Pit::irq0_expire`] asked was made between these times. However many vCPUs it was for, the host's CPU is
    /// kept by ticks for a small part of its time; those that come late for it are late as any others.
    pub fn irq0_made(&mut self, began: u64, ended: u64) {
        let rest = ended.saturating_sub(began).saturating_mul(REST).min(MAX_REST_NS);
        self.rest_until = ended.saturating_add(rest);
    }

    /// The host timer expired. Counts every tick that is due and returns true if GSI 0 must be pulsed (high, then
    /// low) now. Ask [`Pit::irq0_next`] again afterwards.
    pub fn irq0_expire(&mut self, now: u64) -> bool {
        let [timer, ..] = &self.channels;
        let elapsed = clocks_of(now.saturating_sub(timer.load_time));
        if self.next_tick == 0 || elapsed < self.next_tick {
            return false;
        }
        let period = self.tick_period();
        let ticks = (elapsed - self.next_tick).checked_div(period).map_or(1, |missed| missed + 1);
        self.next_tick = if period == 0 { 0 } else { self.next_tick + ticks * period };
        if self.reinject {
            self.pending = self.pending.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX));
        }
        self.may_pulse()
    }

    /// With reinjection one tick waits for the EOI of the one before; without it every tick goes out.
    fn may_pulse(&mut self) -> bool {
        !self.reinject || core::mem::take(&mut self.acked)
    }

    /// The guest ended an interrupt of GSI 0. Returns true if GSI 0 must be pulsed for a pending tick.
    pub fn irq0_ack(&mut self) -> bool {
        if !self.reinject {
            return false;
        }
        self.acked = true;
        self.pending = self.pending.saturating_sub(1);
        self.pending > 0 && self.may_pulse()
    }

    /// Forgets lost ticks. Call when the guest unmasks a pin of GSI 0: what it missed while masked is not owed.
    pub fn reset_reinject(&mut self) {
        self.pending = 0;
        self.acked = true;
    }

    /// Ticks owed to the guest, the one under way included.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// A tick waits for the EOI of the one before.
    pub fn reinjects(&self) -> bool {
        self.reinject
    }

    /// KVM_REINJECT_CONTROL: make up for ticks the guest was too slow to take (true), or discard them.
    pub fn set_reinject(&mut self, reinject: bool) {
        if reinject != self.reinject {
            self.reinject = reinject;
            self.reset_reinject();
        }
    }

    /// The state for KVM_GET_PIT2, filled in place.
    pub fn save(&self, state: &mut kvm_pit_state2) {
        for (saved, channel) in state.channels.iter_mut().zip(self.channels.iter()) {
            *saved = channel.save();
        }
        state.flags = 0;
        if self.hpet_legacy {
            state.flags |= KVM_PIT_FLAGS_HPET_LEGACY;
        }
        if self.speaker_data {
            state.flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON;
        }
        state.reserved = [0; 9];
    }

    /// Puts a state in place (KVM_SET_PIT2) and sets the host timer anew. As in KVM every channel starts its count over
    /// at `now`: the saved load time belongs to another clock. Fields out of range are cut to range.
    /// Save and load agree on one private value: a count of 0 means none was written since the control word.
    pub fn load(&mut self, state: &kvm_pit_state2, now: u64) {
        self.hpet_legacy = state.flags & KVM_PIT_FLAGS_HPET_LEGACY != 0;
        self.speaker_data = state.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0;
        self.load_channels(&state.channels, now);
    }

    /// KVM_SET_PIT: as [`Pit::load`], and the flags stay.
    pub fn load_channels(&mut self, channels: &[kvm_pit_channel_state; 3], now: u64) {
        for (channel, saved) in self.channels.iter_mut().zip(channels) {
            channel.load(saved, now);
        }
        self.arm();
    }
}
