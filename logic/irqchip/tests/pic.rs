//! The 8259 pair: the data sheet's rules one by one, Linux's sequences, and a naive model under random use.
use bytemuck::Zeroable;
use exitless_irqchip::lines::{LineStatus, Source};
use exitless_irqchip::pic::{Pic, PicId};
use exitless_kvm_abi::kvm_pic_state;
use proptest::prelude::*;

const USER: Source = Source::USERSPACE;

fn raw() -> Pic {
    let mut pic = Pic::zeroed();
    pic.init();
    pic
}

fn write(pic: &mut Pic, bytes: &[(u16, u8)]) {
    for (port, value) in bytes {
        pic.io_write(*port, 1, u32::from(*value));
    }
}

/// As a PC's firmware and Linux leave the pair: vectors 0x30 and 0x38, `icw4` in both.
fn pair(icw4: u8) -> Pic {
    let mut pic = raw();
    write(&mut pic, &[(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, icw4)]);
    write(&mut pic, &[(0xa0, 0x11), (0xa1, 0x38), (0xa1, 2), (0xa1, icw4)]);
    pic.take_eoi();
    pic.take_unmasked();
    pic
}

fn pulse(pic: &mut Pic, pin: u8) -> LineStatus {
    let status = pic.set_irq(pin, USER, true);
    pic.set_irq(pin, USER, false);
    status
}

fn read(pic: &mut Pic, port: u16) -> u8 {
    pic.io_read(port, 1) as u8
}

fn isr(pic: &mut Pic, command: u16) -> u8 {
    write(pic, &[(command, 0x0b)]);
    let isr = read(pic, command);
    write(pic, &[(command, 0x0a)]);
    isr
}

#[test]
fn a_pulse_gives_one_interrupt_and_a_vector() {
    let mut pic = pair(1);
    assert_eq!(pulse(&mut pic, 4), LineStatus::Delivered(1));
    assert_eq!(pic.take_output_change(), Some(true));
    assert_eq!(pic.ack(), 0x34);
    assert_eq!(pic.take_output_change(), Some(false));
    assert_eq!(isr(&mut pic, 0x20), 0x10);
    assert_eq!(pic.take_eoi(), 0);
    write(&mut pic, &[(0x20, 0x20)]);
    assert_eq!(isr(&mut pic, 0x20), 0);
    assert_eq!(pic.take_eoi(), 1 << 4);
    assert!(!pic.output());
}

#[test]
fn a_slave_interrupt_occupies_the_cascade_until_both_are_ended() {
    let mut pic = pair(1);
    pulse(&mut pic, 12);
    assert_eq!(pic.ack(), 0x3c);
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (4, 0x10));
    // A higher request of the slave waits: the master has its cascade in service.
    pulse(&mut pic, 8);
    assert!(!pic.output());
    write(&mut pic, &[(0xa0, 0x20)]);
    assert!(!pic.output());
    write(&mut pic, &[(0x20, 0x20)]);
    assert!(pic.output());
    assert_eq!(pic.ack(), 0x38);
    assert_eq!(pic.take_eoi(), 1 << 12);
}

/// Special fully nested mode exists for exactly this: the slave interrupts its own lower request.
#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let mut pic = pair(0x11);
    pulse(&mut pic, 12);
    assert_eq!(pic.ack(), 0x3c);
    pulse(&mut pic, 13);
    assert!(!pic.output(), "lower than the one in service");
    pulse(&mut pic, 8);
    assert!(pic.output());
    assert_eq!(pic.ack(), 0x38);
}

#[test]
fn lower_priorities_wait_and_higher_ones_nest() {
    let mut pic = pair(1);
    pulse(&mut pic, 5);
    assert_eq!(pic.ack(), 0x35);
    pulse(&mut pic, 6);
    assert!(!pic.output());
    pulse(&mut pic, 1);
    assert_eq!(pic.ack(), 0x31);
    // Non-specific EOI ends the highest first.
    write(&mut pic, &[(0x20, 0x20)]);
    assert_eq!(pic.take_eoi(), 1 << 1);
    write(&mut pic, &[(0x20, 0x20)]);
    assert_eq!(pic.take_eoi(), 1 << 5);
    assert_eq!(pic.ack(), 0x36);
}

#[test]
fn the_second_request_of_a_pending_pin_coalesces() {
    let mut pic = pair(1);
    assert_eq!(pulse(&mut pic, 4), LineStatus::Delivered(1));
    assert_eq!(pulse(&mut pic, 4), LineStatus::Coalesced);
    write(&mut pic, &[(0x21, 0x10)]);
    assert_eq!(pulse(&mut pic, 4), LineStatus::Ignored);
}

#[test]
fn an_edge_pin_that_stays_high_fires_once() {
    let mut pic = pair(1);
    pic.set_irq(4, USER, true);
    assert_eq!(pic.ack(), 0x34);
    write(&mut pic, &[(0x20, 0x20)]);
    pic.set_irq(4, USER, true);
    assert!(!pic.output());
    pic.set_irq(4, USER, false);
    pic.set_irq(4, USER, true);
    assert!(pic.output());
}

#[test]
fn a_level_pin_fires_again_until_it_falls() {
    let mut pic = pair(1);
    write(&mut pic, &[(0x4d1, 0xff)]);
    assert_eq!(read(&mut pic, 0x4d1), 0xde, "IRQ 8 and 13 cannot be level triggered");
    pic.set_irq(11, USER, true);
    for _ in 0..3 {
        assert_eq!(pic.ack(), 0x3b);
        assert!(!pic.output());
        write(&mut pic, &[(0xa0, 0x63), (0x20, 0x62)]);
        assert_eq!(pic.take_eoi(), 1 << 11);
        assert!(pic.output());
    }
    pic.set_irq(11, USER, false);
    assert!(!pic.output());
}

/// Firmware sets the ELCR after a pulse went by on the pin: the forgotten edge must not become a request that no
/// device can lower.
#[test]
fn an_old_edge_does_not_become_a_level() {
    let mut pic = pair(1);
    pulse(&mut pic, 5);
    write(&mut pic, &[(0x4d0, 0x20)]);
    assert!(!pic.output());
    pic.set_irq(6, USER, true);
    assert_eq!(pic.ack(), 0x36);
    write(&mut pic, &[(0x20, 0x66), (0x4d0, 0x60)]);
    assert!(pic.output(), "a line that is high requests at once");
}

#[test]
fn elcr_keeps_timer_keyboard_and_cascade_edge() {
    let mut pic = pair(1);
    pic.io_write(0x4d0, 2, 0xffff);
    assert_eq!(pic.io_read(0x4d0, 2), 0xdef8, "a wide access covers both chips");
}

/// Two devices share a level GSI; the first to be quiet must not silence the second.
#[test]
fn sources_are_wired_or() {
    let mut pic = pair(1);
    write(&mut pic, &[(0x4d0, 0x20)]);
    pic.set_irq(5, USER, true);
    pic.set_irq(5, Source::RESAMPLE, true);
    pic.set_irq(5, USER, false);
    assert!(pic.output());
    pic.set_irq(5, Source::RESAMPLE, false);
    assert!(!pic.output());
}

#[test]
fn a_request_that_vanishes_before_inta_is_spurious() {
    let mut pic = pair(1);
    write(&mut pic, &[(0x4d0, 0x20)]);
    pic.set_irq(5, USER, true);
    pic.set_irq(5, USER, false);
    assert_eq!(pic.ack(), 0x37);
    assert_eq!(isr(&mut pic, 0x20), 0, "a spurious interrupt sets no ISR bit: Linux looks there");
    write(&mut pic, &[(0x20, 0x20)]);
    assert_eq!(pic.take_eoi(), 0);
}

#[test]
fn automatic_eoi_notifies_at_inta_and_rotates_if_told() {
    let mut pic = pair(3);
    pulse(&mut pic, 4);
    assert_eq!(pic.ack(), 0x34);
    assert_eq!(isr(&mut pic, 0x20), 0);
    assert_eq!(pic.take_eoi(), 1 << 4);
    write(&mut pic, &[(0x20, 0x80)]);
    pulse(&mut pic, 4);
    assert_eq!(pic.ack(), 0x34);
    pulse(&mut pic, 4);
    pulse(&mut pic, 5);
    assert_eq!(pic.ack(), 0x35, "4 is now the lowest");
}

/// OCW2 0 takes back what OCW2 0x80 asked for.
#[test]
fn rotation_on_automatic_eoi_is_turned_off() {
    let mut pic = pair(3);
    write(&mut pic, &[(0x20, 0x80), (0x20, 0x00)]);
    pulse(&mut pic, 3);
    assert_eq!(pic.ack(), 0x33);
    // Without rotation pin 3 still goes before pin 4.
    pulse(&mut pic, 4);
    pulse(&mut pic, 3);
    assert_eq!([pic.ack(), pic.ack()], [0x33, 0x34]);
}

/// ICW1 while a pin is in service and requests again: its waiter is told once, but told.
#[test]
fn initialization_tells_of_a_pin_in_service_that_requests_again() {
    let mut pic = pair(1);
    pulse(&mut pic, 4);
    pic.ack();
    pulse(&mut pic, 4);
    pic.take_eoi();
    write(&mut pic, &[(0x20, 0x11)]);
    assert_eq!(pic.take_eoi(), 1 << 4);
}

/// Unmasking is told for both chips, once.
#[test]
fn unmasked_pins_are_told() {
    let mut pic = pair(1);
    write(&mut pic, &[(0x21, 0xff), (0xa1, 0xff)]);
    pic.take_unmasked();
    write(&mut pic, &[(0x21, 0xfe), (0xa1, 0xef)]);
    assert_eq!((pic.take_unmasked(), pic.take_unmasked()), (1 << 12 | 1, 0));
}

/// A pin becomes a level while its line is high and its edge was seen: it requests.
#[test]
fn a_high_line_that_becomes_a_level_requests() {
    let mut pic = pair(1);
    pic.set_irq(5, USER, true);
    assert_eq!(pic.ack(), 0x35);
    write(&mut pic, &[(0x20, 0x20)]);
    assert!(!pic.output());
    write(&mut pic, &[(0x4d0, 1 << 5)]);
    assert!(pic.output());
    assert_eq!(pic.ack(), 0x35);
}

#[test]
fn rotation_on_eoi_and_by_command() {
    let mut pic = pair(1);
    pulse(&mut pic, 3);
    assert_eq!(pic.ack(), 0x33);
    write(&mut pic, &[(0x20, 0xa0)]); // rotate on non-specific EOI: 3 is lowest
    pulse(&mut pic, 3);
    pulse(&mut pic, 0);
    assert_eq!(pic.ack(), 0x30);
    write(&mut pic, &[(0x20, 0xe0)]); // rotate on specific EOI of 0: 1 is highest
    pulse(&mut pic, 0);
    assert_eq!(pic.ack(), 0x33);
    write(&mut pic, &[(0x20, 0x63), (0x20, 0xc7)]); // set priority: 0 is highest
    pulse(&mut pic, 1);
    assert_eq!(pic.ack(), 0x30);
}

#[test]
fn special_mask_mode_opens_everything_but_masked_pins() {
    let mut pic = pair(1);
    pulse(&mut pic, 1);
    assert_eq!(pic.ack(), 0x31);
    pulse(&mut pic, 6);
    assert!(!pic.output());
    write(&mut pic, &[(0x21, 0x02), (0x20, 0x68)]);
    assert!(pic.output());
    assert_eq!(pic.ack(), 0x36);
    // A masked pin in service is hidden from the non-specific EOI in this mode.
    write(&mut pic, &[(0x20, 0x20)]);
    assert_eq!(isr(&mut pic, 0x20), 0x02);
    write(&mut pic, &[(0x20, 0x20)]);
    assert_eq!(isr(&mut pic, 0x20), 0x02);
    write(&mut pic, &[(0x20, 0x48), (0x20, 0x20)]);
    assert_eq!(isr(&mut pic, 0x20), 0);
}

#[test]
fn a_poll_takes_the_interrupt() {
    let mut pic = pair(1);
    write(&mut pic, &[(0x20, 0x0c)]);
    assert_eq!(read(&mut pic, 0x20) & 0x80, 0);
    pulse(&mut pic, 12);
    write(&mut pic, &[(0x20, 0x0c)]);
    assert_eq!(read(&mut pic, 0x21), 0x82, "either port answers a poll");
    write(&mut pic, &[(0xa0, 0x0c)]);
    assert_eq!(read(&mut pic, 0xa0), 0x84);
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (4, 0x10));
    assert_eq!(read(&mut pic, 0x20), 0, "one poll, then the IRR again");
}

#[test]
fn initialization_forgets_edges_and_tells_waiters() {
    let mut pic = pair(1);
    write(&mut pic, &[(0x21, 0xff), (0x4d0, 0x20)]);
    pulse(&mut pic, 0);
    pic.set_irq(5, USER, true);
    write(&mut pic, &[(0x20, 0x11)]);
    assert_eq!(pic.take_eoi(), 1, "the PIT waits for the EOI of a tick that will not come");
    assert_eq!(pic.take_unmasked(), 0xff);
    assert_eq!(read(&mut pic, 0x20), 0x20, "a level request survives");
    assert_eq!(read(&mut pic, 0x21), 0);
}

#[test]
fn single_mode_has_no_icw3_and_no_icw4_unless_announced() {
    let mut pic = raw();
    write(&mut pic, &[(0x20, 0x12), (0x21, 0x47), (0x21, 0xa5)]);
    assert_eq!(read(&mut pic, 0x21), 0xa5, "the third byte is OCW1");
    assert_eq!(pic.save(PicId::Master).irq_base, 0x40);
    write(&mut pic, &[(0x20, 0x10), (0x21, 0x40), (0x21, 4), (0x21, 0x5a)]);
    assert_eq!(read(&mut pic, 0x21), 0x5a);
}

#[test]
fn the_cascade_pin_belongs_to_the_slave() {
    let mut pic = pair(1);
    assert_eq!(pulse(&mut pic, 2), LineStatus::Ignored);
    assert!(!pic.output());
    assert_eq!(pic.set_irq(16, USER, true), LineStatus::Ignored);
    pulse(&mut pic, 9);
    write(&mut pic, &[(0xa1, 0xff)]);
    assert!(!pic.output(), "masking at the slave withdraws the master's request too");
}

#[test]
fn foreign_ports_read_as_ones() {
    let mut pic = pair(1);
    assert_eq!(pic.io_read(0x22, 1), 0xff);
    write(&mut pic, &[(0x21, 0x5a)]);
    assert_eq!(pic.io_read(0x20, 2), 0x5a00);
    assert_eq!(pic.io_read(0x21, 4), 0xffff_ff5a);
    for port in 0..=u16::MAX {
        assert_eq!(Pic::claims(port), [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1].contains(&port));
    }
}

/// Linux: probe_8259A writes a mask and reads it back, init_8259A programs both chips, then IRQ 0 is handled with
/// mask, specific EOI, unmask.
#[test]
fn linux_probe_init_and_timer() {
    let mut pic = raw();
    write(&mut pic, &[(0xa1, 0xff), (0x21, 0xfb)]);
    assert_eq!(read(&mut pic, 0x21), 0xfb, "otherwise Linux uses its null PIC");
    write(&mut pic, &[(0x21, 0xff), (0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x01)]);
    write(&mut pic, &[(0xa0, 0x11), (0xa1, 0x38), (0xa1, 0x02), (0xa1, 0x01)]);
    write(&mut pic, &[(0x21, 0xfb), (0xa1, 0xff)]);
    pic.take_eoi();
    pic.take_unmasked();
    pulse(&mut pic, 0);
    assert!(!pic.output());
    write(&mut pic, &[(0x21, 0xfa)]);
    assert_eq!(pic.take_unmasked(), 1);
    for _ in 0..100 {
        assert_eq!(pic.ack(), 0x30);
        write(&mut pic, &[(0x21, 0xfb), (0x20, 0x60), (0x21, 0xfa)]);
        assert_eq!(pic.take_eoi(), 1);
        assert!(!pic.output());
        assert_eq!(pulse(&mut pic, 0), LineStatus::Delivered(1));
    }
}

/// User space may hand in anything; nothing may panic and what means something comes back, in range. A vector base that no ICW2
/// could have written counts from there (a unit test of the kvm-ioctls crate restores one, with an empty ELCR mask).
#[test]
fn hostile_state() {
    let mut pic = raw();
    let hostile = bytemuck::cast([0xffu8; 16]);
    for id in [PicId::Master, PicId::Slave] {
        pic.load(id, &hostile);
    }
    pic.ack();
    write(&mut pic, &[(0x21, 0xff), (0x20, 0x20), (0xa0, 0xa0)]);
    let state = pic.save(PicId::Master);
    assert!(state.priority_add < 8 && state.init_state < 4);
    assert_eq!((state.irq_base, state.elcr, state.elcr_mask), (0xff, 0xff, 0xff));
    let odd = kvm_pic_state { irq_base: 10, ..kvm_pic_state::zeroed() };
    pic.load(PicId::Slave, &kvm_pic_state { irq_base: 0xfc, ..odd });
    pic.load(PicId::Master, &odd);
    assert_eq!((pic.save(PicId::Master), pic.save(PicId::Slave).irq_base), (odd, 0xfc));
    pulse(&mut pic, 3);
    assert_eq!(pic.ack(), 13);
    write(&mut pic, &[(0x20, 0x20)]);
    pulse(&mut pic, 14);
    assert_eq!(pic.ack(), 2, "the slave's sixth vector wraps");
}

/// One 8259 as its data sheet tells it, pin by pin, with the order of priorities spelled out as a list.
#[derive(Clone, Default)]
struct NaiveChip {
    level: [bool; 8],
    request: [bool; 8],
    service: [bool; 8],
    mask: [bool; 8],
    elcr: [bool; 8],
    order: Vec<usize>,
    base: u8,
    stage: u8,
    icw4: bool,
    nested: bool,
    aeoi: bool,
    aeoi_rotates: bool,
    special_mask: bool,
    show_service: bool,
    poll: bool,
    master: bool,
}

fn byte(bits: &[bool; 8]) -> u8 {
    (0..8).filter(|i| bits[*i]).map(|i| 1 << i).sum()
}

fn bits(byte: u8) -> [bool; 8] {
    std::array::from_fn(|i| byte >> i & 1 != 0)
}

impl NaiveChip {
    fn wants(&self) -> Option<usize> {
        for pin in &self.order {
            let pin = *pin;
            let transparent =
                (self.special_mask && self.mask[pin]) || (self.master && self.nested && pin == 2);
            if self.request[pin] && !self.mask[pin] && (transparent || !self.service[pin]) {
                return Some(pin);
            }
            if self.service[pin] && !transparent {
                return None;
            }
        }
        None
    }
    fn lowest(&mut self, pin: usize) {
        self.order = (1..=8).map(|i| (pin + i) % 8).collect();
    }
    fn take(&mut self, pin: usize) {
        if !self.elcr[pin] {
            self.request[pin] = false;
        }
        if !self.aeoi {
            self.service[pin] = true;
        } else {
            self.service[pin] = false;
            if self.aeoi_rotates {
                self.lowest(pin);
            }
        }
    }
    fn line(&mut self, pin: usize, level: bool) {
        if self.elcr[pin] {
            self.request[pin] = level;
        } else if level && !self.level[pin] {
            self.request[pin] = true;
        }
        self.level[pin] = level;
    }
    fn command(&mut self, v: u8) {
        if v & 0x10 != 0 {
            let request = std::array::from_fn(|i| self.request[i] && self.elcr[i]);
            let (nested, aeoi) = if v & 1 != 0 { (self.nested, self.aeoi) } else { (false, false) };
            *self = NaiveChip {
                request,
                elcr: self.elcr,
                order: (0..8).collect(),
                base: self.base,
                stage: 1,
                icw4: v & 1 != 0,
                nested,
                aeoi,
                master: self.master,
                ..Default::default()
            };
        } else if v & 8 != 0 {
            self.poll |= v & 4 != 0;
            if v & 2 != 0 {
                self.show_service = v & 1 != 0;
            }
            if v & 0x40 != 0 {
                self.special_mask = v & 0x20 != 0;
            }
        } else {
            let visible = |c: &Self, p: &usize| c.service[*p] && !(c.special_mask && c.mask[*p]);
            let first = self.order.iter().copied().find(|p| visible(self, p));
            let named = usize::from(v & 7);
            let (end, rotate) = match v >> 5 {
                1 => (first, None),
                5 => (first, first),
                3 => (Some(named), None),
                7 => (Some(named), Some(named)),
                6 => (None, Some(named)),
                4 | 0 => {
                    self.aeoi_rotates = v >> 5 == 4;
                    (None, None)
                }
                _ => (None, None),
            };
            if let Some(pin) = end {
                self.service[pin] = false;
            }
            if let Some(pin) = rotate {
                self.lowest(pin);
            }
        }
    }
    fn data(&mut self, v: u8) {
        self.stage = match self.stage {
            1 => {
                self.base = v & 0xf8;
                2
            }
            2 if self.icw4 => 3,
            2 => 0,
            3 => {
                self.nested = v & 0x10 != 0;
                self.aeoi = v & 2 != 0;
                0
            }
            _ => {
                self.mask = bits(v);
                0
            }
        };
    }
    fn read(&mut self, data: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.wants() {
                Some(pin) => {
                    self.take(pin);
                    0x80 | pin as u8
                }
                None => 0,
            };
        }
        match (data, self.show_service) {
            (true, _) => byte(&self.mask),
            (false, true) => byte(&self.service),
            (false, false) => byte(&self.request),
        }
    }
}

#[derive(Clone)]
struct NaivePair {
    chips: [NaiveChip; 2],
    sources: [u32; 16],
}

impl NaivePair {
    fn new() -> Self {
        let chip = |master| NaiveChip { order: (0..8).collect(), master, ..Default::default() };
        Self { chips: [chip(true), chip(false)], sources: [0; 16] }
    }
    fn wire(&mut self) -> bool {
        self.chips[0].request[2] = self.chips[1].wants().is_some();
        self.chips[0].wants().is_some()
    }
    fn ack(&mut self) -> u8 {
        let Some(pin) = self.chips[0].wants() else { return self.chips[0].base | 7 };
        self.chips[0].take(pin);
        if pin != 2 {
            return self.chips[0].base | pin as u8;
        }
        let pin = self.chips[1].wants().expect("the cascade follows the slave");
        self.chips[1].take(pin);
        self.chips[1].base | pin as u8
    }
}

#[derive(Clone, Debug)]
enum Op {
    Line(u8, u32, bool),
    Ack,
    Command(bool, u8),
    Data(bool, u8),
    Elcr(bool, u8),
    Read(bool, bool),
    Init(u8),
    Migrate,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u8..16, 0u32..3, any::<bool>()).prop_map(|(p, s, l)| Op::Line(p, s, l)),
        6 => Just(Op::Ack),
        // Without SNGL: user space's state has no place for it.
        4 => (any::<bool>(), any::<u8>()).prop_map(|(c, v)| Op::Command(c, if v & 0x10 != 0 { v & !2 } else { v })),
        3 => any::<bool>().prop_map(|c| Op::Command(c, 0x20)),
        2 => (any::<bool>(), any::<u8>()).prop_map(|(c, v)| Op::Data(c, v)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(c, v)| Op::Elcr(c, v)),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(c, d)| Op::Read(c, d)),
        1 => any::<u8>().prop_map(Op::Init),
        1 => Just(Op::Migrate),
    ]
}

const SOURCES: [Source; 3] = [Source::USERSPACE, Source::RESAMPLE, Source::PIT];

fn step(pic: &mut Pic, naive: &mut NaivePair, op: Op) {
    let port = |slave: bool, offset: u16| if slave { 0xa0 + offset } else { 0x20 + offset };
    match op {
        Op::Line(pin, source, level) => {
            pic.set_irq(pin, SOURCES[source as usize], level);
            if pin != 2 {
                let sources = &mut naive.sources[usize::from(pin)];
                *sources = if level { *sources | 1 << source } else { *sources & !(1 << source) };
                let level = *sources != 0;
                naive.chips[usize::from(pin / 8)].line(usize::from(pin % 8), level);
            }
        }
        Op::Ack => assert_eq!(pic.ack(), naive.ack()),
        Op::Command(slave, v) => {
            write(pic, &[(port(slave, 0), v)]);
            naive.chips[usize::from(slave)].command(v);
        }
        Op::Data(slave, v) => {
            write(pic, &[(port(slave, 1), v)]);
            naive.chips[usize::from(slave)].data(v);
        }
        Op::Elcr(slave, v) => {
            write(pic, &[(0x4d0 + u16::from(slave), v)]);
            let first = if slave { 8 } else { 0 };
            let chip = &mut naive.chips[usize::from(slave)];
            let elcr = bits(v & if slave { 0xde } else { 0xf8 });
            for (pin, level) in elcr.iter().enumerate() {
                if *level && !chip.elcr[pin] {
                    chip.request[pin] = chip.level[pin] || naive.sources[first + pin] != 0;
                }
            }
            chip.elcr = elcr;
        }
        Op::Read(slave, data) => {
            assert_eq!(read(pic, port(slave, data.into())), naive.chips[usize::from(slave)].read(data));
        }
        Op::Init(icw4) => {
            for slave in [false, true] {
                let bytes = [0x30 | u8::from(slave) << 3, if slave { 2 } else { 4 }, icw4];
                write(pic, &[(port(slave, 0), 0x11)]);
                naive.chips[usize::from(slave)].command(0x11);
                for v in bytes {
                    write(pic, &[(port(slave, 1), v)]);
                    naive.chips[usize::from(slave)].data(v);
                }
            }
        }
        Op::Migrate => {
            let mut other = raw();
            other.load(PicId::Slave, &pic.save(PicId::Slave));
            other.load(PicId::Master, &pic.save(PicId::Master));
            for id in [PicId::Master, PicId::Slave] {
                assert_eq!(other.save(id), pic.save(id), "a state survives its round trip");
            }
            *pic = other;
            naive.sources = [0; 16];
        }
    }
    assert_eq!(pic.output(), naive.wire());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the guest and the devices do, the pair answers like the pin-by-pin model, across migrations.
    #[test]
    fn agrees_with_the_naive_model(ops in prop::collection::vec(op(), 1..120)) {
        let mut pic = raw();
        let mut naive = NaivePair::new();
        for op in ops {
            step(&mut pic, &mut naive, op);
            for (id, chip) in [(PicId::Master, &naive.chips[0]), (PicId::Slave, &naive.chips[1])] {
                let state = pic.save(id);
                prop_assert_eq!(state.irr, byte(&chip.request));
                prop_assert_eq!(state.isr, byte(&chip.service));
                prop_assert_eq!(state.imr, byte(&chip.mask));
                prop_assert_eq!(usize::from(state.priority_add), chip.order[0]);
            }
        }
    }
}
