//! Target sets: every ICR form in every mode against a brute-force reference that is written from the manual's tables.
#![allow(unused_must_use)]

mod common;
use bytemuck::Zeroable;
use common::*;
use core::cell::Cell;
use exitless_ipi::{Address, Claims, Few, Map};
use exitless_lapic::*;
use exitless_x86::apic::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A VM with possibly missing vCPUs.
struct Vm {
    cpus: Vec<Option<Cpu>>,
    /// Destinations are looked up where they can be.
    mapped: bool,
    rotation: Cell<usize>,
}

impl Vm {
    fn new(cpus: Vec<Option<Cpu>>) -> Self {
        Self { cpus, mapped: true, rotation: Cell::new(0) }
    }

    fn send(&self, message: &InterruptMessage, sender: Option<usize>) -> (Vec<(usize, Accepted)>, Delivered) {
        let mut seen = Vec::new();
        let delivered = route(message, sender, self, |index, _, accepted| seen.push((index, accepted)));
        seen.sort_by_key(|(index, _)| *index);
        (seen, delivered)
    }
}

impl Vm {
    fn map(&self) -> Map<512> {
        let (map, mut claims) = (Map::<512>::zeroed(), Claims::<512>::zeroed());
        for (index, cpu) in self.cpus.iter().enumerate() {
            let address = cpu.as_ref().map_or(Address::new(), |cpu| cpu.s.address());
            map.with(|| &[]).update(&mut claims, &mut [], index, Address::new(), address);
        }
        map
    }
}

impl Targets for Vm {
    type Vcpu = Shared;
    fn len(&self) -> usize {
        self.cpus.len()
    }
    fn get(&self, index: usize) -> Option<&Shared> {
        Some(&self.cpus.get(index)?.as_ref()?.s)
    }
    fn only(&self, message: &InterruptMessage) -> Option<usize> {
        self.map().with(|| &[]).only(message).filter(|_| self.mapped)
    }
    fn resolve(&self, message: &InterruptMessage, sender: Option<usize>) -> Option<Few> {
        self.map().with(|| &[]).resolve(message, sender, self.len()).filter(|_| self.mapped)
    }
    fn rotation(&self) -> usize {
        self.rotation.replace(self.rotation.get() + 1)
    }
}

/// How the reference sees one APIC.
#[derive(Clone, Copy, Debug)]
struct Model {
    id: u32,
    xapic_id: u8,
    logical_id: u8,
    flat: bool,
    mode: Mode,
    sw: bool,
}

fn build(m: &Model) -> Cpu {
    let mut cpu = Cpu::raw(m.id, false, Config::default());
    cpu.write(reg::ID, u32::from(m.xapic_id) << 24);
    cpu.write(reg::LDR, u32::from(m.logical_id) << 24);
    cpu.write(reg::DFR, if m.flat { 0xffff_ffff } else { 0x0fff_ffff });
    cpu.write(reg::SVR, if m.sw { 0x1ff } else { 0xff });
    match m.mode {
        Mode::Disabled => _ = cpu.host_base(0xfee0_0000),
        Mode::XApic => (),
        Mode::X2Apic => _ = cpu.host_base(0xfee0_0c00),
    }
    cpu
}

/// Members of an x2APIC logical destination, by enumeration of the ids that can be in the cluster.
fn x2apic_members(destination: u32) -> BTreeSet<u32> {
    let cluster = destination >> 16;
    (0..16).filter(|bit| destination & 1 << bit != 0).map(|bit| cluster * 16 + bit).collect()
}

/// Which of `cpus` the destination names, before enables.
fn reference(message: &InterruptMessage, sender: Option<usize>, cpus: &[Model]) -> BTreeSet<usize> {
    let named = |index: usize, m: &Model| {
        if m.mode == Mode::Disabled {
            return false;
        }
        match message.shorthand {
            Shorthand::SelfOnly => return sender == Some(index),
            Shorthand::All => return true,
            Shorthand::AllButSelf => return sender != Some(index),
            Shorthand::None => (),
        }
        let destination = message.destination;
        if message.x2apic && destination == 0xffff_ffff {
            return true;
        }
        let wide = m.mode == Mode::X2Apic || m.id > 0xff;
        if destination == 0xff && !(message.x2apic && wide) {
            return true;
        }
        match (message.logical, m.mode) {
            (true, Mode::X2Apic) => x2apic_members(destination).contains(&m.id),
            (true, _) if m.flat => {
                (0..8).any(|bit| destination >> bit & u32::from(m.logical_id) >> bit & 1 == 1)
            }
            (true, _) => {
                let members = (0..4).any(|bit| destination >> bit & u32::from(m.logical_id) >> bit & 1 == 1);
                destination / 16 == u32::from(m.logical_id / 16) && members
            }
            (false, _) if wide => destination == m.id,
            (false, _) => destination == u32::from(m.xapic_id),
        }
    };
    cpus.iter().enumerate().filter(|(index, m)| named(*index, m)).map(|(index, _)| index).collect()
}

/// What the reference expects each named APIC to answer when nothing was pending before.
fn expected(message: &InterruptMessage, m: &Model) -> Accepted {
    match message.mode.0 {
        0 | 1 if m.sw && message.vector >= 16 => Accepted::Event,
        4 => Accepted::Nmi,
        5 if message.assert || !message.level => Accepted::Startup,
        6 => Accepted::Startup,
        7 => Accepted::ExtInt,
        _ => Accepted::None,
    }
}

fn check(models: &[Model], message: &InterruptMessage, sender: Option<usize>) {
    let vm = Vm::new(models.iter().map(|m| Some(build(m))).collect());
    let named = reference(message, sender, models);
    let mut told = BTreeSet::new();
    exitless_lapic::named(message, sender, &vm, |index, _| assert!(told.insert(index), "told twice"));
    assert_eq!(told, named, "{message:?} {models:?}");
    let (seen, delivered) = vm.send(message, sender);
    if message.mode == DeliveryMode::LOWEST {
        let able: BTreeSet<_> = named.into_iter().filter(|&index| models[index].sw).collect();
        let legal = message.vector >= 16 && !able.is_empty();
        assert_eq!(seen.len(), usize::from(legal), "{message:?} {models:?}");
        assert!(seen.iter().all(|(index, accepted)| able.contains(index) && *accepted == Accepted::Event));
    } else {
        let want: Vec<_> = named
            .into_iter()
            .map(|index| (index, expected(message, &models[index])))
            .filter(|(_, accepted)| *accepted != Accepted::None)
            .collect();
        assert_eq!(seen, want, "{message:?} {models:?}");
    }
    assert_eq!((delivered.accepted, delivered.new), (seen.len() as u32, seen.len() as u32));
    for (index, cpu) in vm.cpus.iter().flatten().enumerate() {
        let hit = seen.iter().any(|(seen, accepted)| *seen == index && *accepted == Accepted::Event);
        assert_eq!(cpu.s.top_irr(), hit.then_some(message.vector), "only named APICs change");
        assert_eq!(cpu.s.is_level(message.vector), hit && message.level);
    }
}

fn model(id: u32, xapic_id: u8, logical_id: u8, flat: bool, mode: Mode, sw: bool) -> Model {
    Model { id, xapic_id, logical_id, flat, mode, sw }
}

/// Every delivery mode x shorthand x destination mode x width over a VM that mixes all APIC modes, aliased ids included.
#[test]
fn every_icr_form() {
    let models = [
        model(0, 0, 0x01, true, Mode::XApic, true),
        model(1, 1, 0x12, false, Mode::XApic, true),
        model(2, 1, 0xf4, false, Mode::XApic, false),
        model(3, 3, 0, true, Mode::X2Apic, true),
        model(4, 4, 0, true, Mode::X2Apic, false),
        model(5, 5, 0xff, true, Mode::Disabled, true),
        model(255, 255, 0x80, true, Mode::XApic, true),
        model(0x123, 0x23, 0x88, true, Mode::XApic, true),
        model(0x134, 0x34, 0, true, Mode::X2Apic, true),
    ];
    let destinations = (0..=0xff).chain([0x123, 0x134, 0x12_0008, 0x13_0010, 0x13_ffff, 0xffff, 0xffff_ffff]);
    let shorthands = [Shorthand::None, Shorthand::SelfOnly, Shorthand::All, Shorthand::AllButSelf];
    for destination in destinations {
        for mode in 0..8 {
            for (shorthand, logical) in shorthands.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                if shorthand != Shorthand::None && destination != 0 {
                    continue;
                }
                for x2apic in [false, true] {
                    let message = InterruptMessage {
                        logical,
                        shorthand,
                        x2apic,
                        mode: DeliveryMode(mode),
                        level: mode == 0 && destination % 2 == 1,
                        ..fixed(destination, 0x51)
                    };
                    check(&models, &message, Some(1));
                    check(&models, &message, None);
                }
            }
        }
    }
}

fn any_model() -> impl Strategy<Value = Model> {
    let mode = prop_oneof![Just(Mode::Disabled), Just(Mode::XApic), Just(Mode::XApic), Just(Mode::X2Apic)];
    let id = prop_oneof![0u32..20, 0xf8u32..0x108, any::<u32>()];
    (id, 0u8..8, any::<u8>(), any::<bool>(), mode, any::<bool>()).prop_map(
        |(id, xapic_id, logical_id, flat, mode, sw)| model(id, xapic_id, logical_id, flat, mode, sw),
    )
}

fn any_message() -> impl Strategy<Value = InterruptMessage> {
    let shorthand = prop_oneof![
        5 => Just(Shorthand::None),
        1 => Just(Shorthand::SelfOnly),
        1 => Just(Shorthand::All),
        1 => Just(Shorthand::AllButSelf)
    ];
    let destination = prop_oneof![0u32..24, Just(0xff), Just(u32::MAX), 0u32..0x2_0000, any::<u32>()];
    (destination, any::<(bool, bool, bool, bool)>(), 0u8..8, any::<u8>(), shorthand).prop_map(
        |(destination, (logical, level, assert, x2apic), mode, vector, shorthand)| InterruptMessage {
            destination: if x2apic { destination } else { destination & 0xff },
            logical,
            mode: DeliveryMode(mode),
            vector,
            level,
            assert,
            shorthand,
            x2apic,
        },
    )
}

proptest! {
    #[test]
    fn random_vms(models in prop::collection::vec(any_model(), 1..8), message in any_message(), sender in 0usize..9) {
        check(&models, &message, (sender < models.len()).then_some(sender));
    }

    /// Looking destinations up names the same targets as asking everybody.
    #[test]
    fn by_look_up(x2apic_mode: bool, message in any_message(), sender in 0usize..6) {
        let build_vm = |mapped| Vm {
            mapped,
            ..Vm::new((0..6).map(|id| (id != 4).then(|| {
                if x2apic_mode { Cpu::x2apic(id) } else { Cpu::xapic(id) }
            })).collect())
        };
        prop_assert_eq!(
            build_vm(true).send(&message, Some(sender)),
            build_vm(false).send(&message, Some(sender))
        );
        let [mut fast, mut slow] = [vec![], vec![]];
        exitless_lapic::named(&message, Some(sender), &build_vm(true), |index, _| fast.push(index));
        exitless_lapic::named(&message, Some(sender), &build_vm(false), |index, _| slow.push(index));
        prop_assert_eq!(fast, slow);
    }
}

/// Lowest priority: the lowest PPR wins; equals take turns; a stale rotation number beyond the VM's size is harmless.
#[test]
fn lowest_priority() {
    let mut vm = Vm::new((0..4).map(|id| Some(Cpu::xapic(id))).collect());
    let message = InterruptMessage { mode: DeliveryMode::LOWEST, ..fixed(0xff, 0x60) };
    for (index, tpr) in [0x40, 0x20, 0x30, 0x20].into_iter().enumerate() {
        vm.cpus[index].as_mut().unwrap().write(reg::TPR, tpr);
    }
    vm.rotation.set(usize::MAX - 100);
    let mut hits = [0; 4];
    for _ in 0..40 {
        let (seen, _) = vm.send(&message, None);
        let &[(index, Accepted::Event)] = &seen[..] else { panic!("one target, got {seen:?}") };
        hits[index] += 1;
        let cpu = vm.cpus[index].as_mut().unwrap();
        cpu.take();
        cpu.eoi();
    }
    assert_eq!(hits[0] + hits[2], 0);
    assert!(hits[1] >= 10 && hits[3] >= 10, "{hits:?}");
    // In service counts like TPR.
    vm.cpus[1].as_mut().unwrap().s.post(0x90, false);
    vm.cpus[1].as_mut().unwrap().take();
    assert_eq!(vm.send(&message, None).0, [(3, Accepted::Event)]);
    // The software-disabled are no candidates.
    vm.cpus[3].as_mut().unwrap().write(reg::SVR, 0xff);
    assert_eq!(vm.send(&message, None).0, [(2, Accepted::Event)]);
}

/// KVM_IRQ_LINE_STATUS numbers: nobody -1, coalesced 0, otherwise the count.
#[test]
fn delivery_status() {
    let vm = Vm::new((0..3).map(|id| (id != 1).then(|| Cpu::xapic(id))).collect());
    assert_eq!(vm.send(&fixed(1, 0x40), None).1.status(), -1);
    assert_eq!(vm.send(&fixed(0xff, 0x40), None).1.status(), 2);
    assert_eq!(vm.send(&fixed(0xff, 0x40), None), (vec![], Delivered { accepted: 2, new: 0 }));
    assert_eq!(vm.send(&fixed(0, 0x40), None).1.status(), 0);
    let empty = Vm::new(vec![]);
    for mode in 0..8 {
        let message = InterruptMessage { mode: DeliveryMode(mode), ..fixed(0xff, 0x40) };
        assert_eq!(empty.send(&message, Some(7)).1.status(), -1);
    }
}

/// A guest that gives two APICs one id gets both interrupted.
#[test]
fn aliased_ids() {
    let mut vm = Vm::new((0..3).map(|id| Some(Cpu::xapic(id))).collect());
    assert!(vm.cpus[2].as_mut().unwrap().write(reg::ID, 0).routing_changed);
    let seen = vm.send(&fixed(0, 0x40), None).0;
    assert_eq!(seen, [(0, Accepted::Event), (2, Accepted::Event)]);
}

/// What cannot be looked up is not delivered to few, and then to nobody.
#[test]
fn few_or_nobody() {
    let mut vm = Vm::new((0..3).map(|id| Some(Cpu::xapic(id))).collect());
    vm.cpus[2].as_mut().unwrap().write(reg::ID, 0);
    let send = |destination, first| {
        route_few(&fixed(destination, 0x40), None, &vm, "targets", || first, |_, _, _| ())
    };
    let nobody = || vm.cpus.iter().flatten().all(|cpu| cpu.s.top_irr().is_none());
    assert_eq!(send(0, Err("first")), Err("targets"), "not tried before somebody is found");
    assert_eq!(send(0, Ok(())), Err("targets"));
    assert_eq!(send(1, Err("first")), Err("first"));
    assert!(nobody());
    assert_eq!(send(1, Ok(())), Ok(Delivered { accepted: 1, new: 1 }));
    assert!(!nobody());
}
