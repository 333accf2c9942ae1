//! Entries bit by bit, against the numbers of the manuals.

use crate::*;

const HPA: u64 = 0x000f_edcb_c000_0000;

/// APM vol. 2, 5.3.3 and 15.25.5: P, U and A always, W and NX by permission, PS in large leaves, PCD|PWT for UC.
#[test]
fn npt_bits() {
    let npt = Npt::default();
    assert_eq!(npt.leaf(Level::Page4K, 0x1234_5000, Perm::RWX, MemType::Wb), 0x1234_5000 | 0x27);
    assert_eq!(npt.leaf(Level::Page4K, 0x1234_5000, Perm::RX, MemType::Wb), 0x1234_5000 | 0x25);
    assert_eq!(npt.leaf(Level::Page2M, HPA, Perm::RWX, MemType::Wb), HPA | 0xa7);
    assert_eq!(npt.leaf(Level::Page1G, HPA, Perm::RWX, MemType::Uc), HPA | 0xbf);
    let data = Perm { write: true, exec: false };
    assert_eq!(npt.leaf(Level::Page4K, HPA, data, MemType::Wb), 1 << 63 | HPA | 0x27);
    assert_eq!(npt.table(0x7000), 0x7027);
    assert_eq!((npt.accessed_mask(), npt.dirty_mask(), Npt::WRITE), (1 << 5, 1 << 6, 1 << 1));
}

/// SDM vol. 3C, tables 29-1 to 29-7: RWX in 2:0, memory type in 5:3 of leaves, page bit 7, A 8, D 9.
#[test]
fn ept_bits() {
    let ept = Ept::new(true, true);
    assert_eq!(ept.leaf(Level::Page4K, 0x5000, Perm::RWX, MemType::Wb), 0x5000 | 0x177);
    assert_eq!(ept.leaf(Level::Page2M, HPA, Perm::RX, MemType::Wb), HPA | 0x1f5);
    assert_eq!(ept.leaf(Level::Page1G, HPA, Perm::RX, MemType::Uc), HPA | 0x185);
    assert_eq!(ept.table(0x7000), 0x7107);
    let plain = Ept::new(false, false);
    assert_eq!(plain.leaf(Level::Page4K, 0x5000, Perm::RWX, MemType::Wb), 0x5000 | 0x37);
    assert_eq!(plain.leaf(Level::Page4K, 0x5000, Perm { write: true, exec: false }, MemType::Wb), 0x5033);
    assert_eq!(plain.table(0x7000), 0x7007);
    assert_eq!((plain.accessed_mask(), plain.dirty_mask()), (0, 0));
}

/// SDM vol. 3C, 25.6.11: memory type 6, walk length minus 1 in 5:3, A/D enable in bit 6.
#[test]
fn eptp() {
    assert_eq!(Ept::new(true, false).eptp(0x1234_5000, 4), 0x1234_5000 | 0x5e);
    assert_eq!(Ept::new(false, false).eptp(0x1234_5000, 5), 0x1234_5000 | 0x26);
}

/// What goes in comes out, for every size, permission and type.
#[test]
fn round_trip() {
    round_trip_of(Npt::default());
    round_trip_of(Npt { sme_mask: 1 << 47, reserved: 1 << 51 });
    round_trip_of(Ept::new(true, true));
    round_trip_of(Ept::new(false, false));
}

fn round_trip_of<F: Format>(format: F) {
    for level in Level::ALL {
        for bits in 0..8 {
            let perm = Perm { write: bits & 1 != 0, exec: bits & 2 != 0 };
            let memtype = if bits & 4 != 0 { MemType::Uc } else { MemType::Wb };
            let hpa = 0x123_c000_0000;
            let entry = format.leaf(level, hpa, perm, memtype);
            assert!(format.is_present(entry) && format.is_leaf(entry, level as u32));
            assert_eq!((format.perm(entry), format.memtype(entry)), (perm, memtype));
            assert_eq!(format.address(entry, level), hpa);
            assert!(format.accessed(entry));
        }
    }
    for level in 1..5 {
        assert!(!format.is_leaf(format.table(0x7000), level));
    }
    assert_eq!(format.address(format.table(0x7000), Level::Page4K), 0x7000);
}

/// The free list's promise to hardware: neither 0 nor the address of a page is a present entry.
#[test]
fn chain_is_not_present() {
    for entry in [0, 0x1000, Npt::ADDRESS] {
        assert!(!Npt::default().is_present(entry));
        assert!(!Ept::new(true, true).is_present(entry));
    }
}

/// SDM vol. 3C, 29.3.2: any of the bits 2:0 makes an entry present, but the two of a mark; NPT has P.
#[test]
fn present_bits() {
    for bits in 0..8 {
        assert_eq!(Ept::new(true, true).is_present(0x1000 | bits), bits != 0 && bits != 6, "{bits}");
        assert_eq!(Npt::default().is_present(0x1000 | bits), bits & 1 != 0, "{bits}");
    }
}

/// SDM vol. 3C, 29.3.3.1: write without read. APM vol. 2, 5.3.1: a bit beyond the CPU's addresses, which encryption must not use.
#[test]
fn device_marks() {
    assert_eq!(Ept::new(true, true).device_mark(), Some(6));
    assert_eq!(Npt::default().device_mark(), None);
    assert_eq!(Npt { sme_mask: 0, reserved: 1 << 50 }.device_mark(), Some(1 << 50 | 7));
    assert_eq!(Npt::reserved_bit(48, None), 1 << 51);
    assert_eq!(Npt::reserved_bit(48, Some(47)), 1 << 51, "the first Zen");
    assert_eq!(Npt::reserved_bit(48, Some(51)), 1 << 50, "its successors");
    assert_eq!(Npt::reserved_bit(51, Some(51)), 0, "nothing but the C-bit");
    assert_eq!(Npt::reserved_bit(52, Some(51)), 0, "all bits are addresses");
    assert_eq!(Npt::reserved_bit(52, None), 0);
}

/// A grant adds exactly what is missing.
#[test]
fn grants() {
    let npt = Npt::default();
    let none = Perm { write: false, exec: false };
    let grant = npt.grant(Perm::RWX);
    let entry = (npt.leaf(Level::Page4K, HPA, none, MemType::Wb) | grant.set) & !grant.clear;
    assert_eq!(entry, npt.leaf(Level::Page4K, HPA, Perm::RWX, MemType::Wb));
    let ept = Ept::new(true, false);
    let grant = ept.grant(Perm::RX);
    let entry = (ept.leaf(Level::Page4K, HPA, none, MemType::Wb) | grant.set) & !grant.clear;
    assert_eq!(entry, ept.leaf(Level::Page4K, HPA, Perm::RX, MemType::Wb));
}

/// Page sizes: the slot's bounds, the common offset of guest and host, the host's own page size.
#[test]
fn max_levels() {
    let whole = Backing { base_gfn: 0x200, npages: 0x80000, hva: 0x7f00_0020_0000 };
    let big = Level::Page1G;
    assert_eq!(max_level(0x200, &whole, big, big), Level::Page2M, "1G block begins before the slot");
    assert_eq!(max_level(0x40000, &whole, big, big), Level::Page1G);
    assert_eq!(max_level(0x40000, &whole, Level::Page2M, big), Level::Page2M);
    assert_eq!(max_level(0x40000, &whole, big, Level::Page4K), Level::Page4K);
    assert_eq!(max_level(0x80000, &whole, big, big), Level::Page2M, "1G block ends behind the slot");
    assert_eq!(max_level(0x80200, &whole, big, big), Level::Page4K, "outside");
    let odd = Backing { hva: 0x7f00_0020_1000, ..whole };
    assert_eq!(max_level(0x40000, &odd, big, big), Level::Page4K);
    let only_2m = Backing { hva: 0x7f00_0040_0000, ..whole };
    assert_eq!(max_level(0x40000, &only_2m, big, big), Level::Page2M);
    let top = Backing { base_gfn: u64::MAX - 10, npages: 100, hva: 0 };
    assert_eq!(max_level(u64::MAX, &top, big, big), Level::Page4K);
}
