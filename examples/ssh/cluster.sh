#!/usr/bin/env bash
# Starts a scheduler here and executors on machines that ssh reaches, and stops them.
#
#     cluster.sh start hosts       # prints the address for `neurosieve run --cluster`
#     cluster.sh status hosts
#     cluster.sh stop hosts        # executors finish their chunks first
#
# Takes   a file with a machine and its number of GPUs on each line (`gpu1.example.org 8`; 0: one executor on the CPU).
#         On every machine, this one included: the same version of neurosieve in the PATH, and a folder ~/neurosieve that
#         only its owner may read, with tls/ (ca.pem, cert.pem, key.pem; docs/scaling.md) and the file `environment`
#         (AWS_ACCESS_KEY_ID=… and so on).
# Gives   logs and process ids in ~/neurosieve/HOSTNAME on each machine. NEUROSIEVE_HOST: this machine's name, as the certificate
#         has it and as the others reach it (default: hostname -f). NEUROSIEVE_PORT: the scheduler's (50050).
set -euo pipefail

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

[[ $# -eq 2 && -r $2 ]] || fail "give start, status or stop, and a readable file of hosts"
action=$1
url=https://${NEUROSIEVE_HOST:-$(hostname -f)}:${NEUROSIEVE_PORT:-50050}
mapfile -t hosts < <(sed 's/#.*//' "$2" | awk 'NF {print $1, ($2 == "" ? 0 : $2)}')
[[ ${#hosts[@]} -gt 0 ]] || fail "$2 names no host"
for host in "${hosts[@]}"; do
    [[ $host =~ ^[A-Za-z0-9._@-]+\ [0-9]+$ ]] || fail "\`$host\` in $2 is not a machine and a number of GPUs"
done

# What each machine runs: starts a process under a name, unless it runs; stops all whose names begin so.
remote=$(cat <<'END'
set -u
# A folder for each machine, because they may share the home folder.
mkdir -p ~/neurosieve/"$(hostname)" && cd ~/neurosieve/"$(hostname)" || exit 1
alive() { [ -r "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm")" = neurosieve ]; } 2>/dev/null
start() {
    name=$1; shift
    if alive "$name.pid"; then echo "$name runs already"; return; fi
    if [ -r ../environment ]; then set -a; . ../environment; set +a; fi
    nohup "$@" >>"$name.log" 2>&1 </dev/null &
    echo $! >"$name.pid"
    sleep 1
    if alive "$name.pid"; then echo "$name started"; else tail -n 3 "$name.log" >&2; exit 1; fi
}
stop() {
    for pid in "$1"*.pid; do if alive "$pid"; then kill "$(cat "$pid")"; fi; done
    for pid in "$1"*.pid; do
        while alive "$pid"; do sleep 1; done
        rm -f "$pid"
    done
}
# The n-th of `parts` equal parts of this machine's cores, and of three quarters of its free memory in MiB.
cores() { echo $(($1 * $(nproc) / $2))-$((($1 + 1) * $(nproc) / $2 - 1)); }
memory() { awk -v parts="$1" '/^MemAvailable/ {printf "%d", $2 / 1024 * 3 / 4 / parts}' /proc/meminfo; }
END
)

here() {
    bash -s <<<"$remote"$'\n'"$1"
}

on() {
    ssh -o BatchMode=yes "$1" bash -s <<<"$remote"$'\n'"$2" ||
        fail "$1: this did not work; see its logs in ~/neurosieve"
}

start() {
    here "start scheduler neurosieve scheduler --listen 0.0.0.0:${NEUROSIEVE_PORT:-50050} --tls ../tls" ||
        fail "the scheduler did not start; its log in ~/neurosieve says why"
    local host gpus n common
    for host in "${hosts[@]}"; do
        read -r host gpus <<<"$host"
        common="--scheduler $url --listen 0.0.0.0:0 --advertise ${host#*@} --tls ../tls"
        if [[ $gpus -eq 0 ]]; then
            on "$host" "start executor-cpu neurosieve executor $common --device cpu --work-dir work-cpu"
        fi
        for ((n = 0; n < gpus; n++)); do
            on "$host" "start executor-$n env CUDA_VISIBLE_DEVICES=$n taskset --cpu-list \$(cores $n $gpus) \
                neurosieve executor $common --device cuda --memory-mib \$(memory $gpus) --work-dir work-$n"
        done
    done
    echo "$url"
}

stop() {
    local host
    for host in "${hosts[@]}"; do on "${host% *}" 'stop executor-' & done
    wait
    here 'stop scheduler'
}

case $action in
    start) start ;;
    status) neurosieve cluster status --cluster "$url" --tls ~/neurosieve/tls ;;
    stop) stop ;;
    *) fail "\`$action\` is none of start, status and stop" ;;
esac
