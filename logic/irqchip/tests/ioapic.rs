//! The I/O APIC: the data sheet's rules one by one, and "no level interrupt is ever lost" under random use.
use bytemuck::Zeroable;
use exitless_irqchip::ioapic::{Ioapic, PINS, Raised, STORM_LIMIT};
use exitless_irqchip::lines::{LineStatus, Source};
use exitless_kvm_abi::kvm_ioapic_state;
use exitless_x86::apic::{DeliveryMode, InterruptMessage};
use proptest::prelude::*;

const USER: Source = Source::USERSPACE;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;

fn fresh() -> Ioapic {
    let mut chip = Ioapic::zeroed();
    chip.init();
    chip
}

fn read(chip: &mut Ioapic, register: u8) -> u32 {
    chip.mmio_write(0, 4, register.into());
    chip.mmio_read(0x10, 4) as u32
}

fn write(chip: &mut Ioapic, register: u8, value: u32) -> exitless_irqchip::ioapic::Written {
    chip.mmio_write(0, 4, register.into());
    chip.mmio_write(0x10, 4, value.into())
}

fn entry(chip: &mut Ioapic, pin: u8) -> u64 {
    u64::from(read(chip, 0x10 + 2 * pin)) | u64::from(read(chip, 0x11 + 2 * pin)) << 32
}

/// High half first, as Linux does; returns what the low half sent.
fn program(chip: &mut Ioapic, pin: u8, entry: u64) -> Option<InterruptMessage> {
    write(chip, 0x11 + 2 * pin, (entry >> 32) as u32);
    write(chip, 0x10 + 2 * pin, entry as u32).message
}

fn vector_of(raised: Raised) -> Option<u8> {
    match raised {
        Raised::Deliver(message) => Some(message.vector),
        Raised::Nothing(_) => None,
    }
}

/// EOI with nothing to notify; the vectors sent again.
fn eoi(chip: &mut Ioapic, vector: u8, level: bool) -> Vec<u8> {
    let mut sent = Vec::new();
    let pins = chip.eoi(vector, level);
    chip.eoi_redeliver(pins, &mut |message| sent.push(message.vector));
    sent
}

#[test]
fn registers_read_as_the_data_sheet_says() {
    let mut chip = fresh();
    assert_eq!(read(&mut chip, 1), 0x0017_0011);
    write(&mut chip, 0, 0xffff_ffff);
    assert_eq!((read(&mut chip, 0), read(&mut chip, 2)), (0x0f00_0000, 0x0f00_0000));
    write(&mut chip, 1, 0);
    assert_eq!(read(&mut chip, 1), 0x0017_0011, "the version is read-only");
    assert_eq!(entry(&mut chip, 23), MASKED);
    assert_eq!(read(&mut chip, 0x40), u32::MAX, "no entry 24");
    assert_eq!(chip.mmio_read(0x20, 4), 0);
    assert_eq!(chip.offset_of(0xfec0_0010), Some(0x10));
    assert_eq!(chip.offset_of(0xfec0_0100), None);
    assert_eq!(chip.offset_of(0xfebf_ffff), None);
}

#[test]
fn reserved_and_status_bits_are_not_writable() {
    let mut chip = fresh();
    program(&mut chip, 3, !0xff | 0x33);
    assert_eq!(entry(&mut chip, 3), 0xff00_0000_0001_af33);
}

#[test]
fn accesses_of_other_widths() {
    let mut chip = fresh();
    chip.mmio_write(0, 1, 0xff10);
    assert_eq!(chip.mmio_read(0, 8), 0x10);
    chip.mmio_write(0x10, 8, 0xdead_beef_0001_0042);
    assert_eq!(chip.mmio_read(0x10, 4), 0x0001_0042);
    assert_eq!(chip.mmio_read(0x10, 2), 0x0042);
    assert_eq!(chip.mmio_read(0x1f, 1), 0x42);
}

#[test]
fn narrow_writes_zero_the_rest() {
    let mut chip = fresh();
    for (size, expected) in [(1, 0x0000_0033), (2, 0x0000_2233), (4, 0x0001_2233), (8, 0x0001_2233)] {
        write(&mut chip, 0x10, 0);
        chip.mmio_write(0x10, size, 0xffff_ffff_0001_2233);
        assert_eq!(read(&mut chip, 0x10), expected, "{size}");
    }
}

/// Between the arbitration register and the table there is nothing.
#[test]
fn undefined_registers_read_as_zero() {
    let mut chip = fresh();
    write(&mut chip, 0, 0xffff_ffff);
    for register in 3..0x10 {
        assert_eq!(read(&mut chip, register), 0, "{register:x}");
    }
}

/// What held a line before the chip was reset holds it no more.
#[test]
fn init_lowers_every_line() {
    let mut chip = fresh();
    chip.set_irq(4, USER, true);
    chip.init();
    program(&mut chip, 4, LEVEL | 0x51);
    assert_eq!(vector_of(chip.set_irq(4, Source::PIT, true)), Some(0x51));
    chip.set_irq(4, Source::PIT, false);
    assert_eq!(eoi(&mut chip, 0x51, true), []);
}

#[test]
fn an_edge_sends_what_its_entry_says() {
    let mut chip = fresh();
    program(&mut chip, 4, 0x0300_0000_0000_0000 | 1 << 11 | 1 << 8 | 0x51);
    let Raised::Deliver(message) = chip.set_irq(4, USER, true) else { panic!("not sent") };
    assert_eq!((message.destination, message.logical, message.vector), (3, true, 0x51));
    assert_eq!((message.mode, message.level), (DeliveryMode::LOWEST, false));
    assert_eq!(chip.set_irq(4, USER, true), Raised::Nothing(LineStatus::Coalesced));
    assert_eq!(chip.set_irq(4, USER, false), Raised::Nothing(LineStatus::Delivered(1)));
    assert_eq!(vector_of(chip.set_irq(4, USER, true)), Some(0x51), "an edge needs no EOI in between");
}

/// Every field of an entry is in its message, and none leaks into another.
#[test]
fn each_field_of_an_entry_is_sent() {
    for (bits, destination, logical, mode, level) in [
        (0, 0, false, DeliveryMode::FIXED, false),
        (1 << 11, 0, true, DeliveryMode::FIXED, false),
        (0xff << 56, 0xff, false, DeliveryMode::FIXED, false),
        (4 << 8, 0, false, DeliveryMode::NMI, false),
        (7 << 8, 0, false, DeliveryMode::EXTINT, false),
        (LEVEL, 0, false, DeliveryMode::FIXED, true),
    ] {
        let mut chip = fresh();
        program(&mut chip, 4, bits | 0x51);
        let Raised::Deliver(message) = chip.set_irq(4, USER, true) else { panic!("not sent") };
        assert_eq!((message.destination, message.logical, message.vector), (destination, logical, 0x51));
        assert_eq!((message.mode, message.level, message.assert), (mode, level, true));
    }
}

#[test]
fn a_masked_edge_is_lost() {
    let mut chip = fresh();
    program(&mut chip, 4, MASKED | 0x51);
    assert_eq!(chip.set_irq(4, USER, true), Raised::Nothing(LineStatus::Ignored));
    assert_eq!(program(&mut chip, 4, 0x51), None);
}

#[test]
fn a_level_waits_for_its_eoi_and_comes_again() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    assert_eq!(vector_of(chip.set_irq(10, USER, true)), Some(0x61));
    assert_ne!(entry(&mut chip, 10) & REMOTE_IRR, 0);
    assert_eq!(chip.set_irq(10, Source::RESAMPLE, true), Raised::Nothing(LineStatus::Ignored));
    chip.set_irq(10, Source::RESAMPLE, false);
    assert_eq!(eoi(&mut chip, 0x61, true), [0x61]);
    chip.set_irq(10, USER, false);
    assert_eq!(eoi(&mut chip, 0x61, true), []);
    assert_eq!(entry(&mut chip, 10) & REMOTE_IRR, 0);
}

/// A resampling irqfd lowers its line between the two steps of the EOI; nothing must be sent then.
#[test]
fn a_notifier_may_lower_the_line_before_it_is_sent_again() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    chip.set_irq(10, Source::RESAMPLE, true);
    let pins = chip.eoi(0x61, true);
    assert_eq!(pins, 1 << 10);
    chip.set_irq(10, Source::RESAMPLE, false);
    chip.eoi_redeliver(pins, &mut |_| panic!("sent although low"));
    // The device still wants service and raises the line again.
    assert_eq!(vector_of(chip.set_irq(10, Source::RESAMPLE, true)), Some(0x61));
}

#[test]
fn unmasking_sends_a_standing_level() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | MASKED | 0x61);
    chip.set_irq(10, USER, true);
    chip.mmio_write(0, 4, 0x24);
    let written = chip.mmio_write(0x10, 4, LEVEL | 0x61);
    assert_eq!(written.unmasked, Some(10));
    assert!(written.rescan);
    assert_eq!(written.message.map(|m| (m.vector, m.level)), Some((0x61, true)));
    let written = chip.mmio_write(0x10, 4, LEVEL | 0x61);
    assert_eq!((written.unmasked, written.message), (None, None));
}

/// Linux and Xen clear a stuck Remote IRR by a trip through edge mode.
#[test]
fn edge_mode_clears_remote_irr() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    chip.set_irq(10, USER, true);
    program(&mut chip, 10, LEVEL | MASKED | 0x61);
    assert_ne!(entry(&mut chip, 10) & REMOTE_IRR, 0);
    program(&mut chip, 10, MASKED | 0x61);
    assert_eq!(entry(&mut chip, 10) & REMOTE_IRR, 0);
    assert!(program(&mut chip, 10, LEVEL | 0x61).is_some());
}

#[test]
fn two_pins_with_one_vector_are_both_ended() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    program(&mut chip, 11, LEVEL | 0x61);
    program(&mut chip, 12, 0x61);
    chip.set_irq(10, USER, true);
    chip.set_irq(11, USER, true);
    assert_eq!(chip.eoi(0x61, true), 7 << 10);
    assert_eq!(entry(&mut chip, 10) & REMOTE_IRR, 0);
    assert_eq!(entry(&mut chip, 11) & REMOTE_IRR, 0);
}

#[test]
fn the_eoi_of_an_edge_is_told_to_notifiers_and_sends_nothing() {
    let mut chip = fresh();
    program(&mut chip, 0, 0x30);
    chip.set_irq(0, Source::PIT, true);
    assert_eq!(chip.eoi(0x30, false), 1);
    assert_eq!(eoi(&mut chip, 0x30, false), []);
    assert_eq!(chip.eoi(0x31, true), 0);
}

#[test]
fn eoi_vectors_are_those_of_levels_and_of_notified_pins() {
    let mut chip = fresh();
    program(&mut chip, 2, 0x30);
    program(&mut chip, 3, 0x31);
    program(&mut chip, 9, LEVEL | 0xf9);
    let set = chip.eoi_vectors(1 << 2);
    let members: Vec<u8> = (0..=255).filter(|v| set.contains(*v)).collect();
    assert_eq!(members, [0x30, 0xf9]);
}

/// A masked pin ends nothing, and the ends of levels are broadcast.
#[test]
fn edges_that_somebody_listens_to() {
    const MASKED: u64 = 1 << 16;
    let mut chip = fresh();
    program(&mut chip, 2, 0x30);
    program(&mut chip, 3, MASKED | 0x31);
    program(&mut chip, 9, LEVEL | 0xf9);
    let listened = |pin: u8| chip.notifies_edges(1 << pin);
    assert_eq!([2, 3, 9, 10].map(listened), [true, false, false, false]);
    assert!(!chip.notifies_edges(0) && chip.notifies_edges(!0));
}

/// A guest that never silences its device (a driver not loaded yet) must not keep the host in EOI for ever.
#[test]
fn a_storm_pauses_and_goes_on() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    chip.set_irq(10, USER, true);
    let mut sent = 0;
    let mut rounds = 0;
    loop {
        let pins = chip.eoi(0x61, true);
        rounds += 1;
        if chip.eoi_redeliver(pins, &mut |_| sent += 1) {
            break;
        }
    }
    assert_eq!((rounds, sent), (u32::from(STORM_LIMIT), u32::from(STORM_LIMIT) - 1));
    chip.eoi_redeliver(1 << 10, &mut |_| panic!("pausing"));
    chip.eoi_delayed(&mut |_| sent += 1);
    assert_eq!(sent, u32::from(STORM_LIMIT));
    assert_eq!(eoi(&mut chip, 0x61, true), [0x61]);
}

/// EOIs of another pin do not make the storm look like silence.
#[test]
fn a_storm_beside_another_pin() {
    let mut chip = fresh();
    for (pin, vector) in [(10, 0x61), (11, 0x62)] {
        program(&mut chip, pin, LEVEL | vector);
        chip.set_irq(pin, USER, true);
    }
    let mut pause = |vector| {
        let pins = chip.eoi(vector, true);
        chip.eoi_redeliver(pins, &mut |_| ())
    };
    let paused = (0..STORM_LIMIT).any(|_| pause(0x61) | pause(0x62));
    assert!(paused);
}

#[test]
fn a_device_that_falls_silent_in_between_is_no_storm() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    for _ in 0..3 {
        chip.set_irq(10, USER, true);
        for _ in 0..STORM_LIMIT / 2 {
            assert_eq!(eoi(&mut chip, 0x61, true), [0x61]);
        }
        chip.set_irq(10, USER, false);
        assert_eq!(eoi(&mut chip, 0x61, true), []);
    }
}

/// The local APIC took the vector as an edge (before the entry was changed): its EOI does not answer the level.
#[test]
fn the_eoi_of_an_edge_does_not_end_a_level() {
    let mut chip = fresh();
    program(&mut chip, 10, LEVEL | 0x61);
    chip.set_irq(10, USER, true);
    assert_eq!(eoi(&mut chip, 0x61, false), []);
    assert_ne!(entry(&mut chip, 10) & REMOTE_IRR, 0);
}

#[test]
fn an_edge_that_came_while_masked_is_saved_though_an_earlier_one_was_sent() {
    let mut chip = fresh();
    program(&mut chip, 4, 0x51);
    chip.set_irq(4, USER, true);
    chip.set_irq(4, USER, false);
    program(&mut chip, 4, MASKED | 0x51);
    chip.set_irq(4, USER, true);
    let mut state = kvm_ioapic_state::zeroed();
    chip.save(&mut state);
    assert_eq!(state.irr, 1 << 4);
}

/// A line that was low for the edge entry and high for the level one: the level is pending, whatever the edge did.
#[test]
fn a_pin_that_changed_its_trigger_is_saved_as_a_level() {
    let mut chip = fresh();
    program(&mut chip, 4, 0x51);
    chip.set_irq(4, USER, true);
    program(&mut chip, 4, LEVEL | MASKED | 0x51);
    let mut state = kvm_ioapic_state::zeroed();
    chip.save(&mut state);
    assert_eq!(state.irr, 1 << 4);
    assert!(program(&mut chip, 4, LEVEL | 0x51).is_some());
}

/// The delivery status is the chip's: kept as it was loaded, over a write of the guest too.
#[test]
fn the_delivery_status_is_kept() {
    let loaded = 1 << 12 | MASKED | 0x51;
    let mut state = kvm_ioapic_state::zeroed();
    state.redirtbl[4] = loaded;
    let mut chip = fresh();
    chip.load(&state, &mut |_| panic!("masked"));
    assert_eq!(entry(&mut chip, 4), loaded);
    write(&mut chip, 0x18, (MASKED | 0x52) as u32);
    assert_eq!(entry(&mut chip, 4), 1 << 12 | MASKED | 0x52);
}

#[test]
fn a_loaded_edge_entry_is_not_held_back_by_remote_irr() {
    let mut state = kvm_ioapic_state::zeroed();
    state.redirtbl[4] = REMOTE_IRR | 0x51;
    let mut chip = fresh();
    chip.load(&state, &mut |_| panic!("nothing is pending"));
    assert_eq!(vector_of(chip.set_irq(4, USER, true)), Some(0x51));
}

#[test]
fn loading_sends_what_is_pending_and_not_what_was_sent() {
    let mut chip = fresh();
    program(&mut chip, 4, 0x51);
    program(&mut chip, 5, MASKED | 0x52);
    program(&mut chip, 10, LEVEL | 0x61);
    program(&mut chip, 11, LEVEL | MASKED | 0x62);
    for pin in [4, 5, 10, 11] {
        chip.set_irq(pin, USER, true);
    }
    let mut state = kvm_ioapic_state::zeroed();
    chip.save(&mut state);
    assert_eq!(state.irr, 1 << 5 | 1 << 10 | 1 << 11);
    state.redirtbl[10] &= !REMOTE_IRR;
    let mut other = fresh();
    let mut sent = Vec::new();
    other.load(&state, &mut |message| sent.push(message.vector));
    assert_eq!(sent, [0x61]);
}

#[test]
fn hostile_state_is_harmless() {
    let mut state: kvm_ioapic_state = bytemuck::cast([0xffu8; size_of::<kvm_ioapic_state>()]);
    let mut chip = fresh();
    chip.load(&state, &mut |_| panic!("everything is masked"));
    chip.mmio_read(0x10, 4);
    chip.mmio_write(0x10, 4, 0);
    assert_eq!(chip.offset_of(0), None);
    assert_eq!(chip.set_irq(255, USER, true), Raised::Nothing(LineStatus::Ignored));
    state.redirtbl = [0; 24];
    chip.load(&state, &mut |_| {});
}

#[derive(Clone, Debug)]
enum Op {
    Line(u8, u32, bool),
    Low(u8, u32),
    High(u8, u32),
    Eoi(u8),
    Migrate,
}

fn op() -> impl Strategy<Value = Op> {
    // Few pins and few vectors, so that they collide. Entries are edge or level, masked or not.
    let low = (0x40u32..0x44, any::<bool>(), any::<bool>()).prop_map(|(v, level, masked)| {
        v | if level { 1 << 15 } else { 0 } | if masked { 1 << 16 } else { 0 }
    });
    prop_oneof![
        6 => (0u8..6, 0u32..2, any::<bool>()).prop_map(|(p, s, l)| Op::Line(p, s, l)),
        3 => (0u8..6, low).prop_map(|(p, v)| Op::Low(p, v)),
        1 => (0u8..6, any::<u32>()).prop_map(|(p, v)| Op::High(p, v)),
        5 => (0x40u8..0x44).prop_map(Op::Eoi),
        1 => Just(Op::Migrate),
    ]
}

/// The chip as booleans per pin.
#[derive(Default)]
struct Naive {
    entries: [u64; 24],
    sources: [u32; 24],
    high: [bool; 24],
    sent_while_high: [bool; 24],
    waits: [bool; 24],
}

impl Naive {
    fn fire(&mut self, pin: usize) -> Vec<u8> {
        let e = self.entries[pin];
        if e & MASKED != 0 || (e & LEVEL != 0 && self.waits[pin]) {
            return vec![];
        }
        if e & LEVEL != 0 {
            self.waits[pin] = true;
        } else {
            self.sent_while_high[pin] = true;
        }
        vec![e as u8]
    }
    fn standing(&mut self, pin: usize) -> Vec<u8> {
        if self.entries[pin] & LEVEL != 0 && self.high[pin] { self.fire(pin) } else { vec![] }
    }
}

fn step(chip: &mut Ioapic, naive: &mut Naive, op: Op) -> (Vec<u8>, Vec<u8>) {
    let mut sent = Vec::new();
    let mut wanted = Vec::new();
    match op {
        Op::Line(pin, source, level) => {
            let p = usize::from(pin);
            sent.extend(vector_of(chip.set_irq(pin, [USER, Source::RESAMPLE][source as usize], level)));
            let bit = 1 << source;
            naive.sources[p] = if level { naive.sources[p] | bit } else { naive.sources[p] & !bit };
            let was = naive.high[p];
            naive.high[p] = naive.sources[p] != 0;
            if !was && naive.high[p] {
                naive.sent_while_high[p] = false;
            }
            if naive.high[p] && (naive.entries[p] & LEVEL != 0 || !was) {
                wanted = naive.fire(p);
            }
        }
        Op::Low(pin, value) => {
            let p = usize::from(pin);
            sent.extend(write(chip, 0x10 + 2 * pin, value).message.map(|m| m.vector));
            naive.entries[p] = naive.entries[p] & !0xffff_ffff | u64::from(value);
            naive.waits[p] &= value & 1 << 15 != 0;
            wanted = naive.standing(p);
        }
        Op::High(pin, value) => {
            let p = usize::from(pin);
            sent.extend(write(chip, 0x11 + 2 * pin, value).message.map(|m| m.vector));
            naive.entries[p] = naive.entries[p] & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            wanted = naive.standing(p);
        }
        Op::Eoi(vector) => {
            let pins = chip.eoi(vector, true);
            chip.eoi_redeliver(pins, &mut |m| sent.push(m.vector));
            for p in 0..24 {
                if naive.entries[p] as u8 == vector {
                    assert_ne!(pins & 1 << p, 0);
                    naive.waits[p] = false;
                    wanted.extend(naive.standing(p));
                }
            }
        }
        Op::Migrate => {
            let mut state = kvm_ioapic_state::zeroed();
            chip.save(&mut state);
            let mut other = fresh();
            other.load(&state, &mut |m| sent.push(m.vector));
            let mut again = kvm_ioapic_state::zeroed();
            other.save(&mut again);
            if sent.is_empty() {
                assert_eq!(state, again, "a state survives its round trip");
            }
            *chip = other;
            for p in 0..24 {
                naive.sources[p] = 0;
                naive.high[p] &= !naive.sent_while_high[p] || naive.entries[p] & LEVEL != 0;
                naive.sent_while_high[p] = false;
                if naive.high[p] {
                    wanted.extend(naive.fire(p));
                }
            }
        }
    }
    (sent, wanted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Messages are those of the naive model, and a level pin that is high and open always has one under way.
    #[test]
    fn agrees_with_the_naive_model(ops in prop::collection::vec(op(), 1..150)) {
        let mut chip = fresh();
        let mut naive = Naive { entries: [MASKED; 24], ..Default::default() };
        for op in ops {
            let (sent, wanted) = step(&mut chip, &mut naive, op);
            prop_assert_eq!(sent, wanted);
            for pin in 0..PINS {
                let p = usize::from(pin);
                let e = entry(&mut chip, pin);
                prop_assert_eq!(e & REMOTE_IRR != 0, naive.waits[p]);
                prop_assert_eq!(e & !REMOTE_IRR, naive.entries[p]);
                prop_assert!(e & MASKED != 0 || e & LEVEL == 0 || !naive.high[p] || e & REMOTE_IRR != 0, "lost");
            }
        }
    }
}
