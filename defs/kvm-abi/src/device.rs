//! Interrupt controllers, timers, routes and event descriptors.

use bytemuck::{Pod, Zeroable};

/// KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS; on return of the latter the first word is the status (signed).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irq_level {
    pub irq: u32,
    pub level: u32,
}

impl kvm_irq_level {
    /// The union's other name: 0 coalesced, negative ignored (masked), positive delivered to that many.
    pub fn set_status(&mut self, status: i32) {
        self.irq = status as u32;
    }
}

/// KVM_GET_IRQCHIP and KVM_SET_IRQCHIP; `chip` is a union read through its accessors.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_irqchip {
    /// `KVM_IRQCHIP_*`.
    pub chip_id: u32,
    pub pad: u32,
    pub chip: [u64; 64],
}
pub const KVM_IRQCHIP_PIC_MASTER: u32 = 0;
pub const KVM_IRQCHIP_PIC_SLAVE: u32 = 1;
pub const KVM_IRQCHIP_IOAPIC: u32 = 2;
pub const KVM_NR_IRQCHIPS: u32 = 3;

impl kvm_irqchip {
    /// The union as one 8259's state.
    pub fn pic(&self) -> kvm_pic_state {
        bytemuck::cast_slice::<u64, kvm_pic_state>(&self.chip).first().copied().unwrap_or_default()
    }
    /// As [`kvm_irqchip::pic`], to fill in.
    pub fn set_pic(&mut self, state: &kvm_pic_state) {
        if let Some(place) = bytemuck::cast_slice_mut::<u64, kvm_pic_state>(&mut self.chip).first_mut() {
            *place = *state;
        }
    }
    /// The union as the I/O APIC's state.
    pub fn ioapic(&self) -> kvm_ioapic_state {
        let bytes = bytemuck::bytes_of(&self.chip).get(..core::mem::size_of::<kvm_ioapic_state>());
        bytes.and_then(|b| bytemuck::try_pod_read_unaligned(b).ok()).unwrap_or_default()
    }
    /// As [`kvm_irqchip::ioapic`], to fill in.
    pub fn set_ioapic(&mut self, state: &kvm_ioapic_state) {
        let bytes = bytemuck::bytes_of(state);
        if let Some(place) = bytemuck::bytes_of_mut(&mut self.chip).get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// One 8259.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pic_state {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

pub const KVM_IOAPIC_NUM_PINS: usize = 24;

/// The I/O APIC; `redirtbl` holds each entry's 64 bits as the hardware lays them out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_ioapic_state {
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    pub irr: u32,
    pub pad: u32,
    pub redirtbl: [u64; KVM_IOAPIC_NUM_PINS],
}

/// One channel of the 8254.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pit_channel_state {
    /// 1 to 65536.
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    /// Host monotonic time, nanoseconds.
    pub count_load_time: i64,
}

/// KVM_GET_PIT and KVM_SET_PIT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pit_state {
    pub channels: [kvm_pit_channel_state; 3],
}

/// KVM_GET_PIT2 and KVM_SET_PIT2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pit_state2 {
    pub channels: [kvm_pit_channel_state; 3],
    /// `KVM_PIT_FLAGS_*`.
    pub flags: u32,
    pub reserved: [u32; 9],
}
pub const KVM_PIT_FLAGS_HPET_LEGACY: u32 = 1;
pub const KVM_PIT_FLAGS_SPEAKER_DATA_ON: u32 = 2;

/// KVM_CREATE_PIT2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pit_config {
    /// [`KVM_PIT_SPEAKER_DUMMY`]: also answer port 0x61.
    pub flags: u32,
    pub pad: [u32; 15],
}
pub const KVM_PIT_SPEAKER_DUMMY: u32 = 1;

/// KVM_REINJECT_CONTROL.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_reinject_control {
    pub pit_reinject: u8,
    pub reserved: [u8; 31],
}

/// KVM_SET_GSI_ROUTING: the header; `nr` entries of [`kvm_irq_routing_entry`] follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irq_routing {
    pub nr: u32,
    pub flags: u32,
}

/// One GSI route; `u` is a union read through its accessors.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irq_routing_entry {
    pub gsi: u32,
    /// `KVM_IRQ_ROUTING_*`; the header calls it `type`.
    pub type_: u32,
    /// [`KVM_MSI_VALID_DEVID`].
    pub flags: u32,
    pub pad: u32,
    pub u: [u32; 8],
}
pub const KVM_IRQ_ROUTING_IRQCHIP: u32 = 1;
pub const KVM_IRQ_ROUTING_MSI: u32 = 2;
pub const KVM_IRQ_ROUTING_S390_ADAPTER: u32 = 3;
pub const KVM_IRQ_ROUTING_HV_SINT: u32 = 4;
pub const KVM_IRQ_ROUTING_XEN_EVTCHN: u32 = 5;

impl kvm_irq_routing_entry {
    /// The union of a KVM_IRQ_ROUTING_IRQCHIP entry.
    pub fn irqchip(&self) -> kvm_irq_routing_irqchip {
        let [irqchip, pin, ..] = self.u;
        kvm_irq_routing_irqchip { irqchip, pin }
    }
    /// The union of a KVM_IRQ_ROUTING_MSI entry.
    pub fn msi(&self) -> kvm_irq_routing_msi {
        let [address_lo, address_hi, data, devid, ..] = self.u;
        kvm_irq_routing_msi { address_lo, address_hi, data, devid }
    }
    /// A route to a pin of `irqchip` (`KVM_IRQCHIP_*`).
    pub fn to_irqchip(gsi: u32, irqchip: u32, pin: u32) -> Self {
        Self { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, u: [irqchip, pin, 0, 0, 0, 0, 0, 0], ..Self::default() }
    }
    /// A route to a message.
    pub fn to_msi(gsi: u32, m: kvm_irq_routing_msi) -> Self {
        let u = [m.address_lo, m.address_hi, m.data, m.devid, 0, 0, 0, 0];
        Self { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Self::default() }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irq_routing_irqchip {
    pub irqchip: u32,
    pub pin: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irq_routing_msi {
    pub address_lo: u32,
    pub address_hi: u32,
    pub data: u32,
    pub devid: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irq_routing_hv_sint {
    pub vcpu: u32,
    pub sint: u32,
}

/// KVM_SIGNAL_MSI.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_msi {
    pub address_lo: u32,
    pub address_hi: u32,
    pub data: u32,
    /// [`KVM_MSI_VALID_DEVID`].
    pub flags: u32,
    pub devid: u32,
    pub pad: [u8; 12],
}
pub const KVM_MSI_VALID_DEVID: u32 = 1 << 0;

/// KVM_IRQFD.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_irqfd {
    pub fd: u32,
    pub gsi: u32,
    /// `KVM_IRQFD_FLAG_*`.
    pub flags: u32,
    pub resamplefd: u32,
    pub pad: [u8; 16],
}
pub const KVM_IRQFD_FLAG_DEASSIGN: u32 = 1 << 0;
pub const KVM_IRQFD_FLAG_RESAMPLE: u32 = 1 << 1;

/// KVM_IOEVENTFD; `len` is 1, 2, 4, 8, or 0 for any length.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_ioeventfd {
    pub datamatch: u64,
    pub addr: u64,
    pub len: u32,
    pub fd: i32,
    /// `KVM_IOEVENTFD_FLAG_*`.
    pub flags: u32,
    pub pad: [u8; 36],
}
pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1 << 0;
pub const KVM_IOEVENTFD_FLAG_PIO: u32 = 1 << 1;
pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 1 << 2;
pub const KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY: u32 = 1 << 3;
pub const KVM_IOEVENTFD_VALID_FLAG_MASK: u32 = (1 << 5) - 1;

/// KVM_CREATE_DEVICE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_create_device {
    /// `KVM_DEV_TYPE_*`; the header calls it `type`.
    pub type_: u32,
    pub fd: u32,
    pub flags: u32,
}
pub const KVM_CREATE_DEVICE_TEST: u32 = 1;
pub const KVM_DEV_TYPE_VFIO: u32 = 4;
pub const KVM_DEV_VFIO_GROUP: u32 = 1;
pub const KVM_DEV_VFIO_GROUP_ADD: u64 = 1;
pub const KVM_DEV_VFIO_GROUP_DEL: u64 = 2;

/// KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_device_attr {
    pub flags: u32,
    pub group: u32,
    pub attr: u64,
    pub addr: u64,
}
/// Attribute of the system descriptor (group 0): XSAVE components that need a permission.
pub const KVM_X86_XCOMP_GUEST_SUPP: u64 = 0;
