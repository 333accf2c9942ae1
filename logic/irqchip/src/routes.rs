//! GSI routing: which pins or MSI a GSI reaches (KVM_SET_GSI_ROUTING, api.rst 4.52).
//!
//! A table is a slice of [`Route`]s sorted by GSI, at most one per chip, or a single MSI, for each GSI. The caller
//! owns the memory: it fills a slice with [`convert`], then [`finish`] checks and sorts it in place. Tables are
//! immutable afterwards, so readers may share them.

use crate::ioapic;
use crate::msi::{DestinationFormat, Msi, VectorSet};
use bytemuck::Zeroable;
use exitless_kvm_abi::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};

/// GSIs are below this, and a table has at most this many routes (KVM_CAP_IRQ_ROUTING).
pub const MAX_ROUTES: usize = 4096;
/// Routes of a fresh full irqchip.
pub const DEFAULT_ROUTES: usize = 40;
/// Pins of one 8259A.
const PIC_PINS: u32 = 8;

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Zeroable)]
#[repr(u32)]
pub enum Target {
    /// A pin of the 8259 pair, 0 to 15.
    Pic(u8) = 0,
    /// A pin of the I/O APIC, 0 to 23.
    Ioapic(u8) = 1,
    /// A message.
    Msi(Msi) = 2,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Zeroable)]
pub struct Route {
    /// Below [`MAX_ROUTES`].
    pub gsi: u32,
    /// Where it leads.
    pub target: Target,
}

/// Why a table is refused; every case is EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// More than [`MAX_ROUTES`] entries, or more than the slice holds.
    TooMany,
    /// The GSI is not below [`MAX_ROUTES`].
    Gsi,
    /// Flags are set; KVM_MSI_VALID_DEVID has no meaning on x86.
    Flags,
    /// Neither an irqchip pin nor an MSI.
    Type,
    /// An irqchip or a pin that does not exist, or any irqchip while user space has the irqchip.
    Pin,
    /// Reserved bits of the MSI address are set.
    Msi,
    /// The GSI already reaches this chip, or reaches an MSI and something else.
    Duplicate,
}

/// Checks one entry of KVM_SET_GSI_ROUTING and makes it compact. `full_irqchip` is false with
/// KVM_CAP_SPLIT_IRQCHIP, which has no pins in the kernel; `format` is the VM's current one.
pub fn convert(
    entry: &kvm_irq_routing_entry,
    full_irqchip: bool,
    format: DestinationFormat,
) -> Result<Route, RouteError> {
    if entry.gsi >= MAX_ROUTES as u32 {
        return Err(RouteError::Gsi);
    }
    if entry.flags != 0 {
        return Err(RouteError::Flags);
    }
    let target = match entry.type_ {
        KVM_IRQ_ROUTING_IRQCHIP if full_irqchip => pin_target(entry.irqchip())?,
        KVM_IRQ_ROUTING_IRQCHIP => return Err(RouteError::Pin),
        KVM_IRQ_ROUTING_MSI => msi_target(entry.msi(), format)?,
        _ => return Err(RouteError::Type),
    };
    Ok(Route { gsi: entry.gsi, target })
}

fn pin_target(entry: kvm_irq_routing_irqchip) -> Result<Target, RouteError> {
    match entry.irqchip {
        KVM_IRQCHIP_PIC_MASTER if entry.pin < PIC_PINS => Ok(Target::Pic(entry.pin as u8)),
        KVM_IRQCHIP_PIC_SLAVE if entry.pin < PIC_PINS => Ok(Target::Pic((entry.pin + PIC_PINS) as u8)),
        KVM_IRQCHIP_IOAPIC if entry.pin < u32::from(ioapic::PINS) => Ok(Target::Ioapic(entry.pin as u8)),
        _ => Err(RouteError::Pin),
    }
}

fn msi_target(entry: kvm_irq_routing_msi, format: DestinationFormat) -> Result<Target, RouteError> {
    let msi = Msi { address: entry.address_lo, address_hi: entry.address_hi, data: entry.data };
    if msi.is_valid(format) { Ok(Target::Msi(msi)) } else { Err(RouteError::Msi) }
}

/// Sorts a filled table by GSI and checks that no GSI reaches one chip twice, or an MSI beside anything else.
/// Bounded by n log n; needs no memory. On error the order of `routes` is unspecified.
pub fn finish(routes: &mut [Route]) -> Result<(), RouteError> {
    if routes.len() > MAX_ROUTES {
        return Err(RouteError::TooMany);
    }
    heap_sort(routes);
    let clash = routes.windows(2).any(|pair| match pair {
        [a, b] => a.gsi == b.gsi && !may_share(a.target, b.target),
        _ => false,
    });
    if clash { Err(RouteError::Duplicate) } else { Ok(()) }
}

/// Whether one GSI may reach both. Sorting puts equal chips side by side, so looking at neighbours is enough.
fn may_share(a: Target, b: Target) -> bool {
    chip_of(a).is_some() && chip_of(b).is_some() && chip_of(a) != chip_of(b)
}

/// The irqchip as user space numbers them; the two 8259s are two chips.
fn chip_of(target: Target) -> Option<u32> {
    match target {
        Target::Pic(0..8) => Some(KVM_IRQCHIP_PIC_MASTER),
        Target::Pic(_) => Some(KVM_IRQCHIP_PIC_SLAVE),
        Target::Ioapic(_) => Some(KVM_IRQCHIP_IOAPIC),
        Target::Msi(_) => None,
    }
}

/// Heap sort: in place, without recursion, and with a stack frame of a few words (the core library's sort keeps a
/// kilobyte of scratch there).
fn heap_sort(routes: &mut [Route]) {
    for root in (0..routes.len() / 2).rev() {
        sift_down(routes, root);
    }
    for end in (1..routes.len()).rev() {
        swap(routes, 0, end);
        if let Some(heap) = routes.get_mut(..end) {
            sift_down(heap, 0);
        }
    }
}

fn sift_down(heap: &mut [Route], mut root: usize) {
    loop {
        let left = 2 * root + 1;
        let child = if heap.get(left + 1) > heap.get(left) { left + 1 } else { left };
        if heap.get(child) <= heap.get(root) {
            return;
        }
        swap(heap, root, child);
        root = child;
    }
}

/// As the slice's own `swap`, but without a panic to link in.
fn swap(heap: &mut [Route], a: usize, b: usize) {
    if let Ok([a, b]) = heap.get_disjoint_mut([a, b]) {
        core::mem::swap(a, b);
    }
}

/// Converts a whole list into `out` and finishes it. Returns the number of routes.
pub fn build(
    entries: &[kvm_irq_routing_entry],
    full_irqchip: bool,
    format: DestinationFormat,
    out: &mut [Route],
) -> Result<usize, RouteError> {
    let table = out.get_mut(..entries.len()).ok_or(RouteError::TooMany)?;
    for (route, entry) in table.iter_mut().zip(entries) {
        *route = convert(entry, full_irqchip, format)?;
    }
    finish(table)?;
    Ok(entries.len())
}

/// The table of a fresh full irqchip: GSI 0-15 reach the 8259 pin and the I/O APIC pin of the same number, GSI 16-23
/// the I/O APIC pin alone (api.rst, KVM_CREATE_IRQCHIP). GSI 0 reaches I/O APIC pin 0, not 2: the PC's override of the
/// timer to pin 2 is a matter of the VMM's own table and of the ACPI or MP tables that go with it.
/// Needs [`DEFAULT_ROUTES`] places; returns that number.
pub fn default_routes(out: &mut [Route]) -> Result<usize, RouteError> {
    let table = out.get_mut(..DEFAULT_ROUTES).ok_or(RouteError::TooMany)?;
    let pics = (0..16u8).map(|pin| Route { gsi: pin.into(), target: Target::Pic(pin) });
    let ioapics = (0..ioapic::PINS).map(|pin| Route { gsi: pin.into(), target: Target::Ioapic(pin) });
    for (place, route) in table.iter_mut().zip(pics.chain(ioapics)) {
        *place = route;
    }
    finish(table)?;
    Ok(DEFAULT_ROUTES)
}

/// The routes of `gsi` in a finished table, at most three.
pub fn lookup(routes: &[Route], gsi: u32) -> &[Route] {
    let start = routes.partition_point(|route| route.gsi < gsi);
    let rest = routes.get(start..).unwrap_or(&[]);
    let count = rest.iter().take_while(|route| route.gsi == gsi).count();
    rest.get(..count).unwrap_or(&[])
}

/// The message that a GSI with these routes is; `None`: it is pins, or nothing. A message stands alone ([`finish`]), so it
/// needs no chip.
pub fn message(routes: &[Route]) -> Option<Msi> {
    match routes {
        [Route { target: Target::Msi(msi), .. }] => Some(*msi),
        _ => None,
    }
}

/// Level-triggered vectors of the MSI routes of GSIs below `pins`. With the I/O APIC in user space these are its
/// pins, and their EOI is reported by KVM_EXIT_IOAPIC_EOI.
pub fn ioapic_eoi_vectors(routes: &[Route], pins: u32) -> VectorSet {
    let mut vectors = VectorSet::default();
    for route in routes.iter().take_while(|route| route.gsi < pins) {
        if let Target::Msi(msi) = route.target
            && msi.level()
        {
            vectors.insert(msi.vector());
        }
    }
    vectors
}

/// From a chip's pin back to the GSI that reaches it, for end-of-interrupt notifiers. If several GSIs reach one pin
/// the highest is kept.
#[derive(Zeroable)]
pub struct PinMap {
    /// GSI + 1; 0 for none.
    pic: [u16; 16],
    ioapic: [u16; ioapic::PINS as usize],
}

impl PinMap {
    /// Fills the map from a finished table.
    pub fn init(&mut self, routes: &[Route]) {
        self.pic.fill(0);
        self.ioapic.fill(0);
        for route in routes {
            let place = match route.target {
                Target::Pic(pin) => self.pic.get_mut(usize::from(pin)),
                Target::Ioapic(pin) => self.ioapic.get_mut(usize::from(pin)),
                Target::Msi(_) => None,
            };
            if let Some(place) = place {
                *place = route.gsi as u16 + 1;
            }
        }
    }

    /// The GSI of a pin of the 8259 pair (0 to 15).
    pub fn pic(&self, pin: u8) -> Option<u32> {
        self.pic.get(usize::from(pin)).and_then(gsi_of)
    }

    /// The GSI of an I/O APIC pin (0 to 23).
    pub fn ioapic(&self, pin: u8) -> Option<u32> {
        self.ioapic.get(usize::from(pin)).and_then(gsi_of)
    }

    /// Calls `notify` with the GSI of every pin in the two sets (bit n = pin n): what [`crate::pic::Pic::take_eoi`] and
    /// [`crate::ioapic::Ioapic::eoi`] return.
    pub fn for_each_gsi(&self, pic: u16, ioapic: u32, notify: &mut impl FnMut(u32)) {
        let pics = self.pic.iter().enumerate().filter(|(pin, _)| pic >> pin & 1 != 0);
        let ioapics = self.ioapic.iter().enumerate().filter(|(pin, _)| ioapic >> pin & 1 != 0);
        for (_, place) in pics.chain(ioapics) {
            if let Some(gsi) = gsi_of(place) {
                notify(gsi);
            }
        }
    }
}

fn gsi_of(place: &u16) -> Option<u32> {
    place.checked_sub(1).map(u32::from)
}
