# about: Two guests with 2 vCPUs each work at the same time.
# cpus: 2 4
# memory: 1536
# timeout: 180
# needs: guest

check load load_module
both() {
    guest 2 work 150 >/tmp/first &
    guest 2 work 150 >/tmp/second
    second=$?
    wait $!
    first=$?
    sed 's/^/first:  /' /tmp/first
    sed 's/^/second: /' /tmp/second
    [ $first = 0 ] && [ $second = 0 ]
}
check both both
check unused wait_unused 5
check unload unload_module
