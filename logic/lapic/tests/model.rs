//! Random histories against a naive model: sets of vectors, no bit tricks, no caches.
#![allow(unused_must_use)]

mod common;
use common::*;
use exitless_lapic::*;
use exitless_x86::apic::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Default)]
struct Naive {
    irr: BTreeSet<u8>,
    isr: BTreeSet<u8>,
    level: BTreeSet<u8>,
    tpr: u8,
}

impl Naive {
    fn ppr_class(&self) -> u8 {
        self.isr.iter().map(|vector| vector / 16).max().unwrap_or(0).max(self.tpr / 16)
    }

    fn post(&mut self, vector: u8, level: bool) -> bool {
        if level {
            self.level.insert(vector)
        } else {
            self.level.remove(&vector)
        };
        self.irr.insert(vector)
    }

    fn pending(&self) -> Option<u8> {
        self.irr.iter().copied().filter(|vector| vector / 16 > self.ppr_class()).max()
    }

    fn ack(&mut self, vector: u8) {
        assert!(self.irr.remove(&vector));
        self.isr.insert(vector);
    }

    fn eoi(&mut self) -> Option<(u8, bool)> {
        let vector = self.isr.pop_last()?;
        Some((vector, self.level.contains(&vector)))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Post(u8, bool),
    SelfIpi(u8),
    Tpr(u8),
    Cr8(u8),
    Take,
    Eoi,
    EoiRegister,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (16u8.., any::<bool>()).prop_map(|(v, l)| Op::Post(v, l)),
        1 => (16u8..).prop_map(Op::SelfIpi),
        1 => any::<u8>().prop_map(Op::Tpr),
        1 => (0u8..16).prop_map(Op::Cr8),
        4 => Just(Op::Take),
        2 => Just(Op::Eoi),
        1 => Just(Op::EoiRegister),
    ]
}

fn words(set: &BTreeSet<u8>) -> Vec<u32> {
    (0..8)
        .map(|word| (0..32).filter(|bit| set.contains(&(word * 32 + bit))).map(|bit| 1u32 << bit).sum())
        .collect()
}

fn bank(cpu: &Cpu, first: u32) -> Vec<u32> {
    (0..8).map(|index| cpu.read(first + index * 16)).collect()
}

proptest! {
    #[test]
    fn histories(ops in prop::collection::vec(any_op(), 0..200), irr_in_page: bool) {
        let mut cpu = Cpu::xapic(0);
        let page: &'static ApicPage = Box::leak(Box::new(bytemuck::Zeroable::zeroed()));
        if irr_in_page {
            cpu.s.use_page_for_irr(page);
        }
        let mut naive = Naive::default();
        for op in ops {
            match op {
                Op::Post(vector, level) => {
                    let accepted = cpu.s.accept(&InterruptMessage { level, ..fixed(0, vector) });
                    let new = naive.post(vector, level);
                    prop_assert_eq!(accepted, if new { Accepted::Event } else { Accepted::Coalesced });
                }
                Op::SelfIpi(vector) => {
                    cpu.write(reg::ICR, 0x4_4000 | u32::from(vector));
                    naive.post(vector, false);
                }
                Op::Tpr(tpr) => {
                    cpu.write(reg::TPR, tpr.into());
                    naive.tpr = tpr;
                }
                Op::Cr8(cr8) => {
                    cpu.l.set_cr8(&cpu.s, cr8);
                    naive.tpr = cr8 << 4;
                }
                Op::Take => {
                    let vector = cpu.take();
                    prop_assert_eq!(vector, naive.pending());
                    vector.into_iter().for_each(|vector| naive.ack(vector));
                }
                Op::Eoi => {
                    let done = cpu.eoi().map(|eoi| (eoi.vector, eoi.level));
                    prop_assert_eq!(done, naive.eoi());
                }
                Op::EoiRegister => {
                    let done = cpu.write(reg::EOI, 0).eoi.map(|eoi| (eoi.vector, eoi.broadcast));
                    prop_assert_eq!(done, naive.eoi());
                }
            }
            prop_assert_eq!(cpu.pending(), naive.pending());
            prop_assert_eq!(cpu.l.ppr() >> 4, naive.ppr_class());
            prop_assert_eq!(u32::from(cpu.s.arbitration_priority()), cpu.read(reg::PPR));
            prop_assert_eq!(cpu.l.top_irr(&cpu.s), naive.irr.last().copied());
            prop_assert_eq!(cpu.l.top_isr(), naive.isr.last().copied());
            prop_assert_eq!(cpu.s.has_irr(), !naive.irr.is_empty());
            prop_assert_eq!(bank(&cpu, reg::IRR), words(&naive.irr));
            if irr_in_page {
                let in_page: Vec<_> = (0..8).map(|index| page.read(reg::IRR + index * 16)).collect();
                prop_assert_eq!(in_page, words(&naive.irr));
                prop_assert!((0..4).all(|index| cpu.s.posted().requested(index) == 0));
            }
            prop_assert_eq!(bank(&cpu, reg::ISR), words(&naive.isr));
            prop_assert_eq!(bank(&cpu, reg::TMR), words(&naive.level));
            if let Some(vector) = cpu.l.can_pv_eoi(&cpu.s) {
                prop_assert!(naive.isr.len() == 1 && naive.irr.is_empty() && !naive.level.contains(&vector));
            }
            // Classes in service strictly rise, so each EOI returns to what was interrupted.
            let classes: Vec<_> = naive.isr.iter().map(|vector| vector / 16).collect();
            prop_assert!(classes.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
