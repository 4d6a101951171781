#!/bin/bash
# All that docs/comparison-plan.md wants, by a process for each GPU:
#     docs/comparison/run.sh DATA OUT [scaling letters fashion clipart frontier]
# DATA holds letters/, fashion/ and clipart/, as the plan's commands make them. Finished cells stay in
# OUT: stop at any time, and give the same command again. At last it makes the tables and pictures.
set -eu
[ $# -ge 2 ] || { echo "run.sh: wants DATA OUT [FIGURE ...]" >&2; exit 2; }
data=$(realpath -m "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
shift 2
figures=${*:-scaling letters fashion clipart frontier}
for figure in $figures; do
  case $figure in
    scaling | letters | fashion | clipart | frontier) ;;
    *) echo "run.sh: no figure $figure; there are scaling letters fashion clipart frontier" >&2; exit 2 ;;
  esac
done
export PYTHONPATH=$PWD OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-4}
gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l)}
[ "$gpus" -gt 0 ] || { echo "run.sh: there is no GPU" >&2; exit 2; }
cores=$(($(nproc) / gpus))

compare() {
  python3 examples/compare.py --device cuda --precision tf32 --batch-size 256 \
    --lrs 3e-4,1e-3,3e-3,1e-2 --sizes small "$@"
}
four=(--models vit,resnet,mixer,hybrid --colour)
probes=(--probes "mnist,$data/fashion,$data/clipart")

scaling() {
  compare --budget 20000 --seeds 0,1,2,3,4 --figure decades --data "$data/letters" "${probes[@]}" \
    --tune --untrained --out "$out/scaling" "$@"
}
letters() {
  compare --budget 20000 "${four[@]}" --data "$data/letters@1e5" --max-shift 0 --out "$out/letters" "$@"
}
fashion() { compare --budget 20000 "${four[@]}" --data "$data/fashion" --out "$out/fashion" "$@"; }
clipart() { compare --budget 4000 "${four[@]}" --data "$data/clipart" --out "$out/clipart" "$@"; }
frontier() {  # its small models are those of scaling
  mkdir -p "$out/frontier/cells"
  cp -n "$out"/scaling/cells/*-small-*.json "$out/frontier/cells" 2>/dev/null || true
  compare --budget 20000 --sizes nano,tiny,small --figure decades --data "$data/letters" \
    --counts 1e5 "${probes[@]}" --out "$out/frontier" "$@"
}

work() {  # on processors of its own, where there are as many and it may choose
  taskset -cp $(($1 * cores))-$(($1 * cores + cores - 1)) $BASHPID > /dev/null 2>&1 || true
  for figure in $figures; do
    "$figure" --no-wait > "$out/$figure.$1.log" 2>&1
  done
}

mkdir -p "$out"
for ((gpu = 0; gpu < gpus; gpu++)); do
  CUDA_VISIBLE_DEVICES=$gpu work $gpu &
done
wait
for figure in $figures; do
  "$figure"
done
