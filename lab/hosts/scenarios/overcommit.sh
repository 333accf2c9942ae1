# about: 8 vCPUs share 2 CPUs: halted vCPUs give way, IPIs reach vCPUs that are not running.
# cpus: 2
# memory: 1536
# in test: svm, vmx
# timeout: 240
# needs: guest

check load load_module
GUEST_MEMORY=384
check work guest 8 work 200
check unused wait_unused 5
check unload unload_module
