# about: The module loads, offers /dev/kvm and unloads.
# cpus: 1 2
# memory: 512
# in test: svm, vmx
# timeout: 60

check load load_module
check listed grep -q "^$MODULE " /proc/modules
check unload unload_module
