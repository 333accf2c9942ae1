# about: Micro guests: one instruction, one exit, one interrupt at a time.
# cpus: 1 2
# memory: 768
# in test: svm, vmx
# timeout: 300
# needs: runner

check load load_module
check runner runner run
check unused wait_unused 5
check unload unload_module
