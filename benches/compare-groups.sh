# The rows of consumer groups: sourced by compare.sh, whose functions it uses.

# redis_consume: what a stream of Redis gives through a group, one consumer with 256
# records in hand, each acknowledged by an XACK of its own; records per second.
redis_consume() {
    local figure
    redis_start
    figure=$(taskset -c $LOAD_CORE "$REDIS_CONSUME" --port "$REDIS_PORT" --records "$1" --size $VALUE_LEN "${@:2}") ||
        die "redis-consume failed"
    redis_stop
    echo "$figure"
}

# drain FILTER OPTION...: consumes the topic through a group of its own, acknowledging
# each record, and picks a figure.
drain() {
    local filter=$1
    shift
    "$LOADGEN" drain --core $LOAD_CORE --addr "$ADDR" --topic "$TOPIC" --quiet --json "$WORK/load.json" "$@" \
        >/dev/null || die "loadgen drain $* failed"
    jq -r "$filter" "$WORK/load.json"
}

end_to_end_rows() {
    say "end to end, 1 producer, 1 consumer, 1 in flight"
    : >"$WORK/produce_ack_us.v"
    delivery_us() {
        local group=g$(date +%s%N)
        load .fetched.latency_us.p50 --producers 1 --in-flight 1 --consumers 1 --group "$group" --credit 1
        jq -r .latency_us.p50 "$WORK/load.json" >>"$WORK/produce_ack_us.v"
    }
    rounds "end to end" delivery_us
    row "end to end, 1 producer, 1 consumer, 1 in flight: delivery p50 to ack p50 of the same run" \
        "$(ratio delivery_us produce_ack_us)" '<=' 1.5 "$(middle delivery_us '%.0f µs')"
}

consume_rows() {
    local per_s
    say "a backlog through a group, each record acknowledged durably"
    "$LOADGEN" run --addr "$ADDR" --core $LOAD_CORE --topic backlog --producers 4 --batch 256 --in-flight 8 \
        --size $VALUE_LEN --count 1000000 --quiet >/dev/null || die "there is nothing to consume"
    redis_per_s() { redis_consume 100000; }
    redis_together_per_s() { redis_consume 100000 --together; }
    one_consumer_per_s() { TOPIC=backlog drain .consumed.acked_per_s --consumers 1 --credit 256; }
    sixteen_per_s() { TOPIC=backlog drain .consumed.acked_per_s --consumers 16 --credit 256; }
    rounds "consume" redis_per_s redis_together_per_s one_consumer_per_s sixteen_per_s
    per_s=$(middle one_consumer_per_s %.0f/s)
    row "consume and ack each of a backlog, 1 consumer, credit 256, to Redis" \
        "$(ratio one_consumer_per_s redis_per_s)" '>=' 4 "$per_s"
    row "the same to Redis with one XACK for what came together" \
        "$(ratio one_consumer_per_s redis_together_per_s)" '>=' 4 "$per_s"
    row "the same, 1000 records per second" "$(calc "$(middle one_consumer_per_s) / 1000")" '>=' 200
    row "16 consumers of one partition, to one" "$(ratio sixteen_per_s one_consumer_per_s)" '>=' 0.8 \
        "$(middle sixteen_per_s %.0f/s)"
}

beside_rows() {
    say "produce while a group consumes"
    : >"$WORK/delivered_per_s.v"
    alone_per_s() { load .acked_per_s --producers 64 --in-flight 16; }
    beside_per_s() {
        local group=g$(date +%s%N)
        load .acked_per_s --producers 64 --in-flight 16 --consumers 1 --group "$group" --credit 4096
        jq -r .fetched.records_per_s "$WORK/load.json" >>"$WORK/delivered_per_s.v"
    }
    rounds "produce" alone_per_s beside_per_s
    row "64 producers, 16 in flight, while a group consumes and acks all, to produce alone" \
        "$(ratio beside_per_s alone_per_s)" '>=' 0.6 "$(middle beside_per_s %.0f/s)"
    row "the same, delivered meanwhile to produced" "$(ratio delivered_per_s beside_per_s)" '>=' 0.9 \
        "$(middle delivered_per_s %.0f/s)"
}

# Two brokers, one of them with a million delayed records, in turn.
delayed_rows() {
    local without without_addr with_addr before
    say "1,000,000 delayed records"
    broker_start "$WORK/without"
    without=$BROKER without_addr=$ADDR
    OTHERS+=("$without")
    broker_start "$WORK/with"
    with_addr=$ADDR
    # What is slow at first, and what is made ahead, is over.
    for ADDR in "$without_addr" "$with_addr"; do load .acked --producers 64 >/dev/null; done
    before=$(settled_rss)
    "$LOADGEN" stage --addr "$with_addr" delayed --count 1000000 >/dev/null || die "nothing was delayed"
    row "1,000,000 delayed records: bytes of memory each" \
        "$(awk "BEGIN {d = ($(settled_rss) - $before) * 1048576 / 1e6; printf \"%.3g\", (d > 0 ? d : 0)}")" '<=' 64
    p99_without_us() { ADDR=$without_addr load .latency_us.p99 --producers 64 --in-flight 1; }
    p99_with_us() { ADDR=$with_addr load .latency_us.p99 --producers 64 --in-flight 1; }
    rounds "beside delayed records" p99_without_us p99_with_us
    row "64 producers, 1 in flight: ack p99 beside them to that without" "$(ratio p99_with_us p99_without_us)" '<=' 1.3 \
        "$(middle p99_with_us '%.0f µs')"
    broker_stop
    BROKER=$without
    broker_stop
    OTHERS=()
    rm -rf "$WORK/without" "$WORK/with"
}

# settled_rss: the resident memory of the broker when it does not grow any more, MiB.
settled_rss() {
    local now before= i
    for ((i = 0; i < 20; i++)); do
        now=$(broker_rss)
        [[ $now != "$before" ]] || break
        before=$now
        sleep 1
    done
    echo "$now"
}

restart_rows() {
    local begin took i
    say "start after SIGKILL with 1,000 groups and 1,000,000 completed ranges"
    # As many open records as ranges, which takes this much.
    local MEMORY_MIB=4096
    broker_start "$WORK/groups" --preallocate 4
    "$LOADGEN" stage --addr "$ADDR" acked --groups 1000 --ranges 1000 >/dev/null || die "nothing was staged"
    : >"$WORK/restart.v"
    for ((i = 0; i < ROUNDS; i++)); do
        note_hwm
        kill -9 "$BROKER" && wait "$BROKER" 2>/dev/null || true
        drop_caches
        begin=$(date +%s.%N)
        broker_start "$WORK/groups" --preallocate 4
        "$RINGBOLT" group describe staged-999 --addr "$ADDR" --json >"$WORK/group.json"
        took=$(calc "$(date +%s.%N) - $begin")
        [[ $(jq '.partitions[0].lag' "$WORK/group.json") == 1000 ]] || die "staged-999 has forgotten something"
        say "  round $((i + 1)): $took s"
        echo "$took" >>"$WORK/restart.v"
    done
    row "start after SIGKILL, 1,000 groups with 1,000,000 completed ranges (s)" "$(middle restart)" '<=' 2
    broker_stop
    rm -rf "$WORK/groups"
}
