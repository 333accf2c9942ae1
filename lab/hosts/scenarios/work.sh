# about: A guest with 4 vCPUs checks sums, exchanges messages between processes and measures its timers.
# cpus: 1 2 4
# memory: 1536
# in test: svm, vmx 2
# timeout: 150
# needs: guest

check load load_module
check work guest 4 work 120
check unused wait_unused 5
check unload unload_module
