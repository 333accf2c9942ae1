# about: Stock Linux guests with 1, 2 and 4 vCPUs reach user space and take timer interrupts.
# cpus: 1 2 4
# memory: 1536
# in test: svm, vmx 2, ryzen 2
# timeout: 180
# needs: guest

check load load_module
for vcpus in 1 2 4; do
    check guest-${vcpus}vcpu guest $vcpus boot 50
done
check unused wait_unused 5
check unload unload_module
