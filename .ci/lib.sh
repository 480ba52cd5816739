# Shared by .ci/run and .ci/full.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
export PIP_COMPILE=0  # of the packages that the oracles bring, most modules are never imported
scratch=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT

step() { printf '\n=== [%4d s] %s\n' "$SECONDS" "$*"; }

# A command that keeps one core busy at most runs beside the steps that follow. `finish` waits for
# it, prints what it printed, and fails if it failed.
declare -A beside=()
start_beside() {  # name, command
  local name=$1
  shift
  "$@" >"$scratch/$name.log" 2>&1 &
  beside[$name]=$!
}
finish() {
  local status=0
  wait "${beside[$1]}" || status=$?
  cat "$scratch/$1.log"
  ((status == 0)) || echo "$1: failed with status $status"
  return "$status"
}

packages() {
  local missing=()
  for package in "$@"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  if ((${#missing[@]})); then
    local root=()
    ((EUID == 0)) || root=(sudo)
    "${root[@]}" apt-get update -qq
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
}

# From here on, what several builds have in common is compiled once. The cache begins empty, so the
# first build is one from nothing, and it is gone when the script ends.
share_objects() {
  export CMAKE_CXX_COMPILER_LAUNCHER=$PWD/.ci/compile CCACHE_DIR="$scratch/ccache"
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
  export CXX=g++  # as pip's builds call it: objects of c++ are others to ccache
}

# A virtual environment with nothing but pip.
fresh_venv() { python3 -m venv "$scratch/$1"; }

# What a clone of the present state would hold.
fresh_copy() {
  mkdir -p "$scratch/$1"
  git ls-files -co --exclude-standard -z |
    while IFS= read -r -d '' file; do
      if [[ -e $file ]]; then printf '%s\0' "$file"; fi
    done | xargs -0 cp --parents -t "$scratch/$1"
}

# Runs a README block. It may take four minutes on two idle cores; machines are shared and seldom
# idle (the same block has taken 211 and 296 seconds), so the limit (README_LIMIT, in seconds) is six.
readme_block() {  # heading, virtual environment, folder
  local block
  block=$(python3 .ci/readme_block.py "$1")
  (
    cd "$3"
    export CCACHE_BASEDIR=$PWD
    # shellcheck disable=SC1091
    source "$scratch/$2/bin/activate"
    timeout "${README_LIMIT:-360}" bash -euo pipefail -c "$block"
  )
}

preset() {  # name, further cmake arguments
  local name=$1
  shift
  cmake --preset "$name" "$@" >"$scratch/$name.log" || { cat "$scratch/$name.log"; return 1; }
  cmake --build "build/$name" -j"$(nproc)"
  ctest --preset "$name" -j"$(nproc)" --no-tests=error
}
