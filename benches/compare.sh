#!/usr/bin/env bash
# Compares Ringbolt with what it stands on (this machine's disk and loopback)
# and with Redis Streams, in one run, and prints a table of ratios.
#
# Machines drift, so only pairs count: in every round the reference is measured
# and then the subject, and what is reported is the median of the rounds' ratios.
#
#   benches/compare.sh [--rounds N] [--seconds S] [--data DIR] [--rows LIST] [--log-gib N]
#
#   --rounds   rounds per row (default 5)
#   --seconds  seconds per measurement (default 3)
#   --data     where brokers keep their data for the time being (default: a
#              fresh directory in the working directory; it must be on the disk
#              that is meant, and hold 40 GiB)
#   --rows     only these: generator,1x1,64x1,64x16,1x256,batches,partitions,fetch,idle,
#              end-to-end,consume,beside,connections,start,delayed,restart,memory.
#              `memory` looks at every broker that the other rows started
#   --log-gib  GiB in the log for the row `start` (default 8)
#
# With BIN=DIR in the environment the binaries there are used, and none built.
#
# Needs Linux, two cores, cargo, bash, coreutils, awk and jq; and root for two
# things: installing redis-server where it is missing (Debian's apt), and
# dropping the kernel's caches. Server processes run on core 0, load on core 1.
set -euo pipefail
# A measurement that fails within $(...) ends the script.
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

ROUNDS=5 SECONDS_EACH=3 DATA= LOG_GIB=8
ROWS=generator,1x1,64x1,64x16,1x256,batches,partitions,fetch,idle,end-to-end,consume,beside,connections,start,delayed,restart,memory
while (($#)); do
    case $1 in
        --rounds) ROUNDS=$2 ;;
        --seconds) SECONDS_EACH=$2 ;;
        --data) DATA=$2 ;;
        --rows) ROWS=$2 ;;
        --log-gib) LOG_GIB=$2 ;;
        *) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0"; exit 2 ;;
    esac
    shift 2
done

SERVER_CORE=0 LOAD_CORE=1
VALUE_LEN=1024
MEMORY_MIB=512

say() { echo "$*" >&2; }
die() { say "compare.sh: $*"; exit 2; }

for tool in jq awk cargo; do command -v "$tool" >/dev/null || die "$tool is missing"; done
if ! command -v redis-server >/dev/null; then
    say "installing redis-server"
    # A fresh machine has no list of packages yet.
    { apt-get update -qq && apt-get install -y --no-install-recommends redis-server redis-tools; } >/dev/null ||
        die "redis-server cannot be installed; install it by hand"
    # Debian starts it on port 6379, where nobody needs it.
    systemctl disable --now redis-server >/dev/null 2>&1 || true
fi

if [[ -z ${BIN:-} ]]; then
    say "building"
    cargo build --release --quiet -p ringbolt -p loadgen
    BIN=${CARGO_TARGET_DIR:-target}/release
fi
# A package of its own, which nothing else needs.
cargo build --release --quiet --manifest-path benches/redis/Cargo.toml --target-dir target/redis
RINGBOLT=$BIN/ringbolt LOADGEN=$BIN/loadgen REDIS_CONSUME=target/redis/release/redis-consume

WORK=$(mktemp -d "${DATA:-.}/ringbolt-compare-XXXXXX")
BROKER= REDIS= TOPIC=
# Brokers that run beside it, of the usual memory.
OTHERS=()
cleanup() {
    [[ -z $BROKER ]] || { kill -9 "$BROKER" 2>/dev/null && wait "$BROKER" 2>/dev/null; } || true
    for other in "${OTHERS[@]}"; do kill -9 "$other" 2>/dev/null && wait "$other" 2>/dev/null || true; done
    [[ -z $REDIS ]] || { kill -9 "$REDIS" 2>/dev/null && wait "$REDIS" 2>/dev/null; } || true
    rm -rf "$WORK"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The middle one of the numbers on standard input.
median() { sort -g | awk '{v[NR]=$1} END {if (!NR) {print "nan"; exit} print (v[int((NR+1)/2)]+v[int(NR/2)+1])/2}'; }
calc() { awk "BEGIN {printf \"%.6g\", ($*)}"; }
wants() { [[ ,$ROWS, == *,$1,* ]]; }
drop_caches() { { sync && echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || say "  caches were not dropped (not root)"; }

# ---- the floor ---------------------------------------------------------------

# floor NAMES FILTER: measures with doctor and picks a figure from its report.
floor() {
    "$RINGBOLT" doctor --data "$WORK" --json --only "$1" --seconds "$SECONDS_EACH" \
        --server-core $SERVER_CORE --client-core $LOAD_CORE 2>/dev/null | jq -r "$2"
}

# ---- Ringbolt ----------------------------------------------------------------

# broker_start DIR [OPTION...]: starts a broker; ADDR is where it listens.
broker_start() {
    local dir=$1 out=$WORK/broker.out
    shift
    : >"$out"
    # A segment that is made while the load runs would cost as much disk as the
    # load itself: all are made before, and recycled as they would be in use.
    "$RINGBOLT" serve --data "$dir" --listen 127.0.0.1:0 --shards 1 --cores $SERVER_CORE \
        --memory ${MEMORY_MIB}MiB "$@" >"$out" 2>"$WORK/broker.err" &
    BROKER=$! BROKER_MIB=$MEMORY_MIB
    until grep -q '^listening on' "$out"; do
        kill -0 "$BROKER" 2>/dev/null || { cat "$WORK/broker.err" >&2; die "the broker does not start"; }
        sleep 0.005
    done
    ADDR=$(awk '/^listening on/ {print $3}' "$out")
}

broker_stop() {
    note_hwm
    kill -TERM "$BROKER" && wait "$BROKER" || true
    BROKER=
}

# load FILTER OPTION...: loads the broker and picks a figure. A topic of its own
# for every measurement, unless TOPIC says which, so that none reads another's past.
load() {
    local filter=$1
    shift
    generate "$filter" --addr "$ADDR" --topic "${TOPIC:-t$(date +%s%N)}" "$@"
}

# echo_load OPTION...: loads a bare echo peer instead; messages per second.
echo_load() { generate .acked_per_s --echo --peer-core $SERVER_CORE "$@"; }

generate() {
    local filter=$1
    shift
    "$LOADGEN" run --core $LOAD_CORE --size $VALUE_LEN --warmup 1s --duration "${SECONDS_EACH}s" --quiet \
        --json "$WORK/load.json" "$@" >/dev/null || die "loadgen $* failed"
    jq -r "$filter" "$WORK/load.json"
}

# CPU time of the broker so far, in seconds.
broker_cpu() {
    awk -v hz="$(getconf CLK_TCK)" '{sub(/.*\) /, ""); print ($12 + $13) / hz}' "/proc/$BROKER/stat"
}

counter() { "$RINGBOLT" stats --addr "$ADDR" --json | jq -r ".stats.$1"; }

# The present resident memory of the broker, MiB.
broker_rss() { awk '/^VmRSS/ {print $2 / 1024}' "/proc/$BROKER/status"; }

# The most that any broker ever had beyond its --memory, MiB. To be noted before each of
# them ends.
BEYOND=
note_hwm() {
    BEYOND=$(awk -v most="$BEYOND" -v own="$BROKER_MIB" '/^VmHWM/ {
        mib = $2 / 1024 - own; print (most == "" || mib > most ? mib : most)}' "/proc/$BROKER/status")
}

# ---- Redis -------------------------------------------------------------------

redis_start() {
    local dir=$WORK/redis
    rm -rf "$dir"
    mkdir "$dir"
    # A port that was free a moment ago; nobody else wants it in this one.
    REDIS_PORT=$(shuf -i 20000-29999 -n 1)
    while (exec 3<>"/dev/tcp/127.0.0.1/$REDIS_PORT") 2>/dev/null; do
        REDIS_PORT=$(shuf -i 20000-29999 -n 1)
    done
    taskset -c $SERVER_CORE redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --dir "$dir" --save '' \
        --appendonly yes --appendfsync always --auto-aof-rewrite-percentage 0 --daemonize no \
        --logfile "$dir/log" >/dev/null &
    REDIS=$!
    until (exec 3<>"/dev/tcp/127.0.0.1/$REDIS_PORT") 2>/dev/null; do
        kill -0 "$REDIS" 2>/dev/null || { cat "$dir/log" >&2; die "redis does not start"; }
        sleep 0.02
    done
}

redis_stop() {
    kill -TERM "$REDIS" && wait "$REDIS" || true
    REDIS=
    rm -rf "$WORK/redis"
}

PAYLOAD=$(printf '%*s' $VALUE_LEN '' | tr ' ' x)

# redis_load CLIENTS PIPELINE RATE: adds to a stream for about as long as the
# others are measured, RATE being the messages per second that are expected.
# Prints messages per second and the median latency in µs.
redis_load() {
    local count
    count=$(calc "int($3 * $SECONDS_EACH / ($1 * $2) + 1) * $1 * $2")
    redis_start
    taskset -c $LOAD_CORE redis-benchmark -p "$REDIS_PORT" -c "$1" -P "$2" -n "$count" --precision 3 --csv \
        XADD stream '*' value "$PAYLOAD" 2>/dev/null | tail -n 1 | tr -d '"' |
        awk -F, 'NF >= 7 {print $(NF-6), $(NF-3) * 1000}'
    redis_stop
}

# ---- the table ---------------------------------------------------------------

TABLE=$WORK/table
: >"$TABLE"

# row NAME MEASURED COMPARISON TARGET: COMPARISON is `<=` or `>=`.
row() {
    local met
    is_number "${2#-}" || die "$1: '$2' is no number"
    met=$(awk -v v="$2" -v op="$3" -v t="$4" 'BEGIN {
        print (op == "<=" ? v + 0 <= t + 0 : v + 0 >= t + 0) && v != "nan" ? "yes" : "**no**"}')
    printf '| %s | %s %s | %.3g | %s | %s |\n' "$1" "$3" "$4" "$2" "${5:-}" "$met" >>"$TABLE"
    say "  $1: $2 (target $3 $4) $met"
}

is_number() { [[ $1 =~ ^[0-9]+([.][0-9]+)?(e[+-]?[0-9]+)?$ ]]; }

# rounds LABEL MEASUREMENT...: in each round runs the measurements, functions that
# print a number, in their order; the numbers are collected under their names.
rounds() {
    local label=$1 name value line i
    shift
    for name; do : >"$WORK/$name.v"; done
    for ((i = 1; i <= ROUNDS; i++)); do
        line=
        for name; do
            value=$($name)
            is_number "$value" || die "$name gave '$value'"
            echo "$value" >>"$WORK/$name.v"
            line+=", ${name//_/ } $value"
        done
        say "  $label, round $i: ${line#, }"
    done
}

# ratio SUBJECT REFERENCE: the median of the rounds' ratios.
ratio() { paste "$WORK/$1.v" "$WORK/$2.v" | awk '{printf "%.6g\n", $1 / $2}' | median; }

# middle NAME [FORMAT]: the median of the rounds.
middle() { median <"$WORK/$1.v" | awk -v f="${2:-%s}" '{printf f, $1}'; }

producers() { (($1 == 1)) && echo '1 producer' || echo "$1 producers"; }

# shape CLIENTS WINDOW ECHO_TARGET REDIS_TARGET REDIS_RATE
shape() {
    local clients=$1 window=$2 rate=$5 per_s
    echo_per_s() { echo_floor "${clients}x$window"; }
    redis_per_s() { redis_load "$clients" "$window" "$rate" | awk '{print $1}'; }
    ringbolt_per_s() { load .acked_per_s --producers "$clients" --in-flight "$window"; }
    rounds "$clients x $window" echo_per_s redis_per_s ringbolt_per_s
    per_s=$(middle ringbolt_per_s %.0f/s)
    row "$(producers "$clients"), $window in flight, to echo of the same shape" "$(ratio ringbolt_per_s echo_per_s)" \
        '>=' "$3" "$per_s"
    row "$(producers "$clients"), $window in flight, to Redis" "$(ratio ringbolt_per_s redis_per_s)" '>=' "$4" "$per_s"
}

# echo_floor SHAPE: what the bare client reaches, messages per second.
echo_floor() { floor "$1" ".loopback_echo_per_s[\"$1\"] // .loopback_echo_per_s"; }

# generator CLIENTS WINDOW: what the load generator reaches where no broker is
# in its way, to what the bare client that measures the floor does.
generator() {
    local clients=$1 window=$2
    bare_client_per_s() { echo_floor "${clients}x$window"; }
    loadgen_per_s() { echo_load --producers "$clients" --in-flight "$window"; }
    rounds "$clients x $window" bare_client_per_s loadgen_per_s
    row "loadgen on a bare echo, $1 x $2, to doctor's echo of the same shape" \
        "$(ratio loadgen_per_s bare_client_per_s)" '>=' 0.90 "$(middle loadgen_per_s %.0f/s)"
}

if wants generator; then
    say "the load generator"
    generator 64 1
    generator 64 16
    generator 1 256
fi

source benches/compare-groups.sh

# The broker that most rows share.
shared_rows() {
    local name
    for name in 1x1 64x1 64x16 1x256 batches partitions fetch idle end-to-end consume beside; do
        ! wants $name || return 0
    done
    return 1
}

# share_broker [OPTION...]: starts it.
share_broker() { broker_start "$WORK/data" --preallocate 40 --retention-bytes 8GiB "$@"; }

if shared_rows; then
    say "preparing a broker"
    share_broker
fi

if wants 1x1; then
    say "1 producer, 1 in flight"
    disk_and_wire_us() { floor dsync_4k_us,loopback_rtt_us '.dsync_4k_us.p50 + .loopback_rtt_us.p50'; }
    redis_us() { redis_load 1 1 3000 | awk '{print $2}'; }
    ringbolt_us() { load .latency_us.p50 --producers 1 --in-flight 1; }
    rounds "1 x 1" disk_and_wire_us redis_us ringbolt_us
    us=$(middle ringbolt_us '%.0f µs')
    row "1 producer, 1 in flight: ack p50 to disk + wire" "$(ratio ringbolt_us disk_and_wire_us)" '<=' 1.15 "$us"
    row "1 producer, 1 in flight: ack p50 to Redis" "$(ratio ringbolt_us redis_us)" '<=' 0.75 "$us"
    broker_stop
    share_broker --idle-poll 0s
    rounds "1 x 1, without polling" disk_and_wire_us ringbolt_us
    row "the same to disk + wire, with --idle-poll 0s: both sleep" "$(ratio ringbolt_us disk_and_wire_us)" '<=' 1.15 \
        "$(middle ringbolt_us '%.0f µs')"
    broker_stop
    share_broker
fi

if wants 64x1; then say "64 producers, 1 in flight"; shape 64 1 0.70 1.9 40000; fi
if wants 64x16; then say "64 producers, 16 in flight"; shape 64 16 0.65 6 120000; fi
if wants 1x256; then say "1 producer, 256 in flight"; shape 1 256 0.30 8 80000; fi

if wants batches; then
    say "4 producers, batches of 256, 8 in flight"
    : >"$WORK/cpu.v" ; : >"$WORK/copy.v"
    disk_mb_per_s() { floor seq_dsync_mb_per_s .seq_dsync_mb_per_s; }
    ringbolt_mb_per_s() {
        local copied acked cpu start end
        copied=$(counter copied_bytes_total) acked=$(counter acked_bytes_total)
        cpu=$(broker_cpu) start=$(date +%s.%N)
        # Bytes of record values, which are less than those of batches on the disk.
        load .mb_per_s --producers 4 --batch 256 --in-flight 8
        end=$(date +%s.%N)
        { calc "($(broker_cpu) - $cpu) / ($end - $start)"; echo; } >>"$WORK/cpu.v"
        { calc "($(counter copied_bytes_total) - $copied) / ($(counter acked_bytes_total) - $acked)"; echo; } \
            >>"$WORK/copy.v"
    }
    rounds "large batches" disk_mb_per_s ringbolt_mb_per_s
    row "4 producers, batches of 256 KiB, 8 in flight, to the disk" "$(ratio ringbolt_mb_per_s disk_mb_per_s)" '>=' \
        0.90 "$(middle ringbolt_mb_per_s '%.0f MB/s')"
    row "the same: share of the broker's core" "$(middle cpu)" '<=' 0.75
    row "the same: bytes copied per byte acknowledged" "$(middle copy)" '<=' 0.1
fi

if wants partitions; then
    say "10,000 partitions"
    one_partition_per_s() { load .acked_per_s --producers 64 --in-flight 1; }
    # The same topic each time, since making it is not what is measured.
    many=t$(date +%s%N)
    partitions_per_s() { TOPIC=$many load .acked_per_s --producers 64 --in-flight 1 --partitions 10000; }
    rounds "10,000" one_partition_per_s partitions_per_s
    row "10,000 partitions to one (64 producers, 1 in flight)" "$(ratio partitions_per_s one_partition_per_s)" '>=' 0.85 \
        "$(middle partitions_per_s %.0f/s)"
fi

if wants fetch; then
    say "fetch"
    # 4 GiB: eight times the broker's memory, so that reading from the start
    # finds nothing of it there.
    "$LOADGEN" run --addr "$ADDR" --core $LOAD_CORE --topic fetched --producers 4 --batch 256 --in-flight 8 \
        --size $VALUE_LEN --count $((4 << 20)) --quiet >/dev/null || die "there is nothing to fetch"
    tail_mb_per_s() { TOPIC=fetched load .fetched.mb_per_s --read tail; }
    cold_mb_per_s() {
        drop_caches
        TOPIC=fetched load .fetched.mb_per_s --read cold
    }
    rounds "fetch" tail_mb_per_s cold_mb_per_s
    row "fetch of 256 KiB responses, one consumer, tail (GB/s)" "$(calc "$(middle tail_mb_per_s) / 1000")" '>=' 1
    row "the same, cold, caches dropped (GB/s)" "$(calc "$(middle cold_mb_per_s) / 1000")" '>=' 0.6
fi

if wants idle; then
    say "idle"
    # A segment that is still being made ahead is work that the load left
    # behind: idle begins when the broker has written nothing for 2 s.
    written() { awk '/^write_bytes/ {print $2}' "/proc/$BROKER/io"; }
    for ((i = 0; i < 30; i++)); do
        before=$(written)
        sleep 2
        [[ $(written) != "$before" ]] || break
    done
    cpu=$(broker_cpu)
    sleep 10
    row "share of a core when idle" "$(calc "($(broker_cpu) - $cpu) / 10")" '<=' 0.005
fi
if wants end-to-end; then end_to_end_rows; fi
if wants consume; then consume_rows; fi
if wants beside; then beside_rows; fi
if shared_rows; then
    broker_stop
    rm -rf "$WORK/data"
fi

if wants connections; then
    say "10,000 idle connections"
    # A broker of its own, which has grown by nothing else: one message a second
    # beside the connections, and before them without, so that what this costs
    # is not counted.
    broker_start "$WORK/idle"
    load .acked --producers 1 --rate 1 >/dev/null
    # What is warmed in the background is not theirs either.
    before=0 high=$(broker_rss)
    for ((i = 0; i < 30; i++)); do
        [[ $before != "$high" ]] || break
        sleep 1
        before=$high high=$(broker_rss)
    done
    before=$high
    load .acked --producers 1 --rate 1 --idle 10000 >/dev/null &
    idle=$!
    held=0
    while kill -0 $idle 2>/dev/null; do
        high=$(awk -v a="$high" -v b="$(broker_rss)" 'BEGIN {print (a > b ? a : b)}')
        now=$(counter connections)
        held=$((now > held ? now : held))
        sleep 0.1
    done
    wait $idle || die "10,000 idle connections could not be made; is ulimit -n high enough?"
    ((held >= 10000)) || die "only $held connections were held; is ulimit -n high enough?"
    say "  $held connections: $before MiB, then $high MiB"
    row "10,000 idle connections (MiB)" "$(calc "$high - $before")" '<=' 100
    broker_stop
    rm -rf "$WORK/idle"
fi

if wants start; then
    say "start after SIGKILL with $LOG_GIB GiB in the log"
    broker_start "$WORK/big" --preallocate $((LOG_GIB * 4 + 4))
    "$LOADGEN" run --addr "$ADDR" --core $LOAD_CORE --topic big --producers 4 --batch 256 --in-flight 8 \
        --size $VALUE_LEN --count $((LOG_GIB << 20)) --quiet --json "$WORK/load.json" >/dev/null ||
        die "the log could not be filled"
    for ((i = 0; i < ROUNDS; i++)); do
        # Killed under load: the tail has to be looked at, too.
        "$LOADGEN" run --addr "$ADDR" --core $LOAD_CORE --topic big --producers 64 --in-flight 16 \
            --duration 60s --quiet --timeout 1s >/dev/null 2>&1 &
        killer=$!
        sleep 1
        note_hwm
        kill -9 "$BROKER" && wait "$BROKER" 2>/dev/null || true
        kill -9 $killer && wait $killer 2>/dev/null || true
        drop_caches
        begin=$(date +%s.%N)
        broker_start "$WORK/big"
        "$RINGBOLT" topic describe big --addr "$ADDR" >/dev/null
        took=$(calc "$(date +%s.%N) - $begin")
        say "  round $((i + 1)): $took s"
        echo "$took" >>"$WORK/start.v"
    done
    row "start after SIGKILL, $LOG_GIB GiB in the log (s)" "$(middle start)" '<=' 1.5
    broker_stop
fi

if wants delayed; then delayed_rows; fi
if wants restart; then restart_rows; fi

if wants memory; then
    [[ -n $BEYOND ]] || die "the row memory needs another that starts a broker"
    row "memory of any of these brokers beyond its --memory (MiB)" "$BEYOND" '<=' 64
fi

echo "| | target | measured | absolute | met |"
echo "|---|---|---|---|---|"
cat "$TABLE"
echo
echo "Median of $ROUNDS rounds of $SECONDS_EACH s; broker on core $SERVER_CORE, load on core $LOAD_CORE; \
$(uname -sr), $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo)."
