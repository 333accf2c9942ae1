//! The 8254: each mode against a counter that is stepped clock by clock, access sequences, ticks without drift, Linux's use.
use bytemuck::Zeroable;
use exitless_irqchip::pit::{FREQUENCY, MAX_REST_NS, MIN_TICK_CLOCKS, Pit, REST, clocks_of, ns_of};
use exitless_kvm_abi::{
    KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON, KVM_PIT_SPEAKER_DUMMY, kvm_pit_state2,
};
use proptest::prelude::*;

fn fresh() -> Pit {
    let mut pit = Pit::zeroed();
    pit.init(KVM_PIT_SPEAKER_DUMMY);
    pit
}

fn write(pit: &mut Pit, now: u64, bytes: &[(u16, u8)]) -> bool {
    bytes.iter().fold(false, |changed, (port, value)| changed | pit.io_write(*port, 1, (*value).into(), now))
}

fn read(pit: &mut Pit, now: u64, port: u16) -> u8 {
    pit.io_read(port, 1, now) as u8
}

/// Programs `channel` with a two-byte count.
fn program(pit: &mut Pit, now: u64, channel: u8, mode: u8, count: u16) {
    let port = 0x40 + u16::from(channel);
    let [low, high] = count.to_le_bytes();
    write(pit, now, &[(0x43, channel << 6 | 0x30 | mode << 1), (port, low), (port, high)]);
}

/// Latches and reads the two bytes of a count.
fn count(pit: &mut Pit, now: u64, channel: u8) -> u16 {
    write(pit, now, &[(0x43, channel << 6)]);
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([read(pit, now, port), read(pit, now, port)])
}

fn status(pit: &mut Pit, now: u64, channel: u8) -> u8 {
    write(pit, now, &[(0x43, 0xe0 | 2 << channel)]);
    read(pit, now, 0x40 + u16::from(channel))
}

fn out(pit: &mut Pit, now: u64, channel: u8) -> bool {
    status(pit, now, channel) & 0x80 != 0
}

#[test]
fn clocks_and_nanoseconds_are_exact_for_centuries() {
    for ns in [0, 1, 838, 839, 999_999_999, 1_000_000_000, 300 * 365 * 86_400 * 1_000_000_000, u64::MAX] {
        assert_eq!(u128::from(clocks_of(ns)), u128::from(ns) * u128::from(FREQUENCY) / 1_000_000_000);
    }
    for clocks in [0, 1, 2, 65_536, FREQUENCY - 1, FREQUENCY, FREQUENCY * 86_400 * 365 * 500] {
        let ns = ns_of(clocks);
        assert_eq!(clocks_of(ns), clocks);
        assert!(ns == 0 || clocks_of(ns - 1) < clocks, "the earliest such moment");
    }
}

/// The counting element of the data sheet, one clock at a time. Loading takes no clock, as in the chip's description.
struct Stepped {
    mode: u8,
    count: u32,
    value: u32,
    high: bool,
    gate: bool,
    triggered: bool,
    age: u64,
}

impl Stepped {
    fn new(mode: u8, count: u32, gate: bool) -> Self {
        let value = if mode == 3 { count & !1 } else { count };
        Self { mode, count, value, high: mode != 0, gate, triggered: false, age: 0 }
    }
    fn start(&mut self) {
        let gate = self.gate;
        *self = Self { triggered: true, gate, ..Self::new(self.mode, self.count, gate) };
        if self.mode == 1 {
            self.high = false;
        }
    }
    fn gate(&mut self, level: bool) {
        let rises = level && !self.gate;
        self.gate = level;
        match self.mode {
            1 | 5 if rises => self.start(),
            2 | 3 if rises => self.start(),
            2 | 3 if !level => self.high = true,
            _ => {}
        }
    }
    fn clock(&mut self) {
        match self.mode {
            1 | 5 if !self.triggered => return,
            0 | 2 | 3 | 4 if !self.gate => return,
            _ => {}
        }
        self.age += 1;
        match self.mode {
            2 => {
                self.value = if self.value == 1 { self.count } else { self.value - 1 };
                self.high = self.value != 1;
            }
            3 => {
                // An odd count rests at 0 for the last clock of its high half.
                let end = if self.count & 1 != 0 && self.high { 0 } else { 2 };
                if self.value == end {
                    self.value = self.count & !1;
                    self.high = !self.high;
                } else {
                    self.value -= 2;
                }
            }
            _ => {
                self.value = self.value.wrapping_sub(1) & 0xffff;
                let terminal = self.age == u64::from(self.count);
                match self.mode {
                    0 | 1 => self.high |= terminal,
                    _ => self.high = !terminal,
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Channel 2 reads back the count and the output of the stepped counter in every mode, with the gate moving.
    #[test]
    fn every_mode_counts_like_the_stepped_counter(
        mode in 0u8..6,
        count_ in 2u32..70,
        open in any::<bool>(),
        start in 0u64..10_000_000_000,
        gates in prop::collection::vec((1u64..150, any::<bool>()), 1..12),
    ) {
        let mut pit = fresh();
        // Whole clocks begin at `start`; reading at the end of a clock keeps the arithmetic away from rounding.
        let at = |clock: u64| start + ns_of(clock);
        write(&mut pit, start, &[(0x61, open.into())]);
        program(&mut pit, start, 2, mode, count_ as u16);
        let mut stepped = Stepped::new(mode, count_, open);
        let mut clock = 0;
        for (run, gate) in gates {
            for _ in 0..run {
                clock += 1;
                stepped.clock();
                prop_assert_eq!(u32::from(count(&mut pit, at(clock), 2)), stepped.value & 0xffff, "clock {}", clock);
                prop_assert_eq!(out(&mut pit, at(clock), 2), stepped.high, "clock {}", clock);
                prop_assert_eq!(read(&mut pit, at(clock), 0x61) & 0x20 != 0, stepped.high);
            }
            if gate != stepped.gate {
                // Starting at this clock's edge makes the two agree: the PIT counts whole clocks from here.
                write(&mut pit, at(clock), &[(0x61, gate.into())]);
                stepped.gate(gate);
                if gate {
                    // After a restart the phase of the clock is the restart's own.
                    return restarted(pit, stepped, at(clock));
                }
            }
        }
    }

    /// However late and irregular the host timer is, every tick is owed exactly once.
    #[test]
    fn no_tick_is_lost_or_made_up(
        divisor in 1u16..20_000,
        mode in 2u8..4,
        steps in prop::collection::vec(0u64..100_000_000, 1..200),
    ) {
        let mut pit = fresh();
        let start = 12_345;
        program(&mut pit, start, 0, mode, divisor);
        let period = u64::from(divisor).max(MIN_TICK_CLOCKS);
        let (mut now, mut pulses) = (start, 0u64);
        for step in steps {
            now += step;
            pulses += u64::from(pit.irq0_expire(now));
            while pulses > 0 && pit.pending() > 1 {
                pulses += u64::from(pit.irq0_ack());
            }
            let due = clocks_of(now - start) / period;
            prop_assert_eq!(pulses, due);
            let next = pit.irq0_next();
            prop_assert_eq!(next, Some(start + ns_of((due + 1) * period)));
            prop_assert!(next.is_some_and(|next| next > now));
            if pit.pending() == 1 {
                pit.irq0_ack();
            }
        }
    }

    /// A saved PIT, put back, is the same PIT whose counts start over.
    #[test]
    fn a_state_survives_its_round_trip(
        accesses in prop::collection::vec((0u16..5, any::<u8>(), any::<bool>(), 0u64..3_000_000), 0..60),
    ) {
        let mut pit = fresh();
        let mut now = 0;
        for (port, value, is_write, step) in accesses {
            now += step;
            let port = if port == 4 { 0x61 } else { 0x40 + port };
            if is_write { write(&mut pit, now, &[(port, value)]); } else { read(&mut pit, now, port); }
            pit.irq0_expire(now);
        }
        let mut state = kvm_pit_state2::zeroed();
        pit.save(&mut state);
        let mut other = fresh();
        other.load(&state, now);
        let mut again = kvm_pit_state2::zeroed();
        other.save(&mut again);
        for (a, b) in state.channels.iter_mut().zip(again.channels) {
            a.count_load_time = b.count_load_time;
        }
        prop_assert_eq!(state, again);
        for port in [0x40, 0x41, 0x42] {
            let (a, b) = (state.channels[usize::from(port - 0x40u16)], again.channels[usize::from(port - 0x40u16)]);
            if a.count_latched != 0 || a.status_latched != 0 {
                prop_assert_eq!(read(&mut pit, now, port), read(&mut other, now, port), "{:?}", b);
            }
        }
    }

    /// Any bytes from user space are harmless, and so is any use afterwards.
    #[test]
    fn hostile_state_is_harmless(
        bytes in prop::collection::vec(any::<u8>(), size_of::<kvm_pit_state2>()),
        accesses in prop::collection::vec((0u16..5, any::<u32>(), 0u8..=255, any::<u64>()), 0..40),
    ) {
        let state: kvm_pit_state2 = bytemuck::pod_read_unaligned(&bytes);
        let mut pit = fresh();
        pit.load(&state, 5);
        for (port, value, size, now) in accesses {
            let port = if port == 4 { 0x61 } else { 0x40 + port };
            pit.io_read(port, size, now);
            pit.io_write(port, size, value, now);
            pit.irq0_expire(now);
            pit.irq0_next();
            pit.irq0_ack();
        }
    }
}

fn restarted(mut pit: Pit, mut stepped: Stepped, start: u64) -> Result<(), TestCaseError> {
    for clock in 1..300 {
        stepped.clock();
        let now = start + ns_of(clock);
        let resumed = matches!(stepped.mode, 0 | 4);
        // A resumed count may be up to a clock ahead or behind, a restarted one is exact.
        let seen = u32::from(count(&mut pit, now, 2));
        let slack = if resumed { 1 } else { 0 };
        let apart =
            (seen.wrapping_sub(stepped.value) & 0xffff).min(stepped.value.wrapping_sub(seen) & 0xffff);
        prop_assert!(apart <= slack, "clock {}: {} not {}", clock, seen, stepped.value);
        if !resumed {
            prop_assert_eq!(out(&mut pit, now, 2), stepped.high);
        }
    }
    Ok(())
}

#[test]
fn a_tick_source_does_not_drift_over_a_million_ticks() {
    for divisor in [11_932u16, 1_193, 0] {
        let mut pit = fresh();
        program(&mut pit, 777, 0, 2, divisor);
        let clocks = if divisor == 0 { 65_536 } else { u64::from(divisor) };
        for tick in 1..=1_000_000 {
            let next = pit.irq0_next().expect("periodic");
            assert_eq!(next, 777 + ns_of(tick * clocks));
            assert!(!pit.irq0_expire(next - 1), "not before its time");
            assert!(pit.irq0_expire(next));
            pit.irq0_ack();
        }
    }
}

#[test]
fn the_read_count_falls_until_the_period_ends() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 50_000);
    let mut last = 50_001;
    let mut wraps = 0;
    for now in (0..200_000_000).step_by(10_000) {
        let now_count = u32::from(count(&mut pit, now, 0));
        assert!((1..=50_000).contains(&now_count));
        if now_count > last {
            wraps += 1;
        }
        last = now_count;
    }
    assert_eq!(wraps, clocks_of(199_990_000) / 50_000);
}

#[test]
fn one_shot_modes_tick_once() {
    for mode in [0, 4] {
        let mut pit = fresh();
        program(&mut pit, 1000, 0, mode, 1193);
        let next = pit.irq0_next().expect("armed");
        assert_eq!(next, 1000 + ns_of(1193));
        assert!(pit.irq0_expire(next));
        assert_eq!(pit.irq0_next(), None);
        assert!(!pit.irq0_expire(next + 1_000_000_000));
    }
}

/// Channel 0's gate is wired high, so nothing ever triggers the hardware-triggered modes.
#[test]
fn triggered_modes_never_tick_on_channel_0() {
    for mode in [1, 5] {
        let mut pit = fresh();
        program(&mut pit, 0, 0, mode, 1193);
        assert_eq!(pit.irq0_next(), None);
    }
}

#[test]
fn a_fresh_pit_does_not_tick() {
    let pit = fresh();
    assert_eq!(pit.irq0_next(), None);
}

/// Linux's pit_shutdown writes the control word for mode 0 and no count: the tick must stop there.
#[test]
fn a_control_word_stops_the_tick() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 11_932);
    assert!(pit.irq0_next().is_some());
    assert!(write(&mut pit, 100, &[(0x43, 0x30)]), "the host timer must be cancelled");
    assert_eq!(pit.irq0_next(), None);
    assert_eq!(status(&mut pit, 100, 0), 0x40 | 0x30, "null count, OUT low");
    assert!(!write(&mut pit, 100, &[(0x40, 0x10)]), "half a count starts nothing");
    assert!(write(&mut pit, 100, &[(0x40, 0x27)]));
    assert_eq!(pit.irq0_next(), Some(100 + ns_of(0x2710)));
}

#[test]
fn channels_1_and_2_do_not_touch_the_tick() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 11_932);
    let next = pit.irq0_next();
    assert!(!write(
        &mut pit,
        500,
        &[(0x43, 0x74), (0x41, 18), (0x41, 0), (0x43, 0xb0), (0x42, 1), (0x42, 1), (0x43, 0)]
    ));
    assert_eq!(pit.irq0_next(), next);
}

#[test]
fn a_greedy_guest_is_held_to_the_shortest_tick() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 2);
    assert_eq!(pit.irq0_next(), Some(ns_of(MIN_TICK_CLOCKS)));
    assert!(ns_of(MIN_TICK_CLOCKS) >= 200_000);
}

/// A tick for very many vCPUs takes longer than the shortest period: the CPU is not kept by the next ones.
#[test]
fn long_ticks_leave_the_cpu_to_others() {
    let mut pit = fresh();
    pit.set_reinject(false);
    program(&mut pit, 0, 0, 2, 2);
    let (mut now, mut busy, took) = (0, 0, 1_500_000);
    for _ in 0..20 {
        now = pit.irq0_next().unwrap();
        assert!(pit.irq0_expire(now));
        pit.irq0_made(now, now + took);
        busy += took;
        now += took;
        // Not by programming it anew either.
        program(&mut pit, now, 0, 2, 2);
        assert_eq!(pit.irq0_next(), Some(now + REST * took));
    }
    assert!(busy <= now / REST);
    pit.irq0_made(now, now + 1_000_000_000);
    assert_eq!(pit.irq0_next(), Some(now + 1_000_000_000 + MAX_REST_NS));
    // A short one is as if it took no time.
    now = pit.irq0_next().unwrap();
    assert!(pit.irq0_expire(now));
    pit.irq0_made(now, now + 20_000);
    program(&mut pit, now, 0, 2, 2);
    assert_eq!(pit.irq0_next(), Some(now + ns_of(MIN_TICK_CLOCKS)));
}

#[test]
fn byte_access_modes() {
    let mut pit = fresh();
    write(&mut pit, 0, &[(0x43, 0x54), (0x41, 0x80)]); // channel 1, low byte only
    assert_eq!(read(&mut pit, 0, 0x41), 0x80);
    assert_eq!(read(&mut pit, ns_of(1), 0x41), 0x7f);
    write(&mut pit, 0, &[(0x43, 0x64), (0x41, 0x02)]); // high byte only: 0x200
    assert_eq!(read(&mut pit, 0, 0x41), 0x02);
    assert_eq!(read(&mut pit, ns_of(1), 0x41), 0x01);
    program(&mut pit, 0, 1, 2, 0x1234);
    assert_eq!(pit.io_read(0x41, 1, 0), 0x34);
    assert_eq!(pit.io_read(0x41, 1, 0), 0x12);
    assert_eq!(pit.io_read(0x41, 1, 0), 0x34);
    assert_eq!(read(&mut pit, 0, 0x43), 0);
    assert_eq!(pit.io_read(0x44, 1, 0), 0xff);
}

#[test]
fn a_latched_count_stands_still_until_read() {
    let mut pit = fresh();
    program(&mut pit, 0, 1, 2, 1000);
    write(&mut pit, ns_of(10), &[(0x43, 0x40)]);
    write(&mut pit, ns_of(20), &[(0x43, 0x40)]);
    let low = read(&mut pit, ns_of(30), 0x41);
    let high = read(&mut pit, ns_of(40), 0x41);
    assert_eq!(u16::from_le_bytes([low, high]), 990, "the first latch holds");
    assert_eq!(read(&mut pit, ns_of(50), 0x41), 950u16.to_le_bytes()[0]);
    // A control word unlatches.
    write(&mut pit, ns_of(60), &[(0x43, 0x40)]);
    program(&mut pit, ns_of(60), 1, 2, 500);
    assert_eq!(read(&mut pit, ns_of(60) + ns_of(1), 0x41), 499u16.to_le_bytes()[0]);
}

#[test]
fn read_back_latches_several_channels_status_first() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 0x1000);
    program(&mut pit, 0, 2, 3, 0x2000);
    write(&mut pit, 0, &[(0x61, 1), (0x43, 0xc0 | 2 | 8)]);
    assert_eq!(read(&mut pit, ns_of(9), 0x40), 0x80 | 0x30 | 2 << 1);
    assert_eq!(read(&mut pit, ns_of(9), 0x40), 0x00);
    assert_eq!(read(&mut pit, ns_of(9), 0x40), 0x10);
    assert_eq!(read(&mut pit, ns_of(9), 0x42), 0x80 | 0x30 | 3 << 1);
    assert_eq!([read(&mut pit, ns_of(9), 0x42), read(&mut pit, ns_of(9), 0x42)], [0x00, 0x20]);
    // Count only, then status only.
    write(&mut pit, 0, &[(0x43, 0xd0 | 2)]);
    assert_eq!([read(&mut pit, ns_of(9), 0x40), read(&mut pit, ns_of(9), 0x40)], [0x00, 0x10]);
    write(&mut pit, 0, &[(0x43, 0xe0 | 2)]);
    assert_eq!(read(&mut pit, ns_of(9), 0x40), 0xb4);
}

#[test]
fn bcd_counts_in_decimal() {
    let mut pit = fresh();
    write(&mut pit, 0, &[(0x43, 0x75), (0x41, 0x00), (0x41, 0x10)]); // channel 1, mode 2, BCD 1000
    assert_eq!(count(&mut pit, ns_of(1), 1), 0x0999);
    assert_eq!(count(&mut pit, ns_of(999), 1), 0x0001);
    assert_eq!(count(&mut pit, ns_of(1000), 1), 0x1000);
    write(&mut pit, 0, &[(0x43, 0x71), (0x41, 0), (0x41, 0)]); // mode 0, 0 means 10000
    assert_eq!(count(&mut pit, ns_of(1), 1), 0x9999);
    assert_eq!(count(&mut pit, ns_of(10_001), 1), 0x9999);
}

#[test]
fn a_count_of_zero_is_65536() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 0);
    assert_eq!(pit.irq0_next(), Some(ns_of(65_536)));
    assert_eq!(count(&mut pit, 0, 0), 0);
    assert_eq!(count(&mut pit, ns_of(1), 0), 0xffff);
}

/// Linux's quick_pit_calibrate and pit_calibrate_tsc: open the gate, mode 0 on channel 2, wait for OUT in port 0x61.
#[test]
fn linux_calibrates_through_channel_2() {
    let mut pit = fresh();
    let gate = read(&mut pit, 0, 0x61) & !2 | 1;
    write(&mut pit, 0, &[(0x61, gate), (0x43, 0xb0), (0x42, 0x9b), (0x42, 0x2e)]);
    assert_eq!(read(&mut pit, ns_of(0x2e9b) - 1, 0x61) & 0x21, 0x01);
    assert_eq!(read(&mut pit, ns_of(0x2e9b), 0x61) & 0x21, 0x21);
    write(&mut pit, 0, &[(0x43, 0xb0), (0x42, 0xff), (0x42, 0xff)]);
    let mut last = 0xff;
    for now in (0..50_000_000).step_by(5_000) {
        read(&mut pit, now, 0x42);
        let msb = read(&mut pit, now, 0x42);
        assert!(msb == last || msb == last - 1, "the high byte falls one by one");
        last = msb;
    }
    assert!(last < 0x20);
}

#[test]
fn port_61_belongs_to_us_only_if_asked() {
    let mut pit = Pit::zeroed();
    pit.init(0);
    assert!(!pit.claims(0x61) && pit.claims(0x40) && pit.claims(0x43) && !pit.claims(0x44));
    write(&mut pit, 0, &[(0x61, 3)]);
    assert_eq!(read(&mut pit, 0, 0x61), 0xff);
    let mut pit = fresh();
    assert!(pit.claims(0x61));
    write(&mut pit, 0, &[(0x61, 2)]);
    assert_eq!(read(&mut pit, 0, 0x61) & 3, 2);
    let toggles = (0..1_000_000).step_by(100).map(|now| read(&mut pit, now, 0x61) & 0x10).collect::<Vec<_>>();
    let edges = toggles.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((64..=68).contains(&edges), "the refresh bit toggles about every 15 microseconds: {edges}");
}

/// A guest that was not scheduled for ten ticks gets ten, one after the other's EOI.
#[test]
fn lost_ticks_are_made_up_for_one_by_one() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 1193);
    assert!(pit.irq0_expire(ns_of(1193)));
    for tick in 2..=10 {
        assert!(!pit.irq0_expire(ns_of(1193 * tick)));
    }
    let mut pulses = 1;
    while pit.irq0_ack() {
        pulses += 1;
    }
    assert_eq!((pulses, pit.pending()), (10, 0));
    assert!(!pit.irq0_ack());
    assert!(pit.irq0_expire(ns_of(1193 * 11)));
}

#[test]
fn discarding_sends_every_tick_at_once_and_owes_none() {
    let mut pit = fresh();
    assert!(pit.reinjects());
    pit.set_reinject(false);
    assert!(!pit.reinjects());
    program(&mut pit, 0, 0, 2, 1193);
    assert!(pit.irq0_expire(ns_of(1193)));
    assert!(pit.irq0_expire(ns_of(1193 * 5)));
    assert_eq!(pit.pending(), 0);
    assert!(!pit.irq0_ack());
    pit.set_reinject(true);
    assert!(pit.irq0_expire(ns_of(1193 * 6)));
    assert!(!pit.irq0_expire(ns_of(1193 * 7)));
}

/// IRQ 0 was masked, so its first tick never ended. Unmasking must bring the clock back without the backlog.
#[test]
fn unmasking_forgets_the_backlog() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 1193);
    pit.irq0_expire(ns_of(1193 * 100));
    assert_eq!(pit.pending(), 100);
    pit.reset_reinject();
    assert!(pit.irq0_expire(ns_of(1193 * 101)));
    assert_eq!(pit.pending(), 1);
}

#[test]
fn an_hpet_in_legacy_mode_silences_channel_0() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 1193);
    let mut state = kvm_pit_state2::zeroed();
    pit.save(&mut state);
    state.flags |= KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    pit.load(&state, 10);
    assert_eq!(pit.irq0_next(), None);
    program(&mut pit, 0, 0, 2, 1193);
    assert_eq!(pit.irq0_next(), None);
    pit.save(&mut state);
    assert_eq!(state.flags, KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON);
    let channels = state.channels;
    pit.load_channels(&channels, 15);
    assert_eq!(pit.irq0_next(), None, "KVM_SET_PIT keeps the flags");
    state.flags = 0;
    pit.load(&state, 20);
    assert_eq!(pit.irq0_next(), Some(20 + ns_of(1193)));
}

#[test]
fn a_count_beyond_16_bits_is_cut() {
    let mut pit = fresh();
    let mut state = kvm_pit_state2::zeroed();
    state.channels[0].count = 0x20_0000;
    state.channels[0].mode = 2;
    pit.load(&state, 0);
    assert_eq!(pit.irq0_next(), Some(ns_of(65_536)));
}

#[test]
fn restoring_starts_counts_over() {
    let mut pit = fresh();
    program(&mut pit, 0, 0, 2, 10_000);
    let mut state = kvm_pit_state2::zeroed();
    pit.save(&mut state);
    assert_eq!(
        (state.channels[0].count, state.channels[0].mode, state.channels[1].count),
        (10_000, 2, 65_536)
    );
    pit.load(&state, 123_456_789);
    assert_eq!(pit.irq0_next(), Some(123_456_789 + ns_of(10_000)));
}

/// Counts run through 0 and on for as long as nobody loads: 8254 data sheet, modes 0 and 4.
#[test]
fn a_finished_count_goes_on_for_ever() {
    let mut pit = fresh();
    program(&mut pit, 0, 1, 0, 10);
    assert_eq!(count(&mut pit, ns_of(15), 1), 0x1_0000u32.wrapping_sub(5) as u16);
    assert_eq!(count(&mut pit, ns_of(3 * 65_536 + 4), 1), 6);
    assert_eq!(count(&mut pit, ns_of(1_000_000 * 65_536 + 11), 1), 0xffff);
}

/// A closed gate makes OUT high at once, also in the part of the period where it is low.
#[test]
fn a_closed_gate_raises_out_in_modes_2_and_3() {
    for (mode, low_at) in [(2, 9), (3, 7)] {
        let mut pit = fresh();
        write(&mut pit, 0, &[(0x61, 1)]);
        program(&mut pit, 0, 2, mode, 10);
        assert!(!out(&mut pit, ns_of(low_at), 2), "mode {mode}");
        write(&mut pit, ns_of(low_at), &[(0x61, 0)]);
        assert!(out(&mut pit, ns_of(low_at), 2), "mode {mode}");
    }
}

/// Modes 6 and 7 are 2 and 3 spelled otherwise, by the control word and in a state; a state has no mode 8.
#[test]
fn modes_have_two_spellings() {
    let mut state = kvm_pit_state2::zeroed();
    for (spelled, mode) in [(6, 2), (7, 3), (5, 5), (4, 4), (8, 0xff), (0xfe, 0xff)] {
        let mut pit = fresh();
        if spelled < 8 {
            program(&mut pit, 0, 1, spelled, 100);
            pit.save(&mut state);
            assert_eq!(state.channels[1].mode, mode);
        }
        state.channels[1].mode = spelled;
        pit.load(&state, 0);
        pit.save(&mut state);
        assert_eq!(state.channels[1].mode, mode, "{spelled}");
    }
}

/// A wide access is one byte for each port from the first on.
#[test]
fn wide_accesses_are_bytes_of_neighbours() {
    let mut pit = fresh();
    // Low bytes only, so that one access is a whole count: 0x34 for channel 0, 0x12 for channel 1.
    write(&mut pit, 0, &[(0x43, 0x14), (0x43, 0x54)]);
    assert!(pit.io_write(0x40, 2, 0x1234, 0), "channel 0 was loaded");
    assert_eq!(pit.irq0_next(), Some(ns_of(MIN_TICK_CLOCKS.max(0x34))));
    assert_eq!(pit.io_read(0x40, 2, 0), 0x1234);
    assert_eq!(pit.io_read(0x42, 4, 0) >> 8, 0xff_ff00, "the control port, and two that are not ours");
}

/// Read-back means the channels that it chooses, and no other.
#[test]
fn read_back_leaves_other_channels_alone() {
    for chosen in 0..3 {
        let mut pit = fresh();
        for channel in 0..3 {
            program(&mut pit, 0, channel, 2, 0x1000);
        }
        // Status only: it is read first if it is latched.
        write(&mut pit, 0, &[(0x43, 0xe0 | 2 << chosen)]);
        for channel in 0..3 {
            let first = read(&mut pit, 0, 0x40 + channel);
            assert_eq!(first, if channel == chosen { 0xb4 } else { 0x00 }, "{channel} of {chosen}");
        }
    }
}

/// Bits 0 and 1 of port 0x61 are what was written, bit 4 says how often 15 microseconds went by; without the flag nobody writes.
#[test]
fn port_61_bit_by_bit() {
    let mut pit = fresh();
    for value in 0..4 {
        write(&mut pit, 0, &[(0x61, value)]);
        assert_eq!(read(&mut pit, 0, 0x61) & 0x13, value);
    }
    // 66 and a bit of them in a millisecond: 15085 ns each.
    for (now, refresh) in
        [(0, 0), (1, 0), (15_000, 0), (15_200, 0x10), (30_000, 0x10), (30_300, 0), (45_400, 0x10)]
    {
        assert_eq!(read(&mut pit, now, 0x61) & 0x10, refresh, "{now}");
    }
    let mut pit = Pit::zeroed();
    pit.init(0);
    program(&mut pit, 0, 2, 2, 100);
    write(&mut pit, 0, &[(0x61, 3)]);
    let mut state = kvm_pit_state2::zeroed();
    pit.save(&mut state);
    assert_eq!(state.channels[2].gate, 0, "the port is user space's");
}
