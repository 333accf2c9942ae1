# about: A virtio disk and network card on MMIO (ioeventfd) and on PCI (ioeventfd, irqfd, MSI-X).
# cpus: 2
# memory: 1536
# in test: svm, vmx
# timeout: 180
# needs: guest

check load load_module
make_disk /tmp/disk
check mmio guest 2 virtio 70 $(mmio_devices /tmp/disk)
MACHINE=q35
check pci guest 2 virtio 70 $(pci_devices /tmp/disk)
check unload unload_module
