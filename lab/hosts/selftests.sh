# Runs KVM selftests and compares each result with /lab/selftests/plan, which xtask made from docs/selftests.md:
# group, seconds, expected result (pass, skip, fail), command, reason; separated by tabs.

# selftests GROUP: every test of the group. SELFTESTS on the host's kernel line (names separated by commas) selects.
selftests() {
    selftests_tab=$(printf '\t')
    selftests_only=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^selftests=//p')
    while IFS="$selftests_tab" read -r group limit expected command why; do
        [ "$group" = "$1" ] || continue
        case ",${selftests_only:-${command%% *}}," in *",${command%% *},"*) ;; *) continue ;; esac
        selftest "$limit" "$expected" "$command" "$why" </dev/null
    done </lab/selftests/plan
}

# selftest SECONDS EXPECTED COMMAND WHY: one test in a process group of its own, so that nothing of it outlives it.
selftest() {
    selftest_name=$(echo "$3" | tr ' ' '_')
    selftest_limit=$(( $1 * PATIENCE ))
    [ "$KERNEL" = debug ] && selftest_limit=$((selftest_limit * 8))
    echo "=== BEGIN $selftest_name"
    selftest_start=$(now)
    # Each test loads its own file as the guest, so it needs its absolute path.
    setsid /lab/selftests/$3 >/tmp/selftest 2>&1 &
    selftest_pid=$!
    ( sleep $selftest_limit; echo killed >/tmp/selftest.late; kill -KILL -- -$selftest_pid ) 2>/dev/null &
    selftest_guard=$!
    wait $selftest_pid 2>/dev/null
    selftest_rc=$?
    kill $selftest_guard 2>/dev/null
    wait $selftest_guard 2>/dev/null
    kill -KILL -- -$selftest_pid 2>/dev/null
    selftest_time=$(( $(now) - selftest_start ))
    selftest_verdict $selftest_rc "$2" "$4"
}

# selftest_verdict RC EXPECTED WHY: prints the mark.
selftest_verdict() {
    case $1 in
    0) verdict_is=pass ;;
    4) verdict_is=skip ;;
    *) verdict_is=fail ;;
    esac
    # A few tests say that they skip and return 0.
    [ $verdict_is = pass ] && grep -qi '^skipping' /tmp/selftest && verdict_is=skip
    if [ $verdict_is != "$2" ] || [ $verdict_is = fail ]; then
        tail -n 30 /tmp/selftest
    fi
    if [ $verdict_is != "$2" ]; then
        echo "exit code $1: the result is $verdict_is, docs/selftests.md says $2"
        verdict_rc=$1
        case $1 in 0 | 4) verdict_rc=1 ;; esac
        selftest_end $verdict_rc
    elif [ $verdict_is = pass ]; then
        selftest_end 0
    else
        echo "=== SKIP $selftest_name $([ $verdict_is = fail ] && echo 'fails as expected: ')$3"
    fi
}

selftest_end() {
    printf '=== END %s rc=%d secs=%d.%02d\n' "$selftest_name" $1 $((selftest_time / 100)) $((selftest_time % 100))
}
