# about: What `cargo xtask demo` shows: a Linux guest with 4 vCPUs at work, and why it left guest mode.
# cpus: 2
# memory: 2048
# timeout: 240
# needs: guest
# in test: no

check load load_module
make_disk /tmp/disk
sample_exits /tmp/exits &
sampler=$!
GUEST_APPEND=exitless.hold=1
check guest guest 4 demo 200 $(mmio_devices /tmp/disk)
kill $sampler
exit_table exits /tmp/exits
check unused wait_unused 5
check unload unload_module
