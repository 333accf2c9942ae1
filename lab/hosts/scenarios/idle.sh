# about: Micro guests that idle without exits.
# cpus: 2
# memory: 768
# timeout: 120
# needs: runner
# in test: svm, vmx

check load load_module
check runner runner run idle/timer_in_hlt_xapic idle/timer_in_hlt_x2apic idle/ipi_in_hlt idle/deadlines
check unused wait_unused 5
check unload unload_module
