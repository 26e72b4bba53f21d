#!/bin/bash
# What docs/gpu.md shows, on a machine with one GPU:
#
#     bash benchmarks/on_gpu.sh compile OUT    everything once, side by side: programs are compiled and kept, faults seen
#     bash benchmarks/on_gpu.sh measure OUT    everything again, one after another, timed; ONLY="search iql" chooses
#     bash benchmarks/on_gpu.sh learn OUT      PPO on Hopper
#
# PYTHON runs this suite, PEERS_PYTHON the peers (benchmarks/peers/constraints.txt). Each command has a time limit and a file
# in OUT; one that fails spoils no other. All end after LIMIT seconds.
set -u
phase=$1 out=$2
python=${PYTHON:-python3} peers_python=${PEERS_PYTHON:-python3}
cd "$(dirname "$0")/.." || exit
mkdir -p "$out"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/rlsuite/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
repeats=2
if [ "$phase" = compile ]; then
    repeats=1
    export XLA_PYTHON_CLIENT_PREALLOCATE=false
fi

# timed NAME SECONDS COMMAND...: its output goes to OUT/NAME.txt
timed() {
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return
    local left=$((${LIMIT:-3600} - began))
    [ $left -gt 0 ] || { echo "$name: not begun, no time"; return; }
    timeout $((seconds < left ? seconds : left)) "$@" >"$out/$name.txt" 2>"$out/$name.err"
    local status=$?
    echo "$name: exit $status after $((SECONDS - began)) s" | tee -a "$out/status.txt"
    [ $status = 0 ] || tail -n 3 "$out/$name.err"
}

run() {
    if [ "$phase" = compile ]; then timed "$@" & else timed "$@"; fi
}

# compare NAME SECONDS ARGUMENTS... of benchmarks/peers/compare.py
compare() {
    local name=$1 seconds=$2
    shift 2
    run "$name" "$seconds" "$python" benchmarks/peers/compare.py --python "$peers_python" --at-once --repeats $repeats \
        --json "$out/$name.json" "$@"
}

# The most wanted first.
each() {
    compare ppo-300 100 ppo --runs 300 --updates 20 --peers rejax
    compare sac-small-300 100 sac-small --runs 300 --updates 3000 --peers rejax
    compare td3_bc 120 td3_bc --rows 1000000 --runs 256 1024 --updates 400 --peers cuda cuda-graphs
    compare ppo-4096 100 ppo --runs 4096 --updates 10 --peers rejax
    compare sac-small-4096 100 sac-small --runs 4096 --updates 1000 --peers rejax
    compare prdc 100 prdc --rows 1000000 --runs 256 --updates 100 --peers
    compare a2pr 100 a2pr --rows 1000000 --runs 1 256 --updates 400 --peers cuda-one cuda-graphs-one
    compare iql 120 iql --rows 1000000 --runs 256 --updates 400 --peers cuda cuda-graphs
    run search 100 "$python" benchmarks/search_speed.py --rows 1000000 --runs 256
    compare sac-300 100 sac --runs 300 --updates 1000 --peers rejax
    run env_speed 120 "$python" benchmarks/env_speed.py --envs 1024,8192 --without-c mujoco/Hopper-v5 gymnax/Pendulum-v1
    compare td3_bc-small 120 td3_bc-small --rows 1000000 --runs 1024 --updates 1000 --peers cuda cuda-graphs
    compare sac-4096 150 sac --runs 4096 --updates 100 --peers rejax
    run where 120 "$python" benchmarks/where_time_goes.py --runs 300 PPO "SAC 64-64"
    run env_speed_2 120 "$python" benchmarks/env_speed.py --envs 8192 --without-c mujoco/HalfCheetah-v5
}

# The protocol is not the one of published tables: 128 environments of 16 steps instead of one of 2048.
learn() {
    run "learn-$1" "$2" "$python" -m rlsuite.commands.cli run ppo --env "mujoco/$1-v5" --steps "$3" --seeds 64 --num-envs 128 \
        --num-steps 16 --evaluations 4 --eval-episodes 4 --eval-physics mujoco --width 64 --name "ppo-$1-$3" \
        --results "$out/results"
}

case $phase in
compile)
    each
    learn Hopper 200 4096
    run tests 150 "$python" -m pytest -q -x tests/test_nearest.py tests/test_losses_td3_bc.py tests/test_losses_ppo.py
    wait
    ;;
measure)
    run peaks 60 env PYTHONPATH="docs:${PYTHONPATH:-}" "$python" -c \
        'import jax, where_time_goes as w; print(w.describe_device(), jax.__version__, w.peaks())'
    each
    ;;
learn) learn Hopper "${LIMIT:-3600}" 1000000 ;;
*) echo "unknown phase '$phase'; choose compile, measure or learn" >&2; exit 1 ;;
esac
