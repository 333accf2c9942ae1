# about: Guests on QEMU's other set-ups: q35 with its BIOS, the interrupt controllers split.
# cpus: 2
# memory: 1536
# timeout: 240
# needs: guest

check load load_module
MACHINE=q35
check q35 guest 2 boot 60
IRQCHIP=split
check q35-split guest 2 boot 60
MACHINE=
check microvm-split guest 2 boot 60
check unload unload_module
