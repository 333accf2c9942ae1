//! Routes and MSIs: what KVM_SET_GSI_ROUTING accepts, the default table, lookups both ways, and whole GSIs on both chips.
use bytemuck::Zeroable;
use exitless_irqchip::chips::{Effect, IrqChips, delivered};
use exitless_irqchip::lines::{LineStatus, Source};
use exitless_irqchip::msi::{DestinationFormat, Msi, VectorSet};
use exitless_irqchip::pit::{Pit, ns_of};
use exitless_irqchip::routes::*;
use exitless_kvm_abi::*;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};
use proptest::prelude::*;

const XAPIC: DestinationFormat = DestinationFormat::Xapic;
const USER: Source = Source::USERSPACE;

fn table(entries: &[kvm_irq_routing_entry]) -> Result<Vec<Route>, RouteError> {
    let mut out = vec![Route::zeroed(); entries.len()];
    let count = build(entries, true, XAPIC, &mut out)?;
    assert_eq!(count, entries.len());
    Ok(out)
}

fn defaults() -> Vec<Route> {
    let mut out = vec![Route::zeroed(); DEFAULT_ROUTES];
    assert_eq!(default_routes(&mut out), Ok(DEFAULT_ROUTES));
    out
}

fn pin(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry::to_irqchip(gsi, chip, pin)
}

fn msi(gsi: u32, data: u32) -> kvm_irq_routing_entry {
    let m = kvm_irq_routing_msi { address_lo: 0xfee0_1000, address_hi: 0, data, devid: 0 };
    kvm_irq_routing_entry::to_msi(gsi, m)
}

fn fresh() -> IrqChips {
    let mut chips = IrqChips::zeroed();
    chips.init();
    chips
}

#[test]
fn entries_that_kvm_refuses() {
    let one = |entry| table(&[entry]);
    assert_eq!(one(pin(4096, 2, 0)), Err(RouteError::Gsi));
    assert!(one(pin(4095, 2, 23)).is_ok());
    assert_eq!(one(pin(0, 0, 8)), Err(RouteError::Pin));
    assert_eq!(one(pin(0, 1, 8)), Err(RouteError::Pin));
    assert_eq!(one(pin(0, 2, 24)), Err(RouteError::Pin));
    assert_eq!(one(pin(0, 1, u32::MAX)), Err(RouteError::Pin));
    assert_eq!(one(pin(0, 3, 0)), Err(RouteError::Pin));
    for kind in [0, 3, 4, 5, 6, u32::MAX] {
        assert_eq!(one(kvm_irq_routing_entry { type_: kind, ..msi(24, 0x31) }), Err(RouteError::Type));
    }
    for flags in [KVM_MSI_VALID_DEVID, 2] {
        assert_eq!(one(kvm_irq_routing_entry { flags, ..msi(24, 0x31) }), Err(RouteError::Flags));
        assert_eq!(one(kvm_irq_routing_entry { flags, ..pin(1, 0, 1) }), Err(RouteError::Flags));
    }
}

#[test]
fn a_split_irqchip_has_no_pins() {
    assert_eq!(convert(&pin(4, 2, 4), false, XAPIC), Err(RouteError::Pin));
    assert!(convert(&msi(4, 0x31), false, XAPIC).is_ok());
}

#[test]
fn the_x2apic_format_refuses_reserved_address_bits() {
    let m = kvm_irq_routing_msi { address_lo: 0xfee0_1000, address_hi: 0x101, data: 0x31, devid: 0 };
    let entry = kvm_irq_routing_entry::to_msi(24, m);
    assert_eq!(convert(&entry, true, DestinationFormat::X2apic), Err(RouteError::Msi));
    assert!(convert(&entry, true, XAPIC).is_ok(), "ignored in the xAPIC format");
}

#[test]
fn one_gsi_may_reach_each_chip_once_or_one_msi() {
    assert!(table(&[pin(3, 0, 3), pin(3, 1, 3), pin(3, 2, 3)]).is_ok());
    assert_eq!(table(&[pin(3, 2, 3), pin(3, 2, 4)]), Err(RouteError::Duplicate));
    assert_eq!(table(&[pin(3, 0, 3), pin(9, 2, 9), pin(3, 0, 4)]), Err(RouteError::Duplicate));
    assert_eq!(table(&[pin(3, 1, 3), pin(3, 1, 3)]), Err(RouteError::Duplicate));
    assert_eq!(table(&[pin(3, 0, 3), msi(3, 0x31)]), Err(RouteError::Duplicate));
    assert_eq!(table(&[msi(3, 0x31), msi(3, 0x32)]), Err(RouteError::Duplicate));
    assert!(table(&[pin(3, 2, 5), pin(4, 2, 5)]).is_ok(), "two GSIs may share a pin");
    assert!(table(&[]).is_ok());
}

#[test]
fn a_table_must_fit() {
    let entries = [pin(3, 2, 3), pin(4, 2, 4)];
    assert_eq!(build(&entries, true, XAPIC, &mut [Route::zeroed()]), Err(RouteError::TooMany));
    let many: Vec<_> = (0..4096).map(|gsi| msi(gsi, 0x31)).collect();
    assert!(table(&many).is_ok());
    assert_eq!(finish(&mut vec![Route::zeroed(); 4097]), Err(RouteError::TooMany));
    assert!(size_of::<Route>() <= 20);
}

/// api.rst, KVM_CREATE_IRQCHIP. Firecracker without PCI and QEMU's microvm never set a table of their own.
#[test]
fn the_default_table() {
    let table = defaults();
    for gsi in 0..16 {
        assert_eq!(
            lookup(&table, gsi).iter().map(|r| r.target).collect::<Vec<_>>(),
            [Target::Pic(gsi as u8), Target::Ioapic(gsi as u8)]
        );
    }
    for gsi in 16..24 {
        assert_eq!(lookup(&table, gsi), [Route { gsi, target: Target::Ioapic(gsi as u8) }]);
    }
    assert_eq!(lookup(&table, 24), []);
    assert_eq!(lookup(&table, u32::MAX), []);
    assert_eq!(default_routes(&mut [Route::zeroed(); 39]), Err(RouteError::TooMany));
}

#[test]
fn pins_lead_back_to_gsis() {
    // QEMU's and kvmtool's table: the timer's GSI 0 goes to I/O APIC pin 2.
    let table = table(&[pin(0, 0, 0), pin(0, 2, 2), pin(9, 1, 1), pin(9, 2, 9), msi(24, 0x31)]).unwrap();
    let mut map = PinMap::zeroed();
    map.init(&table);
    assert_eq!((map.pic(0), map.pic(9), map.pic(1), map.pic(16)), (Some(0), Some(9), None, None));
    assert_eq!((map.ioapic(2), map.ioapic(9), map.ioapic(0), map.ioapic(24)), (Some(0), Some(9), None, None));
    let mut told = Vec::new();
    map.for_each_gsi(1 << 9 | 1 << 3, 1 << 2 | 1 << 5, &mut |gsi| told.push(gsi));
    assert_eq!(told, [9, 0]);
    map.init(&[]);
    assert_eq!(map.pic(0), None);
}

#[test]
fn the_user_space_ioapics_level_vectors_are_reported() {
    let table = table(&[msi(3, 0x31), msi(5, 0x8045), msi(23, 0x80f0), msi(24, 0x8050)]).unwrap();
    let mut wanted = VectorSet::default();
    wanted.insert(0x45);
    wanted.insert(0xf0);
    assert_eq!(ioapic_eoi_vectors(&table, 24), wanted);
    let mut all = VectorSet::default();
    all.extend(&wanted);
    assert_eq!(all, wanted);
}

#[test]
fn msi_fields() {
    let msi = Msi { address: 0xfee0_5004, address_hi: 0x0000_0300, data: 0xc000 | 4 << 8 | 0x77 };
    let message = msi.message(XAPIC);
    assert_eq!((message.destination, message.logical, message.vector), (5, true, 0x77));
    assert_eq!((message.mode, message.level, message.x2apic), (DeliveryMode::NMI, true, false));
    assert_eq!((message.assert, message.shorthand), (true, Shorthand::None));
    let message = msi.message(DestinationFormat::X2apic);
    assert_eq!((message.destination, message.x2apic), (0x305, true));
    let extended = Msi { address: 0xfee0_5000 | 0x55 << 5, address_hi: 0, data: 0x31 };
    assert_eq!(extended.message(DestinationFormat::Extended).destination, 0x5505);
    assert_eq!(extended.message(XAPIC).destination, 5);
}

#[test]
fn the_redirection_hint_means_lowest_priority() {
    let hinted = Msi { address: 0xfee0_f00c, address_hi: 0, data: 0x31 };
    assert_eq!(hinted.message(XAPIC).mode, DeliveryMode::LOWEST);
    let nmi = Msi { data: 0x431, ..hinted };
    assert_eq!(nmi.message(XAPIC).mode, DeliveryMode::NMI);
}

/// GSI 4 with the default table: both chips hear it, and the status counts both.
#[test]
fn a_gsi_reaches_both_chips() {
    let (mut chips, table) = (fresh(), defaults());
    chips.pic.io_write(0x20, 1, 0x11);
    for byte in [0x30, 4, 1] {
        chips.pic.io_write(0x21, 1, byte);
    }
    let mut effects = Vec::new();
    let mut raise = |chips: &mut IrqChips, gsi, level| {
        chips.set_pins(lookup(&table, gsi), USER, level, &mut |effect| {
            effects.push(effect);
            1
        })
    };
    assert_eq!(raise(&mut chips, 4, true), LineStatus::Delivered(1), "the I/O APIC's pin is masked");
    assert_eq!(raise(&mut chips, 4, false), LineStatus::Delivered(2));
    chips.ioapic.mmio_write(0, 4, 0x10 + 2 * 5);
    chips.ioapic.mmio_write(0x10, 4, 0x51);
    chips.pic.io_write(0x21, 1, 0x20);
    assert_eq!(raise(&mut chips, 5, true).code(), 1);
    assert_eq!(raise(&mut chips, 5, true).code(), 0, "the pulse is still there");
    assert_eq!(raise(&mut chips, 24, true).code(), -1);
    assert_eq!(effects.len(), 2);
    assert_eq!(effects[0], Effect::PicChanged(true));
    assert!(matches!(effects[1], Effect::Deliver(InterruptMessage { vector: 0x51, .. })));
}

/// A GSI is a message or pins, and what it is can be told without a chip: messages pass chips, and their locks, by.
#[test]
fn a_message_needs_no_chip() {
    let table =
        table(&[msi(24, 0x31), pin(4, KVM_IRQCHIP_IOAPIC, 4), pin(5, KVM_IRQCHIP_PIC_MASTER, 5)]).unwrap();
    assert_eq!(message(lookup(&table, 24)), Some(Msi { address: 0xfee0_1000, address_hi: 0, data: 0x31 }));
    assert_eq!([4, 5, 6].map(|gsi| message(lookup(&table, gsi))), [None; 3]);
    let sent = fresh().set_pins(lookup(&table, 24), USER, true, &mut |_| panic!("sent by a chip"));
    assert_eq!(sent, LineStatus::Ignored);
    assert_eq!((delivered(0).code(), delivered(3).code()), (0, 3));
}

/// The way of a timer tick on a machine with the PIC alone: PIT, GSI 0, INTA, EOI, and the tick that waited.
#[test]
fn a_tick_goes_round() {
    let (mut chips, table, mut pit) = (fresh(), defaults(), Pit::zeroed());
    let mut map = PinMap::zeroed();
    map.init(&table);
    pit.init(0);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        chips.pic.io_write(port, 1, value);
    }
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        pit.io_write(port, 1, value, 0);
    }
    let pulse = |chips: &mut IrqChips| {
        chips.set_pins(lookup(&table, 0), Source::PIT, true, &mut |_| 1);
        chips.set_pins(lookup(&table, 0), Source::PIT, false, &mut |_| 1);
    };
    assert!(pit.irq0_expire(ns_of(0x2e9c)));
    pulse(&mut chips);
    assert!(!pit.irq0_expire(ns_of(0x2e9c * 2)), "the guest has not ended the first");
    for left in [1, 0] {
        assert_eq!(chips.pic.ack(), 0x30);
        chips.pic.io_write(0x20, 1, 0x60);
        let mut again = false;
        map.for_each_gsi(chips.pic.take_eoi(), 0, &mut |gsi| again |= gsi == 0 && pit.irq0_ack());
        assert_eq!((again, pit.pending()), (left == 1, left));
        if again {
            pulse(&mut chips);
        }
    }
    assert!(!chips.pic.output());
}

#[test]
fn statuses_merge_and_have_kvms_numbers() {
    use LineStatus::*;
    assert_eq!(Ignored.merge(Coalesced), Coalesced);
    assert_eq!(Ignored.merge(Ignored), Ignored);
    assert_eq!(Coalesced.merge(Delivered(2)), Delivered(2));
    assert_eq!(Delivered(1).merge(Delivered(2)), Delivered(3));
    assert_eq!(Delivered(u32::MAX).code(), i32::MAX);
}

fn any_entry() -> impl Strategy<Value = kvm_irq_routing_entry> {
    prop_oneof![
        (0u32..12, 0u32..3, 0u32..8).prop_map(|(g, c, p)| pin(g, c, p)),
        (0u32..40, 0u32..256).prop_map(|(g, v)| msi(g, v)),
    ]
}

fn naive_is_valid(entries: &[kvm_irq_routing_entry]) -> bool {
    entries.iter().enumerate().all(|(i, a)| {
        entries[..i].iter().filter(|b| a.gsi == b.gsi).all(|b| {
            let both_pins = a.type_ == KVM_IRQ_ROUTING_IRQCHIP && b.type_ == KVM_IRQ_ROUTING_IRQCHIP;
            both_pins && a.irqchip().irqchip != b.irqchip().irqchip
        })
    })
}

/// SDM vol. 3A, 11.11: the words on the bus, bit 14 of the data included.
#[test]
fn an_msi_bit_by_bit() {
    let message = InterruptMessage {
        destination: 3,
        logical: true,
        mode: DeliveryMode::NMI,
        vector: 0x51,
        level: true,
        assert: true,
        shorthand: Shorthand::None,
        x2apic: false,
    };
    let msi = Msi::encode(&message, XAPIC);
    assert_eq!((msi.address, msi.address_hi, msi.data), (0xfee0_3004, 0, 0xc451));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Acceptance is the pairwise rule, and every accepted entry is found again under its GSI and nowhere else.
    #[test]
    fn tables_agree_with_pairwise_rules(entries in prop::collection::vec(any_entry(), 0..14)) {
        let built = table(&entries);
        prop_assert_eq!(built.is_ok(), naive_is_valid(&entries));
        let Ok(built) = built else {
            prop_assert_eq!(built, Err(RouteError::Duplicate));
            return Ok(());
        };
        for gsi in 0..50 {
            let mut wanted: Vec<Route> =
                entries.iter().filter(|e| e.gsi == gsi).map(|e| convert(e, true, XAPIC).unwrap()).collect();
            wanted.sort();
            prop_assert_eq!(lookup(&built, gsi), &wanted[..]);
        }
        let mut map = PinMap::zeroed();
        map.init(&built);
        for p in 0..24u8 {
            let wanted = built.iter().filter(|r| r.target == Target::Ioapic(p)).map(|r| r.gsi).max();
            prop_assert_eq!(map.ioapic(p), wanted);
            let wanted = built.iter().filter(|r| r.target == Target::Pic(p)).map(|r| r.gsi).max();
            prop_assert_eq!(map.pic(p), wanted);
        }
    }

    /// Sorting is sorting, at any size.
    #[test]
    fn finish_sorts(gsis in prop::collection::vec(0u32..4096, 0..600)) {
        let mut gsis = gsis;
        let mut routes: Vec<Route> =
            gsis.iter().map(|gsi| Route { gsi: *gsi, target: Target::Ioapic(1) }).collect();
        let result = finish(&mut routes);
        gsis.sort_unstable();
        prop_assert_eq!(routes.iter().map(|r| r.gsi).collect::<Vec<_>>(), gsis.clone());
        let before = gsis.len();
        gsis.dedup();
        prop_assert_eq!(result.is_ok(), gsis.len() == before);
    }

    /// What a device encodes is what the APICs decode, in every format that can carry the destination.
    #[test]
    fn messages_survive_encoding(
        destination in any::<u32>(), logical in any::<bool>(), mode in 0u8..8, vector in any::<u8>(), level in any::<bool>(),
    ) {
        for (format, bits) in [
            (XAPIC, 0xff),
            (DestinationFormat::Extended, 0x7fff),
            (DestinationFormat::X2apic, u32::MAX),
        ] {
            let destination = destination & bits;
            let message = InterruptMessage {
                destination, logical, mode: DeliveryMode(mode), vector, level, assert: true,
                shorthand: Shorthand::None, x2apic: destination > 0xff,
            };
            let msi = Msi::encode(&message, format);
            prop_assert!(msi.is_valid(format));
            prop_assert_eq!(msi.message(format), message);
        }
    }
}
