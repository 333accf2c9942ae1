# about: The host panics under running guests and resets itself: no CPU faults over virtualization that is turned off under it.
# cpus: 2
# memory: 1536
# timeout: 120
# needs: guest runner
# in test: svm, vmx
# ends by reset
# panics: sysrq triggered crash

check load load_module
check busy busy
crash_now() { echo c >/proc/sysrq-trigger; sleep 20; }
check crash crash_now
