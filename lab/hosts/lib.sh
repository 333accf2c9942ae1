# What scenarios are made of; read by the host's init before the scenario.
# MODULE (exitless, kvm), VENDOR (amd, intel), PARAMS, CPUS, KERNEL, PATIENCE and SLOW come from /lab/env.

# Hundredths of a second since boot.
now() { cut -d' ' -f1 /proc/uptime | tr -d . | sed 's/^0*//'; } # A leading zero would make it octal.

# note TEXT: one line of progress for people.
note() { echo "=== NOTE $*"; }

# check NAME COMMAND...: one test; it passes if the command returns 0. Always returns 0, so that the next one runs.
check() {
    check_name=$1; shift
    echo "=== BEGIN $check_name"
    check_start=$(now)
    ( "$@" )
    check_rc=$?
    check_time=$(( $(now) - check_start ))
    printf '=== END %s rc=%d secs=%d.%02d\n' "$check_name" $check_rc $((check_time / 100)) $((check_time % 100))
    return 0
}

# few COUNT: repetitions that this machine has time for: all, or fewer on one that is SLOW times slower.
few() { echo $(( ($1 + SLOW - 1) / SLOW )); }

# limit SECONDS COMMAND...: kills the command after that time (exit code 137).
limit() {
    limit_time=$(( $1 * PATIENCE )); shift
    [ "$KERNEL" = debug ] && limit_time=$((limit_time * 8))
    timeout -s KILL $limit_time "$@"
}

# The names that lsmod shows for the module under test.
module_names() {
    case $MODULE in
    exitless) echo exitless ;;
    kvm) echo "kvm_$VENDOR kvm irqbypass" ;;
    esac
}

load_module() {
    case $MODULE in
    exitless)
        [ -d /sys/module/irqbypass ] || insmod /modules/irqbypass.ko || return 1
        insmod /lab/exitless.ko $PARAMS || return 1 ;;
    kvm)
        [ -d /sys/module/irqbypass ] || insmod /modules/irqbypass.ko || return 1
        insmod /modules/kvm.ko && insmod /modules/kvm-$VENDOR.ko $PARAMS || return 1 ;;
    esac
    [ -c /dev/kvm ] || { echo "/dev/kvm is missing"; return 1; }
}

unload_module() {
    for unload_name in $(module_names); do
        rmmod $unload_name || return 1
    done
    [ ! -e /dev/kvm ] || { echo "/dev/kvm is still there"; return 1; }
}

# How many file descriptors hold the module (0: it could be unloaded).
module_users() {
    case $MODULE in
    exitless) cat /sys/module/exitless/refcnt ;;
    kvm) cat /sys/module/kvm_$VENDOR/refcnt ;;
    esac
}

# wait_unused SECONDS: until nothing holds the module.
wait_unused() {
    wait_left=$(( $1 * 10 ))
    while [ "$(module_users)" != 0 ]; do
        wait_left=$((wait_left - 1))
        [ $wait_left -gt 0 ] || { echo "the module is still held $(module_users) times"; return 1; }
        sleep 0.1
    done
}

# guest_command VCPUS JOB [QEMU ARGUMENTS...]: QEMU as the other commands start it, replacing this shell.
# MACHINE (microvm, q35; a microvm's second I/O APIC delivers nothing when the first is in the kernel, and Linux
# looks six seconds for a clock that is not there), IRQCHIP (on, split, off), GUEST_CPU, GUEST_MEMORY (MiB), GUEST_INPUT (a file for its console) and GUEST_APPEND change what it starts.
guest_command() {
    guest_vcpus=$1; guest_job=$2; shift 2
    exec qemu-system-x86_64 -no-reboot -nodefaults -display none -serial stdio \
        -M ${MACHINE:-microvm,ioapic2=off,rtc=on},kernel-irqchip=${IRQCHIP:-on} -accel kvm -cpu ${GUEST_CPU:-max} \
        -smp $guest_vcpus -m ${GUEST_MEMORY:-256} -kernel /guest/vmlinuz -initrd ${GUEST_INITRD:-/guest/initrd} \
        -append "console=ttyS0 quiet reboot=t panic=-1 mitigations=off watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=100 cryptomgr.notests exitless.job=$guest_job $GUEST_APPEND" \
        "$@" <${GUEST_INPUT:-/dev/null} 2>&1
}

# Virtio disk (served by a thread of its own, so that its interrupts come from another thread) and network card.
make_disk() { dd if=/dev/zero of="$1" bs=1M count=${2:-16} 2>/dev/null; }
mmio_devices() {
    echo "-object iothread,id=io -drive id=disk,if=none,format=raw,file=$1 -device virtio-blk-device,drive=disk,iothread=io" \
        "-netdev user,id=net -device virtio-net-device,netdev=net"
}
# On PCI each queue has an MSI-X vector, which QEMU ties to an irqfd.
pci_devices() {
    echo "-object iothread,id=io -drive id=disk,if=none,format=raw,file=$1 -device virtio-blk-pci,drive=disk,iothread=io" \
        "-netdev user,id=net -device virtio-net-pci,netdev=net,romfile="
}

# guest_extras: what the lab has for guests besides, in their /extra.
guest_extras() {
    mkdir -p /tmp/extra/extra
    cp /lab/exitless-guest.ko /tmp/extra/extra/ && cp /lab/load /tmp/extra/extra/ || return 1
    # The archive before ends at a multiple of 512 bytes.
    (cd /tmp/extra && find . | cpio -o -H newc 2>/dev/null) | cat /guest/initrd - >/tmp/initrd
    GUEST_INITRD=/tmp/initrd
}

# start_guest VCPUS JOB LOG [QEMU ARGUMENTS...]: in the background; its process id in $guest_pid.
start_guest() {
    start_v=$1; start_j=$2; start_log=$3; shift 3
    guest_command $start_v $start_j "$@" >$start_log &
    guest_pid=$!
}

# wait_line SECONDS LOG PATTERN: until the guest has said it.
wait_line() {
    wait_left=$(( $1 * 5 * PATIENCE ))
    [ "$KERNEL" = debug ] && wait_left=$((wait_left * 8))
    until grep -q "$3" "$2"; do
        wait_left=$((wait_left - 1))
        [ $wait_left -gt 0 ] || { cat "$2"; echo "the guest never said: $3"; return 1; }
        sleep 0.2
    done
}

# guest VCPUS JOB SECONDS [QEMU ARGUMENTS...]: a Linux guest that does JOB (see guest/init) and powers off.
# Passes if the guest says that its job is done.
guest() {
    guest_time=$3
    guest_log=/tmp/guest.$(now)
    guest_v=$1; guest_j=$2; shift 3
    export GUEST_INITRD KERNEL PATIENCE GUEST_APPEND GUEST_MEMORY GUEST_CPU IRQCHIP MACHINE
    limit $guest_time sh -c '. /lab/lib.sh; guest_command "$@"' guest $guest_v $guest_j "$@" | tee $guest_log
    guest_passed $guest_log
}

# guest_passed LOG: did the guest do its job, and is its kernel log clean?
guest_passed() {
    if grep -qE 'WARNING:|BUG:|Oops|detected stall|soft lockup|Kernel panic|Call Trace' "$1"; then
        echo "the guest's kernel complains"
        return 1
    fi
    grep -q '^--- GUEST done rc=0' "$1" || { echo "the guest did not finish its job"; return 1; }
}

# busy: a guest with more vCPUs than the host has CPUs, and small VMs that come and go, for what ends the machine.
busy() {
    start_guest 4 forever /tmp/log
    wait_line 60 /tmp/log '^--- GUEST turn' || return 1
    : >/tmp/small
    (while :; do runner run smp/ping_pong inject/all_vectors deadline/swept ipi/rounds; done) >/tmp/small 2>&1 &
    wait_line 30 /tmp/small 'inject/all_vectors ... ok' || return 1
    # To the console goes all that the kernel says.
    dmesg -n 8
}

# exits_of_all: counters of every living VM, as `name count` lines (names added up over VMs).
exits_of_all() {
    for exits_dir in /sys/kernel/debug/kvm/*-*; do
        [ -d "$exits_dir" ] || continue
        if [ -f "$exits_dir/exits_by_reason" ]; then
            cat "$exits_dir/exits_by_reason"
        else
            for exits_file in "$exits_dir"/*; do
                [ -f "$exits_file" ] && echo "${exits_file##*/} $(cat "$exits_file")"
            done
        fi
    done
}

# trace_exits: stock KVM counts exits by reason and MSR from here to untrace_exits; Exitless always does.
kvm_events=/sys/kernel/tracing/events/kvm
trace_exits() {
    [ $MODULE = kvm ] || return 0
    echo 'hist:keys=exit_reason' >$kvm_events/kvm_exit/trigger && echo 'hist:keys=ecx.hex' >$kvm_events/kvm_msr/trigger
}
untrace_exits() {
    [ $MODULE = kvm ] || return 0
    echo '!hist:keys=exit_reason' >$kvm_events/kvm_exit/trigger
    echo '!hist:keys=ecx.hex' >$kvm_events/kvm_msr/trigger
}
# counted_exits: what either module has counted, as `exit REASON COUNT` (stock KVM: the processor's number for it) and `msr NUMBER COUNT`
# lines; of the one VM that there is.
counted_exits() {
    if [ $MODULE = kvm ]; then
        sed -n 's/^{ exit_reason: *\([0-9]*\) *} hitcount: *\([0-9]*\).*/exit \1 \2/p' $kvm_events/kvm_exit/hist
        sed -n 's/^{ ecx: *\([0-9a-f]*\) *} hitcount: *\([0-9]*\).*/msr 0x\1 \2/p' $kvm_events/kvm_msr/hist
    else
        exits_of_all | sed 's/^/exit /'
        sed -n 's/^\(0x[0-9a-f]* [0-9]*\)$/msr \1/p' /sys/kernel/debug/kvm/*-*/exits_by_msr
    fi
}
# active_mechanisms: `mechanism NAME VCPUS` for each that is on, in how many vCPUs of the one VM that there is.
active_mechanisms() {
    [ $MODULE = kvm ] || sed -n '/^vm /,$ s/^  \([a-z_]*\) on active \([0-9]*\)\/.*/mechanism \1 \2/p' /dev/exitless
}
# switched_storm NAMES GUESTS...: the runner's guests while all mechanisms are switched at random, up to four times, until each of NAMES has been seen
# active and to have done something.
switched_storm() {
    storm_names=$1; shift
    [ $MODULE = exitless ] || { runner run "$@"; return; }
    : >/tmp/storm.seen
    for storm_try in 1 2 3 4; do
        runner run --switch "$@" >/tmp/storm 2>&1 &
        storm_pid=$!
        while kill -0 $storm_pid 2>/dev/null; do cat /dev/exitless; sleep 0.1; done | grep ' on active [1-9].* hits [1-9]' >>/tmp/storm.seen
        wait $storm_pid
        storm_rc=$?
        cat /tmp/storm
        [ $storm_rc = 0 ] || return 1
        storm_unseen=
        for storm_name in $storm_names; do
            grep -q "^  $storm_name " /tmp/storm.seen || storm_unseen="$storm_unseen $storm_name"
        done
        [ -n "$storm_unseen" ] || return 0
    done
    echo "nothing was done by$storm_unseen"
    return 1
}
# work_guest VCPUS LOG [QEMU ARGUMENTS...]: a guest that does $WORK (NAME:SIZE,.. of guest/init), and at the begin and the end of each waits until
# its exits have been read: lines `NAME begin|end WHAT KEY COUNT` in LOG.figures. $AT_MARK, if there is one, is called with `begin NAME` and `end NAME` before.
work_guest() {
    work_vcpus=$1; work_log=$2; shift 2
    [ -p /tmp/answers ] || mkfifo /tmp/answers
    exec 3<>/tmp/answers
    : >$work_log.figures
    GUEST_INPUT=/tmp/answers
    GUEST_APPEND="exitless.work=$WORK $GUEST_APPEND"
    trace_exits || return 1
    (guest_command $work_vcpus workloads "$@") | follow_work $work_log | tee $work_log
    untrace_exits
    exec 3>&-
    guest_passed $work_log
}
follow_work() {
    follow_log=$1
    follow_cr=$(printf '\r')
    while read -r follow_line; do
        follow_line=${follow_line%$follow_cr}
        echo "$follow_line"
        case "$follow_line" in "--- GUEST begin "*|"--- GUEST end "*) ;; *) continue ;; esac
        set -- $follow_line
        ${AT_MARK:-:} $3 $4
        { counted_exits; active_mechanisms; echo "at $(now)"; [ -z "$5" ] || echo "work $6 $5"; } | sed "s|^|$4 $3 |" >>$follow_log.figures
        echo go >&3
    done
}

# What a debug kernel found that it does not print by itself.
leaks() {
    sleep 6 # Younger objects are not reported.
    echo scan >/sys/kernel/debug/kmemleak && echo scan >/sys/kernel/debug/kmemleak
    cat /sys/kernel/debug/kmemleak
    [ -z "$(cat /sys/kernel/debug/kmemleak)" ]
}
check_debug_kernel() {
    check leaks leaks
    check lockdep-on grep -q 'debug_locks: *1' /proc/lockdep_stats
}

# fpu_counter NAME: what the lab's module fpu_load has counted. fpu_clean: its softirqs have found the host's state, each time.
fpu_counter() { cat /sys/module/fpu_load/parameters/$1; }
fpu_clean() {
    for clean_name in runs xcr0 xss pkru spec_ctrl dr7 lost; do echo "$clean_name $(fpu_counter $clean_name)"; done
    [ "$(fpu_counter runs)" -gt 100 ] || { echo "too few softirqs to tell anything"; return 1; }
    for clean_name in xcr0 xss pkru spec_ctrl dr7 lost; do [ "$(fpu_counter $clean_name)" = 0 ] || return 1; done
}
