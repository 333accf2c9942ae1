# about: The host is reset hard under running guests: no CPU faults over virtualization that is turned off under it.
# cpus: 2
# memory: 1536
# timeout: 120
# needs: guest runner
# in test: svm, vmx
# ends by reset

check load load_module
check busy busy
# The console says what happens from here on; the kernel's log is not carried on any more.
reset_now() { echo b >/proc/sysrq-trigger; sleep 20; }
check reset reset_now
